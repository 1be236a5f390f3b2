//! New file systems (fsopen(2), fsconfig(2), fsmount(2)), and the kernel's messages in errors.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_flag, fsconfig_set_string,
    fsmount, fsopen,
};

use super::Attributes;

/// One option of a new file system.
#[derive(Debug, Clone, Copy)]
pub enum FsOption<'a> {
    /// `key`.
    Flag(&'a str),
    /// `key=value`.
    Value(&'a str, &'a str),
}

/// Creates a file system of `kind`, which is not attached yet. If the kernel gives reasons in addition to the errno,
/// the error contains them.
///
/// # Errors
/// ENODEV for an unknown kind; EINVAL for an unknown option; those of the file system.
pub fn create(kind: &str, options: &[FsOption<'_>], attributes: Attributes) -> io::Result<OwnedFd> {
    let context = fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC)?;
    let build = || {
        for option in options {
            match option {
                FsOption::Flag(key) => fsconfig_set_flag(&context, *key)?,
                FsOption::Value(key, value) => fsconfig_set_string(&context, *key, *value)?,
            }
        }
        fsconfig_create(&context)?;
        let bits = u32::try_from(attributes.bits()).unwrap_or(0);
        fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::from_bits_retain(bits))
    };
    build().map_err(|errno| explain(&context, errno))
}

/// Mounts a file system of `kind` at `target` by mount(2), for options that fsconfig(2) does not take.
///
/// # Errors
/// As [`create`]; EINVAL for options of more than a page.
pub fn create_at(kind: &str, target: &Path, options: &str) -> io::Result<()> {
    let options = std::ffi::CString::new(options)?;
    Ok(rustix::mount::mount(kind, target, kind, rustix::mount::MountFlags::empty(), options.as_c_str())?)
}

/// The option that gives all files of a new file system one SELinux label; none for an empty label.
pub fn label(label: &str) -> Option<FsOption<'_>> {
    (!label.is_empty()).then_some(FsOption::Value("context", label))
}

/// A tmpfs. `size` 0 leaves the kernel's default, half of memory.
///
/// # Errors
/// As [`create`].
pub fn tmpfs(mode: u32, size: u64, attributes: Attributes) -> io::Result<OwnedFd> {
    labelled_tmpfs(mode, size, attributes, "")
}

/// A tmpfs whose files have this SELinux label, or the policy's if it is empty.
///
/// # Errors
/// As [`create`]; InvalidInput for a label that the policy does not know.
pub fn labelled_tmpfs(mode: u32, size: u64, attributes: Attributes, label: &str) -> io::Result<OwnedFd> {
    let (mode, text) = (format!("{mode:o}"), size.to_string());
    let mut options = vec![FsOption::Value("source", "tmpfs"), FsOption::Value("mode", &mode)];
    options.extend((size != 0).then_some(FsOption::Value("size", &text)));
    options.extend(self::label(label));
    create("tmpfs", &options, attributes)
}

/// Adds the messages in the context's log (each read returns one).
fn explain(context: &OwnedFd, errno: rustix::io::Errno) -> io::Error {
    let mut text = String::new();
    let mut buffer = [0u8; 512];
    while text.len() < 2048 {
        match rustix::io::read(context, &mut buffer) {
            Ok(0) | Err(_) => break,
            Ok(length) => {
                text.push_str(" | ");
                text.push_str(String::from_utf8_lossy(buffer.get(..length).unwrap_or_default()).trim());
            }
        }
    }
    let plain = io::Error::from(errno);
    if text.is_empty() {
        plain
    } else {
        io::Error::new(plain.kind(), Explained { errno: errno.raw_os_error(), text })
    }
}

/// The same error with more text; [`errno`] still returns its number.
pub fn with_text(error: &io::Error, text: impl std::fmt::Display) -> io::Error {
    io::Error::new(error.kind(), Explained { errno: errno(error), text: format!(" ({text})") })
}

/// An errno with the kernel's messages; [`errno`] returns the number.
#[derive(Debug, thiserror::Error)]
#[error("{}{text}", io::Error::from_raw_os_error(*.errno))]
struct Explained {
    errno: i32,
    text: String,
}

/// The errno of an error of this module; 0 if it has none.
pub fn errno(error: &io::Error) -> i32 {
    let inner = error.get_ref().and_then(|e| e.downcast_ref::<Explained>()).map(|e| e.errno);
    error.raw_os_error().or(inner).unwrap_or(0)
}
