//! The restricted environment of pause: an empty read-only root, a filter, and a binary that is executed by
//! descriptor.

use std::ffi::{CStr, c_char};
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd};
use std::path::Path;

use crate::mount::{self, Attributes, FsOption, PropagationType};
use crate::seccomp::{ARCH, ARCHITECTURE, Filter, NUMBER, allow_each, jump_equal, load, ret};

/// Gives the calling process, which must have its own mount namespace, an empty read-only root and no other
/// mount. Its folder has this SELinux label, or the policy's if it is empty. The new root is attached to `/sys` of the old
/// one before pivot_root.
///
/// # Errors
/// The errors of the system calls.
pub fn empty_root(label: &str) -> io::Result<()> {
    mount::change(Path::new("/"), PropagationType::Private, true)?;
    let options = [("size", "4k"), ("nr_inodes", "2"), ("mode", "0555")];
    let attributes = Attributes { readonly: true, nosuid: true, nodev: true, noexec: true };
    let options =
        options.map(|(key, value)| FsOption::Value(key, value)).into_iter().chain(mount::label(label));
    let root = mount::create("tmpfs", &options.collect::<Vec<_>>(), attributes)?;
    mount::attach_at(root.as_fd(), Path::new("/sys"))?;
    mount::pivot_into(root.as_fd())
}

/// Pause's filter: it allows the calls of pause itself and of the last steps before its execve, but no memory,
/// processes or new sockets, so that a tracer of pause gains nothing. All other calls fail with EPERM; a system
/// call of another architecture (32-bit, for example) kills the process.
///
/// # Errors
/// There is none: the program is fixed.
pub fn pause_filter() -> io::Result<Filter> {
    let calls = [
        libc::SYS_rt_sigtimedwait,
        libc::SYS_wait4,
        libc::SYS_exit_group,
        libc::SYS_rt_sigprocmask,
        libc::SYS_restart_syscall,
        libc::SYS_prctl,
        libc::SYS_execveat,
        // The sandbox's own filter comes after this one; a failure is reported with sendmsg.
        libc::SYS_seccomp,
        libc::SYS_sendmsg,
    ];
    let mut program =
        vec![load(ARCHITECTURE), jump_equal(ARCH, 1, 0), ret(libc::SECCOMP_RET_KILL_PROCESS), load(NUMBER)];
    program.extend(allow_each(calls.map(|call| u32::try_from(call).unwrap_or(u32::MAX))));
    program.push(ret(libc::SECCOMP_RET_ERRNO | 1));
    Filter::new(&program, 0)
}

/// execveat(2) of a descriptor with one argument and no environment. Returns only on failure.
pub fn exec_fd(binary: BorrowedFd<'_>, name: &CStr) -> io::Error {
    let args: [*const c_char; 2] = [name.as_ptr(), std::ptr::null()];
    let env: [*const c_char; 1] = [std::ptr::null()];
    // nix's call allocates, which a filter may forbid.
    // SAFETY: `args` and `env` end in null and hold C strings; they, the strings and the empty path live across the
    // call. `binary` is open because it is borrowed. When the call succeeds nothing of this program is left.
    unsafe {
        libc::syscall(
            libc::SYS_execveat,
            binary.as_raw_fd(),
            c"".as_ptr(),
            args.as_ptr(),
            env.as_ptr(),
            libc::AT_EMPTY_PATH,
        )
    };
    io::Error::last_os_error()
}

/// Sets the host name of the UTS namespace.
///
/// # Errors
/// Longer than 64 bytes; EPERM.
pub fn set_hostname(name: &str) -> io::Result<()> {
    Ok(rustix::system::sethostname(name.as_bytes())?)
}
