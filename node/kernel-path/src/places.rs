//! Listeners by where clients come to them.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};

use trestle_dataplane::KernelView;

use crate::ruleset::transports;

pub(crate) struct Places {
    by_address: HashMap<(u8, SocketAddr), usize>,
    by_port: HashMap<(u8, u16), usize>,
    ranges: Vec<(u8, Option<IpAddr>, u16, u16, usize)>,
}

impl Places {
    pub(crate) fn new(view: &KernelView) -> Self {
        let mut places = Self { by_address: HashMap::new(), by_port: HashMap::new(), ranges: Vec::new() };
        for (at, listener) in view.listeners.iter().enumerate() {
            for bind in &listener.binds {
                let address = bind.ip.filter(|ip| !ip.is_unspecified());
                for transport in transports(listener) {
                    let protocol = transport.number()[0];
                    match address {
                        _ if bind.more > 0 => {
                            places.ranges.push((protocol, address, bind.port, *bind.ports().end(), at));
                        }
                        Some(ip) => {
                            places.by_address.insert((protocol, SocketAddr::new(ip, bind.port)), at);
                        }
                        None => _ = places.by_port.insert((protocol, bind.port), at),
                    }
                }
            }
        }
        // One at an address beats one at all.
        places.ranges.sort_by_key(|(_, address, ..)| address.is_none());
        places
    }

    /// By its place in the view.
    pub(crate) fn find(&self, protocol: u8, to: SocketAddr) -> Option<usize> {
        let in_range = || {
            let fits = |(of, address, first, last, _): &&(u8, Option<IpAddr>, u16, u16, usize)| {
                *of == protocol
                    && (*first..=*last).contains(&to.port())
                    && address.is_none_or(|address| address == to.ip())
            };
            self.ranges.iter().find(fits).map(|(.., at)| *at)
        };
        let at_address = self.by_address.get(&(protocol, to)).copied();
        at_address.or_else(in_range).or_else(|| self.by_port.get(&(protocol, to.port())).copied())
    }
}
