//! A large buffer whose pages can be returned to the kernel between uses.

use std::io;
use std::ptr::NonNull;

use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous, munmap};

/// Zeroed anonymous memory; pages cost nothing until they are touched.
#[derive(Debug)]
pub struct Scratch {
    start: NonNull<u8>,
    len: usize,
}

impl Scratch {
    /// Maps `len` bytes.
    ///
    /// # Errors
    /// Out of address space.
    pub fn new(len: usize) -> io::Result<Self> {
        let (protection, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE);
        // SAFETY: without MAP_FIXED the kernel chooses a place that nothing uses.
        let start = unsafe { mmap_anonymous(std::ptr::null_mut(), len, protection, flags) }?;
        let start = NonNull::new(start.cast::<u8>()).ok_or_else(|| io::Error::other("mmap gave null"))?;
        Ok(Self { start, len })
    }

    /// The buffer. It has the previous content, or zeroes after [`Self::release`].
    pub fn bytes(&mut self) -> &mut [u8] {
        // SAFETY: the mapping is ours alone, `len` bytes long, initialised by the kernel, and lives as long as
        // `self`, which is borrowed.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
    }

    /// Returns the pages; the content becomes zeroes.
    pub fn release(&mut self) {
        // SAFETY: `start` and `len` are our own private anonymous mapping, whose pages become zeroes; nothing borrows
        // them while `self` is borrowed mutably.
        let released = unsafe { madvise(self.start.as_ptr().cast(), self.len, Advice::LinuxDontNeed) };
        debug_assert!(released.is_ok());
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // SAFETY: mapped by `new` with this length, unmapped only here, and nothing borrows it any more.
        let unmapped = unsafe { munmap(self.start.as_ptr().cast(), self.len) };
        debug_assert!(unmapped.is_ok());
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn released_pages_are_zero() {
        let mut scratch = super::Scratch::new(10_000).unwrap();
        scratch.bytes().fill(7);
        assert!(scratch.bytes().iter().all(|byte| *byte == 7));
        scratch.release();
        assert!(scratch.bytes().iter().all(|byte| *byte == 0));
    }
}
