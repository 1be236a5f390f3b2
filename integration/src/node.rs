//! One node: a copepod daemon with its own root, run folder, socket, CNI network and log.

use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use nix::sys::signal::Signal;

use crate::cgroup::{self, SHIMS};
use crate::cni::Network;
use crate::config::{self, Paths};
use crate::cri::Cri;
use crate::expect::ensure;
use crate::fixture::Fixture;
use crate::machine::Machine;
use crate::shapes::unique;
use crate::{proc, wait};

/// The parents of the cgroups of pods without a `cgroup_parent`: a folder, or a slice of systemd.
pub(crate) const DEFAULT_PARENTS: [&str; 2] = ["/copepod-pods", "/copepod.slice"];

/// Options of a test's node.
#[derive(Debug, Clone, Default)]
pub(crate) struct Options {
    /// Start without any CNI configuration.
    pub(crate) without_cni: bool,
    /// Additional lines of the configuration.
    pub(crate) extra: String,
    /// Log every call.
    pub(crate) log_calls: bool,
    /// Folder of another build's programs; the fixture's if `None`.
    pub(crate) bin: Option<PathBuf>,
    /// Where it runs; on the first machine if `None`.
    pub(crate) machine: Option<Arc<Machine>>,
}

/// Another runtime, used to validate the tests themselves.
#[derive(Debug, Clone)]
pub(crate) struct Peer {
    /// Its socket.
    pub(crate) socket: PathBuf,
    /// Its `certs.d`, where the test registries are added.
    pub(crate) certs: Option<PathBuf>,
}

/// A running node.
#[derive(Debug)]
pub(crate) struct Node {
    /// Its folders.
    pub(crate) paths: Paths,
    /// Its pod network.
    pub(crate) network: Network,
    /// Client of its socket.
    pub(crate) cri: Cri,
    /// Where it runs.
    pub(crate) machine: Arc<Machine>,
    bin: PathBuf,
    daemon: Mutex<Option<Child>>,
    /// Another runtime, whose processes are not ours.
    foreign: bool,
    /// Whether its folders were removed, the last step of its clean-up.
    wiped: AtomicBool,
}

/// Number of nodes of copepod that are not dropped yet.
static LIVING: AtomicUsize = AtomicUsize::new(0);

impl Node {
    /// Creates the folders and starts the daemon; returns when it responds.
    pub(crate) async fn start(fixture: &Fixture, options: &Options) -> Result<Self> {
        let number = unique();
        let dir = fixture.work().join(format!("node{number}"));
        let paths = Paths::new(&dir)?;
        let network = Network::new(&dir, number)?;
        if !options.without_cni {
            network.install()?;
        }
        let machine = options.machine.clone().unwrap_or_else(|| Arc::new(Machine::first()));
        config::hosts(&paths.certs, &fixture.registry, machine.neighbour)?;
        let bin = options.bin.as_ref().unwrap_or(&fixture.bin);
        let level = if options.log_calls { "debug" } else { "info" };
        let text = config::text(&paths, bin, &network, level, &options.extra);
        fs::write(&paths.config, format!("{}{text}", machine.configuration()))?;
        let cri = Cri::connect(&paths.socket)?;
        let (bin, daemon, wiped) = (bin.join("copepod"), Mutex::new(None), AtomicBool::new(false));
        LIVING.fetch_add(1, Ordering::Relaxed);
        let node = Self { paths, network, cri, machine, bin, daemon, foreign: false, wiped };
        node.launch().await?;
        Ok(node)
    }

    /// Uses a runtime that is running already.
    pub(crate) fn foreign(fixture: &Fixture, peer: &Peer) -> Result<Self> {
        let dir = fixture.work().join("foreign");
        let mut paths = Paths::new(&dir)?;
        let socket = peer.socket.clone();
        if let Some(certs) = &peer.certs {
            config::hosts(certs, &fixture.registry, "127.0.0.1")?;
        }
        let cri = Cri::connect(&socket)?;
        paths.socket = socket;
        let network = Network::new(&dir, unique())?;
        let (bin, daemon, wiped) = (PathBuf::new(), Mutex::new(None), AtomicBool::new(false));
        let machine = Arc::new(Machine::first());
        Ok(Self { paths, network, cri, machine, bin, daemon, foreign: true, wiped })
    }

    /// Whether it is another runtime, given by `--endpoint`.
    pub(crate) fn is_foreign(&self) -> bool {
        self.foreign
    }

    /// Starts the daemon if none is running, and waits until it responds.
    pub(crate) async fn launch(&self) -> Result<()> {
        let (program, args) = self.program();
        let mut command = self.machine.command(program);
        command.args(args);
        self.launch_by(command).await
    }

    /// The daemon's binary and its arguments.
    pub(crate) fn program(&self) -> (PathBuf, Vec<PathBuf>) {
        (self.bin.clone(), vec![PathBuf::from("--config"), self.paths.config.clone()])
    }

    /// Like [`Self::launch`], with a command of the test that finally executes [`Self::program`].
    pub(crate) async fn launch_by(&self, mut command: Command) -> Result<()> {
        let log = fs::OpenOptions::new().create(true).append(true).open(&self.paths.log)?;
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        self.spawn(command).await
    }

    /// Like [`Self::launch`], with another standard error.
    pub(crate) async fn launch_with_stderr(&self, stderr: Stdio) -> Result<()> {
        let (program, args) = self.program();
        let mut command = self.machine.command(program);
        command.args(args).stdin(Stdio::null()).stdout(Stdio::null()).stderr(stderr);
        self.spawn(command).await
    }

    async fn spawn(&self, mut command: Command) -> Result<()> {
        let child = command.spawn().with_context(|| format!("start {}", self.bin.display()))?;
        // Closes the test's descriptors that the command may hold: only the child has them now.
        drop(command);
        self.put(Some(child));
        wait::until("the daemon to answer", Duration::from_secs(15), || async {
            if let Some(code) = self.ended()? {
                bail!("copepod ended at once with {code}: {}", self.last_log(15));
            }
            Ok(Some(self.cri.version().await?))
        })
        .await
        .with_context(|| format!("copepod's log: {}", self.last_log(15)))?;
        Ok(())
    }

    fn put(&self, child: Option<Child>) {
        if let Ok(mut slot) = self.daemon.lock() {
            *slot = child;
        }
    }

    fn ended(&self) -> Result<Option<std::process::ExitStatus>> {
        let mut slot = self.daemon.lock().map_err(|_| anyhow::anyhow!("daemon slot poisoned"))?;
        Ok(match slot.as_mut() {
            Some(child) => child.try_wait()?,
            None => None,
        })
    }

    /// The daemon's pid.
    pub(crate) fn pid(&self) -> Result<u32> {
        let slot = self.daemon.lock().map_err(|_| anyhow::anyhow!("daemon slot poisoned"))?;
        Ok(slot.as_ref().context("no daemon is running")?.id())
    }

    /// Kills the daemon with SIGKILL; returns when it has ended.
    pub(crate) fn kill9(&self) -> Result<()> {
        let child = self.daemon.lock().map_err(|_| anyhow::anyhow!("daemon slot poisoned"))?.take();
        if let Some(mut child) = child {
            child.kill()?;
            wait::ended(&mut child, Duration::from_secs(10)).context("copepod after SIGKILL")?;
        }
        Ok(())
    }

    /// Sends SIGTERM; the daemon must exit with code 0 within 10 s.
    pub(crate) async fn terminate(&self) -> Result<()> {
        proc::signal(self.pid()?, Signal::SIGTERM)?;
        let status =
            wait::until("copepod to end after SIGTERM", Duration::from_secs(10), || async { self.ended() })
                .await?;
        self.put(None);
        ensure!(status.success(), "copepod ended with {status} after SIGTERM: {}", self.last_log(10));
        Ok(())
    }

    /// Stops the daemon with SIGTERM and starts a new one.
    pub(crate) async fn restart(&self) -> Result<()> {
        self.terminate().await?;
        self.launch().await
    }

    /// Kills the daemon and starts a new one.
    pub(crate) async fn crash(&self) -> Result<()> {
        self.kill9()?;
        self.launch().await
    }

    /// The last lines of the daemon's log.
    pub(crate) fn last_log(&self, lines: usize) -> String {
        let text = fs::read_to_string(&self.paths.log).unwrap_or_default();
        let all: Vec<&str> = text.lines().collect();
        all.get(all.len().saturating_sub(lines)..).unwrap_or_default().join("\n")
    }

    /// The shim of a pod, found by its arguments or its cgroup.
    pub(crate) fn shim(&self, pod: &str) -> Result<proc::Process> {
        let named =
            proc::all().into_iter().find(|p| p.comm.starts_with("copepod-shim") && p.args.contains(pod));
        if let Some(shim) = named {
            return Ok(shim);
        }
        cgroup::hierarchies()
            .iter()
            .flat_map(|h| cgroup::members(&h.join(SHIMS.trim_start_matches('/')).join(pod)))
            .filter_map(proc::one)
            .find(|p| p.comm.starts_with("copepod-shim"))
            .with_context(|| format!("pod {pod} has no shim"))
    }

    /// The pause process of a pod: the child of its shim that runs pause.
    pub(crate) fn pause(&self, pod: &str) -> Result<proc::Process> {
        let shim = self.shim(pod)?;
        proc::children(shim.pid)
            .into_iter()
            .find(|p| p.comm == "pause")
            .with_context(|| format!("pod {pod} has no pause"))
    }

    /// Stops and removes every pod; the error names those that could not be removed.
    pub(crate) async fn empty(&self) -> Result<()> {
        for pod in self.cri.pods(None).await.context("list pods to clean up")? {
            self.cri.drop_pod(&pod.id).await.with_context(|| format!("clean up pod {}", pod.id))?;
        }
        Ok(())
    }

    /// Repeats [`Self::empty`] until it succeeds, because a plugin or the daemon needs a while.
    pub(crate) async fn emptied(&self) -> Result<()> {
        wait::until("every pod to be removed", Duration::from_secs(30), || async {
            self.empty().await.map(Some)
        })
        .await
    }

    /// Kills and removes everything that the daemon could not clean up after a failure.
    pub(crate) fn raze(&self) {
        if self.foreign {
            return;
        }
        drop(self.kill9());
        for shim in proc::all().into_iter().filter(|p| p.comm.starts_with("copepod-shim")) {
            drop(proc::signal(shim.pid, Signal::SIGKILL));
        }
        cgroup::destroy(SHIMS);
        DEFAULT_PARENTS.into_iter().for_each(cgroup::destroy);
        cgroup::destroy(&crate::shapes::CGROUP_PARENT);
        if let Ok(pins) = fs::read_dir("/run/netns") {
            for pin in pins.flatten().filter(|p| p.file_name().to_string_lossy().starts_with("cni-")) {
                nix::mount::umount2(&pin.path(), nix::mount::MntFlags::MNT_DETACH).unwrap_or_default();
                drop(fs::remove_file(pin.path()));
            }
        }
        self.wipe();
    }

    /// Removes the bridge and the folders of a stopped node.
    pub(crate) fn wipe(&self) {
        drop(self.machine.run("ip", &["link", "del", &self.network.bridge]));
        drop(fs::remove_dir_all(&self.paths.run));
        drop(fs::remove_dir_all(&self.paths.dir));
        self.wiped.store(true, Ordering::Relaxed);
    }
}

/// Cleans up after a node that failed to start or was not stopped. Nothing tells to which node a shim belongs, so shims
/// are killed only when the last node is dropped, and then all of them.
impl Drop for Node {
    fn drop(&mut self) {
        drop(self.kill9());
        if self.foreign {
            return;
        }
        let last = LIVING.fetch_sub(1, Ordering::Relaxed) == 1;
        if !self.wiped.load(Ordering::Relaxed) {
            if last { self.raze() } else { self.wipe() }
        }
    }
}
