//! Bring-up of a pod: a chain of steps, each a type that knows how to be undone.
//!
//! ```text
//! Recorded ──► Supervised ──► Isolated ──► Networked ──► committed
//!  intent       shim, hello    pause, netns   pin, lo, ADD    record Ready
//! ```
//! The intent is on disk before anything else exists, and is synced while the shim starts. An error undoes
//! backwards and names its stage.

use super::{Context, POD_RECORD, blocking, teardown};
use crate::cgroups::{Limits, leaf_path, pod_parent};
use crate::node::Error;
use crate::shims::{Connection, client, spawn};
use crate::{failpoint, files, netns};
use model::{NamespaceMode, PodPhase, PodRecord};
use network::Attachment;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::DirBuilderExt as _;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinHandle;
use wire::{Reply, Request};

/// From exec to the greeting of a shim: milliseconds, seconds on a machine that swaps.
const GREETING: Duration = Duration::from_secs(10);
/// Namespaces and one exec.
const PAUSE: Duration = Duration::from_secs(10);

/// A pod that is up and recorded.
#[derive(Debug)]
pub(crate) struct Up {
    /// As committed.
    pub(crate) record: PodRecord,
    /// To its shim.
    pub(crate) connection: Connection,
}

/// A launch that failed.
#[derive(Debug)]
pub(crate) struct Failed {
    /// The first cause, with its stage.
    pub(crate) error: Error,
    /// What could not be undone; empty when nothing is left.
    pub(crate) left: Vec<Error>,
}

/// Brings the pod of `record` up.
pub(crate) async fn launch(context: Arc<Context>, record: PodRecord) -> Result<Up, Failed> {
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
    let networked = match isolated.network().await {
        Ok(networked) => networked,
        Err((supervised, error)) => return Err(supervised.failed("set up the network", error).await),
    };
    failpoint::hit("pod.networked");
    let up = networked.commit().await?;
    failpoint::hit("pod.committed");
    Ok(up)
}

/// The intent is on disk.
struct Recorded {
    context: Arc<Context>,
    record: PodRecord,
    /// Makes the intent durable meanwhile.
    synced: JoinHandle<Result<(), Error>>,
    /// Makes pause's cgroup and plan meanwhile.
    pause: JoinHandle<Result<Vec<OwnedFd>, Error>>,
}

impl Recorded {
    async fn begin(context: Arc<Context>, record: PodRecord) -> Result<Self, Failed> {
        let (theirs, intent) = (Arc::clone(&context), record.clone());
        let written = blocking("record the pod", move || {
            let dir = theirs.layout.pod_dir(&intent.id);
            std::fs::DirBuilder::new()
                .mode(0o700)
                .create(&dir)
                .map_err(|error| Error::of(format!("make {}", dir.display()), &error))?;
            theirs.write(&theirs.layout.pod_record(&intent.id), POD_RECORD, &intent, false)
        });
        if let Err(error) = written.await {
            let left = remove_records(&context, &record).await;
            return Err(Failed { error: named(&record, "record the pod", error), left });
        }
        let (theirs, intent) = (Arc::clone(&context), record.clone());
        let synced = tokio::task::spawn_blocking(move || {
            theirs.write(&theirs.layout.pod_record(&intent.id), POD_RECORD, &intent, true)?;
            let pods = theirs.layout.pods_dir();
            std::fs::File::open(&pods)
                .and_then(|dir| dir.sync_all())
                .map_err(|error| Error::of(format!("sync {}", pods.display()), &error))
        });
        let (theirs, intent) = (Arc::clone(&context), record.clone());
        let pause = tokio::task::spawn_blocking(move || prepare_pause(&theirs, &intent));
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

    async fn failed(self, stage: &'static str, error: Error) -> Failed {
        let Self { context, record, synced, pause } = self;
        // Both end by themselves; what they made is undone after them.
        drop(tokio::join!(synced, pause));
        let mut left = teardown::remove_shim(&context, &record).await;
        left.extend(teardown::remove_cgroups(&context, &record, Vec::new()).await);
        if left.is_empty() {
            left.extend(remove_records(&context, &record).await);
        }
        Failed { error: named(&record, stage, error), left }
    }
}

/// Starts the shim and takes its greeting.
async fn connect(context: &Arc<Context>, record: &PodRecord) -> Result<Connection, Error> {
    let (theirs, intent) = (Arc::clone(context), record.clone());
    let (child, socket) = blocking("start the shim", move || {
        let child = spawn::spawn(&theirs.layout, &theirs.cgroups, &theirs.binaries, &intent)?;
        Ok((child, spawn::reachable(&theirs.layout.shim_socket(&intent.id))?))
    })
    .await?;
    let pidfd = child.pidfd.try_clone().map_err(|error| Error::of("watch the shim", &error))?;
    spawn::reap_later(child);
    // A shim that dies at once is not waited for.
    let dead = async {
        match crate::shims::watched(pidfd, tokio::io::Interest::READABLE) {
            Ok(watched) => drop(watched.readable().await),
            Err(_) => std::future::pending().await,
        }
    };
    tokio::select! {
        connection = client::dial(&socket.path, &record.id, GREETING) => Ok(connection?),
        () = dead => Err(Error::internal("the shim ended before it said anything; see the log for its last words")),
    }
}

/// Pause's leaf, and its plan and folders as the descriptors of StartPause. Blocking.
fn prepare_pause(context: &Context, record: &PodRecord) -> Result<Vec<OwnedFd>, Error> {
    let seccomp = if record.config.security.privileged {
        None
    } else {
        context.compiler.program(&record.config.security.seccomp, 0)?
    };
    let parent = pod_parent(&record.config, &record.id)?;
    let limits = Limits { writes: spec::pause_limits(), ..Limits::default() };
    let leaf = context.cgroups.create_leaf(&leaf_path(&parent, &record.id), &limits)?;
    let seccomp = seccomp.map(|compiled| compiled.program.clone());
    let plan = spec::pause(spec::PauseInput { pod: record, cgroup: leaf.plan, seccomp })?;
    let mut fds = vec![memfd("pause-plan", &plan)?];
    fds.extend(leaf.folders);
    Ok(fds)
}

/// A plan as its worker reads it. Blocking (memory only).
pub(crate) fn memfd<T: serde::Serialize>(name: &str, plan: &T) -> Result<OwnedFd, Error> {
    let bytes = serde_json::to_vec(plan).map_err(|error| Error::of(format!("encode {name}"), &error))?;
    sys::memfd::create_sealed(name, &bytes)
        .map_err(|error| Error::of(format!("make a memfd for {name}"), &error))
}

/// The shim answers.
struct Supervised {
    below: Recorded,
    connection: Connection,
}

/// Pause holds the namespaces.
struct Isolated {
    below: Supervised,
    netns: Option<OwnedFd>,
}

impl Supervised {
    async fn isolate(mut self) -> Result<Isolated, (Self, Error)> {
        let fds = match (&mut self.below.pause).await {
            Ok(Ok(fds)) => fds,
            Ok(Err(error)) => return Err((self, error)),
            Err(error) => return Err((self, Error::of("prepare pause", &error))),
        };
        // Not awaited twice.
        self.below.pause = tokio::spawn(async { Ok(Vec::new()) });
        let request = self.connection.client.request("pause's start", Request::StartPause, fds, PAUSE).await;
        match request {
            Ok((Reply::PauseStarted { pid }, mut fds)) => {
                self.below.record.pause_pid = pid;
                Ok(Isolated { below: self, netns: fds.pop() })
            }
            Ok(_) => Err((self, client::ClientError::Odd("pause's start").into())),
            Err(error) => Err((self, error.into())),
        }
    }

    /// Undoes from here down, network included: nothing is owed where nothing was begun.
    async fn failed(self, stage: &'static str, error: Error) -> Failed {
        let Recorded { context, record, synced, pause } = self.below;
        drop(tokio::join!(synced, pause));
        let mut left =
            teardown::end(&context, &record, Some(self.connection.client), Vec::new()).await.errors;
        if left.is_empty() {
            left.extend(remove_records(&context, &record).await);
        }
        Failed { error: named(&record, stage, error), left }
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
            return Err((below, Error::internal("the shim gave no network namespace")));
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
    let pinned = blocking("pin the network namespace", move || {
        netns::pin(netns.as_fd(), &pin).map_err(|error| Error::of(format!("pin {}", pin.display()), &error))
    });
    let copy = copy.map_err(|error| Error::of("copy the network namespace", &error))?;
    let loopback = async {
        network::loopback_up(copy).await.map_err(|error| Error::of("bring the loopback interface up", &error))
    };
    // The configuration that counts is the one on disk now, not what was there when it was last looked at.
    let reload = async {
        context.cni.reload().await;
        Ok(())
    };
    tokio::try_join!(pinned, loopback, reload)?;
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
    Ok(())
}

/// The network is up.
struct Networked {
    below: Supervised,
}

impl Networked {
    async fn commit(mut self) -> Result<Up, Failed> {
        match (&mut self.below.below.synced).await {
            Ok(Ok(())) => {}
            other => {
                let error = match other {
                    Ok(Err(error)) => error,
                    Err(error) => Error::of("record the pod", &error),
                    Ok(Ok(())) => Error::internal("record the pod"),
                };
                self.below.below.synced = tokio::spawn(async { Ok(()) });
                return Err(self.below.failed("record the pod", error).await);
            }
        }
        self.below.below.synced = tokio::spawn(async { Ok(()) });
        let context = Arc::clone(&self.below.below.context);
        let record = &mut self.below.below.record;
        record.phase = PodPhase::Ready;
        let committed = record.clone();
        let written = blocking("commit the pod", move || {
            files::write(&context.layout, &committed, &context.node_name)?;
            // The intent is durable; what this adds holds for this boot only.
            context.write(&context.layout.pod_record(&committed.id), POD_RECORD, &committed, false)
        });
        match written.await {
            Ok(()) => Ok(Up { record: self.below.below.record, connection: self.below.connection }),
            Err(error) => Err(self.below.failed("commit the pod", error).await),
        }
    }
}

async fn remove_records(context: &Arc<Context>, record: &PodRecord) -> Vec<Error> {
    let dir = context.layout.pod_dir(&record.id);
    blocking("remove the pod's record", move || Ok(state::file::remove_dir(&dir)?))
        .await
        .err()
        .into_iter()
        .collect()
}

fn named(record: &PodRecord, stage: &str, error: Error) -> Error {
    let meta = &record.config.meta;
    error.context(format!("pod {}/{}: {stage}", meta.namespace, meta.name))
}
