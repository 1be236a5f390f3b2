//! A file for bytes that arrive or are made in another order than they are needed in. It has no name, so that the kernel
//! deletes it with its last descriptor, whatever ends this process. Blocks.

use crate::error::{Error, Result};
use crate::space::{Reserve, Watch};
use crate::transfers::Transfer;
use bytes::{Bytes, BytesMut};
use rustix::fs::{self, Mode, OFlags};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The file. Only one owner can append.
#[derive(Debug)]
pub(crate) struct Spool {
    file: File,
    /// The name that it had, for errors.
    path: PathBuf,
    length: u64,
    limit: u64,
    space: Watch,
    /// Dropped after `file`: who gets the place next finds the disk space free.
    _place: Option<Arc<Transfer>>,
}

impl Spool {
    /// Creates an empty file at the unused `path`, for at most `limit` bytes. The name is removed at once.
    pub(crate) fn create(path: PathBuf, limit: u64) -> Result<Self> {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file =
            fs::open(&path, flags, Mode::RUSR | Mode::WUSR).map_err(Error::storage("create", &path))?;
        // What a crash in between leaves, the next start deletes from this folder.
        std::fs::remove_file(&path).map_err(Error::storage("unlink", &path))?;
        Ok(Self {
            file: file.into(),
            path,
            length: 0,
            limit,
            space: Watch::new(Reserve::OF_SPOOLS),
            _place: None,
        })
    }

    /// Keeps a place among those that may have such a file until its disk space is free.
    pub(crate) fn holding(self, place: Arc<Transfer>) -> Self {
        Self { _place: Some(place), ..self }
    }

    /// Number of bytes.
    pub(crate) fn length(&self) -> u64 {
        self.length
    }

    /// The name that the file had, for errors.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Writes bytes at the end.
    pub(crate) fn append(&mut self, bytes: &[u8]) -> Result<()> {
        let length = self.length + bytes.len() as u64;
        if length > self.limit {
            return Err(Error::TooLarge {
                object: "a temporary file for an image".to_owned(),
                limit: self.limit,
                unit: "bytes",
            });
        }
        self.space.before(bytes.len() as u64, &self.file).map_err(Error::storage("write", &self.path))?;
        self.file.write_all_at(bytes, self.length).map_err(Error::storage("write", &self.path))?;
        self.length = length;
        Ok(())
    }

    /// Reads `length` bytes at `offset`, or fewer at the end.
    pub(crate) fn read(&self, offset: u64, length: usize) -> Result<Bytes> {
        let mut bytes = BytesMut::zeroed(length);
        let mut done = 0;
        while done < length {
            match self.file.read_at(&mut bytes[done..], offset + done as u64) {
                Ok(0) => break,
                Ok(read) => done += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(Error::storage("read", &self.path)(error)),
            }
        }
        bytes.truncate(done);
        Ok(bytes.freeze())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transfers::Transfers;
    use std::time::Duration;
    use tokio::time::timeout;

    #[tokio::test(start_paused = true)]
    async fn a_place_is_kept_as_long_as_the_file() {
        let (folder, limit) = (tempfile::tempdir().unwrap(), Duration::from_secs(10));
        let places = Arc::new(Transfers::new(1, limit, limit));
        let place = Arc::new(places.enter("x").await.unwrap());
        let spool = Spool::create(folder.path().join("x"), 10).unwrap().holding(place.clone());
        drop(place);
        assert!(timeout(limit, places.enter("x")).await.is_err(), "the place is free");
        drop(spool);
        timeout(limit, places.enter("x")).await.unwrap().unwrap();
    }

    #[test]
    fn it_has_no_name_and_a_limit() {
        let folder = tempfile::tempdir().unwrap();
        let mut spool = Spool::create(folder.path().join("x"), 10).unwrap();
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
        spool.append(b"01234").unwrap();
        spool.append(b"56789").unwrap();
        assert!(matches!(spool.append(b"x"), Err(Error::TooLarge { limit: 10, .. })));
        assert_eq!(spool.length(), 10);
        assert_eq!(
            (&spool.read(3, 4).unwrap()[..], &spool.read(8, 9).unwrap()[..]),
            (&b"3456"[..], &b"89"[..])
        );
    }
}
