//! Network namespaces for tests: made with unique names, deleted when dropped, also on a panic.
//!
//! Needs root and iproute2. [`available`] says whether there are; under `TRESTLE_CI=1` they must be.

use std::{
    fs::File,
    os::fd::AsFd,
    path::PathBuf,
    process::{Command, Output},
    sync::atomic::{AtomicU32, Ordering},
    thread,
};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// Whether namespaces can be made, and `programs` are there. If not: one line that says what is missing,
/// and `false`; under `TRESTLE_CI=1` the test fails.
#[track_caller]
#[must_use]
pub fn available(programs: &[&str]) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let on_path = |program: &str| {
        std::env::split_paths(&path)
            .chain(["/usr/sbin".into(), "/sbin".into()])
            .any(|dir| dir.join(program).is_file())
    };
    let missing: Vec<_> = programs.iter().chain(&["ip"]).filter(|program| !on_path(program)).collect();
    if !rustix::process::geteuid().is_root() {
        return skip("namespaces need root");
    }
    missing.is_empty() || skip(&format!("no {missing:?} on the PATH"))
}

#[track_caller]
fn skip(why: &str) -> bool {
    assert!(
        std::env::var_os("TRESTLE_CI").is_none_or(|v| v != "1"),
        "under TRESTLE_CI=1 nothing is skipped: {why}"
    );
    eprintln!("skipped: {why}");
    false
}

/// A network namespace; deleted by its name when dropped.
#[derive(Debug)]
pub struct Namespace {
    name: String,
}

impl Namespace {
    /// Its loopback is up.
    #[must_use]
    #[track_caller]
    pub fn new(role: &str) -> Self {
        let namespace = Self { name: unique(role) };
        run("ip", &["netns", "add", &namespace.name]);
        namespace.ip("link set lo up");
        namespace
    }

    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// `ip` inside; panics where it fails.
    #[track_caller]
    pub fn ip(&self, arguments: &str) -> String {
        self.run("ip", arguments)
    }

    /// A program inside; panics where it fails.
    #[track_caller]
    pub fn run(&self, program: &str, arguments: &str) -> String {
        let mut all = vec!["netns", "exec", self.name.as_str(), program];
        all.extend(arguments.split_whitespace());
        run("ip", &all)
    }

    /// Writes a value under /proc/sys/net inside.
    #[track_caller]
    pub fn sysctl(&self, name: &str, value: &str) {
        let path = format!("/proc/sys/{}", name.replace('.', "/"));
        self.enter(|| std::fs::write(&path, value)).unwrap_or_else(|error| panic!("{path}: {error}"));
    }

    /// Runs `work` on a thread of its own that is inside; sockets opened there stay inside.
    pub fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let path = self.path();
        let joined = thread::scope(|scope| {
            scope
                .spawn(move || {
                    let link =
                        File::open(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
                    move_into_link_name_space(link.as_fd(), Some(LinkNameSpaceType::Network))
                        .unwrap_or_else(|errno| panic!("enter {}: {errno}", path.display()));
                    work()
                })
                .join()
        });
        joined.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }

    /// What a process enters it by.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        PathBuf::from("/run/netns").join(&self.name)
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "delete", &self.name]).output();
    }
}

/// A bridge in a namespace of its own, and hosts on it, each with one interface `eth0`.
#[derive(Debug)]
pub struct Segment {
    pub hosts: Vec<Namespace>,
    switch: Namespace,
}

impl Segment {
    /// Host `i` has 198.18.0.`i + 1`/24 and fd00:198:18::`i + 1`/64.
    #[must_use]
    #[track_caller]
    pub fn new(hosts: usize) -> Self {
        let switch = Namespace::new("switch");
        switch.ip("link add br0 type bridge forward_delay 0 mcast_snooping 0");
        switch.ip("link set br0 up");
        let mut segment = Self { hosts: Vec::new(), switch };
        for number in 1..=hosts {
            segment.add(number);
        }
        segment
    }

    #[must_use]
    pub fn switch(&self) -> &Namespace {
        &self.switch
    }

    #[track_caller]
    fn add(&mut self, number: usize) {
        let host = Namespace::new("host");
        self.switch.ip(&format!("link add port{number} type veth peer name eth0 netns {}", host.name()));
        self.switch.ip(&format!("link set port{number} master br0 up"));
        host.sysctl("net.ipv6.conf.eth0.accept_dad", "0");
        host.sysctl("net.ipv4.conf.all.arp_announce", "2");
        host.ip(&format!("address add 198.18.0.{number}/24 dev eth0"));
        host.ip("link set eth0 up");
        host.ip(&format!("address add fd00:198:18::{number}/64 dev eth0 nodad"));
        self.hosts.push(host);
    }
}

fn unique(role: &str) -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let nanos = crate::clock::now() % 1_000_000;
    format!("trestle-{}-{nanos}-{}-{role}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

#[track_caller]
fn run(program: &str, arguments: &[&str]) -> String {
    let Output { status, stdout, stderr } =
        Command::new(program).args(arguments).output().unwrap_or_else(|error| panic!("{program}: {error}"));
    assert!(status.success(), "{program} {}: {}", arguments.join(" "), String::from_utf8_lossy(&stderr));
    String::from_utf8_lossy(&stdout).into_owned()
}
