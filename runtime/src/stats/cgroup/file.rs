//! Open kernel files, which can be read more than once.

use super::super::parse;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;

/// Size in bytes of what is read without an allocation; memory.stat, the largest file, has 2 KB.
const USUAL: usize = 4096;
/// Maximum size in bytes of a file that is read.
const MAX_FILE: usize = 16 << 10;

/// An open cgroup file, with its path for errors.
#[derive(Debug)]
pub(in crate::stats) struct OpenFile {
    path: PathBuf,
    file: File,
}

/// A file that could not be opened or read.
#[derive(Debug)]
pub(in crate::stats) struct Failed {
    pub(in crate::stats) file: PathBuf,
    pub(in crate::stats) source: io::Error,
}

impl OpenFile {
    /// Opens a file.
    pub(super) fn open(path: PathBuf) -> Result<Self, Failed> {
        match File::open(&path) {
            Ok(file) => Ok(Self { path, file }),
            Err(source) => Err(Failed { file: path, source }),
        }
    }

    /// What `parse` finds in the text of the file, which is read from its beginning, even if it was read before. An error
    /// if that is nothing.
    pub(super) fn read<T>(&self, parse: impl FnOnce(&str) -> Option<T>) -> Result<T, Failed> {
        self.with_text(|text| {
            parse(text).ok_or_else(|| {
                io::Error::new(
                    io::ErrorKind::InvalidData,
                    format!("{text:.40} is not what the kernel writes"),
                )
            })
        })
        .map_err(|source| Failed { file: self.path.clone(), source })
    }

    /// The number in a file. The word `max` is read as the largest one.
    pub(super) fn number(&self) -> Result<u64, Failed> {
        self.read(parse::number_or_max)
    }

    /// A cgroup file is one record of a seq_file, so a read that returns less than the buffer's size returned all of it. A
    /// second read, to find the end, would make the kernel format the whole text again.
    fn with_text<T>(&self, use_text: impl FnOnce(&str) -> io::Result<T>) -> io::Result<T> {
        let mut usual = [0; USUAL];
        let length = self.file.read_at(&mut usual, 0)?;
        if let Some(whole) = usual.get(..length).filter(|_| length < USUAL) {
            return use_text(utf8(whole)?);
        }
        let mut most = vec![0; MAX_FILE];
        let length = self.file.read_at(&mut most, 0)?;
        match most.get(..length).filter(|_| length < MAX_FILE) {
            Some(whole) => use_text(utf8(whole)?),
            None => Err(io::Error::new(io::ErrorKind::InvalidData, "larger than 16 KiB")),
        }
    }
}

fn utf8(bytes: &[u8]) -> io::Result<&str> {
    std::str::from_utf8(bytes).map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "not UTF-8"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_read_whole_or_not_at_all() {
        let path = tempfile::NamedTempFile::new().unwrap().into_temp_path();
        let file = OpenFile::open(path.to_path_buf()).unwrap();
        for (length, is_read) in
            [(0, true), (USUAL - 1, true), (USUAL, true), (MAX_FILE - 1, true), (MAX_FILE, false)]
        {
            std::fs::write(&path, "1".repeat(length)).unwrap();
            assert_eq!(file.read(|text| Some(text.len())).ok(), is_read.then_some(length), "{length}");
        }
        std::fs::write(&path, "max\n").unwrap();
        assert_eq!(file.number().unwrap(), u64::MAX);
        std::fs::write(&path, "no number").unwrap();
        let failed = file.number().unwrap_err();
        assert_eq!((failed.file.as_path(), failed.source.kind()), (&*path, io::ErrorKind::InvalidData));
    }
}
