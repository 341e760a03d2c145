//! The reaper's side: reads orders until the pipe closes, then undoes.

use std::io::{BufRead, Read};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use super::{Item, Order, mark};

/// Lines of the pipe are short; what is longer is none of ours.
const LINE_MAX: u64 = 16 << 10;

/// No run makes more.
const ITEMS_MAX: usize = 4_096;

/// Until the processes of a run are gone after SIGKILL.
const KILL_TIMEOUT: Duration = Duration::from_secs(10);

/// A program that undoes something is given up after this.
const PROGRAM_TIMEOUT: Duration = Duration::from_secs(40);

/// `ip netns add` and the like are done within this.
const STRAGGLERS: Duration = Duration::from_millis(300);

const ATTEMPTS: u32 = 3;
const POLL: Duration = Duration::from_millis(20);

/// Reads `orders` to their end, then undoes all of them, the last first. `false`: something is left.
pub fn reap(mut orders: impl BufRead) -> bool {
    let (mut run, mut items) = (String::new(), Vec::new());
    loop {
        let mut line = Vec::new();
        match orders.by_ref().take(LINE_MAX).read_until(b'\n', &mut line) {
            Ok(0) | Err(_) => break,
            Ok(_) => {}
        }
        // The last line may be cut where the tool died: what it says was not made.
        match serde_json::from_slice(&line) {
            Ok(Order::Run(name)) => run = name,
            Ok(Order::Add(item)) if items.len() < ITEMS_MAX => items.push(item),
            Ok(Order::Forget(item)) => items.retain(|i| *i != item),
            Ok(Order::Add(_)) | Err(_) => {}
        }
    }
    let clean = undo_all(&run, &items);
    // A program that the tool had just started when it died may have done its work only now.
    std::thread::sleep(STRAGGLERS);
    items.retain(|item| {
        matches!(
            item,
            Item::Namespace(_) | Item::Link(_) | Item::Mount(_) | Item::Cgroup(_) | Item::Folder(_)
        )
    });
    clean & undo_all(&run, &items)
}

fn undo_all(run: &str, items: &[Item]) -> bool {
    let mut clean = run.is_empty() || end_processes(run);
    for item in items.iter().rev() {
        let undone = (0..ATTEMPTS).any(|attempt| {
            if attempt > 0 {
                std::thread::sleep(POLL * 10);
            }
            undo(item)
        });
        if !undone {
            complain(&format!("can't undo {item:?}"));
        }
        clean &= undone;
    }
    clean
}

fn complain(what: &str) {
    use std::io::Write;
    // The terminal may be gone with the tool.
    let _ = writeln!(std::io::stderr(), "trestle-chaos: {what}");
}

fn end_processes(run: &str) -> bool {
    let deadline = Instant::now() + KILL_TIMEOUT;
    // Again and again: a process may be starting another.
    while Instant::now() < deadline {
        mark::kill(run);
        if mark::find(run).is_empty() {
            return true;
        }
        std::thread::sleep(POLL);
    }
    complain(&format!("processes that do not end: {:?}", mark::find(run)));
    false
}

fn undo(item: &Item) -> bool {
    match item {
        Item::Namespace(name) => {
            !Path::new("/run/netns").join(name).exists() || run("ip", &["netns", "del", name])
        }
        Item::Link(name) => {
            !Path::new("/sys/class/net").join(name).exists() || run("ip", &["link", "del", name])
        }
        Item::Mount(path) => !is_mounted(path) || run("umount", &["-l", &path.to_string_lossy()]),
        Item::Cgroup(path) => !path.exists() || remove_cgroup(path),
        Item::Folder(path) => !path.exists() || std::fs::remove_dir_all(path).is_ok(),
        Item::Compose(folder) => run(&folder.join("docker/up").to_string_lossy(), &["down"]),
        Item::Lent(id) => {
            // Either may be refused since it is so already; what counts is the state afterwards.
            let _ = run("docker", &["unpause", id]);
            run("docker", &["start", id])
        }
        Item::Restarts { container, policy } => run("docker", &["update", "--restart", policy, container]),
        Item::Attached { container, network, address } => {
            let _ = run("docker", &["network", "connect", "--ip", address, network, container]);
            attached(container, network)
        }
    }
}

fn attached(container: &str, network: &str) -> bool {
    let format = "{{range .NetworkSettings.Networks}}{{println .NetworkID}}{{end}}";
    let output = Command::new("docker").args(["inspect", "--format", format, container]).output();
    output.is_ok_and(|o| String::from_utf8_lossy(&o.stdout).lines().any(|id| id == network))
}

fn is_mounted(path: &Path) -> bool {
    let table = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    table.lines().any(|line| line.split(' ').nth(1) == path.to_str())
}

fn remove_cgroup(path: &Path) -> bool {
    let members = std::fs::read_to_string(path.join("cgroup.procs")).unwrap_or_default();
    if let Some(parent) = path.parent() {
        for pid in members.lines() {
            // One that ended meanwhile needs no move.
            let _ = std::fs::write(parent.join("cgroup.procs"), pid);
        }
    }
    std::fs::remove_dir(path).is_ok()
}

fn run(program: &str, args: &[&str]) -> bool {
    let mut command = Command::new(program);
    command.args(args).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let Ok(mut child) = command.spawn() else { return false };
    let deadline = Instant::now() + PROGRAM_TIMEOUT;
    loop {
        match child.try_wait() {
            Ok(Some(status)) => return status.success(),
            Ok(None) if Instant::now() < deadline => std::thread::sleep(POLL),
            _ => {
                let _ = child.kill();
                let _ = child.wait();
                return false;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_added_and_not_forgotten_is_undone() {
        let folder = tempfile::tempdir().unwrap();
        let (gone, kept) = (folder.path().join("gone"), folder.path().join("kept"));
        std::fs::create_dir(&gone).unwrap();
        std::fs::create_dir(&kept).unwrap();
        let orders = [
            Order::Add(Item::Folder(gone.clone())),
            Order::Add(Item::Folder(kept.clone())),
            Order::Forget(Item::Folder(kept.clone())),
        ];
        let mut text: String = orders.iter().map(|o| serde_json::to_string(o).unwrap() + "\n").collect();
        text.push_str("{\"add\":{\"fol");
        assert!(reap(text.as_bytes()));
        assert!(!gone.exists() && kept.exists());
    }

    #[test]
    fn what_can_not_be_undone_is_a_failure() {
        let file = tempfile::NamedTempFile::new().unwrap();
        // A file is no folder: it can't be removed as one.
        let order = Order::Add(Item::Folder(file.path().to_owned()));
        assert!(!reap(serde_json::to_string(&order).unwrap().as_bytes()));
    }
}
