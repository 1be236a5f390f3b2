//! pause: holds a pod's namespaces, reaps what is orphaned in them, leaves on SIGTERM and SIGINT with status 0.
//!
//! It is PID 1 where the pod has a PID namespace, an ordinary process where it uses the node's. All signals
//! are blocked and the three that matter are waited for, so neither an inherited mask nor inherited
//! dispositions matter, and no handler runs: the kernel queues a blocked signal even for a PID 1 without
//! handlers and even when it is ignored (signal(7), pid_namespaces(7)). Whoever starts pause should have these
//! signals blocked already, so that one sent before the first instruction is kept as well.
#![no_std]
#![no_main]

mod arch;
mod sys;

use sys::{SIGCHLD, SIGINT, SIGTERM};

/// Exit status when the kernel refuses a call that pause cannot do without, for example by a seccomp filter.
const REFUSED: i32 = 3;
/// Exit status of a panic, as SIGABRT would show.
const PANICKED: i32 = 134;

/// Called by the entry code of [`arch`], which runs nothing before it.
extern "C" fn run() -> ! {
    // First: a container may share pause's user and PID namespace, and may not trace it. A kernel that refuses
    // takes nothing away from what pause is for.
    sys::forbid_tracing();
    if sys::block_all_signals().is_err() {
        sys::exit(REFUSED);
    }
    loop {
        // First, for children that were there before the signals were blocked; one SIGCHLD may stand for many.
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
