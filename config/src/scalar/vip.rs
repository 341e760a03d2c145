//! What a VIP is made of: its addresses, the interface that takes them, the program that is told.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::Parsed;
use crate::model::VipAddress;
use crate::problem::{Fault, shown};

/// `ADDRESS/PREFIX`, an address that a host can have.
pub(crate) fn vip_address(text: &str) -> Parsed<VipAddress> {
    let Some((address, prefix)) = text.split_once('/') else {
        let fault = Fault::new(format!("{} has no prefix length", shown(text)));
        return Err(match text.parse::<IpAddr>() {
            Ok(ip) => fault.help(format!("write `{ip}/PREFIX`, with the prefix length of its network")),
            Err(_) => fault.help("write `ADDRESS/PREFIX`"),
        });
    };
    let ip = match address.parse::<IpAddr>() {
        Ok(ip) => ip,
        Err(_) => return Err(no_address(address, prefix)),
    };
    let max = if ip.is_ipv4() { 32 } else { 128 };
    let digits = prefix.bytes().all(|b| b.is_ascii_digit()) && !prefix.starts_with('0');
    let prefix = match prefix.parse::<u8>() {
        Ok(prefix) if digits && (1..=max).contains(&prefix) => prefix,
        _ => {
            return Err(Fault::new(format!("{} is no prefix length, 1 to {max} is allowed", shown(prefix))));
        }
    };
    let address = VipAddress { ip, prefix };
    match ip {
        IpAddr::V4(v4) => host_v4(v4, prefix)?,
        IpAddr::V6(v6) => host_v6(v6, prefix)?,
    }
    Ok(address)
}

fn no_address(address: &str, prefix: &str) -> Fault {
    let bare = address.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    match bare.filter(|bare| bare.parse::<Ipv6Addr>().is_ok()) {
        Some(bare) => {
            Fault::new("an address of a VIP has no brackets").near(Some(&format!("{bare}/{prefix}")))
        }
        None => Fault::new(format!("{} is no IP address", shown(address)))
            .help("an address of a VIP is an IP address and the prefix length of its network"),
    }
}

fn host_v4(ip: Ipv4Addr, prefix: u8) -> Parsed<()> {
    if ip.is_broadcast() {
        return Err(refused(ip.into(), "is for everybody (broadcast)"));
    }
    no_host_has(ip.into())?;
    // Two hosts share a /31, and a /32 is one host (RFC 3021).
    if prefix >= 31 {
        return Ok(());
    }
    let host_bits = u32::MAX >> prefix;
    let host = ip.to_bits() & host_bits;
    if host == 0 {
        return Err(refused(ip.into(), &format!("is the network of /{prefix} itself")));
    }
    if host == host_bits {
        return Err(refused(ip.into(), &format!("is the broadcast address of its /{prefix}")));
    }
    Ok(())
}

fn host_v6(ip: Ipv6Addr, prefix: u8) -> Parsed<()> {
    if let Some(v4) = ip.to_ipv4_mapped() {
        let meant =
            prefix.checked_sub(96).filter(|prefix| *prefix > 0).map(|prefix| format!("{v4}/{prefix}"));
        return Err(Fault::new(format!("{ip} is an IPv4 address in the form of IPv6")).near(meant.as_deref()));
    }
    no_host_has(ip.into())?;
    if ip.is_unicast_link_local() {
        return Err(refused(ip.into(), "is link-local: each link has its own, and clients can't tell which"));
    }
    // RFC 4291, section 2.6.1; RFC 6164 has /127 between two routers.
    if prefix < 127 && ip.to_bits() & (u128::MAX >> prefix) == 0 {
        return Err(refused(ip.into(), &format!("is the network of /{prefix} itself")));
    }
    Ok(())
}

fn no_host_has(ip: IpAddr) -> Parsed<()> {
    if ip.is_unspecified() {
        Err(refused(ip, "stands for all addresses"))
    } else if ip.is_loopback() {
        Err(refused(ip, "is loopback: every node has it"))
    } else if ip.is_multicast() {
        Err(refused(ip, "is multicast"))
    } else {
        Ok(())
    }
}

fn refused(ip: IpAddr, why: &str) -> Fault {
    Fault::new(format!("{} {why}", shown(&ip.to_string()))).help("a VIP has addresses that one host can have")
}

/// The name of an interface as the kernel takes it; `auto` is one, too.
pub(crate) fn interface(text: &str) -> Parsed<String> {
    /// Bytes, without the zero at its end.
    const INTERFACE_MAX: usize = 15;
    if text.is_empty() {
        return Err(Fault::new("the name of an interface must not be empty").near(Some("auto")));
    }
    if text.len() > INTERFACE_MAX {
        let message = format!(
            "the name of an interface has at most {INTERFACE_MAX} bytes, this one has {}",
            text.len()
        );
        return Err(Fault::new(message));
    }
    let fits = |c: char| !c.is_whitespace() && !c.is_control() && c != '/' && c != ':';
    if matches!(text, "." | "..") || !text.chars().all(fits) {
        return Err(Fault::new(format!("{} is no name of an interface", shown(text)))
            .help("it has no spaces, `/` or `:`"));
    }
    Ok(text.to_owned())
}

/// The path of a program, or nothing.
pub(crate) fn program(text: &str) -> Parsed<String> {
    /// `PATH_MAX` of Linux, without the zero at its end.
    const PATH_MAX: usize = 4_095;
    if text.is_empty() {
        return Ok(String::new());
    }
    if !text.starts_with('/') || text.ends_with('/') {
        return Err(Fault::new(format!("{} is no absolute path of a program", shown(text)))
            .help("write `/PATH/PROGRAM`; it gets no words of a command line"));
    }
    if text.len() > PATH_MAX || text.contains(char::is_control) {
        return Err(Fault::new(format!("{} is no path", shown(text)))
            .help(format!("at most {PATH_MAX} bytes, without control characters")));
    }
    Ok(text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::super::tests::fault;
    use super::*;

    #[test]
    fn addresses_of_hosts_are_taken_and_print_as_written() {
        for text in [
            "198.18.0.100/24",
            "198.18.0.1/15",
            "198.18.0.0/31",
            "198.18.0.1/31",
            "198.18.0.0/32",
            "198.18.0.255/32",
            "198.18.1.0/23",
            "198.18.0.255/23",
            "2001:db8::10/64",
            "2001:db8::/127",
            "2001:db8::/128",
            "fd00:198:18::1/48",
        ] {
            assert_eq!(vip_address(text).unwrap().to_string(), text);
        }
        assert_eq!(vip_address("2001:DB8:0::0a/64").unwrap().to_string(), "2001:db8::a/64");
    }

    #[test]
    fn what_no_single_host_has_is_refused_with_the_reason() {
        for (text, why) in [
            ("198.18.0.0/24", "network"),
            ("198.18.0.255/24", "broadcast"),
            ("198.18.0.252/30", "network"),
            ("198.19.255.255/15", "broadcast"),
            ("255.255.255.255/32", "broadcast"),
            ("0.0.0.0/24", "all addresses"),
            ("127.0.0.1/8", "loopback"),
            ("224.0.0.18/32", "multicast"),
            ("::/64", "all addresses"),
            ("::1/128", "loopback"),
            ("ff02::1/64", "multicast"),
            ("fe80::1/64", "link-local"),
            ("2001:db8::/64", "network"),
        ] {
            let message = fault(vip_address(text));
            assert!(message.contains(why), "{text}: {message}");
        }
        assert!(fault(vip_address("198.18.0.100")).contains("(write `198.18.0.100/PREFIX`"));
        assert!(fault(vip_address("[2001:db8::1]/64")).ends_with("(did you mean `2001:db8::1/64`?)"));
        assert!(fault(vip_address("::ffff:198.18.0.1/120")).ends_with("(did you mean `198.18.0.1/24`?)"));
        for text in [
            "",
            "/",
            "/24",
            "a/24",
            "198.18.0.1/",
            "198.18.0.1/0",
            "198.18.0.1/33",
            "198.18.0.1/024",
            "198.18.0.1/+4",
        ] {
            fault(vip_address(text));
        }
        for text in
            ["198.18.0.1/24/24", "198.18.0.1:80/24", "2001:db8::1/129", "fe80::1%eth0/64", "198.18.0/24"]
        {
            fault(vip_address(text));
        }
    }

    #[test]
    fn interfaces_and_programs_have_the_systems_form() {
        for text in ["auto", "eth0", "br-0123456789ab", "vlan.100", "ünter"] {
            assert_eq!(interface(text).unwrap(), text);
        }
        for text in ["", "a/b", "a b", "eth0:1", ".", "..", "sixteen-letters-", "a\u{7}"] {
            fault(interface(text));
        }
        for text in ["", "/usr/local/bin/tell", "/opt/two words/tell"] {
            assert_eq!(program(text).unwrap(), text);
        }
        for text in ["tell", "./tell", "/bin/", "/", "/a\nb"] {
            fault(program(text));
        }
        fault(program(&format!("/{}", "a".repeat(5_000))));
    }
}
