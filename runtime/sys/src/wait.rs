//! Children of this process that have ended (waitid(2)).

use std::io;

/// How a child of this process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ended {
    /// Its pid.
    pub pid: u32,
    /// 0..=255, or 128+n for signal n.
    pub code: i32,
}

/// Reaps one child that has ended, adopted orphans included; `None` if there is none. Calls `before` with its pid
/// first, while it is a zombie: /proc still has it, and the pid is not reused.
///
/// # Errors
/// The errors of waitid(2), except ECHILD.
pub fn reap(before: impl FnOnce(u32)) -> io::Result<Option<Ended>> {
    let Some(ended) = wait_any(libc::P_ALL, 0, libc::WNOWAIT)? else { return Ok(None) };
    before(ended.pid);
    wait_any(libc::P_PID, ended.pid, 0)
}

fn wait_any(which: libc::idtype_t, id: libc::id_t, flags: i32) -> io::Result<Option<Ended>> {
    // rustix does not return the pid, and nix fails for a process that a real-time signal has killed.
    // SAFETY: siginfo_t is plain data of integers and pointers that are never followed, so all zeroes
    // are a valid value. waitid(2) leaves it so if no child has ended.
    let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
    let flags = libc::WEXITED | libc::WNOHANG | flags;
    // SAFETY: the call writes one siginfo_t to `info`, which lives across it.
    if unsafe { libc::waitid(which, id, &raw mut info, flags) } != 0 {
        let error = io::Error::last_os_error();
        return if error.raw_os_error() == Some(libc::ECHILD) { Ok(None) } else { Err(error) };
    }
    // SAFETY: waitid(2) has filled the union's members for SIGCHLD, or all bytes are zero; the member is an integer.
    let pid = unsafe { info.si_pid() };
    // SAFETY: as above.
    let status = unsafe { info.si_status() };
    if pid == 0 {
        return Ok(None);
    }
    let code = if info.si_code == libc::CLD_EXITED { status & 0xff } else { 128 + status };
    Ok(Some(Ended { pid: pid.unsigned_abs(), code }))
}
