//! One record, one file.
//!
//! The file is a single JSON object, so that `jq` can read it: `magic`, `version` of the envelope, `kind`,
//! `boot_id` of the boot it was written in, `sum` over kind, boot id and data, and `data`. It is written
//! beside its place and renamed, so a reader sees the old record or the new one; what a crash or a disk makes
//! of it besides is [`Error::Torn`], never a wrong value.
//!
//! Records grow by addition: fields that a build does not know are skipped, and `version` changes only when
//! that no longer suffices. A whole record with a value that a build does not know is [`Error::Newer`]; so is
//! one of a higher `version`. `tests/fixtures` holds records of every format; they are never changed.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use sys::tree::Trash;

use crate::{Error, Layout};

/// Largest record, read or written. Kubernetes puts seven variables a service into each container of a
/// namespace: 5000 services, its own limit, are about 4 MiB of environment.
pub const MAX_BYTES: u64 = 8 << 20;
/// Largest record of an object that is being made: what comes later (addresses, the exit with its message)
/// must always find room, or an end could not be recorded.
pub const MAX_NEW_BYTES: u64 = MAX_BYTES - (256 << 10);
/// Version of the envelope.
pub const VERSION: u32 = 1;
/// Tells our files from others'.
const MAGIC: &str = "copepod-record";
/// More files than this in the aside folder help nobody: further bad files are deleted.
const MAX_ASIDE: usize = 1000;

/// A record as read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored<T> {
    /// The boot it was written in; compare with [`crate::boot::id`].
    pub boot_id: String,
    /// Version of the envelope it was written with.
    pub version: u32,
    /// The record.
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

/// Writes a record in place of the one at `path`. The folder must exist. With `durable` it survives power
/// loss once this returns; without, only the daemon's death. One writer per path.
///
/// # Errors
/// The old record is untouched by every error but one of the last folder sync.
pub fn write<T: Serialize>(
    path: &Path,
    kind: &str,
    boot_id: &str,
    data: &T,
    durable: bool,
) -> Result<(), Error> {
    write_within(MAX_BYTES, path, kind, boot_id, data, durable)
}

/// As [`write`], with a limit of the record's size in bytes: [`MAX_NEW_BYTES`] for what is being made.
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

/// Writes plain bytes with the same guarantees, for files that are not records (`hostname`, `resolv.conf`).
///
/// # Errors
/// As `write`.
pub fn replace(path: &Path, bytes: &[u8], mode: u32, durable: bool) -> Result<(), Error> {
    let (dir, temp) = beside(path)?;
    let fill = || -> io::Result<()> {
        // A leftover of a crash may be there: it is ours to overwrite. Never through a link.
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(mode)
            .custom_flags(libc::O_NOFOLLOW)
            .open(&temp)?;
        file.write_all(bytes)?;
        if durable {
            file.sync_all()?;
        }
        fs::rename(&temp, path)
    };
    if let Err(source) = fill() {
        // Best effort: the next write overwrites what stays.
        drop(fs::remove_file(&temp));
        return Err(Error::io("write", path)(source));
    }
    if durable { sync_dir(&dir) } else { Ok(()) }
}

/// Reads the record at `path`; `None` when there is no file.
///
/// # Errors
/// [`Error::Torn`] and [`Error::Foreign`] are the file's own fault ([`set_aside`]). [`Error::Newer`] and
/// [`Error::TooLarge`] are of a version that knows or allows more than this one: what they describe may live.
pub fn read<T: DeserializeOwned>(path: &Path, kind: &str) -> Result<Option<Stored<T>>, Error> {
    match bytes(path)? {
        Some(bytes) => decode(path, kind, &bytes).map(Some),
        None => Ok(None),
    }
}

/// What can be had of a record that [`read`] calls newer, for showing it: `T` names only what it needs. Nothing
/// is known of the rest, so nothing may be done on the strength of this.
pub fn look<T: DeserializeOwned>(path: &Path) -> Option<T> {
    #[derive(Deserialize)]
    struct Data<T> {
        data: T,
    }
    let bytes = bytes(path).ok()??;
    serde_json::from_slice::<Data<T>>(&bytes).ok().map(|envelope| envelope.data)
}

/// The whole file, capped; `None` when there is none.
fn bytes(path: &Path) -> Result<Option<Vec<u8>>, Error> {
    let file =
        match OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) if error.raw_os_error() == Some(libc::ELOOP) => {
                return Err(Error::foreign(path, "a symbolic link"));
            }
            Err(error) => return Err(Error::io("open", path)(error)),
        };
    let facts = file.metadata().map_err(Error::io("stat", path))?;
    if !facts.is_file() {
        return Err(Error::foreign(path, "not a regular file"));
    }
    let mut bytes = Vec::with_capacity(usize::try_from(facts.len().min(MAX_BYTES)).unwrap_or(0));
    file.take(MAX_BYTES + 1).read_to_end(&mut bytes).map_err(Error::io("read", path))?;
    if bytes.len() as u64 > MAX_BYTES {
        let size = facts.len().max(MAX_BYTES + 1);
        return Err(Error::TooLarge { path: path.to_path_buf(), size, limit: MAX_BYTES });
    }
    Ok(Some(bytes))
}

fn decode<T: DeserializeOwned>(path: &Path, kind: &str, bytes: &[u8]) -> Result<Stored<T>, Error> {
    let envelope: Envelope<'_> = serde_json::from_slice(bytes).map_err(|error| Error::torn(path, error))?;
    if envelope.magic != MAGIC {
        return Err(Error::foreign(path, format!("magic is {:?}", envelope.magic)));
    }
    // Its sum may be another one: what it says of itself is all there is.
    if envelope.version > VERSION {
        return Err(Error::newer(path, format!("format {}, known is {VERSION}", envelope.version)));
    }
    if envelope.version != VERSION {
        return Err(Error::foreign(path, format!("format {}, known is {VERSION}", envelope.version)));
    }
    if envelope.sum != sum(&envelope.kind, &envelope.boot_id, envelope.data.get()) {
        return Err(Error::torn(path, "its sum does not match"));
    }
    if envelope.kind != kind {
        return Err(Error::foreign(path, format!("a {:?} record, not {kind:?}", envelope.kind)));
    }
    // Written whole (its sum says so) and yet not understood: it knows more than this build.
    let data = serde_json::from_str(envelope.data.get())
        .map_err(|error| Error::newer(path, format!("a {kind} record of another shape: {error}")))?;
    Ok(Stored { boot_id: envelope.boot_id, version: envelope.version, data })
}

/// Removes the file at `path`, durably; one that is not there is removed.
///
/// # Errors
/// When it is still there, or may be after a power loss.
pub fn remove(path: &Path) -> Result<(), Error> {
    match fs::remove_file(path) {
        Ok(()) => sync_dir(path.parent().unwrap_or(Path::new("/"))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(Error::io("remove", path)(error)),
    }
}

/// Makes a folder (mode 0700) whose existence survives power loss; one that is there is fine.
///
/// # Errors
/// When it cannot be made; its parent must exist.
pub fn create_dir(path: &Path) -> Result<(), Error> {
    match fs::DirBuilder::new().mode(0o700).create(path) {
        Ok(()) => sync_dir(path.parent().unwrap_or(Path::new("/"))),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => Ok(()),
        Err(error) => Err(Error::io("create", path)(error)),
    }
}

/// Removes a folder with all it holds, durably; one that is not there is removed.
///
/// # Errors
/// When something of it stays.
pub fn remove_dir(path: &Path) -> Result<(), Error> {
    if fs::symlink_metadata(path).is_err_and(|error| error.kind() == io::ErrorKind::NotFound) {
        return Ok(());
    }
    sys::tree::remove_path(path).map_err(|error| Error::io("remove", path)(error.into()))?;
    sync_dir(path.parent().unwrap_or(Path::new("/")))
}

/// As [`remove_dir`], for folders that containers filled: at its path it is gone at once and durably, the rest is
/// removed in the background, and then `held` is dropped. Needs no space on the file system.
///
/// # Errors
/// When it is still at its path.
pub fn discard_dir(path: &Path, trash: &Trash, held: impl Send + 'static) -> Result<(), Error> {
    if fs::symlink_metadata(path).is_err_and(|error| error.kind() == io::ErrorKind::NotFound) {
        return Ok(());
    }
    trash.take_holding(path, held).map_err(|error| Error::io("remove", path)(error.into()))?;
    sync_dir(path.parent().unwrap_or(Path::new("/")))
}

/// Moves a bad file out of the way into [`Layout::aside_dir`], so that it costs one object at most and can be
/// looked at. Returns where it went; `None` when it was deleted because that folder is full or on another
/// file system and the file too large to copy.
///
/// # Errors
/// When the bad file is still in its place.
pub fn set_aside(path: &Path, layout: &Layout) -> Result<Option<PathBuf>, Error> {
    let aside = layout.aside_dir();
    let inside =
        path.strip_prefix(layout.root()).or_else(|_| path.strip_prefix(layout.run())).unwrap_or(path);
    let mut flat = OsString::new();
    for part in inside.components().filter_map(|part| match part {
        std::path::Component::Normal(name) => Some(name),
        _ => None,
    }) {
        if !flat.is_empty() {
            flat.push("_");
        }
        flat.push(part);
    }
    let taken = fs::read_dir(&aside).map_err(Error::io("list", &aside))?.count();
    let free = (0..MAX_ASIDE)
        .map(|number| {
            let mut name = flat.clone();
            name.push(format!(".{number}"));
            aside.join(name)
        })
        .find(|place| {
            fs::symlink_metadata(place).is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
        });
    let Some(place) = free.filter(|_| taken < MAX_ASIDE) else {
        remove(path)?;
        return Ok(None);
    };
    match fs::rename(path, &place) {
        Ok(()) => {
            sync_dir(&aside)?;
            sync_dir(path.parent().unwrap_or(Path::new("/")))?;
            Ok(Some(place))
        }
        Err(error) if error.kind() == io::ErrorKind::CrossesDevices => {
            let small =
                fs::symlink_metadata(path).is_ok_and(|facts| facts.is_file() && facts.len() <= MAX_BYTES);
            let kept = small && fs::copy(path, &place).is_ok();
            remove(path)?;
            Ok(kept.then_some(place))
        }
        Err(error) => Err(Error::io("set aside", path)(error)),
    }
}

/// Makes the entries of a folder durable.
pub(crate) fn sync_dir(dir: &Path) -> Result<(), Error> {
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(Error::io("sync", dir))
}

/// The folder of `path` and the name a new version is written under: fixed, so that crashes leave at most one.
fn beside(path: &Path) -> Result<(PathBuf, PathBuf), Error> {
    let (Some(dir), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(Error::foreign(path, "not the path of a file"));
    };
    let mut temp = OsString::from(".");
    temp.push(name);
    temp.push(".new");
    Ok((dir.to_path_buf(), dir.join(temp)))
}

/// FNV-1a, 64 bits, over the parts with a separator: finds accidents, which is all it is for.
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
