//! A real guard in a network namespace, with a neighbour on the same segment.
// Each test program uses a part of it.
#![allow(dead_code, clippy::unwrap_used)]

use std::{
    net::IpAddr,
    os::fd::AsFd,
    process::{Command, ExitStatus},
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::{Pid, Signal, kill_process},
};
use trestle_netlink::{
    clock,
    packet::{Frame, Port},
    route::{Mac, Route},
    testing::{Namespace, Segment},
};
use trestle_vip_guard::{
    Spawned,
    protocol::{FromGuard, LinkError, ToGuard, VipSpec},
    spawn::spawn_command,
};

pub(crate) const VIP: &str = "198.18.0.100";
pub(crate) const MS: u64 = 1_000_000;
/// For what comes when it comes: far above what a busy machine takes.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);

pub(crate) fn vip() -> IpAddr {
    VIP.parse().unwrap()
}

pub(crate) fn after(ms: u64) -> u64 {
    clock::now() + ms * MS
}

/// Waits for the condition; it is looked at once more when the time is up.
#[track_caller]
pub(crate) fn until(what: &str, patience: Duration, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + patience;
    while !condition() {
        assert!(Instant::now() < deadline, "not in {patience:?}: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

pub(crate) fn sleep_until(deadline: u64) {
    std::thread::sleep(clock::left(deadline, clock::now()));
}

/// A guard and the node's end of its socket; killed by its pid when dropped.
pub(crate) struct Guard {
    pub(crate) spawned: Option<Spawned>,
    pub(crate) seen: Vec<FromGuard>,
    route: Route,
}

impl Guard {
    pub(crate) fn start(host: &Namespace) -> Self {
        Self::start_with(host, Command::new(env!("CARGO_BIN_EXE_trestle-vip-guard")))
    }

    /// Whose fence others can touch.
    pub(crate) fn plain(host: &Namespace) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_trestle-vip-guard"));
        command.env("TRESTLE_GUARD_TEST_PLAIN_FENCE", "1");
        Self::start_with(host, command)
    }

    pub(crate) fn start_with(host: &Namespace, command: Command) -> Self {
        let (spawned, route) = host.enter(|| (spawn_command(command).unwrap(), Route::open().unwrap()));
        Self { spawned: Some(spawned), seen: Vec::new(), route }
    }

    /// With `front` configured.
    pub(crate) fn configured(host: &Namespace) -> Self {
        let mut guard = Self::start(host);
        guard.configure();
        guard
    }

    #[track_caller]
    pub(crate) fn configure(&mut self) {
        self.send(ToGuard::Configure { vips: vec![spec()] });
        self.wait_for("Started", |message| matches!(message, FromGuard::Started { .. }));
        self.wait_for("Usable", |message| matches!(message, FromGuard::Usable { problem: None, .. }));
    }

    #[track_caller]
    pub(crate) fn send(&self, message: ToGuard) {
        self.spawned.as_ref().unwrap().link.send(&message).unwrap();
    }

    /// Its deadline.
    #[track_caller]
    pub(crate) fn grant(&self, epoch: u64, ms: u64) -> u64 {
        let (sent, deadline) = (clock::now(), after(ms));
        self.send(ToGuard::Grant { vip: "front".to_owned(), epoch, sent, deadline, probe: false });
        deadline
    }

    #[track_caller]
    pub(crate) fn hold(&mut self, epoch: u64, ms: u64) -> u64 {
        let deadline = self.grant(epoch, ms);
        self.wait_for("Holding", |m| matches!(m, FromGuard::Holding { epoch: e, .. } if *e == epoch));
        deadline
    }

    /// The first message of that kind that was not waited for yet.
    #[track_caller]
    pub(crate) fn wait_for(&mut self, what: &str, wanted: impl Fn(&FromGuard) -> bool) -> FromGuard {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(at) = self.seen.iter().position(&wanted) {
                return self.seen.remove(at);
            }
            assert!(Instant::now() < deadline, "no {what}; there are {:?}", self.seen);
            match self.receive(Duration::from_millis(100)) {
                Ok(message) => self.seen.extend(message),
                Err(error) => panic!("no {what}: {error}; there are {:?}", self.seen),
            }
        }
    }

    fn receive(&mut self, patience: Duration) -> Result<Option<FromGuard>, LinkError> {
        let link = &mut self.spawned.as_mut().unwrap().link;
        let timeout = Timespec { tv_sec: 0, tv_nsec: patience.subsec_nanos().into() };
        poll(&mut [PollFd::new(&link.as_fd(), PollFlags::IN)], Some(&timeout)).unwrap();
        link.try_recv()
    }

    /// What is there now.
    pub(crate) fn drain(&mut self) {
        while let Ok(Some(message)) = self.receive(Duration::ZERO) {
            self.seen.push(message);
        }
    }

    pub(crate) fn has_address(&mut self) -> bool {
        self.route.addresses().unwrap().iter().any(|there| there.address == vip())
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(self.pid(), signal).unwrap();
    }

    pub(crate) fn pid(&self) -> Pid {
        let id = self.spawned.as_ref().unwrap().process.id();
        Pid::from_raw(id.cast_signed()).unwrap()
    }

    /// The node's end closes; how the guard ends.
    pub(crate) fn close(&mut self) -> ExitStatus {
        let Spawned { link, mut process } = self.spawned.take().unwrap();
        drop(link);
        wait(&mut process)
    }

    pub(crate) fn ended(&mut self) -> ExitStatus {
        wait(&mut self.spawned.as_mut().unwrap().process)
    }
}

#[track_caller]
pub(crate) fn wait(process: &mut std::process::Child) -> ExitStatus {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(status) = process.try_wait().unwrap() {
            return status;
        }
        if Instant::now() > deadline {
            let _ = process.kill();
            let _ = process.wait();
            panic!("it does not end");
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        if let Some(mut spawned) = self.spawned.take() {
            let _ = spawned.process.kill();
            let _ = spawned.process.wait();
        }
    }
}

pub(crate) fn spec() -> VipSpec {
    VipSpec { name: "front".to_owned(), addresses: vec![(vip(), 24)], interface: None, ttl: 1000 * MS }
}

/// Somebody else on the segment.
pub(crate) struct Neighbour {
    port: Port,
    pub(crate) mac: Mac,
}

impl Neighbour {
    pub(crate) fn on(host: &Namespace) -> Self {
        let (port, mac) = host.enter(|| {
            let link = Route::open().unwrap().link("eth0").unwrap().unwrap();
            (Port::listen(link.index).unwrap(), link.mac.unwrap())
        });
        Self { port, mac }
    }

    /// Whether somebody claims the VIP before the time is up.
    pub(crate) fn hears_claim(&self, patience: Duration) -> Option<Mac> {
        let deadline = Instant::now() + patience;
        loop {
            while let Some(heard) = self.port.hear().unwrap() {
                if let Some((_, mac)) = heard.claims().filter(|(address, _)| *address == vip()) {
                    return Some(mac);
                }
            }
            if Instant::now() >= deadline {
                return None;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    pub(crate) fn forget(&self) {
        while self.port.hear().unwrap().is_some() {}
    }

    /// Whether an ARP request for the VIP is answered.
    pub(crate) fn is_answered(&self) -> bool {
        self.forget();
        self.port.send(&Frame::probe(self.mac, vip())).unwrap();
        self.hears_claim(Duration::from_millis(100)).is_some()
    }

    pub(crate) fn announce(&self) {
        self.port.announce(self.mac, vip()).unwrap();
    }
}

/// Two hosts; `None` where they can't be made.
#[track_caller]
pub(crate) fn segment(programs: &[&str]) -> Option<Segment> {
    trestle_netlink::testing::available(programs).then(|| Segment::new(2))
}
