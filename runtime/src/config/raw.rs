//! The shape of the file: every key, its documentation and its default, in one list.

use super::nearest::nearest;
use super::{Fault, Overrides};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use toml::de::{DeTable, DeValue};

/// Every key as written, not judged yet. [`Raw::keys`] is the list that the file format follows.
#[derive(Debug, Clone)]
pub(super) struct Raw {
    pub(super) root: String,
    pub(super) state: String,
    pub(super) socket: String,
    pub(super) mount_namespace: String,
    pub(super) log_level: String,
    pub(super) log_format: String,
    pub(super) shim: String,
    pub(super) pause: String,
    pub(super) cni_conf_dir: String,
    pub(super) cni_bin_dirs: Vec<String>,
    pub(super) cni_timeout_seconds: i64,
    pub(super) cni_max_parallel: i64,
    pub(super) certs_dir: String,
    pub(super) max_parallel_downloads: i64,
}

impl Default for Raw {
    fn default() -> Self {
        Self {
            root: "/var/lib/copepod".into(),
            state: "/run/copepod".into(),
            socket: String::new(),
            mount_namespace: "pid1".into(),
            log_level: "info".into(),
            log_format: "text".into(),
            shim: String::new(),
            pause: String::new(),
            cni_conf_dir: "/etc/cni/net.d".into(),
            cni_bin_dirs: vec!["/opt/cni/bin".into(), "/usr/lib/cni".into()],
            // Half of the four minutes that kubelet gives RunPodSandbox.
            cni_timeout_seconds: 120,
            cni_max_parallel: 16,
            certs_dir: "/etc/copepod/certs.d".into(),
            max_parallel_downloads: 4,
        }
    }
}

/// A key: its full name, what `config default` says about it, and where its value goes.
struct Key<'a> {
    name: &'static str,
    doc: &'static str,
    slot: Slot<'a>,
}

enum Slot<'a> {
    Text(&'a mut String),
    List(&'a mut Vec<String>),
    Number(&'a mut i64),
}

impl Raw {
    /// All keys. Keys of one table stand together, those without a table first: the default text is
    /// written in this order.
    fn keys(&mut self) -> Vec<Key<'_>> {
        use Slot::{List, Number, Text};
        let key = |name, slot, doc| Key { name, doc, slot };
        vec![
            key("root", Text(&mut self.root), "Durable state and images. One daemon per folder."),
            key("state", Text(&mut self.state), "Volatile state: lock, shim sockets, exit records. A tmpfs."),
            key("socket", Text(&mut self.socket), "CRI socket. Empty: copepod.sock in `state`."),
            key(
                "mount_namespace",
                Text(&mut self.mount_namespace),
                "Mount namespace in which volumes are looked up, which must be kubelet's: \"pid1\" (the\n\
                 host's, also for a daemon whose service manager gave it one of its own) or \"self\".",
            ),
            key("log.level", Text(&mut self.log_level), "error, warn, info, debug or trace."),
            key("log.format", Text(&mut self.log_format), "text or json, on standard error."),
            key(
                "binaries.shim",
                Text(&mut self.shim),
                "Path of copepod-shim. Empty: beside the daemon's own binary, else in /usr/libexec/copepod.",
            ),
            key("binaries.pause", Text(&mut self.pause), "Path of pause. Empty: found the same way."),
            key(
                "network.conf_dir",
                Text(&mut self.cni_conf_dir),
                "Watched for .conflist, .conf and .json files; the first by name is used. While there is\n\
                 none, NetworkReady is false and only host-network pods run.",
            ),
            key("network.bin_dirs", List(&mut self.cni_bin_dirs), "Searched for CNI plugins, in this order."),
            key(
                "network.timeout_seconds",
                Number(&mut self.cni_timeout_seconds),
                "A CNI plugin that runs longer is killed (1 to 3600).",
            ),
            key(
                "network.max_parallel",
                Number(&mut self.cni_max_parallel),
                "Pods whose CNI plugins may run at once (1 to 1024).",
            ),
            key(
                "image.certs_dir",
                Text(&mut self.certs_dir),
                "Registry hosts, as containerd has them: <certs_dir>/<host>/hosts.toml. Read at every pull.",
            ),
            key(
                "image.max_parallel_downloads",
                Number(&mut self.max_parallel_downloads),
                "Layers of one pull that are downloaded at once (1 to 16).",
            ),
        ]
    }
}

/// A file that was read: values, where each came from, and what was wrong with the shape.
#[derive(Debug)]
pub(super) struct Reading {
    pub(super) raw: Raw,
    pub(super) faults: Vec<Fault>,
    lines: BTreeMap<String, usize>,
}

impl Reading {
    /// The line that set `key`, if a line did.
    pub(super) fn line(&self, key: &str) -> Option<usize> {
        self.lines.get(key).copied()
    }

    /// Lets the command line win; its values have no line.
    pub(super) fn override_with(&mut self, overrides: &Overrides) {
        let Overrides { root, state, socket } = overrides;
        for (key, slot, given) in [
            ("root", &mut self.raw.root, root),
            ("state", &mut self.raw.state, state),
            ("socket", &mut self.raw.socket, socket),
        ] {
            if let Some(given) = given {
                slot.clone_from(given);
                self.lines.remove(key);
            }
        }
    }
}

/// Reads `text`. Fails only when it is no TOML; unknown keys and wrong types are faults of the reading.
pub(super) fn read(text: &str) -> Result<Reading, Vec<Fault>> {
    let (table, errors) = DeTable::parse_recoverable(text);
    if !errors.is_empty() {
        let fault = |error: &toml::de::Error| Fault {
            line: error.span().map(|span| line_of(text, span.start)),
            key: String::new(),
            problem: error.message().to_owned(),
        };
        return Err(errors.iter().map(fault).collect());
    }
    let mut reading = Reading { raw: Raw::default(), faults: Vec::new(), lines: BTreeMap::new() };
    walk(text, "", table.get_ref(), &mut reading);
    Ok(reading)
}

fn walk(text: &str, prefix: &str, table: &DeTable<'_>, reading: &mut Reading) {
    for (name, value) in table {
        let line = line_of(text, name.span().start);
        let full = if prefix.is_empty() {
            name.get_ref().to_string()
        } else {
            format!("{prefix}.{}", name.get_ref())
        };
        let problem = place(&full, value.get_ref(), &mut reading.raw);
        match (problem, value.get_ref()) {
            (Placed::Table, DeValue::Table(inner)) => walk(text, &full, inner, reading),
            (Placed::Wrong(problem), _) => {
                reading.faults.push(Fault { line: Some(line), key: full, problem })
            }
            (Placed::Set | Placed::Table, _) => {
                reading.lines.insert(full, line);
            }
        }
    }
}

enum Placed {
    Set,
    Table,
    Wrong(String),
}

/// Puts one value into its slot.
fn place(full: &str, value: &DeValue<'_>, raw: &mut Raw) -> Placed {
    let mut keys = raw.keys();
    let in_table = |key: &Key<'_>| key.name.strip_prefix(full).is_some_and(|rest| rest.starts_with('.'));
    if keys.iter().any(in_table) {
        return if value.is_table() { Placed::Table } else { wrong_type("a table", value) };
    }
    let Some(key) = keys.iter_mut().find(|key| key.name == full) else {
        return Placed::Wrong(unknown(full, &keys));
    };
    match &mut key.slot {
        Slot::Text(slot) => match value.as_str() {
            Some(text) => text.clone_into(slot),
            None => return wrong_type("a string", value),
        },
        Slot::Number(slot) => match value.as_integer().map(|n| i64::from_str_radix(n.as_str(), n.radix())) {
            Some(Ok(number)) => **slot = number,
            _ => return wrong_type("a whole number", value),
        },
        Slot::List(slot) => {
            let items = value
                .as_array()
                .map(|list| list.iter().map(|item| item.get_ref().as_str().map(str::to_owned)));
            match items.and_then(Iterator::collect::<Option<Vec<_>>>) {
                Some(list) => **slot = list,
                None => return wrong_type("a list of strings", value),
            }
        }
    }
    Placed::Set
}

fn wrong_type(want: &str, value: &DeValue<'_>) -> Placed {
    Placed::Wrong(format!("must be {want}, is of type {}", value.type_str()))
}

fn unknown(full: &str, keys: &[Key<'_>]) -> String {
    let tables = keys.iter().filter_map(|key| Some(key.name.split_once('.')?.0));
    match nearest(full, keys.iter().map(|key| key.name).chain(tables)) {
        Some(name) => format!("unknown key; the nearest name is {name}"),
        // The right name in the wrong table.
        None => match keys.iter().find(|key| key.name.rsplit('.').next() == full.rsplit('.').next()) {
            Some(key) => format!("unknown key; the nearest name is {}", key.name),
            None => "unknown key; `copepod config default` lists all".to_owned(),
        },
    }
}

fn line_of(text: &str, offset: usize) -> usize {
    1 + text.as_bytes().iter().take(offset).filter(|byte| **byte == b'\n').count()
}

/// The text of `copepod config default`.
pub(super) fn default_text() -> String {
    let mut raw = Raw::default();
    let mut text = String::from("# Configuration of copepod. Every key is shown with its default.\n");
    let mut table = "";
    for Key { name, doc, slot } in raw.keys() {
        let (of, short) = name.split_once('.').unwrap_or(("", name));
        text.push('\n');
        if of != table {
            table = of;
            // Writing to a String cannot fail.
            let _ = writeln!(text, "[{table}]");
        }
        for line in doc.lines() {
            let _ = writeln!(text, "# {line}");
        }
        let value = match slot {
            Slot::Text(value) => toml::Value::from(value.as_str()),
            Slot::List(value) => toml::Value::from(value.clone()),
            Slot::Number(value) => toml::Value::from(*value),
        };
        let _ = writeln!(text, "{short} = {value}");
    }
    text
}
