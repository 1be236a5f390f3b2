//! ADD, CHECK and DEL of a pod; STATUS and GC of the network.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use model::{Dns, PodId, PortMapping, Protocol};
use pool::{Lane, Size};
use serde_json::{Map, Value, json};
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::{Instant, timeout};

use crate::conf::{self, Network, PluginConf, Version};
use crate::error::{Error, Failure, Verb};
use crate::lease::{Debt, IFNAME, Lease, Leases};
use crate::plugin::{self, Call};
use crate::result::Answer;
use crate::{CniConfig, Readiness};

/// Work that waits for a thread: one piece a pod.
const WAITING: usize = 4096;

/// What plugins are told about a pod.
#[derive(Debug, Clone)]
pub struct Attachment {
    /// The sandbox: CNI_CONTAINERID.
    pub pod: PodId,
    /// Pod name.
    pub name: String,
    /// Pod namespace.
    pub namespace: String,
    /// Pod uid.
    pub uid: String,
    /// The pinned network namespace.
    pub netns: PathBuf,
    /// Host ports, capability `portMappings`; those with host port 0 are left out.
    pub ports: Vec<PortMapping>,
    /// Capability `dns`.
    pub dns: Option<Dns>,
    /// Capability `cgroupPath`; empty is none.
    pub cgroup_parent: String,
    /// Capability `io.kubernetes.cri.pod-annotations`.
    pub annotations: BTreeMap<String, String>,
}

/// The client. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Cni(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    config: CniConfig,
    /// Changes while pods come and go; held for a copy only.
    plugins: RwLock<Plugins>,
    /// Held for a copy only, never over I/O.
    loaded: RwLock<Loaded>,
    slots: Semaphore,
    leases: Leases,
    /// Leases, configurations, and starting plugins: any of their disks can hang.
    lane: Lane,
}

/// How plugins are run.
#[derive(Debug, Clone)]
struct Plugins {
    bin_dirs: Vec<PathBuf>,
    timeout: Duration,
}

#[derive(Debug, Clone)]
struct Loaded {
    network: Option<Arc<Network>>,
    readiness: Readiness,
}

impl Loaded {
    fn is(&self, file: &Path, network: &Network) -> bool {
        self.readiness.file.as_deref() == Some(file) && self.network.as_deref() == Some(network)
    }
}

impl Cni {
    /// A client that is not ready until [`Cni::reload`]. Touches nothing.
    pub fn new(config: CniConfig) -> Self {
        let problem = Some(format!("{} has not been read yet", config.conf_dir.display()));
        let loaded = Loaded { network: None, readiness: Readiness { network: None, file: None, problem } };
        let slots = Semaphore::new(config.max_parallel.clamp(1, Semaphore::MAX_PERMITS));
        let leases = Leases::new(config.cache_dir.clone());
        let lane = Lane::new(Size { name: "cni", kept: 1, most: 64, each: 64, waiting: WAITING });
        let plugins = Plugins { bin_dirs: config.bin_dirs.clone(), timeout: config.timeout };
        let (plugins, loaded) = (RwLock::new(plugins), RwLock::new(loaded));
        Self(Arc::new(Inner { config, plugins, loaded, slots, leases, lane }))
    }

    /// From here on plugins are searched in `bin_dirs`, and each may take `timeout` (see [`CniConfig`]). Chains that
    /// run go on as they began.
    pub fn set_plugins(&self, bin_dirs: Vec<PathBuf>, timeout: Duration) {
        *self.0.plugins.write().unwrap_or_else(PoisonError::into_inner) = Plugins { bin_dirs, timeout };
    }

    fn bin_dirs(&self) -> Vec<PathBuf> {
        self.0.plugins.read().unwrap_or_else(PoisonError::into_inner).bin_dirs.clone()
    }

    fn timeout(&self) -> Duration {
        self.0.plugins.read().unwrap_or_else(PoisonError::into_inner).timeout
    }

    /// The threads that this client's blocking work is done on.
    pub fn lane(&self) -> &Lane {
        &self.0.lane
    }

    /// Reads the folder of configurations again and asks the plugins as [`Cni::status`] does. Pods keep the
    /// configuration they were added with.
    pub async fn reload(&self) -> Readiness {
        self.load().await;
        self.status().await
    }

    /// Reads the folder of configurations again, without asking any plugin.
    pub async fn load(&self) {
        let dir = self.0.config.conf_dir.clone();
        let name = dir.display().to_string();
        let work = self.0.lane.run(move || conf::load(&dir));
        let found = match timeout(self.timeout(), work).await {
            Ok(Ok(found)) => found,
            Ok(Err(error)) => Err(format!("{name}: {error}")),
            Err(_) => Err(format!("{name} does not answer")),
        };
        match found {
            // Nothing new: what STATUS said stays until it says something else.
            Ok((file, network)) if self.loaded().is(&file, &network) => {}
            Ok((file, network)) => {
                let asked = network.version < Version::V1_1_0;
                let problem =
                    (!asked).then(|| format!("plugins of {:?} have not answered STATUS", network.name));
                self.set(Loaded {
                    readiness: Readiness { network: Some(network.name.clone()), file: Some(file), problem },
                    network: Some(Arc::new(network)),
                });
            }
            Err(problem) => self.set(Loaded {
                network: None,
                readiness: Readiness { network: None, file: None, problem: Some(problem) },
            }),
        }
    }

    fn set(&self, loaded: Loaded) {
        *self.0.loaded.write().unwrap_or_else(PoisonError::into_inner) = loaded;
    }

    /// As the last [`Cni::reload`] or [`Cni::status`] found it; never waits.
    pub fn readiness(&self) -> Readiness {
        self.loaded().readiness
    }

    fn loaded(&self) -> Loaded {
        self.0.loaded.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Asks the plugins whether they can serve an ADD (STATUS; only in networks of CNI 1.1.0) and keeps the
    /// answer.
    pub async fn status(&self) -> Readiness {
        let before = self.loaded();
        let Some(network) = before.network.clone().filter(|network| network.version >= Version::V1_1_0)
        else {
            return before.readiness;
        };
        let mut problem = None;
        for plugin in &network.plugins {
            let stdin = execution(&network, plugin, None, None);
            if let Err(failure) = self.call(Verb::Status, plugin, &stdin, None, self.deadline()).await {
                problem = Some(format!("plugin {:?}: {}", plugin.kind(), whole(&failure)));
                break;
            }
        }
        let mut loaded = self.0.loaded.write().unwrap_or_else(PoisonError::into_inner);
        // A reload meanwhile knows better.
        if loaded.network.as_ref().is_some_and(|now| Arc::ptr_eq(now, &network)) {
            loaded.readiness.problem = problem;
        }
        loaded.readiness.clone()
    }

    /// Gives the pod a network and returns its addresses, at least one, in the plugins' order. A debt left from
    /// an earlier try of the same pod is paid first.
    ///
    /// # Errors
    /// After any error something may be owed: call [`Cni::del`].
    pub async fn add(&self, pod: &Attachment) -> Result<Vec<IpAddr>, Error> {
        let args = cni_args(pod)?;
        let loaded = self.loaded();
        let network = loaded.network.ok_or_else(|| Error::NotReady {
            reason: loaded.readiness.problem.unwrap_or_else(|| "no network is loaded".to_owned()),
        })?;
        if self.get_or_set_aside(&pod.pod).await?.is_some() {
            self.del(&pod.pod, Some(&pod.netns)).await?;
        }
        let _slot = self.slot(&pod.pod, Verb::Add).await?;
        let deadline = self.deadline();
        let network = Network::clone(&network);
        let lease = Lease::new(pod.pod.clone(), pod.netns.clone(), args, capabilities(pod), network);
        let lease = Arc::new(lease);
        let (debt, dirs) = (Arc::clone(&lease), self.bin_dirs());
        self.blocking(move |leases| {
            // A plugin that is not there could not be asked for its DEL either: nothing is begun.
            for plugin in &debt.network.plugins {
                plugin::find(plugin.kind(), &dirs)
                    .map_err(|failure| plugin_error(Verb::Add, &debt, plugin, failure))?;
            }
            leases.open(&debt)
        })
        .await?;

        let netns = pod.netns.clone().into_os_string();
        let mut answer: Option<Answer> = None;
        for plugin in &lease.network.plugins {
            let previous = answer.as_ref().map(|answer| &answer.raw);
            let stdin = execution(&lease.network, plugin, Some(&lease.capabilities), previous);
            let target = Some((&*lease, netns.clone()));
            let printed = self.call(Verb::Add, plugin, &stdin, target, deadline).await;
            let judged = printed.and_then(|bytes| {
                Answer::parse(&bytes, lease.network.version)
                    .map_err(|reason| Failure::Garbage { reason, output: plugin::excerpt(&bytes) })
            });
            answer = Some(judged.map_err(|failure| plugin_error(Verb::Add, &lease, plugin, failure))?);
        }
        let answer = answer.unwrap_or(Answer { raw: Map::new() });
        let result = answer.raw.clone();
        let id = pod.pod.clone();
        self.blocking(move |leases| leases.keep_result(&id, &result)).await?;
        let ips = answer.ips(IFNAME).unwrap_or_default();
        if ips.is_empty() {
            let (pod, network) = (pod.pod.clone(), lease.network.name.clone());
            return Err(Error::NoAddress { pod, network, interface: IFNAME });
        }
        Ok(ips)
    }

    /// Takes the pod's network back: all plugins in reverse order with what ADD was told, even when one fails,
    /// the configuration has changed or the network namespace is gone (`None`, or a path that is none any
    /// more). Nothing to do when nothing is owed.
    ///
    /// # Errors
    /// Every failure; the debt stays and `del` can be called again.
    pub async fn del(&self, pod: &PodId, netns: Option<&Path>) -> Result<(), Error> {
        let Some((lease, result)) = self.get_or_set_aside(pod).await? else {
            // Nothing is owed, but a daemon killed while it wrote the lease may have left half of one.
            let id = pod.clone();
            return self.blocking(move |leases| leases.close(&id)).await;
        };
        let _slot = self.slot(pod, Verb::Del).await?;
        let netns = living(&self.0.lane, netns).await;
        let previous = result.as_ref().filter(|_| lease.network.version >= Version::V0_4_0);
        let mut errors = Vec::new();
        for plugin in lease.network.plugins.iter().rev() {
            let stdin = execution(&lease.network, plugin, Some(&lease.capabilities), previous);
            let target = Some((&lease, netns.clone()));
            if let Err(failure) = self.call(Verb::Del, plugin, &stdin, target, self.deadline()).await {
                errors.push(plugin_error(Verb::Del, &lease, plugin, failure));
            }
        }
        Error::gathered(errors)?;
        let id = pod.clone();
        self.blocking(move |leases| leases.close(&id)).await
    }

    /// Asks the plugins whether the pod's network is still as ADD left it. Content where the network cannot be
    /// asked: before CNI 0.4.0, with `disableCheck`, or without a lease.
    ///
    /// # Errors
    /// The first plugin's that is not content.
    pub async fn check(&self, pod: &PodId, netns: &Path) -> Result<(), Error> {
        let Some((lease, result)) = self.get_or_set_aside(pod).await? else {
            return Ok(());
        };
        if lease.network.disable_check || lease.network.version < Version::V0_4_0 {
            return Ok(());
        }
        let _slot = self.slot(pod, Verb::Check).await?;
        let deadline = self.deadline();
        for plugin in &lease.network.plugins {
            let stdin = execution(&lease.network, plugin, Some(&lease.capabilities), result.as_ref());
            let target = Some((&lease, netns.as_os_str().to_owned()));
            self.call(Verb::Check, plugin, &stdin, target, deadline)
                .await
                .map_err(|failure| plugin_error(Verb::Check, &lease, plugin, failure))?;
        }
        Ok(())
    }

    /// Lets the plugins drop whatever belongs to none of `keep` (GC; only in networks of CNI 1.1.0 that do not
    /// refuse it).
    ///
    /// # Errors
    /// Every failure; all plugins are asked.
    pub async fn gc(&self, keep: &[PodId]) -> Result<(), Error> {
        let network = self.loaded().network;
        let Some(network) = network.filter(|it| it.version >= Version::V1_1_0 && !it.disable_gc) else {
            return Ok(());
        };
        let keep: Vec<Value> =
            keep.iter().map(|pod| json!({"containerID": pod.as_str(), "ifname": IFNAME})).collect();
        let mut errors = Vec::new();
        for plugin in &network.plugins {
            let mut stdin = execution(&network, plugin, None, None);
            stdin.insert("cni.dev/valid-attachments".to_owned(), keep.clone().into());
            if let Err(failure) = self.call(Verb::Gc, plugin, &stdin, None, self.deadline()).await {
                let (plugin, network) = (plugin.kind().to_owned(), network.name.clone());
                errors.push(Error::Plugin {
                    pod: None,
                    verb: Verb::Gc,
                    plugin,
                    network,
                    failure: Box::new(failure),
                });
            }
        }
        Error::gathered(errors)
    }

    /// Pods that a DEL is owed for, sorted. A pod that is added is among them.
    ///
    /// # Errors
    /// When the folder of leases cannot be read.
    pub async fn leases(&self) -> Result<Vec<PodId>, Error> {
        self.blocking(Leases::list).await
    }

    fn deadline(&self) -> Instant {
        Instant::now() + self.timeout()
    }

    /// A place among the chains that may run at once.
    async fn slot(&self, pod: &PodId, verb: Verb) -> Result<SemaphorePermit<'_>, Error> {
        let wait = self.timeout();
        match timeout(wait, self.0.slots.acquire()).await {
            Ok(Ok(permit)) => Ok(permit),
            // The semaphore is never closed: the second case cannot be, and would mean the same.
            Err(_) | Ok(Err(_)) => Err(Error::Busy { pod: pod.clone(), verb, waited_ms: wait.as_millis() }),
        }
    }

    /// The lease of `pod` with its result. One that is torn costs its DEL, not the pod: it is set aside.
    async fn get_or_set_aside(&self, pod: &PodId) -> Result<Option<Debt>, Error> {
        let id = pod.clone();
        self.blocking(move |leases| match leases.get(&id) {
            Err(Error::Lease { source, .. }) if source.kind() == std::io::ErrorKind::InvalidData => {
                let aside = leases.set_aside(&id)?;
                tracing::error!(pod = %id, %source, file = %aside.display(), "a CNI lease is torn: its DEL is lost");
                Ok(None)
            }
            other => other,
        })
        .await
    }

    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Leases) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let leases = self.0.leases.clone();
        self.0.lane.run(move || work(&leases)).await.map_err(|error| Error::Lease {
            action: "use",
            path: self.0.config.cache_dir.clone(),
            source: error.into(),
        })?
    }

    /// One plugin, one command. `target` is the lease and CNI_NETNS of the pod it concerns.
    async fn call(
        &self,
        verb: Verb,
        plugin: &PluginConf,
        stdin: &Map<String, Value>,
        target: Option<(&Lease, OsString)>,
        deadline: Instant,
    ) -> Result<Vec<u8>, Failure> {
        let mut call = Call {
            verb,
            kind: plugin.kind().to_owned(),
            bin_dirs: self.bin_dirs(),
            container: String::new(),
            ifname: String::new(),
            args: String::new(),
            netns: OsString::new(),
            stdin: Value::Object(stdin.clone()).to_string().into_bytes(),
            deadline,
        };
        if let Some((lease, netns)) = target {
            call.container = lease.pod.to_string();
            call.ifname.clone_from(&lease.ifname);
            call.args.clone_from(&lease.args);
            call.netns = netns;
        }
        plugin::run(&self.0.lane, call).await
    }
}

/// The configuration as one plugin gets it: its own, with the network's name and version, what it asked for of
/// the capabilities, and the answer before it.
fn execution(
    network: &Network,
    plugin: &PluginConf,
    capabilities: Option<&Map<String, Value>>,
    previous: Option<&Map<String, Value>>,
) -> Map<String, Value> {
    let mut body = plugin.body().clone();
    body.insert("name".to_owned(), network.name.clone().into());
    body.insert("cniVersion".to_owned(), network.version.as_str().into());
    let wanted: Map<String, Value> = capabilities
        .into_iter()
        .flatten()
        .filter(|(name, _)| plugin.wants(name))
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect();
    if !wanted.is_empty() {
        body.insert("runtimeConfig".to_owned(), wanted.into());
    }
    if let Some(previous) = previous {
        body.insert("prevResult".to_owned(), previous.clone().into());
    }
    body
}

/// Capability arguments, by the names that the other CRI runtimes use.
fn capabilities(pod: &Attachment) -> Map<String, Value> {
    let mut all = Map::new();
    let ports: Vec<Value> = pod
        .ports
        .iter()
        .filter(|port| port.host_port != 0)
        .map(|port| {
            let protocol = match port.protocol {
                Protocol::Tcp => "tcp",
                Protocol::Udp => "udp",
                Protocol::Sctp => "sctp",
            };
            json!({
                "hostPort": port.host_port,
                "containerPort": port.container_port,
                "protocol": protocol,
                "hostIP": port.host_ip,
            })
        })
        .collect();
    if !ports.is_empty() {
        all.insert("portMappings".to_owned(), ports.into());
    }
    if let Some(dns) = &pod.dns {
        let dns = json!({"servers": dns.servers, "searches": dns.searches, "options": dns.options});
        all.insert("dns".to_owned(), dns);
    }
    if !pod.cgroup_parent.is_empty() {
        all.insert("cgroupPath".to_owned(), pod.cgroup_parent.clone().into());
    }
    if !pod.annotations.is_empty() {
        all.insert("io.kubernetes.cri.pod-annotations".to_owned(), json!(pod.annotations));
    }
    all
}

/// CNI_ARGS. A value with a separator in it would add arguments of its own.
fn cni_args(pod: &Attachment) -> Result<String, Error> {
    let mut args = "IgnoreUnknown=1".to_owned();
    for (key, field, value) in [
        ("K8S_POD_NAMESPACE", "metadata.namespace", pod.namespace.as_str()),
        ("K8S_POD_NAME", "metadata.name", pod.name.as_str()),
        ("K8S_POD_INFRA_CONTAINER_ID", "id", pod.pod.as_str()),
        ("K8S_POD_UID", "metadata.uid", pod.uid.as_str()),
    ] {
        if value.contains([';', '=', '\0']) {
            let value = plugin::excerpt(value.as_bytes());
            return Err(Error::Attachment { pod: pod.pod.clone(), field, value });
        }
        args.extend([";", key, "=", value]);
    }
    Ok(args)
}

/// CNI_NETNS for a DEL: the path, or nothing when it is not a namespace any more.
async fn living(lane: &Lane, netns: Option<&Path>) -> OsString {
    /// `f_type` of namespaces' file system, from `<linux/magic.h>`.
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

/// A failure with its causes, in one line.
fn whole(failure: &Failure) -> String {
    let mut text = failure.to_string();
    let mut cause = std::error::Error::source(failure);
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}
