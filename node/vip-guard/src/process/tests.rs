//! The loop against a kernel that is slow to answer.

use std::{
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use super::*;
use crate::{
    core::{AddedBy, Address, Link, Picture, Place, Refused},
    kernel::Happened,
    protocol::{GuardLink, VipSpec, pair},
};

const LINK: u32 = 2;

/// Does as it is told.
#[derive(Default)]
struct Slow {
    held: Vec<IpAddr>,
    /// How long it takes from a look to its answer.
    answers_after: Duration,
}

impl Kernel for Slow {
    fn sweep(&mut self, _: &[IpAddr], _: &[IpAddr]) -> Result<Vec<IpAddr>, String> {
        Ok(Vec::new())
    }

    fn attend(&mut self, _: &[(u32, String)]) -> Vec<String> {
        Vec::new()
    }

    fn fence(&mut self, _: &[(u32, String)], _: &[IpAddr]) -> Result<(), String> {
        Ok(())
    }

    fn add(&mut self, place: &Place, _: u32) -> Result<(), String> {
        self.held.extend(place.ips());
        Ok(())
    }

    fn open(&mut self, _: &Place, _: u64) -> Result<(), Refused> {
        Ok(())
    }

    fn quiet(&mut self, _: &Place, _: u64) -> Result<(), Refused> {
        Ok(())
    }

    fn shut(&mut self, _: &mut dyn Iterator<Item = &Arc<Place>>) -> Result<(), String> {
        Ok(())
    }

    fn remove(&mut self, place: &Place) -> Result<(), String> {
        self.held.retain(|held| place.ips().all(|ip| ip != *held));
        Ok(())
    }

    fn announce(&mut self, _: &Place) {}

    fn probe(&mut self, _: &Place) {}

    fn chance(&mut self, _: &Place, _: (&[IpAddr], &[(u16, u16)]), _: u64) -> Result<(), String> {
        Ok(())
    }

    fn end_chance(&mut self, _: &Place) {}

    fn dismantle(&mut self) {}

    fn picture(&mut self) -> Result<Picture, String> {
        let address = |address, by| Address { link: LINK, address, prefix: 24, by };
        let mut addresses = vec![address("198.18.0.1".parse().unwrap(), AddedBy::Machine)];
        addresses.extend(self.held.iter().map(|held| address(*held, AddedBy::Guard)));
        let (name, mac) = ("eth0".to_owned(), Some([2; 6]));
        std::thread::sleep(self.answers_after);
        Ok(Picture { links: vec![Link { index: LINK, name, mac, up: true, running: true }], addresses })
    }

    fn fence_lost(&mut self) -> Option<String> {
        None
    }

    fn watches(&self) -> Vec<BorrowedFd<'_>> {
        Vec::new()
    }

    fn happened(&mut self) -> Happened {
        Happened { network: true, ..Happened::default() }
    }
}

#[test]
fn an_address_that_is_added_while_the_kernel_is_looked_at_was_removed_by_nobody() {
    let (ours, theirs) = pair().unwrap();
    let mut node = GuardLink::new(theirs).unwrap();
    let mut guard = Guard {
        core: Core::new(Settings::default(), [7; 16], Vec::new(), None),
        kernel: Slow::default(),
        link: NodeLink::new(ours).unwrap(),
        outbox: Outbox::default(),
        senders: Senders::open(),
        ended: false,
    };
    let (ttl, vip) = (Duration::from_mins(1).as_nanos() as u64, "front".to_owned());
    let addresses = vec![("198.18.0.100".parse().unwrap(), 24)];
    guard.look_around();
    let spec = VipSpec { name: vip.clone(), addresses, interface: None, ttl };
    guard.step(Event::FromNode(ToGuard::Configure { vips: vec![spec] }));
    let sent = clock::now();
    guard.step(Event::FromNode(ToGuard::Grant { vip, epoch: 7, sent, deadline: sent + ttl, probe: true }));
    assert!(guard.kernel.held.is_empty(), "it looks for strangers first");

    // Each look lasts longer than what is left of the search.
    let deadline = Instant::now() + Duration::from_secs(10);
    while guard.kernel.held.is_empty() {
        assert!(Instant::now() < deadline, "it is never held");
        let due = guard.core.next_wake().expect("the search ends some time");
        guard.kernel.answers_after = Duration::from_nanos(due.saturating_sub(clock::now()) + 1_000_000);
        guard.look_at_kernel();
        // What poll would have woken it for.
        guard.step(Event::Time);
    }
    guard.look_at_kernel();
    guard.outbox.flush(&guard.link);
    while let Some(said) = node.try_recv().unwrap() {
        assert!(!matches!(said, FromGuard::Released { .. }), "{said:?}");
    }
    assert_eq!(guard.kernel.held.len(), 1);
}
