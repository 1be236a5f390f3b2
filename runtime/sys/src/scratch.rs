//! A large buffer whose pages can be given back to the kernel between uses.

use std::io;
use std::ptr::NonNull;

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
        let (protection, flags) =
            (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        // SAFETY: a new mapping at a place the kernel chooses.
        let start = unsafe { libc::mmap(std::ptr::null_mut(), len, protection, flags, -1, 0) };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start = NonNull::new(start.cast::<u8>()).ok_or_else(|| io::Error::other("mmap gave null"))?;
        Ok(Self { start, len })
    }

    /// The buffer, with what was left in it, or zeroes.
    pub fn bytes(&mut self) -> &mut [u8] {
        // SAFETY: the mapping is ours alone, `len` bytes long, initialised by the kernel, and lives as long as
        // `self`, which is borrowed.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
    }

    /// Gives the pages back; the content becomes zeroes.
    pub fn release(&mut self) {
        // SAFETY: our own anonymous mapping; nothing borrows it while `self` is borrowed mutably.
        unsafe {
            libc::madvise(self.start.as_ptr().cast(), self.len, libc::MADV_DONTNEED);
        }
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // SAFETY: mapped by `new`, and nothing borrows it any more.
        unsafe {
            libc::munmap(self.start.as_ptr().cast(), self.len);
        }
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
