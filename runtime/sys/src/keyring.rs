//! The session keyring (keyctl(2), session-keyring(7)).
//!
//! Three calls of keyctl(2), which neither nix nor rustix has.

use std::ffi::{CStr, CString};
use std::io;

use nix::errno::Errno;
use nix::unistd::{Uid, setfsuid, setresuid};

/// Operations of keyctl(2), from linux/keyctl.h.
const JOIN_SESSION_KEYRING: libc::c_int = 1;
const SETPERM: libc::c_int = 5;
const DESCRIBE: libc::c_int = 6;
/// KEY_USR_SEARCH: processes of the keyring's user find it by name.
const USER_SEARCH: u32 = 0x0008_0000;

/// Joins the session keyring `name`, which the first caller creates, so that the caller's keys are not
/// visible; an empty name creates an anonymous one. A kernel without keyrings has nothing to hide.
///
/// A named keyring belongs to a uid that is derived from the name and that no process has. So it counts
/// against no other quota (root's quota is shared by all containers, and one could use it up), and other
/// users cannot join it by name. A process that has it as session keyring can use it regardless of its owner.
///
/// # Errors
/// ENOMEM; EDQUOT of an anonymous one; InvalidInput for a NUL byte.
pub fn join_session(name: &str) -> io::Result<()> {
    if name.is_empty() {
        return join(None);
    }
    let named = CString::new(name)?;
    let (owner, root) = (Uid::from_raw(owner_of(name)), Uid::from_raw(0));
    match setresuid(owner, root, root) {
        Ok(()) => {
            // The call reports no failure; if it has no effect, the keyring is not found and is created
            // again.
            setfsuid(owner);
            let joined = join(Some(&named));
            setfsuid(root);
            setresuid(root, root, root)?;
            joined
        }
        // A user namespace without that user.
        Err(Errno::EINVAL) => join(Some(&named)),
        Err(error) => Err(error.into()),
    }
}

/// One of the 2^29 uids from 0xc0000000 on, by FNV-1a of the name.
fn owner_of(name: &str) -> u32 {
    let hash =
        name.bytes().fold(0x811c_9dc5u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
    0xc000_0000 | hash >> 3
}

fn join(name: Option<&CStr>) -> io::Result<()> {
    let pointer = name.map_or(std::ptr::null(), CStr::as_ptr);
    // SAFETY: reads the C string, which lives across the call; null makes an anonymous keyring.
    let ring = unsafe { libc::syscall(libc::SYS_keyctl, JOIN_SESSION_KEYRING, pointer, 0, 0, 0) };
    if ring < 0 {
        let error = io::Error::last_os_error();
        return if error.raw_os_error() == Some(libc::ENOSYS) { Ok(()) } else { Err(error) };
    }
    if name.is_none() {
        return Ok(());
    }
    // "keyring;uid;gid;permissions in hex;name"
    let mut text = [0u8; 256];
    // SAFETY: writes into `text` at most the length that is passed; `text` lives across the call.
    let length = unsafe { libc::syscall(libc::SYS_keyctl, DESCRIBE, ring, text.as_mut_ptr(), text.len(), 0) };
    if length < 0 {
        return Err(io::Error::last_os_error());
    }
    let described = String::from_utf8_lossy(&text);
    let permissions = described.split(';').nth(3).and_then(|hex| u32::from_str_radix(hex, 16).ok());
    let Some(permissions) = permissions else { return Err(io::ErrorKind::InvalidData.into()) };
    // SAFETY: takes numbers and no memory.
    match unsafe { libc::syscall(libc::SYS_keyctl, SETPERM, ring, permissions | USER_SEARCH, 0, 0) } {
        0 => Ok(()),
        // Created by a process of the container that has dropped its privileges since: it can be searched
        // already.
        _ if permissions & USER_SEARCH != 0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
