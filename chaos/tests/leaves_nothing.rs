//! Environments go as they came, however the tool ends; and each fault proves itself.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rand::SeedableRng;
use rand::rngs::StdRng;
use trestle_chaos::cleanup::{Ledger, mark};
use trestle_chaos::env::{self, Env, Kind, Layout, Part, Programs, SETTLE, netns_requirements, settled};
use trestle_chaos::faults::{self, Fault, Target, Tools};

fn programs() -> Programs {
    let chaos = PathBuf::from(env!("CARGO_BIN_EXE_trestle-chaos"));
    let trestle = match std::env::var_os("TRESTLE_BIN") {
        Some(path) => path.into(),
        None => build(&chaos),
    };
    Programs { trestle, chaos }
}

/// The workspace's own, in the profile in which the tests run.
fn build(beside: &Path) -> PathBuf {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.args(["build", "--quiet", "--package", "trestle", "--bin", "trestle"]);
    cargo.current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."));
    if beside.parent().is_some_and(|p| p.ends_with("release")) {
        cargo.arg("--release");
    }
    assert!(cargo.status().expect("cargo starts").success(), "the trestle binary can't be built");
    beside.with_file_name("trestle")
}

/// Skipped with a line where something is missing, and never in CI.
fn have(kind: Kind) -> bool {
    let missing = match kind {
        Kind::Netns => netns_requirements().err(),
        _ => None,
    };
    let Some(why) = missing else { return true };
    assert!(
        std::env::var_os("TRESTLE_CI").is_none_or(|v| v != "1"),
        "under TRESTLE_CI=1 nothing is skipped: {why:#}"
    );
    eprintln!("skipped: {why:#}");
    false
}

/// Whatever there is of a run: processes, namespaces, mounts, folders, cgroups.
fn traces(run: &str) -> Vec<String> {
    let mut found: Vec<_> = mark::find(run).iter().map(|m| format!("{m:?}")).collect();
    for folder in ["/run/netns", "/tmp", "/sys/fs/cgroup/blkio", "/sys/fs/cgroup"] {
        let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
        let names = entries.map(|e| e.path().display().to_string());
        found.extend(names.filter(|n| n.contains(run)));
    }
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    found.extend(mounts.lines().filter(|l| l.contains(run)).map(str::to_owned));
    found
}

fn name(test: &str) -> String {
    format!("{}-{:04x}-{test}", std::process::id(), rand::random::<u16>())
}

fn tools() -> Tools {
    Tools { programs: programs(), random: StdRng::seed_from_u64(7), number: 0, moved_from: None }
}

/// Does a fault, heals it, and wants every proof to hold and the cluster to be whole.
fn prove(env: &mut dyn Env, tools: &mut Tools, fault: Fault) {
    let active = faults::inject(fault, env, tools).unwrap_or_else(|e| panic!("{fault:?}: {e:#}"));
    let hit = active.nodes.clone();
    std::thread::sleep(Duration::from_millis(500));
    let proofs = faults::heal(active, env, tools).unwrap_or_else(|e| panic!("{fault:?}: {e:#}"));
    assert!(!proofs.is_empty(), "{fault:?} proves nothing");
    for proof in &proofs {
        assert!(proof.holds, "{fault:?}: {proof:?}");
    }
    settled(env.map(), SETTLE).unwrap_or_else(|e| {
        let logs: Vec<_> = hit.iter().map(|n| env.log_tail(*n)).collect();
        panic!("after {fault:?}: {e:#}\n{}", logs.join("\n--\n"))
    });
}

#[test]
fn processes_prove_their_faults_and_leave_nothing() {
    let (programs, run) = (programs(), name("p"));
    let ledger = Ledger::open(&programs.chaos, &run).expect("the reaper starts");
    let layout = Layout { small_disks: netns_requirements().is_ok().then_some(48), ..Layout::default() };
    let mut env = env::build(Kind::Process, &layout, &programs, &ledger).expect("a cluster on loopback");
    assert!(!traces(&run).is_empty());
    let mut tools = tools();
    for fault in [
        Fault::Kill(Target::Leader, Part::Node),
        Fault::Freeze(Target::Random, Part::Node),
        Fault::Stop(Target::Follower),
        Fault::BackendDeath,
        Fault::BrownOut,
        Fault::RollingRestart,
        Fault::JoinLeave,
    ] {
        prove(env.as_mut(), &mut tools, fault);
    }
    if layout.small_disks.is_some() {
        prove(env.as_mut(), &mut tools, Fault::DiskFull(Target::Follower));
    }
    drop(env);
    ledger.close().expect("all is undone");
    assert_eq!(traces(&run), Vec::<String>::new());
}

#[test]
fn namespaces_prove_their_faults_and_leave_nothing() {
    if !have(Kind::Netns) {
        return;
    }
    let (programs, run) = (programs(), name("n"));
    let ledger = Ledger::open(&programs.chaos, &run).expect("the reaper starts");
    let mut env =
        env::build(Kind::Netns, &Layout::default(), &programs, &ledger).expect("a cluster in namespaces");
    let mut tools = tools();
    for fault in [
        Fault::Isolate(Target::Leader),
        Fault::Halves,
        Fault::Bridge,
        Fault::OneWay(Target::Follower),
        Fault::CutFromNodes(Target::Random),
        Fault::CablePull(Target::Random),
        Fault::Loss { per_mille: 300 },
        Fault::Delay { target: Target::Follower, by: Duration::from_millis(20) },
        Fault::Kill(Target::Random, Part::Node),
    ] {
        prove(env.as_mut(), &mut tools, fault);
    }
    // Where cgroups can't bound writes, or the folder is on no disk, there is no slow disk to be had.
    match faults::inject(Fault::SlowDisk(Target::Follower), env.as_mut(), &mut tools) {
        Ok(active) => {
            let proofs = faults::heal(active, env.as_mut(), &mut tools).expect("it is healed");
            assert!(proofs.iter().all(|p| p.holds), "{proofs:?}");
        }
        Err(e) => eprintln!("skipped: a slow disk: {e:#}"),
    }
    // A disk that is not the node's own is never filled.
    assert!(faults::inject(Fault::DiskFull(Target::Random), env.as_mut(), &mut tools).is_err());
    drop(env);
    ledger.close().expect("all is undone");
    assert_eq!(traces(&run), Vec::<String>::new());
}

/// Kills the tool on drop, should the test fail before it does.
struct Tool(Child);

impl Drop for Tool {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn wait(within: Duration, what: &str, mut check: impl FnMut() -> bool) {
    let deadline = Instant::now() + within;
    while !check() {
        assert!(Instant::now() < deadline, "not within {within:?}: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn start(kind: &str, programs: &Programs) -> Tool {
    let mut command = Command::new(&programs.chaos);
    command.args(["run", "freeze", "--env", kind, "--for", "60s", "--trestle"]).arg(&programs.trestle);
    Tool(command.stdin(Stdio::null()).stdout(Stdio::null()).spawn().expect("the tool starts"))
}

/// Runs are named after the tool's process id.
fn of_tool(tool: &Tool) -> String {
    format!("{}-", tool.0.id())
}

fn all_of(tool: &str) -> Vec<String> {
    let mut found: Vec<_> = std::fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|e| std::fs::read(e.path().join("environ")).ok())
        .flat_map(|e| {
            e.split(|b| *b == 0).map(|v| String::from_utf8_lossy(v).into_owned()).collect::<Vec<_>>()
        })
        .filter(|v| {
            v.strip_prefix(mark::RUN)
                .is_some_and(|v| v.strip_prefix('=').is_some_and(|v| v.starts_with(tool)))
        })
        .collect();
    found.extend(traces(&format!("trestle-chaos-{tool}")));
    found
}

fn crash(kind: &str) {
    let programs = programs();
    for when in ["while it is made", "when it runs"] {
        let mut tool = start(kind, &programs);
        let tag = of_tool(&tool);
        let nodes = if when == "when it runs" { 7 } else { 3 };
        wait(SETTLE, "processes run", || {
            assert!(tool.0.try_wait().expect("its state").is_none(), "the tool ended by itself");
            all_of(&tag).iter().filter(|l| l.starts_with(mark::RUN)).count() >= nodes
        });
        tool.0.kill().expect("SIGKILL");
        tool.0.wait().expect("its end");
        wait(Duration::from_secs(30), "nothing is left", || all_of(&tag).is_empty());
    }
}

#[test]
fn a_killed_tool_leaves_no_processes() {
    crash("process");
}

#[test]
fn a_killed_tool_leaves_no_namespaces() {
    if have(Kind::Netns) {
        crash("netns");
    }
}

#[test]
fn ctrl_c_ends_a_run_in_order_with_a_failure() {
    let programs = programs();
    let mut tool = start("process", &programs);
    let tag = of_tool(&tool);
    wait(SETTLE, "processes run", || all_of(&tag).len() >= 7);
    let pid = rustix::process::Pid::from_child(&tool.0);
    rustix::process::kill_process(pid, rustix::process::Signal::INT).expect("SIGINT");
    wait(Duration::from_secs(60), "the tool ends", || tool.0.try_wait().expect("its state").is_some());
    assert_eq!(tool.0.wait().expect("its end").code(), Some(1), "an interrupted run is no pass");
    assert_eq!(all_of(&tag), Vec::<String>::new());
}
