//! What keeps the guard quick and alive: memory that is not paged out, real-time priority, the last choice of
//! the OOM killer. All of it is best effort; what could not be had is told in words.

use std::io;

use rustix::{
    io::Errno,
    mm::{MlockAllFlags, mlockall},
    process::{Resource, getrlimit},
    thread::{CapabilitySet, capabilities},
};

use crate::sys;

/// The lowest but some: above everything that is not real-time, below the kernel's own threads.
const PRIORITY: i32 = 5;
/// Only what says that it must never be killed comes after it.
const OOM_SCORE: &str = "-900";

pub(super) fn protect() -> Vec<String> {
    let mut weak = Vec::new();
    let mut tried = |result: io::Result<()>, what: &str| {
        if let Err(error) = result {
            weak.push(format!("{what}: {error}"));
        }
    };
    tried(lock_memory(), "its memory is not locked (it takes CAP_IPC_LOCK)");
    tried(sys::run_in_real_time(PRIORITY), "it has no real-time priority (it takes CAP_SYS_NICE)");
    tried(
        std::fs::write("/proc/self/oom_score_adj", OOM_SCORE),
        "it may be chosen by the OOM killer (to lower its score takes CAP_SYS_RESOURCE)",
    );
    weak
}

fn lock_memory() -> io::Result<()> {
    let unlimited = getrlimit(Resource::Memlock).current.is_none();
    let may = unlimited || has(CapabilitySet::IPC_LOCK);
    // Under a limit, memory to come is left alone: an allocation beyond the limit would fail and end it.
    let flags = if may { MlockAllFlags::CURRENT | MlockAllFlags::FUTURE } else { MlockAllFlags::CURRENT };
    match mlockall(flags) {
        Err(Errno::NOMEM) => Err(io::Error::other("more than the limit of locked memory")),
        result => Ok(result?),
    }
}

fn has(wanted: CapabilitySet) -> bool {
    capabilities(None).is_ok_and(|sets| sets.effective.contains(wanted))
}

/// Why this process can't hold an address at all, and what to do.
pub(super) fn incapable() -> Option<String> {
    let wanted = [("CAP_NET_ADMIN", CapabilitySet::NET_ADMIN), ("CAP_NET_RAW", CapabilitySet::NET_RAW)];
    let missing: Vec<_> =
        wanted.into_iter().filter(|(_, capability)| !has(*capability)).map(|(name, _)| name).collect();
    (!missing.is_empty()).then(|| {
        let missing = missing.join(" and ");
        format!(
            "the guard lacks {missing}: in a container give it `cap_add: [NET_ADMIN, NET_RAW]`, under systemd \
             `AmbientCapabilities=CAP_NET_ADMIN CAP_NET_RAW`, else run it as root"
        )
    })
}
