//! The size of a memory page.

/// Bytes of a page, in which the kernel counts memory limits of cgroups.
pub fn size() -> u64 {
    // SAFETY: sysconf reads a constant of the process and takes no pointer.
    let size = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    // It does not fail for this name.
    u64::try_from(size).ok().filter(|size| *size > 0).unwrap_or(4096)
}

#[cfg(test)]
mod tests {
    #[test]
    fn is_a_power_of_two() {
        assert!(super::size().is_power_of_two() && super::size() >= 4096);
    }
}
