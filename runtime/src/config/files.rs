//! The main file and its drop-in files.
//!
//! Drop-in files lie in the folder `conf.d` beside the main file, wherever that is: `/etc/copepod/conf.d/*.toml`.
//! They are read in the order of their names' bytes; hidden ones and those with another ending are not read.

use super::error::{Error, Fault};
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

/// Largest file, bytes: a wrong path (a disk, a log) must not fill memory.
pub(super) const MAX_SIZE: u64 = 1024 * 1024;
/// Most drop-in files.
const MAX_FILES: usize = 256;

/// Where a text comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Origin {
    /// A file.
    File(PathBuf),
    /// A text that is no file.
    Text,
    /// Options of the command line, written as TOML.
    CommandLine,
}

/// A text that was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Source {
    pub(super) origin: Origin,
    pub(super) text: String,
}

impl Source {
    /// A fault at `offset` in this text.
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

/// Reads the file at `main`, which may be absent unless `required`, and its drop-in files. Blocking.
pub(super) fn read(main: &Path, required: bool) -> Result<Vec<Source>, Error> {
    let mut sources = Vec::new();
    match capped(main) {
        Ok(text) => sources.push(Source { origin: Origin::File(main.to_owned()), text }),
        Err(error) if !required && error.kind() == io::ErrorKind::NotFound => {}
        Err(source) => return Err(Error::Read { path: main.to_owned(), source }),
    }
    for path in drop_ins(&main.with_file_name("conf.d"))? {
        let text = capped(&path).map_err(|source| Error::Read { path: path.clone(), source })?;
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
            return Err(Error::TooMany { folder: folder.to_owned(), most: MAX_FILES });
        }
    }
    paths.sort();
    Ok(paths)
}

fn capped(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    let file = sys::beneath::regular(path)?;
    let read = file.take(MAX_SIZE + 1).read_to_string(&mut text)?;
    if u64::try_from(read).unwrap_or(u64::MAX) > MAX_SIZE {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("larger than {MAX_SIZE} bytes")));
    }
    Ok(text)
}
