//! Rules about listeners that follow FTP.

use crate::build::protocol;
use crate::check::Sink;
use crate::model::{Config, Protocol};
use crate::problem::{Fault, shown};
use crate::tree::Place;
use crate::value::Fields;

pub(super) fn errors(root: &Fields, config: &Config, sink: &mut Sink) {
    for (name, value) in root.map("listeners") {
        if let Some(fields) = value.as_object() {
            listener(name, fields, config, sink);
        }
    }
}

fn listener(name: &str, fields: &Fields, config: &Config, sink: &mut Sink) {
    let (Some(value), Some(ftp)) = (fields.at("ftp"), fields.object("ftp")) else { return };
    let mut refuse = |fault: Fault| sink.report(Place::Key(value.node), fault);
    if let Some(protocol) = protocol(fields).filter(|protocol| *protocol != Protocol::Tcp) {
        let word = fields.word("protocol").unwrap_or_default();
        let fault = Fault::new(format!("a listener of protocol {} has no FTP to follow", shown(word)));
        let help = match protocol.has_requests() {
            true => "it stands on tcp",
            false => "FTP is spoken over TCP alone: `protocol: tcp`",
        };
        refuse(fault.help(help));
    }
    let proxied = fields.object("proxy_protocol").and_then(|proxy| proxy.word("accept"));
    if proxied.is_some_and(|word| word != "off") {
        let fault = Fault::new("`ftp` can't stand beside `proxy_protocol`");
        refuse(fault.help("clients open data connections to us themselves, past the proxy in front"));
    }
    if fields.has("tls") {
        let fault = Fault::new("`ftp` can't stand beside `tls`");
        refuse(fault.help("data connections would need TLS as well; docs/ftp.md says how FTPS gets through"));
    }
    let Some((ports, node)) = ftp.ports("ports").zip(ftp.at("ports").map(|value| value.node)) else { return };
    // Two listeners may share a range: a port of it has one user at a time.
    let clash = config.listeners.iter().find_map(|(other, listener)| {
        let ports_of_tcp = listener.bind.iter().filter(|_| listener.protocol.has_tcp());
        let port = ports_of_tcp.flat_map(|bind| bind.ports()).find(|port| ports.contains(port))?;
        Some((other, port))
    });
    if let Some((other, port)) = clash {
        let owner =
            if other == name { "this listener".to_owned() } else { format!("listener {}", shown(other)) };
        let fault = Fault::new(format!("port {port} of these is where {owner} accepts"));
        sink.report(Place::Value(node), fault.help("data connections need ports of their own"));
    }
}
