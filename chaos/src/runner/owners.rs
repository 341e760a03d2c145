//! Who has the VIP: by the events of every node's kernel, and as a client sees it.

use std::net::IpAddr;
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
        if stage.map.vip.is_empty() {
            return;
        }
        // What could not be watched is missing in the trace, and its checkers can't pass.
        let watch = match Watch::start(stage.recorder, &stage.map.vip, posts(stage.map)) {
            Ok(watch) => watch,
            Err(e) => return stage.recorder.note(format!("VIP owners are not watched: {e:#}")),
        };
        let mut askers = Vec::new();
        for vip in &stage.map.vip {
            let Some(questions) = questions(stage.map, *vip) else { continue };
            match Asker::start(stage.recorder, questions) {
                Ok(asker) => askers.push(asker),
                Err(e) => stage.recorder.note(format!("no client asks for {vip}: {e:#}")),
            }
        }
        while !stage.over() {
            for renewal in stage.map.renewals.take() {
                match renewal {
                    Renewal::Namespace { node, path, made } => {
                        watch.add(Post { node, namespace: path, fresh: made });
                    }
                    Renewal::Mac { node, mac } => {
                        askers.iter().for_each(|asker| asker.rename(node.clone(), mac));
                    }
                }
            }
            std::thread::sleep(POLL);
        }
        // Answers are judged by what the watch saw, which has to go on for longer.
        askers.into_iter().for_each(Asker::finish);
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
    let pool = POOL.map(|last| match vip {
        IpAddr::V4(vip) => {
            let [a, b, c, _] = vip.octets();
            IpAddr::from([a, b, c, last])
        }
        IpAddr::V6(vip) => {
            let mut octets = vip.octets();
            octets[14..].copy_from_slice(&[0, last]);
            IpAddr::from(octets)
        }
    });
    Some(Questions {
        namespace: map.clients.last()?.file(),
        device: INTERFACE.to_owned(),
        vip,
        pool: pool.collect(),
        nodes: map.nodes.iter().filter_map(|node| Some((node.name.clone(), node.mac?))).collect(),
        port: Some(PORT),
    })
}
