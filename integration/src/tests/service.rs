//! The daemon as a service of systemd: what it tells the service manager, and what its pods do not inherit from the unit.

use std::collections::VecDeque;
use std::fs;
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Mutex;
use std::time::Duration;

use anyhow::{Context as _, Result};
use nix::sys::ptrace;
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;

use crate::context::Context;
use crate::expect::ensure;
use crate::runner::{Test, test};
use crate::shapes::PodExt as _;
use crate::wait::{self, secs};
use crate::{cgroup, proc};

pub(super) fn tests() -> Vec<Test> {
    vec![
        test!(the_service_manager_is_told).own(),
        test!(the_watchdog_is_fed_while_the_daemon_works).own(),
        test!(pods_inherit_nothing_of_the_unit).own(),
    ]
}

/// The watchdog's period in these tests.
const PERIOD: Duration = Duration::from_secs(4);

/// The socket of a service manager.
#[derive(Debug)]
struct Manager {
    socket: UnixDatagram,
    path: PathBuf,
    /// Messages that nobody has waited for yet.
    received: Mutex<VecDeque<String>>,
}

impl Drop for Manager {
    fn drop(&mut self) {
        drop(fs::remove_file(&self.path));
    }
}

impl Manager {
    fn new(cx: &Context) -> Result<Self> {
        let path = cx.node.paths.run.join("notify");
        let socket = UnixDatagram::bind(&path)?;
        socket.set_nonblocking(true)?;
        Ok(Self { socket, path, received: Mutex::default() })
    }

    /// A command with the variables that systemd sets.
    fn variables<'a>(&self, command: &'a mut Command) -> &'a mut Command {
        command.env("NOTIFY_SOCKET", &self.path).env("WATCHDOG_USEC", PERIOD.as_micros().to_string())
    }

    /// Stops the node's daemon and starts one with the variables that systemd sets.
    async fn launch(&self, cx: &Context) -> Result<()> {
        cx.node.terminate().await?;
        let (program, args) = cx.node.program();
        let mut command = Command::new(program);
        self.variables(command.args(args));
        cx.node.launch_by(command).await
    }

    /// The next message, if there is one.
    fn next(&self) -> Option<String> {
        let mut received = self.received.lock().ok()?;
        let mut buffer = [0; 4096];
        while let Ok(length) = self.socket.recv(&mut buffer) {
            received.push_back(String::from_utf8_lossy(buffer.get(..length)?).into_owned());
        }
        received.pop_front()
    }

    /// The next message that begins so; others before it are dropped.
    async fn message(&self, start: &str) -> Result<String> {
        let found = || async { Ok(std::iter::from_fn(|| self.next()).find(|it| it.starts_with(start))) };
        wait::until(&format!("the message {start}"), secs(15), found).await
    }

    /// Number of messages that feed the watchdog within a time.
    async fn fed(&self, time: Duration) -> usize {
        let messages = || std::iter::from_fn(|| self.next());
        messages().for_each(drop);
        tokio::time::sleep(time).await;
        messages().filter(|it| it == "WATCHDOG=1").count()
    }
}

async fn the_service_manager_is_told(cx: Context) -> Result<()> {
    let manager = Manager::new(&cx)?;
    manager.launch(&cx).await?;
    let ready = manager.message("READY=1\n").await?;
    let socket = cx.node.paths.socket.display().to_string();
    ensure!(ready.contains("\nSTATUS=Serving") && ready.contains(&socket), "{ready:?}");
    proc::signal(cx.node.pid()?, Signal::SIGHUP)?;
    let reloading = manager.message("RELOADING=1\nMONOTONIC_USEC=").await?;
    ensure!(reloading.rsplit('=').next().is_some_and(|it| it.parse::<u64>().is_ok()), "{reloading:?}");
    let ready = manager.message("READY=1\n").await?;
    ensure!(ready.contains("was reloaded"), "{ready:?}");
    // A fault ends the reload too: systemd would wait for it.
    let text = fs::read_to_string(&cx.node.paths.config)?;
    fs::write(&cx.node.paths.config, format!("nonsense = 1\n{text}"))?;
    proc::signal(cx.node.pid()?, Signal::SIGHUP)?;
    let ready = manager.message("READY=1\n").await?;
    ensure!(ready.contains("was not reloaded"), "{ready:?}");
    fs::write(&cx.node.paths.config, text)?;
    cx.node.terminate().await?;
    manager.message("STOPPING=1\n").await?;
    cx.node.launch().await
}

/// Stops threads of another process, but not the process, until it is dropped on the thread that has made it.
struct Stopped(Vec<Pid>);

impl Stopped {
    fn threads(pid: u32, name: &str) -> Result<Self> {
        let mut stopped = Self(Vec::new());
        for task in fs::read_dir(format!("/proc/{pid}/task"))? {
            let task = task?;
            if fs::read_to_string(task.path().join("comm"))?.trim() != name {
                continue;
            }
            let id = Pid::from_raw(task.file_name().to_string_lossy().parse()?);
            ptrace::seize(id, ptrace::Options::empty()).with_context(|| format!("trace thread {id}"))?;
            stopped.0.push(id);
            ptrace::interrupt(id)?;
            waitpid(id, Some(WaitPidFlag::__WALL))?;
        }
        ensure!(!stopped.0.is_empty(), "process {pid} has no thread {name}");
        Ok(stopped)
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        for id in &self.0 {
            let _ = ptrace::detach(*id, None);
        }
    }
}

async fn the_watchdog_is_fed_while_the_daemon_works(cx: Context) -> Result<()> {
    let manager = Manager::new(&cx)?;
    manager.launch(&cx).await?;
    let pid = cx.node.pid()?;
    manager.message("WATCHDOG=1").await?;
    // At half of the period.
    let fed = manager.fed(3 * PERIOD).await;
    ensure!((5..=7).contains(&fed), "fed {fed} times in three periods");
    proc::signal(pid, Signal::SIGSTOP)?;
    let fed = manager.fed(PERIOD).await;
    proc::signal(pid, Signal::SIGCONT)?;
    ensure!(fed == 0, "fed {fed} times while the process was stopped");
    manager.message("WATCHDOG=1").await.context("after SIGCONT")?;
    // The threads that run calls have the process's name. Its other threads, those of the lanes, go on. The timer and the
    // socket exist, but a call would get no answer.
    let (stop, stopped) = std::sync::mpsc::channel::<()>();
    let (begun, begin) = tokio::sync::oneshot::channel();
    let tracing = std::thread::spawn(move || -> Result<()> {
        let threads = Stopped::threads(pid, "copepod")?;
        let _ = begun.send(());
        let _ = stopped.recv_timeout(10 * PERIOD);
        drop(threads);
        Ok(())
    });
    if begin.await.is_ok() {
        let fed = manager.fed(PERIOD).await;
        drop(stop);
        ensure!(fed == 0, "fed {fed} times while no call was answered");
    }
    tokio::task::spawn_blocking(|| tracing.join()).await?.map_err(|_| anyhow::anyhow!("panicked"))??;
    manager.message("WATCHDOG=1").await.context("after its threads go on")?;
    // Without the socket's path no client can connect.
    fs::rename(&cx.node.paths.socket, cx.node.paths.run.join("moved"))?;
    let problem = manager.message("STATUS=Probe failed").await?;
    ensure!(problem.contains("cannot connect to the daemon's own socket"), "{problem:?}");
    let fed = manager.fed(PERIOD).await;
    fs::rename(cx.node.paths.run.join("moved"), &cx.node.paths.socket)?;
    ensure!(fed == 0, "fed {fed} times while no client could connect");
    manager.message("STATUS=Serving").await?;
    ensure!(cx.node.pid()? == pid && proc::alive(pid), "the daemon has ended");
    cx.node.restart().await
}

/// The cgroup that stands for the unit's.
const UNIT: &str = "copepod-test-unit";
/// The hierarchies in which shims and pods leave it, by the names of their mount points: that of v2 or of systemd on v1, and
/// those whose limits and counters a unit has by default. On hybrid hosts they stay in the unit's cgroup of the hierarchy
/// `unified`, which has no controllers; systemd leaves them alone because of KillMode=process.
const LEFT: [&str; 4] = ["systemd", "cgroup", "memory", "pids"];
/// Its oom_score_adj. That of the packaged unit is low, which a test host may not allow.
const OOM_SCORE_ADJ: &str = "500";

async fn pods_inherit_nothing_of_the_unit(cx: Context) -> Result<()> {
    let manager = Manager::new(&cx)?;
    let units = cgroup::hierarchies()
        .into_iter()
        .filter(|it| it.file_name().is_some_and(|name| LEFT.iter().any(|it| name == *it)));
    let units: Vec<PathBuf> = units.map(|it| it.join(UNIT)).collect();
    // What an earlier run that failed has left.
    cgroup::destroy(UNIT);
    for unit in &units {
        fs::create_dir(unit).with_context(|| unit.display().to_string())?;
    }
    let checked = inherits_nothing(&cx, &manager, &units).await;
    drop(cx.node.kill9());
    // A killed process leaves its cgroups a moment later.
    let removed = wait::until("the unit's cgroups to be empty", secs(10), || async {
        for unit in units.iter().filter(|unit| unit.exists()) {
            fs::remove_dir(unit)
                .with_context(|| format!("{}: {:?}", unit.display(), cgroup::members(unit)))?;
        }
        Ok(Some(()))
    })
    .await;
    checked?;
    // While the pod runs: systemd would find none of its processes in the unit.
    removed?;
    cx.node.launch().await
}

async fn inherits_nothing(cx: &Context, manager: &Manager, units: &[PathBuf]) -> Result<()> {
    let seen = cx.node.paths.dir.join("plugin-environment");
    let body = format!("env > {}; exec /usr/lib/cni/bridge", seen.display());
    cx.node.network.script("bridge", &body)?;
    cx.node.terminate().await?;
    // As systemd starts a unit's process: in its cgroup, with its variables, oom_score_adj and sockets.
    let unit_procs: Vec<String> =
        units.iter().map(|it| it.join("cgroup.procs").display().to_string()).collect();
    let script = format!(
        "for procs in {}; do echo $$ > $procs || :; done; echo {OOM_SCORE_ADJ} > /proc/self/oom_score_adj; \
         umask 077; export LISTEN_PID=$$ WATCHDOG_PID=$$; exec 3</etc/passwd 9</etc/passwd; exec \"$@\"",
        unit_procs.join(" ")
    );
    let (program, args) = cx.node.program();
    let mut command = Command::new("sh");
    command.args(["-c", &script, "sh"]).arg(program).args(args);
    manager.variables(&mut command).env("LISTEN_FDS", "1").env("LISTEN_FDNAMES", "copepod");
    cx.node.launch_by(command).await?;
    manager.message("WATCHDOG=1").await.context("WATCHDOG_PID is the daemon's")?;
    let daemon = cx.node.pid()?;
    ensure!(
        units.iter().any(|unit| cgroup::members(unit).contains(&daemon)),
        "the daemon is in no cgroup of the unit"
    );
    let (pod, id, init) = cx.sleeping(cx.pod_config().own_network()).await?;
    let shim = cx.node.shim(&pod.id)?.pid;
    let pause = cx.node.pause(&pod.id)?.pid;
    let file = |pid: u32, name: &str| fs::read_to_string(format!("/proc/{pid}/{name}"));
    ensure!(file(daemon, "oom_score_adj")?.trim() == OOM_SCORE_ADJ);
    for (who, pid) in [("shim", shim), ("pause", pause), ("init", init)] {
        for unit in units {
            ensure!(!cgroup::members(unit).contains(&pid), "{who} is in {}", unit.display());
        }
        ensure!(file(pid, "oom_score_adj")?.trim() != OOM_SCORE_ADJ, "{who} has the daemon's oom_score_adj");
        ensure!(!proc::has_open(pid, "/etc/passwd".as_ref()), "{who} has the unit's descriptors");
    }
    ensure!(
        file(shim, "environ")?.is_empty() && file(pause, "environ")?.is_empty(),
        "variables of shim, pause"
    );
    let of_init = file(init, "environ")?;
    let of_exec = cx.cri.sh(&id, "env; umask").await?;
    let of_plugin = fs::read_to_string(&seen)?;
    ensure!(of_plugin.contains("CNI_COMMAND=ADD"), "the plugin has {of_plugin}");
    for (who, environment) in [("init", &of_init), ("an exec", &of_exec), ("a plugin", &of_plugin)] {
        for name in ["NOTIFY_SOCKET", "WATCHDOG_", "LISTEN_"] {
            ensure!(!environment.contains(name), "{who} has {name} in its environment: {environment}");
        }
    }
    ensure!(of_exec.ends_with("0022"), "the umask of an exec, the last line: {of_exec}");
    Ok(())
}
