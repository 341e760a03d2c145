//! Text to typed scalars and back: numbers, durations, sizes, names, addresses, and what HTTP has.
//!
//! Every parser here takes the text as it stands in the document and answers with the value or a
//! [`Fault`] that says what would be right. None of them guesses.

mod content;
mod http;
mod log;
mod member;
mod password;
mod rate;
mod vip;
mod waf;

use std::net::{IpAddr, Ipv6Addr};
use std::time::Duration;

use crate::model::{Bind, Ports};
use crate::problem::{Fault, shown};
use crate::value::WrittenBind;

pub(crate) use content::{alpn, file, pem, server_name};
pub(crate) use http::hostname;
pub(crate) use http::{
    cookie_name, error_status, hash_on, header_name, header_value, host_pattern, media_range, media_type,
    method, origin, request_path, retry_on, status_range, status_text, target_host,
};
pub(crate) use log::{log_format, log_target};
pub(crate) use member::{MemberAddress, member_address};
pub(crate) use password::{password_hash, user_name};
pub(crate) use rate::{limit_by, rate};
pub(crate) use vip::{interface, program, vip_address};
pub(crate) use waf::waf_rule;

/// A year. Far from any sum of two durations overflowing.
pub(crate) const DURATION_MAX: Duration = Duration::from_secs(366 * 24 * 3600);
/// 1 TiB.
pub(crate) const SIZE_MAX: u64 = 1 << 40;
/// Characters of a resource's name, as of a DNS label.
pub(crate) const NAME_MAX: usize = 63;

type Parsed<T> = Result<T, Fault>;

// === numbers ===

pub(crate) fn int(text: &str, min: u64, max: u64) -> Parsed<u64> {
    if text.is_empty() || !text.bytes().all(|b| b.is_ascii_digit()) {
        return Err(Fault::new(format!("expected a whole number, not {}", shown(text))));
    }
    if text.len() > 1 && text.starts_with('0') {
        let bare = text.trim_start_matches('0');
        let bare = if bare.is_empty() { "0" } else { bare };
        return Err(Fault::new("a number must not begin with `0`").near(Some(bare)));
    }
    match text.parse::<u64>() {
        Ok(n) if (min..=max).contains(&n) => Ok(n),
        _ if max == u64::MAX => Err(Fault::new(format!("{text} is too small, at least {min} is allowed"))),
        _ => Err(Fault::new(format!("{} is out of range, {min} to {max} is allowed", shown(text)))),
    }
}

/// Digits with a point, nothing else that a float may be written as.
fn decimal(text: &str) -> Option<f64> {
    let digits = text.len() <= 20 && text.bytes().all(|b| b.is_ascii_digit() || b == b'.');
    text.parse().ok().filter(|_| digits)
}

/// A number from 1 to 100.
pub(crate) fn factor(text: &str) -> Parsed<f64> {
    match decimal(text) {
        Some(n) if (1.0..=100.0).contains(&n) => Ok(n),
        _ => Err(Fault::new(format!("expected a number from 1 to 100, not {}", shown(text)))),
    }
}

/// A share from 0 to 1.
pub(crate) fn share(text: &str) -> Parsed<f64> {
    if let Some(percent) = text.strip_suffix('%').and_then(|p| p.trim().parse::<f64>().ok())
        && (0.0..=100.0).contains(&percent)
    {
        let share = (percent / 100.0).to_string();
        return Err(Fault::new("a share is written as a number from 0 to 1").near(Some(&share)));
    }
    match decimal(text) {
        Some(n) if (0.0..=1.0).contains(&n) => Ok(n),
        Some(n) if n <= 100.0 => Err(Fault::new(format!("{text} is out of range, 0 to 1 is allowed"))
            .help(format!("{text} % is `{}`", n / 100.0))),
        _ => Err(Fault::new(format!("expected a number from 0 to 1, not {}", shown(text)))),
    }
}

// === durations and sizes ===

const DURATION_UNITS: [(&str, u64); 4] = [("ms", 1), ("s", 1_000), ("m", 60_000), ("h", 3_600_000)];
const SIZE_UNITS: [(&str, u64); 3] = [("KiB", 1 << 10), ("MiB", 1 << 20), ("GiB", 1 << 30)];

pub(crate) fn duration(text: &str, min: Duration, max: Duration) -> Parsed<Duration> {
    let (number, unit) = split_unit(text);
    let parsed = match (number, DURATION_UNITS.iter().find(|(name, _)| *name == unit)) {
        (Some(n), Some((_, ms))) => n.checked_mul(*ms).map(Duration::from_millis),
        _ => return Err(duration_fault(text)),
    };
    match parsed {
        Some(d) if d > DURATION_MAX => Err(Fault::new(format!("{text} is longer than a year"))),
        None => Err(Fault::new(format!("{} is longer than a year", shown(text)))),
        Some(d) if d < min && d.is_zero() => Err(Fault::new("must be longer than zero")),
        Some(d) if d < min => {
            Err(Fault::new(format!("{text} is too short, at least {} is allowed", duration_text(min))))
        }
        Some(d) if d > max => {
            Err(Fault::new(format!("{text} is too long, at most {} is allowed", duration_text(max))))
        }
        Some(d) => Ok(d),
    }
}

fn duration_fault(text: &str) -> Fault {
    let fault = Fault::new(format!("expected a duration such as `250ms`, `2s` or `1h`, not {}", shown(text)));
    if !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()) {
        return fault.near(Some(&format!("{text}s")));
    }
    match compound_millis(text) {
        Some(ms) => fault.help(format!("write {}", shown(&duration_text(Duration::from_millis(ms))))),
        None => fault,
    }
}

/// What `1m30s`, `1.5s`, `2sec` or `1d` would be in milliseconds: only to say how to write it.
fn compound_millis(text: &str) -> Option<u64> {
    if text.len() > 24 {
        return None;
    }
    let mut rest = text;
    let mut total = 0.0;
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let number: f64 = rest[..end].parse().ok()?;
        rest = rest[end..].trim_start();
        let end = rest.find(|c: char| c.is_ascii_digit()).unwrap_or(rest.len());
        total += number
            * match rest[..end].trim().to_ascii_lowercase().as_str() {
                "ms" | "msec" => 1.0,
                "s" | "sec" | "secs" | "second" | "seconds" => 1e3,
                "m" | "min" | "mins" | "minute" | "minutes" => 6e4,
                "h" | "hour" | "hours" => 3.6e6,
                "d" | "day" | "days" => 8.64e7,
                _ => return None,
            };
        rest = &rest[end..];
    }
    let whole = total.round();
    (whole == total && whole > 0.0 && whole <= DURATION_MAX.as_millis() as f64).then_some(whole as u64)
}

/// In the largest unit that loses nothing: `90s`, `1h`, `0s`.
pub(crate) fn duration_text(d: Duration) -> String {
    let ms = u64::try_from(d.as_millis()).unwrap_or(u64::MAX);
    if ms == 0 {
        return "0s".to_owned();
    }
    let (name, unit) =
        DURATION_UNITS.iter().rev().find(|(_, unit)| ms.is_multiple_of(*unit)).unwrap_or(&DURATION_UNITS[0]);
    format!("{}{name}", ms / unit)
}

/// `150ms-250ms`, the first shorter than the second.
pub(crate) fn duration_range(text: &str) -> Parsed<(Duration, Duration)> {
    let Some((low, high)) = text.split_once('-') else {
        return Err(Fault::new(format!("expected a range such as `150ms-250ms`, not {}", shown(text))));
    };
    let min = Duration::from_millis(1);
    let read = |text: &str| duration(text.trim(), min, DURATION_MAX);
    let (low, high) = (read(low)?, read(high)?);
    if low >= high {
        return Err(Fault::new("the first duration of a range must be the shorter one").help(format!(
            "did you mean `{}-{}`?",
            duration_text(high),
            duration_text(low)
        )));
    }
    Ok((low, high))
}

pub(crate) fn size(text: &str, min: u64, max: u64) -> Parsed<u64> {
    let (number, unit) = split_unit(text);
    let factor = match SIZE_UNITS.iter().find(|(name, _)| *name == unit) {
        Some((_, factor)) => *factor,
        None if unit.is_empty() => 1,
        None => return Err(size_fault(text)),
    };
    match number.map(|n| n.checked_mul(factor)) {
        None => Err(size_fault(text)),
        Some(Some(n)) if (min..=max).contains(&n) => Ok(n),
        Some(_) => Err(Fault::new(format!(
            "{} is out of range, {} to {} is allowed",
            shown(text),
            size_text(min),
            size_text(max)
        ))),
    }
}

fn size_fault(text: &str) -> Fault {
    let fault = Fault::new(format!("expected a size such as `64KiB` or `1MiB`, not {}", shown(text)));
    let (number, unit) = split_unit(text);
    let meant = match unit.trim().to_ascii_lowercase().as_str() {
        "k" | "kb" | "ki" | "kib" => "KiB",
        "m" | "mb" | "mi" | "mib" => "MiB",
        "g" | "gb" | "gi" | "gib" => "GiB",
        "b" | "bytes" => "",
        _ => return fault,
    };
    match number {
        Some(n) => fault.near(Some(&format!("{n}{meant}"))),
        None => fault,
    }
}

/// In the largest unit that loses nothing; bytes without one.
pub(crate) fn size_text(bytes: u64) -> String {
    match SIZE_UNITS.iter().rev().find(|(_, unit)| bytes > 0 && bytes.is_multiple_of(*unit)) {
        Some((name, unit)) => format!("{}{name}", bytes / unit),
        None => bytes.to_string(),
    }
}

fn split_unit(text: &str) -> (Option<u64>, &str) {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    // Longer numbers overflow; `0800ms` is as odd as 0800.
    let odd = end > 1 && text.starts_with('0');
    (if odd { None } else { text[..end].parse().ok() }, &text[end..])
}

// === names ===

/// A resource's name: letters, digits, `.`, `_`, `-`.
pub(crate) fn name(text: &str) -> Parsed<String> {
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    if text.is_empty() {
        return Err(Fault::new("a name must not be empty"));
    }
    if text.len() > NAME_MAX {
        let message =
            format!("a name has at most {NAME_MAX} characters, this one has {}", text.chars().count());
        return Err(Fault::new(message));
    }
    match text.chars().find(|c| !fits(*c)) {
        Some('@') if text.starts_with('@') => {
            Err(Fault::new("a reference is the bare name").near(Some(&text[1..])))
        }
        Some(c) => Err(Fault::new(format!(
            "{} must not stand in a name, which has letters, digits, `.`, `_` and `-`",
            shown(&c.to_string())
        ))),
        None => Ok(text.to_owned()),
    }
}

// === addresses ===

/// `ADDR:PORT`, `:PORT`, `[v6]:PORT`, `@VIP:PORT`.
pub(crate) fn bind(text: &str) -> Parsed<WrittenBind> {
    if let Some(rest) = text.strip_prefix('@') {
        return vip_bind(rest);
    }
    if !text.is_empty() && text.len() <= 5 && text.bytes().all(|b| b.is_ascii_digit()) {
        return Err(Fault::new(format!("expected an address and a port, not {}", shown(text)))
            .near(Some(&format!(":{text}"))));
    }
    let (host, ports) = split_port(text)?;
    let (port, more) = port_range(ports)?;
    match host {
        "" => Ok(Bind { ip: None, port, more }.into()),
        "*" => Err(Fault::new("`*` is no address")
            .help(format!("all addresses are {}", shown(&format!(":{ports}"))))),
        _ => match ip(host) {
            Some(ip) => Ok(Bind { ip: Some(ip), port, more }.into()),
            None => Err(Fault::new(format!("{} is no IP address", shown(host)))
                .help("a listener binds to an IP address, or to all: `:PORT`")),
        },
    }
}

/// What stands behind the `@` of a bind.
fn vip_bind(text: &str) -> Parsed<WrittenBind> {
    let Some((vip, port)) = text.rsplit_once(':') else {
        let fault = Fault::new(format!("{} has no port", shown(&format!("@{text}"))));
        return Err(fault.help(format!("write {}", shown(&format!("@{text}:PORT")))));
    };
    let (vip, (port, more)) = (name(vip)?, port_range(port)?);
    if port == 0 {
        // Clients would have to find another port each time the VIP moves.
        return Err(Fault::new("a VIP needs a fixed port, since port 0 would be another one on each node"));
    }
    Ok(WrittenBind::Vip { vip, port, more })
}

/// `25` or `8000-8999`, as many as there are.
pub(crate) fn ports(text: &str) -> Parsed<Ports> {
    let number =
        |text: &str| int(text, 1, u64::from(u16::MAX)).map(|port| u16::try_from(port).unwrap_or(u16::MAX));
    let Some((first, last)) = text.split_once('-') else {
        let port = number(text)?;
        return Ok(Ports { first: port, last: port });
    };
    let (first, last) = (number(first)?, number(last)?);
    if first >= last {
        return Err(no_range(text));
    }
    Ok(Ports { first, last })
}

/// `5000` or `5000-5999`: the first, and how many follow.
fn port_range(text: &str) -> Parsed<(u16, u16)> {
    let Some((first, last)) = text.split_once('-') else { return Ok((port_number(text)?, 0)) };
    let (first, last) = (port_number(first)?, port_number(last)?);
    if first == 0 || first >= last {
        return Err(no_range(text));
    }
    let more = last - first;
    if more >= Bind::PORTS_MAX {
        let fault = Fault::new(format!("{} are {} ports", shown(text), u32::from(more) + 1));
        return Err(
            fault.help(format!("a range has at most {}; a listener may have several", Bind::PORTS_MAX))
        );
    }
    Ok((first, more))
}

fn no_range(text: &str) -> Fault {
    Fault::new(format!("{} is no range of ports", shown(text)))
        .help("first the lower port, not 0, then the higher one")
}

/// `30000` or `30000-30999`, for connections of clients that know no service by them.
pub(crate) fn data_ports(text: &str) -> Parsed<(u16, u16)> {
    const LOWEST: u16 = 1024;
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let (first, last) = (port_number(first)?, port_number(last)?);
    if first > last {
        return Err(no_range(text));
    }
    if first < LOWEST {
        let fault = Fault::new(format!("{} begins below {LOWEST}", shown(text)));
        return Err(fault.help("such ports are those of services; 30000-30999 is usual"));
    }
    Ok((first, last))
}

fn split_port(text: &str) -> Parsed<(&str, &str)> {
    if text.parse::<Ipv6Addr>().is_ok() {
        // `::1:80` is an address, and hardly ever meant as one.
        let meant = match text.rsplit_once(':') {
            Some((host, port)) if host.parse::<Ipv6Addr>().is_ok() && port.parse::<u16>().is_ok() => {
                format!("[{host}]:{port}")
            }
            _ => format!("[{text}]:PORT"),
        };
        let message = format!("an IPv6 address needs brackets before its port: {}", shown(text));
        return Err(Fault::new(message).help(format!("write {}", shown(&meant))));
    }
    let Some((host, port)) = text.rsplit_once(':') else {
        return Err(Fault::new(format!("{} has no port", shown(text))).help("write `ADDRESS:PORT`"));
    };
    if host.contains(':') && !host.starts_with('[') {
        return Err(Fault::new(format!("an IPv6 address needs brackets: {}", shown(text)))
            .help(format!("write {}", shown(&format!("[{host}]:{port}")))));
    }
    Ok((host, port))
}

fn port_number(text: &str) -> Parsed<u16> {
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    text.parse()
        .ok()
        .filter(|_| digits)
        .ok_or_else(|| Fault::new(format!("{} is no port, 0 to 65535 is allowed", shown(text))))
}

/// IPv4-mapped addresses become IPv4, so that one address has one form.
fn ip(text: &str) -> Option<IpAddr> {
    let bare = match text.strip_prefix('[') {
        Some(rest) => return rest.strip_suffix(']')?.parse().ok().map(|v6| IpAddr::V6(v6).to_canonical()),
        None => text,
    };
    bare.parse().ok().map(IpAddr::V4)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    pub(super) fn fault<T: std::fmt::Debug>(result: Parsed<T>) -> String {
        let fault = result.expect_err("refused");
        match fault.help {
            Some(help) => format!("{} ({help})", fault.message),
            None => fault.message,
        }
    }

    #[test]
    fn durations_read_and_print_in_their_largest_unit() {
        for (text, ms, printed) in [
            ("250ms", 250, "250ms"),
            ("2s", 2_000, "2s"),
            ("60s", 60_000, "1m"),
            ("90s", 90_000, "90s"),
            ("1h", 3_600_000, "1h"),
            ("0ms", 0, "0s"),
        ] {
            let d = duration(text, Duration::ZERO, DURATION_MAX).unwrap();
            assert_eq!(d, Duration::from_millis(ms));
            assert_eq!(duration_text(d), printed);
        }
    }

    #[test]
    fn a_bad_duration_says_how_to_write_it() {
        let check = |text: &str| fault(duration(text, Duration::ZERO, DURATION_MAX));
        assert!(check("30").ends_with("(did you mean `30s`?)"));
        assert!(check("1m30s").ends_with("(write `90s`)"));
        assert!(check("1.5s").ends_with("(write `1500ms`)"));
        assert!(check("2 sec").ends_with("(write `2s`)"));
        assert!(check("1d").ends_with("(write `24h`)"));
        for text in ["", "s", "-1s", "1 s x", "1e3s", "99999999999999999999s", "18446744073709551615h", "９s"]
        {
            check(text);
        }
    }

    #[test]
    fn a_duration_out_of_range_names_the_bound() {
        let check = |text: &str| fault(duration(text, Duration::from_millis(100), Duration::from_secs(60)));
        assert_eq!(check("99ms"), "99ms is too short, at least 100ms is allowed");
        assert_eq!(check("61s"), "61s is too long, at most 1m is allowed");
        assert_eq!(check("0s"), "must be longer than zero");
    }

    #[test]
    fn sizes_are_binary_and_others_are_named() {
        assert_eq!(size("64KiB", 0, SIZE_MAX).unwrap(), 65_536);
        assert_eq!(size("0", 0, SIZE_MAX).unwrap(), 0);
        assert_eq!(size_text(1 << 20), "1MiB");
        assert_eq!(size_text(1_000), "1000");
        assert!(fault(size("64KB", 0, SIZE_MAX)).ends_with("(did you mean `64KiB`?)"));
        assert!(fault(size("2TiB", 0, SIZE_MAX)).contains("expected a size"));
        assert!(fault(size("2048GiB", 0, SIZE_MAX)).contains("out of range"));
    }

    #[test]
    fn binds_read_all_forms() {
        for text in [
            "127.0.0.1:80",
            ":80",
            "[::1]:80",
            ":0",
            "0.0.0.0:65535",
            "@front:80",
            "@a-b.c_1:65535",
            ":80-81",
            "0.0.0.0:5000-5999",
            "[::1]:64536-65535",
            "@front:10000-10999",
        ] {
            assert_eq!(bind(text).unwrap().to_string(), text);
        }
        assert_eq!(bind("[::ffff:192.0.2.1]:80").unwrap().to_string(), "192.0.2.1:80");
        assert!(fault(bind("80")).ends_with("(did you mean `:80`?)"));
        assert!(fault(bind("::1")).contains("brackets"));
        assert!(fault(bind("fe80::1:80")).contains("brackets"));
        for text in [
            "",
            ":",
            "localhost:80",
            "1.2.3.4:65536",
            "1.2.3.4:+80",
            "[::1]80",
            "1.2.3:80",
            ":80-80",
            ":90-80",
            ":0-9",
            ":80-",
            ":-80",
            ":1-2-3",
            ":65535-65536",
        ] {
            fault(bind(text));
        }
        assert!(fault(bind(":5000-6000")).contains("`5000-6000` are 1001 ports (a range has at most 1000"));
        assert!(fault(bind(":6000-5000")).contains("first the lower port"));
        assert!(fault(bind("@front")).ends_with("(write `@front:PORT`)"));
        assert!(fault(bind("@front:0")).contains("another one on each node"));
        for text in
            ["@", "@:80", "@a b:80", "@front:65536", "@front:0-9", "@front:90-80", "@@front:80", "@[::1]:80"]
        {
            fault(bind(text));
        }
    }

    #[test]
    fn data_ports_are_one_or_a_range_above_those_of_services() {
        assert_eq!(data_ports("30000-30999").unwrap(), (30_000, 30_999));
        assert_eq!(data_ports("1024").unwrap(), (1_024, 1_024));
        assert_eq!(data_ports("1024-65535").unwrap(), (1_024, 65_535));
        assert!(fault(data_ports("30999-30000")).contains("first the lower port"));
        assert!(fault(data_ports("20-30")).contains("`20-30` begins below 1024"));
        for text in ["", "-", "30000-", "-30000", "30000-65536", "3e4", "30000-30010-30020", " 30000"] {
            fault(data_ports(text));
        }
    }

    #[test]
    fn shares_are_fractions() {
        assert_eq!(share("0.1").unwrap(), 0.1);
        assert_eq!(share("1").unwrap(), 1.0);
        assert!(fault(share("10%")).ends_with("(did you mean `0.1`?)"));
        assert!(fault(share("50")).ends_with("(50 % is `0.5`)"));
        for text in ["", "-0.1", "nan", "inf", "1e-1", "1.0001"] {
            fault(share(text));
        }
    }
}
