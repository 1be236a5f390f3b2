//! The operator's configuration: `/etc/copepod/config.toml` and the drop-in files of `/etc/copepod/conf.d`.
//!
//! ```text
//! keys (defaults) ─┐
//! files ───────────┼─ read: each text through serde ──► merged ──► Config ── complete (checks across keys)
//! command line ────┘        └─ unknown keys, wrong types, wrong values ─┬────────────┘
//!                                                                       ▼
//!                                                        all faults at once, with file and line
//! ```
//!
//! Reading has no side effects: it creates no folder and looks for no binary. `keys` is the only list of keys; the
//! defaults, the output of `copepod config default` and docs/configuration.md are generated from it.

mod binaries;
mod by_key;
mod error;
mod files;
mod keys;
mod read;
mod reload;
#[cfg(test)]
mod tests;
mod values;

pub(crate) use binaries::MissingBinary;
pub(crate) use error::{Error, Fault};
pub(crate) use reload::Arguments;
pub(crate) use reload::Reloaded;

use files::{Origin, Source};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;
use values::Word;

/// The main file without `--config`.
pub(crate) const DEFAULT_PATH: &str = "/etc/copepod/config.toml";
/// `sun_path` of a unix socket holds 108 bytes with its terminating NUL (unix(7)).
const MAX_SOCKET: usize = 107;

/// A checked configuration. All paths are absolute.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Config {
    /// Durable state and images.
    #[serde(deserialize_with = "values::path")]
    pub root: PathBuf,
    /// Volatile state: lock, shim sockets, exit files.
    #[serde(deserialize_with = "values::path")]
    pub state: PathBuf,
    /// The CRI socket.
    #[serde(deserialize_with = "values::path_or_empty")]
    pub socket: PathBuf,
    /// Where volumes are looked up.
    #[serde(deserialize_with = "values::word")]
    pub mount_namespace: MountNamespace,
    /// Who makes the cgroups of pods.
    #[serde(deserialize_with = "values::word")]
    pub cgroup_driver: CgroupDriver,
    /// Whether containers get AppArmor profiles.
    #[serde(deserialize_with = "values::word")]
    pub apparmor: Switch,
    /// Whether pods get SELinux labels.
    #[serde(deserialize_with = "values::word_or_flag")]
    pub enable_selinux: Enabled,
    /// What is logged and how.
    pub log: Log,
    /// The two programs that the daemon starts.
    pub binaries: Binaries,
    /// CNI.
    pub network: Network,
    /// Images and registries.
    pub image: Image,
    /// Exec, attach and port-forward.
    pub streaming: Streaming,
    /// Runtime handlers by name. No entry is accepted yet.
    #[serde(default)]
    pub handlers: BTreeMap<String, Handler>,
    /// Registries by host. No entry is accepted yet.
    #[serde(default)]
    pub registry: BTreeMap<String, Registry>,
}

/// Mount namespace in which host paths of volumes are resolved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum MountNamespace {
    /// The daemon's own: for a daemon that is in kubelet's mount namespace.
    Own,
    /// That of process 1: for a daemon that its service manager has started in a namespace of its own.
    Pid1,
}

impl Word for MountNamespace {
    const WORDS: &'static [(&'static str, Self)] = &[("self", Self::Own), ("pid1", Self::Pid1)];
}

impl MountNamespace {
    /// The namespace's file below /proc.
    pub(crate) fn path(self) -> &'static str {
        match self {
            Self::Own => "/proc/self/ns/mnt",
            Self::Pid1 => "/proc/1/ns/mnt",
        }
    }
}

/// Who makes the cgroups of pods.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CgroupDriver {
    /// systemd if it is process 1 of a host with cgroup v2 (the start fails if it cannot be reached then), or else copepod.
    Auto,
    /// systemd makes a scope for each pod.
    Systemd,
    /// copepod makes folders.
    Cgroupfs,
}

impl Word for CgroupDriver {
    const WORDS: &'static [(&'static str, Self)] =
        &[("auto", Self::Auto), ("systemd", Self::Systemd), ("cgroupfs", Self::Cgroupfs)];
}

/// Whether the daemon uses something that the node may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Switch {
    /// Where the node has it.
    Auto,
    /// Nowhere.
    Off,
}

impl Word for Switch {
    const WORDS: &'static [(&'static str, Self)] = &[("auto", Self::Auto), ("off", Self::Off)];
}

/// Whether something is used that the node may have, in the words of other runtimes' configurations.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Enabled {
    /// Where the node has it.
    Auto,
    /// The node should have it.
    True,
    /// Nowhere.
    False,
}

impl Word for Enabled {
    const WORDS: &'static [(&'static str, Self)] =
        &[("auto", Self::Auto), ("true", Self::True), ("false", Self::False)];
}

/// Displays a value by its word in the configuration.
macro_rules! displayed_by_word {
    ($($name:ty),*) => {$(
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(values::word_of(*self))
            }
        }
    )*};
}

displayed_by_word!(CgroupDriver, Enabled, MountNamespace, Switch, LogLevel, LogFormat);

/// What is logged and how.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Log {
    /// Least severe level that is written.
    #[serde(deserialize_with = "values::word")]
    pub level: LogLevel,
    /// Shape of a line.
    #[serde(deserialize_with = "values::word")]
    pub format: LogFormat,
}

/// Levels, most severe first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum LogLevel {
    /// Something failed, and an operator has to act.
    Error,
    /// Something is wrong, and the daemon has worked around it.
    Warn,
    /// Starts and ends of pods, containers and pulls.
    Info,
    /// Every call.
    Debug,
    /// Everything.
    Trace,
}

impl Word for LogLevel {
    const WORDS: &'static [(&'static str, Self)] = &[
        ("error", Self::Error),
        ("warn", Self::Warn),
        ("info", Self::Info),
        ("debug", Self::Debug),
        ("trace", Self::Trace),
    ];
}

/// Shape of a log line on standard error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

impl Word for LogFormat {
    const WORDS: &'static [(&'static str, Self)] = &[("text", Self::Text), ("json", Self::Json)];
}

/// The programs that the daemon starts; `None` is found by [`Binaries::shim`] and [`Binaries::pause`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Binaries {
    /// `copepod-shim`.
    #[serde(deserialize_with = "values::optional_path")]
    pub shim: Option<PathBuf>,
    /// `pause`.
    #[serde(deserialize_with = "values::optional_path")]
    pub pause: Option<PathBuf>,
}

/// CNI.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Network {
    /// Folder watched for configurations; the first by name is used.
    #[serde(deserialize_with = "values::path")]
    pub conf_dir: PathBuf,
    /// Folders searched for plugins, in order.
    #[serde(deserialize_with = "values::paths")]
    pub bin_dirs: Vec<PathBuf>,
    /// Time limit for ADD of the whole chain, and for DEL or STATUS of one plugin.
    #[serde(rename = "timeout_seconds", deserialize_with = "values::seconds::<_, 1, 3600>")]
    pub timeout: Duration,
    /// Pods whose plugins may run at once.
    #[serde(deserialize_with = "values::number::<_, 1, 1024>")]
    pub max_parallel: usize,
}

/// Images and registries.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Image {
    /// Folder of `<host>/hosts.toml` files.
    #[serde(deserialize_with = "values::path")]
    pub certs_dir: PathBuf,
    /// The node's own credentials for registries; `None` reads no file.
    #[serde(deserialize_with = "values::optional_path")]
    pub credentials_file: Option<PathBuf>,
    /// Layers of one pull that are downloaded at once.
    // Each uses one of the 64 threads that unpack layers, also while it waits for its registry.
    #[serde(deserialize_with = "values::number::<_, 1, 16>")]
    pub max_parallel_downloads: usize,
    /// Names and patterns of images that kubelet must not remove to free space.
    #[serde(deserialize_with = "values::image_patterns")]
    pub pinned: Vec<String>,
    /// A layer that receives almost nothing in this time fails.
    #[serde(rename = "progress_timeout_seconds", deserialize_with = "values::seconds::<_, 1, 3600>")]
    pub progress_timeout: Duration,
}

/// Exec, attach and port-forward.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Streaming {
    /// Where the streaming server listens; it is part of the URLs.
    #[serde(deserialize_with = "values::address")]
    pub address: SocketAddr,
    /// A session without traffic is ended after this time; `None` is never.
    #[serde(rename = "idle_timeout_seconds", deserialize_with = "values::seconds_or_never::<_, 65535>")]
    pub idle_timeout: Option<Duration>,
    /// Time for a client to create the streams of its session.
    #[serde(rename = "creation_timeout_seconds", deserialize_with = "values::seconds::<_, 1, 3600>")]
    pub creation_timeout: Duration,
    /// The certificate's file; `None` is plain HTTP.
    #[serde(deserialize_with = "values::optional_path")]
    pub tls_certificate: Option<PathBuf>,
    /// The private key's file; given if the certificate's is.
    #[serde(deserialize_with = "values::optional_path")]
    pub tls_key: Option<PathBuf>,
}

/// A runtime handler beside the built-in one. There are none yet: an entry is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Handler {}

impl<'de> Deserialize<'de> for Handler {
    fn deserialize<D: serde::Deserializer<'de>>(_: D) -> Result<Self, D::Error> {
        let problem = "runtime handlers are not supported yet: all pods run under the built-in one";
        Err(serde::de::Error::custom(problem))
    }
}

/// Settings of a registry. There are none yet: an entry is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Registry {}

impl<'de> Deserialize<'de> for Registry {
    fn deserialize<D: serde::Deserializer<'de>>(_: D) -> Result<Self, D::Error> {
        let problem = "registries are not configured here yet: write <host>/hosts.toml in image.certs_dir";
        Err(serde::de::Error::custom(problem))
    }
}

/// Values of the command line; they win over the files.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Overrides {
    /// `--root`.
    pub root: Option<String>,
    /// `--state`.
    pub state: Option<String>,
    /// `--socket`.
    pub socket: Option<String>,
}

impl Overrides {
    /// Each given key, with its value.
    fn given(&self) -> impl Iterator<Item = (&'static str, &str)> {
        let Self { root, state, socket } = self;
        let all = [("root", root), ("state", state), ("socket", socket)];
        all.into_iter().filter_map(|(key, value)| Some((key, value.as_deref()?)))
    }
}

impl Config {
    /// Parses and checks `text`; `overrides` win over it.
    ///
    /// # Errors
    /// Everything that is wrong with it.
    pub(crate) fn parse(text: &str, overrides: &Overrides) -> Result<Self, Vec<Fault>> {
        read::read(vec![Source { origin: Origin::Text, text: text.to_owned() }], overrides)
    }

    /// Reads the file at `path` and its drop-in files. With `None`, the path is [`DEFAULT_PATH`] and the file may be
    /// missing. Blocking.
    ///
    /// # Errors
    /// A file that cannot be read, or everything that is wrong with all of them.
    pub(crate) fn load(path: Option<&Path>, overrides: &Overrides) -> Result<Self, Error> {
        let sources = files::read(path.unwrap_or(Path::new(DEFAULT_PATH)), path.is_some())?;
        read::read(sources, overrides).map_err(Error::Invalid)
    }

    /// A commented file with every key and its default; parsing it gives [`Config::default`].
    pub(crate) fn default_text() -> String {
        keys::default_text()
    }

    /// Derives values that depend on other keys. Returns contradictions between two keys; each is reported at the first
    /// of the two that is set.
    fn complete(&mut self) -> Vec<([&'static str; 2], String)> {
        let mut problems = Vec::new();
        if self.root.starts_with(&self.state) || self.state.starts_with(&self.root) {
            let (root, state) = (self.root.display(), self.state.display());
            let problem = format!("root ({root}) and state ({state}) must not contain each other");
            problems.push((["state", "root"], problem));
        }
        if self.socket.as_os_str().is_empty() {
            self.socket = self.state.join("copepod.sock");
        }
        if self.socket.as_os_str().len() > MAX_SOCKET {
            let problem =
                format!("{:?} is longer than the {MAX_SOCKET} bytes of a unix socket's address", self.socket);
            problems.push((["socket", "state"], problem));
        }
        if self.streaming.tls_certificate.is_some() != self.streaming.tls_key.is_some() {
            let problem = "streaming.tls_certificate and streaming.tls_key must be given together".to_owned();
            problems.push((["streaming.tls_certificate", "streaming.tls_key"], problem));
        }
        problems
    }
}

impl Default for Config {
    #[expect(clippy::expect_used, reason = "defaults are constants; a test parses them")]
    fn default() -> Self {
        Self::parse("", &Overrides::default()).expect("defaults are valid")
    }
}
