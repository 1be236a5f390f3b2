//! The world that tests run in: mount, network, PID, UTS and IPC namespaces of their own, made by `unshare`.
//!
//! `/` becomes a shared mount there (the build machines' own is private, and volumes that propagate need a
//! shared one), with a bpf file system at /sys/fs/bpf as systemd would mount it. The network has `lo` and one
//! interface with a default route, because kubelet looks for a route to find the node's address. When the
//! runner ends, PID 1 ends, and the kernel takes every process, mount, interface and firewall rule with it.
//! Cgroups and files are the host's: the census looks after those, and [`enter`] removes the cgroups of a run that
//! ended some other way.

use std::env;
use std::fs;
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail, ensure};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;
use tokio::signal::unix::{SignalKind, signal};

use crate::cgroup;
use crate::shapes::{CGROUP_PARENT, CGROUP_VARIABLE};

/// Set for everything that runs inside.
const MARK: &str = "COPEPOD_TEST_ISOLATED";
/// The node's address inside (TEST-NET-1, RFC 5737).
pub(crate) const NODE_IP: &str = "192.0.2.10";

/// Does this process run inside already?
pub(crate) fn inside() -> bool {
    env::var_os(MARK).is_some()
}

/// Runs this program again, with the same arguments, inside; `Ok(true)` if it succeeded there. However it ends, its
/// cgroups are gone afterwards: nothing else of it is the host's.
pub(crate) fn enter() -> Result<bool> {
    ensure!(nix::unistd::geteuid().is_root(), "these tests need root");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let outcome = runtime.block_on(run_inside());
    cgroup::destroy(&CGROUP_PARENT);
    outcome
}

async fn run_inside() -> Result<bool> {
    let me = env::current_exe().context("own path")?;
    // Ctrl-C goes to everybody of the terminal; who gets it first must not leave before the rest has ended.
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut child = tokio::process::Command::new("unshare")
        .args([
            "--mount",
            "--net",
            "--pid",
            "--fork",
            "--kill-child",
            "--uts",
            "--ipc",
            "--mount-proc",
            "--propagation",
            "private",
            "--",
        ])
        .arg(&me)
        .args(["init", "--"])
        .args(env::args_os().skip(1))
        .env(MARK, "1")
        .env(CGROUP_VARIABLE, &*CGROUP_PARENT)
        .spawn()
        .context("run unshare (package util-linux)")?;
    loop {
        tokio::select! {
            status = child.wait() => return Ok(status.context("wait for unshare")?.success()),
            _ = interrupt.recv() => {}
            _ = terminate.recv() => child.start_kill().context("kill unshare")?,
        }
    }
}

/// PID 1 inside: prepares the world, runs the tests, reaps whatever is orphaned meanwhile.
pub(crate) fn init(args: &[String]) -> Result<bool> {
    ensure!(std::process::id() == 1, "`init` is internal");
    prepare()?;
    let me = env::current_exe().context("own path")?;
    let child = Command::new(me).args(args).spawn().context("start the runner")?;
    let runner = Pid::from_raw(i32::try_from(child.id())?);
    loop {
        match waitpid(None::<Pid>, None) {
            Ok(WaitStatus::Exited(pid, code)) if pid == runner => return Ok(code == 0),
            Ok(WaitStatus::Signaled(pid, signal, _)) if pid == runner => {
                bail!("the runner was killed by {signal}")
            }
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(e) => bail!("waitpid: {e}"),
        }
    }
}

fn prepare() -> Result<()> {
    // As on a real node: volatile, and netns pins stay in here.
    command("mount", &["-t", "tmpfs", "-o", "mode=755", "tmpfs", "/run"])?;
    // sysfs shows the network namespace it was mounted in. One super block serves all mounts of a namespace:
    // this first one, writable, decides what later ones can be.
    fs::create_dir("/run/cgroup")?;
    command("mount", &["--rbind", "/sys/fs/cgroup", "/run/cgroup"])?;
    command("mount", &["-t", "sysfs", "sysfs", "/sys"])?;
    command("mount", &["--rbind", "/run/cgroup", "/sys/fs/cgroup"])?;
    command("umount", &["--recursive", "/run/cgroup"])?;
    command("mount", &["--make-rshared", "/"])?;
    if Path::new("/sys/fs/bpf").is_dir() {
        command("mount", &["-t", "bpf", "bpf", "/sys/fs/bpf"])?;
    }
    // Names that no test resolves must fail at once, and not after a resolver's patience.
    fs::write("/run/resolv.conf", "nameserver 127.0.0.1\n")?;
    if let Ok(real) = fs::canonicalize("/etc/resolv.conf") {
        command("mount", &["--bind", "/run/resolv.conf", &real.display().to_string()])?;
    }
    command("ip", &["link", "set", "lo", "up"])?;
    command("ip", &["link", "add", "eth0", "type", "veth", "peer", "name", "uplink"])?;
    command("ip", &["link", "set", "uplink", "up"])?;
    command("ip", &["addr", "add", &format!("{NODE_IP}/24"), "dev", "eth0"])?;
    command("ip", &["link", "set", "eth0", "up"])?;
    command("ip", &["route", "add", "default", "via", "192.0.2.1"])?;
    fs::write("/proc/sys/net/ipv4/ip_forward", "1").context("ip_forward")?;
    nix::unistd::sethostname("copepod-node").context("sethostname")?;
    Ok(())
}

/// Runs a tool to its end; its standard output, or an error with everything it said.
pub(crate) fn command(program: &str, args: &[&str]) -> Result<String> {
    let out = Command::new(program)
        .args(args)
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("run {program}"))?;
    if out.status.success() {
        return Ok(String::from_utf8_lossy(&out.stdout).into_owned());
    }
    let how = out
        .status
        .code()
        .map_or_else(|| format!("signal {:?}", out.status.signal()), |c| format!("exit code {c}"));
    bail!(
        "{program} {}: {how}: {}{}",
        args.join(" "),
        String::from_utf8_lossy(&out.stderr),
        String::from_utf8_lossy(&out.stdout)
    )
}
