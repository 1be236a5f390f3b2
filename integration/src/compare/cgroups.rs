//! The reference for a container's cgroup: Debian's runc and crun on the same host with the same OCI resources. Facts are
//! the files of the leaf and of its parent, what the container sees of its cgroup, and which devices it may open.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use super::{default_caps, host_caps, unpack_busybox};
use crate::cgroup::{self, Driver};
use crate::context::Context;
use crate::expect::ensure;
use crate::isolation::command;
use crate::shapes::unique;
use crate::wait::{self, secs};

/// Facts by name.
pub(crate) type Facts = BTreeMap<String, String>;

/// A program that runs OCI bundles.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Runtime {
    /// opencontainers/runc.
    Runc,
    /// containers/crun.
    Crun,
}

impl Runtime {
    /// The name of the program, which is also that of the Debian package.
    pub(crate) fn program(self) -> &'static str {
        match self {
            Self::Runc => "runc",
            Self::Crun => "crun",
        }
    }
}

/// A container's cgroup, as an OCI configuration states it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Case {
    /// `linux.resources` but the devices.
    pub(crate) resources: Value,
    /// All capabilities, all devices, and the host's cgroup namespace.
    pub(crate) privileged: bool,
}

/// Device nodes that a container makes and tries to open: kind, major, minor.
const DEVICES: [(&str, u32, u32); 20] = [
    ("c", 1, 1),
    ("c", 1, 2),
    ("c", 1, 3),
    ("c", 1, 4),
    ("c", 1, 5),
    ("c", 1, 7),
    ("c", 1, 8),
    ("c", 1, 9),
    ("c", 1, 11),
    ("c", 5, 0),
    ("c", 5, 2),
    ("c", 10, 144),
    ("c", 10, 183),
    ("c", 10, 200),
    ("c", 10, 229),
    ("c", 10, 232),
    ("c", 10, 237),
    ("b", 1, 0),
    ("b", 7, 0),
    ("b", 254, 0),
];

/// Prints what a container sees of its cgroup and which devices it may make, read and write. A privileged one sees all of
/// the host's, which come and go.
pub(crate) fn script(privileged: bool) -> String {
    let folders = if privileged {
        ""
    } else {
        "for f in /sys/fs/cgroup/*; do [ -d \"$f\" ] && echo \"folder $f: seen\"; done\n"
    };
    let mut script = String::from(folders);
    script.push_str(
        r#"sed 's/^[0-9]*:/cgroup /' /proc/self/cgroup
while read -r _ _ _ root place options rest; do case $place in /sys/fs/cgroup*) echo "mount $place: $root $options $(set -- ${rest##*- }; echo $1)";; esac; done </proc/self/mountinfo
mkdir /sys/fs/cgroup/made 2>/dev/null && rmdir /sys/fs/cgroup/made && echo "writable: yes"
try() { if [ -e "$1" ]; then (eval ": $2 $1") 2>&1 | sed 's/.*: //'; else echo none; fi; }
device() { n=/tmp/$1-$2-$3; made=$(mknod "$n" "$1" "$2" "$3" 2>&1 | sed 's/.*: //'); echo "device $1 $2:$3: mknod [$made] read [$(try "$n" '<')] write [$(try "$n" '>>')]"; rm -f "$n"; }
"#,
    );
    for (kind, major, minor) in DEVICES {
        script.push_str(&format!("device {kind} {major} {minor}\n"));
    }
    script
}

/// The facts in what [`script`] printed. `leaf` and `parent` are paths of cgroups, which differ by nature.
pub(crate) fn seen(text: &str, leaf: &str, parent: &str) -> Facts {
    let neutral = text.replace(leaf, "LEAF").replace(parent, "PARENT");
    let known = |line: &&str| {
        ["cgroup ", "mount ", "folder ", "device ", "writable"].iter().any(|word| line.starts_with(word))
    };
    // On a hybrid host, v2's line: copepod leaves that hierarchy to the service manager.
    let is_managers = |line: &&str| !cgroup::is_v2() && line.starts_with("cgroup :");
    let pairs = neutral.lines().filter(|line| !is_managers(line)).filter(known).filter_map(|line| {
        let at = if line.starts_with("device ") { line.find(": mknod")? } else { line.find(':')? };
        let (name, value) = line.split_at_checked(at)?;
        Some((name.to_owned(), value.trim_start_matches(':').trim().to_owned()))
    });
    pairs.collect()
}

/// Files that count or that list processes: they differ between two containers by nature.
fn is_volatile(file: &str) -> bool {
    let words = [
        "stat",
        "usage",
        "current",
        "peak",
        "pressure",
        "events",
        "procs",
        "tasks",
        "threads",
        "swapin",
        "kill",
        "recursive",
    ];
    let exact = [
        "memory.reclaim",
        "cgroup.event_control",
        "memory.force_empty",
        "memory.kmem.slabinfo",
        "cpuacct.usage",
    ];
    exact.contains(&file) || words.iter().any(|word| file.contains(word))
}

/// The values of a cgroup's files in all hierarchies, as `what controller/file`.
pub(crate) fn files(what: &str, path: &str) -> Result<Facts> {
    let mut facts = Facts::new();
    for root in cgroup::hierarchies() {
        let name = root.file_name().and_then(|n| n.to_str()).unwrap_or_default().to_owned();
        let folder = root.join(path.trim_start_matches('/'));
        // Hierarchies without a controller, as systemd's own on a hybrid host, have no values.
        if name == "systemd" || name == "unified" || !folder.is_dir() {
            continue;
        }
        for entry in fs::read_dir(&folder).with_context(|| folder.display().to_string())?.flatten() {
            let file = entry.file_name().to_string_lossy().into_owned();
            if !entry.file_type().is_ok_and(|kind| kind.is_file()) || is_volatile(&file) {
                continue;
            }
            // A file that cannot be read, as one that is only written, is no value.
            if let Ok(value) = fs::read_to_string(entry.path()) {
                let mut lines: Vec<&str> = value.trim().lines().collect();
                lines.sort_unstable();
                facts.insert(format!("{what} {name}/{file}"), lines.join("; "));
            }
        }
    }
    ensure!(!facts.is_empty(), "{path} is in no hierarchy");
    Ok(facts)
}

/// Facts of a container that `runtime` runs below a parent of its own.
pub(crate) async fn reference(cx: &Context, runtime: Runtime, case: &Case) -> Result<Facts> {
    let id = format!("reference{}", unique());
    let parent = crate::shapes::below_parent(&id);
    let bundle = cx.volume(&id)?;
    unpack_busybox(cx, &bundle)?;
    fs::write(bundle.join("config.json"), spec(case, &parent, &id)?.to_string())?;
    let privileged = case.privileged;
    let work = tokio::task::spawn_blocking(move || {
        let container = Container { runtime, state: bundle.join("state"), id };
        let facts = container.run(&bundle, &parent, privileged);
        drop(container.call(&["delete", "--force"]));
        restore_options()?;
        facts.with_context(|| format!("the reference, Debian's {}", runtime.program()))
    });
    wait::timeout(secs(60), work).await.context("the reference took over 60 s")??
}

/// Gives v2's hierarchy back the options that systemd mounts it with: both references mount it without any in a container
/// that has the host's cgroup namespace, which changes them for the host.
fn restore_options() -> Result<()> {
    if cgroup::is_v2() {
        command("mount", &["-o", "remount,nsdelegate,memory_recursiveprot", "/sys/fs/cgroup"])?;
    }
    Ok(())
}

/// A container of the reference.
#[derive(Debug)]
struct Container {
    runtime: Runtime,
    state: PathBuf,
    id: String,
}

impl Container {
    fn run(&self, bundle: &Path, parent: &str, privileged: bool) -> Result<Facts> {
        let bundle = bundle.display().to_string();
        self.call(&["run", "--detach", "--bundle", &bundle])?;
        let leaf = match cgroup::driver() {
            Driver::Cgroupfs => format!("{parent}/{}", self.id),
            Driver::Systemd => format!("{parent}/reference-{}.scope{}", self.id, self.below_scope()),
        };
        let mut facts = files("leaf", &leaf)?;
        facts.extend(files("parent", parent)?);
        let said = self.exec(&["/bin/sh", "-c", &script(privileged)])?;
        facts.extend(seen(&said, &leaf, parent));
        Ok(facts)
    }

    /// crun puts the container in a cgroup below its scope.
    fn below_scope(&self) -> &'static str {
        match self.runtime {
            Runtime::Runc => "",
            Runtime::Crun => "/container",
        }
    }

    fn command(&self) -> Command {
        let mut command = Command::new(self.runtime.program());
        command.arg("--root").arg(&self.state).stdin(Stdio::null());
        if cgroup::driver() == Driver::Systemd {
            command.arg("--systemd-cgroup");
        }
        command
    }

    /// Runs a command on the container. Its output goes to files, since the container keeps it.
    fn call(&self, words: &[&str]) -> Result<()> {
        fs::create_dir_all(&self.state)?;
        let said = self.state.with_extension("said");
        let out = fs::File::create(&said)?;
        let status =
            self.command().args(words).arg(&self.id).stdout(out.try_clone()?).stderr(out).status()?;
        ensure!(status.success(), "{words:?}: {}", fs::read_to_string(&said).unwrap_or_default());
        Ok(())
    }

    fn exec(&self, words: &[&str]) -> Result<String> {
        let output = self.command().arg("exec").arg(&self.id).args(words).output()?;
        ensure!(output.status.success(), "exec: {}", String::from_utf8_lossy(&output.stderr));
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }
}

/// The OCI configuration that kubelet's request for the case becomes with other runtimes.
fn spec(case: &Case, parent: &str, id: &str) -> Result<Value> {
    let caps = if case.privileged { host_caps()? } else { default_caps() };
    let mode = if case.privileged { "rw" } else { "ro" };
    let mut namespaces = vec![json!({"type": "pid"}), json!({"type": "ipc"}), json!({"type": "mount"})];
    if cgroup::is_v2() && !case.privileged {
        namespaces.push(json!({"type": "cgroup"}));
    }
    let mut resources = case.resources.clone();
    if let Some(members) = resources.as_object_mut() {
        members.insert(String::from("devices"), json!([{"allow": case.privileged, "access": "rwm"}]));
    }
    let path = match cgroup::driver() {
        Driver::Cgroupfs => format!("{parent}/{id}"),
        Driver::Systemd => format!("{}:reference:{id}", parent.rsplit('/').next().unwrap_or(parent)),
    };
    Ok(json!({
        "ociVersion": "1.0.2", "root": {"path": "rootfs", "readonly": false},
        "process": {
            "terminal": false, "user": {"uid": 0, "gid": 0}, "args": ["/bin/sleep", "100000"], "cwd": "/",
            "env": ["PATH=/usr/sbin:/usr/bin:/sbin:/bin"],
            "capabilities": {"bounding": caps, "effective": caps, "permitted": caps},
        },
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"]},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "strictatime", "mode=755", "size=65536k"]},
            {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["nosuid", "noexec", "nodev", mode]},
            {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["nosuid", "noexec", "nodev", "relatime", mode]},
        ],
        "linux": {"cgroupsPath": path, "namespaces": namespaces, "resources": resources},
    }))
}
