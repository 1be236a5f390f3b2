//! fork(2), only where it is sound: in a process with one thread.
//!
//! The child is a copy of this process. Its only thread runs the given closure and ends with _exit(2): no exit
//! handlers run, and the parent's buffered output is not written twice. Since there was no other thread, every lock
//! is free in the child, so any code may run, including code that allocates.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::panic::AssertUnwindSafe;

use nix::unistd::ForkResult;

/// Exit status of a child whose closure panicked.
const PANICKED: i32 = 101;
/// Exit status of a child of [`worker`] whose descriptors could not be copied.
pub const NO_DESCRIPTORS: i32 = 102;

/// Proof that this process has one thread. Its holder must not start another one. It is for forks where /proc is
/// not available any more.
#[derive(Debug)]
pub struct SingleThreaded {
    // Neither Send nor Sync: it must stay with the only thread.
    _this_thread: std::marker::PhantomData<*const ()>,
}

/// Fails if this process has more than one thread: locks that others hold would stay locked in a child.
///
/// # Errors
/// More than one thread; /proc is not mounted.
pub fn single_threaded() -> io::Result<SingleThreaded> {
    // A folder's link count is two more than its subfolders, which here are the threads.
    let threads = nix::sys::stat::stat("/proc/self/task")?.st_nlink.saturating_sub(2);
    if threads == 1 {
        Ok(SingleThreaded { _this_thread: std::marker::PhantomData })
    } else {
        Err(io::Error::other(format!("fork in a process with {threads} threads")))
    }
}

/// Runs `work` in a child, which exits with its result. Returns the child's pid; the caller reaps it.
///
/// `work` gets copies of `keep`, in their order. The child closes every other descriptor from 3 on, so that it holds
/// no end of a pipe and no connection. The bounds of `work` keep it from owning a closed descriptor: `OwnedFd` and
/// `File` are not `Clone`, and a closure that borrows one is not `'static`. (It is never cloned.) They cannot
/// exclude descriptors in an `Rc` or in a static: do not use such ones in `work`, they are closed.
///
/// # Errors
/// [`single_threaded`] and fork(2).
pub fn worker<F>(keep: &[BorrowedFd<'_>], work: F) -> io::Result<u32>
where
    F: FnOnce(Vec<OwnedFd>) -> i32 + Clone + 'static,
{
    single_threaded()?;
    // SAFETY: this process has one thread, as was just seen, so the child may run any code.
    #[expect(clippy::disallowed_methods, reason = "this is the function that is to be used instead")]
    let forked = unsafe { nix::unistd::fork() }?;
    match forked {
        ForkResult::Parent { child } => Ok(child.as_raw().unsigned_abs()),
        ForkResult::Child => run_and_exit(|| with_kept(keep, work)),
    }
}

/// What the child of [`worker`] does. Its bounds make it sound.
pub(crate) fn with_kept<F>(keep: &[BorrowedFd<'_>], work: F) -> i32
where
    F: FnOnce(Vec<OwnedFd>) -> i32 + Clone + 'static,
{
    match keep_only(keep) {
        Ok(fds) => work(fds),
        Err(_) => NO_DESCRIPTORS,
    }
}

/// In a child of [`worker`]: copies `keep` and closes all other descriptors.
fn keep_only(keep: &[BorrowedFd<'_>]) -> io::Result<Vec<OwnedFd>> {
    let copies = keep.iter().map(|fd| fd.try_clone_to_owned()).collect::<io::Result<Vec<OwnedFd>>>()?;
    // SAFETY: the owners of all others are copies of the parent's. The child's closure cannot reach them (see
    // `worker`), and it ends by _exit(2), which drops none.
    unsafe { crate::fds::close_all_but(&copies) }?;
    Ok(copies)
}

/// Runs `work` and exits without exit handlers, which are the parent's.
pub(crate) fn run_and_exit(work: impl FnOnce() -> i32) -> ! {
    let status = std::panic::catch_unwind(AssertUnwindSafe(work)).unwrap_or(PANICKED);
    exit_now(status)
}

/// _exit(2): no exit handlers, no flushing of what the parent buffered.
pub fn exit_now(status: i32) -> ! {
    // Neither rustix nor nix has it.
    // SAFETY: it takes a number and does not return.
    unsafe { libc::_exit(status) }
}

#[cfg(test)]
mod tests {
    #[test]
    fn refuses_with_threads() {
        // The test harness runs tests on threads of its own.
        let (send, wait) = std::sync::mpsc::channel::<()>();
        let other = std::thread::spawn(move || wait.recv());
        assert!(super::worker(&[], |_| 0).is_err());
        drop(send);
        other.join().unwrap().unwrap_err();
    }
}
