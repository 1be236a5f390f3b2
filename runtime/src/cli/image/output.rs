//! The archive that is exported: a file, which is there only when it is complete, or standard output.

use super::Error;
use std::fs::{self, File};
use std::io::{self, IsTerminal as _, Write as _};
use std::path::{Path, PathBuf};

/// An archive that is being written.
#[derive(Debug)]
pub(super) enum Output {
    Stdout,
    File {
        file: File,
        path: PathBuf,
        /// Its name until it is complete; `None` once it is, or for what is no regular file.
        part: Option<PathBuf>,
    },
}

impl Output {
    /// Begins an archive; `-` is standard output, which must not be a terminal.
    pub(super) fn create(path: &Path) -> Result<Self, Error> {
        if path == Path::new("-") {
            return if io::stdout().is_terminal() { Err(Error::Terminal) } else { Ok(Self::Stdout) };
        }
        let failed = |source| Error::File { action: "write", path: path.to_owned(), source };
        // A pipe or a device cannot be replaced.
        if fs::metadata(path).is_ok_and(|facts| !facts.is_file()) {
            let file = File::options().write(true).open(path).map_err(failed)?;
            return Ok(Self::File { file, path: path.to_owned(), part: None });
        }
        let mut part = path.as_os_str().to_owned();
        part.push(format!(".part-{}", std::process::id()));
        let part = PathBuf::from(part);
        let file = File::create_new(&part).map_err(failed)?;
        Ok(Self::File { file, path: path.to_owned(), part: Some(part) })
    }

    /// Writes the next bytes.
    pub(super) fn write(&mut self, bytes: &[u8]) -> Result<(), Error> {
        match self {
            Self::Stdout => io::stdout().write_all(bytes).map_err(Error::Output),
            Self::File { file, path, .. } => file.write_all(bytes).map_err(|source| Error::File {
                action: "write",
                path: path.clone(),
                source,
            }),
        }
    }

    /// Gives a file its name. Returns whether it is one.
    pub(super) fn complete(mut self) -> Result<bool, Error> {
        match &mut self {
            Self::Stdout => io::stdout().flush().map_err(Error::Output).map(|()| false),
            Self::File { path, part, .. } => {
                if let Some(from) = part {
                    let failed = |source| Error::File { action: "write", path: path.clone(), source };
                    fs::rename(&*from, &*path).map_err(failed)?;
                    *part = None;
                }
                Ok(true)
            }
        }
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        if let Self::File { part: Some(part), .. } = self
            && let Err(error) = fs::remove_file(&*part)
        {
            eprintln!("copepod: cannot remove {}: {error}", part.display());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_there_only_when_it_is_complete() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.tar");
        let mut given_up = Output::create(&path).unwrap();
        given_up.write(b"half").unwrap();
        drop(given_up);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
        let mut output = Output::create(&path).unwrap();
        output.write(b"wh").unwrap();
        output.write(b"ole").unwrap();
        assert!(output.complete().unwrap());
        assert_eq!(fs::read(&path).unwrap(), b"whole");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }
}
