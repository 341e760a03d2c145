//! Asking the cluster for a change, and what became of it.

use std::net::SocketAddr;
use std::sync::Arc;

use serde::Serialize;
use trestle_config::model::{Content, Digest};
use trestle_config::{Config, Problem};
use trestle_raft_store::contents::{ContentDigest, Sealed};
use trestle_raft_store::types::{Command, NodeProfile, Outcome, PutConfig, Refusal, State};

use crate::cluster::Cluster;
use crate::draft::{Draft, Found, Proposal, Stock};
use crate::feed::lease_times;
use crate::orders;
use crate::raft::ProposeError;
use crate::vault::Vault;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Consistency {
    /// After a round with a quorum: sees every change acknowledged before the call.
    Linearizable,
    /// What this node has applied.
    Local,
}

/// A change or a linearizable read that did not succeed.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ChangeError {
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// Nothing was changed.
    #[error(
        "no quorum: {why}; traffic goes on with revision {revision}, changes are refused until a majority of voters is back"
    )]
    NoQuorum { why: String, revision: u64 },
    /// It may or may not take effect.
    #[error(
        "the outcome is unknown: {0}; look before you repeat it (a config: `trestle history`; a purge does no harm twice)"
    )]
    Unknown(String),
    #[error("{0}")]
    Invalid(String),
}

impl ChangeError {
    /// `revision`: the one that this node serves meanwhile.
    pub(crate) fn new(error: ProposeError, revision: u64) -> Self {
        match error {
            ProposeError::Refused(refusal) => ChangeError::Refused(refusal),
            ProposeError::NoQuorum(why) => ChangeError::NoQuorum { why, revision },
            ProposeError::Unknown(why) => ChangeError::Unknown(why),
            ProposeError::Invalid(why) => ChangeError::Invalid(why),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Applied {
    pub revision: u64,
    /// The document equalled the one in force.
    pub unchanged: bool,
}

impl Cluster {
    /// Makes of a document and its files what can be agreed on.
    ///
    /// # Errors
    /// Everything that is wrong with what the document names.
    pub async fn resolve(&self, draft: Draft) -> Result<Proposal, Vec<Problem>> {
        let stock = Stored { vault: self.inner.vault.clone(), state: self.inner.raft.state() };
        let resolved = tokio::task::spawn_blocking(move || draft.resolve(&stock)).await;
        resolved.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))
    }

    /// A new revision; forwarded to the leader. Returns once this node has
    /// it too; fails within 5 s.
    pub async fn put_config(
        &self,
        proposal: &Proposal,
        expected: Option<u64>,
        author: String,
        message: String,
    ) -> Result<Applied, ChangeError> {
        self.put(proposal, expected, author, message).await.map_err(|e| self.change_error(e))
    }

    /// Whether the document fits to the nodes that there are, beside being valid in itself.
    pub fn check(&self, proposal: &Proposal) -> Result<(), String> {
        check_vips(proposal.document().config(), &self.inner.raft.state())
    }

    pub(crate) async fn put(
        &self,
        proposal: &Proposal,
        expected: Option<u64>,
        author: String,
        message: String,
    ) -> Result<Applied, ProposeError> {
        self.check(proposal).map_err(ProposeError::Invalid)?;
        let document = proposal.document();
        let command = Command::PutConfig(PutConfig {
            document: Arc::from(document.canonical().as_bytes()),
            routes: document.config().routes.keys().cloned().collect(),
            leases: lease_times(document.config()),
            uses: proposal.digests().iter().map(stored_as).collect(),
            contents: self.sealed(proposal).map_err(ProposeError::Invalid)?,
            gone: orders::gone(&self.inner.raft.state().member_orders, document.config()),
            expected,
            author,
            message,
            at_ms: crate::now_ms(),
        });
        match self.inner.raft.propose(command).await? {
            (Outcome::Revision(revision), _) => {
                self.served(revision).await;
                Ok(Applied { revision, unchanged: false })
            }
            (Outcome::Unchanged(revision), _) => Ok(Applied { revision, unchanged: true }),
            (Outcome::Refused(refusal), _) => Err(refusal.into()),
            (other, _) => Err(ProposeError::Unknown(format!("the cluster answered {other}"))),
        }
    }

    /// What the revision in force does not use: that stays, whatever is forgotten meanwhile.
    fn sealed(&self, proposal: &Proposal) -> Result<Vec<(ContentDigest, Sealed)>, String> {
        let state = self.inner.raft.state();
        let known = state.revision().map_or(&[][..], |revision| &revision.uses);
        let new = proposal.digests().iter().filter(|digest| !known.contains(&stored_as(digest)));
        let sealed = new.filter_map(|digest| {
            let content = Content::Stored(*digest);
            let plain = proposal.contents().get(&content)?;
            Some((digest, self.inner.vault.seal_content(digest, &plain)))
        });
        sealed.map(|(digest, sealed)| Ok((stored_as(digest), sealed.map_err(|e| e.to_string())?))).collect()
    }
}

fn stored_as(digest: &Digest) -> ContentDigest {
    ContentDigest(digest.0)
}

/// What the cluster has stored.
struct Stored {
    vault: Vault,
    state: Arc<State>,
}

impl Stock for Stored {
    fn digest(&self, content: &[u8]) -> Digest {
        self.vault.digest(content)
    }

    fn find(&self, digest: &Digest) -> Found {
        match self.state.contents.get(&stored_as(digest)) {
            None => Found::Problem("is not stored in this cluster (any more)"),
            Some(sealed) => match self.vault.open_content(digest, sealed) {
                Some(content) => Found::Content(content),
                None => Found::Problem("was sealed with another cluster key than this node has"),
            },
        }
    }
}

/// The cluster's own addresses are no VIPs: a node would lose its own, or be taken for another.
fn check_vips(config: &Config, state: &State) -> Result<(), String> {
    for (vip, address) in
        config.vips.iter().flat_map(|(name, vip)| vip.addresses.iter().map(move |a| (name, a)))
    {
        let has = |profile: &NodeProfile| {
            profile.cluster.parse::<SocketAddr>().is_ok_and(|cluster| cluster.ip() == address.ip)
        };
        if let Some(node) = state.nodes.values().find(|node| has(&node.profile)) {
            return Err(format!(
                "vips.{vip}.addresses: {} is the address of {} itself ({}): a VIP needs one that no machine has",
                address.ip, node.profile.name, node.profile.cluster
            ));
        }
    }
    Ok(())
}
