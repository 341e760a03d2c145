//! Headers for members.

use std::net::{IpAddr, SocketAddr};

use trestle_config::model::ProxyVersion;

use super::{Ends, SIGNATURE, Tlvs, kind};

/// Room for addresses and the usual TLVs.
const TYPICAL: usize = 128;

/// What is known of a client's connection beside its ends; version 2 says so in TLVs.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Facts<'a> {
    pub(crate) alpn: Option<&'a [u8]>,
    /// The name that the client asked for (SNI).
    pub(crate) authority: Option<&'a str>,
    pub(crate) unique_id: Option<&'a str>,
    pub(crate) tls: Option<Tls<'a>>,
    /// What the proxy in front of us has told; each kind once, and theirs first, who are nearer to the client.
    pub(crate) told: Option<&'a Tlvs>,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Tls<'a> {
    /// `TLSv1.3`
    pub(crate) version: &'a str,
    /// Of the certificate that the client has shown, and that was believed.
    pub(crate) common_name: Option<&'a str>,
}

/// The header that names this client.
pub(crate) fn wanted(version: ProxyVersion, ends: &Ends, facts: &Facts<'_>) -> Vec<u8> {
    let (client, local) = of_one_family(ends);
    match version {
        ProxyVersion::V1 => line(client, local),
        ProxyVersion::V2 => binary(client, local, facts),
    }
}

/// The PROXY protocol's header of a connection that is about nobody but us, such as a health check.
pub fn local(version: ProxyVersion) -> &'static [u8] {
    match version {
        ProxyVersion::V1 => b"PROXY UNKNOWN\r\n",
        ProxyVersion::V2 => b"\r\n\r\n\0\r\nQUIT\n\x20\x00\x00\x00",
    }
}

/// A header has one family for both. They differ where a proxy in front named the client by another than it
/// used itself: then both are of IPv6.
fn of_one_family(ends: &Ends) -> (SocketAddr, SocketAddr) {
    let canonical = |address: SocketAddr| SocketAddr::new(address.ip().to_canonical(), address.port());
    let (client, local) = (canonical(ends.client), canonical(ends.local));
    if client.is_ipv4() == local.is_ipv4() {
        return (client, local);
    }
    let mapped = |address: SocketAddr| match address.ip() {
        IpAddr::V4(ip) => SocketAddr::new(ip.to_ipv6_mapped().into(), address.port()),
        IpAddr::V6(_) => address,
    };
    (mapped(client), mapped(local))
}

fn line(client: SocketAddr, local: SocketAddr) -> Vec<u8> {
    let family = if client.is_ipv4() { "TCP4" } else { "TCP6" };
    let (from, to) = (client.port(), local.port());
    format!("PROXY {family} {} {} {from} {to}\r\n", client.ip(), local.ip()).into_bytes()
}

fn binary(client: SocketAddr, local: SocketAddr, facts: &Facts<'_>) -> Vec<u8> {
    const PROXY: u8 = 0x21;
    const TCP4: u8 = 0x11;
    const TCP6: u8 = 0x21;
    const LENGTH_AT: usize = 14;
    let mut out = Vec::with_capacity(TYPICAL);
    out.extend_from_slice(&SIGNATURE);
    out.extend_from_slice(&[PROXY, if client.is_ipv4() { TCP4 } else { TCP6 }, 0, 0]);
    for address in [client, local] {
        match address.ip() {
            IpAddr::V4(ip) => out.extend_from_slice(&ip.octets()),
            IpAddr::V6(ip) => out.extend_from_slice(&ip.octets()),
        }
    }
    out.extend_from_slice(&client.port().to_be_bytes());
    out.extend_from_slice(&local.port().to_be_bytes());
    tlvs(facts, &mut out);
    let length = u16::try_from(out.len() - LENGTH_AT - 2).unwrap_or(0);
    out[LENGTH_AT..LENGTH_AT + 2].copy_from_slice(&length.to_be_bytes());
    out
}

fn tlvs(facts: &Facts<'_>, out: &mut Vec<u8>) {
    let told = facts.told.map_or(&[][..], |told| &told.0);
    out.extend_from_slice(told);
    let is_new = |kind: u8| !kinds(told).any(|known| known == kind);
    if let Some(alpn) = facts.alpn.filter(|_| is_new(kind::ALPN)) {
        tlv(kind::ALPN, alpn, out);
    }
    if let Some(name) = facts.authority.filter(|_| is_new(kind::AUTHORITY)) {
        tlv(kind::AUTHORITY, name.as_bytes(), out);
    }
    if let Some(id) = facts.unique_id.filter(|_| is_new(kind::UNIQUE_ID)) {
        tlv(kind::UNIQUE_ID, id.as_bytes(), out);
    }
    if let Some(tls) = facts.tls.filter(|_| is_new(kind::SSL)) {
        tlv(kind::SSL, &ssl(tls), out);
    }
}

/// Of TLVs that are well-formed.
fn kinds(mut tlvs: &[u8]) -> impl Iterator<Item = u8> {
    std::iter::from_fn(move || {
        let (head, behind) = tlvs.split_at_checked(3)?;
        tlvs = behind.get(usize::from(u16::from_be_bytes([head[1], head[2]]))..)?;
        Some(head[0])
    })
}

fn ssl(tls: Tls<'_>) -> Vec<u8> {
    const OVER_TLS: u8 = 0x01;
    /// In this connection, and in this session.
    const CERTIFICATE: u8 = 0x02 | 0x04;
    /// Other than zero: there is none, or it is not believed.
    const UNVERIFIED: u32 = 1;
    let (client, verify) = match tls.common_name {
        Some(_) => (OVER_TLS | CERTIFICATE, 0),
        None => (OVER_TLS, UNVERIFIED),
    };
    let mut out = vec![client];
    out.extend_from_slice(&verify.to_be_bytes());
    tlv(kind::SSL_VERSION, tls.version.as_bytes(), &mut out);
    if let Some(name) = tls.common_name.filter(|name| !name.is_empty()) {
        tlv(kind::SSL_CN, name.as_bytes(), &mut out);
    }
    out
}

/// One that is longer than any of those that we send could be is left out.
fn tlv(kind: u8, value: &[u8], out: &mut Vec<u8>) {
    const VALUE_MAX: usize = 512;
    if value.len() <= VALUE_MAX {
        out.push(kind);
        out.extend_from_slice(&(value.len() as u16).to_be_bytes());
        out.extend_from_slice(value);
    }
}
