//! Coming into a cluster: go on in the one the folder knows, join one, or make one.

use std::io;
use std::time::Duration;

use futures::future::join_all;
use trestle_proto::v1::{HelloReply, JoinRequest};
use trestle_raft_store::codec;
use trestle_raft_store::types::{Command, NodeId, Outcome, Refusal};
use uuid::Uuid;

use super::founding::{Answer, Seeker, Verdict};
use crate::now_ms;
use crate::raft::{Ask, DialError, Enter, Entered, Local, Member, ProposeError, Refused, stranger};
use crate::rt::{Instant, sleep, timeout};

/// Addresses to ask; more are a mistake.
const MAX_ADDRESSES: usize = 64;
const HELLO_TIMEOUT: Duration = Duration::from_secs(2);
/// Longer than the leader takes to give up, so that its reason is what is reported.
const JOIN_TIMEOUT: Duration = Duration::from_secs(8);
const PAUSE: Duration = Duration::from_millis(200);
/// Between two log lines of the same wait.
const SAY_EVERY: Duration = Duration::from_secs(5);
/// The first entry needs only this node and its disk.
const FOUND_WITHIN: Duration = Duration::from_secs(30);

/// Why a node is in no cluster. Waiting would not help.
#[derive(Debug, thiserror::Error)]
pub enum EnterError {
    #[error("this data folder is not in a cluster; start with --bootstrap, or with --join ADDR:PORT")]
    Nowhere,
    #[error(
        "this data folder belonged to node {0}, which was removed from its cluster; wipe it, then join as a new node"
    )]
    Removed(NodeId),
    #[error("the cluster refused this node: {0}")]
    Refused(Refusal),
    #[error("{0}")]
    Invalid(String),
    #[error("the data folder can't be written: {0}")]
    Disk(#[from] io::Error),
}

/// Under which id a node runs in which cluster. On disk when it is returned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) id: NodeId,
    pub(crate) cluster_id: Uuid,
    pub(crate) how: Entered,
}

/// Waits as long as it takes until there is a cluster to be in. Safe to drop and to repeat: the join
/// token gets the same id.
pub(crate) async fn enter(local: &Local, how: &Enter, replace: bool) -> Result<Entry, EnterError> {
    let identity = local.store.identity();
    if identity.removed {
        return Err(EnterError::Removed(identity.node_id.unwrap_or_default()));
    }
    if let (Some(id), Some(cluster_id)) = (identity.node_id, identity.cluster_id) {
        if *how != Enter::Resume {
            tracing::info!(node = id, cluster = %cluster_id, "the data folder is in a cluster already; bootstrap and join are ignored");
        }
        let answers = join_all(how.ask().iter().map(|address| greet(local, address))).await;
        for (address, answer) in how.ask().iter().zip(answers) {
            if let Answer::InCluster(other) = answer
                && other != cluster_id
            {
                return Err(EnterError::Invalid(format!(
                    "this data folder is in cluster {cluster_id}, but {address} is in cluster {other}: \
                     give another --data-dir to join that one, or leave --join out"
                )));
            }
        }
        return Ok(Entry { id, cluster_id, how: Entered::Resumed });
    }
    if *how == Enter::Resume {
        return Err(EnterError::Nowhere);
    }
    let ask = how.ask();
    if ask.len() > MAX_ADDRESSES {
        return Err(EnterError::Invalid(format!("more than {MAX_ADDRESSES} addresses to join")));
    }
    if ask.is_empty() && matches!(how, Enter::Join { .. }) {
        return Err(EnterError::Invalid("no address to join was given".to_owned()));
    }
    seek(local, ask, replace).await
}

async fn seek(local: &Local, ask: &[String], replace: bool) -> Result<Entry, EnterError> {
    let mut said = Waiting::default();
    loop {
        let answers = join_all(ask.iter().map(|address| greet(local, address))).await;
        let verdict = local.founding.lock().decide(&answers, Instant::now());
        match verdict {
            Verdict::Found => return save(local, 0, Uuid::now_v7(), Entered::Founded).await,
            Verdict::Refuse(why) => return Err(EnterError::Invalid(why)),
            Verdict::Wait(why) => said.say(&why),
            Verdict::Join(at) => match join(local, &ask[at], replace).await {
                Ok((id, cluster_id)) => return save(local, id, cluster_id, Entered::Joined).await,
                Err(Ok(refusal)) => return Err(EnterError::Refused(refusal)),
                Err(Err(why)) => said.say(&why),
            },
        }
        sleep(PAUSE).await;
    }
}

async fn greet(local: &Local, address: &str) -> Answer {
    let call = async {
        let mut client = stranger(&local.identity, address).await.map_err(|e| unheard(&e))?;
        let reply = client.hello(local.hello()).await.map_err(|e| format!("{address}: {}", e.message()))?;
        Ok::<_, String>(reply.into_inner())
    };
    match timeout(HELLO_TIMEOUT, call).await {
        Ok(Ok(reply)) => understood(local, reply),
        Ok(Err(why)) => Answer::Silent(why),
        Err(_) => Answer::Silent(format!("{address}: no answer within {HELLO_TIMEOUT:?}")),
    }
}

/// Why an address does not answer, and what to do where waiting is no help.
fn unheard(error: &DialError) -> String {
    match error {
        DialError::OtherKey { .. } => format!(
            "{error}; start this node with the key file that the cluster's nodes have now \
             (`trestle key show FILE` tells files apart)"
        ),
        other => other.to_string(),
    }
}

fn understood(local: &Local, reply: HelloReply) -> Answer {
    let Ok(token) = Uuid::from_slice(&reply.token) else {
        return Answer::Silent("an answer that can't be read".to_owned());
    };
    if token == local.profile.join_token {
        return Answer::Myself;
    }
    match Uuid::from_slice(&reply.cluster_id) {
        Ok(id) => Answer::InCluster(id),
        Err(_) => {
            let seeker = reply.may_found.then_some(Seeker { name: reply.name, token });
            Answer::Empty { seeker, founding: reply.founding }
        }
    }
}

/// The id and cluster that were given; or the refusal; or why to ask again.
async fn join(
    local: &Local,
    address: &str,
    replace: bool,
) -> Result<(NodeId, Uuid), Result<Refusal, String>> {
    let profile = codec::encode(&local.profile).map_err(|e| Err(e.to_string()))?.into();
    let call = async {
        let mut client = stranger(&local.identity, address).await.map_err(|e| unheard(&e))?;
        let reply = client.join(JoinRequest { profile, replace }).await;
        let reply = reply.map_err(|status| match Refused::of(&status) {
            Some(_) => status.message().to_owned(),
            None => format!("{address}: {}", status.message()),
        })?;
        codec::decode::<Outcome>(&reply.into_inner().outcome).map_err(|e| format!("{address}: {e}"))
    };
    let outcome = timeout(JOIN_TIMEOUT, call).await;
    match outcome.map_err(|_| Err(format!("{address}: no answer within {JOIN_TIMEOUT:?}")))?.map_err(Err)? {
        Outcome::Admitted { id, cluster_id } => Ok((id, cluster_id)),
        Outcome::Refused(Refusal::NotFounded) => Err(Err("the cluster is being founded".to_owned())),
        Outcome::Refused(refusal) => Err(Ok(refusal)),
        other => Err(Err(format!("{address}: an unexpected answer: {other}"))),
    }
}

/// Durable before anything is done under the id.
async fn save(local: &Local, id: NodeId, cluster_id: Uuid, how: Entered) -> Result<Entry, EnterError> {
    let mut identity = local.store.identity();
    identity.node_id = Some(id);
    identity.cluster_id = Some(cluster_id);
    identity.name = local.profile.name.clone();
    local.store.save_identity(identity).await?;
    tracing::info!(node = id, cluster = %cluster_id, ?how, "this node is in a cluster");
    Ok(Entry { id, cluster_id, how })
}

/// Makes the first entries of a cluster, or the part of them that a crash left out. openraft's
/// `initialize` returns before its entry is committed, so this waits for the state to have it.
pub(crate) async fn found(local: &Local, member: &Member) -> Result<(), EnterError> {
    if member.id != 0 || member.state().cluster_id.is_some() {
        return Ok(());
    }
    let deadline = Instant::now() + FOUND_WITHIN;
    member.initialize(&local.profile.name, &local.profile.cluster).await.map_err(EnterError::Invalid)?;
    let command =
        Command::Found { cluster_id: member.cluster_id, node: local.profile.clone(), at_ms: now_ms() };
    let index = loop {
        match local.ask(&Ask::Propose(command.clone()), FOUND_WITHIN).await {
            Ok((_, index)) => break index,
            Err(ProposeError::Refused(refusal)) => return Err(EnterError::Refused(refusal)),
            Err(error) if Instant::now() > deadline => return Err(EnterError::Invalid(error.to_string())),
            Err(error) => tracing::debug!(%error, "founding goes on"),
        }
    };
    match member.applied(index, deadline).await {
        true => Ok(()),
        false => {
            Err(EnterError::Invalid("the first entry of the cluster was not applied in time".to_owned()))
        }
    }
}

/// Says why a node waits: at once when the reason changes, then now and again.
#[derive(Default)]
struct Waiting {
    last: Option<(String, Instant)>,
}

impl Waiting {
    fn say(&mut self, why: &str) {
        let said = self.last.as_ref().is_some_and(|(text, at)| text == why && at.elapsed() < SAY_EVERY);
        if !said {
            tracing::warn!(reason = why, "waiting for a cluster");
            self.last = Some((why.to_owned(), Instant::now()));
        }
    }
}
