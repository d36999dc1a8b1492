//! What all flows of a connector together may hold in their buffers.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

/// What a flow may always hold, each way: enough to go on.
const SURE: usize = 64 << 10;
/// No flow may have more than this part of what is left.
const PART: usize = 8;

/// Bytes that flows hold, and how many they may.
#[derive(Debug)]
pub(crate) struct Budget {
    limit: usize,
    used: AtomicUsize,
}

impl Budget {
    pub(crate) const fn new(limit: usize) -> Self {
        Self { limit, used: AtomicUsize::new(0) }
    }

    /// What a flow that would like to hold `wanted` bytes may hold.
    fn grant(&self, wanted: usize) -> usize {
        let left = self.limit.saturating_sub(self.used.load(Ordering::Relaxed));
        wanted.min(SURE.max(left / PART))
    }

    #[cfg(test)]
    pub(crate) fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }
}

/// A flow's part of the budget, given back when it ends.
#[derive(Debug)]
pub(super) struct Share {
    budget: Arc<Budget>,
    held: usize,
}

impl Share {
    pub(super) const fn new(budget: Arc<Budget>) -> Self {
        Self { budget, held: 0 }
    }

    /// Bytes held.
    pub(super) const fn held(&self) -> usize {
        self.held
    }

    /// What may be held in all, if `wanted` bytes would do.
    pub(super) fn grant(&self, wanted: usize) -> usize {
        self.budget.grant(wanted)
    }

    /// Whether the budget is spent and this flow holds more than every flow may. What comes now is not kept.
    pub(super) fn is_over(&self) -> bool {
        self.held > SURE && self.budget.used.load(Ordering::Relaxed) >= self.budget.limit
    }

    pub(super) fn take(&mut self, bytes: usize) {
        self.held += bytes;
        self.budget.used.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(super) fn give_back(&mut self, bytes: usize) {
        self.held -= bytes;
        self.budget.used.fetch_sub(bytes, Ordering::Relaxed);
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.budget.used.fetch_sub(self.held, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_more_is_held_the_less_is_granted() {
        let budget = Arc::new(Budget::new(16 << 20));
        let mut one = Share::new(budget.clone());
        let two = Share::new(budget.clone());
        assert_eq!((two.grant(1 << 20), two.grant(8 << 20)), (1 << 20, 2 << 20));
        one.take(12 << 20);
        assert_eq!(two.grant(8 << 20), 512 << 10);
        one.take(4 << 20);
        assert_eq!(two.grant(8 << 20), SURE);
        assert!(one.is_over() && !two.is_over());
        one.give_back(8 << 20);
        assert!(!one.is_over());
        drop(one);
        assert_eq!(budget.used(), 0);
    }
}
