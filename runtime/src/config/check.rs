//! Raw values into values that cannot be wrong.

use super::raw::{Raw, Reading};
use super::{Binaries, Config, Fault, Image, Log, LogFormat, LogLevel, MountNamespace, Network};
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

/// `sun_path` of a unix socket holds 108 bytes with its terminating NUL (unix(7)).
const MAX_SOCKET: usize = 107;

/// Judges every key and answers with all faults, those of reading included.
pub(super) fn check(reading: Reading) -> Result<Config, Vec<Fault>> {
    let raw = reading.raw.clone();
    let mut judge = Judge { reading };
    let Raw {
        root,
        state,
        socket,
        mount_namespace,
        log_level,
        log_format,
        shim,
        pause,
        cni_conf_dir,
        cni_bin_dirs,
        cni_timeout_seconds,
        cni_max_parallel,
        certs_dir,
        max_parallel_downloads,
    } = raw;

    let root = judge.path("root", &root);
    let state = judge.path("state", &state);
    if root.starts_with(&state) || state.starts_with(&root) {
        judge.fault("state", format!("must lie outside root ({}), and root outside state", root.display()));
    }
    let socket = if socket.is_empty() { state.join("copepod.sock") } else { judge.path("socket", &socket) };
    if socket.as_os_str().len() > MAX_SOCKET {
        judge.fault(
            "socket",
            format!("{:?} is longer than the {MAX_SOCKET} bytes of a unix socket's address", socket),
        );
    }
    let mount_namespace = judge.choice(
        "mount_namespace",
        &mount_namespace,
        &[("self", MountNamespace::Own), ("pid1", MountNamespace::Pid1)],
    );
    let level = judge.choice(
        "log.level",
        &log_level,
        &[
            ("error", LogLevel::Error),
            ("warn", LogLevel::Warn),
            ("info", LogLevel::Info),
            ("debug", LogLevel::Debug),
            ("trace", LogLevel::Trace),
        ],
    );
    let format =
        judge.choice("log.format", &log_format, &[("text", LogFormat::Text), ("json", LogFormat::Json)]);
    let binaries = Binaries {
        shim: judge.optional_path("binaries.shim", &shim),
        pause: judge.optional_path("binaries.pause", &pause),
    };
    if cni_bin_dirs.is_empty() {
        judge.fault("network.bin_dirs", "must name at least one folder".to_owned());
    }
    let network = Network {
        conf_dir: judge.path("network.conf_dir", &cni_conf_dir),
        bin_dirs: cni_bin_dirs.iter().map(|dir| judge.path("network.bin_dirs", dir)).collect(),
        timeout: Duration::from_secs(
            judge.number("network.timeout_seconds", cni_timeout_seconds, 1, 3600).into(),
        ),
        max_parallel: as_usize(judge.number("network.max_parallel", cni_max_parallel, 1, 1024)),
    };
    let image = Image {
        certs_dir: judge.path("image.certs_dir", &certs_dir),
        max_parallel_downloads: as_usize(judge.number(
            "image.max_parallel_downloads",
            max_parallel_downloads,
            1,
            // Each takes a blocking thread, of which the daemon has 64, while it waits for its registry.
            16,
        )),
    };

    let mut faults = judge.reading.faults;
    if faults.is_empty() {
        Ok(Config {
            root,
            state,
            socket,
            mount_namespace,
            log: Log { level, format },
            binaries,
            network,
            image,
        })
    } else {
        faults.sort_by_key(|fault| fault.line);
        Err(faults)
    }
}

/// `usize` has at least 32 bits on every Linux.
fn as_usize(number: u32) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}

struct Judge {
    reading: Reading,
}

impl Judge {
    fn fault(&mut self, key: &str, problem: String) {
        let line = self.reading.line(key);
        self.reading.faults.push(Fault { line, key: key.to_owned(), problem });
    }

    /// An absolute path without `..`. The value of a faulty one is never used.
    fn path(&mut self, key: &str, given: &str) -> PathBuf {
        let path = Path::new(given);
        if !path.is_absolute() || given.contains('\0') {
            self.fault(key, format!("{given:?} must be an absolute path"));
        } else if path.components().any(|part| part == Component::ParentDir) {
            self.fault(key, format!("{given:?} must not contain \"..\""));
        } else if path.parent().is_none() {
            self.fault(key, format!("{given:?} must not be the root of the file system"));
        }
        path.components().collect()
    }

    fn optional_path(&mut self, key: &str, given: &str) -> Option<PathBuf> {
        (!given.is_empty()).then(|| self.path(key, given))
    }

    fn choice<T: Copy>(&mut self, key: &str, given: &str, choices: &[(&str, T)]) -> T {
        if let Some((_, value)) = choices.iter().find(|(name, _)| *name == given) {
            return *value;
        }
        let names: Vec<&str> = choices.iter().map(|(name, _)| *name).collect();
        self.fault(key, format!("{given:?} must be one of {}", names.join(", ")));
        choices[0].1
    }

    fn number(&mut self, key: &str, given: i64, least: u32, most: u32) -> u32 {
        match u32::try_from(given) {
            Ok(number) if (least..=most).contains(&number) => number,
            _ => {
                self.fault(key, format!("{given} must be from {least} to {most}"));
                least
            }
        }
    }
}
