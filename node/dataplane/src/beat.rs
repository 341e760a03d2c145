//! Whether every worker's loop still turns: a question that passes through all of them.
//!
//! It has its own way into a worker ([`BEATS`] wide), so it neither waits for an install nor takes the
//! place of one. How long an answer may take is for the caller to say.

use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

/// Questions that wait for one worker: of a few who ask at once. A worker that has left so many
/// unanswered is silent.
pub(crate) const BEATS: usize = 4;

/// The question, as a worker gets it.
#[derive(Debug)]
pub(crate) struct Pulse {
    pub(crate) sent: Instant,
    pub(crate) answer: oneshot::Sender<()>,
}

/// A question on its way: answered when every worker has answered. `Err` at once, naming them, if
/// workers have ended or take no more questions. One that hangs never answers: stop waiting after a
/// time (`timeout(d, &mut beat)`), and [`Beat::silent`] names it. Dropping it is fine.
#[derive(Debug)]
#[must_use = "nothing is known before it is awaited"]
pub struct Beat {
    workers: Vec<State>,
}

#[derive(Debug)]
enum State {
    Asked(oneshot::Receiver<()>),
    Answered,
    Busy,
    Ended,
}

impl Beat {
    pub(crate) fn ask<'a>(workers: impl Iterator<Item = &'a mpsc::Sender<Pulse>>) -> Self {
        let sent = Instant::now();
        let ask = |beats: &mpsc::Sender<Pulse>| {
            let (answer, answered) = oneshot::channel();
            match beats.try_send(Pulse { sent, answer }) {
                Ok(()) => State::Asked(answered),
                Err(TrySendError::Full(_)) => State::Busy,
                Err(TrySendError::Closed(_)) => State::Ended,
            }
        };
        Self { workers: workers.map(ask).collect() }
    }

    /// Who has not answered, and what is known of it: `worker 0 has ended, worker 2 does not answer`.
    /// Empty once all have answered.
    pub fn silent(&self) -> String {
        named(&self.workers, |_| true)
    }
}

fn named(workers: &[State], which: impl Fn(&State) -> bool) -> String {
    let words = workers.iter().enumerate().filter(|(_, state)| which(state)).filter_map(|(worker, state)| {
        let what = match state {
            State::Answered => return None,
            State::Asked(_) => "does not answer",
            State::Busy => "takes no more questions",
            State::Ended => "has ended",
        };
        Some(format!("worker {worker} {what}"))
    });
    words.collect::<Vec<_>>().join(", ")
}

impl Future for Beat {
    type Output = Result<(), String>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let workers = &mut self.get_mut().workers;
        let (mut waits, mut failed) = (false, false);
        for state in workers.iter_mut() {
            if let State::Asked(answered) = state {
                match Pin::new(answered).poll(cx) {
                    Poll::Ready(Ok(())) => *state = State::Answered,
                    Poll::Ready(Err(_)) => *state = State::Ended,
                    Poll::Pending => waits = true,
                }
            }
            failed |= is_failed(state);
        }
        if failed {
            return Poll::Ready(Err(named(workers, is_failed)));
        }
        if waits { Poll::Pending } else { Poll::Ready(Ok(())) }
    }
}

fn is_failed(state: &State) -> bool {
    matches!(state, State::Busy | State::Ended)
}
