//! A full disk, and a slow one.
//!
//! Full: the data folder is a small tmpfs of its own, and a file fills it. Slow: the node's process
//! is put into a cgroup whose writes are bounded (io.max of version 2, or blkio.throttle of version
//! 1, which holds for what a process waits for in fsync).

use std::fs::File;
use std::io::{ErrorKind, Write};
use std::os::linux::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};

use super::{Active, Fault, Proof, Target, Tools, names, new_proof};
use crate::cleanup::Item;
use crate::env::{Env, Part, ProcessState};
use crate::place::succeed;

/// Of a full disk; larger ones are not meant to be filled.
const SIZE_MAX: u64 = 256 << 20;

/// Writes a second: one fsync of the store is a few.
const WRITES_A_SECOND: u32 = 12;

/// How much slower the proof wants it, and at least.
const SLOWER: u32 = 5;
const SLOW_MIN: Duration = Duration::from_millis(50);

const FILLER: &str = "chaos-filler";

pub(super) enum Remedy {
    Empty { node: usize },
    Fast { node: usize, cgroup: PathBuf, device: String },
}

pub(super) fn fill(
    env: &mut dyn Env,
    tools: &mut Tools,
    fault: Fault,
    target: Target,
) -> anyhow::Result<Active> {
    let node = tools.aim(env.map(), target)?[0];
    let folder = env.data(node).context("no data folder within reach")?;
    let mounts = std::fs::read_to_string("/proc/self/mounts")?;
    let own = mounts.lines().any(|l| l.split(' ').nth(1) == folder.to_str());
    ensure!(own, "{} is no file system of its own: it must not be filled", folder.display());
    let written = fill_up(&folder.join(FILLER))?;
    let refused = std::fs::write(folder.join("chaos-probe"), [0; 4096]);
    let _ = std::fs::remove_file(folder.join("chaos-probe"));
    let full = refused.as_ref().is_err_and(|e| e.kind() == ErrorKind::StorageFull);
    let claim = format!("the disk of {} is full", env.map().nodes[node].name);
    let proof = new_proof(claim, format!("{written} bytes, then {refused:?}"), full);
    Ok(Active {
        fault,
        victims: names(env.map(), &[node]),
        nodes: vec![node],
        proofs: vec![proof],
        remedy: super::Remedy::Disk(Remedy::Empty { node }),
    })
}

/// Writes until there is no room, to the last byte.
fn fill_up(path: &Path) -> anyhow::Result<u64> {
    let mut file = File::create(path)?;
    let (mut written, mut piece) = (0, vec![0; 1 << 20]);
    while written < SIZE_MAX {
        match file.write(&piece) {
            Ok(n) => written += n as u64,
            Err(e) if e.kind() == ErrorKind::StorageFull && piece.len() > 1 => {
                piece.truncate(piece.len() / 2);
            }
            Err(e) if e.kind() == ErrorKind::StorageFull => return Ok(written),
            Err(e) => return Err(e.into()),
        }
    }
    bail!("{} bytes were written and the disk is not full", written)
}

pub(super) fn slow(
    env: &mut dyn Env,
    tools: &mut Tools,
    fault: Fault,
    target: Target,
) -> anyhow::Result<Active> {
    let node = tools.aim(env.map(), target)?[0];
    let folder = env.data(node).context("no data folder within reach")?;
    let pid = env.pid(node).context("the node does not run here")?;
    let device = device(&folder)?;
    let name = format!("trestle-chaos-{}-{}", env.ledger().run(), tools.name("slow"));
    let cgroup = controller()?.join(name);
    env.ledger().add(Item::Cgroup(cgroup.clone()))?;
    std::fs::create_dir(&cgroup).with_context(|| format!("{}", cgroup.display()))?;
    limit(&cgroup, &device, WRITES_A_SECOND)?;
    let before = best_sync_time(&folder)?;
    std::fs::write(cgroup.join("cgroup.procs"), pid.to_string())?;
    let after = sync_time(&folder, Some(&cgroup))?;
    let members = std::fs::read_to_string(cgroup.join("cgroup.procs"))?;
    let name = env.map().nodes[node].name.clone();
    let proofs = vec![
        new_proof(
            format!("a write and fsync beside {name} is slow"),
            format!("{before:?} before, {after:?} now"),
            after > before * SLOWER && after > SLOW_MIN,
        ),
        new_proof(
            format!("{name} is in the slow group"),
            members.replace('\n', " "),
            members.lines().any(|l| l == pid.to_string()),
        ),
    ];
    Ok(Active {
        fault,
        victims: vec![name],
        nodes: vec![node],
        proofs,
        remedy: super::Remedy::Disk(Remedy::Fast { node, cgroup, device }),
    })
}

/// Where cgroups that bound writes can be made.
fn controller() -> anyhow::Result<PathBuf> {
    let v1 = PathBuf::from("/sys/fs/cgroup/blkio");
    let v2 = PathBuf::from("/sys/fs/cgroup");
    let subtree = std::fs::read_to_string(v2.join("cgroup.subtree_control")).unwrap_or_default();
    if v1.join("cgroup.procs").exists() {
        Ok(v1)
    } else if subtree.split_whitespace().any(|c| c == "io") {
        Ok(v2)
    } else {
        bail!("no cgroup controller here bounds writes")
    }
}

fn limit(cgroup: &Path, device: &str, writes: u32) -> anyhow::Result<()> {
    let (v1, v2) = (cgroup.join("blkio.throttle.write_iops_device"), cgroup.join("io.max"));
    if v1.exists() {
        std::fs::write(v1, format!("{device} {writes}"))?;
    } else if writes == 0 {
        std::fs::write(v2, format!("{device} wiops=max"))?;
    } else {
        std::fs::write(v2, format!("{device} wiops={writes}"))?;
    }
    Ok(())
}

/// The whole disk below a folder, `MAJOR:MINOR`.
fn device(folder: &Path) -> anyhow::Result<String> {
    let device = std::fs::metadata(folder)?.st_dev();
    let id = format!("{}:{}", rustix::fs::major(device), rustix::fs::minor(device));
    let sys = PathBuf::from(format!("/sys/dev/block/{id}"));
    ensure!(sys.exists(), "{} is on no block device", folder.display());
    if !sys.join("partition").exists() {
        return Ok(id);
    }
    // A partition can't be bounded, its disk can.
    let disk = std::fs::canonicalize(&sys)?;
    let disk = disk.parent().context("a partition without a disk")?.join("dev");
    Ok(std::fs::read_to_string(disk)?.trim().to_owned())
}

/// The quickest of a few small writes: others may write at the same time.
fn best_sync_time(folder: &Path) -> anyhow::Result<Duration> {
    let mut best = sync_time(folder, None)?;
    for _ in 0..2 {
        best = best.min(sync_time(folder, None)?);
    }
    Ok(best)
}

/// How long a small write takes to be on disk, for a process in `cgroup`.
fn sync_time(folder: &Path, cgroup: Option<&Path>) -> anyhow::Result<Duration> {
    let probe = folder.join("chaos-probe");
    let enter = cgroup.map_or(String::new(), |c| format!("echo $$ > {}/cgroup.procs && ", c.display()));
    let write =
        format!("{enter}exec dd if=/dev/zero of={} bs=8k count=1 conv=fsync status=none", probe.display());
    let began = Instant::now();
    let result = succeed(Command::new("sh").arg("-c").arg(&write));
    let took = began.elapsed();
    let _ = std::fs::remove_file(&probe);
    result.map(|_| took)
}

pub(super) fn heal(env: &mut dyn Env, remedy: Remedy) -> anyhow::Result<Vec<Proof>> {
    match remedy {
        Remedy::Empty { node } => {
            let folder = env.data(node).context("no data folder within reach")?;
            let room = std::fs::write(folder.join("chaos-probe"), [0; 4096]);
            let _ = std::fs::remove_file(folder.join("chaos-probe"));
            let full = room.is_err_and(|e| e.kind() == ErrorKind::StorageFull);
            std::fs::remove_file(folder.join(FILLER))?;
            // A node that met it has left Raft: as an operator would, mend the disk and restart.
            if env.state(node, Part::Node) == ProcessState::Runs {
                env.kill(&[(node, Part::Node)])?;
            }
            env.start(node)?;
            let name = &env.map().nodes[node].name;
            Ok(vec![new_proof(format!("the disk of {name} was full to the end"), format!("{full}"), full)])
        }
        Remedy::Fast { node, cgroup, device } => {
            limit(&cgroup, &device, 0)?;
            if let (Some(pid), Some(parent)) = (env.pid(node), cgroup.parent()) {
                std::fs::write(parent.join("cgroup.procs"), pid.to_string())?;
            }
            Ok(Vec::new())
        }
    }
}
