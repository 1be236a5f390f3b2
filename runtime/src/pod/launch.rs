//! Launches a pod in a chain of steps. The result of each step is a type, so that none can be left out.
//!
//! ```text
//! Recorded ──► Supervised ──► Isolated ──► Networked ──► committed
//!  intent       shim, hello    pause, netns   pin, ADD, sysctls    record Ready
//! ```
//! The intent is on disk before anything else is created, and is synced while the shim starts. If a step fails before the
//! shim is connected, the shim and then the records are removed. If a later step fails, the pod is torn down as by
//! StopPodSandbox ([`teardown`]: processes, network, shim, cgroups), and then its records are removed. In both cases the
//! error names the failed step.

use super::context::Context;
use super::life::LaunchFailed;
use super::plan::memfd;
use super::scope::{self, Holder};
use super::{foreign, teardown};
use crate::apparmor::Subject;
use crate::cgroups::{leaf_path, pod_parent};
use crate::error::Error;
use crate::seccomp::Compiled;
use crate::shims::{Connection, client, spawn};
use crate::{failpoint, files, lanes, netns};
use model::transition::{self, PodEvent};
use model::{NamespaceMode, PodRecord};
use network::Attachment;
use pool::Lane;
use std::future::Future;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::DirBuilderExt as _;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinHandle;
use wire::{Reply, Request};

/// Time limit from the shim's execve to its hello, which takes milliseconds, or seconds on a machine that swaps.
const GREETING: Duration = Duration::from_secs(10);
/// How long a shim whose connection has ended may take to exit.
const EXIT: Duration = Duration::from_secs(1);
/// Time limit for creating the namespaces and executing pause.
const PAUSE: Duration = Duration::from_secs(10);

/// The step in which a failed launch is undone, as users see it.
const UNDO: &str = "undo the failed launch";

/// A pod that is launched and recorded.
#[derive(Debug)]
pub(crate) struct LaunchedPod {
    /// The committed record.
    pub(crate) record: PodRecord,
    /// The connection to its shim.
    pub(crate) connection: Connection,
}

/// Launches the pod of `record`.
pub(crate) async fn launch(context: Arc<Context>, record: PodRecord) -> Result<LaunchedPod, LaunchFailed> {
    let recorded = Recorded::begin(context, record).await?;
    failpoint::hit("pod.recorded");
    let supervised = match recorded.supervise().await {
        Ok(supervised) => supervised,
        Err((recorded, error)) => return Err(recorded.failed("start the shim", error).await),
    };
    failpoint::hit("pod.supervised");
    let isolated = match supervised.isolate().await {
        Ok(isolated) => isolated,
        Err((supervised, error)) => return Err(supervised.failed("start pause", error).await),
    };
    failpoint::hit("pod.isolated");
    let network = progress::enter("set up the network", "");
    let networked = match isolated.network().await {
        Ok(networked) => networked,
        Err((supervised, error)) => return Err(supervised.failed("set up the network", error).await),
    };
    drop(network);
    failpoint::hit("pod.networked");
    let launched = networked.commit().await?;
    failpoint::hit("pod.committed");
    Ok(launched)
}

/// The intent is on disk.
struct Recorded {
    context: Arc<Context>,
    record: PodRecord,
    /// Syncs the intent in parallel.
    synced: Parallel<()>,
    /// Creates the pod's scope, and pause's cgroup and plan, in parallel.
    pause: Parallel<Prepared>,
}

/// What pause needs.
struct Prepared {
    /// The descriptors of StartPause: its plan and cgroup folders.
    fds: Vec<OwnedFd>,
    /// Keeps the pod's scope until pause is in it.
    holder: Option<Holder>,
}

/// Work that runs in parallel to the chain.
struct Parallel<T>(Option<JoinHandle<Result<T, Error>>>);

impl<T: Send + 'static> Parallel<T> {
    fn begin(step: impl Future<Output = Result<T, Error>> + Send + 'static) -> Self {
        Self(Some(tokio::spawn(step)))
    }

    /// Waits for the result; may be called once. `lane` is what it may wait for longest.
    async fn outcome(&mut self, what: &'static str, lane: &'static Lane) -> Result<T, Error> {
        let _step = progress::enter(what, lanes::advice(lane));
        match self.0.take() {
            None => Err(Error::internal(format!("bug in copepod: {what}: its outcome was taken before"))),
            Some(step) => match step.await {
                Ok(outcome) => outcome,
                Err(error) => Err(Error::of(what, error)),
            },
        }
    }

    /// Waits until it has ended, whatever its result: what it has created can be undone after that.
    async fn ended(mut self) {
        if let Some(step) = self.0.take() {
            drop(step.await);
        }
    }
}

impl Recorded {
    async fn begin(context: Arc<Context>, record: PodRecord) -> Result<Self, LaunchFailed> {
        let (shared, intent) = (Arc::clone(&context), record.clone());
        let id = record.id.as_str();
        let written = lanes::run(lanes::records(), id, "record the pod", move || {
            let dir = shared.layout.pod_dir(&intent.id);
            std::fs::DirBuilder::new()
                .mode(0o700)
                .create(&dir)
                .map_err(|error| Error::of(format!("make {}", dir.display()), error))?;
            let path = shared.layout.pod_record(&intent.id);
            shared.write_within(state::file::MAX_NEW_BYTES, &path, state::kind::POD, &intent, false)
        });
        if let Err(error) = written.await {
            let left = remove_records(&context, &record).await;
            return Err(LaunchFailed { error: named(&record, "record the pod", error), left });
        }
        let (shared, intent) = (Arc::clone(&context), record.clone());
        let synced = Parallel::begin(async move {
            let id = intent.id.clone();
            lanes::run(lanes::records(), id.as_str(), "sync the pod's record", move || {
                shared.write(&shared.layout.pod_record(&intent.id), state::kind::POD, &intent, true)?;
                let pods = shared.layout.pods_dir();
                std::fs::File::open(&pods)
                    .and_then(|dir| dir.sync_all())
                    .map_err(|error| Error::of(format!("sync {}", pods.display()), error))
            })
            .await
        });
        let pause = Parallel::begin(prepare_pause(Arc::clone(&context), record.clone()));
        Ok(Self { context, record, synced, pause })
    }

    async fn supervise(mut self) -> Result<Supervised, (Self, Error)> {
        match connect(&self.context, &self.record).await {
            Ok(connection) => {
                self.record.shim_pid = connection.client.pid();
                Ok(Supervised { below: self, connection })
            }
            Err(error) => Err((self, error)),
        }
    }

    async fn failed(self, step: &'static str, error: Error) -> LaunchFailed {
        let _step = progress::enter(UNDO, "");
        let Self { context, record, synced, pause } = self;
        tokio::join!(synced.ended(), pause.ended());
        let mut left = teardown::remove_shim(&context, &record).await;
        if left.is_empty() {
            left.extend(remove_records(&context, &record).await);
        }
        LaunchFailed { error: named(&record, step, error), left }
    }
}

/// Starts the shim and receives its hello.
async fn connect(context: &Arc<Context>, record: &PodRecord) -> Result<Connection, Error> {
    let (shared, intent) = (Arc::clone(context), record.clone());
    let (mut dead, socket) = lanes::run(lanes::kill(), record.id.as_str(), "start the shim", move || {
        let child = spawn::spawn(&shared.layout, &shared.cgroups, &shared.binaries, &intent)?;
        // From here on the shim is reaped, whatever fails next.
        let dead = spawn::reap_later(child);
        Ok((dead, spawn::short_path(&shared.layout.shim_socket(&intent.id))?))
    })
    .await?;
    let dial = client::dial(&socket.path, &record.id, GREETING);
    tokio::pin!(dial);
    // A shim that dies is noticed before the time limit.
    let dialled = tokio::select! {
        biased;
        dialled = &mut dial => dialled,
        ended = &mut dead => match tokio::time::timeout(EXIT, dial).await {
            // If it has sent its error before it ended, the socket still has it, whichever was noticed first.
            Ok(dialled @ Err(client::ClientError::Failed(_))) => dialled,
            _ => return Err(spawn::ended_early(ended.ok().flatten())),
        },
    };
    match dialled {
        Ok(connection) => Ok(connection),
        // The connection was lost, or never made: how the process ended tells more than this error. (An error that
        // the shim has sent is `Failed`.)
        Err(error @ (client::ClientError::Lost | client::ClientError::Socket { .. })) => {
            match tokio::time::timeout(EXIT, &mut dead).await {
                Ok(ended) => Err(spawn::ended_early(ended.ok().flatten())),
                Err(_) => Err(error.into()),
            }
        }
        Err(error) => Err(error.into()),
    }
}

/// Creates the pod's scope, if it has one, and pause's cgroup and plan.
async fn prepare_pause(context: Arc<Context>, record: PodRecord) -> Result<Prepared, Error> {
    let holder = scope::create(&context, &record).await?;
    let seccomp = if record.config.security.privileged {
        None
    } else {
        foreign::seccomp(&context, record.id.as_str(), &record.config.security.seccomp, 0).await?
    };
    let security = &record.config.security;
    let (privileged, asked) = (security.privileged, &security.apparmor);
    let apparmor = context.apparmor.profile(Subject { privileged, asked, by_default: false }).await?;
    let id = record.id.clone();
    let work = move || make_leaf(&context, &record, seccomp, apparmor);
    match lanes::run(lanes::kill(), id.as_str(), "prepare pause", work).await {
        Ok(fds) => Ok(Prepared { fds, holder }),
        Err(error) => Err(explained(holder.as_ref(), error)),
    }
}

/// The error of a step in the pod's scope, which may have ended.
fn explained(holder: Option<&Holder>, error: Error) -> Error {
    match holder {
        Some(holder) => holder.explain(error),
        None => error,
    }
}

/// Blocking: accesses cgroup files and memory.
fn make_leaf(
    context: &Context,
    record: &PodRecord,
    seccomp: Option<Arc<Compiled>>,
    apparmor: String,
) -> Result<Vec<OwnedFd>, Error> {
    let parent = pod_parent(record)?;
    let leaf = context.cgroups.create_pause_leaf(&leaf_path(&parent, &record.id))?;
    let seccomp = seccomp.map(|compiled| compiled.program.clone());
    let plan = spec::pause(spec::PauseInput { pod: record, cgroup: leaf.plan, seccomp, apparmor })?;
    let mut fds = vec![memfd("pause-plan", &plan)?];
    fds.extend(leaf.folders);
    Ok(fds)
}

/// The shim is running and connected.
struct Supervised {
    below: Recorded,
    connection: Connection,
}

/// Pause is running in its namespaces.
struct Isolated {
    below: Supervised,
    netns: Option<OwnedFd>,
}

impl Supervised {
    async fn isolate(mut self) -> Result<Isolated, (Self, Error)> {
        let lane = if self.below.record.scope.is_empty() { lanes::kill() } else { lanes::systemd() };
        let Prepared { fds, holder } = match self.below.pause.outcome("prepare pause", lane).await {
            Ok(prepared) => prepared,
            Err(error) => return Err((self, error)),
        };
        let request = self.connection.client.request("pause's start", Request::StartPause, fds, PAUSE).await;
        match request {
            Ok((Reply::PauseStarted { pid }, mut fds)) => {
                self.below.record.pause_pid = pid;
                if let Some(holder) = holder {
                    holder.end(&self.below.context, &self.below.record).await;
                }
                Ok(Isolated { below: self, netns: fds.pop() })
            }
            Ok(_) => Err((self, client::ClientError::UnexpectedReply("pause's start").into())),
            Err(error) => {
                let error = explained(holder.as_ref(), error.into());
                Err((self, error))
            }
        }
    }

    /// Undoes all steps, including the network's: CNI DEL does nothing if ADD never ran.
    async fn failed(self, step: &'static str, error: Error) -> LaunchFailed {
        let _step = progress::enter(UNDO, "");
        let Recorded { context, record, synced, pause } = self.below;
        tokio::join!(synced.ended(), pause.ended());
        let mut left =
            teardown::tear_down(&context, &record, Some(self.connection.client), Vec::new()).await.errors;
        left.extend(teardown::remove_shim_folder(&context, &record.id).await);
        if left.is_empty() {
            left.extend(remove_records(&context, &record).await);
        }
        LaunchFailed { error: named(&record, step, error), left }
    }
}

impl Isolated {
    async fn network(self) -> Result<Networked, (Supervised, Error)> {
        let Self { mut below, netns } = self;
        let record = &mut below.below.record;
        if record.config.security.namespaces.network == NamespaceMode::Node {
            return Ok(Networked { below });
        }
        let Some(netns) = netns else {
            return Err((below, Error::internal("the shim sent no network namespace")));
        };
        match attach(&below.below.context, record, netns).await {
            Ok(()) => Ok(Networked { below }),
            Err(error) => Err((below, error)),
        }
    }
}

async fn attach(context: &Arc<Context>, record: &mut PodRecord, netns: OwnedFd) -> Result<(), Error> {
    let path = netns::path(&context.netns_dir, &record.id);
    record.netns = path.to_string_lossy().into_owned();
    let (pin, copy) = (path.clone(), netns.try_clone());
    let id = record.id.clone();
    let pinned = lanes::run(lanes::kill(), id.as_str(), "pin the network namespace", move || {
        netns::pin(netns.as_fd(), &pin).map_err(|error| Error::of(format!("pin {}", pin.display()), error))
    });
    let netns = copy.map_err(|error| Error::of("copy the network namespace", error))?;
    // The files may have changed since they were read last. STATUS of the plugins is not run here, for every pod; it is
    // run when the folder changes and every 10 s (`cni_watch`).
    let load = async {
        context.cni.load().await;
        Ok(())
    };
    tokio::try_join!(pinned, load)?;
    failpoint::hit("pod.pinned");
    let config = &record.config;
    let attachment = Attachment {
        pod: record.id.clone(),
        name: config.meta.name.clone(),
        namespace: config.meta.namespace.clone(),
        uid: config.meta.uid.clone(),
        netns: path,
        ports: config.ports.clone(),
        dns: config.dns.clone(),
        cgroup_parent: config.cgroup_parent.clone(),
        annotations: config.annotations.clone(),
    };
    record.ips = context.cni.add(&attachment).await?;
    set_sysctls(record, netns).await
}

/// Writes the pod's network sysctls. This is done after CNI ADD: the interfaces exist, and a plugin that changes some
/// (Calico clears ip_forward) does not override the requested values.
async fn set_sysctls(record: &PodRecord, netns: OwnedFd) -> Result<(), Error> {
    let wanted = spec::network_sysctls(&record.config)?;
    if wanted.is_empty() {
        return Ok(());
    }
    lanes::run(lanes::kill(), record.id.as_str(), "set sysctls", move || {
        let set = || {
            for (name, value) in &wanted {
                sys::proc::write_sysctl(name, value).map_err(|error| {
                    io::Error::new(error.kind(), format!("sysctl {name}={value}: {error}"))
                })?;
            }
            Ok(())
        };
        sys::netns::inside(netns.as_fd(), set).map_err(|error| Error::of("in the pod's network", error))
    })
    .await
}

/// The network is set up.
struct Networked {
    below: Supervised,
}

impl Networked {
    async fn commit(mut self) -> Result<LaunchedPod, LaunchFailed> {
        if let Err(error) = self.below.below.synced.outcome("sync the pod's record", lanes::records()).await {
            return Err(self.below.failed("record the pod", error).await);
        }
        let context = Arc::clone(&self.below.below.context);
        let record = &mut self.below.below.record;
        match transition::pod(record.phase, PodEvent::Launched) {
            Ok(phase) => record.phase = phase,
            Err(refusal) => {
                let error = Error::from(refusal).context(format!("pod {}", record.id));
                return Err(self.below.failed("commit the pod", error).await);
            }
        }
        let committed = record.clone();
        let id = record.id.clone();
        let written = lanes::run(lanes::records(), id.as_str(), "commit the pod", move || {
            files::write(&context.layout, &committed, &context.node_name)?;
            // Not synced: the intent is durable, and what this adds is valid in this boot only.
            context.write(&context.layout.pod_record(&committed.id), state::kind::POD, &committed, false)
        });
        match written.await {
            Ok(()) => Ok(LaunchedPod { record: self.below.below.record, connection: self.below.connection }),
            Err(error) => Err(self.below.failed("commit the pod", error).await),
        }
    }
}

async fn remove_records(context: &Arc<Context>, record: &PodRecord) -> Vec<Error> {
    let dir = context.layout.pod_dir(&record.id);
    lanes::run(lanes::records(), record.id.as_str(), "remove the pod's record", move || {
        match state::file::remove_dir(&dir) {
            // The folder does not exist: it was never created, or was removed and only the sync has failed. If a power
            // loss brings the intent back, the next start of the daemon rolls it back.
            Err(_) if matches!(dir.try_exists(), Ok(false)) => Ok(()),
            removed => Ok(removed?),
        }
    })
    .await
    .err()
    .into_iter()
    .collect()
}

fn named(record: &PodRecord, step: &str, error: Error) -> Error {
    let meta = &record.config.meta;
    error.context(format!("pod {}/{}: {step}", meta.namespace, meta.name))
}
