//! The machines that nodes run on. The first is the environment of the tests ([`crate::isolation`]). The second has a
//! mount and a network namespace of its own, with a cable (a veth pair) to the first, which is its default gateway;
//! processes, files and the control groups are those of the first, so its node has folders and a cgroup root of its
//! own.

use std::ffi::OsStr;
use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, PoisonError};

use anyhow::{Context as _, Result};

use crate::cgroup;
use crate::expect::ensure;
use crate::isolation::{NODE_IP, command};
use crate::shapes::CGROUP_PARENT;
use crate::wait;

/// The first machine's end of the cable, and its address (TEST-NET-2, RFC 5737).
const CABLE: [&str; 2] = ["cable", "198.51.100.1"];
/// The second machine's address.
const SECOND: &str = "198.51.100.2";

/// A machine. The second one's namespaces end when it is dropped, unless a process of a node is left in them.
#[derive(Debug)]
pub(crate) struct Machine {
    /// The name of its node in Kubernetes.
    pub(crate) name: &'static str,
    /// Its address.
    pub(crate) address: &'static str,
    /// The address at which it reaches what listens on all addresses of the first machine.
    pub(crate) neighbour: &'static str,
    /// The cgroup below which kubelet makes its own: `/`, or a path.
    pub(crate) cgroup_root: String,
    /// The process that keeps the namespaces of the second machine.
    holder: Option<Mutex<Child>>,
}

impl Machine {
    /// The environment of the tests.
    pub(crate) fn first() -> Self {
        let (name, cgroup_root) = ("node1", String::from("/"));
        Self { name, address: NODE_IP, neighbour: "127.0.0.1", cgroup_root, holder: None }
    }

    /// A second machine beside it.
    pub(crate) fn second() -> Result<Self> {
        let cgroup_root = format!("{}/machine2", *CGROUP_PARENT);
        // kubelet does not make its root.
        for hierarchy in cgroup::hierarchies() {
            fs::create_dir_all(hierarchy.join(cgroup_root.trim_start_matches('/')))?;
        }
        let holder = Some(Mutex::new(boot()?));
        Ok(Self { name: "node2", address: SECOND, neighbour: NODE_IP, cgroup_root, holder })
    }

    /// The first process in its namespaces; `None` for the first machine.
    fn holder(&self) -> Option<u32> {
        let holder = self.holder.as_ref()?;
        Some(holder.lock().unwrap_or_else(PoisonError::into_inner).id())
    }

    /// A command that is executed on it; its pid is that of the program.
    pub(crate) fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let Some(holder) = self.holder() else { return Command::new(program) };
        let mut command = Command::new("nsenter");
        command.arg("--target").arg(holder.to_string()).args(["--mount", "--net", "--"]).arg(program);
        command
    }

    /// Runs a tool on it as [`command`] does.
    pub(crate) fn run(&self, program: &str, arguments: &[&str]) -> Result<String> {
        let Some(holder) = self.holder() else { return command(program, arguments) };
        let holder = holder.to_string();
        let enter = ["--target", holder.as_str(), "--mount", "--net", "--", program];
        command("nsenter", &[enter.as_slice(), arguments].concat())
    }

    /// What copepod's configuration needs there, before the first section: process 1 is not in the second machine's
    /// namespaces.
    pub(crate) fn configuration(&self) -> &'static str {
        if self.holder.is_some() { "mount_namespace = \"self\"\n" } else { "" }
    }

    /// The list of its mounts.
    pub(crate) fn mountinfo(&self) -> PathBuf {
        let process = self.holder().map_or_else(|| String::from("self"), |pid| pid.to_string());
        Path::new("/proc").join(process).join("mountinfo")
    }

    /// The second machine's power failure and next boot, except that its node's processes must have been killed and /run
    /// been emptied: it has new namespaces, without mounts, interfaces and firewall rules of the node.
    pub(crate) fn reboot(&self) -> Result<()> {
        let holder = self.holder.as_ref().context("the first machine cannot reboot")?;
        let mut holder = holder.lock().map_err(|_| anyhow::anyhow!("the holder's slot is poisoned"))?;
        halt(&mut holder)?;
        *holder = boot()?;
        Ok(())
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if let Some(holder) = &self.holder {
            drop(halt(&mut holder.lock().unwrap_or_else(PoisonError::into_inner)));
        }
    }
}

/// Kills the holder. The cable goes with the network namespace, which the kernel removes later.
fn halt(holder: &mut Child) -> Result<()> {
    drop(holder.kill());
    wait::ended(holder, wait::secs(10))?;
    // It does not exist any more if the kernel was faster.
    drop(command("ip", &["link", "del", CABLE[0]]));
    Ok(())
}

/// Makes the namespaces and the cable; the process that keeps them.
fn boot() -> Result<Child> {
    let script = "mount --make-rshared / && echo made && exec sleep infinity";
    let mut holder = Command::new("unshare")
        .args(["--mount", "--net", "--propagation", "private", "--", "/bin/sh", "-c", script])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .context("run unshare (package util-linux)")?;
    let made = connect(&mut holder);
    if made.is_err() {
        drop(halt(&mut holder));
    }
    made.map(|()| holder)
}

fn connect(holder: &mut Child) -> Result<()> {
    let mut line = String::new();
    BufReader::new(holder.stdout.take().context("no standard output")?).read_line(&mut line)?;
    ensure!(line == "made\n", "unshare has not made the namespaces: {line:?}");
    let pid = holder.id().to_string();
    let [cable, gateway] = CABLE;
    command("ip", &["link", "add", cable, "type", "veth", "peer", "name", "eth0", "netns", &pid])?;
    command("ip", &["addr", "add", &format!("{gateway}/24"), "dev", cable])?;
    command("ip", &["link", "set", cable, "up"])?;
    let inside = format!(
        "ip link set lo up && ip addr add {SECOND}/24 dev eth0 && ip link set eth0 up && \
         ip route add default via {gateway} && echo 1 > /proc/sys/net/ipv4/ip_forward"
    );
    command("nsenter", &["--target", &pid, "--mount", "--net", "--", "/bin/sh", "-c", &inside])?;
    Ok(())
}
