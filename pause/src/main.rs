//! pause: holds a pod's namespaces, reaps orphans in them, and exits with status 0 on SIGTERM and SIGINT.
//!
//! It is PID 1 if the pod has its own PID namespace, and an ordinary process otherwise. It blocks all signals
//! and waits for the three it uses, so inherited masks and dispositions do not matter, and no handler runs:
//! the kernel queues a blocked signal even for a PID 1 without handlers and even if it is ignored (signal(7),
//! pid_namespaces(7)). The parent should block these signals before it starts pause, so that one sent before
//! the first instruction is kept too.
#![no_std]
#![no_main]

mod arch;
mod sys;

use sys::{SIGCHLD, SIGINT, SIGTERM};

/// Exit status if the kernel refuses a required call, for example because of a seccomp filter.
const REFUSED: i32 = 3;
/// Exit status after a panic, the same as for SIGABRT.
const PANICKED: i32 = 134;

/// Called by the entry point in [`arch`], which does nothing else.
extern "C" fn run() -> ! {
    // First of all, because a container may share pause's user and PID namespace and must not trace it. A
    // failure is ignored: pause works without it.
    sys::forbid_tracing();
    if sys::block_all_signals().is_err() {
        sys::exit(REFUSED);
    }
    loop {
        // Before waiting, because children may have ended before the signals were blocked; one SIGCHLD may
        // stand for several.
        while sys::reap_one() {}
        match sys::wait_for_signal(&[SIGCHLD, SIGTERM, SIGINT]) {
            Ok(SIGTERM | SIGINT) => sys::exit(0),
            Ok(_) | Err(sys::EINTR) => {}
            Err(_) => sys::exit(REFUSED),
        }
    }
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    sys::exit(PANICKED)
}
