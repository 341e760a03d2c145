//! The crash notice: what a guard says in the name of a node that has died. The node seals it ahead
//! (see [`crate::gossip`]); it holds no secret and is worth nothing but for the epochs in it.

use uuid::Uuid;

use crate::lease::vips::VipName;

/// VIPs in one notice; further ones wait for their leases' end.
const VIPS_MAX: usize = 15;
/// Bytes of a name, as the config bounds it.
const NAME_MAX: usize = 63;

/// `session 16 | count 1 | (length 1 | name | epoch 8)...`
pub(crate) fn write(session: Uuid, vips: &[(VipName, u64)]) -> Vec<u8> {
    let fits = vips.iter().filter(|(name, _)| name.len() <= NAME_MAX).take(VIPS_MAX);
    let mut bytes = session.as_bytes().to_vec();
    bytes.push(0);
    for (name, epoch) in fits {
        bytes[16] += 1;
        bytes.push(name.len() as u8);
        bytes.extend_from_slice(name.as_bytes());
        bytes.extend_from_slice(&epoch.to_be_bytes());
    }
    bytes
}

pub(crate) fn read(bytes: &[u8]) -> Option<(Uuid, Vec<(VipName, u64)>)> {
    let (session, rest) = bytes.split_first_chunk::<16>()?;
    let (&count, mut rest) = rest.split_first()?;
    let mut vips = Vec::new();
    for _ in 0..count {
        let (&length, after) = rest.split_first()?;
        let (name, after) = after.split_at_checked(usize::from(length))?;
        let (epoch, after) = after.split_first_chunk::<8>()?;
        vips.push((VipName::from(std::str::from_utf8(name).ok()?), u64::from_be_bytes(*epoch)));
        rest = after;
    }
    rest.is_empty().then(|| (Uuid::from_bytes(*session), vips))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::gossip::MAX_NOTICE;

    #[test]
    fn the_longest_notice_fits_in_a_datagram() {
        let name = VipName::from("n".repeat(NAME_MAX));
        let vips: Vec<_> = (0..40).map(|epoch| (name.clone(), epoch)).collect();
        let bytes = write(Uuid::nil(), &vips);
        assert!(bytes.len() <= MAX_NOTICE, "{} bytes", bytes.len());
        assert_eq!(read(&bytes).map(|(_, vips)| vips.len()), Some(VIPS_MAX));
    }

    proptest! {
        #[test]
        fn it_reads_back(
            session in any::<u128>(),
            vips in prop::collection::vec(("[a-z][a-z0-9-]{0,20}", any::<u64>()), 0..VIPS_MAX),
        ) {
            let session = Uuid::from_u128(session);
            let vips: Vec<_> = vips.iter().map(|(name, e)| (VipName::from(name.as_str()), *e)).collect();
            prop_assert_eq!(read(&write(session, &vips)), Some((session, vips)));
        }

        #[test]
        fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..1_300)) {
            let _ = read(&bytes);
        }
    }
}
