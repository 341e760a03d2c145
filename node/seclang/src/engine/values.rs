//! Values of a request, each transformed and searched at most once.

use std::borrow::Cow;

use crate::ruleset::Rules;
use crate::transform::Transformation;

/// Not done yet.
const UNKNOWN: u32 = u32::MAX;

#[derive(Debug)]
struct Held<'a> {
    bytes: Cow<'a, [u8]>,
    /// What each transformation makes of it.
    made: [u32; Transformation::COUNT],
    /// Bits of the tests for which a word is there.
    bits: Option<Box<[u64]>>,
}

/// A value, by its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Number(u32);

#[derive(Debug)]
pub(super) struct Values<'a> {
    rules: &'a Rules,
    held: Vec<Held<'a>>,
}

impl<'a> Values<'a> {
    pub(super) fn new(rules: &'a Rules) -> Self {
        Self { rules, held: Vec::with_capacity(64) }
    }

    pub(super) fn add(&mut self, bytes: Cow<'a, [u8]>) -> Number {
        let number = u32::try_from(self.held.len()).unwrap_or(UNKNOWN);
        self.held.push(Held { bytes, made: [UNKNOWN; Transformation::COUNT], bits: None });
        Number(number)
    }

    pub(super) fn bytes(&self, number: Number) -> &[u8] {
        self.held.get(number.0 as usize).map_or(b"", |held| &held.bytes)
    }

    /// What the transformation makes of it; with how many bytes that took.
    pub(super) fn transformed(&mut self, number: Number, by: Transformation) -> (Number, usize) {
        let Some(held) = self.held.get(number.0 as usize) else { return (number, 0) };
        match held.made.get(by as usize) {
            Some(&known) if known != UNKNOWN => return (Number(known), 0),
            _ => {}
        }
        let size = held.bytes.len();
        let made = match by.apply(&held.bytes) {
            Some(bytes) => self.add(Cow::Owned(bytes)),
            None => number,
        };
        if let Some(place) =
            self.held.get_mut(number.0 as usize).and_then(|held| held.made.get_mut(by as usize))
        {
            *place = made.0;
        }
        (made, size)
    }

    /// Whether a word of a test is in it; with how many bytes that took.
    pub(super) fn has(&mut self, number: Number, bit: usize) -> (bool, usize) {
        let Some(held) = self.held.get_mut(number.0 as usize) else { return (true, 0) };
        let size = if held.bits.is_some() { 0 } else { held.bytes.len() };
        let rules = self.rules;
        let bits = held.bits.get_or_insert_with(|| search(rules, &held.bytes));
        let word = bits.get(bit / 64).copied().unwrap_or(0);
        (word & 1 << (bit % 64) != 0, size)
    }
}

fn search(rules: &Rules, bytes: &[u8]) -> Box<[u64]> {
    let mut bits = vec![0u64; rules.bit_count.div_ceil(64)].into_boxed_slice();
    let Some(words) = &rules.words else { return bits };
    let mut seen = vec![false; 0];
    for found in words.find_overlapping_iter(bytes) {
        let word = found.pattern().as_usize();
        // A word that comes again says nothing new.
        if seen.is_empty() {
            seen.resize(rules.bits.len(), false);
        }
        match seen.get_mut(word) {
            Some(seen) if !*seen => *seen = true,
            _ => continue,
        }
        for bit in rules.bits.get(word).into_iter().flatten() {
            if let Some(place) = bits.get_mut(*bit as usize / 64) {
                *place |= 1 << (bit % 64);
            }
        }
    }
    bits
}
