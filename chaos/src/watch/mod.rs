//! Who has a VIP: by the kernel's events in every node's namespace, and as clients see it ([`Asker`]).
//!
//! One thread follows all nodes, so that one clock and one order hold for all. It writes down each state
//! of an address on a node, between which moments it came to be, and where events may have been lost;
//! what that means is the checkers' business.

mod ask;
mod frames;
mod front;
#[cfg(test)]
mod tests;

use std::collections::{BTreeSet, HashMap};
use std::fs::File;
use std::io;
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender, TryRecvError, sync_channel};
use std::thread::JoinHandle;

use anyhow::{Context, ensure};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use trestle_netlink::fence::{Follower, Listing};
use trestle_netlink::{Error, route};

pub use ask::{Asker, Questions};

use crate::trace::{FOREVER, Recorder, Sight, Time, Watched, boot_time};

pub const POSTS_MAX: usize = 64;

/// The watch looks at its clock at least so often: an event is known to have come after the last time.
const PATIENCE: Timespec = Timespec { tv_sec: 0, tv_nsec: 1_000_000 };

/// Does `work` on a thread of its own in the namespace; sockets that it opens stay there.
fn inside<T: Send>(namespace: &Path, work: impl FnOnce() -> anyhow::Result<T> + Send) -> anyhow::Result<T> {
    let entered = || {
        let file = File::open(namespace).with_context(|| namespace.display().to_string())?;
        move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network))
            .with_context(|| format!("enter {}", namespace.display()))?;
        work()
    };
    let joined = std::thread::scope(|scope| scope.spawn(entered).join());
    joined.unwrap_or_else(|_| Err(anyhow::anyhow!("a thread in a namespace panicked")))
}

/// A node that is watched.
#[derive(Clone, Debug)]
pub struct Post {
    pub node: String,
    /// Its network namespace, as a file: `/run/netns/NAME` or `/proc/PID/ns/net`.
    pub namespace: PathBuf,
    /// The namespace was made just now: nobody owned anything there. Believed only while nothing of a
    /// node runs there.
    pub fresh: bool,
}

/// Whether only the container runtime, or nobody, runs in a namespace: a program that is yet to begin
/// there has done nothing.
fn unused(namespace: &Path) -> io::Result<bool> {
    let id = |path: &Path| std::fs::metadata(path).map(|m| (m.dev(), m.ino()));
    let wanted = id(namespace)?;
    for process in std::fs::read_dir("/proc")?.flatten() {
        // Of one that ends meanwhile there is nothing to see.
        if id(&process.path().join("ns/net")).is_ok_and(|found| found == wanted) {
            let name = std::fs::read_to_string(process.path().join("comm")).unwrap_or_default();
            if !["runc", "crun"].iter().any(|runtime| name.starts_with(runtime)) {
                return Ok(false);
            }
        }
    }
    Ok(true)
}

/// Watches until it is finished or dropped.
#[derive(Debug)]
pub struct Watch {
    posts: Option<SyncSender<Post>>,
    thread: Option<JoinHandle<()>>,
}

impl Watch {
    /// Watches `addresses` on all of `posts`.
    ///
    /// # Errors
    /// A namespace can't be entered, or its events not be had.
    pub fn start(recorder: &Recorder, addresses: &[IpAddr], posts: Vec<Post>) -> anyhow::Result<Self> {
        ensure!(posts.len() <= POSTS_MAX, "more than {POSTS_MAX} nodes to watch");
        let mut watcher = Watcher {
            recorder: recorder.clone(),
            addresses: addresses.to_vec(),
            stations: Vec::new(),
            empty_at: boot_time(),
        };
        for post in posts {
            watcher.add(post)?;
        }
        let (send, receive) = sync_channel(POSTS_MAX);
        let thread = std::thread::Builder::new().name("watch".into()).spawn(move || watcher.run(&receive))?;
        Ok(Self { posts: Some(send), thread: Some(thread) })
    }

    /// Watches a node more, or the new namespace of one.
    pub fn add(&self, post: Post) {
        if let Some(posts) = &self.posts {
            // A watch that has ended is told of by its `Watched`.
            let _ = posts.try_send(post);
        }
    }

    /// Ends it; what was seen is written down.
    pub fn finish(mut self) {
        self.end();
    }

    fn end(&mut self) {
        drop(self.posts.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.end();
    }
}

struct Watcher {
    recorder: Recorder,
    addresses: Vec<IpAddr>,
    stations: Vec<Station>,
    /// When nothing was there to be read.
    empty_at: u64,
}

/// One node.
struct Station {
    post: Post,
    from: Time,
    fence: Follower,
    links: route::Watch,
    listing: Option<Listing>,
    present: Present,
    /// What was written down last.
    last: HashMap<IpAddr, Sight>,
    /// Why it can't be watched any more.
    lost: Option<String>,
}

/// Addresses, and the links that they are on.
type Present = BTreeSet<(IpAddr, u32)>;

type Opened = (Follower, route::Watch, Option<Listing>, Present);

/// From within the namespace.
fn open(post: &Post) -> anyhow::Result<Opened> {
    inside(&post.namespace, || {
        let (fence, state) = Follower::start()?;
        let (links, _, addresses) = route::Watch::start()?;
        let present = addresses.iter().map(|address| (address.address, address.link)).collect();
        Ok((fence, links, state.listing, present))
    })
}

impl Watcher {
    fn add(&mut self, mut post: Post) -> anyhow::Result<()> {
        let old = self.stations.iter().position(|s| s.post.node == post.node);
        ensure!(old.is_some() || self.stations.len() < POSTS_MAX, "more than {POSTS_MAX} nodes to watch");
        let (since, from) = (boot_time(), self.recorder.now());
        let (fence, links, listing, present) =
            open(&post).with_context(|| format!("{} can't be watched", post.node))?;
        post.fresh = post.fresh && unused(&post.namespace)?;
        // Before the first sight of a new namespace there was nothing to miss; of one that was there
        // already, all that was.
        let mut gap = !post.fresh;
        if let Some(old) = old {
            let mut old = self.stations.swap_remove(old);
            if let Err(error) = old.read(&self.recorder, &self.addresses, self.empty_at) {
                old.lost = Some(error.to_string());
            }
            // Its end is then in nobody's sight.
            gap |= old.lost.is_some() || old.last.values().any(Sight::owns);
            old.close(&self.recorder);
        }
        let last = HashMap::new();
        let mut station = Station { post, from, fence, links, listing, present, last, lost: None };
        station.tell(&self.recorder, &self.addresses, since, boot_time(), gap);
        self.stations.push(station);
        Ok(())
    }

    fn run(mut self, posts: &Receiver<Post>) {
        // As far in front as can be had: the later an event is read, the less is known of its moment.
        if front::to_the_front().is_err() {
            let thread = rustix::thread::gettid();
            let _ = rustix::process::setpriority_process(Some(thread), -20);
        }
        loop {
            match posts.try_recv() {
                Ok(post) => {
                    let node = post.node.clone();
                    if let Err(error) = self.add(post) {
                        self.recorder.note(format!("watch: {node}: {error:#}"));
                        // What it is now is in nobody's sight.
                        if let Some(old) = self.stations.iter_mut().find(|s| s.post.node == node) {
                            old.lost.get_or_insert_with(|| error.to_string());
                        }
                    }
                }
                Err(TryRecvError::Empty) => {}
                Err(TryRecvError::Disconnected) => break,
            }
            self.turn();
        }
        self.turn();
        for station in self.stations {
            station.close(&self.recorder);
        }
    }

    /// Waits a little and reads what has come.
    fn turn(&mut self) {
        let before = boot_time();
        let ready = {
            // A lost one would be readable for ever.
            let alive = self.stations.iter().filter(|s| s.lost.is_none());
            let mut fds: Vec<_> = alive
                .flat_map(|s| [PollFd::new(&s.fence, PollFlags::IN), PollFd::new(&s.links, PollFlags::IN)])
                .collect();
            poll(&mut fds, Some(&PATIENCE)).unwrap_or(0) > 0
        };
        if ready {
            for station in self.stations.iter_mut().filter(|s| s.lost.is_none()) {
                if let Err(error) = station.read(&self.recorder, &self.addresses, self.empty_at) {
                    station.lost = Some(error.to_string());
                    self.recorder.note(format!("watch: {}: {error}", station.post.node));
                }
            }
        }
        // All sockets were looked at after this, and found empty or read to their end.
        self.empty_at = before;
    }
}

impl Station {
    fn read(&mut self, recorder: &Recorder, addresses: &[IpAddr], since: u64) -> Result<(), Error> {
        match self.links.read() {
            Ok(events) => {
                for event in events {
                    match event {
                        route::Event::AddressAdded(a) | route::Event::AddressChanged(a) => {
                            self.present.insert((a.address, a.link));
                        }
                        route::Event::AddressRemoved(a) => {
                            self.present.remove(&(a.address, a.link));
                        }
                        route::Event::LinkRemoved { index, .. } => {
                            self.present.retain(|(_, link)| *link != index);
                        }
                        route::Event::Link(_) => continue,
                    }
                    self.tell(recorder, addresses, since, boot_time(), false);
                }
            }
            Err(Error::EventsLost) => {
                let reopened = inside(&self.post.namespace, || Ok(route::Watch::start()?));
                let (links, _, all) = reopened.map_err(|error| {
                    tracing::warn!(node = self.post.node, %error, "events were lost, and can't be had again");
                    Error::EventsLost
                })?;
                self.links = links;
                self.present = all.iter().map(|address| (address.address, address.link)).collect();
                self.tell(recorder, addresses, since, boot_time(), true);
            }
            Err(error) => return Err(error),
        }
        for state in self.fence.read()? {
            self.listing = state.listing;
            self.tell(recorder, addresses, since, state.at, state.gap);
        }
        Ok(())
    }

    /// Writes down what is not as it was.
    fn tell(&mut self, recorder: &Recorder, addresses: &[IpAddr], since: u64, at: u64, gap: bool) {
        for address in addresses {
            let present = self.present.iter().any(|(found, _)| found == address);
            let (open_until, quiet_until) = fence(self.listing.as_ref(), *address);
            let sight = Sight {
                since: recorder.since(since.min(at)),
                at: recorder.since(at),
                node: self.post.node.clone(),
                address: *address,
                present,
                open_until: recorder.since(open_until),
                quiet_until: recorder.since(quiet_until),
                gap,
            };
            let same = self.last.get(address).is_some_and(|last| {
                (last.present, last.open_until, last.quiet_until)
                    == (sight.present, sight.open_until, sight.quiet_until)
            });
            if !same || gap {
                self.last.insert(*address, sight.clone());
                recorder.sight(sight);
            }
        }
    }

    fn close(self, recorder: &Recorder) {
        let until = if self.lost.is_some() {
            self.last.values().map(|sight| sight.at).max().unwrap_or(self.from)
        } else {
            recorder.now()
        };
        let (node, from, fresh) = (self.post.node, self.from, self.post.fresh);
        recorder.watched(Watched { node, from, until, fresh });
    }
}

/// Until when the fence lets `address` pass, and until when it is kept silently.
fn fence(listing: Option<&Listing>, address: IpAddr) -> (u64, u64) {
    let Some(listing) = listing.filter(|listing| listing.fenced.contains(&address)) else {
        return (FOREVER, 0);
    };
    let until = |list: &[trestle_netlink::fence::Timed]| {
        list.iter().filter(|timed| timed.address == address).map(|timed| timed.until).max().unwrap_or(0)
    };
    (until(&listing.live), until(&listing.quiet))
}

fn other(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> io::Error {
    io::Error::other(error)
}
