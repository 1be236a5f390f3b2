//! Atomic file replacement, and reading with a limit (rename(2), fsync(2)).

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

/// Replaces the file at `path`: writes `bytes` to `beside`, a path on the same file system that no other writer uses,
/// and renames it. A leftover at `beside` is overwritten, but a symlink there is an error. `mode` applies to a new
/// file, minus the umask. With `durable` the content survives a power loss once this has returned, otherwise only
/// the end of this process.
///
/// # Errors
/// The errors of the system calls. The old file at `path` is unchanged then, unless only the last sync of its folder
/// has failed; `beside` is removed.
pub fn replace(path: &Path, beside: &Path, bytes: &[u8], mode: u32, durable: bool) -> io::Result<()> {
    let fill = || -> io::Result<()> {
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(true).mode(mode).custom_flags(libc::O_NOFOLLOW);
        let mut file = options.open(beside)?;
        file.write_all(bytes)?;
        if durable {
            file.sync_all()?;
        }
        fs::rename(beside, path)
    };
    if let Err(error) = fill() {
        // Best effort: the next write overwrites a leftover.
        drop(fs::remove_file(beside));
        return Err(error);
    }
    if durable { sync_folder(path.parent().unwrap_or(Path::new("/"))) } else { Ok(()) }
}

/// Makes the entries of a folder durable.
///
/// # Errors
/// The errors of open(2) and fsync(2).
pub fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

/// Reads a regular file that this program has written, at most `limit` bytes; `None` if there is none. Does not block.
///
/// # Errors
/// ELOOP for a symlink, InvalidInput for other files that are not regular, FileTooLarge above `limit`.
pub fn read_own(path: &Path, limit: u64) -> io::Result<Option<Vec<u8>>> {
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
    match OpenOptions::new().read(true).custom_flags(flags).open(path) {
        Ok(file) if file.metadata()?.is_file() => read_capped(file, limit).map(Some),
        Ok(_) => Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file")),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Reads the rest of a file, at most `limit` bytes.
///
/// # Errors
/// FileTooLarge above `limit`; the errors of read(2).
pub fn read_capped(file: File, limit: u64) -> io::Result<Vec<u8>> {
    let expected = file.metadata().map_or(0, |facts| facts.len()).min(limit);
    let mut bytes = Vec::with_capacity(usize::try_from(expected).unwrap_or(0));
    file.take(limit.saturating_add(1)).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > limit {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("larger than {}", size(limit))));
    }
    Ok(bytes)
}

/// A number of bytes in the largest unit that divides it.
fn size(bytes: u64) -> String {
    match bytes {
        _ if bytes.is_multiple_of(1 << 20) => format!("{} MiB", bytes >> 20),
        _ if bytes.is_multiple_of(1 << 10) => format!("{} KiB", bytes >> 10),
        _ => format!("{bytes} bytes"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_whole_or_not_there() {
        let temp = tempfile::tempdir().unwrap();
        let (path, beside) = (temp.path().join("file"), temp.path().join(".file.new"));
        assert_eq!(read_own(&path, 9).unwrap(), None);
        for (bytes, durable) in [(&b"first"[..], true), (b"second", false)] {
            fs::write(&beside, "a leftover that is longer than both").unwrap();
            replace(&path, &beside, bytes, 0o600, durable).unwrap();
            assert_eq!(read_own(&path, 6).unwrap().unwrap(), bytes);
        }
        let error = read_own(&path, 5).unwrap_err();
        assert_eq!(
            (error.kind(), error.to_string().as_str()),
            (io::ErrorKind::FileTooLarge, "larger than 5 bytes")
        );
        assert_eq!([size(3 << 20), size(3 << 10)], ["3 MiB", "3 KiB"]);
        // Nothing is written through a link, and nothing is left of a write that failed.
        std::os::unix::fs::symlink("elsewhere", &beside).unwrap();
        assert_eq!(replace(&path, &beside, b"x", 0o600, true).unwrap_err().raw_os_error(), Some(libc::ELOOP));
        let names: Vec<_> = fs::read_dir(temp.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(names, ["file"]);
        assert_eq!(read_own(&path, 6).unwrap().unwrap(), b"second");
    }

    #[test]
    fn only_regular_files_are_read() {
        let temp = tempfile::tempdir().unwrap();
        let link = temp.path().join("link");
        std::os::unix::fs::symlink("/dev/zero", &link).unwrap();
        assert_eq!(read_own(&link, 1).unwrap_err().raw_os_error(), Some(libc::ELOOP));
        assert_eq!(read_own(temp.path(), 1).unwrap_err().kind(), io::ErrorKind::InvalidInput);
        assert_eq!(read_own(Path::new("/dev/zero"), 1).unwrap_err().kind(), io::ErrorKind::InvalidInput);
    }
}
