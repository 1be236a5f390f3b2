//! The census: whatever exists after a test must have existed before it. It covers processes, mounts, network
//! namespace pins, cgroups, the daemon's files, host-port rules, interfaces, addresses, and panics in the
//! daemon's log.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Result, bail};

use crate::isolation::command;
use crate::node::{Node, SHIMS};
use crate::shapes::CGROUP_PARENT;
use crate::{cgroup, proc};

/// How long leftovers may take to disappear: the kernel removes some objects late.
const PATIENCE: Duration = Duration::from_secs(10);

/// Kind of what a census could not read. It counts as left behind, because a census that sees nothing would find
/// nothing.
const UNREADABLE: &str = "cannot be read";

/// Objects as `kind: name` with a count, so that two equal mounts are two.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Census(BTreeMap<String, usize>);

impl Census {
    /// Takes a census. With a node, its files and leases are included.
    pub(crate) fn take(node: Option<&Node>) -> Self {
        let mut this = Self::default();
        this.processes();
        this.mounts();
        this.names("netns", Path::new("/run/netns"));
        for path in cgroup::all(ours) {
            this.add("cgroup", &path);
        }
        this.firewall();
        this.links();
        if let Some(node) = node.filter(|n| !n.is_foreign()) {
            this.tree("root", &node.paths.root, &node.paths.root);
            this.tree("run", &node.paths.run, &node.paths.run);
            // A panic ends one task in builds that unwind, and the daemon in those that abort.
            let log = fs::read(&node.paths.log).map(|log| String::from_utf8_lossy(&log).into_owned());
            let log = this.readable("the daemon's log", log);
            for line in log.lines().filter(|line| line.contains("panicked at")) {
                this.add("panic in the daemon's log", line);
            }
            for address in node.network.leased() {
                this.add("lease", &address);
            }
        }
        this
    }

    /// Waits until nothing is left that did not exist before; the error lists what is left.
    pub(crate) async fn settle(&self, node: Option<&Node>) -> Result<()> {
        let end = std::time::Instant::now() + PATIENCE;
        loop {
            let left = self.leftovers(&Self::take(node));
            if left.is_empty() {
                return Ok(());
            }
            if std::time::Instant::now() > end {
                let shown: Vec<&str> = left.iter().take(30).map(String::as_str).collect();
                bail!("census: {} left behind:\n    {}", left.len(), shown.join("\n    "));
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// What exists now and did not before.
    fn leftovers(&self, now: &Self) -> Vec<String> {
        now.0
            .iter()
            .filter_map(|(k, n)| {
                let unreadable = k.starts_with(UNREADABLE);
                let before = if unreadable { 0 } else { self.0.get(k).copied().unwrap_or(0) };
                (*n > before)
                    .then(|| if *n - before == 1 { k.clone() } else { format!("{k} ({} times)", n - before) })
            })
            .collect()
    }

    fn add(&mut self, kind: &str, name: &str) {
        *self.0.entry(format!("{kind}: {name}")).or_default() += 1;
    }

    /// The text, or an empty one and an entry for the error.
    fn readable<E: Display>(&mut self, source: &str, text: std::result::Result<String, E>) -> String {
        text.unwrap_or_else(|e| {
            self.add(UNREADABLE, &format!("{source}: {e:#}"));
            String::new()
        })
    }

    fn processes(&mut self) {
        let me = std::process::id();
        for p in proc::all() {
            // The tools and registries that this process runs come and go; its daemons must be gone.
            if p.pid == me || (p.parent == me && p.comm != "copepod") {
                continue;
            }
            let zombie = if p.state == 'Z' { " (zombie)" } else { "" };
            self.add("process", &format!("{}{zombie} {}", p.comm, p.args));
        }
    }

    fn mounts(&mut self) {
        let text = self.readable("mountinfo", fs::read_to_string("/proc/self/mountinfo"));
        for line in text.lines() {
            let words: Vec<&str> = line.split(' ').collect();
            let dash = words.iter().position(|w| *w == "-").unwrap_or(words.len());
            let word = |n: usize| words.get(n).copied().unwrap_or_default();
            let kind = word(dash + 1);
            // The root of a netns pin has an inode number that changes with each pod, so it is left out.
            // Mount options are compared too: a wrong cgroup2 mount would change the host's.
            self.add("mount", &format!("{} {kind} {} {}", word(4), word(5), word(dash + 3)));
        }
    }

    fn names(&mut self, kind: &str, dir: &Path) {
        if let Ok(entries) = fs::read_dir(dir) {
            for entry in entries.flatten() {
                self.add(kind, &entry.file_name().to_string_lossy());
            }
        }
    }

    fn firewall(&mut self) {
        let without_ipv6 = !Path::new("/proc/net/if_inet6").exists();
        for program in ["iptables-save", "ip6tables-save"] {
            if program == "ip6tables-save" && without_ipv6 {
                continue;
            }
            let text = self.readable(program, command(program, &["-t", "nat"]));
            for line in text.lines().filter(|l| l.contains("CNI-") && !permanent(l)) {
                self.add(program, line.split(" [").next().unwrap_or(line));
            }
        }
    }

    fn links(&mut self) {
        let text = self.readable("ip link", command("ip", &["-o", "link", "show", "type", "veth"]));
        for line in text.lines() {
            let name = line.split(": ").nth(1).unwrap_or(line);
            self.add("interface", name.split('@').next().unwrap_or(name));
        }
    }

    /// The daemon's files. Image content may stay: it belongs to images, not to pods.
    fn tree(&mut self, kind: &str, top: &Path, dir: &Path) {
        let Ok(entries) = fs::read_dir(dir) else { return };
        for entry in entries.flatten() {
            let path = entry.path();
            let below = path.strip_prefix(top).unwrap_or(&path).display().to_string();
            if kind == "root" && below == "images" {
                continue;
            }
            if entry.file_type().is_ok_and(|t| t.is_dir()) {
                // The folders that contain pods and containers are created once and stay.
                if below.contains('/') {
                    self.add(kind, &below);
                }
                self.tree(kind, top, &path);
            } else {
                self.add(kind, &below);
            }
        }
    }
}

fn ours(path: &str) -> bool {
    [CGROUP_PARENT.as_str(), SHIMS, "/kubepods"]
        .iter()
        .any(|top| path.strip_prefix(top).is_some_and(|rest| rest.starts_with('/')))
        && !is_pod_parent(path)
}

/// kubelet creates and removes the pod's cgroup; tests leave that to the end of the run.
fn is_pod_parent(path: &str) -> bool {
    path.strip_prefix(CGROUP_PARENT.as_str()).is_some_and(|rest| rest.matches('/').count() == 1)
}

/// Chains and jumps that portmap creates once and keeps.
fn permanent(rule: &str) -> bool {
    let chains = ["CNI-HOSTPORT-DNAT", "CNI-HOSTPORT-SETMARK", "CNI-HOSTPORT-MASQ"];
    let per_pod = rule.contains("CNI-DN-")
        || rule.split_whitespace().any(|w| w.starts_with("CNI-") && !w.starts_with("CNI-HOSTPORT"));
    !per_pod && chains.iter().any(|c| rule.contains(c))
}
