//! What is wrong with a configuration.

use std::fmt;
use std::path::PathBuf;

/// One thing that is wrong with a configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// The file; `None` for the command line and for defaults.
    pub file: Option<PathBuf>,
    /// Line in the file, from 1; `None` for the command line and for defaults.
    pub line: Option<usize>,
    /// Full name of the key, for example `log.level`; empty for an error of TOML's syntax.
    pub key: String,
    /// What is wrong, with the value and what is expected.
    pub problem: String,
}

impl Fault {
    /// A fault without a place: of the command line, or of defaults.
    pub(super) fn unplaced(key: &str, problem: &str) -> Self {
        Self { file: None, line: None, key: key.to_owned(), problem: problem.to_owned() }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.file, self.line) {
            (Some(file), Some(line)) => write!(f, "{}, line {line}: ", file.display())?,
            (Some(file), None) => write!(f, "{}: ", file.display())?,
            (None, Some(line)) => write!(f, "line {line}: ")?,
            (None, None) => {}
        }
        if !self.key.is_empty() {
            write!(f, "{}: ", self.key)?;
        }
        f.write_str(&self.problem)
    }
}

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file, or the folder of drop-in files, cannot be read.
    #[error("cannot read {}", .path.display())]
    Read {
        /// The file or folder.
        path: PathBuf,
        /// The error of the system call.
        source: std::io::Error,
    },
    /// The folder of drop-in files contains too many of them.
    #[error("{} contains more than {limit} .toml files", .folder.display())]
    TooMany {
        /// The folder.
        folder: PathBuf,
        /// The limit.
        limit: usize,
    },
    /// The files were read, and are invalid.
    #[error("the configuration has {}:\n{}", count(.0.len()), list(.0))]
    Invalid(Vec<Fault>),
}

fn count(faults: usize) -> String {
    if faults == 1 { "a fault".to_owned() } else { format!("{faults} faults") }
}

fn list(faults: &[Fault]) -> String {
    faults.iter().map(|fault| format!("  {fault}")).collect::<Vec<_>>().join("\n")
}
