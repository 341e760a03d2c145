//! The loop: one thread that sleeps in poll(2) over the node's socket, the kernel's events and a timer on
//! CLOCK_BOOTTIME, and carries out what the core decides.
//!
//! Nothing in it waits for anybody else: what the node does not read is kept, up to a bound, and nothing is
//! written to a terminal or file while addresses may be held.

mod lock;
mod namespace;
mod outbox;
mod protect;

use std::{
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    process::ExitCode,
};

use nix::sys::signal::{SigSet, Signal};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    time::{Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, timerfd_create, timerfd_settime},
};
use trestle_netlink::{clock, fence::Ownership};

use self::outbox::Outbox;
use crate::{
    core::{Core, Done, Effect, Effects, Event, Settings},
    init,
    kernel::{Kernel, Linux},
    protocol::{FromGuard, LinkError, NodeLink, ToGuard},
    spawn,
};

/// Another guard holds this network namespace.
pub const EXIT_SECOND: u8 = 3;
/// It was not started by a node.
pub const EXIT_USAGE: u8 = 2;
/// The kernel gave no sockets to work with.
pub const EXIT_KERNEL: u8 = 4;

/// Messages of the node that are taken before the kernel is looked at again.
const MESSAGES_MAX: usize = 256;

#[derive(Debug, Clone)]
pub struct Options {
    pub settings: Settings,
    /// Whom the fence belongs to.
    pub ownership: Ownership,
}

impl Default for Options {
    fn default() -> Self {
        Self { settings: Settings::default(), ownership: Ownership::Best }
    }
}

/// The guard of a node that started it.
pub(crate) fn run_beside(link: NodeLink, options: Options) -> ExitCode {
    // What ends the node's group is not for the guard: the node's end of the socket counts.
    let held: SigSet = [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP].into_iter().collect();
    let _ = held.thread_block();
    let _ = rustix::process::setpgid(None, None);
    ExitCode::from(run(link, options, None))
}

/// The guard over a node that it has started.
pub(crate) fn run_over(link: NodeLink, options: Options, node: &mut init::Node) {
    let _ = run(link, options, Some(node));
}

fn run(link: NodeLink, options: Options, node: Option<&mut init::Node>) -> u8 {
    let _ = rustix::thread::set_name(c"trestle-guard");
    let _ = leave_stdio();
    let lock_file = std::env::var_os(spawn::LOCK);
    let ours = || lock::is_taken(lock_file.as_deref());
    let tell = |text| {
        // Only said; a node that does not read it hears why from what comes next.
        let _ = link.send(&problem(text));
    };
    let claim = match namespace::claim(&link, ours, tell) {
        Ok(claim) => claim,
        Err(namespace::Refused::NodeGone) => return 0,
        Err(refused) => return refuse(&link, EXIT_SECOND, refused.to_string()),
    };
    let lock = match lock::take(lock_file.as_deref()) {
        Ok(lock) => lock,
        Err(error) => {
            return refuse(&link, EXIT_SECOND, format!("an earlier guard of this node lives ({error})"));
        }
    };
    let mut kernel = match Linux::open(options.ownership) {
        Ok(kernel) => kernel,
        Err(error) => return refuse(&link, EXIT_KERNEL, error),
    };
    let swept = kernel.sweep_left_over();
    let timer = match timerfd_create(TimerfdClockId::Boottime, TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK)
    {
        Ok(timer) => timer,
        Err(errno) => return refuse(&link, EXIT_KERNEL, format!("no timer: {errno}")),
    };
    let incapable = protect::incapable();
    let weak = protect::protect();
    protect::forbid_dumps();
    let mut core = Core::new(options.settings, rand::random(), weak, incapable);
    let mut outbox = Outbox::default();
    if let Some(text) = claim.problem() {
        outbox.put(problem(text));
    }
    match swept {
        Ok(swept) => core.note_swept(swept),
        Err(error) => outbox.put(problem(format!("left-over addresses could not be swept: {error}"))),
    }
    let mut guard = Guard { core, kernel, link, outbox, senders: Senders::open(), ended: false };
    guard.look_around();
    guard.serve(&timer, node);
    drop((claim, lock));
    0
}

fn problem(text: String) -> FromGuard {
    FromGuard::Problem { vip: None, text }
}

fn refuse(link: &NodeLink, code: u8, text: String) -> u8 {
    eprintln!("trestle-guard: {text}");
    let _ = link.send(&problem(text));
    code
}

/// A reader of ours who is gone or stuck must not matter; stderr is written to only before and after.
fn leave_stdio() -> io::Result<()> {
    let null = std::fs::OpenOptions::new().read(true).write(true).open("/dev/null")?;
    rustix::stdio::dup2_stdin(&null)?;
    rustix::stdio::dup2_stdout(&null)?;
    Ok(())
}

/// Opened ahead: at the end nothing has to be got any more.
#[derive(Debug)]
struct Senders {
    ipv4: Option<UdpSocket>,
    ipv6: Option<UdpSocket>,
}

impl Senders {
    fn open() -> Self {
        let open = |socket: io::Result<UdpSocket>| {
            socket.and_then(|socket| socket.set_nonblocking(true).map(|()| socket)).ok()
        };
        Self {
            ipv4: open(UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))),
            ipv6: open(UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0))),
        }
    }

    fn send(&self, to: SocketAddr, datagram: &[u8]) {
        let socket = if to.is_ipv4() { &self.ipv4 } else { &self.ipv6 };
        if let Some(socket) = socket {
            // Sent more than once, and the lease's end counts where all are lost.
            let _ = socket.send_to(datagram, to);
        }
    }
}

struct Guard<K> {
    core: Core,
    kernel: K,
    link: NodeLink,
    outbox: Outbox,
    senders: Senders,
    ended: bool,
}

impl<K: Kernel> Guard<K> {
    fn serve(&mut self, timer: &OwnedFd, mut node: Option<&mut init::Node>) {
        let mut connected = true;
        while !self.ended {
            set_timer(timer, self.core.next_wake());
            let ready = self.wait(timer, node.as_deref(), connected);
            self.step(Event::Time);
            if ready.node && connected {
                connected = self.hear_node(ready.hung_up);
            }
            if node.as_deref_mut().is_some_and(init::Node::attend) && connected {
                // Its end may live on in a program that it has started.
                connected = self.hear_node(true);
            }
            self.look_at_kernel();
            if connected {
                self.outbox.flush(&self.link);
            }
        }
        if connected {
            self.outbox.flush(&self.link);
        }
    }

    fn wait(&self, timer: &OwnedFd, node: Option<&init::Node>, connected: bool) -> Ready {
        let wanted = if self.outbox.is_empty() { PollFlags::IN } else { PollFlags::IN | PollFlags::OUT };
        let link: BorrowedFd<'_> = self.link.as_fd();
        // First, at a place that is known: a closed one would be ready for ever, and stands in as the timer.
        let first = if connected { link } else { timer.as_fd() };
        let mut fds = vec![PollFd::from_borrowed_fd(first, if connected { wanted } else { PollFlags::IN })];
        fds.push(PollFd::new(timer, PollFlags::IN));
        fds.extend(node.map(|node| PollFd::from_borrowed_fd(node.as_fd(), PollFlags::IN)));
        let watches = self.kernel.watches();
        fds.extend(watches.into_iter().map(|watch| PollFd::from_borrowed_fd(watch, PollFlags::IN)));
        // On a signal or an error it goes round, and finds what is due by the clock.
        let _ = poll(&mut fds, None);
        let revents = fds[0].revents();
        let hung_up = revents.intersects(PollFlags::HUP | PollFlags::ERR);
        Ready { node: hung_up || revents.contains(PollFlags::IN), hung_up }
    }

    /// `false`: the node is gone. What a dead node still granted is not taken up; its last notices count.
    fn hear_node(&mut self, hung_up: bool) -> bool {
        for _ in 0..MESSAGES_MAX {
            match self.link.try_recv() {
                Ok(Some(message)) if !hung_up || matches!(message, ToGuard::Notice { .. }) => {
                    self.step(Event::FromNode(message));
                }
                Ok(Some(_)) => {}
                Ok(None) if hung_up => break,
                Ok(None) => return true,
                Err(LinkError::Wire(error)) => self.outbox.put(problem(error.to_string())),
                Err(_) => {
                    self.step(Event::NodeGone);
                    return false;
                }
            }
        }
        if hung_up {
            self.step(Event::NodeGone);
        }
        !hung_up
    }

    fn look_at_kernel(&mut self) {
        let happened = self.kernel.happened();
        // A device that went took its chains along: first it is no longer asked for, then the fence counts.
        if happened.network || happened.fence {
            self.look_around();
        }
        if happened.fence
            && let Some(why) = self.kernel.fence_lost()
        {
            self.take(Event::FenceLost(why));
        }
        for (link, address, mac) in happened.heard {
            self.step(Event::Heard { link, address, mac });
        }
    }

    /// Nothing is begun between the look and what follows from it: an address that was added meanwhile would
    /// seem to have been removed.
    fn look_around(&mut self) {
        self.take(Event::Time);
        match self.kernel.picture() {
            Ok(picture) => self.take(Event::Picture(picture)),
            Err(error) => self.outbox.put(problem(format!("links and addresses can't be read: {error}"))),
        }
    }

    /// What the time has ended goes first.
    fn step(&mut self, event: Event) {
        self.take(Event::Time);
        self.take(event);
    }

    fn take(&mut self, event: Event) {
        let mut effects = Effects::new();
        self.core.handle(event, clock::now(), &mut effects);
        while let Some(effect) = effects.pop_front() {
            self.carry_out(effect, &mut effects);
        }
    }

    fn carry_out(&mut self, effect: Effect, effects: &mut Effects) {
        let kernel = &mut self.kernel;
        let done = match effect {
            Effect::Send(message) => return self.outbox.put(message),
            Effect::Sweep { configured, keep } => match kernel.sweep(&configured, &keep) {
                Ok(swept) => Done::Swept(swept),
                Err(error) => {
                    self.outbox.put(problem(format!("left-over addresses could not be swept: {error}")));
                    Done::Swept(Vec::new())
                }
            },
            Effect::Attend(links) => Done::Attended(kernel.attend(&links)),
            Effect::Fence { links, addresses } => Done::Fenced(kernel.fence(&links, &addresses)),
            Effect::Add { vip, place, seconds } => Done::Added(vip, kernel.add(&place, seconds)),
            Effect::Open { vip, place, deadline } => Done::Opened(vip, kernel.open(&place, deadline)),
            Effect::Quiet { vip, place, until } => Done::Quieted(vip, kernel.quiet(&place, until)),
            Effect::Shut(vips) => {
                let result = kernel.shut(&mut vips.iter().map(|(_, place)| place));
                for (vip, _) in vips {
                    self.core.handle(Event::Done(Done::Shut(vip, result.clone())), clock::now(), effects);
                }
                return;
            }
            Effect::Remove { vip, place } => Done::Removed(vip, kernel.remove(&place)),
            Effect::Announce(place) => return kernel.announce(&place),
            Effect::Probe(place) => return kernel.probe(&place),
            Effect::Chance { vip, place, old, except, until } => {
                Done::Chance(vip, kernel.chance(&place, (&old, &except), until))
            }
            Effect::EndChance(place) => return kernel.end_chance(&place),
            Effect::Notices => {
                for (to, datagram) in self.core.notices() {
                    self.senders.send(*to, datagram);
                }
                return;
            }
            Effect::Dismantle => return kernel.dismantle(),
            Effect::Exit => {
                self.ended = true;
                return;
            }
        };
        self.core.handle(Event::Done(done), clock::now(), effects);
    }
}

struct Ready {
    node: bool,
    hung_up: bool,
}

fn set_timer(timer: &OwnedFd, wake: Option<u64>) {
    // Zero would switch it off.
    let at = wake.map_or(0, |wake| wake.max(1));
    let it_value =
        Timespec { tv_sec: (at / 1_000_000_000).cast_signed(), tv_nsec: (at % 1_000_000_000).cast_signed() };
    let it_interval = Timespec { tv_sec: 0, tv_nsec: 0 };
    let _ = timerfd_settime(timer, TimerfdTimerFlags::ABSTIME, &Itimerspec { it_interval, it_value });
}

#[cfg(test)]
mod tests;
