//! The kernel's choice of a member, made here: what it would be for a client, by the tables in force.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use trestle_config::model::KernelHash;
use trestle_dataplane::{KernelListener, KernelView};

use crate::ruleset::{Family, SlotTable, table_of};

/// Pools' tables by the names of their maps.
pub type Tables = HashMap<String, Arc<SlotTable>>;

/// By listener and family.
pub(crate) struct Choosers(Vec<[Option<Chooser>; 2]>);

struct Chooser {
    table: Arc<SlotTable>,
    slots: u32,
    seed: u32,
    hash: KernelHash,
    /// Members are so at any port.
    ranged: bool,
}

impl Choosers {
    pub(crate) fn new(view: &KernelView, tables: &Tables) -> Self {
        let chooser = |listener: &KernelListener, family| {
            Some(Chooser {
                table: Arc::clone(tables.get(&table_of(listener, family))?),
                slots: listener.settings.slots,
                seed: view.seed,
                hash: listener.settings.hash,
                ranged: listener.binds.iter().any(|bind| bind.more > 0),
            })
        };
        let both = |listener| [Family::V4, Family::V6].map(|family| chooser(listener, family));
        Self(view.listeners.iter().map(both).collect())
    }

    /// Whether the client of the listener gets this member.
    pub(crate) fn finds(&self, listener: usize, client: SocketAddr, member: SocketAddr) -> bool {
        let Some(of_families) = self.0.get(listener) else { return false };
        let Some(chooser) = &of_families[usize::from(client.is_ipv6())] else { return false };
        let chosen = chooser.choose(client);
        chosen == member || chooser.ranged && chosen.ip() == member.ip()
    }
}

impl Chooser {
    fn choose(&self, client: SocketAddr) -> SocketAddr {
        // As the kernel's registers have it: an address, and a port in the first half of a word.
        let mut key = [0; 20];
        let mut length = match client.ip() {
            IpAddr::V4(ip) => {
                key[..4].copy_from_slice(&ip.octets());
                4
            }
            IpAddr::V6(ip) => {
                key[..16].copy_from_slice(&ip.octets());
                16
            }
        };
        if self.hash == KernelHash::ClientPort {
            key[length..length + 2].copy_from_slice(&client.port().to_be_bytes());
            length += 4;
        }
        let slot = (u64::from(jhash(&key[..length], self.seed)) * u64::from(self.slots)) >> 32;
        self.table.members[self.table.slots[slot as usize] as usize].address
    }
}

/// `jhash` of `linux/jhash.h`, of whole words.
fn jhash(key: &[u8], seed: u32) -> u32 {
    let words: Vec<u32> =
        key.chunks_exact(4).map(|word| u32::from_ne_bytes([word[0], word[1], word[2], word[3]])).collect();
    let begin = 0xdead_beef_u32.wrapping_add(key.len() as u32).wrapping_add(seed);
    let (mut a, mut b, mut c) = (begin, begin, begin);
    let mut rest = &words[..];
    while rest.len() > 3 {
        a = a.wrapping_add(rest[0]);
        b = b.wrapping_add(rest[1]);
        c = c.wrapping_add(rest[2]);
        a = a.wrapping_sub(c) ^ c.rotate_left(4);
        c = c.wrapping_add(b);
        b = b.wrapping_sub(a) ^ a.rotate_left(6);
        a = a.wrapping_add(c);
        c = c.wrapping_sub(b) ^ b.rotate_left(8);
        b = b.wrapping_add(a);
        a = a.wrapping_sub(c) ^ c.rotate_left(16);
        c = c.wrapping_add(b);
        b = b.wrapping_sub(a) ^ a.rotate_left(19);
        a = a.wrapping_add(c);
        c = c.wrapping_sub(b) ^ b.rotate_left(4);
        b = b.wrapping_add(a);
        rest = &rest[3..];
    }
    let word = |at: usize| rest.get(at).copied().unwrap_or(0);
    a = a.wrapping_add(word(0));
    b = b.wrapping_add(word(1));
    c = c.wrapping_add(word(2));
    c = (c ^ b).wrapping_sub(b.rotate_left(14));
    a = (a ^ c).wrapping_sub(c.rotate_left(11));
    b = (b ^ a).wrapping_sub(a.rotate_left(25));
    c = (c ^ b).wrapping_sub(b.rotate_left(16));
    a = (a ^ c).wrapping_sub(c.rotate_left(4));
    b = (b ^ a).wrapping_sub(a.rotate_left(14));
    (c ^ b).wrapping_sub(b.rotate_left(24))
}
