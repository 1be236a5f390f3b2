//! What is wrong with a configuration.

use std::fmt;
use std::path::PathBuf;

/// One thing that is wrong with a configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// File that says it; `None` for a value from the command line or a default.
    pub file: Option<PathBuf>,
    /// Line in the file, from 1; `None` for a value from the command line or a default.
    pub line: Option<usize>,
    /// Full name of the key, for example `log.level`; empty when the text is no TOML.
    pub key: String,
    /// What is wrong, with the value and what would be right.
    pub problem: String,
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
        /// Which.
        path: PathBuf,
        /// The kernel's word.
        source: std::io::Error,
    },
    /// More drop-in files than anybody writes: a wrong folder.
    #[error("{} holds more than {most} .toml files", .folder.display())]
    TooMany {
        /// The folder of drop-in files.
        folder: PathBuf,
        /// The limit.
        most: usize,
    },
    /// It is read and wrong.
    #[error("the configuration has {}:\n{}", count(.0.len()), list(.0))]
    Faulty(Vec<Fault>),
}

fn count(faults: usize) -> String {
    if faults == 1 { "a fault".to_owned() } else { format!("{faults} faults") }
}

fn list(faults: &[Fault]) -> String {
    faults.iter().map(|fault| format!("  {fault}")).collect::<Vec<_>>().join("\n")
}
