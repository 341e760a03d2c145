//! The run's side of a generator: starts it, ends it, and takes over what it saw.

use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, bail};

use super::{Ask, COMMAND, Line};
use crate::trace::{Blunder, Load, LoadKind, Recorder};

/// Until a generator runs.
const START_TIMEOUT: Duration = Duration::from_secs(10);
/// Beyond its patience, until it has told what it saw.
const END_TIMEOUT: Duration = Duration::from_secs(15);
/// Of all lines together.
const OUTPUT_MAX: u64 = 64 << 20;

/// What a generator is to do.
#[derive(Clone, Debug)]
pub struct Spec {
    pub name: String,
    pub kind: LoadKind,
    pub target: SocketAddr,
    /// The node whose own address the target is.
    pub node: Option<String>,
    /// Requests a second.
    pub rate: u32,
    pub time: Duration,
    pub connections: usize,
    pub patience: Duration,
    /// Of long streams. Shorter than a drain's deadline: then no planned stop may cut one.
    pub life: Duration,
    pub asks: Vec<Ask>,
}

impl Spec {
    /// A new connection every 5 ms: what outages are measured by.
    #[must_use]
    pub fn probe(name: &str, target: SocketAddr, time: Duration, asks: Vec<Ask>) -> Self {
        Self {
            name: name.to_owned(),
            kind: LoadKind::Probe,
            target,
            node: None,
            rate: 200,
            time,
            connections: 1,
            patience: Duration::from_secs(3),
            life: Duration::from_secs(3),
            asks,
        }
    }

    /// What makes `trestle-chaos` this generator.
    #[must_use]
    pub fn arguments(&self) -> Vec<String> {
        let ms = |time: Duration| time.as_millis().to_string();
        let kind = match self.kind {
            LoadKind::Probe => "probe",
            LoadKind::Http => "http",
            LoadKind::Stream => "stream",
            LoadKind::Tcp => "tcp",
            LoadKind::Udp => "udp",
        };
        let mut arguments = vec![COMMAND.to_owned()];
        for (name, value) in [
            ("--name", self.name.clone()),
            ("--kind", kind.to_owned()),
            ("--target", self.target.to_string()),
            ("--rate", self.rate.to_string()),
            ("--for", ms(self.time)),
            ("--connections", self.connections.to_string()),
            ("--patience", ms(self.patience)),
            ("--life", ms(self.life)),
        ] {
            arguments.extend([name.to_owned(), value]);
        }
        for ask in &self.asks {
            arguments.extend(["--ask".to_owned(), ask.to_string()]);
        }
        arguments
    }
}

/// A generator that runs. Dropped, it is killed.
#[derive(Debug)]
pub struct Driver {
    spec: Spec,
    child: Child,
    lines: Receiver<anyhow::Result<Line>>,
    reader: Option<JoinHandle<()>>,
}

impl Driver {
    /// Starts it; `command` is `trestle-chaos`, in the client's network, without arguments.
    ///
    /// # Errors
    /// It can't be started or does not run.
    pub fn start(mut command: Command, spec: Spec) -> anyhow::Result<Self> {
        let mut child = command
            .args(spec.arguments())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("can't start {command:?}"))?;
        let stdout = child.stdout.take().context("a child without its output")?;
        let (send, lines) = sync_channel(4);
        let reader = std::thread::Builder::new().name(format!("load {}", spec.name)).spawn(move || {
            for line in BufReader::new(stdout.take(OUTPUT_MAX)).lines() {
                let parsed = line.context("read").and_then(|l| serde_json::from_str(&l).context("a line"));
                if send.send(parsed).is_err() {
                    return;
                }
            }
        })?;
        let driver = Self { spec, child, lines, reader: Some(reader) };
        match driver.lines.recv_timeout(START_TIMEOUT) {
            Ok(Ok(Line::Ready)) => Ok(driver),
            Ok(Ok(Line::Load(_))) => bail!("{} ended before it began", driver.spec.name),
            Ok(Err(e)) => Err(e.context(format!("load {}", driver.spec.name))),
            Err(RecvTimeoutError::Timeout) => bail!("load {} does not start", driver.spec.name),
            Err(RecvTimeoutError::Disconnected) => bail!("load {} ended at once", driver.spec.name),
        }
    }

    /// Ends it in order, waits, and writes down what it saw; also if that is nothing.
    pub fn finish(mut self, recorder: &Recorder) {
        // Its end is the sign to stop.
        drop(self.child.stdin.take());
        let load = match self.lines.recv_timeout(self.spec.patience + END_TIMEOUT) {
            Ok(Ok(Line::Load(load))) => relative(*load, recorder),
            other => {
                let why = match other {
                    Ok(Ok(_)) => "an odd line".to_owned(),
                    Ok(Err(e)) => format!("{e:#}"),
                    Err(e) => e.to_string(),
                };
                recorder.note(format!("load {} did not tell what it saw: {why}", self.spec.name));
                Load {
                    name: self.spec.name.clone(),
                    kind: self.spec.kind,
                    target: self.spec.target.to_string(),
                    rate: f64::from(self.spec.rate),
                    measures_outage: self.spec.kind == LoadKind::Probe,
                    ..Load::default()
                }
            }
        };
        recorder.load(Load { node: self.spec.node.clone(), ..load });
    }
}

/// Absolute times as the run's.
fn relative(mut load: Load, recorder: &Recorder) -> Load {
    load.until = recorder.since(load.until);
    for second in &mut load.seconds {
        second.at = recorder.since(second.at);
    }
    for gap in &mut load.gaps {
        (gap.from, gap.until) = (recorder.since(gap.from), recorder.since(gap.until));
    }
    for Blunder { at, .. } in load.wrong.iter_mut().chain(&mut load.failures) {
        *at = recorder.since(*at);
    }
    load
}

impl Drop for Driver {
    fn drop(&mut self) {
        // One that has ended is only reaped.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if let Some(reader) = self.reader.take() {
            // It may wait to hand a line over.
            while self.lines.try_recv().is_ok() {}
            let _ = reader.join();
        }
    }
}
