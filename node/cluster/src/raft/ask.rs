//! Asking the leader, whoever it is: here or over the wire, again while an election goes on, and
//! with an honest answer at the end.
//!
//! Three outcomes are kept apart, since what a person should do next differs: it was refused;
//! nothing was changed; nobody knows. The last is only reported when repeating could do it twice:
//! every command but a new config says the same when it is applied again, so it is simply repeated.

use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use tokio::sync::oneshot;
use tonic::{Response, Status};
use trestle_proto::v1::{
    HelloReply, HelloRequest, MemberRequest, ProposeReply, ProposeRequest, ReadIndexRequest,
};
use trestle_raft_store::codec;
use trestle_raft_store::types::{Command, NodeId, Outcome, Refusal, State};

use super::dial::DialError;
use super::local::Local;
use super::member::Member;
use super::peers::Lane;
use super::refusal::Refused;
use crate::membership::{Act, Order};
use crate::rt::{Instant, sleep, timeout, timeout_at};

/// A change or a question that has no leader to go to fails after this long.
pub(crate) const NO_LEADER: Duration = Duration::from_millis(4_500);
/// Between two attempts.
const PAUSE: Duration = Duration::from_millis(25);
/// One attempt over the wire, when asking again does no harm: the leader may be gone without a word.
const REMOTE_ATTEMPT: Duration = Duration::from_millis(1_500);
/// How long the others get to say who leads, when this node does not know.
const HELLO_TIMEOUT: Duration = Duration::from_millis(500);
/// How long a node that is to be replaced may still have a seat, at the default TTL, if it is dead.
const SEAT_ENDS: Duration = Duration::from_secs(3);
/// Between two such rounds.
const HELLO_EVERY: Duration = Duration::from_millis(500);

/// Why a change did not succeed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProposeError {
    /// Agreed on, and without effect.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// Nothing was changed.
    #[error("{0}")]
    NoQuorum(String),
    /// It may or may not take effect.
    #[error("the outcome is unknown: {0}")]
    Unknown(String),
    /// It can't be done, whoever is asked. Nothing was changed.
    #[error("{0}")]
    Invalid(String),
}

/// What is asked of the leader.
#[derive(Clone, Debug)]
#[expect(clippy::large_enum_variant, reason = "there are few at a time, and each is moved once or twice")]
pub(crate) enum Ask {
    Propose(Command),
    Order(Act, NodeId),
    ReadIndex,
}

/// What became of one attempt.
#[derive(Debug)]
pub(crate) enum Attempt {
    /// Outcome and log index.
    Done(Outcome, u64),
    /// Nothing was changed, and it may go better in a moment.
    Retry(String),
    Unknown(String),
    Fail(ProposeError),
}

impl Ask {
    /// Asking twice does the same as asking once.
    fn repeatable(&self) -> bool {
        !matches!(self, Ask::Propose(Command::PutConfig(_)))
    }

    /// A refusal that only says that an earlier attempt of this very call has done it.
    fn done_before(&self, refusal: &Refusal) -> bool {
        let asked = match self {
            Ask::Propose(Command::Expel { node, .. }) | Ask::Order(Act::Remove, node) => *node,
            _ => return false,
        };
        *refusal == Refusal::Removed(asked)
    }
}

impl Local {
    /// Asks until there is an answer; `within` bounds the whole. Dropping it leaves the outcome open.
    pub(crate) async fn ask(&self, ask: &Ask, within: Duration) -> Result<(Outcome, u64), ProposeError> {
        let Some(member) = self.member() else {
            return Err(ProposeError::NoQuorum("this node is not in a cluster yet".to_owned()));
        };
        if let Ask::Propose(command) = ask {
            codec::check_size(command).map_err(|e| ProposeError::Invalid(e.to_string()))?;
        }
        let start = Instant::now();
        let deadline = start + within;
        let mut open = None;
        let mut last_hello = None;
        loop {
            let attempt = match self.leader(member, &mut last_hello).await {
                Some(leader) if leader == member.id => self.ask_here(member, ask, deadline).await,
                Some(leader) => {
                    let attempt = match ask {
                        Ask::Order(..) => deadline,
                        _ if ask.repeatable() => deadline.min(Instant::now() + REMOTE_ATTEMPT),
                        _ => deadline,
                    };
                    self.ask_there(member, leader, ask, attempt).await
                }
                None => Attempt::Retry("no leader is known".to_owned()),
            };
            let why = match attempt {
                Attempt::Done(Outcome::Refused(refusal), index) => {
                    if open.is_some() && ask.done_before(&refusal) {
                        return Ok((Outcome::Done, index));
                    }
                    return Err(ProposeError::Refused(refusal));
                }
                Attempt::Done(outcome, index) => return Ok((outcome, index)),
                Attempt::Fail(error) => return Err(error),
                Attempt::Unknown(why) if !ask.repeatable() => return Err(ProposeError::Unknown(why)),
                Attempt::Unknown(why) => {
                    open = Some(why.clone());
                    why
                }
                Attempt::Retry(why) => why,
            };
            if Instant::now() + PAUSE >= deadline.min(start + NO_LEADER) {
                return Err(match (open, ask) {
                    (Some(why), Ask::Propose(_) | Ask::Order(..)) => ProposeError::Unknown(why),
                    _ => ProposeError::NoQuorum(why),
                });
            }
            sleep(PAUSE).await;
        }
    }

    /// The leader as this node knows it, or as others say.
    async fn leader(&self, member: &Member, last_hello: &mut Option<Instant>) -> Option<NodeId> {
        if let Some(leader) = member.leader() {
            return Some(leader);
        }
        if last_hello.is_some_and(|at| at.elapsed() < HELLO_EVERY) {
            return None;
        }
        *last_hello = Some(Instant::now());
        self.ask_around(member).await
    }

    /// One round of greetings to every member: tells them where this node is, and learns who leads.
    pub(crate) async fn ask_around(&self, member: &Member) -> Option<NodeId> {
        let hellos: FuturesUnordered<_> = member
            .peers
            .others()
            .into_iter()
            .map(|id| async move {
                let mut client = member.peers.cluster(id, Lane::Control);
                timeout(HELLO_TIMEOUT, client.hello(self.hello())).await
            })
            .collect();
        let replies = hellos.filter_map(|reply| async { reply.ok().and_then(|r| self.greeted(member, r)) });
        let mut replies = std::pin::pin!(replies);
        replies.next().await
    }

    fn greeted(&self, member: &Member, reply: Result<Response<HelloReply>, Status>) -> Option<NodeId> {
        match reply {
            Ok(reply) => {
                let reply = reply.into_inner();
                if !reply.has_leader || reply.leader == member.id {
                    return None;
                }
                // Nobody is asked while the leader is heard, so what we have may be out of date.
                member.peers.said(reply.leader, &reply.leader_address);
                Some(reply.leader)
            }
            Err(status) => {
                if Refused::of(&status) == Some(Refused::Removed) {
                    self.notice.removed(status.message());
                }
                None
            }
        }
    }

    pub(crate) fn hello(&self) -> HelloRequest {
        HelloRequest {
            address: self.profile.cluster.clone(),
            token: self.profile.join_token.as_bytes().to_vec().into(),
            may_found: self.founding.lock().may_found(),
        }
    }

    /// One attempt on this node, which may have ceased to lead.
    pub(crate) async fn ask_here(&self, member: &Member, ask: &Ask, deadline: Instant) -> Attempt {
        match ask {
            Ask::Propose(command) => {
                if let Some(node) = replaced_by(command, &member.state())
                    && !self.seat_ended(member, node).await
                {
                    return Attempt::Fail(ProposeError::Invalid(format!(
                        "node {node} is alive (it has a seat), and --replace is for one that is gone for good: \
                         stop it first, or give another --name"
                    )));
                }
                member.write(command.clone(), deadline).await
            }
            Ask::ReadIndex => member.linearize(deadline).await,
            Ask::Order(act, node) => {
                if !member.is_leader() {
                    return Attempt::Retry("this node does not lead".to_owned());
                }
                let (reply, answer) = oneshot::channel();
                if self.orders.try_send(Order { act: *act, node: *node, reply }).is_err() {
                    return Attempt::Retry("other changes of membership are waiting".to_owned());
                }
                match timeout_at(deadline, answer).await {
                    Ok(Ok(attempt)) => attempt,
                    Ok(Err(_)) => Attempt::Unknown("the node is stopping".to_owned()),
                    Err(_) => Attempt::Unknown("the change of membership takes too long".to_owned()),
                }
            }
        }
    }

    /// A dead node's seat ends with its lease; a live one's does not.
    async fn seat_ended(&self, member: &Member, node: NodeId) -> bool {
        let mut state = member.watch_state();
        let gone = state.wait_for(|state| !state.seats.contains_key(&node));
        matches!(timeout(SEAT_ENDS, gone).await, Ok(Ok(_)))
    }

    async fn ask_there(&self, member: &Member, leader: NodeId, ask: &Ask, deadline: Instant) -> Attempt {
        let cluster_id = member.cluster_id.as_bytes().to_vec().into();
        let answer = match ask {
            Ask::Propose(command) => {
                let command = match codec::encode(command) {
                    Ok(bytes) => bytes.into(),
                    Err(error) => return Attempt::Fail(ProposeError::Invalid(error.to_string())),
                };
                let mut client = member.peers.cluster(leader, Lane::Bulk);
                let request = ProposeRequest { cluster_id, command, forwarded: true };
                timeout_at(deadline, client.propose(request)).await.map(|r| r.map(Response::into_inner))
            }
            Ask::Order(act, node) => {
                let mut client = member.peers.cluster(leader, Lane::Control);
                let request = MemberRequest { cluster_id, act: *act as i32, node: *node, forwarded: true };
                timeout_at(deadline, client.member(request)).await.map(|r| r.map(Response::into_inner))
            }
            Ask::ReadIndex => {
                let mut client = member.peers.cluster(leader, Lane::Control);
                let done = |r: Response<_>| read_reply(r.into_inner());
                timeout_at(deadline, client.read_index(ReadIndexRequest { cluster_id }))
                    .await
                    .map(|r| r.map(done))
            }
        };
        match answer {
            Err(_) => Attempt::Unknown("the leader did not answer in time".to_owned()),
            Ok(Ok(reply)) => match codec::decode(&reply.outcome) {
                Ok(outcome) => Attempt::Done(outcome, reply.log_index),
                Err(error) => Attempt::Unknown(format!("the leader's answer can't be read: {error}")),
            },
            Ok(Err(status)) => self.remote_failure(leader, &status),
        }
    }

    fn remote_failure(&self, leader: NodeId, status: &Status) -> Attempt {
        let why = status.message().to_owned();
        match Refused::of(status) {
            Some(Refused::Removed) => {
                self.notice.removed(&format!("node {leader} says so"));
                match self.member() {
                    Some(member) => Attempt::Fail(ProposeError::Refused(Refusal::Removed(member.id))),
                    None => Attempt::Fail(ProposeError::Invalid(why)),
                }
            }
            Some(Refused::NotReady | Refused::NotLeader | Refused::NoQuorum) => Attempt::Retry(why),
            Some(Refused::OtherCluster | Refused::WrongNode) => Attempt::Retry(why),
            Some(Refused::Invalid) => Attempt::Fail(ProposeError::Invalid(why)),
            Some(Refused::Unknown) => Attempt::Unknown(why),
            None if DialError::caused(status) => {
                Attempt::Retry(format!("the leader can't be reached: {why}"))
            }
            None => Attempt::Unknown(format!("the connection to the leader was lost: {why}")),
        }
    }
}

/// The node whose place an admission takes.
fn replaced_by(command: &Command, state: &State) -> Option<NodeId> {
    let Command::Admit { node, replace: true, .. } = command else { return None };
    let (id, present) = state.node_by_name(&node.name)?;
    (present.profile.join_token != node.join_token).then_some(id)
}

fn read_reply(reply: trestle_proto::v1::ReadIndexReply) -> ProposeReply {
    // An outcome of our own always encodes; bytes that don't decode would be reported above.
    let outcome = codec::encode(&Outcome::Done).unwrap_or_default().into();
    ProposeReply { outcome, log_index: reply.log_index }
}

#[cfg(test)]
mod tests {
    use trestle_raft_store::types::{LeaseTimes, PutConfig};

    use super::*;

    #[test]
    fn only_a_new_config_is_not_proposed_twice() {
        let put = PutConfig {
            document: Vec::new().into(),
            routes: Vec::new(),
            leases: LeaseTimes::default(),
            uses: Vec::new(),
            contents: Vec::new(),
            gone: Vec::new(),
            expected: None,
            author: String::new(),
            message: String::new(),
            at_ms: 0,
        };
        assert!(!Ask::Propose(Command::PutConfig(put)).repeatable());
        assert!(Ask::Propose(Command::Mark).repeatable());
        assert!(Ask::Order(Act::Remove, 1).repeatable());
    }

    #[test]
    fn a_second_removal_that_finds_the_node_gone_is_the_first_ones_success() {
        let ask = Ask::Order(Act::Remove, 7);
        assert!(ask.done_before(&Refusal::Removed(7)));
        assert!(!ask.done_before(&Refusal::Removed(8)));
        assert!(!ask.done_before(&Refusal::NoSuchNode(7)));
        assert!(!Ask::Order(Act::Promote, 7).done_before(&Refusal::Removed(7)));
    }
}
