//! What is open of listeners whose limits this node shares with others that carry them by the proxy.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};

use trestle_dataplane::{KernelOpen, KernelView};

/// Most clients that are told: those with most.
const TOLD_MAX: usize = 8_192;

pub(crate) struct Shares<'a> {
    view: &'a KernelView,
    /// By listener and client; of those that are told alone.
    clients: HashMap<(usize, IpAddr), u32>,
}

impl<'a> Shares<'a> {
    pub(crate) fn new(view: &'a KernelView) -> Self {
        Self { view, clients: HashMap::new() }
    }

    /// One flow of this client.
    pub(crate) fn count(&mut self, listener: usize, client: IpAddr) {
        let guard = &self.view.listeners[listener].guard;
        if guard.is_told && guard.per_client.is_some() {
            *self.clients.entry((listener, network(client, guard.prefix_v6))).or_default() += 1;
        }
    }

    /// What is above this node's share, given how much all clients have of each listener.
    pub(crate) fn above(self, of_all: &[u64]) -> Vec<KernelOpen> {
        let listeners = &self.view.listeners;
        let is_above = |((listener, _), open): &((usize, IpAddr), u32)| {
            listeners[*listener].guard.per_client.is_some_and(|share| *open > share)
        };
        let mut clients: Vec<_> = self.clients.into_iter().filter(is_above).collect();
        clients.sort_unstable_by_key(|(of, open)| (std::cmp::Reverse(*open), *of));
        clients.truncate(TOLD_MAX);
        let told = |listener: usize, client, open| KernelOpen {
            listener: listeners[listener].name.clone(),
            client,
            open,
        };
        let of_client = clients.into_iter().map(|((listener, ip), open)| told(listener, Some(ip), open));
        let all = of_all.iter().enumerate().filter_map(|(listener, open)| {
            let guard = &listeners[listener].guard;
            let open = u32::try_from(*open).unwrap_or(u32::MAX);
            (guard.is_told && guard.connections.is_some_and(|share| open > share))
                .then(|| told(listener, None, open))
        });
        all.chain(of_client).collect()
    }
}

/// Its first address: who has the same is the same client.
fn network(client: IpAddr, prefix_v6: u8) -> IpAddr {
    match client {
        IpAddr::V6(ip) => {
            let mask = u128::MAX.checked_shl(128 - u32::from(prefix_v6.min(128))).unwrap_or(0);
            Ipv6Addr::from_bits(ip.to_bits() & mask).into()
        }
        ip => ip,
    }
}

#[cfg(test)]
mod tests {
    use trestle_config::model::{KernelSettings, Protocol};
    use trestle_dataplane::{KernelGuard, KernelListener};

    use super::*;

    #[test]
    fn only_what_is_above_a_share_that_others_count_with_is_told() {
        let listener = |name: &str, is_told| {
            let guard = KernelGuard {
                per_client: Some(2),
                connections: Some(5),
                prefix_v6: 64,
                is_told,
                ..KernelGuard::default()
            };
            let (binds, settings) = (Vec::new(), KernelSettings::default());
            let (protocol, pool) = (Protocol::Tcp, String::new());
            KernelListener { name: name.to_owned(), binds, protocol, settings, pool, guard }
        };
        let listeners = vec![listener("auto", true), listener("own", false)];
        let view = KernelView { listeners, ..KernelView::default() };
        let mut shares = Shares::new(&view);
        let clients = ["fd00::1:1", "fd00::2:2", "fd00::3:3", "198.18.0.1", "198.18.0.1", "198.18.0.2"];
        for client in clients {
            for listener in 0..2 {
                shares.count(listener, client.parse().expect("an address"));
            }
        }
        let of = |client: Option<&str>, open| {
            let client = client.map(|ip| ip.parse().expect("an address"));
            KernelOpen { listener: "auto".to_owned(), client, open }
        };
        assert_eq!(shares.above(&[6, 6]), [of(None, 6), of(Some("fd00::"), 3)]);
        assert_eq!(Shares::new(&view).above(&[5, 6]), []);
    }
}
