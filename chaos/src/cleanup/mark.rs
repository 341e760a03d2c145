//! The mark that every process of a run carries in its environment.

use std::process::Command;

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

/// Holds the run's name.
pub const RUN: &str = "TRESTLE_CHAOS_RUN";

/// Holds the name of the node, backend or helper that the process belongs to.
pub const PART: &str = "TRESTLE_CHAOS_PART";

/// Marks what `command` will start.
pub fn mark(command: &mut Command, run: &str, part: &str) {
    command.env(RUN, run).env(PART, part);
}

/// A process of a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Marked {
    pub pid: i32,
    pub part: String,
    pub command: Vec<String>,
}

/// The living processes that carry the mark of `run`.
pub fn find(run: &str) -> Vec<Marked> {
    let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
    let pids = entries.flatten().filter_map(|e| e.file_name().to_str()?.parse::<i32>().ok());
    pids.filter_map(|pid| look(pid, run)).collect()
}

fn look(pid: i32, run: &str) -> Option<Marked> {
    let environment = std::fs::read(format!("/proc/{pid}/environ")).ok()?;
    let value = |name: &str| {
        environment.split(|b| *b == 0).find_map(|entry| {
            let entry = std::str::from_utf8(entry).ok()?;
            entry.strip_prefix(name)?.strip_prefix('=').map(str::to_owned)
        })
    };
    if value(RUN)? != run {
        return None;
    }
    let command = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let command = command.split(|b| *b == 0).filter(|a| !a.is_empty());
    let command = command.map(|a| String::from_utf8_lossy(a).into_owned()).collect();
    Some(Marked { pid, part: value(PART).unwrap_or_default(), command })
}

/// Kills every process of `run`, and how many it were. The look after the handle is taken makes
/// sure that the number does not belong to somebody else by now.
pub fn kill(run: &str) -> usize {
    let ours = |pid: &Marked| {
        let handle = pidfd_open(Pid::from_raw(pid.pid)?, PidfdFlags::empty()).ok()?;
        look(pid.pid, run)?;
        pidfd_send_signal(&handle, Signal::KILL).ok()
    };
    find(run).iter().filter_map(ours).count()
}

#[cfg(test)]
mod tests {
    use std::process::Stdio;

    use super::*;

    #[test]
    fn a_marked_process_and_its_child_are_found_and_killed_and_no_other_is() {
        let run = format!("mark-test-{}", std::process::id());
        let start = |run: &str| {
            let mut command = Command::new("sh");
            command.args(["-c", "sleep 60 & wait"]).stdin(Stdio::null());
            mark(&mut command, run, "x");
            command.spawn().unwrap()
        };
        let (mut ours, mut other) = (start(&run), start(&format!("{run}-other")));
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
        // The shell, and the sleep that it starts.
        while find(&run).len() < 2 {
            assert!(std::time::Instant::now() < deadline, "{:?}", find(&run));
        }
        assert!(find(&run).iter().all(|m| m.part == "x"));
        assert_eq!(kill(&run), 2);
        assert!(!ours.wait().unwrap().success());
        assert!(other.try_wait().unwrap().is_none(), "a process of another run lives");
        kill(&format!("{run}-other"));
        other.wait().unwrap();
    }
}
