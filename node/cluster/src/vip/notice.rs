//! The crash notice: what a guard says in the name of a node that has died. The node seals it ahead
//! (see [`crate::gossip`]); it holds no secret.
//!
//! It names the guard's session, and so all that this one held, however many VIPs that is: a guard says
//! it once everything is gone, at its own end, and its session takes nothing ever again. So does a node that was
//! removed, whose renewals nobody hears: it says it itself, once it holds nothing, and takes nothing more.

use uuid::Uuid;

pub(crate) fn write(session: Uuid) -> Vec<u8> {
    session.as_bytes().to_vec()
}

pub(crate) fn read(bytes: &[u8]) -> Option<Uuid> {
    Uuid::from_slice(bytes).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::gossip::MAX_NOTICE;

    proptest! {
        #[test]
        fn it_fits_in_a_datagram_and_reads_back(session in any::<u128>()) {
            let session = Uuid::from_u128(session);
            let bytes = write(session);
            prop_assert!(bytes.len() <= MAX_NOTICE);
            prop_assert_eq!(read(&bytes), Some(session));
        }

        #[test]
        fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..1_300)) {
            prop_assert_eq!(read(&bytes).is_some(), bytes.len() == 16);
        }
    }
}
