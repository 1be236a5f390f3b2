//! SELinux (selinux(8)): whether the kernel has a policy, which labels it knows, and the labels of the calling process's
//! next program, of its new keys, and of files. `relabel` labels a volume.

mod relabel;

pub use relabel::{RelabelError, Relabelled, relabel};

use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd};
use std::path::Path;

use rustix::fs::{FileType, Mode, OFlags, XattrFlags, getxattr, setxattr, statfs};
use rustix::io::Errno;

use crate::host_proc::HostProc;

/// Where selinuxfs is mounted, by the program that loads the policy.
pub const MOUNT: &str = "/sys/fs/selinux";
/// Magic number of selinuxfs (linux/magic.h).
const MAGIC: i64 = 0xf97c_ff8c;
/// Below [`MOUNT`]: takes a label and returns it as the kernel writes it.
const CONTEXT: &str = "context";
/// Below the root of a procfs.
const ON_EXEC: &str = "thread-self/attr/exec";
const ON_KEYCREATE: &str = "thread-self/attr/keycreate";
/// The extended attribute that is a file's label.
const XATTR: &str = "security.selinux";
/// Maximum length of a label in bytes. The kernel takes less than a page.
pub const MAX_LABEL: usize = 2048;

/// Whether the kernel has SELinux, and a policy is loaded. Whether that is enforced is not asked: labels must be right
/// before it is.
pub fn is_enabled() -> bool {
    let mounted = statfs(MOUNT).is_ok_and(|fs| fs.f_type == MAGIC);
    // Before a policy is loaded every process has the label `kernel`.
    let own = own_label().unwrap_or_default();
    mounted && !own.is_empty() && own != "kernel"
}

/// The label of the calling process.
///
/// # Errors
/// The kernel has no security module.
pub fn own_label() -> io::Result<String> {
    Ok(fs::read_to_string("/proc/thread-self/attr/current")?.trim_matches(['\0', '\n', ' ']).to_owned())
}

/// The label as the kernel writes it: the categories of its level in their order. Returned unchanged if the caller's own
/// domain may not ask.
///
/// # Errors
/// InvalidInput if the loaded policy does not know it.
pub fn canonical(label: &str) -> io::Result<String> {
    check(label)?;
    let path = Path::new(MOUNT).join(CONTEXT);
    let mut file = match File::options().read(true).write(true).open(path) {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => return Ok(label.to_owned()),
        opened => opened?,
    };
    match file.write(label.as_bytes()) {
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => return Ok(label.to_owned()),
        Err(error) => return Err(error),
    }
    let mut answer = Vec::new();
    file.take(MAX_LABEL as u64).read_to_end(&mut answer)?;
    let answer = String::from_utf8_lossy(&answer);
    Ok(answer.trim_matches(['\0', '\n']).to_owned())
}

/// Changes to the label at the next execve of the calling process. Its children inherit that until they call execve
/// themselves.
///
/// # Errors
/// InvalidInput: the policy does not know the label. PermissionDenied: the domain of the caller may not set one.
pub fn set_on_exec(proc: &HostProc, label: &str) -> io::Result<()> {
    check(label)?;
    proc.write(ON_EXEC, label)
}

/// The label of keys and keyrings that the calling process creates until its next execve.
///
/// # Errors
/// As [`set_on_exec`].
pub fn set_on_keys(proc: &HostProc, label: &str) -> io::Result<()> {
    check(label)?;
    proc.write(ON_KEYCREATE, label)
}

/// Gives a file a label. False if its file system has none. Symlinks are not followed: such a path is refused.
///
/// # Errors
/// PermissionDenied: the policy does not allow it. FilesystemLoop for a symlink.
pub fn set_path(path: &Path, label: &str) -> io::Result<bool> {
    check(label)?;
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = rustix::fs::open(path, flags, Mode::empty())?;
    if FileType::from_raw_mode(rustix::fs::fstat(&file)?.st_mode).is_symlink() {
        return Err(Errno::LOOP.into());
    }
    match set(file.as_fd(), label) {
        Err(Errno::OPNOTSUPP) => Ok(false),
        set => Ok(set.map(|()| true)?),
    }
}

/// Gives the root of a mounted file system, which need not be attached, a label. For file systems that no mount option
/// labels. Needs no /proc.
///
/// # Errors
/// As [`set_path`]; Unsupported if the file system has no labels.
pub fn set_root(mount: BorrowedFd<'_>, label: &str) -> io::Result<()> {
    check(label)?;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::openat(mount, c".", flags, Mode::empty())?;
    Ok(rustix::fs::fsetxattr(&root, XATTR, label.as_bytes(), XattrFlags::empty())?)
}

/// The label of an open file, which may have been opened with O_PATH.
fn label_of(file: BorrowedFd<'_>) -> rustix::io::Result<Vec<u8>> {
    let mut buffer = [0; MAX_LABEL];
    let length = getxattr(by_proc(file), XATTR, &mut buffer[..])?;
    let label = buffer.get(..length).unwrap_or_default();
    Ok(label.strip_suffix(b"\0").unwrap_or(label).to_vec())
}

/// Gives an open file, which may have been opened with O_PATH, a label.
fn set(file: BorrowedFd<'_>, label: &str) -> rustix::io::Result<()> {
    setxattr(by_proc(file), XATTR, label.as_bytes(), XattrFlags::empty())
}

/// fgetxattr(2) and fsetxattr(2) take no descriptor that was opened with O_PATH. This path leads to the open file itself,
/// also if that is a symlink.
fn by_proc(file: BorrowedFd<'_>) -> String {
    format!("/proc/self/fd/{}", file.as_raw_fd())
}

fn check(label: &str) -> io::Result<()> {
    if label.is_empty() || label.len() > MAX_LABEL || label.contains(char::is_control) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not an SELinux label"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_label_is_not_written() {
        let proc = HostProc::open().unwrap();
        for label in [String::new(), "a\nb".to_owned(), "a\0".to_owned(), "x".repeat(MAX_LABEL + 1)] {
            for set in [set_on_exec(&proc, &label), set_on_keys(&proc, &label)] {
                assert_eq!(set.unwrap_err().kind(), io::ErrorKind::InvalidInput);
            }
            assert_eq!(canonical(&label).unwrap_err().kind(), io::ErrorKind::InvalidInput);
        }
    }

    /// No policy has it; a kernel without SELinux takes none.
    #[test]
    fn an_unknown_label_is_an_error() {
        assert!(set_on_exec(&HostProc::open().unwrap(), "copepod_u:test_r:no_such_t:s0").is_err());
    }

    #[test]
    fn files_have_the_label_that_they_are_given() {
        let dir = tempfile::tempdir_in("/dev/shm").unwrap();
        let path = dir.path().join("file");
        fs::write(&path, "").unwrap();
        std::os::unix::fs::symlink(&path, dir.path().join("link")).unwrap();
        if is_enabled() {
            println!("not checked: the policy of this host may not know the label");
            return;
        }
        // Without SELinux a tmpfs takes any value of the attribute.
        assert!(set_path(&path, "u:r:t:s0").unwrap());
        let file = rustix::fs::open(&path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).unwrap();
        assert_eq!(label_of(file.as_fd()).unwrap(), b"u:r:t:s0");
        assert!(!set_path(Path::new("/proc/self/status"), "u:r:t:s0").unwrap());
        assert!(set_path(&dir.path().join("link"), "u:r:t:s0").is_err());
    }
}
