//! Carries frames between two interfaces, late: what netem does, for kernels without it.
//!
//! One thread reads and one writes, each way; between them a queue that is bounded, and drops when
//! it is full, as a link does.

mod packet;

use std::sync::mpsc::{SyncSender, sync_channel};
use std::time::{Duration, Instant};

use anyhow::Context;

use packet::Port;

/// Name of the hidden command that is the relay.
pub const COMMAND: &str = "relay";

/// What it prints when it carries.
pub const READY: &str = "carries";

/// Frames on their way, one direction.
const QUEUE: usize = 4_096;

#[derive(Debug, clap::Args)]
pub struct Args {
    #[arg(long)]
    pub left: String,
    #[arg(long)]
    pub right: String,
    #[arg(long)]
    pub delay_us: u64,
}

/// Carries frames until an interface goes.
///
/// # Errors
/// An interface that does not exist, or no right to read it.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let open = |name: &str| Port::open(name).with_context(|| format!("interface {name}"));
    let delay = Duration::from_micros(args.delay_us);
    let ways = [(open(&args.left)?, open(&args.right)?), (open(&args.right)?, open(&args.left)?)];
    println!("{READY}");
    let (ended, end) = sync_channel(ways.len());
    for (from, to) in ways {
        let ended = ended.clone();
        std::thread::Builder::new().name("carry".into()).spawn(move || {
            let _ = ended.send(carry(&from, to, delay));
        })?;
    }
    // The first way that ends takes the process with it: half a link is none.
    end.recv().context("both ways ended")?
}

fn carry(from: &Port, to: Port, delay: Duration) -> anyhow::Result<()> {
    let (send, receive) = sync_channel::<(Instant, Vec<u8>)>(QUEUE);
    let writer = std::thread::Builder::new().name("write".into()).spawn(move || {
        for (due, frame) in receive {
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
            // A frame that can't be sent is lost, as on any link.
            let _ = to.send(&frame);
        }
    })?;
    let result = read(from, &send, delay);
    drop(send);
    let _ = writer.join();
    result
}

fn read(from: &Port, send: &SyncSender<(Instant, Vec<u8>)>, delay: Duration) -> anyhow::Result<()> {
    let mut buffer = vec![0; packet::FRAME_MAX];
    loop {
        let length = match from.receive(&mut buffer) {
            Ok(length) => length,
            // The interface was taken away: that is how a relay ends.
            Err(e) if e.kind() == std::io::ErrorKind::NetworkDown => return Ok(()),
            Err(e) => return Err(e).context("read a frame"),
        };
        let _ = send.try_send((Instant::now() + delay, buffer[..length].to_vec()));
    }
}
