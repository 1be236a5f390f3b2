//! The values of a configuration by key, for the comparison of a reload and for the verbose Status.

use super::{Binaries, Config, Image, Log, Network, Streaming};
use serde_json::{Value, json};
use std::time::Duration;

impl Config {
    /// Every key with its value, in the order of the list of keys. Values are as in the file, except empty ones that stand
    /// for something else: an empty path is null, and an empty `socket` is the path in use.
    pub(super) fn by_key(&self) -> [(&'static str, Value); super::keys::KEYS.len()] {
        // A new field breaks the build here, and a new key makes the array too short.
        let Self {
            root,
            state,
            socket,
            mount_namespace,
            cgroup_driver,
            apparmor,
            enable_selinux,
            log: Log { level, format },
            binaries: Binaries { shim, pause },
            network: Network { conf_dir, bin_dirs, timeout, max_parallel },
            image: Image { certs_dir, credentials_file, max_parallel_downloads, progress_timeout, pinned },
            streaming: Streaming { address, idle_timeout, creation_timeout, tls_certificate, tls_key },
            // They have no entries yet.
            handlers: _,
            registry: _,
        } = self;
        let seconds = |time: Duration| json!(time.as_secs());
        [
            ("root", json!(root)),
            ("state", json!(state)),
            ("socket", json!(socket)),
            ("mount_namespace", json!(mount_namespace.to_string())),
            ("cgroup_driver", json!(cgroup_driver.to_string())),
            ("apparmor", json!(apparmor.to_string())),
            ("enable_selinux", json!(enable_selinux.to_string())),
            ("log.level", json!(level.to_string())),
            ("log.format", json!(format.to_string())),
            ("binaries.shim", json!(shim)),
            ("binaries.pause", json!(pause)),
            ("network.conf_dir", json!(conf_dir)),
            ("network.bin_dirs", json!(bin_dirs)),
            ("network.timeout_seconds", seconds(*timeout)),
            ("network.max_parallel", json!(max_parallel)),
            ("image.certs_dir", json!(certs_dir)),
            ("image.credentials_file", json!(credentials_file)),
            ("image.max_parallel_downloads", json!(max_parallel_downloads)),
            ("image.pinned", json!(pinned)),
            ("image.progress_timeout_seconds", seconds(*progress_timeout)),
            ("streaming.address", json!(address)),
            ("streaming.idle_timeout_seconds", seconds(idle_timeout.unwrap_or_default())),
            ("streaming.creation_timeout_seconds", seconds(*creation_timeout)),
            ("streaming.tls_certificate", json!(tls_certificate)),
            ("streaming.tls_key", json!(tls_key)),
        ]
    }

    /// Every key as JSON, with an object for each table. Names are in camel case; `root` and `state` have containerd's
    /// names, `rootDir` and `stateDir`.
    pub(crate) fn to_json(&self) -> Value {
        let mut all = json!({});
        for (key, value) in self.by_key() {
            match key.split_once('.') {
                Some((table, name)) => all[table][camel_case(name)] = value,
                None => all[top_level(key)] = value,
            }
        }
        all
    }
}

fn top_level(key: &str) -> String {
    match key {
        "root" | "state" => format!("{key}Dir"),
        _ => camel_case(key),
    }
}

fn camel_case(name: &str) -> String {
    let mut words = name.split('_');
    let first = words.next().unwrap_or_default().to_owned();
    words.fold(first, |mut text, word| {
        let mut letters = word.chars();
        text.extend(letters.next().map(|letter| letter.to_ascii_uppercase()));
        text.push_str(letters.as_str());
        text
    })
}
