//! The few system calls, each with the reason why it is sound.

use crate::arch::{nr, syscall4};

/// Numbers of signal(7), the same on all processors we build for.
pub(crate) const SIGINT: i32 = 2;
/// Terminate.
pub(crate) const SIGTERM: i32 = 15;
/// A child has ended.
pub(crate) const SIGCHLD: i32 = 17;
/// Stopped and continued, or traced: wait again.
pub(crate) const EINTR: i32 = 4;

/// Set the mask, from `<signal.h>`.
const SIG_SETMASK: usize = 2;
/// Size of the kernel's signal set in bytes, which is not libc's.
const SET_BYTES: usize = size_of::<u64>();
/// Do not block, from `<sys/wait.h>`.
const WNOHANG: usize = 1;
/// Children made without SIGCHLD too: a container's process may be cloned that way.
const WALL: usize = 0x4000_0000;

/// From `<linux/prctl.h>`.
const PR_SET_DUMPABLE: usize = 4;

/// Ends the process with `status`.
pub(crate) fn exit(status: i32) -> ! {
    loop {
        // SAFETY: takes a number and no memory; it does not return.
        unsafe { syscall4(nr::EXIT_GROUP, [status as usize, 0, 0, 0]) };
    }
}

/// Nobody without CAP_SYS_PTRACE can trace this process, see its descriptors or read its memory.
pub(crate) fn forbid_tracing() {
    // SAFETY: takes numbers and no memory.
    unsafe { syscall4(nr::PRCTL, [PR_SET_DUMPABLE, 0, 0, 0]) };
}

/// Blocks every signal that can be blocked.
pub(crate) fn block_all_signals() -> Result<(), i32> {
    let all = u64::MAX;
    // SAFETY: the kernel reads SET_BYTES bytes at `all`, which lives across the call, and no old set is asked for.
    let result =
        unsafe { syscall4(nr::RT_SIGPROCMASK, [SIG_SETMASK, (&raw const all).addr(), 0, SET_BYTES]) };
    checked(result).map(|_| ())
}

/// Waits until one of `signals`, all blocked, is pending, takes it and returns its number.
pub(crate) fn wait_for_signal(signals: &[i32]) -> Result<i32, i32> {
    let set = signals.iter().fold(0u64, |set, signal| set | 1 << (signal - 1));
    // SAFETY: the kernel reads SET_BYTES bytes at `set`, which lives across the call; without a siginfo to fill
    // and without a time-out it touches no other memory.
    let result = unsafe { syscall4(nr::RT_SIGTIMEDWAIT, [(&raw const set).addr(), 0, 0, SET_BYTES]) };
    checked(result)
}

/// Reaps one child that has ended; false when there is none.
pub(crate) fn reap_one() -> bool {
    // SAFETY: neither a status nor a usage is asked for, so no memory is touched.
    let result = unsafe { syscall4(nr::WAIT4, [usize::MAX, 0, WNOHANG | WALL, 0]) };
    result > 0
}

fn checked(result: isize) -> Result<i32, i32> {
    // Both a signal number and an errno fit.
    let small = result as i32;
    if small < 0 { Err(-small) } else { Ok(small) }
}
