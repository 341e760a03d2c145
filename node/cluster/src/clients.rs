//! Clients over the whole cluster, for whoever asks one of its nodes.
//!
//! Connections and rates are what nodes have told each other; what is open of a limit is asked for, since
//! what nodes hold of limits is more than what they use.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use trestle_dataplane::{LimitOf, LimitView};

use crate::cluster::Cluster;
use crate::counts::Total;
use crate::raft::KEYS_MAX;
use crate::telling::WITHIN;
use crate::views::{ClientTotal, Clients};

impl Cluster {
    /// Connections, requests and limits of each client over the cluster, heaviest first.
    pub async fn clients(&self, most: usize) -> Clients {
        let names = self.node_names();
        let name = |id: &u64| names.get(id).cloned().unwrap_or_else(|| id.to_string());
        let totals: Vec<(Total, Vec<LimitView>)> = (self.inner.counts.totals(most).into_iter())
            .map(|total| {
                let limits = self.inner.plane.limits_of(total.client);
                (total, limits)
            })
            .collect();
        let (elsewhere, silent) = self.open_elsewhere(totals.iter().flat_map(|(_, limits)| limits)).await;
        let client = |(Total { client, rate, nodes }, limits)| ClientTotal {
            client,
            total: nodes.values().fold(0, |sum: u32, n| sum.saturating_add(*n)),
            rate,
            limits: self.inner.claims.of_client(limits, &elsewhere),
            ban: self.ban_of(client),
            nodes: nodes.iter().map(|(id, n)| (name(id), *n)).collect::<BTreeMap<_, _>>(),
        };
        let clients = totals.into_iter().map(client).collect();
        Clients { clients, silent: silent.iter().map(name).collect() }
    }

    /// What is open of these at other nodes, and which nodes have not told.
    async fn open_elsewhere(
        &self,
        limits: impl Iterator<Item = &LimitView>,
    ) -> (HashMap<u64, u64>, Vec<u64>) {
        let open = limits.filter(|view| matches!(view.limit, LimitOf::Open { .. }));
        let keys: BTreeSet<u64> = open.map(|view| view.key).take(KEYS_MAX).collect();
        let keys: Vec<u64> = keys.into_iter().collect();
        let (mut elsewhere, mut silent) = (HashMap::new(), Vec::new());
        if keys.is_empty() {
            return (elsewhere, silent);
        }
        for (node, reply) in self.inner.raft.limit_use(&keys, WITHIN).await {
            let Some(reply) = reply.filter(|reply| reply.open.len() == keys.len()) else {
                silent.push(node);
                continue;
            };
            for (key, open) in keys.iter().zip(reply.open) {
                *elsewhere.entry(*key).or_default() += u64::from(open);
            }
        }
        (elsewhere, silent)
    }
}
