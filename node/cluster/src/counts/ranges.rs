//! A small set of version ranges: what of another's changes has arrived.

/// Versions, which begin at 1, as disjoint half-open ranges in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Ranges {
    /// (first, one past the last); at most [`Ranges::MOST`].
    ranges: Vec<(u64, u64)>,
}

impl Ranges {
    /// One more forgets the highest: what it covered is sent again.
    pub(crate) const MOST: usize = 16;

    /// All versions up to this one are in the set.
    pub(crate) fn prefix(&self) -> u64 {
        self.ranges.first().filter(|(first, _)| *first <= 1).map_or(0, |(_, end)| end - 1)
    }

    pub(crate) fn contains(&self, version: u64) -> bool {
        let at = self.ranges.partition_point(|(first, _)| *first <= version);
        at > 0 && version < self.ranges[at - 1].1
    }

    /// The first (from, to] that is missing after `from`, up to `last`.
    pub(crate) fn gap(&self, mut from: u64, last: u64) -> Option<(u64, u64)> {
        for (held_from, held_to) in self.iter() {
            if held_from <= from && held_to > from {
                from = held_to;
            }
        }
        let next = self.iter().map(|(held_from, _)| held_from).find(|held_from| *held_from > from);
        (from < last).then(|| (from, next.map_or(last, |next| next.min(last))))
    }

    /// Adds the versions after `from`, up to and with `to`.
    pub(crate) fn insert(&mut self, from: u64, to: u64) {
        let (mut first, mut end) = (from.saturating_add(1), to.saturating_add(1));
        if first >= end {
            return;
        }
        self.ranges.retain(|(other_first, other_end)| {
            let apart = *other_end < first || *other_first > end;
            if !apart {
                first = first.min(*other_first);
                end = end.max(*other_end);
            }
            apart
        });
        let at = self.ranges.partition_point(|(other, _)| *other < first);
        self.ranges.insert(at, (first, end));
        self.ranges.truncate(Self::MOST);
    }

    pub(crate) fn union(&mut self, other: &Ranges) {
        for (first, end) in &other.ranges {
            self.insert(first - 1, end - 1);
        }
    }

    /// Forgets what lies past `last`.
    pub(crate) fn clip(&mut self, last: u64) {
        self.ranges.retain(|(first, _)| *first <= last);
        if let Some((_, end)) = self.ranges.last_mut() {
            *end = (*end).min(last.saturating_add(1));
        }
    }

    /// (from, to] of each, in order.
    pub(crate) fn iter(&self) -> impl ExactSizeIterator<Item = (u64, u64)> + '_ {
        self.ranges.iter().map(|(first, end)| (first - 1, end - 1))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn ranges_agree_with_a_plain_set(
            inserts in prop::collection::vec((0u64..60, 0u64..12), 0..14),
            clip in 0u64..70,
        ) {
            let (mut ranges, mut plain) = (Ranges::default(), BTreeSet::new());
            for (from, length) in inserts {
                ranges.insert(from, from + length);
                plain.extend(from + 1..=from + length);
            }
            let same = |ranges: &Ranges, plain: &BTreeSet<u64>| {
                (0..90).all(|v| ranges.contains(v) == plain.contains(&v))
                    && (0..80).all(|from| {
                        let missing = (from + 1..=80).find(|v| !plain.contains(v));
                        let end = missing.map(|m| (m..=80).take_while(|v| !plain.contains(v)).last().unwrap_or(m));
                        ranges.gap(from, 80) == missing.zip(end).map(|(m, end)| (m - 1, end))
                    })
                    && ranges.prefix() == (1..).take_while(|v| plain.contains(v)).last().unwrap_or(0)
            };
            prop_assert!(same(&ranges, &plain), "{ranges:?} {plain:?}");
            ranges.clip(clip);
            plain.retain(|v| *v <= clip);
            prop_assert!(same(&ranges, &plain), "{ranges:?} {plain:?}");
        }

        #[test]
        fn any_ranges_stay_bounded_and_never_claim_too_much(
            inserts in prop::collection::vec((any::<u64>(), any::<u64>()), 0..60),
        ) {
            let mut ranges = Ranges::default();
            for (from, to) in &inserts {
                ranges.insert(*from, *to);
                prop_assert!(ranges.iter().len() <= Ranges::MOST);
            }
            for (from, to) in ranges.iter() {
                prop_assert!(inserts.iter().any(|(f, t)| *f == from && *t > from), "{from} {to}");
            }
        }
    }
}
