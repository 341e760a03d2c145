//! Certificates and TLS.

use std::collections::BTreeMap;

use crate::model::{
    Alpn, Certificate, ClientAuth, ClientTls, Content, HostPattern, ListenerTls, PoolProtocol, PoolTls,
    Protocol, TlsVersion, UnknownName,
};
use crate::scalar;
use crate::value::{Fields, Value};

/// Where something is missing, [`crate::validate`] says so, and the certificate goes no further.
pub(super) fn certificate(fields: &Fields) -> Certificate {
    let either = |a: &str, b: &str| {
        let content = fields.content(a).or_else(|| fields.content(b)).cloned();
        content.unwrap_or_else(|| Content::Inline("".into()))
    };
    Certificate {
        chain: either("chain_file", "chain"),
        key: either("key_file", "key"),
        ocsp: fields.content("ocsp_file").cloned(),
    }
}

/// Pools by names that are passed through.
pub(super) fn sni(fields: &Fields) -> BTreeMap<HostPattern, String> {
    let pool = |(name, value): &(String, Value)| {
        Some((scalar::host_pattern(name).ok()?, value.as_text()?.to_owned()))
    };
    fields.map("sni").iter().filter_map(pool).collect()
}

pub(super) fn listener(protocol: Protocol, fields: &Fields) -> ListenerTls {
    let alpn = |value: &Value| match value.as_text()? {
        "h2" => Some(Alpn::H2),
        "http/1.1" => Some(Alpn::Http1),
        other => Some(Alpn::Other(other.into())),
    };
    let default = if protocol.has_requests() { vec![Alpn::H2, Alpn::Http1] } else { Vec::new() };
    let names = fields.list("certificates").unwrap_or_default();
    let written = fields.list("alpn").map(|list| list.iter().filter_map(alpn).collect());
    ListenerTls {
        certificates: names.iter().filter_map(Value::as_text).map(str::to_owned).collect(),
        unknown_name: match fields.word("unknown_name") {
            Some("reject") => UnknownName::Reject,
            _ => UnknownName::Default,
        },
        min: match fields.word("min") {
            Some("1.3") => TlsVersion::V13,
            _ => TlsVersion::V12,
        },
        alpn: written.unwrap_or(default),
        client: fields.object("client").map(client).unwrap_or_default(),
    }
}

fn client(fields: &Fields) -> ClientTls {
    ClientTls {
        mode: match fields.word("mode") {
            Some("optional") => ClientAuth::Optional,
            Some("required") => ClientAuth::Required,
            _ => ClientAuth::None,
        },
        ca: fields.content("ca_file").cloned(),
        forward: fields.bool("forward").unwrap_or(false),
    }
}

pub(super) fn pool(fields: &Fields) -> PoolTls {
    PoolTls {
        ca: fields.content("ca_file").cloned(),
        name: fields.text("name").map(str::to_owned),
        certificate: fields.text("certificate").map(str::to_owned),
        verify: fields.bool("verify").unwrap_or(true),
    }
}

pub(super) fn pool_protocol(word: &str) -> PoolProtocol {
    match word {
        "http1" => PoolProtocol::Http1,
        "h2c" => PoolProtocol::H2c,
        "h2" => PoolProtocol::H2,
        _ => PoolProtocol::Auto,
    }
}
