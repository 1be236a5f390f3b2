//! User namespaces (user_namespaces(7)): their mappings, and the ids of a process that works for one.

use std::fs::OpenOptions;
use std::io::{self, Write as _};

use nix::unistd::{Gid, Uid, setfsgid, setfsuid};
use rustix::thread::{CapabilitySets, capabilities, set_capabilities, set_thread_groups};
use rustix::thread::{set_thread_res_gid, set_thread_res_uid};

/// Writes the mapping of a process that was created with [`crate::clone::Flags::NEWUSER`]: the ids 0 to `length` - 1
/// inside are those from `uid` and `gid` on, in the caller's namespace. Can be done once.
///
/// # Errors
/// EPERM without CAP_SETUID and CAP_SETGID, or if there is a mapping; EINVAL for an invalid range.
pub fn write_mapping(pid: u32, uid: u32, gid: u32, length: u32) -> io::Result<()> {
    for (file, first) in [("uid_map", uid), ("gid_map", gid)] {
        // One write(2), as the kernel requires.
        let line = format!("0 {first} {length}\n");
        OpenOptions::new().write(true).open(format!("/proc/{pid}/{file}"))?.write_all(line.as_bytes())?;
    }
    Ok(())
}

/// Makes the calling process root of its user namespace, without supplementary groups. Its capabilities stay.
///
/// # Errors
/// EINVAL if the namespace does not map root; EPERM without CAP_SETUID and CAP_SETGID in it.
pub fn become_root() -> io::Result<()> {
    set_thread_groups(&[])?;
    let (uid, gid) = (rustix::process::Uid::ROOT, rustix::process::Gid::ROOT);
    set_thread_res_gid(gid, gid, gid)?;
    set_thread_res_uid(uid, uid, uid)?;
    // The change of ids has reset this to fs.suid_dumpable.
    crate::proc::set_dumpable(false)
}

/// Runs `work` with the file-system ids `uid` and `gid`: what it creates belongs to them, and on an id-mapped mount only
/// mapped ids can create anything. The capabilities of the caller, which is root, stay effective. It must have one thread,
/// because the ids are a thread's.
///
/// # Errors
/// EPERM if the ids cannot be set, or not be set back; `work` has run in the second case.
pub fn with_file_ids<T>(uid: u32, gid: u32, work: impl FnOnce() -> T) -> io::Result<T> {
    set_file_ids(uid, gid)?;
    let done = work();
    set_file_ids(0, 0)?;
    Ok(done)
}

fn set_file_ids(uid: u32, gid: u32) -> io::Result<()> {
    let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
    // The calls report no failure, but return the previous id.
    setfsgid(gid);
    setfsuid(uid);
    if setfsgid(gid) != gid || setfsuid(uid) != uid {
        return Err(rustix::io::Errno::PERM.into());
    }
    // Leaving uid 0 has removed the capabilities for files from the effective set.
    let sets = capabilities(None)?;
    Ok(set_capabilities(None, CapabilitySets { effective: sets.permitted, ..sets })?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt as _;

    #[test]
    fn privileged_files_belong_to_the_file_ids_and_capabilities_stay() {
        let dir = tempfile::tempdir().unwrap();
        let closed = dir.path().join("closed");
        std::fs::create_dir(&closed).unwrap();
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o700);
        std::fs::set_permissions(&closed, mode).unwrap();
        let before = capabilities(None).unwrap();
        let made = with_file_ids(4711, 4712, || std::fs::write(closed.join("file"), "x"));
        made.unwrap().expect("root of the host may write anywhere");
        let file = std::fs::metadata(closed.join("file")).unwrap();
        assert_eq!((file.uid(), file.gid()), (4711, 4712));
        std::fs::write(closed.join("later"), "x").unwrap();
        assert_eq!(std::fs::metadata(closed.join("later")).unwrap().uid(), 0);
        assert_eq!(capabilities(None).unwrap(), before);
    }
}
