//! Output of execs in memory: 16 MiB each at most, and for all of them together a budget of the node's, so that
//! one container's execs cannot take the daemon's memory.

use std::sync::atomic::{AtomicUsize, Ordering};

/// Bytes of all execs together, beyond each one's [`SHARE`].
const BUDGET: usize = 64 << 20;
/// Bytes that an exec has in any case: more than kubelet keeps of a probe's output (10 KiB).
const SHARE: usize = 16 << 10;
/// What was larger than this leaves holes in the heap that are worth giving back.
const LARGE: usize = 1 << 20;

static LEFT: AtomicUsize = AtomicUsize::new(BUDGET);

/// What one stream of one exec wrote, as far as there was room.
#[derive(Debug, Default)]
pub(super) struct Output {
    bytes: Vec<u8>,
    /// Of the budget; given back when this is dropped.
    held: usize,
}

impl Output {
    /// Keeps what there is room for, and says how much that was. The rest is to be dropped, as beyond the limit
    /// of a single exec.
    pub(super) fn take(&mut self, new: &[u8]) -> usize {
        let wanted = self.bytes.len() + new.len();
        if wanted > self.bytes.capacity() {
            self.grow(wanted);
        }
        let fits = new.get(..new.len().min(self.bytes.capacity() - self.bytes.len())).unwrap_or_default();
        self.bytes.extend_from_slice(fits);
        fits.len()
    }

    /// Doubles, as a vector does, but asks the budget first, and takes less where it has less.
    fn grow(&mut self, wanted: usize) {
        let capacity = self.bytes.capacity();
        let (most, least) = (wanted.max(capacity * 2), wanted.max(SHARE));
        for size in [most, least] {
            let beyond = size.saturating_sub(SHARE).saturating_sub(self.held);
            let granted =
                LEFT.fetch_update(Ordering::AcqRel, Ordering::Acquire, |left| left.checked_sub(beyond));
            if granted.is_ok() {
                self.held += beyond;
                self.bytes.reserve_exact(size - self.bytes.len());
                return;
            }
        }
        if capacity < SHARE {
            self.bytes.reserve_exact(SHARE - self.bytes.len());
        }
    }

    /// What was kept. From here on it belongs to the answer, which is sent at once.
    pub(super) fn into_bytes(mut self) -> Vec<u8> {
        std::mem::take(&mut self.bytes)
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        if self.held > 0 {
            LEFT.fetch_add(self.held, Ordering::AcqRel);
            if self.held >= LARGE {
                crate::memory::freed();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_together_have_a_budget_and_each_a_share() {
        let part = vec![7; 8192];
        let mut outputs: Vec<Output> = (0..10).map(|_| Output::default()).collect();
        for output in &mut outputs {
            // 16 MiB each.
            for _ in 0..2048 {
                output.take(&part);
            }
        }
        let sizes: Vec<usize> = outputs.iter().map(|output| output.bytes.len()).collect();
        let total: usize = outputs.iter().map(|output| output.bytes.capacity()).sum();
        assert!(total <= BUDGET + 10 * SHARE, "{total}");
        assert!(total >= BUDGET / 2, "{total}");
        assert!(sizes.iter().all(|size| *size >= SHARE), "{sizes:?}");
        let first = outputs.remove(0).into_bytes();
        assert!(first.len() == sizes[0] && first.iter().all(|byte| *byte == 7));
        drop(outputs);
        assert_eq!(LEFT.load(Ordering::Acquire), BUDGET);
    }
}
