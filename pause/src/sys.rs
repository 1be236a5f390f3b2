//! The few system calls, each with the reason why it is sound.

use crate::arch::{nr, syscall4};

// Numbers of signal(7) and errno(3), the same on x86-64 and aarch64.

/// Interrupt.
pub(crate) const SIGINT: i32 = 2;
/// Terminate.
pub(crate) const SIGTERM: i32 = 15;
/// A child has ended or stopped.
pub(crate) const SIGCHLD: i32 = 17;
/// Interrupted: wait again.
pub(crate) const EINTR: i32 = 4;

/// Replaces the mask; from `<signal.h>`.
const SIG_SETMASK: usize = 2;
/// Size of the kernel's signal set in bytes; libc's is larger.
const SET_BYTES: usize = size_of::<u64>();
/// Do not block; from `<sys/wait.h>`.
const WNOHANG: usize = 1;
/// Also waits for children that were cloned without SIGCHLD; a container's process may be.
const WALL: usize = 0x4000_0000;

/// From `<linux/prctl.h>`.
const PR_SET_DUMPABLE: usize = 4;

/// Ends the process with `status`.
pub(crate) fn exit(status: i32) -> ! {
    loop {
        // SAFETY: the argument is a number, no memory is accessed, and the call does not return.
        unsafe { syscall4(nr::EXIT_GROUP, [status as usize, 0, 0, 0]) };
    }
}

/// Prevents processes without CAP_SYS_PTRACE from tracing this one, seeing its descriptors or reading its
/// memory.
pub(crate) fn forbid_tracing() {
    // SAFETY: the arguments are numbers, and no memory is accessed.
    unsafe { syscall4(nr::PRCTL, [PR_SET_DUMPABLE, 0, 0, 0]) };
}

/// Blocks every signal that can be blocked.
pub(crate) fn block_all_signals() -> Result<(), i32> {
    let all = u64::MAX;
    // SAFETY: the kernel reads SET_BYTES bytes at `all`, which outlives the call. The pointer for the old set
    // is null.
    let result =
        unsafe { syscall4(nr::RT_SIGPROCMASK, [SIG_SETMASK, (&raw const all).addr(), 0, SET_BYTES]) };
    checked(result).map(|_| ())
}

/// Waits until one of `signals` is pending, consumes it and returns its number. All of them must be blocked.
pub(crate) fn wait_for_signal(signals: &[i32]) -> Result<i32, i32> {
    let set = signals.iter().fold(0u64, |set, signal| set | 1 << (signal - 1));
    // SAFETY: the kernel reads SET_BYTES bytes at `set`, which outlives the call. The pointers for siginfo
    // and time-out are null, so no other memory is accessed.
    let result = unsafe { syscall4(nr::RT_SIGTIMEDWAIT, [(&raw const set).addr(), 0, 0, SET_BYTES]) };
    checked(result)
}

/// Reaps one ended child; returns false if there is none.
pub(crate) fn reap_one() -> bool {
    // SAFETY: the pointers for status and usage are null, so no memory is accessed.
    let result = unsafe { syscall4(nr::WAIT4, [usize::MAX, 0, WNOHANG | WALL, 0]) };
    result > 0
}

fn checked(result: isize) -> Result<i32, i32> {
    // The result is a signal number or an errno; both fit into an i32.
    let small = result as i32;
    if small < 0 { Err(-small) } else { Ok(small) }
}
