//! The operator's configuration: `/etc/copepod/config.toml`.
//!
//! ```text
//! text ── raw::read ──► Raw (every key, as written) ── check ──► Config (values that cannot be wrong)
//!              └─ unknown keys, wrong types ─┬─ wrong values ─┘
//!                                            ▼
//!                                   all faults, in one answer
//! ```
//!
//! Reading has no side effects: no folder is made, no binary looked for. `raw` is the one list of keys;
//! the text of `copepod config default` is made from it, so a key cannot be without documentation.

mod check;
mod nearest;
mod raw;
#[cfg(test)]
mod tests;

use std::fmt;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Where the configuration is read from when nobody says otherwise.
pub const DEFAULT_PATH: &str = "/etc/copepod/config.toml";
/// Largest configuration file, bytes: a wrong path (a disk, a log) must not fill memory.
const MAX_SIZE: u64 = 1024 * 1024;

/// A checked configuration. All paths are absolute.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Durable state and images.
    pub root: PathBuf,
    /// Volatile state: lock, shim sockets, exit records.
    pub state: PathBuf,
    /// The CRI socket.
    pub socket: PathBuf,
    /// Where volumes are looked up.
    pub mount_namespace: MountNamespace,
    /// What is logged and how.
    pub log: Log,
    /// The two programs the daemon starts.
    pub binaries: Binaries,
    /// CNI.
    pub network: Network,
    /// Images and registries.
    pub image: Image,
}

/// Mount namespace in which host paths of volumes are resolved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MountNamespace {
    /// The daemon's own: right when the daemon runs beside kubelet in the same namespace.
    Own,
    /// That of process 1: for a daemon that a service manager started in a namespace of its own.
    Pid1,
}

impl MountNamespace {
    /// The namespace's file below /proc.
    pub fn path(self) -> &'static str {
        match self {
            Self::Own => "/proc/self/ns/mnt",
            Self::Pid1 => "/proc/1/ns/mnt",
        }
    }
}

/// What is logged and how.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Log {
    /// Least severe level that is written.
    pub level: LogLevel,
    /// Shape of a line.
    pub format: LogFormat,
}

/// Levels, most severe first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum LogLevel {
    /// Something failed that the daemon cannot mend.
    Error,
    /// Something is wrong and was worked round.
    Warn,
    /// Lives of pods, containers and images.
    Info,
    /// Every call.
    Debug,
    /// Everything.
    Trace,
}

/// Shape of a log line on standard error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// The programs the daemon starts; `None` is found by [`Binaries::shim`] and [`Binaries::pause`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Binaries {
    /// `copepod-shim`.
    pub shim: Option<PathBuf>,
    /// `pause`.
    pub pause: Option<PathBuf>,
}

/// CNI.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Network {
    /// Folder watched for configurations; the first by name is used.
    pub conf_dir: PathBuf,
    /// Folders searched for plugins, in order.
    pub bin_dirs: Vec<PathBuf>,
    /// A plugin that runs longer is killed.
    pub timeout: Duration,
    /// Pods whose plugins may run at once.
    pub max_parallel: usize,
}

/// Images and registries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// Folder of `<host>/hosts.toml` files.
    pub certs_dir: PathBuf,
    /// Layers of one pull that are downloaded at once.
    pub max_parallel_downloads: usize,
}

/// One thing that is wrong with a configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// Line in the file, from 1; `None` for a value from the command line or a default.
    pub line: Option<usize>,
    /// Full name of the key, for example `log.level`; empty when the text is no TOML.
    pub key: String,
    /// What is wrong, with the value and what would be right.
    pub problem: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(line) = self.line {
            write!(f, "line {line}: ")?;
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
    /// The file cannot be read.
    #[error("cannot read {}", .path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// The kernel's word.
        source: std::io::Error,
    },
    /// It is read and wrong.
    #[error("{source_name}: {} fault(s)\n{}", .faults.len(), list(.faults))]
    Faulty {
        /// File name, or `command line`.
        source_name: String,
        /// All that is wrong.
        faults: Vec<Fault>,
    },
}

fn list(faults: &[Fault]) -> String {
    faults.iter().map(|fault| format!("  {fault}")).collect::<Vec<_>>().join("\n")
}

/// Values of the command line; they win over the file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Overrides {
    /// `--root`.
    pub root: Option<String>,
    /// `--state`.
    pub state: Option<String>,
    /// `--socket`.
    pub socket: Option<String>,
}

impl Config {
    /// Parses and checks `text`, then lets `overrides` win. Answers with every fault there is.
    pub fn parse(text: &str, overrides: &Overrides) -> Result<Self, Vec<Fault>> {
        let mut reading = raw::read(text)?;
        reading.override_with(overrides);
        check::check(reading)
    }

    /// Reads the file at `path`; with `None` the default path, where a missing file means defaults.
    /// Blocking.
    pub fn load(path: Option<&Path>, overrides: &Overrides) -> Result<Self, Error> {
        let file = path.unwrap_or(Path::new(DEFAULT_PATH));
        let text = match read_capped(file) {
            Ok(text) => text,
            Err(error) if path.is_none() && error.kind() == std::io::ErrorKind::NotFound => String::new(),
            Err(source) => return Err(Error::Read { path: file.to_owned(), source }),
        };
        Self::parse(&text, overrides)
            .map_err(|faults| Error::Faulty { source_name: file.display().to_string(), faults })
    }

    /// The commented file of defaults; parsing it gives [`Config::default`].
    pub fn default_text() -> String {
        raw::default_text()
    }
}

impl Default for Config {
    #[expect(clippy::expect_used, reason = "defaults are constants; a test parses them")]
    fn default() -> Self {
        Self::parse("", &Overrides::default()).expect("defaults are valid")
    }
}

fn read_capped(path: &Path) -> std::io::Result<String> {
    use std::io::{Error, ErrorKind, Read as _};
    let mut text = String::new();
    let file = sys::beneath::regular(path)?;
    let read = file.take(MAX_SIZE + 1).read_to_string(&mut text)?;
    if u64::try_from(read).unwrap_or(u64::MAX) > MAX_SIZE {
        return Err(Error::new(ErrorKind::FileTooLarge, format!("larger than {MAX_SIZE} bytes")));
    }
    Ok(text)
}

/// Why one of the daemon's companions is not there.
#[derive(Debug, thiserror::Error)]
#[error("no executable {name} at {}", .looked.iter().map(|p| p.display().to_string()).collect::<Vec<_>>().join(", "))]
pub struct MissingBinary {
    name: &'static str,
    looked: Vec<PathBuf>,
}

impl Binaries {
    /// Folder searched after the daemon's own.
    const LIBEXEC: &str = "/usr/libexec/copepod";

    /// Path of the shim: as configured, else beside `own` (the daemon's binary), else in libexec. Blocking.
    pub fn shim(&self, own: &Path) -> Result<PathBuf, MissingBinary> {
        Self::find("copepod-shim", self.shim.as_deref(), own)
    }

    /// Path of pause, found the same way. Blocking.
    pub fn pause(&self, own: &Path) -> Result<PathBuf, MissingBinary> {
        Self::find("pause", self.pause.as_deref(), own)
    }

    fn find(name: &'static str, configured: Option<&Path>, own: &Path) -> Result<PathBuf, MissingBinary> {
        let looked: Vec<PathBuf> = match configured {
            Some(path) => vec![path.to_owned()],
            None => {
                own.parent().into_iter().chain([Path::new(Self::LIBEXEC)]).map(|dir| dir.join(name)).collect()
            }
        };
        let executable = |path: &&PathBuf| {
            std::fs::metadata(path)
                .is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
        };
        match looked.iter().find(executable) {
            Some(found) => Ok(found.clone()),
            None => Err(MissingBinary { name, looked }),
        }
    }
}
