//! What each node says of itself once all is healed.

use crate::admin::{Done, Status};
use crate::env::config::register;
use crate::env::{Map, NodeInfo};
use crate::trace::{MemberEnd, NodeEnd, Recorder, Register, VipEnd};

/// Asks every member.
pub(super) fn record(map: &Map, recorder: &Recorder) {
    for node in map.nodes.iter().filter(|n| n.member) {
        recorder.end(end(node));
    }
}

fn end(node: &NodeInfo) -> NodeEnd {
    let mut end = NodeEnd { node: node.name.clone(), ..NodeEnd::default() };
    match node.admin.status() {
        Ok(status) => take(&mut end, status),
        Err(e) => end.problem = Some(format!("{e:#}")),
    }
    if node.admin.cli.is_some() {
        return end;
    }
    match node.admin.read(false) {
        Done::Yes((revision, document)) => {
            end.revision = revision;
            end.register = register(&document).map(|value| Register { revision, value });
            end.document = document;
        }
        other => end.problem = Some(format!("it does not tell its config: {other:?}")),
    }
    end
}

fn take(end: &mut NodeEnd, status: Status) {
    end.revision = status.revision;
    end.served_revision = status.served_revision;
    end.vips =
        status.vips.into_iter().map(|v| VipEnd { vip: v.vip, owner: v.owner, epoch: v.epoch }).collect();
    let members = status.nodes.into_iter();
    end.members = members.map(|n| MemberEnd { id: n.id, name: n.name, membership: n.membership }).collect();
}
