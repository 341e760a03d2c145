//! Entry for fuzzing: what members send each other.

use openraft::alias::{EntryOf, SnapshotMetaOf, VoteOf};
use openraft::raft::{AppendEntriesRequest, TransferLeaderRequest, VoteRequest};
use serde::Serialize;
use serde::de::DeserializeOwned;
use trestle_raft_store::codec;
use trestle_raft_store::machine::check_snapshot;
use trestle_raft_store::types::{Command, NodeProfile, Outcome, State, TypeConfig};

/// What members send each other over the cluster port, after a byte for which of it: what is taken can be
/// written, and reads back as the same.
pub fn rpc(data: &[u8]) {
    let Some((kind, body)) = data.split_first() else { return };
    match kind % 10 {
        0 => reads_back::<AppendEntriesRequest<TypeConfig>>(body),
        1 => reads_back::<VoteRequest<TypeConfig>>(body),
        2 => reads_back::<TransferLeaderRequest<TypeConfig>>(body),
        3 => reads_back::<EntryOf<TypeConfig>>(body),
        4 => reads_back::<Command>(body),
        5 => reads_back::<NodeProfile>(body),
        6 => reads_back::<Outcome>(body),
        7 => reads_back::<State>(body),
        8 => reads_back::<VoteOf<TypeConfig>>(body),
        _ => {
            reads_back::<SnapshotMetaOf<TypeConfig>>(body);
            let _ = check_snapshot(&SnapshotMetaOf::<TypeConfig>::default(), &body.to_vec().into());
        }
    }
}

fn reads_back<T: Serialize + DeserializeOwned>(bytes: &[u8]) {
    let Ok(value) = codec::decode::<T>(bytes) else { return };
    let written = codec::encode(&value).expect("what was read can be written");
    let again = codec::decode::<T>(&written).expect("what was written can be read");
    assert_eq!(codec::encode(&again).expect("as before"), written);
}
