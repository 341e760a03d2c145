//! What the node has not read yet.

use std::collections::VecDeque;

use super::problem;
use crate::protocol::{FromGuard, LinkError, NodeLink};

/// Beside what the socket holds. A node that is further behind hangs, and its leases end.
const MESSAGES_MAX: usize = 512;

#[derive(Debug, Default)]
pub(super) struct Outbox {
    waiting: VecDeque<FromGuard>,
    lost: usize,
}

impl Outbox {
    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Beyond the bound it is counted, and the node hears how many it missed.
    pub(super) fn put(&mut self, message: FromGuard) {
        if self.waiting.len() < MESSAGES_MAX {
            self.waiting.push_back(message);
        } else {
            self.lost += 1;
        }
    }

    pub(super) fn flush(&mut self, link: &NodeLink) {
        while let Some(message) = self.waiting.front() {
            // What can't be sent at all (too long) is dropped; a closed end shows when it is read.
            if let Err(LinkError::Full) = link.send(message) {
                return;
            }
            self.waiting.pop_front();
            if self.waiting.is_empty() && self.lost > 0 {
                let lost = std::mem::take(&mut self.lost);
                self.waiting.push_back(problem(format!("{lost} messages of the guard were lost")));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::{GuardLink, Link, pair};

    #[test]
    fn a_node_that_does_not_read_costs_a_bounded_queue_and_hears_what_it_missed() {
        let (node, guard) = pair().unwrap();
        let (mut node, guard): (GuardLink, NodeLink) = (Link::new(node).unwrap(), Link::new(guard).unwrap());
        let mut outbox = Outbox::default();
        for _ in 0..20_000 {
            outbox.put(FromGuard::Silent { vip: "front".to_owned() });
            outbox.flush(&guard);
        }
        assert_eq!(outbox.waiting.len(), MESSAGES_MAX);
        let mut last = None;
        loop {
            match node.try_recv().unwrap() {
                Some(message) => last = Some(message),
                None if outbox.is_empty() => break,
                None => outbox.flush(&guard),
            }
        }
        let Some(FromGuard::Problem { text, .. }) = last else { panic!("{last:?}") };
        assert!(text.ends_with("messages of the guard were lost"), "{text}");
    }
}
