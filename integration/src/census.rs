//! The census: whatever exists after a test must have existed before it. It covers processes, mounts, network
//! namespace pins, cgroups, the daemon's files, image leases, firewall rules of CNI plugins, interfaces, addresses, and
//! panics in the daemon's log.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::fs;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, bail};

use crate::cgroup::{self, SHIMS};
use crate::machine::Machine;
use crate::node::{DEFAULT_PARENTS, Node};
use crate::shapes::CGROUP_PARENT;
use crate::{made, proc, wait};

/// Time limit for leftovers to disappear: the kernel removes some objects late.
const PATIENCE: Duration = Duration::from_secs(10);

/// Kind of an entry for what could not be read. Such an entry counts as left behind, also if it existed before:
/// otherwise a census that can read nothing would find nothing.
const UNREADABLE: &str = "cannot be read";

/// Objects as `kind: name` with a count, so that two equal mounts are two.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Census(BTreeMap<String, usize>);

impl Census {
    /// Takes a census. With a node, its files and leases are included, and mounts, interfaces and firewall are its machine's.
    pub(crate) fn take(node: Option<&Node>) -> Self {
        let mut this = Self::default();
        this.processes();
        let machine = node.map_or_else(|| Arc::new(Machine::first()), |node| Arc::clone(&node.machine));
        this.mounts(&machine);
        this.names("netns", Path::new("/run/netns"));
        this.cgroups();
        this.firewall(&machine);
        this.links(&machine);
        if let Some(node) = node.filter(|n| !n.is_foreign()) {
            this.tree("root", &node.paths.root, &node.paths.root);
            this.tree("run", &node.paths.run, &node.paths.run);
            this.names("image lease", &node.paths.root.join("images/leases"));
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
        let end = std::time::Instant::now() + wait::longer(PATIENCE);
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
        let all = proc::all();
        if !all.iter().any(|p| p.pid == me) {
            self.add(UNREADABLE, "/proc: it does not list this process");
        }
        for p in all {
            // The tools and registries that this process runs come and go; its daemons must be gone.
            if p.pid == me || (p.parent == me && p.comm != "copepod") {
                continue;
            }
            let zombie = if p.state == 'Z' { " (zombie)" } else { "" };
            self.add("process", &format!("{}{zombie} {}", p.comm, p.args));
        }
    }

    fn mounts(&mut self, machine: &Machine) {
        let text = self.readable("mountinfo", fs::read_to_string(machine.mountinfo()));
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

    /// The cgroups of pods, containers and shims, and any that libcontainer has made.
    fn cgroups(&mut self) {
        if cgroup::hierarchies().is_empty() {
            self.add(UNREADABLE, "cgroups: no hierarchy is mounted");
        }
        for path in cgroup::all(ours) {
            self.add("cgroup", &path);
        }
    }

    /// The entries of a folder; none if it does not exist.
    fn entries(&mut self, dir: &Path) -> Vec<fs::DirEntry> {
        let entries = fs::read_dir(dir).and_then(Iterator::collect::<io::Result<Vec<_>>>);
        entries.unwrap_or_else(|e| {
            if e.kind() != io::ErrorKind::NotFound {
                self.add(UNREADABLE, &format!("{}: {e}", dir.display()));
            }
            Vec::new()
        })
    }

    fn names(&mut self, kind: &str, dir: &Path) {
        for entry in self.entries(dir) {
            self.add(kind, &entry.file_name().to_string_lossy());
        }
    }

    fn firewall(&mut self, machine: &Machine) {
        let without_ipv6 = !Path::new("/proc/net/if_inet6").exists();
        for program in ["iptables-save", "ip6tables-save"] {
            if program == "ip6tables-save" && without_ipv6 {
                continue;
            }
            let text = self.readable(program, machine.run(program, &["-t", "nat"]));
            for line in text.lines().filter(|l| l.contains("CNI-") && !permanent(l)) {
                self.add(program, line.split(" [").next().unwrap_or(line));
            }
        }
    }

    fn links(&mut self, machine: &Machine) {
        let text = self.readable("ip link", machine.run("ip", &["-o", "link", "show", "type", "veth"]));
        for line in text.lines() {
            let name = line.split(": ").nth(1).unwrap_or(line);
            self.add("interface", name.split('@').next().unwrap_or(name));
        }
    }

    /// The daemon's files, without the content of images, which may stay.
    fn tree(&mut self, kind: &str, top: &Path, dir: &Path) {
        for entry in self.entries(dir) {
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

/// Begin of the names of cgroups that libcontainer makes by itself, anywhere. It should make none.
const OF_LIBCONTAINER: &str = "/:youki:";

/// Whether it is a cgroup that must be gone after a test: one of copepod's, one below kubelet's of all pods, or one
/// anywhere that has the id of a pod or container of the tests.
fn ours(path: &str) -> bool {
    let below_a_parent = [CGROUP_PARENT.as_str(), SHIMS, "/kubepods", "/kubepods.slice"]
        .iter()
        .chain(&DEFAULT_PARENTS)
        .any(|top| path.strip_prefix(top).is_some_and(|rest| rest.starts_with('/')))
        && !is_pod_parent(path);
    below_a_parent || path.contains(OF_LIBCONTAINER) || made::is_named_in(path)
}

/// Whether it is a pod's cgroup. kubelet creates and removes it, not copepod; here it is removed at the end of the run.
fn is_pod_parent(path: &str) -> bool {
    path.strip_prefix(CGROUP_PARENT.as_str()).is_some_and(|rest| rest.matches('/').count() == 1)
}

/// Whether a rule is one of the chains and jumps that portmap creates once and keeps.
fn permanent(rule: &str) -> bool {
    let chains = ["CNI-HOSTPORT-DNAT", "CNI-HOSTPORT-SETMARK", "CNI-HOSTPORT-MASQ"];
    let per_pod = rule.contains("CNI-DN-")
        || rule.split_whitespace().any(|w| w.starts_with("CNI-") && !w.starts_with("CNI-HOSTPORT"));
    !per_pod && chains.iter().any(|c| rule.contains(c))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn census(entries: &[(&str, usize)]) -> Census {
        Census(entries.iter().map(|(name, count)| ((*name).to_owned(), *count)).collect())
    }

    #[test]
    fn leftovers_are_new_objects_and_further_ones_of_a_kind() {
        let before = census(&[("mount: a", 1), ("mount: b", 1), ("process: gone", 1)]);
        let now = census(&[("mount: a", 1), ("mount: b", 3), ("process: new", 1)]);
        assert_eq!(before.leftovers(&now), ["mount: b (2 times)", "process: new"]);
        assert!(before.leftovers(&before).is_empty());
    }

    #[test]
    fn what_cannot_be_read_is_always_left_behind() {
        let unreadable = census(&[("cannot be read: mountinfo: error", 1)]);
        assert_eq!(unreadable.leftovers(&unreadable), ["cannot be read: mountinfo: error"]);
        // A file in place of a folder: its content cannot be listed.
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        fs::write(&file, "").unwrap();
        let takes: [fn(&mut Census, &Path); 2] =
            [|census, path| census.names("kind", path), |census, path| census.tree("kind", path, path)];
        for take in takes {
            let mut found = Census::default();
            take(&mut found, &file);
            assert!(
                found.0.keys().all(|name| name.starts_with(UNREADABLE)) && found.0.len() == 1,
                "{found:?}"
            );
            let mut none = Census::default();
            take(&mut none, &dir.path().join("absent"));
            assert_eq!(none, Census::default());
        }
        let mut found = Census::default();
        assert_eq!(found.readable("text", Err::<String, _>("error")), "");
        assert_eq!(found, census(&[("cannot be read: text: error", 1)]));
    }

    #[test]
    fn files_are_counted_without_the_content_of_images() {
        let dir = tempfile::tempdir().unwrap();
        for path in ["pods/1/record", "images/blobs/x", "trash/y", "lock"] {
            let path = dir.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "").unwrap();
        }
        let mut found = Census::default();
        found.tree("root", dir.path(), dir.path());
        let wanted =
            [("root: lock", 1), ("root: pods/1", 1), ("root: pods/1/record", 1), ("root: trash/y", 1)];
        assert_eq!(found, census(&wanted));
    }

    #[test]
    fn this_process_and_this_hosts_mounts_are_seen() {
        let mut found = Census::default();
        found.processes();
        found.mounts(&Machine::first());
        assert!(found.0.keys().any(|name| name.starts_with("mount: ")), "{found:?}");
        assert!(found.0.keys().all(|name| !name.starts_with(UNREADABLE)), "{found:?}");
    }

    #[test]
    fn cgroups_of_pods_shims_and_containers_count() {
        let parent = CGROUP_PARENT.as_str();
        for path in [
            format!("{parent}/pod1/abc"),
            format!("{SHIMS}/abc"),
            format!("{}/abc", DEFAULT_PARENTS[0]),
            format!("{}/abc/def", DEFAULT_PARENTS[1]),
            "/kubepods/burstable/pod1".to_owned(),
            "/kubepods.slice/kubepods-podx.slice".to_owned(),
            "/:youki:abc".to_owned(),
            "/system.slice/:youki:abc/x".to_owned(),
        ] {
            assert!(ours(&path), "{path}");
        }
        // The parents stay, and so do the pods' cgroups of this run.
        for path in
            [parent.to_owned(), format!("{parent}/pod1"), SHIMS.to_owned(), "/system.slice/x".to_owned()]
        {
            assert!(!ours(&path), "{path}");
        }
    }

    #[test]
    fn only_portmaps_own_chains_are_permanent() {
        for rule in [
            ":CNI-HOSTPORT-DNAT - [0:0]",
            "-A PREROUTING -m addrtype --dst-type LOCAL -j CNI-HOSTPORT-DNAT",
            "-A POSTROUTING -m comment --comment \"CNI portfwd requiring masquerade\" -j CNI-HOSTPORT-MASQ",
        ] {
            assert!(permanent(rule), "{rule}");
        }
        for rule in [
            ":CNI-DN-0123456789abcdef01234 - [0:0]",
            "-A CNI-HOSTPORT-DNAT -p tcp -m tcp --dport 8080 -j CNI-DN-0123456789abcdef01234",
            ":CNI-0123456789abcdef01234567 - [0:0]",
            "-A POSTROUTING -s 10.88.1.2/32 -j CNI-0123456789abcdef01234567",
        ] {
            assert!(!permanent(rule), "{rule}");
        }
    }
}
