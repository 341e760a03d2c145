//! Why a node refused a call, as a word in the answer's metadata.
//!
//! gRPC's codes are also made by the transport, and "unavailable" from a dead connection must not be
//! taken for "nothing was changed" from a leader: what the next decision rests on is therefore said
//! in a header that only our own code sets.

use tonic::metadata::MetadataValue;
use tonic::{Code, Status};

const HEADER: &str = "trestle-refusal";

/// What a refusal means for the caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refused {
    /// Not a member yet: ask again later.
    NotReady,
    /// Belongs to another cluster that has the same key.
    OtherCluster,
    /// The call was meant for another node, or made in another's name.
    WrongNode,
    /// The caller was taken out of the cluster.
    Removed,
    /// Ask the leader; nothing was changed.
    NotLeader,
    /// Nothing was changed, and the one that was asked found no leader either.
    NoQuorum,
    /// It may or may not take effect.
    Unknown,
    /// The request can't be right, whoever is asked.
    Invalid,
}

impl Refused {
    const ALL: [(Refused, &'static str, Code); 8] = [
        (Refused::NotReady, "not-ready", Code::Unavailable),
        (Refused::OtherCluster, "other-cluster", Code::PermissionDenied),
        (Refused::WrongNode, "wrong-node", Code::PermissionDenied),
        (Refused::Removed, "removed", Code::PermissionDenied),
        (Refused::NotLeader, "not-leader", Code::FailedPrecondition),
        (Refused::NoQuorum, "no-quorum", Code::Unavailable),
        (Refused::Unknown, "unknown-outcome", Code::Aborted),
        (Refused::Invalid, "invalid", Code::InvalidArgument),
    ];

    pub(crate) fn status(self, message: impl Into<String>) -> Status {
        let (_, word, code) = Self::ALL[self as usize];
        let mut status = Status::new(code, message);
        status.metadata_mut().insert(HEADER, MetadataValue::from_static(word));
        status
    }

    /// `None`: the transport failed, or the peer is of another release.
    pub(crate) fn of(status: &Status) -> Option<Refused> {
        let word = status.metadata().get(HEADER)?;
        Self::ALL.iter().find(|(_, name, _)| word == name).map(|(refused, _, _)| *refused)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_refusal_reads_back() {
        for (at, (refused, _, _)) in Refused::ALL.iter().enumerate() {
            assert_eq!(*refused as usize, at, "the table follows the enum");
            assert_eq!(Refused::of(&refused.status("why")), Some(*refused));
        }
    }

    #[test]
    fn a_failure_of_the_transport_is_no_refusal() {
        assert_eq!(Refused::of(&Status::unavailable("connection reset")), None);
    }
}
