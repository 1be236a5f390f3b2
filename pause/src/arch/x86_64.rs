//! x86-64.

use core::arch::{asm, naked_asm};

/// System call numbers.
pub(crate) mod nr {
    pub(crate) const RT_SIGPROCMASK: usize = 14;
    pub(crate) const WAIT4: usize = 61;
    pub(crate) const RT_SIGTIMEDWAIT: usize = 128;
    pub(crate) const PRCTL: usize = 157;
    pub(crate) const EXIT_GROUP: usize = 231;
}

/// The process's entry point: the stack is 16-byte aligned and there is no caller.
#[unsafe(naked)]
#[unsafe(no_mangle)]
extern "C" fn _start() -> ! {
    naked_asm!("xor ebp, ebp", "call {run}", "ud2", run = sym crate::run)
}

/// Makes a system call with up to four arguments; a negative result is an error.
///
/// # Safety
/// The arguments must meet the requirements of call `nr`.
pub(crate) unsafe fn syscall4(nr: usize, args: [usize; 4]) -> isize {
    let result;
    // SAFETY: the kernel changes only rax, rcx and r11, which are declared, and nothing below the stack pointer
    // (`nostack`). `nomem` is not given, so the compiler assumes that memory may be read and written. That the arguments
    // are valid for this call, the caller has promised.
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") nr => result,
            in("rdi") args[0],
            in("rsi") args[1],
            in("rdx") args[2],
            in("r10") args[3],
            lateout("rcx") _,
            lateout("r11") _,
            options(nostack),
        );
    }
    result
}
