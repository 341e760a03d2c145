//! A member's standing with the others while it runs: that they find it, and that it hears when it
//! is no longer wanted.

use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use trestle_raft_store::types::{Command, NodeProfile, State};

use super::step::peer;
use crate::Ended;
use crate::raft::{Ask, Local, Member, NO_LEADER, ProposeError, stranger};
use crate::rt::{Instant, sleep, timeout};

/// Between two looks at whether the cluster has the right address of this node.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// For one address to answer.
const GREETING: Duration = Duration::from_secs(2);
/// After an attempt to register it that failed.
const PAUSE: Duration = Duration::from_secs(1);
/// How long a removed voter stays to help the others agree on life without it.
const FAREWELL: Duration = Duration::from_secs(10);

/// Tells the others where this node is: the leader by an entry in the log when its address, name or
/// version differ from what was agreed on, and everybody by a greeting while no leader is heard
/// (a node that came back under another address can be found by nobody else). `ask`, the addresses
/// that it was started with, are greeted too, for when all that it knows is out of date. Ends with
/// `stop`.
pub(crate) async fn introduce(
    local: Arc<Local>,
    member: Arc<Member>,
    ask: Vec<String>,
    stop: CancellationToken,
) {
    let work = async {
        loop {
            sleep(LOOK_EVERY).await;
            if member.leader().is_none() {
                if local.ask_around(&member).await.is_none() {
                    join_all(ask.iter().map(|address| call(&local, &member, address))).await;
                }
            } else if differs(&member.state(), &member, &local.profile) {
                register(&local, &member).await;
            }
        }
    };
    tokio::select! {
        () = work => {}
        () = stop.cancelled() => {}
    }
}

/// Whoever answers is remembered under its id, to be called with proof of it, and now knows us.
async fn call(local: &Local, member: &Member, address: &str) {
    let greeting = async {
        let mut client = stranger(&local.identity, address).await.ok()?;
        let reply = client.hello(local.hello()).await.ok()?.into_inner();
        let ours = reply.cluster_id == member.cluster_id.as_bytes().as_slice() && reply.node_id != member.id;
        ours.then(|| member.peers.said(reply.node_id, address))
    };
    // No answer: the next round asks again.
    let _ = timeout(GREETING, greeting).await;
}

fn differs(state: &State, member: &Member, profile: &NodeProfile) -> bool {
    state.nodes.get(&member.id).is_some_and(|record| record.profile != *profile)
}

async fn register(local: &Local, member: &Member) {
    let command = Command::UpdateNode { node: member.id, profile: local.profile.clone() };
    match local.ask(&Ask::Propose(command), NO_LEADER).await {
        Ok(_) => {
            tracing::info!(address = %local.profile.cluster, name = %local.profile.name, "this node's new address is registered");
        }
        Err(ProposeError::Refused(refusal)) => {
            tracing::error!(error = %refusal, "this node's address was not registered");
            sleep(10 * PAUSE).await;
        }
        Err(error) => {
            tracing::warn!(%error, "this node's address is not registered yet");
            sleep(PAUSE).await;
        }
    }
}

/// Keeps the address book, and ends the node when the cluster has let it go: remembers it in the
/// data folder first, so that nobody can start it again under its id. Ends with `stop`.
pub(crate) async fn watch_removal(local: Arc<Local>, member: Arc<Member>, stop: CancellationToken) {
    tokio::select! {
        () = until_removed(&local, &member) => {}
        () = stop.cancelled() => return,
    }
    let mut identity = local.store.identity();
    identity.removed = true;
    if let Err(error) = local.store.save_identity(identity).await {
        tracing::error!(%error, "the removal can't be noted in the data folder");
        local.notice.end(Ended::Failed(format!("the data folder can't be written: {error}")));
        return;
    }
    tracing::info!(node = member.id, "this node was removed from the cluster and ends");
    local.notice.end(Ended::Removed);
}

async fn until_removed(local: &Local, member: &Member) {
    let mut told = local.notice.watch_removed();
    let mut state = member.watch_state();
    loop {
        let present = state.borrow_and_update().clone();
        for (id, record) in &present.nodes {
            member.peers.agreed(*id, &peer(record).cluster);
        }
        if present.removed.contains(&member.id) {
            break;
        }
        let open = tokio::select! {
            changed = state.changed() => changed.is_ok(),
            () = heard(&mut told) => return,
        };
        if !open {
            // The store is gone; the node ends for that reason.
            return std::future::pending().await;
        }
    }
    // By its own log. If it still votes, the others may need it to agree on the rest.
    let deadline = Instant::now() + FAREWELL;
    while member.is_voter(member.id) && Instant::now() < deadline {
        if timeout(LOOK_EVERY / 10, heard(&mut told)).await.is_ok() {
            return;
        }
    }
    local.notice.removed("its own log says so");
}

async fn heard(told: &mut watch::Receiver<bool>) {
    if told.wait_for(|removed| *removed).await.is_err() {
        std::future::pending().await
    }
}
