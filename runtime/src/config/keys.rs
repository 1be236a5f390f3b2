//! The list of all keys with their documentation and defaults. A key that is missing here or in the structs of [`super`]
//! makes the defaults invalid, so that every test fails.

use std::fmt::Write as _;

/// A key.
#[derive(Debug)]
pub(super) struct Key {
    /// Full name.
    pub(super) name: &'static str,
    /// Kind of value.
    #[cfg_attr(not(test), expect(dead_code, reason = "for docs/configuration.md, which a test writes"))]
    kind: &'static str,
    /// Default in TOML's syntax.
    default: &'static str,
    /// A change takes effect on SIGHUP; otherwise at the next start.
    pub(super) reloads: bool,
    /// Meaning, units and limits, in Markdown.
    doc: &'static str,
}

/// A table whose entries are named by the operator.
#[derive(Debug)]
pub(super) struct NamedTable {
    /// Full name.
    pub(super) name: &'static str,
    /// Example of an entry's header.
    #[cfg_attr(not(test), expect(dead_code, reason = "for docs/configuration.md, which a test writes"))]
    entry: &'static str,
    /// Meaning, in Markdown.
    #[cfg_attr(not(test), expect(dead_code, reason = "for docs/configuration.md, which a test writes"))]
    doc: &'static str,
}

const fn key(name: &'static str, kind: &'static str, default: &'static str, doc: &'static str) -> Key {
    Key { name, kind, default, reloads: false, doc }
}

/// A key whose change takes effect on SIGHUP.
const fn reloaded(key: Key) -> Key {
    Key { reloads: true, ..key }
}

/// All keys. Those without a table come first, those of one table are together.
pub(super) const KEYS: [Key; 25] = [
    key(
        "root",
        "path",
        "\"/var/lib/copepod\"",
        "Durable state and images. Only one daemon can use the folder.",
    ),
    key(
        "state",
        "path",
        "\"/run/copepod\"",
        "Volatile state: lock, shim sockets, exit files. Must be gone after a reboot (a tmpfs), and lie outside `root`.",
    ),
    key(
        "socket",
        "path",
        "\"\"",
        "CRI socket, mode 0660, owned by the daemon's user and group. At most 107 bytes. Empty: `copepod.sock` in `state`.",
    ),
    key(
        "mount_namespace",
        "word",
        "\"pid1\"",
        "Mount namespace in which volumes are looked up, which must be kubelet's: `pid1` (that of process 1, the host's) \
         or `self` (the daemon's own). If that of process 1 cannot be opened, `self` is used, with a warning.",
    ),
    key(
        "cgroup_driver",
        "word",
        "\"auto\"",
        "Who makes the cgroups of pods: `systemd` (a delegated scope for each pod, on cgroup v2 only), `cgroupfs` (copepod \
         itself) or `auto`: systemd on a host with cgroup v2 whose process 1 is systemd. kubelet asks copepod; one that \
         does not must have the same `cgroupDriver`. Pods that exist stay where they are.",
    ),
    key(
        "apparmor",
        "word",
        "\"auto\"",
        "`auto`: on a node that enforces AppArmor, containers get the profile that they ask for, or else the default one, which is \
         loaded at the start. `off`: they get none, and a pod that asks for one is refused.",
    ),
    key(
        "enable_selinux",
        "word",
        "\"auto\"",
        "`auto`: on a node with an SELinux policy, pods get the policy's labels for containers, and volumes are relabelled as kubelet \
         asks. `true`: the same, and the daemon warns on a node without a policy. `false`: pods have no labels, as with containerd's \
         `enable_selinux = false`.",
    ),
    reloaded(key(
        "log.level",
        "word",
        "\"info\"",
        "`error`, `warn`, `info`, `debug` (every call) or `trace`.",
    )),
    key("log.format", "word", "\"text\"", "`text` or `json`, on standard error."),
    key(
        "binaries.shim",
        "path",
        "\"\"",
        "Path of `copepod-shim`. Empty: beside the daemon's own binary, else in `/usr/libexec/copepod`.",
    ),
    key("binaries.pause", "path", "\"\"", "Path of `pause`. Empty: found the same way."),
    key(
        "network.conf_dir",
        "path",
        "\"/etc/cni/net.d\"",
        "Watched for `.conflist`, `.conf` and `.json` files; the first by name is used. While there is none, NetworkReady \
         is false and only host-network pods run.",
    ),
    reloaded(key(
        "network.bin_dirs",
        "list of paths",
        "[\"/opt/cni/bin\", \"/usr/lib/cni\"]",
        "Searched for CNI plugins, in this order. At least one.",
    )),
    reloaded(key(
        "network.timeout_seconds",
        "whole number",
        // Half of the four minutes that kubelet gives RunPodSandbox.
        "120",
        "Seconds, 1 to 3600: time limit for ADD of the whole chain of CNI plugins, and for DEL or STATUS of one plugin. A \
         plugin that exceeds it is killed.",
    )),
    key("network.max_parallel", "whole number", "16", "1 to 1024. Pods whose CNI plugins may run at once."),
    reloaded(key(
        "image.certs_dir",
        "path",
        "\"/etc/copepod/certs.d\"",
        "Registry hosts, as containerd has them: `<host>/hosts.toml` (mirrors, CA files, plain HTTP). Read at every pull.",
    )),
    reloaded(key(
        "image.credentials_file",
        "path",
        "\"/etc/copepod/auth.json\"",
        "The node's own credentials for registries and mirrors, with credential helpers: docker's `config.json`, or `auth.json` \
         of Podman and CRI-O. Used where kubelet sends none. May be missing; empty reads no file. Read at every pull.",
    )),
    key(
        "image.max_parallel_downloads",
        "whole number",
        "4",
        "1 to 16. Layers of one pull that are downloaded at once. All pulls from one registry together download at most \
         twice as many, all pulls of the node four times as many. If a layer receives less than 64 KiB in 30 s while \
         another one waits for its place, its pull fails as unavailable.",
    ),
    reloaded(key(
        "image.pinned",
        "list of names",
        "[]",
        "Images that kubelet must not remove to free space: names as in a pod's `image`, or patterns of whole names, with \
         the registry, in which `*` is any number of characters and `?` is one (`\"registry.k8s.io/pause:*\"`). A removal \
         that is asked for, as by `crictl rmi`, is done nevertheless.",
    )),
    key(
        "image.progress_timeout_seconds",
        "whole number",
        "300",
        "Seconds, 1 to 3600. If a layer receives less than 64 KiB in this time, its pull fails as unavailable, also if nothing \
         else waits: kubelet may pull one image at a time.",
    ),
    key(
        "streaming.address",
        "address",
        "\"127.0.0.1:0\"",
        "IP address and port on which the server of exec, attach and port-forward listens; port 0 is any free one. Only clients \
         on the node (kubelet, crictl) connect to it, so a loopback address is enough, and it keeps other hosts out.",
    ),
    key(
        "streaming.idle_timeout_seconds",
        "whole number",
        "14400",
        "Seconds, 0 to 65535; 0 is never. A session of exec, attach or port-forward without traffic is ended after this time. Pings and their answers are traffic, and the daemon pings WebSocket clients every 30 s: this ends their sessions only if they do not answer.",
    ),
    key(
        "streaming.creation_timeout_seconds",
        "whole number",
        "30",
        "Seconds, 1 to 3600, for a client to create the streams of its session.",
    ),
    key(
        "streaming.tls_certificate",
        "path",
        "\"\"",
        "PEM file of the streaming server's certificate, followed by the intermediate certificates, for TLS 1.2 and 1.3. Empty: \
         plain HTTP. A file that has changed is read within a minute, for new connections.",
    ),
    key(
        "streaming.tls_key",
        "path",
        "\"\"",
        "PEM file of the private key; given if and only if `streaming.tls_certificate` is.",
    ),
];

/// All tables with entries named by the operator.
pub(super) const NAMED: [NamedTable; 2] = [
    NamedTable {
        name: "handlers",
        entry: "[handlers.runc]",
        doc: "Runtime handlers beside the built-in one. Not supported yet: an entry is refused.",
    },
    NamedTable {
        name: "registry",
        entry: "[registry.\"registry.example:5000\"]",
        doc: "Settings of one registry. Not supported yet: an entry is refused; `image.certs_dir` has them.",
    },
];

/// Whether `name` is a table of keys.
pub(super) fn is_table(name: &str) -> bool {
    KEYS.iter().any(|key| key.name.strip_prefix(name).is_some_and(|rest| rest.starts_with('.')))
        || NAMED.iter().any(|named| named.name == name)
}

/// Whether `name` is a key, or an entry of a table with named entries.
pub(super) fn is_key(name: &str) -> bool {
    KEYS.iter().any(|key| key.name == name)
        || NAMED.iter().any(|named| name.strip_prefix(named.name).is_some_and(|rest| rest.starts_with('.')))
}

/// The report for a key that is not in the list, with the name that was probably meant.
pub(super) fn unknown(given: &str) -> String {
    let keys = || KEYS.iter().map(|key| key.name);
    let tables =
        keys().filter_map(|name| Some(name.split_once('.')?.0)).chain(NAMED.iter().map(|named| named.name));
    // The right name in the wrong table.
    let misplaced = || keys().find(|name| name.rsplit('.').next() == given.rsplit('.').next());
    match shallow_toml::nearest(given, keys().chain(tables)).or_else(misplaced) {
        Some(name) => format!("unknown key; the nearest name is {name}"),
        None => "unknown key; `copepod config default` lists all".to_owned(),
    }
}

/// A commented file with every key and its default.
pub(super) fn default_text() -> String {
    let mut text = String::from("# Configuration of copepod. Every key is shown with its default.\n");
    let mut table = "";
    for Key { name, default, reloads, doc, .. } in &KEYS {
        let (of, short) = name.split_once('.').unwrap_or(("", name));
        text.push('\n');
        if of != table {
            table = of;
            // Writing to a String cannot fail.
            let _ = writeln!(text, "[{table}]");
        }
        comment(&mut text, doc);
        if *reloads {
            comment(&mut text, "SIGHUP applies a change.");
        }
        let _ = writeln!(text, "{short} = {default}");
    }
    text
}

/// The list as a Markdown table, for docs/configuration.md.
#[cfg(test)]
pub(super) fn reference() -> String {
    let mut text =
        String::from("| key | value | default | change | meaning |\n| --- | --- | --- | --- | --- |\n");
    for Key { name, kind, default, reloads, doc } in &KEYS {
        let change = if *reloads { "SIGHUP" } else { "restart" };
        let _ = writeln!(text, "| `{name}` | {kind} | `{default}` | {change} | {doc} |");
    }
    for NamedTable { entry, doc, .. } in &NAMED {
        let _ = writeln!(text, "| `{entry}` | table | none | restart | {doc} |");
    }
    text
}

/// Appends `words` to `text` as a comment of at most 100 columns, with quotation marks instead of Markdown's
/// backquotes.
fn comment(text: &mut String, words: &str) {
    let mut line = String::from("#");
    for word in words.replace('`', "\"").split_whitespace() {
        if line.len() + 1 + word.len() > 100 {
            let _ = writeln!(text, "{line}");
            line = String::from("#");
        }
        line.push(' ');
        line.push_str(word);
    }
    let _ = writeln!(text, "{line}");
}
