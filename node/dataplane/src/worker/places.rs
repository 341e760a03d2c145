//! A bounded number of things under way on a worker.

use std::cell::Cell;
use std::rc::Rc;

#[derive(Debug, Default)]
pub(crate) struct Places(Rc<Cell<usize>>);

/// Given back when it is dropped.
#[derive(Debug)]
pub(crate) struct Place(Rc<Cell<usize>>);

impl Places {
    /// `None`: all of `most` are taken.
    pub(crate) fn take(&self, most: usize) -> Option<Place> {
        let taken = self.0.get();
        (taken < most).then(|| {
            self.0.set(taken + 1);
            Place(Rc::clone(&self.0))
        })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_are_so_many_and_no_more() {
        let places = Places::default();
        let held: Vec<_> = (0..3).map_while(|_| places.take(2)).collect();
        assert_eq!(held.len(), 2);
        drop(held);
        assert!(places.take(2).is_some());
    }
}
