//! Entries for fuzzers, with what must hold of any bytes. Their corpora are replayed as tests.

use openraft::alias::{EntryOf, SnapshotMetaOf, VoteOf};
use openraft::raft::{AppendEntriesRequest, TransferLeaderRequest, VoteRequest};
use serde::Serialize;
use serde::de::DeserializeOwned;
use trestle_raft_store::codec;
use trestle_raft_store::machine::check_snapshot;
use trestle_raft_store::types::{Command, NodeProfile, Outcome, State, TypeConfig};

pub use crate::gossip::fuzzing::datagram;

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

/// What a member answers to a health check by DNS or SMTP.
pub fn answer(data: &[u8]) {
    crate::health::fuzz_answer(data);
}

fn reads_back<T: Serialize + DeserializeOwned>(bytes: &[u8]) {
    let Ok(value) = codec::decode::<T>(bytes) else { return };
    let written = codec::encode(&value).expect("what was read can be written");
    let again = codec::decode::<T>(&written).expect("what was written can be read");
    assert_eq!(codec::encode(&again).expect("as before"), written);
}

#[cfg(test)]
mod tests {
    fn replay(target: &str, least: usize, entry: fn(&[u8])) {
        let corpus = format!("{}/fuzz/corpus/{target}", env!("CARGO_MANIFEST_DIR"));
        let mut files = 0;
        for file in std::fs::read_dir(corpus).expect("the corpus is part of the repository") {
            entry(&std::fs::read(file.expect("listed").path()).expect("readable"));
            files += 1;
        }
        assert!(files >= least, "{target}: {files} files");
    }

    #[test]
    fn the_fuzz_corpora_break_nothing() {
        replay("gossip_datagram", 6, super::datagram);
        replay("rpc", 20, super::rpc);
        replay("answer", 5, super::answer);
    }
}
