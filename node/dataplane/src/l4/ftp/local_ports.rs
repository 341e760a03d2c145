//! Ports that the system gives to outgoing connections: one that it has given to somebody is no door.

use std::ops::RangeInclusive;

use trestle_config::model::Config;

const LOCAL: &str = "/proc/sys/net/ipv4/ip_local_port_range";
const RESERVED: &str = "/proc/sys/net/ipv4/ip_local_reserved_ports";

/// Tells of ranges for data connections that reach into the system's, where they are new.
pub(crate) fn warn_of_overlaps(config: &Config, previous: impl Fn(&str) -> Option<RangeInclusive<u16>>) {
    let new = |(name, listener): (&String, &trestle_config::model::Listener)| {
        let ports = listener.ftp.as_ref()?.ports.clone();
        (previous(name).as_ref() != Some(&ports)).then(|| (name.clone(), ports))
    };
    let new: Vec<_> = config.listeners.iter().filter_map(new).collect();
    if new.is_empty() {
        return;
    }
    // Elsewhere than on Linux there are no such files, and nothing to tell.
    let read = |path| std::fs::read_to_string(path).unwrap_or_default();
    let Some(local) = range(&read(LOCAL), char::is_whitespace) else { return };
    let reserved = read(RESERVED);
    for (listener, ports) in new {
        let given = given_away(&ports, &local, &reserved);
        if given > 0 {
            tracing::warn!(
                listener,
                ports = format!("{}-{}", ports.start(), ports.end()),
                "the system gives {given} of `ftp.ports` to outgoing connections \
                 (net.ipv4.ip_local_port_range is {}-{}), where no data connection can be awaited then: choose \
                 others, or put them into net.ipv4.ip_local_reserved_ports",
                local.start(),
                local.end(),
            );
        }
    }
}

/// `32768 60999`, `40000-40009`, `8080`.
fn range(text: &str, between: impl Fn(char) -> bool) -> Option<RangeInclusive<u16>> {
    let mut numbers = text.trim().split(between).map(str::parse);
    let first = numbers.next()?.ok()?;
    Some(first..=numbers.next().map_or(Some(first), Result::ok)?)
}

/// How many of these are among those that the system gives away.
fn given_away(ports: &RangeInclusive<u16>, local: &RangeInclusive<u16>, reserved: &str) -> usize {
    let reserved: Vec<_> = reserved.split(',').filter_map(|text| range(text, |c| c == '-')).collect();
    let is_given =
        |port: &u16| local.contains(port) && !reserved.iter().any(|reserved| reserved.contains(port));
    ports.clone().filter(is_given).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_ranges_that_meet_some_ports_are_given_away() {
        let local = range("32768\t60999\n", char::is_whitespace).expect("a range");
        assert_eq!(local, 32_768..=60_999);
        for (ports, reserved, expected) in [
            (30_000..=30_999, "", 0),
            (30_000..=32_768, "\n", 1),
            (40_000..=40_099, "8080", 100),
            (40_000..=40_099, "8080,40000-40089,40099\n", 9),
            (40_000..=40_099, "30000-50000", 0),
            (60_000..=65_535, "", 1_000),
            (61_000..=61_009, "", 0),
        ] {
            assert_eq!(given_away(&ports, &local, reserved), expected, "{ports:?} {reserved:?}");
        }
    }
}
