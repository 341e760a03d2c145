//! From one ruleset to another: what makes the kernel follow, no larger than what differs.
//!
//! The kernel carries out one transaction of a network namespace at a time, and a VIP's guard has to get its
//! renewals in between. So slots of large tables, ranges of addresses and flows, which are right one by one, go ahead in
//! pieces; all else,
//! which has to fit together, is one transaction behind them.

use std::collections::BTreeMap;
use std::sync::Arc;

use trestle_netlink::nft::{self, Batch, Element, Hook, Table, TableFlags};

use crate::ruleset::{Base, Content, Family, Patch, Ruleset, Set, SlotTable, Value};

/// Slots, or ends of ranges, that change in one transaction: some 10 ms of the kernel's time.
const SLOTS_A_PIECE: usize = 2048;

/// Transactions, in their order; none is empty.
#[derive(Debug, Default)]
pub struct Change(pub Vec<Batch>);

impl Change {
    /// Everything anew in a table that is not there, which then takes the place of the one that is.
    pub fn anew(table: Table<'_>, flags: TableFlags, instead_of: Option<Table<'_>>, to: &Ruleset) -> Self {
        let mut first = Batch::new();
        first.table(table, flags);
        let mut change = Self(vec![first]);
        change.add(table, &Ruleset::default(), to, instead_of);
        change
    }

    /// What differs; nothing where nothing does.
    pub fn delta(table: Table<'_>, from: &Ruleset, to: &Ruleset) -> Self {
        let mut change = Self::default();
        change.add(table, from, to, None);
        change
    }

    /// What a patch changes.
    pub fn patch(table: Table<'_>, from: &Ruleset, patch: &Patch) -> Self {
        let mut change = Self::default();
        for (name, set) in &patch.0 {
            change.add_in_pieces(table, name, from.sets.get(name), set);
        }
        change
    }

    fn add(&mut self, table: Table<'_>, from: &Ruleset, to: &Ruleset, instead_of: Option<Table<'_>>) {
        for (name, set) in to.sets.iter().filter(|(_, set)| set.content.is_in_pieces()) {
            self.add_in_pieces(table, name, from.sets.get(name), set);
        }
        let mut last = Batch::new();
        put(&mut last, table, from, to);
        if let Some(old) = instead_of {
            last.delete_table(old);
        }
        if !last.is_empty() {
            self.0.push(last);
        }
    }

    fn add_in_pieces(&mut self, table: Table<'_>, name: &str, old: Option<&Set>, set: &Set) {
        if old.is_none() {
            let mut batch = Batch::new();
            batch.set(table, &declared(name, set));
            self.0.push(batch);
        }
        for piece in Difference::in_pieces(old.map(|set| &set.content), &set.content) {
            let mut batch = Batch::new();
            piece.put(&mut batch, table, name);
            self.0.push(batch);
        }
    }
}

/// All of a small ruleset, slots' maps without their slots.
pub(crate) fn put_whole(batch: &mut Batch, table: Table<'_>, to: &Ruleset) {
    let in_pieces = |(_, set): &(&String, &Set)| set.content.is_in_pieces();
    to.sets.iter().filter(in_pieces).for_each(|(name, set)| batch.set(table, &declared(name, set)));
    put(batch, table, &Ruleset::default(), to);
}

/// All but slots, in an order in which nothing is named before it is there, nor goes while it is named.
fn put(batch: &mut Batch, table: Table<'_>, from: &Ruleset, to: &Ruleset) {
    let in_pieces = |set: &Set| set.content.is_in_pieces();
    let stays = |name: &str| from.sets.contains_key(name);
    for (name, set) in to.sets.iter().filter(|(name, set)| !stays(name) && !in_pieces(set)) {
        batch.set(table, &declared(name, set));
    }
    for (name, object) in to.objects.iter().filter(|(name, _)| !from.objects.contains_key(*name)) {
        batch.object(table, name, object);
    }
    for (name, chain) in to.chains.iter().filter(|(name, _)| !from.chains.contains_key(*name)) {
        match chain.hook {
            None => batch.chain(table, name),
            Some(base) => put_base(batch, table, base),
        }
    }
    let changed =
        |name: &str| from.chains.get(name).map(|c| &c.rules) != to.chains.get(name).map(|c| &c.rules);
    for (name, chain) in from.chains.iter().filter(|(name, _)| changed(name)) {
        if !chain.rules.is_empty() {
            batch.flush_chain(table, name);
        }
    }
    for (name, set) in to.sets.iter().filter(|(_, set)| !in_pieces(set)) {
        Difference::of_sets(from.sets.get(name), set).put(batch, table, name);
    }
    for (name, chain) in to.chains.iter().filter(|(name, _)| changed(name)) {
        chain.rules.iter().for_each(|rule| rule.put(batch, table, name));
    }
    // After the elements and rules that led there.
    for name in from.sets.keys().filter(|name| !to.sets.contains_key(*name)) {
        batch.delete_set(table, name);
    }
    for name in from.chains.keys().filter(|name| !to.chains.contains_key(*name)) {
        batch.delete_chain(table, name);
    }
    for (name, object) in from.objects.iter().filter(|(name, _)| !to.objects.contains_key(*name)) {
        batch.delete_object(table, name, object.kind());
    }
}

fn declared<'a>(name: &'a str, set: &Set) -> nft::Set<'a> {
    nft::Set {
        value: set.value,
        interval: set.interval,
        objects: set.objects,
        dynamic: set.metered.is_some(),
        size: set.metered,
        timeout: set.timeout,
        ..nft::Set::new(name, set.key)
    }
}

fn put_base(batch: &mut Batch, table: Table<'_>, base: Base) {
    // NF_INET_*, and the priorities at which nft puts NAT and filters.
    const DESTINATION_NAT: i32 = -100;
    const SOURCE_NAT: i32 = 100;
    // Flows are known by then, and nothing is rewritten yet.
    const BEFORE_NAT: i32 = -150;
    const AFTER_NAT: i32 = 150;
    let hook = |hook| Hook::Inet { hook };
    match base {
        Base::Arrive => batch.nat_chain(table, base.name(), hook(0), DESTINATION_NAT),
        Base::Leave => batch.nat_chain(table, base.name(), hook(4), SOURCE_NAT),
        Base::First => batch.base_chain(table, base.name(), hook(0), BEFORE_NAT),
        Base::Last => batch.base_chain(table, base.name(), hook(4), AFTER_NAT),
        Base::StrayIn => batch.base_chain(table, base.name(), hook(1), 0),
        Base::StrayOn => batch.base_chain(table, base.name(), hook(2), 0),
    }
}

/// Of a set's elements.
#[derive(Default)]
struct Difference {
    gone: Vec<(Vec<u8>, bool)>,
    new: Vec<(Vec<u8>, Value)>,
}

impl Difference {
    fn of_sets(old: Option<&Set>, new: &Set) -> Self {
        match (old.map(|set| &set.content), &new.content) {
            (Some(Content::Elements(old)), Content::Elements(new)) => Self::of_elements(old, new),
            (_, Content::Elements(new)) => Self::of_elements(&BTreeMap::new(), new),
            (_, Content::Slots(_) | Content::Ranges(..) | Content::Kept(_)) => Self::default(),
        }
    }

    fn in_pieces(old: Option<&Content>, new: &Content) -> Vec<Self> {
        match (old, new) {
            (old, Content::Slots(new)) => {
                let old = old.and_then(|old| match old {
                    Content::Slots(old) => Some(old),
                    _ => None,
                });
                let Self { gone, new } = Self::of_slots(old, new);
                let mut gone = gone.chunks(SLOTS_A_PIECE);
                let piece = |new: &[(Vec<u8>, Value)]| {
                    let gone = gone.next().unwrap_or_default().to_vec();
                    Self { gone, new: new.to_vec() }
                };
                new.chunks(SLOTS_A_PIECE).map(piece).collect()
            }
            (Some(Content::Ranges(old, _)), Content::Ranges(new, _)) if Arc::ptr_eq(old, new) => Vec::new(),
            (old, Content::Ranges(_, family)) => {
                let old = old.into_iter().flat_map(Content::ranges);
                Self::of_ranges(old, new.ranges(), *family)
            }
            (old, Content::Kept(new)) => {
                let none = BTreeMap::new();
                let old = match old {
                    Some(Content::Kept(old)) => old,
                    _ => &none,
                };
                let Self { gone, new } = Self::of_elements(old, new);
                // What changed is gone before it is new.
                let gone =
                    gone.chunks(SLOTS_A_PIECE).map(|gone| Self { gone: gone.to_vec(), new: Vec::new() });
                let new = new.chunks(SLOTS_A_PIECE).map(|new| Self { gone: Vec::new(), new: new.to_vec() });
                gone.chain(new).collect()
            }
            (_, Content::Elements(_)) => Vec::new(),
        }
    }

    /// Both sorted, and neither with ranges that touch. No range reaches from one piece into another, so an address
    /// that is in both stays in, whatever comes between.
    fn of_ranges(
        old: impl Iterator<Item = (u128, u128)>,
        new: impl Iterator<Item = (u128, u128)>,
        family: Family,
    ) -> Vec<Self> {
        let (mut old, mut new) = (old.peekable(), new.peekable());
        let (mut pieces, mut piece, mut reach) = (Vec::new(), Self::default(), None);
        loop {
            let range = match (old.peek(), new.peek()) {
                (None, None) => break,
                (Some(a), Some(b)) if a == b => {
                    old.next();
                    new.next();
                    continue;
                }
                (Some(a), Some(b)) => *a.min(b),
                (Some(one), None) | (None, Some(one)) => *one,
            };
            let is_apart = reach.is_none_or(|reach: u128| reach < range.0);
            if is_apart && piece.gone.len() + piece.new.len() >= SLOTS_A_PIECE {
                pieces.push(std::mem::take(&mut piece));
            }
            let bytes = |number: u128| match family {
                Family::V4 => (number as u32).to_be_bytes().to_vec(),
                Family::V6 => number.to_be_bytes().to_vec(),
            };
            let last = match family {
                Family::V4 => u128::from(u32::MAX),
                Family::V6 => u128::MAX,
            };
            // The last address of all ends no interval.
            let end = (range.1 < last).then(|| bytes(range.1 + 1));
            if old.next_if_eq(&range).is_some() {
                piece.gone.push((bytes(range.0), false));
                piece.gone.extend(end.map(|end| (end, true)));
            } else {
                new.next();
                piece.new.push((bytes(range.0), Value::None));
                piece.new.extend(end.map(|end| (end, Value::End)));
            }
            reach = Some(reach.map_or(range.1, |reach: u128| reach.max(range.1)));
        }
        if !(piece.gone.is_empty() && piece.new.is_empty()) {
            pieces.push(piece);
        }
        pieces
    }

    /// Slots whose member is another.
    fn of_slots(old: Option<&Arc<SlotTable>>, new: &Arc<SlotTable>) -> Self {
        let mut difference = Self::default();
        if old.is_some_and(|old| Arc::ptr_eq(old, new)) {
            return difference;
        }
        for slot in 0..new.slots.len() {
            let key = || (slot as u32).to_ne_bytes().to_vec();
            let value = new.value(slot);
            if let Some(old) = old {
                if old.value(slot) == value {
                    continue;
                }
                difference.gone.push((key(), false));
            }
            difference.new.push((key(), Value::Bytes(value)));
        }
        difference
    }

    fn of_elements(old: &BTreeMap<Vec<u8>, Value>, new: &BTreeMap<Vec<u8>, Value>) -> Self {
        let gone = old.iter().filter(|(key, value)| new.get(*key) != Some(value));
        let added = new.iter().filter(|(key, value)| old.get(*key) != Some(value));
        Self {
            gone: gone.map(|(key, value)| (key.clone(), *value == Value::End)).collect(),
            new: added.map(|(key, value)| (key.clone(), value.clone())).collect(),
        }
    }

    fn put(&self, batch: &mut Batch, table: Table<'_>, set: &str) {
        let gone: Vec<_> =
            self.gone.iter().map(|(key, ends)| Element { ends: *ends, ..Element::new(key) }).collect();
        batch.delete_elements(table, set, &gone);
        let new: Vec<_> = self.new.iter().map(|(key, value)| as_element(key, value)).collect();
        batch.add_elements(table, set, &new);
    }
}

fn as_element<'a>(key: &'a [u8], value: &'a Value) -> Element<'a> {
    match value {
        Value::None => Element::new(key),
        Value::Bytes(bytes) => Element::new(key).with(bytes),
        Value::End => Element::end(key),
        Value::Chain(chain) => Element::new(key).going_to(chain),
        Value::Object(object) => Element::new(key).naming(object),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use proptest::prelude::*;
    use trestle_dataplane::Ranges;

    use super::*;

    /// Starts and, apart from them, ends, as the kernel keeps them.
    fn elements(ranges: &Ranges) -> BTreeSet<(Vec<u8>, bool)> {
        let whole = Difference::of_ranges(
            std::iter::empty(),
            ranges.v4().map(|(first, last)| (first.into(), last.into())),
            Family::V4,
        );
        whole.into_iter().flat_map(|piece| piece.new).map(|(key, value)| (key, value == Value::End)).collect()
    }

    /// Of one /24 each; several make a range.
    fn ranges(numbers: &BTreeMap<u8, u8>) -> Ranges {
        let network = |(at, length): (&u8, &u8)| {
            let prefix = 24 + length % 9;
            format!("10.0.{at}.0/{prefix}").parse::<ipnet::IpNet>().unwrap()
        };
        numbers.iter().map(network).collect()
    }

    proptest! {
        #[test]
        fn pieces_make_the_new_ranges_of_the_old_ones(
            old in prop::collection::btree_map(any::<u8>(), any::<u8>(), 0..40),
            new in prop::collection::btree_map(any::<u8>(), any::<u8>(), 0..40),
        ) {
            let (old, new) = (ranges(&old), ranges(&new));
            let mut there = elements(&old);
            let of = |ranges: &Ranges| ranges.v4().map(|(a, b)| (a.into(), b.into())).collect::<Vec<(u128, u128)>>();
            let pieces = Difference::of_ranges(of(&old).into_iter(), of(&new).into_iter(), Family::V4);
            for piece in pieces {
                for gone in &piece.gone {
                    prop_assert!(there.remove(gone), "{gone:?} was not there");
                }
                for (key, value) in &piece.new {
                    prop_assert!(there.insert((key.clone(), *value == Value::End)), "{key:?} is there");
                }
            }
            prop_assert_eq!(there, elements(&new));
        }
    }
}
