//! The typed keys of a node's gossip state, and their text.
//!
//! Chitchat's values are strings, it sends a node's whole state to whoever is new, and it can't send
//! a value larger than its message. So keys are few, values small, and a value that is too large is
//! refused where it is set.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Bytes of one value: enough for the health of [`MAX_MEMBERS`].
pub const MAX_VALUE: usize = 4 * 1024;
/// Members of one pool.
pub const MAX_MEMBERS: usize = 10_000;
/// Bytes of all keys and values that a node sets.
pub const MAX_STATE: usize = 256 * 1024;

const NEWS: &str = "news";
const HEALTH: &str = "health/";
const VIP: &str = "vip/";
/// Characters of why a VIP can't be held: more is cut off.
const MAX_PROBLEM: usize = 256;

/// What a node says about itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct NodeNews {
    /// Revision that it serves.
    pub revision: u64,
    /// Release, `major.minor.patch`.
    pub version: String,
    pub draining: bool,
    /// `host:port` of the admin API.
    pub admin: String,
    /// The newest state format that it reads.
    pub feature_level: u32,
    /// By what it is overloaded; empty: it is not.
    pub strain: String,
    /// Which keys of the cluster it has.
    pub keys: KeyNews,
    /// The newest purge of caches that it acts by.
    pub purged: u64,
}

/// Fingerprints: no secrets.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct KeyNews {
    /// The one that it uses; empty: a release that does not say.
    pub current: String,
    /// The one that it accepts too.
    pub other: Option<String>,
    /// Of what stays when keys are exchanged.
    pub seeds: String,
    /// Contents and ticket keys in its state that are not sealed under the current one.
    pub stale: usize,
}

/// A VIP at a node, as that one says: for people, nothing is decided by it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct VipNews {
    /// Epoch under which its guard holds it; 0: it does not.
    pub held: u64,
    /// It serves what began there before the VIP went elsewhere.
    pub kept: bool,
    /// Why it can't be held there.
    pub problem: Option<String>,
}

/// What one prober saw of one member.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Observation {
    /// Not probed by this node, or not often enough yet.
    #[default]
    Unknown,
    Up,
    Down,
}

/// One prober's observations of a pool, in the order of the pool's members at the revision that the
/// observations name. Two bits a member.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HealthBits {
    members: Vec<Observation>,
}

/// A value that can't be gossiped; nothing was set.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TooLarge {
    #[error("{key:?} would take {bytes} bytes, gossip carries {MAX_VALUE} a key")]
    Value { key: String, bytes: usize },
    #[error("with {key:?} this node would gossip {bytes} bytes, the limit is {MAX_STATE}")]
    State { key: String, bytes: usize },
    #[error("pool {pool:?} has {members} members, gossip carries the health of {MAX_MEMBERS}")]
    Members { pool: String, members: usize },
}

/// The first character of an alphabet of 64 in a row, all printable ASCII: three members each.
const ALPHABET: u8 = b'0';

impl HealthBits {
    /// All [`Observation::Unknown`].
    pub fn new(members: usize) -> HealthBits {
        HealthBits { members: vec![Observation::Unknown; members] }
    }

    pub fn len(&self) -> usize {
        self.members.len()
    }

    pub fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    /// [`Observation::Unknown`] past the end.
    pub fn at(&self, member: usize) -> Observation {
        self.members.get(member).copied().unwrap_or_default()
    }

    /// Ignored past the end.
    pub fn set(&mut self, member: usize, seen: Observation) {
        if let Some(slot) = self.members.get_mut(member) {
            *slot = seen;
        }
    }

    pub fn iter(&self) -> impl Iterator<Item = Observation> + '_ {
        self.members.iter().copied()
    }

    fn encode(&self, out: &mut String) {
        for three in self.members.chunks(3) {
            let bits = three.iter().rev().fold(0, |bits, seen| bits << 2 | seen.bits());
            out.push(char::from(ALPHABET + bits));
        }
    }

    fn decode(members: usize, text: &str) -> Option<HealthBits> {
        if members > MAX_MEMBERS || text.len() != members.div_ceil(3) {
            return None;
        }
        let mut seen = Vec::with_capacity(members + 2);
        for byte in text.bytes() {
            let bits = byte.checked_sub(ALPHABET).filter(|bits| *bits < 64)?;
            seen.extend([bits & 3, bits >> 2 & 3, bits >> 4].map(Observation::from_bits));
        }
        let (kept, padding) = seen.split_at(members);
        if padding.iter().any(|seen| *seen != Some(Observation::Unknown)) {
            return None;
        }
        Some(HealthBits { members: kept.iter().copied().collect::<Option<_>>()? })
    }
}

impl FromIterator<Observation> for HealthBits {
    fn from_iter<I: IntoIterator<Item = Observation>>(members: I) -> HealthBits {
        HealthBits { members: members.into_iter().collect() }
    }
}

impl Observation {
    fn bits(self) -> u8 {
        match self {
            Observation::Unknown => 0,
            Observation::Up => 1,
            Observation::Down => 2,
        }
    }

    fn from_bits(bits: u8) -> Option<Observation> {
        match bits {
            0 => Some(Observation::Unknown),
            1 => Some(Observation::Up),
            2 => Some(Observation::Down),
            _ => None,
        }
    }
}

/// A node's keys as another node reads them. What does not parse is absent: a newer release may
/// write what this one can't read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct NodeKeys {
    pub(crate) news: Option<NodeNews>,
    /// Pool -> revision that last changed its members or check, and what was seen.
    pub(crate) health: BTreeMap<String, (u64, HealthBits)>,
    pub(crate) vips: BTreeMap<String, VipNews>,
}

impl NodeKeys {
    pub(crate) fn parse<'a>(keys: impl Iterator<Item = (&'a str, &'a str)>) -> NodeKeys {
        let mut parsed = NodeKeys::default();
        for (key, value) in keys {
            if key == NEWS {
                parsed.news = serde_json::from_str(value).ok();
            } else if let Some(pool) = key.strip_prefix(HEALTH)
                && let Some(health) = parse_health(value)
            {
                parsed.health.insert(pool.to_owned(), health);
            } else if let Some(vip) = key.strip_prefix(VIP)
                && let Ok(news) = serde_json::from_str(value)
            {
                parsed.vips.insert(vip.to_owned(), news);
            }
        }
        parsed
    }
}

/// `revision:members:bits`
fn parse_health(value: &str) -> Option<(u64, HealthBits)> {
    let mut parts = value.splitn(3, ':');
    let revision = parts.next()?.parse().ok()?;
    let members = parts.next()?.parse().ok()?;
    Some((revision, HealthBits::decode(members, parts.next()?)?))
}

/// The keys that this node sets, within their bounds.
#[derive(Debug, Default)]
pub(crate) struct OwnKeys {
    keys: BTreeMap<String, String>,
    bytes: usize,
}

impl OwnKeys {
    pub(crate) fn set_news(&mut self, news: &NodeNews) -> Result<bool, TooLarge> {
        let value = serde_json::to_string(news).expect("numbers and strings are always JSON");
        self.set(NEWS.to_owned(), value)
    }

    pub(crate) fn set_health(
        &mut self,
        pool: &str,
        revision: u64,
        bits: &HealthBits,
    ) -> Result<bool, TooLarge> {
        if bits.len() > MAX_MEMBERS {
            return Err(TooLarge::Members { pool: pool.to_owned(), members: bits.len() });
        }
        let mut value = format!("{revision}:{}:", bits.len());
        bits.encode(&mut value);
        self.set(format!("{HEALTH}{pool}"), value)
    }

    pub(crate) fn clear_health(&mut self, pool: &str) -> bool {
        self.clear(&format!("{HEALTH}{pool}"))
    }

    /// All of them: those that are not named are forgotten.
    pub(crate) fn set_vips(&mut self, vips: &BTreeMap<String, VipNews>) -> Result<bool, TooLarge> {
        let key = |vip: &str| format!("{VIP}{vip}");
        let gone = |name: &&String| name.strip_prefix(VIP).is_some_and(|vip| !vips.contains_key(vip));
        let gone: Vec<_> = self.keys.keys().filter(gone).cloned().collect();
        let mut changed = false;
        for name in gone {
            changed |= self.clear(&name);
        }
        for (vip, news) in vips {
            let problem = news.problem.as_ref().map(|why| why.chars().take(MAX_PROBLEM).collect());
            let news = VipNews { problem, ..news.clone() };
            let value = serde_json::to_string(&news).expect("numbers and strings are always JSON");
            changed |= self.set(key(vip), value)?;
        }
        Ok(changed)
    }

    fn clear(&mut self, key: &str) -> bool {
        let Some(value) = self.keys.remove(key) else { return false };
        self.bytes -= key.len() + value.len();
        true
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.keys.iter().map(|(key, value)| (key.as_str(), value.as_str()))
    }

    pub(crate) fn contains(&self, key: &str) -> bool {
        self.keys.contains_key(key)
    }

    /// Whether that changed anything.
    fn set(&mut self, key: String, value: String) -> Result<bool, TooLarge> {
        let size = key.len() + value.len();
        if size > MAX_VALUE {
            return Err(TooLarge::Value { key, bytes: size });
        }
        let before = self.keys.get(&key);
        if before == Some(&value) {
            return Ok(false);
        }
        let bytes = self.bytes + size - before.map_or(0, |before| key.len() + before.len());
        if bytes > MAX_STATE {
            return Err(TooLarge::State { key, bytes });
        }
        self.bytes = bytes;
        self.keys.insert(key, value);
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn observation() -> impl Strategy<Value = Observation> {
        prop_oneof![Just(Observation::Unknown), Just(Observation::Up), Just(Observation::Down)]
    }

    fn bits(most: usize) -> impl Strategy<Value = HealthBits> {
        prop::collection::vec(observation(), 0..most).prop_map(HealthBits::from_iter)
    }

    #[test]
    fn ten_thousand_members_fit_one_value() {
        let mut own = OwnKeys::default();
        let bits = HealthBits::from_iter(vec![Observation::Down; MAX_MEMBERS]);
        assert_eq!(own.set_health(&"p".repeat(255), u64::MAX, &bits), Ok(true));
        assert_eq!(own.set_health(&"p".repeat(255), u64::MAX, &bits), Ok(false), "nothing changed");
        let read = NodeKeys::parse(own.iter());
        assert_eq!(read.health[&"p".repeat(255)], (u64::MAX, bits));
    }

    #[test]
    fn what_is_too_large_is_refused_and_leaves_the_rest_as_it_was() {
        let mut own = OwnKeys::default();
        let most = HealthBits::new(MAX_MEMBERS + 1);
        assert!(matches!(own.set_health("p", 1, &most), Err(TooLarge::Members { .. })));
        let news = NodeNews { admin: "a".repeat(MAX_VALUE), ..NodeNews::default() };
        assert!(matches!(own.set_news(&news), Err(TooLarge::Value { .. })));
        assert_eq!(own.iter().count(), 0);
        let full = HealthBits::new(9_000);
        let refused = (0..1_000).map(|n| own.set_health(&format!("pool-{n}"), 1, &full));
        assert!(refused.filter(|set| matches!(set, Err(TooLarge::State { .. }))).count() > 900);
        assert!(own.bytes <= MAX_STATE);
        for n in 0..1_000 {
            own.clear_health(&format!("pool-{n}"));
        }
        assert_eq!(own.bytes, 0);
    }

    #[test]
    fn vips_are_told_of_as_they_are_and_forgotten_when_they_go() {
        let mut own = OwnKeys::default();
        let held = VipNews { held: 41, kept: true, problem: None };
        let bad = VipNews { problem: Some("\u{e9}".repeat(MAX_VALUE)), ..VipNews::default() };
        let both = BTreeMap::from([("a".to_owned(), held.clone()), ("b".to_owned(), bad)]);
        assert_eq!(own.set_vips(&both), Ok(true));
        assert_eq!(own.set_vips(&both), Ok(false), "nothing changed");
        let read = NodeKeys::parse(own.iter()).vips;
        assert_eq!(read["a"], held);
        assert_eq!(read["b"].problem.as_ref().map(|why| why.chars().count()), Some(MAX_PROBLEM));
        assert_eq!(own.set_vips(&BTreeMap::new()), Ok(true));
        assert_eq!((own.iter().count(), own.bytes), (0, 0));
    }

    #[test]
    fn values_that_do_not_parse_are_absent() {
        for value in
            ["", "1", "1:3", "1:3:", "1:3:00", "x:3:0", "1:99999999999:0", "1:1:~", "1:1:\u{e9}", "1:1:@"]
        {
            assert_eq!(parse_health(value), None, "{value:?}");
        }
        assert_eq!(NodeKeys::parse([("news", "{"), ("other", "x")].into_iter()), NodeKeys::default());
    }

    #[test]
    fn news_of_a_newer_release_are_read() {
        let keys = [("news", r#"{"revision":7,"version":"9.0.0","mood":"good"}"#)];
        let news = NodeKeys::parse(keys.into_iter()).news.expect("read");
        assert_eq!((news.revision, news.version.as_str()), (7, "9.0.0"));
    }

    proptest! {
        #[test]
        fn health_survives_the_wire(bits in bits(400), revision in any::<u64>()) {
            let mut own = OwnKeys::default();
            own.set_health("pool", revision, &bits).expect("fits");
            prop_assert_eq!(&NodeKeys::parse(own.iter()).health["pool"], &(revision, bits));
        }

        #[test]
        fn any_text_is_parsed_without_panic(value in ".{0,60}") {
            let _ = parse_health(&value);
            let keys = [("news", value.as_str()), ("health/x", value.as_str()), ("vip/x", value.as_str())];
            NodeKeys::parse(keys.into_iter());
        }
    }
}
