//! The tests' environment: private mount, network, PID, UTS and IPC namespaces, created with unshare(1).
//!
//! `/` becomes a shared mount (propagating volumes need one, and build machines have a private `/`), with a
//! bpf file system at /sys/fs/bpf as systemd mounts it. The network has `lo` and one interface with a default
//! route, because kubelet uses that route to find the node's address. When the runner ends, PID 1 ends, and
//! the kernel removes all processes, mounts, interfaces and firewall rules with it. Cgroups and files belong
//! to the host: the census checks those, and [`enter`] removes the cgroups of a run that failed.
//!
//! With the systemd driver there is no PID namespace, because systemd is told pids: the first process of the environment
//! is then the reaper of all others, and kills them at the end.

use std::env;
use std::fs;
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};
use nix::mount::MsFlags;
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;
use tokio::signal::unix::{SignalKind, signal};

use crate::cgroup::{self, Driver};
use crate::expect::ensure;
use crate::proc;
use crate::shapes::{CGROUP_PARENT, CGROUP_VARIABLE};

/// Set for every process in the environment.
const MARK: &str = "COPEPOD_TEST_ISOLATED";
/// The node's address in it (TEST-NET-1, RFC 5737).
pub(crate) const NODE_IP: &str = "192.0.2.10";
/// The node's hostname in it.
const NODE_NAME: &str = "copepod-node";

/// Whether this process is already in the environment.
pub(crate) fn inside() -> bool {
    env::var_os(MARK).is_some()
}

/// Runs this program again in the environment with the same arguments; `Ok(true)` if it succeeded. Removes the
/// run's cgroups afterwards, however it ended.
pub(crate) fn enter() -> Result<bool> {
    ensure!(nix::unistd::geteuid().is_root(), "these tests need root");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let outcome = runtime.block_on(run_inside());
    cgroup::destroy(&CGROUP_PARENT);
    outcome
}

async fn run_inside() -> Result<bool> {
    let me = env::current_exe().context("own path")?;
    // Ctrl-C is sent to all processes of the terminal; this one must not exit before the others have ended.
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let processes: &[&str] = match cgroup::driver() {
        Driver::Cgroupfs => &["--pid", "--mount-proc"],
        Driver::Systemd => &[],
    };
    let mut child = tokio::process::Command::new("unshare")
        .args(["--mount", "--net", "--fork", "--kill-child", "--uts", "--ipc"])
        .args(["--propagation", "private"])
        .args(processes)
        .arg("--")
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

/// PID 1 of the environment: sets it up, runs the tests, and reaps orphans.
pub(crate) fn init(args: &[String]) -> Result<bool> {
    match cgroup::driver() {
        Driver::Cgroupfs => ensure!(std::process::id() == 1, "`init` is internal: it must run as PID 1"),
        Driver::Systemd => rustix::process::set_child_subreaper(Some(rustix::process::getpid()))?,
    }
    prepare()?;
    let me = env::current_exe().context("own path")?;
    let child = Command::new(me).args(args).spawn().context("start the runner")?;
    let outcome = reap_until(Pid::from_raw(i32::try_from(child.id())?));
    if cgroup::driver() == Driver::Systemd {
        kill_all();
    }
    outcome
}

/// Reaps orphans until the runner has ended.
fn reap_until(runner: Pid) -> Result<bool> {
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

/// Kills what is left of the run: it is below this process, because this one is the reaper.
fn kill_all() {
    for _ in 0..100 {
        let left = proc::children(std::process::id());
        if left.is_empty() {
            return;
        }
        for process in left {
            drop(proc::signal(process.pid, Signal::SIGKILL));
            let _reaped = waitpid(Pid::from_raw(process.pid.cast_signed()), None);
        }
    }
}

/// Mounts a tmpfs on /run, as on a real node, so that netns pins do not reach the host. The host's systemd stays reachable
/// if it is the driver of cgroups.
fn own_run() -> Result<()> {
    let new = "/run/copepod-test";
    fs::create_dir_all(new)?;
    command("mount", &["-t", "tmpfs", "-o", "mode=755", "tmpfs", new])?;
    if cgroup::driver() == Driver::Systemd {
        for name in ["dbus", "systemd"] {
            let inside = format!("{new}/{name}");
            fs::create_dir(&inside)?;
            command("mount", &["--rbind", &format!("/run/{name}"), &inside])?;
        }
    }
    // Not mount(8), which keeps a file in /run.
    nix::mount::mount(Some(new), "/run", None::<&str>, MsFlags::MS_MOVE, None::<&str>)
        .context("move the tmpfs to /run")
}

fn prepare() -> Result<()> {
    own_run()?;
    // sysfs shows the network namespace it was mounted in. All mounts of a namespace share one superblock, so
    // this first, writable mount decides the options of later ones.
    fs::create_dir("/run/cgroup")?;
    command("mount", &["--rbind", "/sys/fs/cgroup", "/run/cgroup"])?;
    command("mount", &["-t", "sysfs", "sysfs", "/sys"])?;
    command("mount", &["--rbind", "/run/cgroup", "/sys/fs/cgroup"])?;
    command("umount", &["--recursive", "/run/cgroup"])?;
    // Where AppArmor shows its profiles.
    if Path::new("/sys/kernel/security").is_dir() {
        command("mount", &["-t", "securityfs", "securityfs", "/sys/kernel/security"])?;
    }
    // Where SELinux shows its policy; the kernel makes the folder only if it has one.
    if Path::new("/sys/fs/selinux").is_dir() {
        command("mount", &["-t", "selinuxfs", "selinuxfs", "/sys/fs/selinux"])?;
    }
    command("mount", &["--make-rshared", "/"])?;
    if Path::new("/sys/fs/bpf").is_dir() {
        command("mount", &["-t", "bpf", "bpf", "/sys/fs/bpf"])?;
    }
    // Unknown names must fail at once, not after a resolver's time-out.
    fs::write("/run/resolv.conf", "nameserver 127.0.0.1\n")?;
    if let Ok(real) = fs::canonicalize("/etc/resolv.conf") {
        command("mount", &["--bind", "/run/resolv.conf", &real.display().to_string()])?;
    }
    // The node's name has an address, as on a real node. sudo writes a warning without one, which critest takes for an error.
    if let Ok(hosts) = fs::read_to_string("/etc/hosts") {
        fs::write("/run/hosts", format!("{hosts}{NODE_IP} {NODE_NAME}\n"))?;
        command("mount", &["--bind", "/run/hosts", "/etc/hosts"])?;
    }
    command("ip", &["link", "set", "lo", "up"])?;
    command("ip", &["link", "add", "eth0", "type", "veth", "peer", "name", "uplink"])?;
    command("ip", &["link", "set", "uplink", "up"])?;
    command("ip", &["addr", "add", &format!("{NODE_IP}/24"), "dev", "eth0"])?;
    command("ip", &["link", "set", "eth0", "up"])?;
    command("ip", &["route", "add", "default", "via", "192.0.2.1"])?;
    fs::write("/proc/sys/net/ipv4/ip_forward", "1").context("ip_forward")?;
    nix::unistd::sethostname(NODE_NAME).context("sethostname")?;
    Ok(())
}

/// Runs a tool and returns its standard output, or an error with all its output.
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
