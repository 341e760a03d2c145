//! What the access log tells of a TCP connection that was passed on.

use std::net::SocketAddr;
use std::time::Duration;

use trestle_config::text::Variable;
use trestle_config::text::log::LogVariable;

use crate::access_log::{Facts, Field, Object, common, micros, timestamp};
use crate::l4::Ended;
use crate::l4::ftp::Mode;
use crate::request_id::RequestId;
use crate::snapshot::Listener;

/// What a client of TLS has asked for, and what one of http was told.
#[derive(Clone, Copy, Default)]
pub(super) struct Asked<'a> {
    /// Where its TLS ends here.
    pub(super) version: Option<&'static str>,
    pub(super) name: Option<&'a str>,
    /// Of one that was turned away with an answer.
    pub(super) status: Option<u16>,
}

pub(super) struct Relayed<'a> {
    pub(super) node: &'a str,
    pub(super) listener: &'a Listener,
    pub(super) pool: &'a str,
    pub(super) client: SocketAddr,
    pub(super) id: RequestId,
    pub(super) took: Duration,
    pub(super) asked: Asked<'a>,
    /// Of a data connection.
    pub(super) ftp: Option<Mode>,
    pub(super) ended: Ended,
}

impl Relayed<'_> {
    pub(super) fn json(&self, out: &mut Vec<u8>) {
        let ended = &self.ended;
        let mut line = Object::begin(out);
        line.text("time", &timestamp(self.id.unix_ms))
            .text("connection_id", &self.id.text)
            .text("client", self.client.ip().to_canonical().to_string().as_bytes());
        for (key, value) in [("tls_version", self.asked.version), ("sni", self.asked.name)] {
            if let Some(value) = value {
                line.text(key, value.as_bytes());
            }
        }
        if let Some(status) = self.asked.status {
            line.number("status", status.into());
        }
        line.number("bytes_in", ended.bytes_in)
            .number("bytes_out", ended.bytes_out)
            .number("duration_us", micros(self.took))
            .text("listener", self.listener.name.as_bytes())
            .text("pool", self.pool.as_bytes());
        if let Some(member) = &ended.member {
            line.text("member", member.name().as_bytes());
        }
        if let Some(mode) = self.ftp {
            line.text("ftp", mode.label().as_bytes());
        }
        line.text("reason", ended.reason.label().as_bytes()).end();
    }
}

impl Facts for Relayed<'_> {
    /// Of a request nothing is known; `request.id` is that of the connection.
    fn put(&self, variable: &LogVariable, field: &mut Field<'_>) -> bool {
        let ended = &self.ended;
        match variable {
            LogVariable::Time => field.text(&timestamp(self.id.unix_ms)),
            LogVariable::TimeCommon => field.text(&common(self.id.unix_ms)),
            LogVariable::Status => field.status(self.asked.status.unwrap_or(0)),
            LogVariable::BytesIn => field.number(ended.bytes_in),
            LogVariable::BytesOut => field.number(ended.bytes_out),
            LogVariable::DurationUs => field.number(micros(self.took)),
            LogVariable::Reason => field.text(ended.reason.label().as_bytes()),
            LogVariable::Of(Variable::ClientIp) | LogVariable::Peer => {
                field.text(self.client.ip().to_canonical().to_string().as_bytes());
            }
            LogVariable::Of(Variable::ClientPort) => field.number(self.client.port().into()),
            LogVariable::Of(Variable::RequestId) => field.text(&self.id.text),
            LogVariable::Of(Variable::TlsVersion) => {
                return field.some(self.asked.version.map(str::as_bytes));
            }
            LogVariable::Of(Variable::TlsSni) => return field.some(self.asked.name.map(str::as_bytes)),
            LogVariable::Of(Variable::Node) => field.text(self.node.as_bytes()),
            LogVariable::Of(Variable::Listener) => field.text(self.listener.name.as_bytes()),
            LogVariable::Of(Variable::Pool) => field.text(self.pool.as_bytes()),
            LogVariable::Of(Variable::Member) => {
                return field.some(ended.member.as_ref().map(|member| member.name().as_bytes()));
            }
            _ => return false,
        }
        true
    }
}
