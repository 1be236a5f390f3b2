//! Settings of glibc's allocator, for small daemons.

/// Limits the number of arenas. Each thread that allocates may get its own arena, up to eight per processor,
/// and freed memory stays in its arena: many blocking threads would multiply idle memory. Call it before the
/// first thread starts. No effect with other C libraries.
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

/// Returns free pages of the heap to the kernel. Takes some microseconds for a small heap. No effect with
/// other C libraries.
pub fn trim() {
    #[cfg(target_env = "gnu")]
    {
        // SAFETY: takes a number, and touches only what the allocator itself holds free, under its lock.
        let _ = unsafe { libc::malloc_trim(0) };
    }
}
