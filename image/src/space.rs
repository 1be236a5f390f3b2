//! What of the store's file system stays free, so that records can still be written, and what an operator reads when it is
//! full.

use rustix::fs::StatVfs;
use std::error::Error;
use std::fmt;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

/// What stays free of a file system.
#[derive(Debug)]
pub(crate) struct Reserve {
    /// In bytes.
    bytes: u64,
    inodes: u64,
    /// A file system smaller than `part` times this keeps a `part`th of itself free.
    part: u64,
    /// The free space is looked up again after so many written bytes. Several writers may write as much beyond the reserve.
    step: u64,
}

impl Reserve {
    /// Of files for a whole archive or layer: containers write there too.
    pub(crate) const OF_SPOOLS: Self = Self { bytes: 256 << 20, inodes: 0, part: 20, step: 16 << 20 };
    /// Of unpacked layers: for the records of images, pods and containers, and what removals need.
    pub(crate) const OF_LAYERS: Self = Self { bytes: 64 << 20, inodes: 1024, part: 50, step: 1 << 20 };

    /// How many bytes may be written before the free space must be looked up again.
    ///
    /// # Errors
    /// `StorageFull` if there is less than the reserve.
    fn step(&self, found: &StatVfs) -> io::Result<u64> {
        let block = found.f_frsize;
        let (free, all) = (found.f_bavail.saturating_mul(block), found.f_blocks.saturating_mul(block));
        // File systems that do not count something have 0 of it.
        let bytes = self.bytes.min(all / self.part);
        let inodes = self.inodes.min(found.f_files / self.part);
        let step = self.step.min(bytes / 2);
        let left = if free < bytes.saturating_add(step) {
            format!("{} MiB of space", bytes >> 20)
        } else if found.f_favail < inodes {
            format!("{inodes} inodes")
        } else {
            return Ok(step);
        };
        Err(io::Error::new(io::ErrorKind::StorageFull, format!("{left} must stay free")))
    }
}

/// Watches the reserve while something is written.
#[derive(Debug)]
pub(crate) struct Watch {
    reserve: Reserve,
    /// Bytes that may be written before the free space is looked up again.
    left: u64,
}

impl Watch {
    pub(crate) fn new(reserve: Reserve) -> Self {
        Self { reserve, left: 0 }
    }

    /// Counts bytes that were written without asking before.
    pub(crate) fn count(&mut self, bytes: u64) {
        self.left = self.left.saturating_sub(bytes);
    }

    /// To be called before `bytes` are written to the file system of `file`.
    ///
    /// # Errors
    /// `StorageFull` if there is less than the reserve; those of statvfs(2).
    pub(crate) fn before(&mut self, bytes: u64, file: impl AsFd) -> io::Result<()> {
        match self.left.checked_sub(bytes) {
            Some(left) => self.left = left,
            None => self.left = self.reserve.step(&rustix::fs::fstatvfs(file)?)?.saturating_sub(bytes),
        }
        Ok(())
    }
}

/// An error of a full file system, with what an operator needs to know.
#[derive(Debug)]
struct Full {
    source: io::Error,
    /// Which file system it is, and how much of it is free. Empty if that cannot be found out.
    facts: String,
}

impl fmt::Display for Full {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { source, facts } = self;
        write!(f, "{source}{facts}: remove images (copepod image prune), or make the file system larger")
    }
}

impl Error for Full {}

/// Whether the file system is out of space or inodes, or a quota is used up.
pub(crate) fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// Adds to the error of a full file system which one it is, what is free of it and what can be done. `path` is what could
/// not be written, and need not exist. Other errors stay as they are.
pub(crate) fn explained(error: io::Error, path: &Path) -> io::Error {
    if !is_full(&error) || error.get_ref().is_some_and(<dyn Error + Send + Sync>::is::<Full>) {
        return error;
    }
    io::Error::new(error.kind(), Full { facts: facts(path).unwrap_or_default(), source: error })
}

fn facts(path: &Path) -> Option<String> {
    // A path in a folder that could not be created, or that is gone by now.
    let (path, device) =
        path.ancestors().find_map(|path| Some((path, path.symlink_metadata().ok()?.dev())))?;
    let is_of = |path: &&Path| path.symlink_metadata().is_ok_and(|found| found.dev() == device);
    let mount = path.ancestors().take_while(is_of).last()?;
    let found = rustix::fs::statvfs(path).ok()?;
    let mib = |blocks: u64| blocks.saturating_mul(found.f_frsize) >> 20;
    let mut facts = format!(
        ": the file system at {} has {} of {} MiB free",
        mount.display(),
        mib(found.f_bavail),
        mib(found.f_blocks)
    );
    if found.f_files > 0 {
        facts.push_str(&format!(", and {} of {} inodes", found.f_favail, found.f_files));
    }
    Some(facts)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file system with this much, in blocks of 4 KiB.
    fn found(free: u64, blocks: u64, free_inodes: u64, inodes: u64) -> StatVfs {
        let mut found = rustix::fs::statvfs("/").unwrap();
        found.f_frsize = 4096;
        (found.f_bavail, found.f_blocks) = (free, blocks);
        (found.f_favail, found.f_files) = (free_inodes, inodes);
        found
    }

    #[test]
    fn a_reserve_of_space_and_inodes_stays() {
        let step = |found: &StatVfs| Reserve::OF_LAYERS.step(found).map_err(|error| error.to_string());
        let (large, mib) = (1 << 24, 256);
        let cases = [
            (found(large, large, 1 << 20, 1 << 20), Ok(1 << 20)),
            (found(65 * mib, large, 1 << 20, 1 << 20), Ok(1 << 20)),
            (found(65 * mib - 1, large, 1 << 20, 1 << 20), Err("64 MiB of space must stay free")),
            (found(large, large, 1023, 1 << 20), Err("1024 inodes must stay free")),
            // A small file system has a small reserve.
            (found(6 * mib, 200 * mib, 100, 2000), Ok(1 << 20)),
            (found(5 * mib - 1, 200 * mib, 100, 2000), Err("4 MiB of space must stay free")),
            (found(6 * mib, 200 * mib, 39, 2000), Err("40 inodes must stay free")),
            // What is not counted is not limited.
            (found(0, 0, 0, 0), Ok(0)),
            (found(large, large, 0, 0), Ok(1 << 20)),
        ];
        for (number, (found, expected)) in cases.iter().enumerate() {
            assert_eq!(step(found), expected.map_err(ToOwned::to_owned), "case {number}");
        }
    }

    #[test]
    fn the_space_is_looked_up_again_after_some_bytes() {
        let file = std::fs::File::open("/").unwrap();
        let none = || Reserve { bytes: 0, inodes: 0, part: 1, step: 0 };
        let mut watch = Watch { reserve: none(), left: 10 };
        watch.before(9, &file).unwrap();
        assert_eq!(watch.left, 1);
        // More than the file system has must stay free.
        watch.reserve = Reserve { bytes: u64::MAX, ..none() };
        watch.before(1, &file).unwrap();
        assert!(is_full(&watch.before(1, &file).unwrap_err()));
    }

    #[test]
    fn the_error_of_a_full_file_system_says_what_can_be_done() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("absent/file");
        let full = explained(rustix::io::Errno::NOSPC.into(), &path);
        assert!(is_full(&full));
        let text = full.to_string();
        for part in ["No space left", "the file system at /", " MiB free", "copepod image prune"] {
            assert!(text.contains(part), "{part}: {text}");
        }
        assert_eq!(explained(full, &path).to_string(), text);
        let other = explained(rustix::io::Errno::IO.into(), &path);
        assert_eq!(other.raw_os_error(), Some(rustix::io::Errno::IO.raw_os_error()));
    }
}
