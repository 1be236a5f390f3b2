//! Network namespaces. The daemon enters one only in a thread of its own, which ends afterwards: a thread that stayed
//! would create its next sockets there.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd};
use std::path::Path;
use std::thread;

use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// Runs `work` inside the network namespace `netns`, in a thread that ends with it. Blocks until then.
///
/// # Errors
/// The errors of `work`, of setns(2) (EINVAL if `netns` is not a network namespace), and of starting a thread.
pub fn inside<T: Send>(netns: BorrowedFd<'_>, work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    thread::scope(|scope| {
        let thread = thread::Builder::new().name("netns".to_owned()).spawn_scoped(scope, || {
            move_into_link_name_space(netns, Some(LinkNameSpaceType::Network))?;
            work()
        })?;
        thread.join().unwrap_or_else(|_| Err(io::Error::other("the thread in the namespace panicked")))
    })
}

/// Runs `work` inside each of the network namespaces at `paths` in turn (/proc/\<pid\>/ns/net, or a bind mount of it), all
/// in one thread that ends afterwards. Blocks until then. A namespace that cannot be opened or entered is skipped; its
/// result is the error.
///
/// # Errors
/// The thread cannot be started, or it panics. The inner errors are those of `work`, of open(2) and of setns(2) (EINVAL if
/// a path does not lead to a network namespace).
pub fn inside_each<T: Send>(
    paths: &[impl AsRef<Path> + Sync],
    work: impl Fn() -> io::Result<T> + Send,
) -> io::Result<Vec<io::Result<T>>> {
    let one = move |path: &Path| {
        let netns = File::open(path)?;
        move_into_link_name_space(netns.as_fd(), Some(LinkNameSpaceType::Network))?;
        work()
    };
    thread::scope(|scope| {
        let all = move || paths.iter().map(|path| one(path.as_ref())).collect();
        let thread = thread::Builder::new().name("netns".to_owned()).spawn_scoped(scope, all)?;
        thread.join().map_err(|_| io::Error::other("the thread in the namespaces panicked"))
    })
}

/// Sets the loopback interface of the calling thread's network namespace up, which also assigns its
/// addresses.
///
/// # Errors
/// The errors of the system calls, for example EPERM without CAP_NET_ADMIN in the namespace's owner.
pub fn loopback_up() -> io::Result<()> {
    let socket = socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
    set_up(socket.as_fd(), b"lo")
}

/// Sets IFF_UP of the interface `name` in the namespace in which `socket` was created.
fn set_up(socket: BorrowedFd<'_>, name: &[u8]) -> io::Result<()> {
    // Neither rustix nor nix has these ioctls.
    // SAFETY: ifreq holds an array and a union of plain integers and a pointer: all zeroes are a valid value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    if name.len() >= request.ifr_name.len() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name) {
        *to = from.cast_signed() as libc::c_char;
    }
    // SAFETY: SIOCGIFFLAGS reads the NUL-terminated name and writes the flags, both inside `request`, which
    // lives across the call; `socket` is open because it is borrowed.
    if unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFFLAGS, &raw mut request) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call above has filled this member of the union; it is an integer, so any bits are valid.
    let flags = unsafe { request.ifr_ifru.ifru_flags };
    #[expect(clippy::cast_possible_truncation, reason = "IFF_UP is 1")]
    let up = libc::IFF_UP as libc::c_short;
    request.ifr_ifru.ifru_flags = flags | up;
    // SAFETY: SIOCSIFFLAGS reads name and flags inside `request`, which lives across the call; `socket` is open.
    if unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
