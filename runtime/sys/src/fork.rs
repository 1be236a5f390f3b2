//! fork, only where it is sound: in a process with one thread.

use std::io;
use std::panic::AssertUnwindSafe;

/// Exit status of a child whose closure panicked.
const PANICKED: i32 = 101;

/// Proof that a process had one thread. Whoever holds it starts none.
#[derive(Debug)]
pub struct SingleThreaded(());

/// Refuses when this process has more than one thread: locks that others hold would stay locked in the child.
///
/// # Errors
/// More than one thread, or no /proc to tell.
pub fn single_threaded() -> io::Result<SingleThreaded> {
    // A folder's link count is two more than its subfolders, which here are the threads.
    let threads = rustix::fs::stat("/proc/self/task")?.st_nlink.saturating_sub(2);
    if threads == 1 {
        Ok(SingleThreaded(()))
    } else {
        Err(io::Error::other(format!("fork in a process with {threads} threads")))
    }
}

/// Runs `work` in a child, which leaves with its result. Returns the child's pid; the caller reaps it.
///
/// # Errors
/// [`single_threaded`] and fork(2).
pub fn worker(work: impl FnOnce() -> i32) -> io::Result<u32> {
    single_threaded()?;
    // SAFETY: one thread, so the child's copy of every lock is free and any code may run in it.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => leave(work),
        pid => Ok(pid.unsigned_abs()),
    }
}

/// Runs `work` and leaves without exit handlers, which are the parent's.
pub(crate) fn leave(work: impl FnOnce() -> i32) -> ! {
    let status = std::panic::catch_unwind(AssertUnwindSafe(work)).unwrap_or(PANICKED);
    exit_now(status)
}

/// _exit(2): no exit handlers, no flushing of what the parent buffered.
pub fn exit_now(status: i32) -> ! {
    // SAFETY: never returns, touches no memory.
    unsafe { libc::_exit(status) }
}

#[cfg(test)]
mod tests {
    #[test]
    fn refuses_with_threads() {
        // The test harness runs tests on threads of its own.
        let (send, wait) = std::sync::mpsc::channel::<()>();
        let other = std::thread::spawn(move || wait.recv());
        assert!(super::worker(|| 0).is_err());
        drop(send);
        other.join().unwrap().unwrap_err();
    }
}
