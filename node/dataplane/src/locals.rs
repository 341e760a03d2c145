//! Open connections by the address of ours that they came to.
//!
//! Counts the TCP connections of all listeners, those on all addresses too; UDP has none. One part a
//! worker: a connection is counted when it is accepted and leaves when it ends, about 30 ns each, so the
//! lock of a part is contended only while somebody asks. A part holds addresses that have connections,
//! so it is bounded by the addresses of the machine.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::metrics::PerWorker;

#[derive(Debug)]
pub(crate) struct Locals {
    parts: PerWorker<Mutex<HashMap<IpAddr, usize, ahash::RandomState>>>,
}

/// One counted connection; dropping it ends the count.
#[derive(Debug)]
pub(crate) struct At {
    locals: Arc<Locals>,
    worker: usize,
    local: IpAddr,
}

impl Locals {
    pub(crate) fn new(workers: usize) -> Self {
        Self { parts: PerWorker::new(workers) }
    }

    /// Counts a connection to this address, which is in its canonical form.
    pub(crate) fn open(self: &Arc<Self>, worker: usize, local: IpAddr) -> At {
        *self.parts.at(worker).lock().entry(local).or_default() += 1;
        At { locals: Arc::clone(self), worker, local }
    }

    /// Connections to any of these addresses, over all workers.
    pub(crate) fn count(&self, addresses: &[IpAddr]) -> usize {
        let of = |part: &Mutex<HashMap<IpAddr, usize, _>>| {
            let part = part.lock();
            addresses.iter().filter_map(|address| part.get(address)).sum::<usize>()
        };
        self.parts.iter().map(of).sum()
    }
}

impl Drop for At {
    fn drop(&mut self) {
        let mut part = self.locals.parts.at(self.worker).lock();
        let Some(count) = part.get_mut(&self.local) else {
            debug_assert!(false, "a connection ended twice");
            return;
        };
        *count -= 1;
        if *count == 0 {
            part.remove(&self.local);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_count_at_their_address_until_they_end_and_leave_nothing_behind() {
        let locals = Arc::new(Locals::new(2));
        let address = |n| IpAddr::from([198, 18, 0, n]);
        let kept = [locals.open(0, address(1)), locals.open(1, address(1)), locals.open(1, address(2))];
        assert_eq!(locals.count(&[address(1)]), 2);
        assert_eq!(locals.count(&[address(1), address(2), address(3)]), 3);
        assert_eq!(locals.count(&[]), 0);
        drop(kept);
        assert_eq!(locals.count(&[address(1), address(2)]), 0);
        assert!(locals.parts.iter().all(|part| part.lock().is_empty()));
    }
}
