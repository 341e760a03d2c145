use std::sync::mpsc::{SyncSender, sync_channel};

use tokio::time::timeout;

use super::*;
use crate::beat::BEATS;
use crate::testing::{Backend, Client, PATIENCE, Proxy, config, until};

/// Longer than a worker that turns needs to answer, and it may pass in vain.
const SHORT: Duration = Duration::from_millis(200);

/// Stops a worker; it goes on when something is sent to what is returned.
async fn hang(proxy: &Proxy, worker: usize) -> SyncSender<()> {
    let (release, until) = sync_channel(0);
    let (begun, has_begun) = oneshot::channel();
    proxy.plane.inner.commands[worker].send(Command::Hang { begun, until }).await.expect("a worker");
    timeout(PATIENCE, has_begun).await.expect("in time").expect("it hangs");
    release
}

/// Waits until only this is missing of the answers.
async fn silent(beat: &mut Beat, what: &str) {
    let wait = async { while timeout(SHORT, &mut *beat).await.is_err() && beat.silent() != what {} };
    timeout(PATIENCE, wait).await.expect("the others answer");
    assert_eq!(beat.silent(), what);
}

async fn answered(proxy: &Proxy) -> Result<(), String> {
    timeout(PATIENCE, proxy.plane.beat()).await.expect("an answer")
}

#[tokio::test]
async fn a_beat_passes_through_every_worker_and_waits_for_no_install() {
    let backend = Backend::named("app").await;
    let (proxy, _) = Proxy::serving(config(&[backend.address])).await;
    let installing = proxy.plane.inner.book.lock().await;
    assert_eq!(answered(&proxy).await, Ok(()));
    drop(installing);
    for worker in 0..2 {
        let line = format!("trestle_worker_beat_seconds_count{{worker=\"{worker}\"}}");
        assert_eq!(proxy.metric(&line), Some(1.0));
    }
    let mut asked = proxy.plane.beat();
    // It does not look before it is awaited.
    assert_eq!(asked.silent(), "worker 0 does not answer, worker 1 does not answer");
    assert_eq!(timeout(PATIENCE, &mut asked).await.expect("an answer"), Ok(()));
    assert_eq!(asked.silent(), "");
}

#[tokio::test]
async fn a_worker_that_hangs_is_named_and_holds_up_no_drain_of_addresses() {
    let backend = Backend::named("app").await;
    let (proxy, address) = Proxy::serving(config(&[backend.address])).await;
    let release = hang(&proxy, 1).await;
    let mut asked = Vec::new();
    for _ in 0..BEATS {
        let mut beat = proxy.plane.beat();
        silent(&mut beat, "worker 1 does not answer").await;
        asked.push(beat);
    }
    assert_eq!(answered(&proxy).await, Err("worker 1 takes no more questions".to_owned()));

    let (began, deadline) = (Instant::now(), Duration::from_millis(100));
    assert_eq!(proxy.plane.drain_addresses(&[address.ip()], deadline).await, 0);
    assert!(began.elapsed() < deadline + CUT_WAIT + PATIENCE / 4, "{:?}", began.elapsed());

    release.send(()).expect("it hangs");
    for beat in asked {
        assert_eq!(timeout(PATIENCE, beat).await.expect("an answer"), Ok(()));
    }
    assert_eq!(answered(&proxy).await, Ok(()));
}

#[tokio::test]
async fn workers_that_have_ended_are_named() {
    let proxy = Proxy::new();
    proxy.plane.shutdown();
    assert_eq!(answered(&proxy).await, Err("worker 0 has ended, worker 1 has ended".to_owned()));
}

#[tokio::test]
async fn a_worker_that_ends_with_a_question_before_it_is_named() {
    let proxy = Proxy::new();
    let release = hang(&proxy, 0).await;
    let mut beat = proxy.plane.beat();
    silent(&mut beat, "worker 0 does not answer").await;
    proxy.plane.inner.stop.cancel();
    release.send(()).expect("it hangs");
    // It may still answer with its last turn.
    let outcome = timeout(PATIENCE, beat).await.expect("an answer");
    assert!(outcome.is_ok() || outcome == Err("worker 0 has ended".to_owned()), "{outcome:?}");
    until("the worker has ended", || proxy.plane.inner.beats[0].is_closed()).await;
    assert!(answered(&proxy).await.is_err_and(|error| error.contains("worker 0 has ended")));
}

#[tokio::test]
async fn a_drain_that_is_given_up_leaves_nothing_behind() {
    let backend = Backend::named("app").await;
    let (proxy, address) = Proxy::serving(config(&[backend.address])).await;
    let mut kept = Client::connect(address).await;
    kept.get("/").await;
    let addresses = [address.ip()];
    let leaving = proxy.plane.drain_addresses(&addresses, PATIENCE);
    assert!(timeout(Duration::from_millis(20), leaving).await.is_err(), "a connection is open");
    // Two clients, so that it does not hang on which worker they come to.
    for _ in 0..2 {
        assert_eq!(Client::connect(address).await.get("/").await.header("connection"), None);
    }
    assert_eq!(kept.rest().await, b"", "what was told to go goes");
}
