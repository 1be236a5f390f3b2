//! The main file and its drop-in files.
//!
//! Drop-in files are the `*.toml` files of the folder `conf.d` beside the main file, wherever that is. They are read in
//! the byte order of their names. Hidden files and other endings are skipped.

use super::error::{Error, Fault};
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

/// Maximum size of all files together in bytes: a wrong path (a disk, a log) must not fill the memory.
pub(super) const MAX_SIZE: u64 = 1024 * 1024;
/// Maximum number of drop-in files.
const MAX_FILES: usize = 256;

/// Where a text comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Origin {
    /// A file.
    File(PathBuf),
    /// A text without a file.
    Text,
    /// Options of the command line, which have no text.
    CommandLine,
}

/// A text and its origin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Source {
    pub(super) origin: Origin,
    pub(super) text: String,
}

impl Source {
    /// A fault at the byte `offset` of this text.
    pub(super) fn fault(&self, offset: Option<usize>, key: String, problem: String) -> Fault {
        let line =
            |offset| 1 + self.text.as_bytes().iter().take(offset).filter(|byte| **byte == b'\n').count();
        let (file, line) = match &self.origin {
            Origin::File(path) => (Some(path.clone()), offset.map(line)),
            Origin::Text => (None, offset.map(line)),
            Origin::CommandLine => (None, None),
        };
        Fault { file, line, key, problem }
    }
}

/// Reads the file at `main`, which may be missing unless `required`, and its drop-in files. Blocking.
///
/// # Errors
/// The first file that cannot be read; too many files; more than [`MAX_SIZE`] bytes.
pub(super) fn read(main: &Path, required: bool) -> Result<Vec<Source>, Error> {
    let (mut sources, mut left) = (Vec::new(), MAX_SIZE);
    match capped(main, &mut left) {
        Ok(text) => sources.push(Source { origin: Origin::File(main.to_owned()), text }),
        Err(error) if !required && error.kind() == io::ErrorKind::NotFound => {}
        Err(source) => return Err(Error::Read { path: main.to_owned(), source }),
    }
    for path in drop_ins(&main.with_file_name("conf.d"))? {
        let text = capped(&path, &mut left).map_err(|source| Error::Read { path: path.clone(), source })?;
        sources.push(Source { origin: Origin::File(path), text });
    }
    Ok(sources)
}

fn drop_ins(folder: &Path) -> Result<Vec<PathBuf>, Error> {
    let failed = |source| Error::Read { path: folder.to_owned(), source };
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(failed(error)),
    };
    let mut paths = Vec::new();
    for entry in entries {
        let path = entry.map_err(failed)?.path();
        let name = path.file_name().map(|name| name.as_encoded_bytes()).unwrap_or_default();
        if name.ends_with(b".toml") && !name.starts_with(b".") {
            paths.push(path);
        }
        if paths.len() > MAX_FILES {
            return Err(Error::TooMany { folder: folder.to_owned(), limit: MAX_FILES });
        }
    }
    paths.sort();
    Ok(paths)
}

/// Reads a file of at most `left` bytes, and subtracts its size.
fn capped(path: &Path, left: &mut u64) -> io::Result<String> {
    let mut text = String::new();
    let file = sys::beneath::regular(path)?;
    let read = file.take(*left + 1).read_to_string(&mut text)?;
    *left = left.checked_sub(u64::try_from(read).unwrap_or(u64::MAX)).ok_or_else(|| {
        let problem = format!("the configuration is larger than {MAX_SIZE} bytes");
        io::Error::new(io::ErrorKind::FileTooLarge, problem)
    })?;
    Ok(text)
}
