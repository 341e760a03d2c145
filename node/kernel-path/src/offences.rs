//! Tries that were turned away, by client: what sets of the table have counted since they were read last.
//!
//! A count is never too high. It is too low for a client whose element ended and began anew between two readings
//! and has come as far as before, and for those that find no place in a full set.

use std::collections::HashMap;
use std::net::IpAddr;

use trestle_dataplane::KernelOffence;
use trestle_netlink::nft::CountedElement;

use crate::ruleset::offenders_of;

#[derive(Debug, Default)]
pub(crate) struct Offences {
    /// By set and key; as many as the sets have.
    sets: HashMap<String, HashMap<Vec<u8>, u64>>,
}

impl Offences {
    /// What is new in these sets; others are forgotten.
    pub(crate) fn follow(&mut self, sets: Vec<(String, Vec<CountedElement>)>) -> Vec<KernelOffence> {
        let mut before = std::mem::take(&mut self.sets);
        let mut offences = Vec::new();
        for (set, elements) in sets {
            let Some(listener) = offenders_of(&set) else { continue };
            let seen = before.remove(&set).unwrap_or_default();
            for CountedElement { key, counted } in &elements {
                let last = seen.get(key).copied().filter(|last| *last <= counted.packets).unwrap_or(0);
                let tries = counted.packets - last;
                if let (Some(client), true) = (client(key), tries > 0) {
                    offences.push(KernelOffence { listener: listener.to_owned(), client, tries });
                }
            }
            let now = elements.into_iter().map(|element| (element.key, element.counted.packets)).collect();
            self.sets.insert(set, now);
        }
        offences
    }
}

fn client(key: &[u8]) -> Option<IpAddr> {
    match key.len() {
        4 => Some(<[u8; 4]>::try_from(key).ok()?.into()),
        16 => Some(<[u8; 16]>::try_from(key).ok()?.into()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use trestle_netlink::nft::Counted;

    use super::*;

    #[test]
    fn tries_are_told_once_also_of_a_client_that_was_forgotten_meanwhile() {
        let mut offences = Offences::default();
        let mut told = |set: &str, counts: &[(u8, u64)]| {
            let element = |(client, packets): &(u8, u64)| {
                let counted = Counted { packets: *packets, bytes: 60 * packets };
                CountedElement { key: vec![198, 18, 0, *client], counted }
            };
            let sets = vec![(set.to_owned(), counts.iter().map(element).collect())];
            let told = offences.follow(sets).into_iter();
            told.map(|of| (of.listener, of.client.to_string(), of.tries)).collect::<Vec<_>>()
        };
        let of = |client: u8, tries| ("web".to_owned(), format!("198.18.0.{client}"), tries);
        assert_eq!(told("offends4.web", &[(1, 3), (2, 1)]), [of(1, 3), of(2, 1)]);
        assert_eq!(told("offends4.web", &[(1, 3), (2, 5)]), [of(2, 4)]);
        assert_eq!(told("offends4.web", &[(1, 2), (2, 5)]), [of(1, 2)]);
        assert_eq!(told("offends4.web", &[(2, 5)]), []);
        assert_eq!(told("offends4.web", &[(1, 1), (2, 5)]), [of(1, 1)]);
        assert_eq!(told("else.web", &[(1, 9)]), []);
    }
}
