//! Network namespaces. The daemon enters one only in a thread of its own, which ends afterwards: a thread that stayed
//! would create its next sockets there.

use std::io;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd};
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
