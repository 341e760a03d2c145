//! The path of a listener's traffic, and how the kernel carries it.

/// By which way a listener's traffic goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum Via {
    /// Through this program.
    #[default]
    Proxy,
    /// Packets are rewritten and passed on by the kernel; where it can't, the listener is not open.
    Kernel,
    /// As [`Via::Kernel`]; where it can't, as [`Via::Proxy`].
    Auto,
}

impl Via {
    /// As in the document.
    pub fn text(self) -> &'static str {
        match self {
            Via::Proxy => "proxy",
            Via::Kernel => "kernel",
            Via::Auto => "auto",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KernelSettings {
    pub mode: KernelMode,
    pub hash: KernelHash,
    /// Of the pool's Maglev table; a prime, 11 to 65,537.
    pub slots: u32,
}

impl KernelSettings {
    /// Of all tables together: a slot takes some 64 bytes of the kernel's memory.
    pub const SLOTS_MAX: u32 = 16 * 65_537;
}

impl Default for KernelSettings {
    fn default() -> Self {
        Self { mode: KernelMode::default(), hash: KernelHash::default(), slots: 65_537 }
    }
}

/// What is rewritten in a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum KernelMode {
    /// The destination: members see the client's address, and their answers must come through us.
    #[default]
    Nat,
    /// The source as well: members see the node's address.
    FullNat,
    /// Nothing: members have the listener's address too, and answer clients themselves.
    Dsr,
}

impl KernelMode {
    /// As in the document.
    pub fn text(self) -> &'static str {
        match self {
            KernelMode::Nat => "nat",
            KernelMode::FullNat => "full-nat",
            KernelMode::Dsr => "dsr",
        }
    }
}

/// What a flow's member is chosen by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum KernelHash {
    Client,
    #[default]
    ClientPort,
}

impl KernelHash {
    /// As in the document.
    pub fn text(self) -> &'static str {
        match self {
            KernelHash::Client => "client",
            KernelHash::ClientPort => "client-port",
        }
    }
}
