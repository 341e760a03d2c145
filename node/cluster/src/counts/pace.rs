//! How fast clients send requests, as it is told to others: smoothed, rough, and only of those that send many.

use std::collections::HashMap;
use std::net::IpAddr;

use trestle_dataplane::ClientCount;

use super::MAX_CLIENTS;

/// Seconds over which a rate is smoothed.
const SPAN: f64 = 2.0;
/// What is slower is not told of.
const LEAST: f64 = 2.0;
/// What is slower is forgotten, and not begun to be watched.
const FORGOTTEN: f64 = 0.5;
/// As many are watched.
const MOST: usize = 2 * MAX_CLIENTS;

#[derive(Debug, Default)]
pub(super) struct Pace {
    /// Requests a second, and what was last told of that.
    clients: HashMap<IpAddr, (f64, u32)>,
}

impl Pace {
    /// So many seconds have passed; what is new, where it differs by more than a quarter from what was told.
    pub(super) fn pass(&mut self, arrivals: &[ClientCount], seconds: f64) -> Vec<(IpAddr, u32)> {
        if seconds <= 0.0 {
            return Vec::new();
        }
        let part = 1.0 - (-seconds / SPAN).exp();
        self.clients.values_mut().for_each(|(rate, _)| *rate -= *rate * part);
        for count in arrivals.iter().filter(|count| count.arrivals > 0) {
            let more = f64::from(count.arrivals) / seconds * part;
            let has_room = self.clients.len() < MOST;
            match self.clients.get_mut(&count.client) {
                Some((rate, _)) => *rate += more,
                None if more >= FORGOTTEN && has_room => {
                    self.clients.insert(count.client, (more, 0));
                }
                None => {}
            }
        }
        let mut news = Vec::new();
        self.clients.retain(|client, (rate, told)| {
            let now = if *rate < LEAST { 0 } else { rate.round() as u32 };
            if now.abs_diff(*told) > *told / 4 || (now == 0) != (*told == 0) {
                *told = now;
                news.push((*client, now));
            }
            *told > 0 || *rate >= FORGOTTEN
        });
        news
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(client: u8, arrivals: u32) -> ClientCount {
        ClientCount { client: [10, 0, 0, client].into(), connections: 0, arrivals }
    }

    #[test]
    fn a_steady_rate_is_told_a_few_times_and_its_end_too() {
        let (mut pace, mut told) = (Pace::default(), Vec::new());
        for _ in 0..100 {
            told.extend(pace.pass(&[count(1, 20)], 0.2));
        }
        assert!(told.len() < 12, "{told:?}");
        assert!(told.last().is_some_and(|(_, rate)| (75..=100).contains(rate)), "{told:?}");
        told.clear();
        for _ in 0..100 {
            told.extend(pace.pass(&[], 0.2));
        }
        assert_eq!(told.last(), Some(&(count(1, 0).client, 0)));
        assert!(pace.clients.is_empty());
    }

    #[test]
    fn who_comes_once_is_not_watched_and_those_that_are_are_bounded() {
        let mut pace = Pace::default();
        assert_eq!(pace.pass(&[count(1, 1)], 0.2), []);
        assert!(pace.clients.is_empty());
        let all: Vec<ClientCount> = (0..3 * MOST as u32)
            .map(|n| ClientCount {
                client: std::net::Ipv4Addr::from_bits(n).into(),
                connections: 1,
                arrivals: 1_000,
            })
            .collect();
        all.chunks(MOST / 2).for_each(|some| drop(pace.pass(some, 0.000_1)));
        assert_eq!(pace.clients.len(), MOST);
    }
}
