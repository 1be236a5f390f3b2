//! The reference for what a process in a container sees: Debian's runc on the same host with the same root and
//! configuration. A shell script prints facts as lines, and [`parse`] makes them comparable.

pub(crate) mod cgroups;

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};
use serde_json::json;

use crate::context::Context;
use crate::expect::ensure;
use crate::isolation::command;
use crate::shapes::unique;

/// Last line of a report.
pub(crate) const END: &str = "END-OF-REPORT";

/// The parameters of a comparison.
#[derive(Debug, Clone, Default)]
pub(crate) struct Case {
    /// uid, gid and supplementary groups; root if `None`.
    pub(crate) user: Option<(u32, u32, Vec<u32>)>,
    /// `noNewPrivileges`.
    pub(crate) no_new_privs: bool,
    /// All capabilities.
    pub(crate) privileged: bool,
    /// `oomScoreAdj`.
    pub(crate) oom_score_adj: i64,
    /// A user namespace that maps 65,536 ids from this one on; with it, network and UTS namespaces of its own.
    pub(crate) mapping: Option<u32>,
}

/// What the two processes of the reference report.
#[derive(Debug)]
pub(crate) struct Reference {
    /// The container's init.
    pub(crate) init: BTreeMap<String, String>,
    /// An exec'd process.
    pub(crate) exec: BTreeMap<String, String>,
}

/// The script that prints the report; init then sleeps.
pub(crate) fn script(init: bool) -> String {
    // The status is read by the shell itself: while it starts another program, its signals are blocked for a moment.
    let report = r#"p=/proc/$$
ls -l $p/fd
while IFS= read -r line; do printf 'status %s\n' "$line"; done < $p/status
sed 's/^/limit /' $p/limits
sed 's/^/cgroup /' $p/cgroup
for n in cgroup ipc mnt net pid pid_for_children time time_for_children user uts; do echo "ns $n: $(readlink $p/ns/$n)"; done
for f in uid_map gid_map setgroups; do echo "$f: $(tr -s ' \n' ' ' < $p/$f)"; done
for f in oom_score_adj coredump_filter personality loginuid sessionid timerslack_ns; do echo "$f: $(cat $p/$f 2>&1)"; done
env | sort | sed 's/^/env /;s/=/: /'
echo "umask: $(umask)"
echo "cwd: $(pwd)"
echo "stat: $(sed 's/.*) //' $p/stat)"
echo "pid: $$"
echo "session keyring: $(grep -c ' _ses[.]' /proc/keys | sed 's/^[1-9].*/yes/')"
echo "affinity: $(taskset -p $$ 2>&1 | sed 's/.*: //')"
"#;
    let end = format!("echo {END}\n");
    if init { format!("{report}{end}exec sleep 100000\n") } else { format!("{report}{end}") }
}

/// Facts by name. `leaf` is the name of the container's cgroup, which differs by nature, as do pids, memory
/// and namespace numbers. The line of a hybrid host's unified hierarchy is skipped: copepod leaves it to the
/// service manager.
#[expect(clippy::too_many_lines, reason = "a list of names, and one branch for each kind of line")]
pub(crate) fn parse(text: &str, leaf: &str) -> BTreeMap<String, String> {
    let mut facts = BTreeMap::new();
    let volatile = [
        "Pid",
        "PPid",
        "Tgid",
        "Ngid",
        "NSpid",
        "NStgid",
        "NSpgid",
        "NSsid",
        "State",
        "FDSize",
        "Threads",
        "SigQ",
        "Name",
        "TracerPid",
        "voluntary_ctxt_switches",
        "nonvoluntary_ctxt_switches",
        "HugetlbPages",
        "x86_Thread_features",
        "x86_Thread_features_locked",
    ];
    for line in text.lines().take_while(|l| *l != END) {
        if let Some(rest) = line.strip_prefix("status ") {
            let Some((name, value)) = rest.split_once(':') else { continue };
            if !volatile.contains(&name) && !name.starts_with("Vm") && !name.starts_with("Rss") {
                facts.insert(
                    format!("status {name}"),
                    if name == "SigIgn" { without_internal(value) } else { value.trim().to_owned() },
                );
            }
        } else if let Some(rest) = line.strip_prefix("limit ") {
            let words: Vec<&str> = rest.split("  ").map(str::trim).filter(|w| !w.is_empty()).collect();
            if let Some((name, values)) = words.split_first() {
                facts.insert(format!("limit {name}"), values.join(" "));
            }
        } else if let Some(rest) = line.strip_prefix("cgroup ") {
            let mut parts = rest.splitn(3, ':');
            if let (Some(_), Some(controller), Some(path)) = (parts.next(), parts.next(), parts.next())
                && (!controller.is_empty() || crate::cgroup::is_v2())
            {
                // With the driver systemd our leaves are in a scope of their pod, runc's beside it.
                let is_scope = |part: &&str| part.starts_with("copepod-") && part.ends_with(".scope");
                let parts: Vec<&str> = path.split('/').filter(|part| !is_scope(part)).collect();
                facts.insert(format!("cgroup {controller}"), parts.join("/").replace(leaf, "LEAF"));
            }
        } else if let Some(rest) = line.strip_prefix("ns ") {
            if let Some((name, link)) = rest.split_once(": ") {
                let host = fs::read_link(format!("/proc/self/ns/{name}")).unwrap_or_default();
                facts.insert(
                    format!("ns {name}"),
                    String::from(if host == Path::new(link) { "the host's" } else { "its own" }),
                );
            }
        } else if let Some((head, link)) = line.split_once(" -> ") {
            // A line of `ls -l`, run without a pipe, so that the shell has only the descriptors it was given.
            let number = head.rsplit(' ').next().unwrap_or(head);
            facts.insert(format!("fd {number}"), link.split(':').next().unwrap_or(link).to_owned());
        } else if let Some(rest) = line.strip_prefix("stat: ") {
            let words: Vec<&str> = rest.split(' ').collect();
            let word = |n: usize| words.get(n).copied().unwrap_or_default();
            // Fields of proc_pid_stat(5) after the name: 3 state, 4 parent, 5 group, 6 session, 7 tty.
            facts.insert(String::from("leads its session"), (word(2) == word(3)).to_string());
            facts.insert(String::from("tty"), word(4).to_owned());
            facts.insert(String::from("priority and nice"), format!("{} {}", word(15), word(16)));
            facts.insert(String::from("rt priority and policy"), format!("{} {}", word(37), word(38)));
            facts.insert(String::from("exit signal"), word(35).to_owned());
        } else if let Some((name, value)) = line.split_once(": ") {
            // The container's host name differs between the two; the rest of the environment must not.
            if name != "pid" && name != "env HOSTNAME" {
                facts.insert(name.to_owned(), value.to_owned());
            }
        }
    }
    facts
}

/// A signal set without 32 and 33, which libc uses internally: `env` cannot reset them for the reference.
fn without_internal(set: &str) -> String {
    u64::from_str_radix(set.trim(), 16)
        .map_or_else(|_| set.to_owned(), |bits| format!("{:016x}", bits & !(3 << 31)))
}

/// Runs the script as init and as exec in a runc container.
pub(crate) async fn runc(cx: &Context, case: &Case, cgroup_parent: &str) -> Result<Reference> {
    let id = format!("reference{}", unique());
    let bundle = cx.volume("runc")?;
    let rootfs = bundle.join("rootfs");
    fs::create_dir_all(&rootfs)?;
    if let Some(root) = case.mapping {
        std::os::unix::fs::chown(&rootfs, Some(root), Some(root))?;
    }
    unpack_busybox(cx, &bundle)?;
    fs::write(bundle.join("config.json"), spec(case, cgroup_parent, &id)?.to_string())?;
    let state = bundle.join("state").display().to_string();
    let folder = bundle.display().to_string();
    let work = tokio::task::spawn_blocking(move || -> Result<Reference> {
        // Detached, so that it gets our descriptors and no copies, and the signal dispositions of a service.
        let mut child = Command::new("env")
            .args(["--default-signal", "runc", "--root", &state, "run", "--detach", "--bundle", &folder, &id])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("start runc (Debian package runc)")?;
        let outcome = report(&mut child, &state, &id);
        drop(Command::new("runc").args(["--root", &state, "delete", "--force", &id]).status());
        drop(child.kill());
        drop(child.wait());
        outcome
    });
    crate::wait::timeout(crate::wait::secs(30), work).await.context("runc took over 30 s")??
}

/// Fills the root of a bundle with the image that tests use most.
fn unpack_busybox(cx: &Context, bundle: &Path) -> Result<()> {
    let (archive, rootfs) = (bundle.join("layer.tar.gz"), bundle.join("rootfs"));
    fs::create_dir_all(&rootfs)?;
    fs::write(&archive, &cx.fixture.layers.busybox.blob.bytes)?;
    command("tar", &["-xzf", &archive.display().to_string(), "-C", &rootfs.display().to_string()]).map(drop)
}

fn report(child: &mut std::process::Child, state: &str, id: &str) -> Result<Reference> {
    let mut text = String::new();
    let out = child.stdout.take().context("no stdout")?;
    for line in BufReader::new(out).lines() {
        let line = line?;
        text.push_str(&line);
        text.push('\n');
        if line == END {
            break;
        }
    }
    if !text.contains(END) {
        let mut said = String::new();
        if let Some(mut e) = child.stderr.take() {
            std::io::Read::read_to_string(&mut e, &mut said)?;
        }
        bail!("runc's container printed no whole report, but {text:?}, and to stderr {said:?}");
    }
    let exec = Command::new("env")
        .args([
            "--default-signal",
            "runc",
            "--root",
            state,
            "exec",
            "--detach",
            id,
            "/bin/sh",
            "-c",
            &script(false),
        ])
        .stdin(Stdio::null())
        .output()
        .context("runc exec")?;
    ensure!(exec.status.success(), "runc exec failed: {}", String::from_utf8_lossy(&exec.stderr));
    Ok(Reference { init: parse(&text, id), exec: parse(&String::from_utf8_lossy(&exec.stdout), id) })
}

/// The same container as with CRI, as an OCI spec.
fn spec(case: &Case, cgroup_parent: &str, id: &str) -> Result<serde_json::Value> {
    let caps: Vec<String> = if case.privileged { host_caps()? } else { default_caps() };
    let user = case.user.as_ref().map_or_else(
        || json!({"uid": 0, "gid": 0, "additionalGids": [0]}),
        // CRI adds the primary group and the user's groups in /etc/group.
        |(uid, gid, groups)| {
            let all = [vec![*gid], groups.clone(), vec![50_000]].concat();
            json!({"uid": uid, "gid": gid, "additionalGids": all})
        },
    );
    let mut process = json!({
        "terminal": false, "user": user, "args": ["/bin/sh", "-c", script(true)], "cwd": "/tmp",
        "env": ["PATH=/usr/sbin:/usr/bin:/sbin:/bin", "HOSTNAME=x", "MINE=a b"],
        "capabilities": {"bounding": caps, "effective": caps, "permitted": caps},
        "noNewPrivileges": case.no_new_privs, "oomScoreAdj": case.oom_score_adj,
    });
    if let (Some((0, ..)) | None, Some(env)) =
        (&case.user, process.get_mut("env").and_then(|e| e.as_array_mut()))
    {
        env.push(json!("HOME=/root"));
    } else if let Some(env) = process.get_mut("env").and_then(|e| e.as_array_mut()) {
        env.push(json!("HOME=/home/alice"));
    }
    let mode = if case.privileged { "rw" } else { "ro" };
    let mut namespaces = vec![json!({"type": "pid"}), json!({"type": "ipc"}), json!({"type": "mount"})];
    // As with other runtimes, a privileged container has the host's.
    if crate::cgroup::is_v2() && !case.privileged {
        namespaces.push(json!({"type": "cgroup"}));
    }
    let mut maps = Vec::new();
    if let Some(first) = case.mapping {
        namespaces.extend(["user", "network", "uts"].map(|kind| json!({"type": kind})));
        maps.push(json!({"containerID": 0, "hostID": first, "size": 65_536}));
    }
    Ok(json!({
        "ociVersion": "1.0.2", "process": process, "root": {"path": "rootfs", "readonly": false},
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"]},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "strictatime", "mode=755", "size=65536k"]},
            {"destination": "/dev/pts", "type": "devpts", "source": "devpts", "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]},
            {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["nosuid", "noexec", "nodev", mode]},
        ],
        "linux": {
            "cgroupsPath": format!("{cgroup_parent}/{id}"),
            "namespaces": namespaces, "uidMappings": maps, "gidMappings": maps,
        },
    }))
}

/// The capabilities of a container that asks for none.
fn default_caps() -> Vec<String> {
    let names = [
        "CHOWN",
        "DAC_OVERRIDE",
        "FSETID",
        "FOWNER",
        "MKNOD",
        "NET_RAW",
        "SETGID",
        "SETUID",
        "SETFCAP",
        "SETPCAP",
        "NET_BIND_SERVICE",
        "SYS_CHROOT",
        "KILL",
        "AUDIT_WRITE",
    ];
    names.iter().map(|c| format!("CAP_{c}")).collect()
}

/// Names of all capabilities that this host's processes can have; the order of `names` is that of their numbers.
#[expect(clippy::too_many_lines, reason = "a table of names")]
fn host_caps() -> Result<Vec<String>> {
    let mask =
        u64::from_str_radix(crate::proc::status(std::process::id())?.get("CapBnd").context("CapBnd")?, 16)?;
    let names = [
        "CHOWN",
        "DAC_OVERRIDE",
        "DAC_READ_SEARCH",
        "FOWNER",
        "FSETID",
        "KILL",
        "SETGID",
        "SETUID",
        "SETPCAP",
        "LINUX_IMMUTABLE",
        "NET_BIND_SERVICE",
        "NET_BROADCAST",
        "NET_ADMIN",
        "NET_RAW",
        "IPC_LOCK",
        "IPC_OWNER",
        "SYS_MODULE",
        "SYS_RAWIO",
        "SYS_CHROOT",
        "SYS_PTRACE",
        "SYS_PACCT",
        "SYS_ADMIN",
        "SYS_BOOT",
        "SYS_NICE",
        "SYS_RESOURCE",
        "SYS_TIME",
        "SYS_TTY_CONFIG",
        "MKNOD",
        "LEASE",
        "AUDIT_WRITE",
        "AUDIT_CONTROL",
        "SETFCAP",
        "MAC_OVERRIDE",
        "MAC_ADMIN",
        "SYSLOG",
        "WAKE_ALARM",
        "BLOCK_SUSPEND",
        "AUDIT_READ",
        "PERFMON",
        "BPF",
        "CHECKPOINT_RESTORE",
    ];
    Ok(names
        .iter()
        .enumerate()
        .filter(|(n, _)| mask >> n & 1 == 1)
        .map(|(_, c)| format!("CAP_{c}"))
        .collect())
}
