//! Netlink messages as bytes: building and reading them, with no meaning attached.
//!
//! Invariant: whatever bytes a reader is given, it ends, never panics and never reads past them; an
//! attribute or message whose length does not fit ends the iteration.
//!
//! Sources: `linux/netlink.h` (nlmsghdr, nlattr), RFC 3549 section 2.3.

/// Length of a message's header.
pub const HEADER: usize = 16;
const ATTRIBUTE_HEADER: usize = 4;

pub const REQUEST: u16 = 0x01;
pub const ACK: u16 = 0x04;
/// Root and match together: the whole table.
pub const DUMP: u16 = 0x300;
pub const REPLACE: u16 = 0x100;
pub const EXCL: u16 = 0x200;
pub const CREATE: u16 = 0x400;
pub const APPEND: u16 = 0x800;
/// In an answer: something changed while the list was made.
pub const DUMP_INTERRUPTED: u16 = 0x10;

pub const TYPE_ERROR: u16 = 2;
pub const TYPE_DONE: u16 = 3;
pub const TYPE_OVERRUN: u16 = 4;

const NESTED: u16 = 0x8000;
const TYPE_MASK: u16 = 0x3fff;

const fn align(length: usize) -> usize {
    (length + 3) & !3
}

/// A place in a message whose length is filled in later.
#[derive(Debug, Clone, Copy)]
#[must_use]
pub struct Open(usize);

/// Bytes of one or more messages in the making.
#[derive(Debug, Clone, Default)]
pub struct Builder {
    bytes: Vec<u8>,
}

impl Builder {
    #[must_use]
    pub fn with_capacity(capacity: usize) -> Self {
        Self { bytes: Vec::with_capacity(capacity) }
    }

    pub fn clear(&mut self) {
        self.bytes.clear();
    }

    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    #[must_use]
    pub fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }

    /// Begins a message; `end_message` fills its length in.
    pub fn message(&mut self, kind: u16, flags: u16, sequence: u32) -> Open {
        let open = Open(self.bytes.len());
        self.bytes.extend_from_slice(&0u32.to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(&flags.to_ne_bytes());
        self.bytes.extend_from_slice(&sequence.to_ne_bytes());
        self.bytes.extend_from_slice(&0u32.to_ne_bytes());
        open
    }

    pub fn end_message(&mut self, open: Open) {
        let length = u32::try_from(self.bytes.len() - open.0).expect("messages are far under 4 GiB");
        self.bytes[open.0..open.0 + 4].copy_from_slice(&length.to_ne_bytes());
        self.pad();
    }

    /// Bytes of the fixed part behind the header.
    pub fn raw(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
        self.pad();
    }

    /// Values are cut at what an attribute can carry (65,531 bytes); nothing of ours comes near.
    pub fn attribute(&mut self, kind: u16, value: &[u8]) {
        let most = usize::from(u16::MAX) - ATTRIBUTE_HEADER;
        let value = &value[..value.len().min(most)];
        let length = (value.len() + ATTRIBUTE_HEADER) as u16;
        self.bytes.extend_from_slice(&length.to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(value);
        self.pad();
    }

    /// A name, with the zero that ends it.
    pub fn name(&mut self, kind: u16, name: &str) {
        let length = (name.len().min(1024) + ATTRIBUTE_HEADER + 1) as u16;
        self.bytes.extend_from_slice(&length.to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(&name.as_bytes()[..name.len().min(1024)]);
        self.bytes.push(0);
        self.pad();
    }

    /// In network order, as nf_tables has its numbers.
    pub fn be32(&mut self, kind: u16, value: u32) {
        self.attribute(kind, &value.to_be_bytes());
    }

    pub fn be64(&mut self, kind: u16, value: u64) {
        self.attribute(kind, &value.to_be_bytes());
    }

    /// In the machine's order, as rtnetlink has its numbers.
    pub fn ne32(&mut self, kind: u16, value: u32) {
        self.attribute(kind, &value.to_ne_bytes());
    }

    pub fn nest(&mut self, kind: u16) -> Open {
        let open = Open(self.bytes.len());
        self.bytes.extend_from_slice(&0u16.to_ne_bytes());
        self.bytes.extend_from_slice(&(kind | NESTED).to_ne_bytes());
        open
    }

    /// The one who fills a nest keeps it under 64 KiB (lists are cut into batches by their callers).
    pub fn end_nest(&mut self, open: Open) {
        let length = u16::try_from(self.bytes.len() - open.0).expect("a nest is kept under 64 KiB");
        self.bytes[open.0..open.0 + 2].copy_from_slice(&length.to_ne_bytes());
    }

    fn pad(&mut self) {
        self.bytes.resize(align(self.bytes.len()), 0);
    }
}

/// One message as it was received.
#[derive(Debug, Clone, Copy)]
pub struct Message<'a> {
    pub kind: u16,
    pub flags: u16,
    pub sequence: u32,
    pub port: u32,
    pub payload: &'a [u8],
}

impl<'a> Message<'a> {
    /// The fixed part of `N` bytes and the attributes behind it.
    #[must_use]
    pub fn split<const N: usize>(&self) -> Option<(&'a [u8; N], Attributes<'a>)> {
        let fixed = self.payload.first_chunk::<N>()?;
        Some((fixed, Attributes(self.payload.get(align(N)..).unwrap_or_default())))
    }
}

/// The messages of one datagram.
#[derive(Debug, Clone)]
pub struct Messages<'a>(pub &'a [u8]);

impl<'a> Iterator for Messages<'a> {
    type Item = Message<'a>;

    fn next(&mut self) -> Option<Message<'a>> {
        let header = self.0.first_chunk::<HEADER>()?;
        let length = ne32(header)? as usize;
        let payload = self.0.get(HEADER..length)?;
        let message = Message {
            kind: ne16(&header[4..])?,
            flags: ne16(&header[6..])?,
            sequence: ne32(&header[8..])?,
            port: ne32(&header[12..])?,
            payload,
        };
        self.0 = self.0.get(align(length)..).unwrap_or_default();
        Some(message)
    }
}

/// A value and its type.
#[derive(Debug, Clone, Copy)]
pub struct Attribute<'a> {
    pub kind: u16,
    pub value: &'a [u8],
}

impl<'a> Attribute<'a> {
    #[must_use]
    pub fn nested(&self) -> Attributes<'a> {
        Attributes(self.value)
    }

    /// Text up to its zero; what is not UTF-8 is replaced.
    #[must_use]
    pub fn text(&self) -> String {
        let end = self.value.iter().position(|byte| *byte == 0).unwrap_or(self.value.len());
        String::from_utf8_lossy(&self.value[..end]).into_owned()
    }

    #[must_use]
    pub fn be32(&self) -> Option<u32> {
        self.value.first_chunk().map(|bytes| u32::from_be_bytes(*bytes))
    }

    #[must_use]
    pub fn be64(&self) -> Option<u64> {
        self.value.first_chunk().map(|bytes| u64::from_be_bytes(*bytes))
    }

    #[must_use]
    pub fn ne32(&self) -> Option<u32> {
        ne32(self.value)
    }
}

/// The attributes of a message or a nest.
#[derive(Debug, Clone, Copy)]
pub struct Attributes<'a>(pub &'a [u8]);

impl<'a> Attributes<'a> {
    /// The first one of this type.
    #[must_use]
    pub fn find(mut self, kind: u16) -> Option<Attribute<'a>> {
        Iterator::find(&mut self, |attribute| attribute.kind == kind)
    }
}

impl<'a> Iterator for Attributes<'a> {
    type Item = Attribute<'a>;

    fn next(&mut self) -> Option<Attribute<'a>> {
        let length = usize::from(ne16(self.0)?);
        let kind = ne16(self.0.get(2..)?)? & TYPE_MASK;
        let value = self.0.get(ATTRIBUTE_HEADER..length)?;
        self.0 = self.0.get(align(length)..).unwrap_or_default();
        Some(Attribute { kind, value })
    }
}

#[must_use]
pub fn ne16(bytes: &[u8]) -> Option<u16> {
    bytes.first_chunk().map(|bytes| u16::from_ne_bytes(*bytes))
}

#[must_use]
pub fn ne32(bytes: &[u8]) -> Option<u32> {
    bytes.first_chunk().map(|bytes| u32::from_ne_bytes(*bytes))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_is_built_reads_back() {
        let mut builder = Builder::default();
        let message = builder.message(20, REQUEST | ACK, 7);
        builder.raw(&[1, 2, 3]);
        let nest = builder.nest(5);
        builder.name(1, "eth0");
        builder.be32(2, 99);
        builder.end_nest(nest);
        builder.be64(6, 1 << 40);
        builder.end_message(message);
        let second = builder.message(21, 0, 8);
        builder.end_message(second);

        let read: Vec<_> = Messages(builder.bytes()).collect();
        assert_eq!(read.len(), 2);
        assert_eq!((read[0].kind, read[0].flags, read[0].sequence), (20, 5, 7));
        let (fixed, attributes) = read[0].split::<3>().unwrap();
        assert_eq!(fixed, &[1, 2, 3]);
        let nest = attributes.find(5).unwrap().nested();
        assert_eq!(nest.find(1).unwrap().text(), "eth0");
        assert_eq!(nest.find(2).unwrap().be32(), Some(99));
        assert_eq!(attributes.find(6).unwrap().be64(), Some(1 << 40));
        assert_eq!(read[1].sequence, 8);
    }

    proptest! {
        #[test]
        fn readers_take_any_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            for message in Messages(&bytes) {
                if let Some((_, attributes)) = message.split::<4>() {
                    for attribute in attributes {
                        let _ = (attribute.text(), attribute.be32(), attribute.be64(), attribute.nested().count());
                    }
                }
            }
            prop_assert!(Attributes(&bytes).count() <= bytes.len() / 4 + 1);
        }
    }
}
