//! Who has the VIP: by the events of every node's kernel, and as a client sees it.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use super::witness::{Stage, Witness};
use crate::env::switch::INTERFACE;
use crate::env::{Map, Renewal};
use crate::watch::{Asker, Post, Questions, Watch};

/// A new namespace is to be watched before anything runs in it.
const POLL: Duration = Duration::from_millis(1);

/// Last parts of addresses that nobody has, from which a client asks.
const POOL: std::ops::Range<u8> = 224..248;

/// The VIP's listener for HTTP.
const PORT: u16 = 80;

/// Watches where there is a VIP, on nodes that are there from the start.
pub(super) struct Owners;

impl Witness for Owners {
    fn watch(&mut self, stage: &Stage<'_>) {
        let Some(vip) = stage.map.vip else { return };
        // What could not be watched is missing in the trace, and its checkers can't pass.
        let watch = match Watch::start(stage.recorder, &[vip], posts(stage.map)) {
            Ok(watch) => watch,
            Err(e) => return stage.recorder.note(format!("VIP owners are not watched: {e:#}")),
        };
        let asker = questions(stage.map, vip).map(|questions| Asker::start(stage.recorder, questions));
        if let Some(Err(e)) = &asker {
            stage.recorder.note(format!("no client asks for the VIP: {e:#}"));
        }
        while !stage.over() {
            for renewal in stage.map.renewals.take() {
                match renewal {
                    Renewal::Namespace { node, path, made } => {
                        watch.add(Post { node, namespace: path, fresh: made });
                    }
                    Renewal::Mac { node, mac } => {
                        if let Some(Ok(asker)) = &asker {
                            asker.rename(node, mac);
                        }
                    }
                }
            }
            std::thread::sleep(POLL);
        }
        // Answers are judged by what the watch saw, which has to go on for longer.
        if let Some(Ok(asker)) = asker {
            asker.finish();
        }
        watch.finish();
    }
}

fn posts(map: &Map) -> Vec<Post> {
    let post = |node: &crate::env::NodeInfo| Post {
        node: node.name.clone(),
        namespace: node.namespace.clone().unwrap_or_else(|| node.place.file()),
        fresh: false,
    };
    map.nodes.iter().map(post).collect()
}

/// Asked by the last client, which has no load where there is another.
fn questions(map: &Map, vip: IpAddr) -> Option<Questions> {
    let IpAddr::V4(vip) = vip else { return None };
    let [a, b, c, _] = vip.octets();
    Some(Questions {
        namespace: map.clients.last()?.file(),
        device: INTERFACE.to_owned(),
        vip,
        pool: POOL.map(|last| Ipv4Addr::new(a, b, c, last)).collect(),
        nodes: map.nodes.iter().filter_map(|node| Some((node.name.clone(), node.mac?))).collect(),
        port: Some(PORT),
    })
}
