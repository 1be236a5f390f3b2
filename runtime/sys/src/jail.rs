//! What pause is locked into: an empty read-only root, no capabilities, a binary executed by descriptor.

use std::ffi::{CStr, c_char};
use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd};

use crate::seccomp::{ARCH, ARCHITECTURE, Filter, NUMBER, allow_each, give, jump_equal, load};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountPropagationFlags, MoveMountFlags, UnmountFlags,
    fsconfig_create, fsconfig_set_string, fsmount, fsopen, mount_change, move_mount, unmount,
};

/// Gives the calling process, which must have a mount namespace of its own, an empty read-only root and
/// nothing else mounted. `/sys` of the present root is the place it is attached to in between.
///
/// # Errors
/// As the kernel says.
pub fn empty_root() -> io::Result<()> {
    mount_change(c"/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
    let tmpfs = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    for (key, value) in [("size", "4k"), ("nr_inodes", "2"), ("mode", "0555")] {
        fsconfig_set_string(&tmpfs, key, value)?;
    }
    fsconfig_create(&tmpfs)?;
    let attributes = MountAttrFlags::MOUNT_ATTR_RDONLY
        | MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    let root = fsmount(&tmpfs, FsMountFlags::FSMOUNT_CLOEXEC, attributes)?;
    move_mount(&root, c"", rustix::fs::CWD, c"/sys", MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?;
    rustix::process::chdir(c"/sys")?;
    rustix::process::pivot_root(c".", c".")?;
    unmount(c".", UnmountFlags::DETACH)?;
    Ok(rustix::process::chdir(c"/")?)
}

/// struct __user_cap_header_struct.
#[repr(C)]
struct CapHeader {
    version: u32,
    pid: i32,
}

/// Becomes the given user with no capability in any set, and can never gain one (no_new_privs).
///
/// # Errors
/// As the kernel says.
pub fn drop_everything(uid: u32, gid: u32, groups: &[u32]) -> io::Result<()> {
    let check = |done: libc::c_long| if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) };
    // SAFETY: numbers only.
    unsafe {
        check(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0).into())?;
        check(libc::prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0).into())?;
        // Ends at the first number that is no capability of this kernel.
        for capability in 0..64 {
            if libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) < 0 {
                let error = io::Error::last_os_error();
                if error.raw_os_error() == Some(libc::EINVAL) {
                    break;
                }
                return Err(error);
            }
        }
    }
    // The raw calls: libc's would look for other threads.
    // SAFETY: a list of the given length, then numbers.
    unsafe {
        check(libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr()))?;
        check(libc::syscall(libc::SYS_setresgid, gid, gid, gid))?;
        check(libc::syscall(libc::SYS_setresuid, uid, uid, uid))?;
    }
    let header = CapHeader { version: 0x2008_0522, pid: 0 };
    let none = [0u32; 6];
    // SAFETY: a header of version 3 and its two data structs, which live across the call.
    check(unsafe { libc::syscall(libc::SYS_capset, &raw const header, none.as_ptr()) })
}

/// The filter of pause: what its few lines and the last steps before it call, no memory, no process, no socket
/// of its own. Whoever could make it call something by tracing it gains nothing. All else fails with EPERM.
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
        // The sandbox's own filter comes after this one; a failure is told by message.
        libc::SYS_seccomp,
        libc::SYS_sendmsg,
    ];
    let mut program =
        vec![load(ARCHITECTURE), jump_equal(ARCH, 1, 0), give(libc::SECCOMP_RET_KILL_PROCESS), load(NUMBER)];
    program.extend(allow_each(calls.map(|call| u32::try_from(call).unwrap_or(u32::MAX))));
    program.push(give(libc::SECCOMP_RET_ERRNO | 1));
    Filter::new(&program, 0)
}

/// execveat(2) of a descriptor with one argument and no environment. Returns only on failure.
pub fn exec_fd(binary: BorrowedFd<'_>, name: &CStr) -> io::Error {
    let args: [*const c_char; 2] = [name.as_ptr(), std::ptr::null()];
    let env: [*const c_char; 1] = [std::ptr::null()];
    // SAFETY: lists that end in null, of C strings that live across the call.
    unsafe {
        libc::syscall(
            libc::SYS_execveat,
            binary.as_raw_fd(),
            c"".as_ptr(),
            args.as_ptr(),
            env.as_ptr(),
            libc::AT_EMPTY_PATH,
        );
    }
    io::Error::last_os_error()
}

/// Sets the host name of the UTS namespace.
///
/// # Errors
/// Longer than 64 bytes; EPERM.
pub fn set_hostname(name: &str) -> io::Result<()> {
    Ok(nix::unistd::sethostname(name)?)
}
