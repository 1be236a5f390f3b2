//! Output of execs in memory. All execs of the node share one limit, so that the execs of one container cannot use up
//! the daemon's memory.

use std::sync::atomic::{AtomicUsize, Ordering};

/// Maximum size of all outputs together in bytes, in addition to the [`SHARE`] of each.
const BUDGET: usize = 64 << 20;
/// Bytes that each output may always have: more than kubelet keeps of a probe's (10 KiB).
const SHARE: usize = 16 << 10;
/// After an output that took more than this of the common limit, free heap memory is returned to the kernel.
const LARGE: usize = 1 << 20;

static LEFT: AtomicUsize = AtomicUsize::new(BUDGET);

/// The output of one stream of one exec, up to the limits.
#[derive(Debug, Default)]
pub(super) struct Output {
    bytes: Vec<u8>,
    /// Bytes taken from the common limit; returned on drop.
    taken: usize,
}

impl Output {
    /// Keeps as many bytes as the limits allow, and returns how many. The caller drops the rest.
    pub(super) fn take(&mut self, new: &[u8]) -> usize {
        let wanted = self.bytes.len() + new.len();
        if wanted > self.bytes.capacity() {
            self.grow(wanted);
        }
        let fits = new.get(..new.len().min(self.bytes.capacity() - self.bytes.len())).unwrap_or_default();
        self.bytes.extend_from_slice(fits);
        fits.len()
    }

    /// Makes room for `wanted` bytes: for twice the capacity, as a vector does, if the common limit allows it.
    fn grow(&mut self, wanted: usize) {
        let capacity = self.bytes.capacity();
        let (most, least) = (wanted.max(capacity * 2), wanted.max(SHARE));
        for size in [most, least] {
            let beyond = size.saturating_sub(SHARE).saturating_sub(self.taken);
            let granted =
                LEFT.fetch_update(Ordering::AcqRel, Ordering::Acquire, |left| left.checked_sub(beyond));
            if granted.is_ok() {
                self.taken += beyond;
                self.bytes.reserve_exact(size - self.bytes.len());
                return;
            }
        }
        if capacity < SHARE {
            self.bytes.reserve_exact(SHARE - self.bytes.len());
        }
    }

    /// The kept output. It does not count any more: the reply with it is sent at once.
    pub(super) fn into_bytes(mut self) -> Vec<u8> {
        std::mem::take(&mut self.bytes)
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        if self.taken > 0 {
            LEFT.fetch_add(self.taken, Ordering::AcqRel);
            if self.taken >= LARGE {
                crate::memory::freed();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_execs_have_a_limit_and_each_has_a_share() {
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
