//! glibc's allocator, where the daemon has an opinion.

/// Limits the number of arenas. Each thread that allocates may get an arena of its own, up to eight a
/// processor, and what is freed in one stays there: a pool of blocking threads multiplies idle memory. Call
/// it before the first thread starts. Without effect on other C libraries.
pub fn limit_arenas(arenas: i32) {
    #[cfg(target_env = "gnu")]
    {
        // SAFETY: mallopt takes two integers and changes only the allocator's own parameters, under its own
        // lock. Threads that allocate meanwhile read the old number or the new one.
        let _ = unsafe { libc::mallopt(libc::M_ARENA_MAX, arenas) };
    }
    #[cfg(not(target_env = "gnu"))]
    let _ = arenas;
}

/// Gives whole free pages of the heap back to the kernel. Some microseconds for a small heap. Without effect
/// on other C libraries.
pub fn trim() {
    #[cfg(target_env = "gnu")]
    {
        // SAFETY: takes a number, and touches only what the allocator itself holds free, under its lock.
        let _ = unsafe { libc::malloc_trim(0) };
    }
}
