//! What the firewalls of all nodes have counted, for whoever asks one of them.

use std::collections::BTreeMap;

use trestle_dataplane::Plane;
use trestle_proto::v1::{FirewallHitsReply, PlaceHits};

use crate::cluster::Cluster;
use crate::telling::WITHIN;

/// By place, of each rule and last of the default.
pub type PlaceCounts = BTreeMap<String, Vec<u64>>;

pub(crate) fn counted(plane: &Plane) -> FirewallHitsReply {
    let place = |view: trestle_dataplane::FirewallView| PlaceHits {
        hits: view.rules.iter().map(|rule| rule.hits).chain([view.default_hits]).collect(),
        place: view.place,
    };
    let revision = plane.revision();
    FirewallHitsReply { revision, places: plane.firewalls().into_iter().map(place).collect() }
}

impl Cluster {
    /// Of every node, by its name; `None`: it has not told in time, or serves another revision than this one.
    pub async fn firewall_hits(&self) -> BTreeMap<String, Option<PlaceCounts>> {
        let (own, names) = (counted(&self.inner.plane), self.node_names());
        let revision = own.revision;
        let counts = |reply: FirewallHitsReply| -> Option<PlaceCounts> {
            let places = reply.places.into_iter().map(|place| (place.place, place.hits));
            (reply.revision == revision).then(|| places.collect())
        };
        let name = |id: u64| names.get(&id).cloned().unwrap_or_else(|| id.to_string());
        let others = self.inner.raft.firewall_hits(WITHIN).await;
        let others = others.into_iter().map(|(id, reply)| (name(id), reply.and_then(&counts)));
        let own = (self.name().to_owned(), counts(own));
        others.chain([own]).collect()
    }
}
