//! Record files: one record per file.
//!
//! The file is a single JSON object, so that `jq` can read it: `magic`, `version` (of this format), `kind`, `boot_id` (of
//! the boot in which it was written), `sum` (a checksum of kind, boot id and data), and `data`. It is written to a
//! temporary file, which is then renamed, so that a reader sees either the old record or the new one. A file that a crash
//! or a disk error has damaged is [`Error::Damaged`], never a wrong value.
//!
//! Records are extended by adding fields: a build skips the fields that it does not know. `version` changes only if that
//! does not suffice. A record with a higher `version`, or with a right checksum and an unknown value, is
//! [`Error::Newer`]. `tests/fixtures` has records of every format; they are never changed.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use sys::tree::Trash;

use crate::Error;

/// Maximum size of a record in bytes. Kubernetes sets seven variables per service in each container of a
/// namespace: 5000 services, its limit, are about 4 MiB of environment.
pub const MAX_BYTES: u64 = 8 << 20;
/// Maximum size of the record of a new object in bytes. What is added later (addresses, the exit with its message)
/// must fit, so that every exit can be recorded.
pub const MAX_NEW_BYTES: u64 = MAX_BYTES - (256 << 10);
/// Version of the format.
const VERSION: u32 = 1;
/// Identifies our files.
const MAGIC: &str = "copepod-record";

/// A record that was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored<T> {
    /// The boot in which it was written; compare with [`crate::boot::id`].
    pub boot_id: String,
    /// The record itself.
    pub data: T,
}

#[derive(Serialize, Deserialize)]
struct Envelope<'a> {
    magic: String,
    version: u32,
    kind: String,
    boot_id: String,
    sum: String,
    #[serde(borrow)]
    data: &'a RawValue,
}

/// Replaces the record at `path`. The folder must exist, and a path may have one writer at a time. With `durable` the
/// record survives a power loss once this returns; otherwise it survives only the end of the daemon.
///
/// # Errors
/// The old record is unchanged, except after an error of the last step, which syncs the folder.
pub fn write<T: Serialize>(
    path: &Path,
    kind: &str,
    boot_id: &str,
    data: &T,
    durable: bool,
) -> Result<(), Error> {
    write_within(MAX_BYTES, path, kind, boot_id, data, durable)
}

/// Like [`write`], with a size limit in bytes: [`MAX_NEW_BYTES`] for new objects.
///
/// # Errors
/// As [`write`].
pub fn write_within<T: Serialize>(
    limit: u64,
    path: &Path,
    kind: &str,
    boot_id: &str,
    data: &T,
    durable: bool,
) -> Result<(), Error> {
    let encode = |source| Error::Encode { path: path.to_path_buf(), source };
    let data = serde_json::value::to_raw_value(data).map_err(encode)?;
    let envelope = Envelope {
        magic: MAGIC.to_owned(),
        version: VERSION,
        kind: kind.to_owned(),
        boot_id: boot_id.to_owned(),
        sum: sum(kind, boot_id, data.get()),
        data: &data,
    };
    let mut bytes = serde_json::to_vec(&envelope).map_err(encode)?;
    bytes.push(b'\n');
    let size = bytes.len() as u64;
    if size > limit {
        return Err(Error::TooLarge { path: path.to_path_buf(), size, limit });
    }
    replace(path, &bytes, 0o600, durable)
}

/// Like [`write`] for files that are not records (`hostname`, `resolv.conf`).
///
/// # Errors
/// As [`write`].
pub fn replace(path: &Path, bytes: &[u8], mode: u32, durable: bool) -> Result<(), Error> {
    sys::file::replace(path, &beside(path)?, bytes, mode, durable).map_err(Error::io("write", path))
}

/// Reads the record at `path`; `None` if there is no file.
///
/// # Errors
/// [`Error::Damaged`] and [`Error::Foreign`]: the file is bad ([`crate::set_aside`]). [`Error::Newer`] and
/// [`Error::TooLarge`]: a version that knows or allows more has written it, so its object may be running.
pub fn read<T: DeserializeOwned>(path: &Path, kind: &str) -> Result<Option<Stored<T>>, Error> {
    match bytes(path)? {
        Some(bytes) => decode(path, kind, &bytes).map(Some),
        None => Ok(None),
    }
}

/// Reads some fields of a record that [`read`] reports as newer, to display them: `T` has only these fields. Nothing may
/// be done because of them, as the meaning of the other fields is not known.
pub fn look<T: DeserializeOwned>(path: &Path) -> Option<T> {
    #[derive(Deserialize)]
    struct Data<T> {
        data: T,
    }
    let bytes = bytes(path).ok()??;
    serde_json::from_slice::<Data<T>>(&bytes).ok().map(|envelope| envelope.data)
}

/// The whole file, up to the size limit; `None` if there is none.
fn bytes(path: &Path) -> Result<Option<Vec<u8>>, Error> {
    sys::file::read_own(path, MAX_BYTES).map_err(|error| match error.kind() {
        io::ErrorKind::InvalidInput => Error::foreign(path, "not a regular file"),
        io::ErrorKind::FileTooLarge => {
            let size = fs::symlink_metadata(path).map_or(0, |facts| facts.len()).max(MAX_BYTES + 1);
            Error::TooLarge { path: path.to_path_buf(), size, limit: MAX_BYTES }
        }
        _ if error.raw_os_error() == Some(libc::ELOOP) => Error::foreign(path, "a symbolic link"),
        _ => Error::io("read", path)(error),
    })
}

fn decode<T: DeserializeOwned>(path: &Path, kind: &str, bytes: &[u8]) -> Result<Stored<T>, Error> {
    let envelope: Envelope<'_> =
        serde_json::from_slice(bytes).map_err(|error| Error::damaged(path, error))?;
    if envelope.magic != MAGIC {
        return Err(Error::foreign(path, format!("magic is {:?}", envelope.magic)));
    }
    // Before the checksum, which another version may compute differently.
    if envelope.version > VERSION {
        return Err(Error::newer(
            path,
            format!("it has format {}, and this build knows {VERSION}", envelope.version),
        ));
    }
    if envelope.version != VERSION {
        return Err(Error::foreign(
            path,
            format!("it has format {}, and this build knows {VERSION}", envelope.version),
        ));
    }
    if envelope.sum != sum(&envelope.kind, &envelope.boot_id, envelope.data.get()) {
        return Err(Error::damaged(path, "its checksum does not match"));
    }
    if envelope.kind != kind {
        return Err(Error::foreign(path, format!("a {:?} record, not {kind:?}", envelope.kind)));
    }
    // The checksum shows that it is complete. So a later version has written what is not known here.
    let data = serde_json::from_str(envelope.data.get())
        .map_err(|error| Error::newer(path, format!("a {kind} record of another shape: {error}")))?;
    Ok(Stored { boot_id: envelope.boot_id, data })
}

/// Removes the file at `path` durably, if it exists.
///
/// # Errors
/// The file still exists, or may exist again after a power loss.
pub fn remove(path: &Path) -> Result<(), Error> {
    match fs::remove_file(path) {
        Ok(()) => sync_dir(path.parent().unwrap_or(Path::new("/"))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(Error::io("remove", path)(error)),
    }
}

/// Creates a folder (mode 0700) durably, if it does not exist.
///
/// # Errors
/// It could not be created; its parent must exist.
pub fn create_dir(path: &Path) -> Result<(), Error> {
    match fs::DirBuilder::new().mode(0o700).create(path) {
        Ok(()) => sync_dir(path.parent().unwrap_or(Path::new("/"))),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => Ok(()),
        Err(error) => Err(Error::io("create", path)(error)),
    }
}

/// Removes a folder with its content durably, if it exists.
///
/// # Errors
/// Something of it is left, or may be there again after a power loss.
pub fn remove_dir(path: &Path) -> Result<(), Error> {
    if fs::symlink_metadata(path).is_err_and(|error| error.kind() == io::ErrorKind::NotFound) {
        return Ok(());
    }
    sys::tree::remove_path(path).map_err(|error| Error::io("remove", path)(error.into()))?;
    sync_dir(path.parent().unwrap_or(Path::new("/")))
}

/// Like [`remove_dir`], for folders that containers have filled: it is moved into the trash, durably, and deleted there in
/// the background. `guard` is dropped when that is done. Needs no space on the file system.
///
/// # Errors
/// It is still at its path, or may be there again after a power loss.
pub fn discard_dir(path: &Path, trash: &Trash, guard: impl Send + 'static) -> Result<(), Error> {
    if fs::symlink_metadata(path).is_err_and(|error| error.kind() == io::ErrorKind::NotFound) {
        return Ok(());
    }
    trash.take_holding(path, guard).map_err(|error| Error::io("remove", path)(error.into()))?;
    sync_dir(path.parent().unwrap_or(Path::new("/")))
}

/// Makes the entries of a folder durable.
pub(crate) fn sync_dir(dir: &Path) -> Result<(), Error> {
    sys::file::sync_folder(dir).map_err(Error::io("sync", dir))
}

/// The path of the temporary file. It is always the same, so that crashes leave at most one.
fn beside(path: &Path) -> Result<PathBuf, Error> {
    let (Some(dir), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(Error::foreign(path, "not the path of a file"));
    };
    let mut temp = OsString::from(".");
    temp.push(name);
    temp.push(".new");
    Ok(dir.join(temp))
}

/// A checksum against accidental damage: 64-bit FNV-1a of the parts, each followed by a zero byte.
fn sum(kind: &str, boot_id: &str, data: &str) -> String {
    let mut hash: u64 = 0xcbf2_9ce4_8422_2325;
    for part in [kind, boot_id, data] {
        for byte in part.bytes().chain([0]) {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }
    format!("{hash:016x}")
}

#[cfg(test)]
mod tests;
