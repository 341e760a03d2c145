//! Who has the VIP: by the events of every node's kernel, and as a client sees it.

use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::time::Duration;

use super::witness::{Stage, Witness};
use crate::env::Map;
use crate::env::switch::INTERFACE;
use crate::place::Place;
use crate::watch::{Asker, Post, Questions, Watch};

const POLL: Duration = Duration::from_millis(50);

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
            std::thread::sleep(POLL);
        }
        // Answers are judged by what the watch saw, which has to go on for longer.
        if let Some(Ok(asker)) = asker {
            asker.finish();
        }
        watch.finish();
    }
}

fn file(place: &Place) -> PathBuf {
    match place {
        Place::Here => PathBuf::from("/proc/self/ns/net"),
        Place::Namespace(name) => PathBuf::from(format!("/run/netns/{name}")),
    }
}

fn posts(map: &Map) -> Vec<Post> {
    let post = |node: &crate::env::NodeInfo| Post {
        node: node.name.clone(),
        namespace: file(&node.place),
        fresh: false,
    };
    map.nodes.iter().map(post).collect()
}

/// Asked by the last client, which has no load where there is another.
fn questions(map: &Map, vip: IpAddr) -> Option<Questions> {
    let IpAddr::V4(vip) = vip else { return None };
    let [a, b, c, _] = vip.octets();
    Some(Questions {
        namespace: file(map.clients.last()?),
        device: INTERFACE.to_owned(),
        vip,
        pool: POOL.map(|last| Ipv4Addr::new(a, b, c, last)).collect(),
        nodes: map.nodes.iter().filter_map(|node| Some((node.name.clone(), node.mac?))).collect(),
        port: Some(PORT),
    })
}
