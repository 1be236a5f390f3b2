//! aarch64.

use core::arch::{asm, naked_asm};

/// System call numbers.
pub(crate) mod nr {
    pub(crate) const EXIT_GROUP: usize = 94;
    pub(crate) const RT_SIGPROCMASK: usize = 135;
    pub(crate) const RT_SIGTIMEDWAIT: usize = 137;
    pub(crate) const PRCTL: usize = 167;
    pub(crate) const WAIT4: usize = 260;
}

/// The process's entry point: the stack is 16-byte aligned and there is no caller.
#[unsafe(naked)]
#[unsafe(no_mangle)]
extern "C" fn _start() -> ! {
    naked_asm!("mov x29, xzr", "mov x30, xzr", "bl {run}", "brk #1", run = sym crate::run)
}

/// Makes a system call with up to four arguments; a negative result is an error.
///
/// # Safety
/// The arguments must meet the requirements of call `nr`.
pub(crate) unsafe fn syscall4(nr: usize, args: [usize; 4]) -> isize {
    let result;
    // SAFETY: the kernel changes only x0, which is declared, and nothing below the stack pointer (`nostack`). `nomem` is
    // not given, so the compiler assumes that memory may be read and written. That the arguments are valid for this call,
    // the caller has promised.
    unsafe {
        asm!(
            "svc #0",
            in("x8") nr,
            inlateout("x0") args[0] => result,
            in("x1") args[1],
            in("x2") args[2],
            in("x3") args[3],
            options(nostack),
        );
    }
    result
}
