//! A tree of texts that is looked up with few cache misses: the shape of a compiled router.
//!
//! From the root [`Way`]s lead to hosts, from hosts to exact paths and, by path elements, to prefixes. Elements
//! between which no path branches off or ends are one label: it is a radix tree whose branches are found by the
//! hash of their first element.
//!
//! With many hosts what counts is memory, not work, and how much of it stays in the processor's caches. So nodes
//! are small, those of a host stand side by side, and a text is kept once, however many nodes it leads to. And
//! a node is not found through the one before it, but by a hash of all texts that lead to it: the processor knows
//! where the next node is, and fetches it, while the one before is still on its way. A step touches a line of
//! [`Tree::slots`], one of [`Tree::nodes`] and the text; one to nowhere, as a rule, only the first.
//! For 10,000 hosts with 10 rules each that is 1 MiB of slots, 2.2 MB of nodes and 0.3 MB of texts, as long as the
//! hosts' paths are alike. An exact path is five lines away: slot, node and name of the host, slot and node of the
//! path; the latter node is mostly in the line of the former or in the next one.
//!
//! Invariant: texts decide, hashes only say where to look. Each step compares the whole text and the node that
//! it left, so what is reached was spelt by the labels from the root on.

use std::collections::HashMap;
use std::hash::{BuildHasher, Hasher};

/// How one gets from a node to the next: part of what tells nodes apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Way {
    /// By the whole name.
    Host = 1,
    /// By what is left of the name without its first labels.
    Suffix = 2,
    /// By the whole path.
    Path = 4,
    /// By the next elements of the path, without the slash before them.
    Elements = 8,
    /// By no text at all: what goes by regular expressions.
    Regex = 16,
}

/// A node that was reached, and the hash of how.
#[derive(Clone, Copy, Debug)]
pub(super) struct At {
    pub(super) node: u32,
    hash: u64,
}

impl At {
    pub(super) const ROOT: Self = Self { node: 0, hash: 0 };
}

#[derive(Debug)]
pub(super) struct Tree<T, S = ahash::RandomState> {
    /// Numbers of nodes by hash; open addressing. In the bits that a number needs is the number, above them are
    /// bits of the hash, which keep most strangers out. 0 is free: the root is not in here.
    slots: Box<[u32]>,
    /// The root, then the nodes, those of a host together.
    nodes: Box<[Node<T>]>,
    /// Labels, each behind its length.
    texts: Box<[u8]>,
    hasher: S,
}

/// A tree that grows.
#[derive(Debug)]
pub(super) struct Seedling<T, S = ahash::RandomState> {
    nodes: Vec<Node<T>>,
    hashes: Vec<u64>,
    texts: Vec<u8>,
    /// Where texts are.
    known: HashMap<Box<[u8]>, u32, ahash::RandomState>,
    hasher: S,
}

#[derive(Debug)]
struct Node<T> {
    /// The node before.
    from: u32,
    /// Where its text is.
    label: u32,
    way: Way,
    /// Which ways lead on, as bits.
    ways: u8,
    holds: T,
}

impl<T, S: BuildHasher> Tree<T, S> {
    pub(super) fn holds(&self, node: u32) -> &T {
        &self.node(node).holds
    }

    /// The node before this one; the root stands before itself.
    pub(super) fn before(&self, node: u32) -> u32 {
        self.node(node).from
    }

    /// Whether any node is reached from here in this way.
    pub(super) fn leads(&self, node: u32, way: Way) -> bool {
        self.node(node).ways & way as u8 != 0
    }

    /// One step, by the whole text.
    pub(super) fn step(&self, from: At, way: Way, text: &[u8]) -> Option<At> {
        if !self.leads(from.node, way) {
            return None;
        }
        let hash = hash(&self.hasher, from, way, text);
        let is_it = |node: &Node<T>| (self.text(node.label) == text).then_some(());
        self.look_up(from, way, hash, is_it).map(|(at, ())| at)
    }

    /// As far as elements of the path lead.
    pub(super) fn descend(&self, mut at: At, path: &[u8]) -> At {
        let mut rest = path.strip_prefix(b"/");
        while let Some(elements) = rest
            && self.leads(at.node, Way::Elements)
        {
            let hash = hash(&self.hasher, at, Way::Elements, first(elements));
            let is_it = |node: &Node<T>| strip(elements, self.text(node.label));
            match self.look_up(at, Way::Elements, hash, is_it) {
                Some(next) => (at, rest) = next,
                None => break,
            }
        }
        at
    }

    /// The node of this hash that is reached from there in this way and of which `is_it` answers something.
    fn look_up<A>(
        &self,
        from: At,
        way: Way,
        hash: u64,
        is_it: impl Fn(&Node<T>) -> Option<A>,
    ) -> Option<(At, A)> {
        let last = self.slots.len() - 1;
        let mut place = hash as usize & last;
        while self.slots[place] != 0 {
            let slot = self.slots[place];
            let number = slot & last as u32;
            if slot == entry(hash, number, last) {
                let node = self.node(number);
                if node.from == from.node
                    && node.way == way
                    && let Some(answer) = is_it(node)
                {
                    return Some((At { node: number, hash }, answer));
                }
            }
            place = (place + 1) & last;
        }
        None
    }

    fn text(&self, label: u32) -> &[u8] {
        let text = &self.texts[label as usize..];
        match text.split_first_chunk() {
            Some((length, text)) => &text[..u32::from_ne_bytes(*length) as usize],
            None => &[],
        }
    }

    fn node(&self, number: u32) -> &Node<T> {
        &self.nodes[number as usize]
    }
}

impl<T, S: BuildHasher> Seedling<T, S> {
    pub(super) fn new(root: T, hasher: S) -> Self {
        let root = Node { from: 0, label: 0, way: Way::Host, ways: 0, holds: root };
        let (texts, known) = Default::default();
        Self { nodes: vec![root], hashes: vec![0], texts, known, hasher }
    }

    pub(super) fn holds_mut(&mut self, at: At) -> &mut T {
        &mut self.nodes[at.node as usize].holds
    }

    /// A node that is not there yet. Of nodes that are reached by elements from one and the same no two begin
    /// with the same element.
    pub(super) fn grow(&mut self, from: At, way: Way, label: &[u8], holds: T) -> At {
        let key = if way == Way::Elements { first(label) } else { label };
        let at = At { node: number(self.nodes.len()), hash: hash(&self.hasher, from, way, key) };
        self.nodes[from.node as usize].ways |= way as u8;
        let label = self.label(label);
        self.nodes.push(Node { from: from.node, way, ways: 0, label, holds });
        self.hashes.push(at.hash);
        at
    }

    pub(super) fn finish(self) -> Tree<T, S> {
        // Less than half full: most look-ups end at the first slot or the one after it.
        let mut slots = vec![0; (2 * self.nodes.len()).next_power_of_two()];
        let last = slots.len() - 1;
        for (number, hash) in (0..).zip(self.hashes).skip(1) {
            let mut place = hash as usize & last;
            while slots[place] != 0 {
                place = (place + 1) & last;
            }
            slots[place] = entry(hash, number, last);
        }
        let Self { nodes, texts, hasher, .. } = self;
        Tree { slots: slots.into(), nodes: nodes.into(), texts: texts.into(), hasher }
    }

    fn label(&mut self, text: &[u8]) -> u32 {
        if let Some(label) = self.known.get(text) {
            return *label;
        }
        let label = number(self.texts.len());
        self.texts.extend(number(text.len()).to_ne_bytes());
        self.texts.extend(text);
        self.known.insert(text.into(), label);
        label
    }
}

/// What stands in a slot. Its place is from the lower half of the hash, its upper bits are from the other.
fn entry(hash: u64, number: u32, last: usize) -> u32 {
    number | (hash >> 32) as u32 & !(last as u32)
}

/// Hashes of texts can be worked out side by side, since only this little is left to bring them together.
fn hash(hasher: &impl BuildHasher, from: At, way: Way, text: &[u8]) -> u64 {
    const ODD: u64 = 0x9e37_79b9_7f4a_7c15;
    let mut of_text = hasher.build_hasher();
    of_text.write(text);
    (from.hash ^ way as u64).wrapping_mul(ODD) ^ of_text.finish()
}

fn first(elements: &[u8]) -> &[u8] {
    memchr::memchr(b'/', elements).map_or(elements, |end| &elements[..end])
}

/// The elements after those of the label, if any; `None` if it is not what they begin with.
fn strip<'a>(elements: &'a [u8], label: &[u8]) -> Option<Option<&'a [u8]>> {
    match elements.strip_prefix(label)? {
        [] => Some(None),
        [b'/', rest @ ..] => Some(Some(rest)),
        _ => None,
    }
}

pub(super) fn number(count: usize) -> u32 {
    u32::try_from(count).expect("a config has far less than 2³² bytes and matches")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// All texts are alike to it.
    #[derive(Default)]
    struct Blind;

    impl Hasher for Blind {
        fn finish(&self) -> u64 {
            0
        }

        fn write(&mut self, _: &[u8]) {}
    }

    impl BuildHasher for Blind {
        type Hasher = Self;

        fn build_hasher(&self) -> Self {
            Self
        }
    }

    const LONG: &str = "an-element-that-is-too-long-for-a-node";

    /// A tree whose nodes hold what leads to them.
    fn tree<S: BuildHasher>(hasher: S) -> Tree<String, S> {
        let mut tree = Seedling::new("root".to_owned(), hasher);
        let root = At::ROOT;
        for host in ["a", "b", LONG] {
            let mut grow =
                |from, way, label: &str, holds: String| tree.grow(from, way, label.as_bytes(), holds);
            let site = grow(root, Way::Host, host, host.to_owned());
            grow(root, Way::Suffix, host, format!("*.{host}"));
            for path in ["/x", "*", "/x/y", LONG] {
                grow(site, Way::Path, path, format!("{host}={path}"));
            }
            for elements in ["x", "*", "y/z", LONG] {
                let node = grow(site, Way::Elements, elements, format!("{host}/{elements}"));
                grow(node, Way::Elements, "x", format!("{host}/{elements}/x"));
            }
        }
        tree.finish()
    }

    fn check<S: BuildHasher>(tree: &Tree<String, S>) {
        let root = At::ROOT;
        let holds = |at: At| tree.holds(at.node).as_str();
        assert_eq!(holds(root), "root");
        for host in ["a", "b", LONG] {
            let site = tree.step(root, Way::Host, host.as_bytes()).expect("the host");
            assert_eq!(holds(site), host);
            assert_eq!(tree.step(root, Way::Suffix, host.as_bytes()).map(holds), Some(&*format!("*.{host}")));
            for path in ["/x", "*", "/x/y", LONG] {
                let expected = format!("{host}={path}");
                assert_eq!(tree.step(site, Way::Path, path.as_bytes()).map(holds), Some(&*expected));
            }
            for path in ["x", "/y", "/x/", "", "**"] {
                assert!(tree.step(site, Way::Path, path.as_bytes()).is_none(), "{path}");
            }
            for (path, end) in [
                ("/x", "/x"),
                ("/x/y", "/x"),
                ("/x/x/x", "/x/x"),
                ("/xx", ""),
                ("/y", ""),
                ("/y/zz", ""),
                ("/y/z/", "/y/z"),
                ("/y/z/x", "/y/z/x"),
                ("*", ""),
                ("", ""),
                (&format!("/{LONG}/x"), &format!("/{LONG}/x")),
                (&format!("/{LONG}x/x"), ""),
            ] {
                let node = tree.descend(site, path.as_bytes()).node;
                assert_eq!(*tree.holds(node), format!("{host}{end}"), "{path}");
            }
        }
        assert!(tree.step(root, Way::Host, b"c").is_none());
        assert!(tree.step(root, Way::Path, b"/x").is_none());
    }

    #[test]
    fn a_step_goes_by_the_whole_text_and_a_descent_by_elements() {
        check(&tree(ahash::RandomState::new()));
    }

    #[test]
    fn equal_hashes_change_nothing() {
        check(&tree(Blind));
    }

    #[test]
    fn up_again_one_comes_to_where_one_was() {
        let tree = tree(ahash::RandomState::new());
        let site = tree.step(At::ROOT, Way::Host, b"a").expect("the host");
        let node = tree.descend(site, b"/y/z/x").node;
        let names = std::iter::successors(Some(node), |node| Some(tree.before(*node)));
        let names: Vec<_> = names.take(4).map(|node| tree.holds(node).as_str()).collect();
        assert_eq!(names, ["a/y/z/x", "a/y/z", "a", "root"]);
    }

    #[test]
    fn an_empty_tree_leads_nowhere() {
        let tree = Seedling::new((), ahash::RandomState::new()).finish();
        assert!(tree.step(At::ROOT, Way::Host, b"").is_none());
        assert_eq!(tree.descend(At::ROOT, b"/").node, 0);
    }
}
