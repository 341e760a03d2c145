//! What keeps the guard quick and alive: memory that is not paged out, real-time priority, the last choice of
//! the OOM killer. All of it is best effort; what could not be had is told in words.

use std::io;

use rustix::{
    io::Errno,
    mm::{MlockAllFlags, mlockall},
    process::{Resource, Rlimit, getrlimit, setrlimit},
    thread::{CapabilitySet, capabilities},
};

use crate::sys;

/// The lowest but some: above everything that is not real-time, below the kernel's own threads.
const PRIORITY: i32 = 5;
/// Real-time work without a pause for so long is a defect: the kernel ends the guard, and its lease's time
/// does the rest.
const REAL_TIME_MICROS: u64 = 500_000;
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
    // First the bound, then the priority: a loop without an end would take a core from everybody.
    let bound = Some(REAL_TIME_MICROS);
    let _ = setrlimit(Resource::Rttime, Rlimit { current: bound, maximum: bound });
    tried(sys::run_in_real_time(PRIORITY), "it has no real-time priority (it takes CAP_SYS_NICE)");
    tried(
        std::fs::write("/proc/self/oom_score_adj", OOM_SCORE),
        "it may be chosen by the OOM killer (to lower its score takes CAP_SYS_RESOURCE)",
    );
    weak
}

/// No core dump, and no debugger of the same user: the node's variables are in its memory, too, and who stops it
/// takes addresses down. After [`protect`]: from here on files of its own under /proc are root's.
pub(super) fn forbid_dumps() {
    let _ = rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable);
}

/// What is in memory stays there, and so do all code and data of the program: nothing is read from a disk on
/// the way out. What the allocator has set aside and never touched stays untouched (it may be a gigabyte).
fn lock_memory() -> io::Result<()> {
    let unlimited = getrlimit(Resource::Memlock).current.is_none();
    let may = unlimited || has(CapabilitySet::IPC_LOCK);
    let mut flags = MlockAllFlags::CURRENT | MlockAllFlags::ONFAULT;
    if may {
        // Under a limit, memory to come is left alone: an allocation beyond it would fail and end the guard.
        flags |= MlockAllFlags::FUTURE;
    }
    match mlockall(flags) {
        Err(Errno::NOMEM) => return Err(io::Error::other("more than the limit of locked memory")),
        result => result?,
    }
    for line in std::fs::read_to_string("/proc/self/maps")?.lines() {
        if let Some((start, end)) = program_range(line) {
            sys::lock_range(start, end)?;
        }
    }
    Ok(())
}

/// Where a line of /proc/PID/maps tells of a file's bytes that can be read.
fn program_range(line: &str) -> Option<(usize, usize)> {
    let mut fields = line.split_whitespace();
    let (start, end) = fields.next()?.split_once('-')?;
    let mode = fields.next()?;
    let path = fields.nth(3)?;
    let number = |text| usize::from_str_radix(text, 16).ok();
    (mode.starts_with('r') && path.starts_with('/')).then_some((number(start)?, number(end)?))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn code_and_data_of_the_program_are_found_and_nothing_else() {
        for (line, expected) in [
            ("55d0-55e0 r-xp 00001000 fe:01 123   /usr/bin/trestle", Some((0x55d0, 0x55e0))),
            ("55e0-55f0 ---p 00001000 fe:01 123   /usr/bin/trestle", None),
            ("7ffe-7fff rw-p 00000000 00:00 0     [stack]", None),
            ("7f00-7f10 rw-p 00000000 00:00 0", None),
            ("nonsense", None),
        ] {
            assert_eq!(program_range(line), expected, "{line}");
        }
    }
}
