//! What is thrown out of the caches of all nodes, and whether this node may serve from its own.
//!
//! Purges are agreed on through Raft and numbered by its log; the feeder hands them to the data plane. Whoever has not
//! heard of one must not serve what it is about, so a node serves from its cache only while it has a seat, and knows all
//! purges that the leader knew of when it last renewed that seat ([`run`]). A renewal's quorum round ends after it was
//! asked for, so a leader that grants it knows every purge that was acknowledged before. Hence: once a purge is agreed
//! on, a node serves what it is about for no longer than the rest of its lease, and mostly until its next renewal.
//!
//! The lease's end is handed on as a time, and held against the clock with each response: a process that was stopped
//! serves nothing old when it goes on.

use std::collections::BTreeSet;
use std::time::Duration;

use serde::Serialize;
use tokio::sync::watch;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use trestle_dataplane::{
    Plane, Purge as PlanePurge, PurgeError as Malformed, PurgeWhat, purged_prefix, purged_url,
};
use trestle_raft_store::purges::{PurgeTarget, Purges};
use trestle_raft_store::types::{Command, NodeId};

use crate::change::ChangeError;
use crate::cluster::Cluster;
use crate::lease::SeatView;
use crate::now_ms;

/// What one order may name.
const TARGETS_MAX: usize = 100;
/// Of a URL, a prefix or a tag.
const LENGTH_MAX: usize = 2_048;
/// How long other nodes are waited for. A node that is away loses its seat before.
const TOLD_WITHIN: Duration = Duration::from_secs(5);
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// What an operator wants thrown away.
#[derive(Clone, Debug, Default)]
pub struct Order {
    pub urls: Vec<String>,
    pub prefixes: Vec<String>,
    pub tags: Vec<String>,
    pub all: bool,
    pub author: String,
}

#[derive(Clone, Debug, thiserror::Error)]
pub enum PurgeError {
    #[error(transparent)]
    Change(#[from] ChangeError),
    #[error("{0}")]
    Invalid(String),
}

/// What has become of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Purged {
    pub number: u64,
    /// In the form that nodes compare.
    pub targets: Vec<String>,
    /// Nodes that serve nothing of it any more.
    pub nodes: Vec<String>,
    /// Nodes that have not said so: those without a seat serve nothing unasked until they have heard of it, the others
    /// until their lease has ended, or they have heard.
    pub silent: Vec<String>,
}

impl Order {
    /// Whether a node would take it: what is wrong with it is wrong wherever it is asked for.
    ///
    /// # Errors
    /// Says what is not as it should be.
    pub fn check(&self) -> Result<(), PurgeError> {
        self.targets().map(drop)
    }

    fn targets(&self) -> Result<Vec<PurgeTarget>, PurgeError> {
        let invalid = |what: &str, why: Malformed| PurgeError::Invalid(format!("{what:?}: {why}"));
        let mut targets = Vec::new();
        for url in &self.urls {
            targets.push(PurgeTarget::Url(purged_url(url).map_err(|why| invalid(url, why))?));
        }
        for prefix in &self.prefixes {
            targets.push(PurgeTarget::Prefix(purged_prefix(prefix).map_err(|why| invalid(prefix, why))?));
        }
        for tag in &self.tags {
            let is_plain = |c: char| !c.is_control() && !matches!(c, ',' | ' ');
            if tag.is_empty() || !tag.chars().all(is_plain) {
                let why = "a tag has neither commas nor spaces: name each by itself";
                return Err(PurgeError::Invalid(format!("{tag:?}: {why}")));
            }
            targets.push(PurgeTarget::Tag(tag.clone()));
        }
        targets.extend(self.all.then_some(PurgeTarget::All));
        if targets.is_empty() {
            return Err(PurgeError::Invalid("name URLs, prefixes or tags, or all".to_owned()));
        }
        if targets.len() > TARGETS_MAX {
            let why = format!("at most {TARGETS_MAX} at once: purge a prefix or a tag, or in several orders");
            return Err(PurgeError::Invalid(why));
        }
        if let Some(long) = targets.iter().map(PurgeTarget::text).find(|target| target.len() > LENGTH_MAX) {
            let start: String = long.chars().take(80).collect();
            let why = format!("longer than {LENGTH_MAX} bytes: purge a prefix, a tag or all");
            return Err(PurgeError::Invalid(format!("{start:?}...: {why}")));
        }
        Ok(targets)
    }
}

fn shown(target: &PurgeTarget) -> String {
    match target {
        PurgeTarget::Url(url) => url.clone(),
        PurgeTarget::Prefix(prefix) => format!("{prefix}..."),
        PurgeTarget::Tag(tag) => format!("tag {tag}"),
        PurgeTarget::All => "all".to_owned(),
    }
}

/// For the data plane.
pub(crate) fn of_plane(purges: &Purges) -> impl Iterator<Item = PlanePurge> {
    purges.iter().map(|purge| PlanePurge {
        number: purge.number,
        what: match &purge.target {
            PurgeTarget::Url(url) => PurgeWhat::Url(url.clone()),
            PurgeTarget::Prefix(prefix) => PurgeWhat::Prefix(prefix.clone()),
            PurgeTarget::Tag(tag) => PurgeWhat::Tag(tag.clone()),
            PurgeTarget::All => PurgeWhat::All,
        },
    })
}

impl Cluster {
    /// Throws what was cached out of all nodes. Returns once they have said that they have, or can't serve from their
    /// caches; after 5 s at the latest.
    ///
    /// # Errors
    /// Nothing was changed, but for [`ChangeError::Unknown`].
    pub async fn purge(&self, order: Order) -> Result<Purged, PurgeError> {
        let targets = order.targets()?;
        let told: Vec<String> = targets.iter().map(shown).collect();
        let author = order.author.clone();
        let command = Command::Purge { targets, author: order.author, at_ms: now_ms() };
        let number = self.have_acted_at(command).await?;
        tracing::info!(number, targets = told.join(" "), author, "purge");
        let until = Instant::now() + TOLD_WITHIN;
        // Who was let in later begins with an empty cache.
        let asked: BTreeSet<NodeId> = self.inner.raft.state().nodes.keys().copied().collect();
        while Instant::now() < until && !self.have_purged(&asked, number, true) {
            sleep(LOOK_EVERY).await;
        }
        let state = self.inner.raft.state();
        let (mut nodes, mut silent) = (Vec::new(), Vec::new());
        for node in asked {
            let Some(record) = state.nodes.get(&node) else { continue };
            let has = self.have_purged(&BTreeSet::from([node]), number, false);
            if has { &mut nodes } else { &mut silent }.push(record.profile.name.clone());
        }
        nodes.sort();
        silent.sort();
        Ok(Purged { number, targets: told, nodes, silent })
    }

    /// `or_away`: who has no seat counts as well.
    fn have_purged(&self, nodes: &BTreeSet<NodeId>, number: u64, or_away: bool) -> bool {
        let (state, news, me) = (self.inner.raft.state(), self.inner.gossip.news(), self.id());
        nodes.iter().all(|node| {
            let known = match *node == me {
                true => self.inner.plane.latest_purge(),
                false => news.get(node).map_or(0, |news| news.purged),
            };
            known >= number || or_away && !state.seats.contains_key(node)
        })
    }
}

/// Tells the data plane until when it may serve what it has cached, as `seat` and what is known of purges change.
/// `told` counts what the data plane was handed.
pub(crate) async fn run(
    plane: Plane,
    mut seat: watch::Receiver<SeatView>,
    mut told: watch::Receiver<u64>,
    stop: CancellationToken,
) {
    loop {
        let view = *seat.borrow_and_update();
        told.borrow_and_update();
        let knows = view.seated && plane.latest_purge() >= view.purged;
        plane.set_cache_trust(knows.then(|| view.until.since_boot()));
        tokio::select! {
            () = stop.cancelled() => break,
            changed = seat.changed() => if changed.is_err() { break },
            changed = told.changed() => if changed.is_err() { break },
        }
    }
    plane.set_cache_trust(None);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order(urls: &[&str], tags: &[&str]) -> Order {
        let owned = |texts: &[&str]| texts.iter().map(|&text| text.to_owned()).collect();
        Order { urls: owned(urls), tags: owned(tags), ..Order::default() }
    }

    #[test]
    fn targets_have_the_one_form_that_nodes_compare() {
        let order = Order {
            prefixes: vec!["https://Shop.example.com/img".to_owned()],
            all: true,
            ..order(&["HTTP://example.com.:80/a/../b?x"], &["news"])
        };
        let targets: Vec<_> = order.targets().unwrap().iter().map(shown).collect();
        assert_eq!(targets, ["http://example.com/b?x", "https://shop.example.com/img...", "tag news", "all"]);
    }

    #[test]
    fn what_is_none_is_refused_with_what_it_was() {
        let refused = |order: Order| order.targets().unwrap_err().to_string();
        assert!(refused(Order::default()).contains("name URLs"));
        assert!(refused(order(&["/a"], &[])).starts_with("\"/a\": no URL with scheme and host"));
        assert!(refused(order(&["ftp://a/"], &[])).contains("not of `ftp`"));
        assert!(refused(order(&["http://me@a/"], &[])).contains("without a user"));
        assert!(refused(order(&["http://a:99999/"], &[])).contains("no host and port"));
        assert!(refused(order(&[], &["a,b"])).starts_with("\"a,b\": a tag"));
        let long = format!("http://example.com/{}", "a".repeat(LENGTH_MAX));
        assert!(
            refused(order(&[&long], &[])).ends_with("longer than 2048 bytes: purge a prefix, a tag or all")
        );
        assert!(refused(order(&[], &["t"; TARGETS_MAX + 1])).starts_with("at most 100 at once"));
    }
}
