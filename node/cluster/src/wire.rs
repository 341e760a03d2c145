//! What the datagrams between nodes are made of, as bytes: numbers, what may be absent, and what has changed since a
//! version.
//!
//! A number is LEB128: seven bits a byte, the low ones first. Whatever can't be what a node writes is refused (`None`);
//! no length is believed before what it announces can be there.

/// A number.
pub(crate) fn put(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Bytes that [`put`] writes.
pub(crate) fn number_len(value: u64) -> usize {
    (u64::BITS - value.leading_zeros()).div_ceil(7).max(1) as usize
}

/// `None`: there is no number of 64 bits.
pub(crate) fn number(input: &mut &[u8]) -> Option<u64> {
    let mut value = 0u64;
    for shift in (0..64).step_by(7) {
        let [byte] = take::<1>(input)?;
        let bits = u64::from(byte & 0x7f);
        if shift == 63 && bits > 1 {
            return None;
        }
        value |= bits << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

/// `None`: there is no number of 32 bits.
pub(crate) fn short_number(input: &mut &[u8]) -> Option<u32> {
    number(input)?.try_into().ok()
}

/// All eight bytes, the high one first: of what has no small values.
pub(crate) fn put_whole(out: &mut Vec<u8>, value: u64) {
    out.extend_from_slice(&value.to_be_bytes());
}

pub(crate) fn whole(input: &mut &[u8]) -> Option<u64> {
    take(input).map(u64::from_be_bytes)
}

/// `None`: there are too few bytes.
pub(crate) fn take<const N: usize>(input: &mut &[u8]) -> Option<[u8; N]> {
    let (head, rest) = input.split_first_chunk::<N>()?;
    *input = rest;
    Some(*head)
}

/// 0 or 1.
pub(crate) fn flag(input: &mut &[u8]) -> Option<bool> {
    match take::<1>(input)? {
        [0] => Some(false),
        [1] => Some(true),
        _ => None,
    }
}

/// 0, or 1 and what there is.
pub(crate) fn put_optional<T>(out: &mut Vec<u8>, value: Option<&T>, encode: impl FnOnce(&T, &mut Vec<u8>)) {
    out.push(u8::from(value.is_some()));
    if let Some(value) = value {
        encode(value, out);
    }
}

/// `None` inside: absent. `None` outside: malformed.
pub(crate) fn optional<T>(
    input: &mut &[u8],
    decode: impl FnOnce(&mut &[u8]) -> Option<T>,
) -> Option<Option<T>> {
    match flag(input)? {
        false => Some(None),
        true => Some(Some(decode(input)?)),
    }
}

/// Something that has changed.
pub(crate) trait Change: Sized {
    /// Bytes that one takes at least.
    const LEAST: usize;

    /// The sender's number of this change.
    fn version(&self) -> u64;

    /// `last`: the version of the change before it, or where the delta begins.
    fn encode(&self, last: u64, out: &mut Vec<u8>);

    fn decode(last: u64, input: &mut &[u8]) -> Option<Self>;
}

/// All changes after `from` up to `to`, except those that a later change has overtaken. It says that whatever the receiver
/// has: nothing is left out because it was acknowledged, for the receiver may have begun its table anew while this was
/// under way.
///
/// ```text
/// delta    from | to - from | n | n × change
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Delta<T> {
    pub(crate) from: u64,
    pub(crate) to: u64,
    /// By version, strictly ascending, within (from, to].
    pub(crate) entries: Vec<T>,
}

/// Bytes of the largest [`Delta`] without its changes, of which there are less than 2 to the 21.
pub(crate) const MAX_DELTA_HEAD: usize = 10 + 10 + 3;

impl<T: Change> Delta<T> {
    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        put_span(out, (self.from, self.to));
        put(out, self.entries.len() as u64);
        let mut last = self.from;
        for entry in &self.entries {
            entry.encode(last, out);
            last = entry.version();
        }
    }

    pub(crate) fn decode(input: &mut &[u8]) -> Option<Self> {
        let (from, to) = span(input)?;
        let count = usize::try_from(number(input)?).ok().filter(|count| *count <= input.len() / T::LEAST)?;
        let mut entries = Vec::with_capacity(count);
        let mut last = from;
        for _ in 0..count {
            let entry = T::decode(last, input)?;
            if entry.version() <= last || entry.version() > to {
                return None;
            }
            last = entry.version();
            entries.push(entry);
        }
        Some(Self { from, to, entries })
    }
}

/// Two numbers, of which the second is not the smaller one.
pub(crate) fn put_span(out: &mut Vec<u8>, (from, to): (u64, u64)) {
    put(out, from);
    put(out, to - from);
}

pub(crate) fn span(input: &mut &[u8]) -> Option<(u64, u64)> {
    let from = number(input)?;
    Some((from, from.checked_add(number(input)?)?))
}
