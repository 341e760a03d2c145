//! One `trestle run` process.

use std::fs::File;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::Duration;

use anyhow::{Context, ensure};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::wait::until_known;
use crate::{eventually, http, trestle};

/// A node and its data folder. Killed on drop.
pub struct Node {
    pub name: String,
    pub dir: PathBuf,
    args: Vec<String>,
    env: Vec<(&'static str, &'static str)>,
    program: PathBuf,
    child: Option<Child>,
}

impl Node {
    /// Starts `trestle run` in `dir` with `args` (name, data folder and ports are added).
    pub fn start(name: &str, dir: &Path, args: &[&str]) -> Self {
        Self::start_with_env(name, dir, args, &[])
    }

    /// The same, with these variables.
    pub fn start_with_env(
        name: &str,
        dir: &Path,
        args: &[&str],
        env: &[(&'static str, &'static str)],
    ) -> Self {
        let mut node = Self::new(name, dir, args);
        node.env = env.to_vec();
        node.spawn();
        node
    }

    /// The same by a copy of the program, which the test may replace.
    pub fn start_copy(name: &str, dir: &Path, args: &[&str]) -> Self {
        let mut node = Self::new(name, dir, args);
        std::fs::create_dir_all(dir).expect("the test's folder is writable");
        node.program = dir.join("trestle");
        std::fs::copy(trestle(), &node.program).expect("the program can be copied");
        node.spawn();
        node
    }

    fn new(name: &str, dir: &Path, args: &[&str]) -> Self {
        Self {
            name: name.to_owned(),
            dir: dir.to_owned(),
            args: args.iter().map(|&a| a.to_owned()).collect(),
            env: Vec::new(),
            program: trestle().clone(),
            child: None,
        }
    }

    /// What it runs.
    pub fn program(&self) -> &Path {
        &self.program
    }

    fn spawn(&mut self) {
        std::fs::create_dir_all(&self.dir).expect("the test's folder is writable");
        let log =
            File::options().create(true).append(true).open(self.log_path()).expect("the log can be written");
        let data_dir = self.data_dir();
        let defaults = [
            ("--name", self.name.as_str()),
            ("--cluster", "127.0.0.1:0"),
            ("--admin", "127.0.0.1:0"),
            ("--workers", "1"),
            ("--data-dir", data_dir.to_str().expect("the test's folder has a plain name")),
        ];
        let unless_given = defaults.iter().filter(|(flag, _)| !self.args.iter().any(|a| a == flag));
        let child = Command::new(&self.program)
            .arg("run")
            .args(unless_given.flat_map(|(flag, value)| [*flag, *value]))
            .args(&self.args)
            .envs(self.env.iter().copied())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("the binary starts");
        self.child = Some(child);
    }

    pub fn data_dir(&self) -> PathBuf {
        self.dir.join(&self.name)
    }

    pub fn log_path(&self) -> PathBuf {
        self.dir.join(format!("{}.log", self.name))
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.log_path()).unwrap_or_default()
    }

    pub fn pid(&self) -> u32 {
        self.child.as_ref().map(Child::id).expect("the node runs")
    }

    /// Address under `name` ("cluster", "admin") that the node chose for itself.
    pub fn port(&self, name: &str) -> anyhow::Result<SocketAddr> {
        let path = self.data_dir().join("ports.json");
        let text = std::fs::read_to_string(&path)
            .with_context(|| format!("{}; log:\n{}", path.display(), self.log()))?;
        let ports: Value = serde_json::from_str(&text)?;
        let port = &ports[name];
        match port.as_u64() {
            Some(port) => Ok(SocketAddr::from(([127, 0, 0, 1], u16::try_from(port)?))),
            None => Ok(port.as_str().with_context(|| format!("{name} in {text}"))?.parse()?),
        }
    }

    pub fn admin(&self) -> anyhow::Result<SocketAddr> {
        self.port("admin")
    }

    /// `trestle ARGS --admin THIS`.
    pub fn cli(&self, args: &[&str]) -> anyhow::Result<Output> {
        let admin = format!("http://{}", self.admin()?);
        Ok(Command::new(trestle()).args(args).args(["--admin", &admin]).stdin(Stdio::null()).output()?)
    }

    /// Like [`Node::cli`] with `-o json`, which must succeed.
    pub fn json(&self, args: &[&str]) -> anyhow::Result<Value> {
        let output = self.cli(&[args, &["-o", "json"]].concat())?;
        ensure!(output.status.success(), "trestle {args:?}: {}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stdout)
            .with_context(|| format!("trestle {args:?} said {:?}", String::from_utf8_lossy(&output.stdout)))
    }

    /// `GET /v1/status`, without a process.
    pub fn status(&self) -> anyhow::Result<Value> {
        let response = crate::http::get(self.admin()?, "localhost", "/v1/status")?;
        ensure!(response.status == 200, "status {}: {}", response.status, response.text());
        Ok(serde_json::from_slice(&response.body)?)
    }

    /// Where `listener` accepts on this node.
    pub fn listener(&self, listener: &str) -> anyhow::Result<SocketAddr> {
        let status = self.status()?;
        let listeners = status["listeners"].as_array().context("no listeners in the status")?;
        let found = listeners.iter().find(|l| l["listener"] == listener);
        let found = found.with_context(|| format!("no listener {listener} in {listeners:?}"))?;
        Ok(found["address"].as_str().with_context(|| format!("not bound: {found}"))?.parse()?)
    }

    /// Writes `config` to a file and applies it.
    pub fn apply(&self, config: &str) -> anyhow::Result<Value> {
        let file = self.dir.join(format!("apply-{}.yaml", self.name));
        std::fs::write(&file, config)?;
        until_known(|| self.json(&["apply", "-f", file.to_str().context("path")?]))
    }

    /// What the heaviest client uses of its first limit, by `trestle clients`; 0: of none.
    pub fn used_of_limit(&self) -> anyhow::Result<u64> {
        let listed = self.json(&["clients"])?;
        Ok(listed["clients"][0]["limits"][0]["used"].as_u64().unwrap_or(0))
    }

    /// What it tells Prometheus.
    pub fn metrics(&self) -> anyhow::Result<String> {
        Ok(http::get(self.admin()?, "localhost", "/metrics")?.text())
    }

    pub fn wait_ready(&self) {
        eventually(Duration::from_secs(20), &format!("{} is ready", self.name), || {
            let response = crate::http::get(self.admin()?, "localhost", "/readyz")?;
            ensure!(
                response.status == 200,
                "readyz: {} {}; log:\n{}",
                response.status,
                response.text(),
                self.log()
            );
            Ok(())
        });
    }

    pub fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(i32::try_from(self.pid()).expect("a pid fits")).expect("a pid is not 0");
        kill_process(pid, signal).expect("the node runs");
    }

    /// SIGKILL, and waits until it is gone.
    pub fn kill9(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// SIGTERM, and waits for the end.
    pub fn stop(&mut self) -> ExitStatus {
        self.signal(Signal::TERM);
        self.wait_exit(Duration::from_secs(40))
    }

    /// The status with which the node ends by itself.
    pub fn wait_exit(&mut self, within: Duration) -> ExitStatus {
        let mut child = self.child.take().expect("the node runs");
        let name = self.name.clone();
        eventually(within, &format!("{name} ends"), || child.try_wait()?.context("it runs"))
    }

    /// Starts it again in the same folder with other arguments.
    pub fn restart_with(&mut self, args: &[&str]) {
        assert!(self.child.is_none(), "stop or kill {} first", self.name);
        self.args = args.iter().map(|&a| a.to_owned()).collect();
        self.spawn();
    }

    /// Starts it again in the same folder; only the key is named.
    pub fn restart(&mut self) {
        let key = self.args.iter().position(|a| a == "--key-file").map(|i| self.args[i + 1].clone());
        match key {
            Some(key) => self.restart_with(&["--key-file", &key]),
            None => self.restart_with(&[]),
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = self.log();
            let tail: Vec<_> = log.lines().rev().take(40).collect();
            eprintln!("--- end of the log of {} ---", self.name);
            for line in tail.iter().rev() {
                eprintln!("{line}");
            }
        }
        self.kill9();
    }
}
