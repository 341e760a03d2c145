//! Asks for an address of a VIP every 10 ms, as a client does, and writes down who answers: ARP requests
//! or neighbour solicitations to all, and a SYN to each node's hardware address.
//!
//! Each question comes from another address of a pool, so an answer belongs to one question, however late
//! it comes. The pool's addresses are nobody's; what is asked for them is answered here.

use std::collections::{BTreeSet, VecDeque};
use std::net::IpAddr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use anyhow::Context;
use nix::sys::socket::{AddressFamily, LinkAddr, SockFlag, SockProtocol, SockType, bind, socket};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{RecvFlags, SendFlags, recv, send};

use super::frames::{self, Heard, Mac};
use super::{inside, other};
use crate::trace::{Asked, MILLISECOND, Recorder, Time, boot_time};

const PERIOD: Time = 10 * MILLISECOND;
/// A round of SYNs every so many questions.
const SYN_EVERY: u64 = 5;
/// A question is closed after so many others: 50 ms.
const OPEN: usize = 5;
/// Ports of SYNs, below those that the kernel gives out.
const PORTS: std::ops::Range<u16> = 10_000..30_000;

/// What is asked.
#[derive(Clone, Debug)]
pub struct Questions {
    /// The client's network namespace, as a file, and its interface.
    pub namespace: PathBuf,
    pub device: String,
    pub vip: IpAddr,
    /// Addresses of the VIP's subnet that nobody has; at least twice as many as questions are open.
    pub pool: Vec<IpAddr>,
    /// Nodes by hardware address.
    pub nodes: Vec<(String, [u8; 6])>,
    /// Where SYNs go; `None`: nowhere.
    pub port: Option<u16>,
}

/// Asks until it is finished or dropped: before the [`Watch`](super::Watch), so that the events tell who
/// owned it as long as somebody asks.
#[derive(Debug)]
pub struct Asker {
    stop: Arc<AtomicBool>,
    macs: Macs,
    thread: Option<JoinHandle<()>>,
}

impl Asker {
    /// # Errors
    /// No such interface, or no packet socket.
    pub fn start(recorder: &Recorder, questions: Questions) -> anyhow::Result<Self> {
        anyhow::ensure!(questions.pool.len() >= 2 * OPEN, "a pool of {} at least", 2 * OPEN);
        let family = questions.vip.is_ipv6();
        anyhow::ensure!(questions.pool.iter().all(|from| from.is_ipv6() == family), "a pool of one family");
        let (socket, mac) = inside(&questions.namespace, || open(&questions.device))?;
        let stop = Arc::new(AtomicBool::new(false));
        let macs = Macs::default();
        let mut asking = Asking {
            recorder: recorder.clone(),
            former: Vec::new(),
            macs: macs.clone(),
            questions,
            socket,
            mac,
            open: VecDeque::new(),
            number: 0,
            port: PORTS.start,
        };
        let ended = stop.clone();
        let thread = std::thread::Builder::new().name("ask".into()).spawn(move || {
            if let Err(error) = asking.run(&ended) {
                asking.recorder.note(format!("asking for {} ended: {error}", asking.questions.vip));
            }
        })?;
        Ok(Self { stop, macs, thread: Some(thread) })
    }

    /// A node has another hardware address from now on.
    pub fn rename(&self, node: String, mac: Mac) {
        self.macs.lock().unwrap_or_else(PoisonError::into_inner).push((node, mac));
    }

    pub fn finish(mut self) {
        self.end();
    }

    fn end(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Drop for Asker {
    fn drop(&mut self) {
        self.end();
    }
}

fn open(device: &str) -> anyhow::Result<(OwnedFd, Mac)> {
    let mut all = nix::ifaddrs::getifaddrs().context("interfaces")?;
    let link: LinkAddr = all
        .find_map(|i| if i.interface_name == device { i.address?.as_link_addr().copied() } else { None })
        .with_context(|| format!("no interface {device}"))?;
    let mac = link.addr().context("no hardware address")?;
    // The socket's own protocol stays, since the address names none.
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = socket(AddressFamily::Packet, SockType::Raw, flags, SockProtocol::EthAll)
        .context("a packet socket")?;
    bind(socket.as_raw_fd(), &link).context("bind a packet socket")?;
    Ok((socket, mac))
}

/// What was told since it was looked at.
type Macs = Arc<Mutex<Vec<(String, Mac)>>>;

/// A question that may still be answered.
struct Open {
    asked: Asked,
    at: u64,
    /// The address that asked, and for SYNs the first port, one a node.
    from: IpAddr,
    port: u16,
    by: BTreeSet<String>,
    /// The last answer.
    heard: u64,
}

struct Asking {
    recorder: Recorder,
    questions: Questions,
    macs: Macs,
    /// Addresses that nodes had before: an answer may still come from one.
    former: Vec<(String, Mac)>,
    socket: OwnedFd,
    mac: Mac,
    open: VecDeque<Open>,
    number: u64,
    port: u16,
}

impl Asking {
    fn run(&mut self, stop: &AtomicBool) -> std::io::Result<()> {
        let mut due = boot_time();
        while !stop.load(Ordering::Relaxed) {
            self.ask()?;
            due += PERIOD;
            // After a stall it goes on from now: a burst would tell nothing more.
            due = due.max(boot_time().saturating_sub(PERIOD));
            self.hear(due)?;
            while self.open.len() > OPEN {
                self.close();
            }
        }
        self.hear(boot_time() + OPEN as u64 * PERIOD)?;
        while !self.open.is_empty() {
            self.close();
        }
        Ok(())
    }

    /// Only values change: a question's ports are told by a node's place in the list.
    fn renew(&mut self) {
        for (name, mac) in self.macs.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            let known = self.questions.nodes.iter_mut().find(|(node, old)| *node == name && *old != mac);
            if let Some((_, old)) = known {
                self.former.push((name, std::mem::replace(old, mac)));
            }
        }
    }

    fn ask(&mut self) -> std::io::Result<()> {
        self.renew();
        let from = self.questions.pool[(self.number % self.questions.pool.len() as u64) as usize];
        self.number += 1;
        let (vip, at) = (self.questions.vip, boot_time());
        let Some(port) = self.questions.port.filter(|_| self.number.is_multiple_of(SYN_EVERY)) else {
            let asked = if vip.is_ipv6() { Asked::Nd } else { Asked::Arp };
            self.open.push_back(Open { asked, at, from, port: 0, by: BTreeSet::new(), heard: at });
            return self.send(frames::who_has(self.mac, from, vip));
        };
        let count = self.questions.nodes.len() as u16;
        if PORTS.end - self.port < count {
            self.port = PORTS.start;
        }
        let first = self.port;
        self.port += count;
        self.open.push_back(Open {
            asked: Asked::Syn,
            at,
            from,
            port: first,
            by: BTreeSet::new(),
            heard: at,
        });
        for (index, (_, mac)) in self.questions.nodes.iter().enumerate() {
            let own = (from, first + index as u16);
            self.send(frames::syn((self.mac, *mac), own, (vip, port), 1))?;
        }
        Ok(())
    }

    /// A frame that finds no room or no carrier is a question that nobody heard.
    fn send(&self, frame: Option<Vec<u8>>) -> std::io::Result<()> {
        use rustix::io::Errno;
        // None is made of two families, and then there is nobody to ask.
        let Some(frame) = frame else { return Ok(()) };
        match send(&self.socket, &frame, SendFlags::DONTWAIT) {
            Ok(_) | Err(Errno::AGAIN | Errno::NOBUFS | Errno::NETDOWN | Errno::INTR) => Ok(()),
            Err(errno) => Err(other(errno)),
        }
    }

    /// Takes answers until `until`.
    fn hear(&mut self, until: u64) -> std::io::Result<()> {
        use rustix::io::Errno;
        let mut buffer = [0; 256];
        while let Some(left) = until.checked_sub(boot_time()).filter(|left| *left > 0) {
            let wait = Timespec { tv_sec: 0, tv_nsec: left.min(900_000_000) as i64 };
            let _ = poll(&mut [PollFd::new(&self.socket, PollFlags::IN)], Some(&wait));
            // Of other traffic there may be more than can be read: the clock goes on.
            for _ in 0..256 {
                match recv(&self.socket, &mut buffer[..], RecvFlags::DONTWAIT) {
                    Ok((length, _)) => {
                        if let Some(heard) = frames::parse(&buffer[..length]) {
                            self.take(heard)?;
                        }
                    }
                    Err(Errno::AGAIN) => break,
                    Err(Errno::INTR | Errno::NETDOWN) => {}
                    Err(errno) => return Err(other(errno)),
                }
            }
        }
        Ok(())
    }

    fn take(&mut self, heard: Heard) -> std::io::Result<()> {
        let vip = self.questions.vip;
        match heard {
            Heard::Reply { mac, sender, target } if sender == vip => {
                let name = self.name(mac);
                let asked = self.open.iter_mut().find(|o| o.asked != Asked::Syn && o.from == target);
                if let Some(question) = asked {
                    question.by.insert(name);
                    question.heard = boot_time();
                }
            }
            Heard::Request { mac, sender, target }
                if mac != self.mac && self.questions.pool.contains(&target) =>
            {
                self.send(frames::is_at(self.mac, target, (mac, sender)))?;
            }
            Heard::Tcp { mac, from, to, reset, acknowledged } if from.0 == vip => {
                let name = self.name(mac);
                let count = self.questions.nodes.len() as u16;
                let asked = self.open.iter_mut().find(|o| {
                    o.asked == Asked::Syn && o.from == to.0 && (o.port..o.port + count).contains(&to.1)
                });
                let Some(question) = asked else { return Ok(()) };
                question.by.insert(name);
                question.heard = boot_time();
                if !reset {
                    // Else it would wait for us, and send again.
                    self.send(frames::reset((self.mac, mac), to, from, acknowledged))?;
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn name(&self, mac: Mac) -> String {
        let mut all = self.questions.nodes.iter().chain(&self.former);
        let node = all.find(|(_, of)| *of == mac);
        node.map_or_else(|| mac.map(|byte| format!("{byte:02x}")).join(":"), |(name, _)| name.clone())
    }

    fn close(&mut self) {
        if let Some(Open { asked, at, by, heard, .. }) = self.open.pop_front() {
            let vip = self.questions.vip;
            let (at, heard) = (self.recorder.since(at), self.recorder.since(heard));
            self.recorder.answer(asked, vip, at, heard, by.into_iter().collect());
        }
    }
}
