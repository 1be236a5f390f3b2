//! ADD and DEL of a pod; in the modules: the loaded network and STATUS, CHECK and GC, DELs that have failed, and the host
//! ports that these still hold.

mod host_ports;
mod loaded;
mod lock;
mod pending;
mod upkeep;

use std::ffi::OsString;
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use model::PodId;
use pool::{Lane, Size};
use serde_json::{Map, Value};
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::{Instant, timeout};

use crate::CniConfig;
use crate::conf::{Network, PluginConf};
use crate::error::{ADVICE, Error, Failure, Verb};
use crate::input::{Attachment, capabilities, cni_args, plugin_input};
use crate::lease::{IFNAME, Lease, LeaseWithResult, Leases};
use crate::plugin::{self, Call};
use crate::result::AddResult;

use self::loaded::Loading;
use self::lock::Unfinished;
use self::pending::DelQueue;

pub use self::pending::{PendingDel, PendingDels, Released};
pub use self::upkeep::Pace;

/// CNI's error code for a container that is unknown or does not exist.
const UNKNOWN_CONTAINER: u64 = 3;
/// Maximum number of operations that wait for a thread: one per pod.
const WAITING: usize = 4096;

/// The client. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Cni(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    config: CniConfig,
    /// Used instead of the same fields of `config`, because they can change. Locked only to copy a value.
    plugins: RwLock<Plugins>,
    loading: Loading,
    /// Each ADD, DEL and CHECK of a pod takes one, GC takes all, STATUS none.
    slots: Semaphore,
    leases: Leases,
    /// Locked only to read or change a number.
    unfinished: Unfinished,
    pending: DelQueue,
    /// No GC of an earlier daemon runs any more.
    earlier_gc_ended: AtomicBool,
    /// Threads for reading leases and configurations and for starting plugins: each of these disks can hang.
    lane: Lane,
}

/// How plugins are run.
#[derive(Debug, Clone)]
struct Plugins {
    bin_dirs: Vec<PathBuf>,
    timeout: Duration,
}

/// The pod that a chain of plugins runs for.
struct Target<'a> {
    lease: &'a Lease,
    /// The lock on the lease, which the plugins inherit.
    lock: Option<Arc<OwnedFd>>,
    /// CNI_NETNS.
    netns: OsString,
}

/// Why a DEL has failed, and what it may have left.
struct Undone {
    error: Error,
    /// A plugin that has the pod's host ports has failed or was not run.
    host_ports: bool,
}

impl From<Error> for Undone {
    fn from(error: Error) -> Self {
        Self { error, host_ports: true }
    }
}

impl Cni {
    /// Creates a client, which is not ready until [`Cni::load`] or [`Cni::reload`] is called. Accesses nothing.
    pub fn new(config: CniConfig) -> Self {
        let loading = Loading::new(&config.conf_dir);
        let places = slots(&config);
        let leases = Leases::new(config.cache_dir.clone(), config.boot_id.clone());
        let lane = Lane::new(Size {
            name: "cni",
            kept_threads: 1,
            max_threads: 64,
            max_per_owner: 64,
            max_queued: WAITING,
        });
        let plugins = Plugins { bin_dirs: config.bin_dirs.clone(), timeout: config.timeout };
        let (plugins, unfinished, pending) =
            (RwLock::new(plugins), Unfinished::default(), DelQueue::new(places));
        let earlier_gc_ended = AtomicBool::new(false);
        Self(Arc::new(Inner {
            config,
            plugins,
            loading,
            slots: Semaphore::new(places),
            leases,
            unfinished,
            pending,
            earlier_gc_ended,
            lane,
        }))
    }

    /// Changes `bin_dirs` and `timeout` of [`CniConfig`] for operations that start from now on.
    pub fn set_plugins(&self, bin_dirs: Vec<PathBuf>, timeout: Duration) {
        *self.0.plugins.write().unwrap_or_else(PoisonError::into_inner) = Plugins { bin_dirs, timeout };
    }

    fn bin_dirs(&self) -> Vec<PathBuf> {
        self.0.plugins.read().unwrap_or_else(PoisonError::into_inner).bin_dirs.clone()
    }

    fn timeout(&self) -> Duration {
        self.0.plugins.read().unwrap_or_else(PoisonError::into_inner).timeout
    }

    /// The threads for this client's blocking work.
    pub fn lane(&self) -> &Lane {
        &self.0.lane
    }

    /// Attaches the pod to the network and returns its addresses in the plugins' order; there is at least
    /// one. A lease left by an earlier attempt for the same pod is released first, and so are pods whose DEL is due and who
    /// have the same host ports.
    ///
    /// # Errors
    /// After an error, plugins may have allocated something: call [`Cni::release`], which also repeats a DEL that
    /// fails ([`Cni::del`] alone does not).
    pub async fn add(&self, pod: &Attachment) -> Result<Vec<IpAddr>, Error> {
        let (args, capabilities) = (cni_args(pod)?, capabilities(pod)?);
        let network = self.network()?;
        if self.lease_of(&pod.pod).await?.is_some() {
            self.del(&pod.pod, Some(&pod.netns)).await?;
        }
        self.free_host_ports(&pod.pod, &capabilities).await?;
        self.wait_for_earlier_gc().await;
        let _slot = self.slot(&pod.pod, Verb::Add).await?;
        let deadline = self.deadline();
        let network = Network::clone(&network);
        let lease = Lease::new(pod.pod.clone(), pod.netns.clone(), args, capabilities, network);
        let lease = Arc::new(lease);
        let (stored, dirs) = (Arc::clone(&lease), self.bin_dirs());
        self.blocking(move |leases| {
            // DEL could not run a missing plugin either, so fail before anything is allocated.
            for plugin in &stored.network.plugins {
                plugin::find(plugin.kind(), &dirs)
                    .map_err(|failure| plugin_error(Verb::Add, &stored, plugin, failure))?;
            }
            leases.write(&stored)
        })
        .await?;

        let lock = self.lock(pod.pod.as_str()).await;
        let target = Target { lease: &lease, lock, netns: pod.netns.clone().into() };
        let mut result: Option<AddResult> = None;
        for plugin in &lease.network.plugins {
            let previous = result.as_ref().map(|result| &result.raw);
            let stdin = plugin_input(&lease.network, plugin, Some(&lease.capabilities), previous);
            let printed = self.call(Verb::Add, plugin, &stdin, &target, deadline).await;
            let parsed = printed.and_then(|bytes| {
                AddResult::parse(&bytes, lease.network.version)
                    .map_err(|reason| Failure::Garbage { reason, output: plugin::excerpt(&bytes) })
            });
            result = Some(parsed.map_err(|failure| plugin_error(Verb::Add, &lease, plugin, failure))?);
        }
        let result = result.unwrap_or_default();
        let raw = result.raw.clone();
        let id = pod.pod.clone();
        self.blocking(move |leases| leases.write_result(&id, &raw)).await?;
        let ips = result.ips(IFNAME);
        if ips.is_empty() {
            let (pod, network) = (pod.pod.clone(), lease.network.name.clone());
            return Err(Error::NoAddress { pod, network, interface: IFNAME });
        }
        Ok(ips)
    }

    /// Detaches the pod: runs DEL of all plugins in reverse order with ADD's arguments, even if one of them
    /// fails, the configuration has changed, or the network namespace is gone (`None`, or a path that is not
    /// a namespace any more). Only the first plugin, which gives the addresses back, waits until the others have
    /// succeeded, unless ADD has failed. Does nothing without a lease.
    ///
    /// # Errors
    /// All failures. The lease stays, and `del` can be called again.
    pub async fn del(&self, pod: &PodId, netns: Option<&Path>) -> Result<(), Error> {
        self.undo(pod, netns).await.map_err(|undone| undone.error)
    }

    /// As [`Cni::del`].
    async fn undo(&self, pod: &PodId, netns: Option<&Path>) -> Result<(), Undone> {
        let Some((lease, result)) = self.lease_of(pod).await? else {
            // There is no lease, but a daemon that was killed while writing one may have left an unfinished
            // file.
            return Ok(self.remove(pod).await?);
        };
        let lock = self.lock(pod.as_str()).await;
        let _slot = self.slot(pod, Verb::Del).await?;
        let netns = existing_netns(&self.0.lane, netns).await;
        let target = Target { lease: &lease, lock, netns };
        let previous = result.as_ref().filter(|_| lease.network.version.has_check());
        let (mut errors, mut host_ports) = (Vec::new(), false);
        for (index, plugin) in lease.network.plugins.iter().enumerate().rev() {
            let has_ports = plugin.wants(host_ports::CAPABILITY);
            // What the others have made for the pod's addresses (host ports, rules of a firewall) would serve the next pod
            // that gets them, and the repeated DEL would take it from that pod. A pod whose ADD has failed has served nobody,
            // and may be tried again until no address is left.
            if index == 0 && result.is_some() && !errors.is_empty() {
                host_ports |= has_ports;
                break;
            }
            let stdin = plugin_input(&lease.network, plugin, Some(&lease.capabilities), previous);
            match self.call(Verb::Del, plugin, &stdin, &target, self.deadline()).await {
                Ok(_) => {}
                // The plugin does not know the pod, so there is nothing to undo.
                Err(Failure::Refused { code: UNKNOWN_CONTAINER, .. }) => {}
                Err(failure) => {
                    host_ports |= has_ports;
                    errors.push(plugin_error(Verb::Del, &lease, plugin, failure));
                }
            }
        }
        Error::from_all(errors).map_err(|error| Undone { error, host_ports })?;
        Ok(self.remove(pod).await?)
    }

    /// Removes the lease.
    async fn remove(&self, pod: &PodId) -> Result<(), Error> {
        let id = pod.clone();
        self.blocking(move |leases| leases.remove(&id)).await?;
        self.0.unfinished.forget(pod.as_str());
        Ok(())
    }

    /// Pods with a lease, sorted. This includes pods whose ADD is running.
    ///
    /// # Errors
    /// If the folder of leases cannot be read.
    pub async fn leases(&self) -> Result<Vec<PodId>, Error> {
        self.blocking(Leases::list).await
    }

    fn deadline(&self) -> Instant {
        Instant::now() + self.timeout()
    }

    /// Waits until another chain of plugins may run.
    async fn slot(&self, pod: &PodId, verb: Verb) -> Result<SemaphorePermit<'_>, Error> {
        let _step = progress::enter("wait until fewer plugins of other pods run", ADVICE);
        let wait = self.timeout();
        match timeout(wait, self.0.slots.acquire()).await {
            Ok(Ok(permit)) => Ok(permit),
            // The semaphore is never closed, so the second case cannot occur.
            Err(_) | Ok(Err(_)) => Err(Error::Busy { pod: pod.clone(), verb, waited_ms: wait.as_millis() }),
        }
    }

    /// The lease of `pod` with its result. In place of a damaged lease it is one with the network that is loaded now: most
    /// plugins need no more than the pod's id to release what it has.
    async fn lease_of(&self, pod: &PodId) -> Result<Option<LeaseWithResult>, Error> {
        let id = pod.clone();
        let damaged = match self.blocking(move |leases| leases.get(&id)).await {
            Err(Error::Lease { source, .. }) if source.kind() == std::io::ErrorKind::InvalidData => source,
            other => return other,
        };
        let network = self.network()?;
        tracing::error!(%pod, %damaged, network = network.name, "a CNI lease is damaged: DEL is run with the network that is loaded now");
        let args = format!("IgnoreUnknown=1;K8S_POD_INFRA_CONTAINER_ID={pod}");
        let network = Network::clone(&network);
        Ok(Some((Lease::new(pod.clone(), PathBuf::new(), args, Map::new(), network), None)))
    }

    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Leases) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let _step = progress::enter("read or write CNI leases", "the disk of the daemon's root may hang");
        let leases = self.0.leases.clone();
        self.0.lane.run(move || work(&leases)).await.map_err(|error| Error::Lease {
            action: "use the folder of CNI leases",
            path: self.0.config.cache_dir.clone(),
            source: error.into(),
        })?
    }

    /// One command of one plugin, for no pod.
    fn call_for_none(
        &self,
        verb: Verb,
        plugin: &PluginConf,
        stdin: &Map<String, Value>,
        deadline: Instant,
    ) -> Call {
        Call {
            verb,
            kind: plugin.kind().to_owned(),
            bin_dirs: self.bin_dirs(),
            container: String::new(),
            ifname: String::new(),
            args: String::new(),
            netns: OsString::new(),
            lock: None,
            stdin: Value::Object(stdin.clone()).to_string().into_bytes(),
            deadline,
        }
    }

    async fn run(&self, call: Call) -> Result<Vec<u8>, Failure> {
        let _step = progress::enter(format!("CNI {} of plugin {}", call.verb, call.kind), ADVICE);
        plugin::run(&self.0.lane, call).await
    }

    /// As `run`, with the lock of this name, which the plugin inherits.
    async fn run_with_lock(&self, name: &str, call: Call) -> Result<Vec<u8>, Failure> {
        let locked = call.lock.is_some();
        if locked {
            self.0.unfinished.started(name);
        }
        let result = self.run(call).await;
        // After these failures a process may be left, which was killed and takes a moment to end.
        let killed = matches!(result, Err(Failure::Hung { .. } | Failure::Run { .. }));
        if locked && !killed {
            self.0.unfinished.ended(name);
        }
        result
    }

    /// Runs one command of one plugin for a pod.
    async fn call(
        &self,
        verb: Verb,
        plugin: &PluginConf,
        stdin: &Map<String, Value>,
        target: &Target<'_>,
        deadline: Instant,
    ) -> Result<Vec<u8>, Failure> {
        let Target { lease, lock, netns } = target;
        let call = Call {
            container: lease.pod.to_string(),
            ifname: lease.ifname.clone(),
            args: lease.args.clone(),
            netns: netns.clone(),
            lock: lock.clone(),
            ..self.call_for_none(verb, plugin, stdin, deadline)
        };
        self.run_with_lock(lease.pod.as_str(), call).await
    }
}

/// How many chains of plugins may run at once.
fn slots(config: &CniConfig) -> usize {
    config.max_parallel.clamp(1, Semaphore::MAX_PERMITS >> 3)
}

/// CNI_NETNS of a DEL: the path, or empty if it is not a namespace any more.
async fn existing_netns(lane: &Lane, netns: Option<&Path>) -> OsString {
    /// `f_type` of the namespaces' file system, from `<linux/magic.h>`.
    const NSFS_MAGIC: rustix::fs::FsWord = 0x6e73_6673;
    let Some(path) = netns.map(Path::to_path_buf) else {
        return OsString::new();
    };
    let check = lane.run(move || {
        let is_one = rustix::fs::statfs(&path).is_ok_and(|facts| facts.f_type == NSFS_MAGIC);
        if is_one { path.into_os_string() } else { OsString::new() }
    });
    check.await.unwrap_or_default()
}

fn plugin_error(verb: Verb, lease: &Lease, plugin: &PluginConf, failure: Failure) -> Error {
    let (plugin, network) = (plugin.kind().to_owned(), lease.network.name.clone());
    Error::Plugin { pod: Some(lease.pod.clone()), verb, plugin, network, failure: Box::new(failure) }
}
