//! The jobs on this node. Each does one piece of work and returns its outcome; none decides what happens next.

mod reconnect;

use super::context::{Context, blocking};
use super::life::{Job, Outcome, StartError};
use super::recorder::Recorder;
use super::registry::Registry;
use super::stop::Stop;
use super::supervisor::{Dial, JobEnd, StopWatch, Supervisor, Tools, Work};
use super::{containers, exec, launch, parallel, resources, teardown};
use crate::error::Error;
use crate::lanes;
use crate::shims::Client;
use crate::shims::client::ClientError;
use model::{ContainerId, ContainerRecord, ExecId, PodId, PodRecord};
use state::Layout;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinSet;
use wire::Request;

/// Time limit for the shim to open a log file.
const REOPEN: Duration = Duration::from_secs(20);
/// Maximum number of execs of an earlier connection that are killed at once.
const KILLS: usize = 16;

/// Performs the jobs of drivers on this node.
#[derive(Debug)]
pub(crate) struct NodeSupervisor {
    context: Arc<Context>,
    registry: Arc<Registry>,
}

impl NodeSupervisor {
    pub(crate) fn new(context: &Arc<Context>, registry: &Arc<Registry>) -> Arc<Self> {
        Arc::new(Self { context: Arc::clone(context), registry: Arc::clone(registry) })
    }
}

impl Supervisor for NodeSupervisor {
    fn layout(&self) -> &Layout {
        &self.context.layout
    }

    fn dial(&self, pod: PodId, pid: u32, limit: Duration) -> Dial {
        let (context, registry) = (Arc::clone(&self.context), Arc::clone(&self.registry));
        Box::pin(async move { reconnect::reconnect(&context, &registry, &pod, pid, limit).await })
    }

    #[expect(clippy::too_many_lines, reason = "one match over all jobs")]
    fn work(&self, job: Job, tools: Tools) -> Work {
        let context = Arc::clone(&self.context);
        let Tools { pod, client, recorder, container, stop } = tools;
        match job {
            Job::Launch(record) => Box::pin(launch_pod(context, record)),
            Job::Create(pod, record) => with(create(context, client, pod, record)),
            Job::Start(id) => with(start(context, client, id, container)),
            Job::Stop { record, shim_pid, .. } => {
                with(stop_container(context, client, record, shim_pid, stop))
            }
            Job::RecordExit(id) => with(async move {
                let recorded = record_exit(&context, &id, container).await;
                Outcome::ExitRecorded(id, recorded)
            }),
            Job::RemoveContainer(record) => with(remove_container(context, client, record, container)),
            Job::UndoCreate(record) => without(async move {
                for error in containers::undo_create(&context, client.as_ref(), &record).await {
                    tracing::error!(container = %record.id, error = %error.text(), "cannot undo an interrupted create; the next start of the daemon tries again");
                }
            }),
            Job::KillOrphan(id) => without(async move {
                if let Some(client) = client
                    && let Err(error) = containers::kill_and_forget(&client, &id).await
                {
                    tracing::warn!(container = %id, %error, "the shim has a container that should not exist, and it cannot be killed");
                }
            }),
            Job::RemoveCgroup(record) => without(remove_cgroup(context, pod, record)),
            Job::ReopenLog(waiter, container) => {
                with(async move { Outcome::LogReopened(waiter, reopen_log(client, container).await) })
            }
            Job::Update(record) => with(async move {
                let updated = match &container {
                    Some(recorder) => resources::update(&context, &record, recorder).await,
                    None => Err(unrecorded()),
                };
                Outcome::Updated(record.id.clone(), updated)
            }),
            Job::SettleUpdate(record) => with(async move {
                let settled = resources::settle(&context, &record).await;
                Outcome::Updated(record.id.clone(), settled)
            }),
            Job::RecordUpdate(id) => with(async move {
                let recorded = match container {
                    Some(recorder) => recorder.persist(&context, true).await,
                    None => Err(unrecorded()),
                };
                if let Err(error) = recorded {
                    tracing::error!(container = %id, error = %error.text(), "cannot record the outcome of an update: the next start of the daemon asks the container's cgroup for it");
                }
                Outcome::UpdateRecorded(id)
            }),
            Job::RecordPodUpdate(waiter) => with(async move {
                // Informational values are no reason to fail a resize on a node whose disk is full or hung.
                if let Err(error) = recorder.persist(&context, true).await {
                    tracing::error!(%pod, error = %error.text(), "cannot record the pod's new resources");
                }
                Outcome::PodUpdateRecorded(waiter)
            }),
            Job::KillExecs(execs) => without(kill_execs(client, pod, execs)),
            Job::TearDownPod(record, leaves) => with(async move {
                let torn_down = teardown::tear_down(&context, &record, client, leaves).await;
                Outcome::PodTornDown(torn_down)
            }),
            Job::KillRemains(record, leaves) => with(async move {
                let killed = teardown::kill(&context, &record, None, leaves).await;
                Outcome::RemainsKilled(killed)
            }),
            Job::RecordPod => without(async move {
                if let Err(error) = recorder.persist(&context, false).await {
                    tracing::error!(error = %error.text(), "cannot write the pod's record");
                }
            }),
            Job::RecordStop => with(async move {
                // A failed write does not fail the stop: no process is left, and a node whose disk is full, read-only
                // or hung must be able to stop its pods.
                if let Err(error) = recorder.persist(&context, true).await {
                    tracing::error!(error = %error.text(), "cannot record the stop: the next start of the daemon stops the pod again");
                }
                Outcome::StopRecorded
            }),
            Job::RemoveShimFolder => with(async move {
                let errors = teardown::remove_shim_folder(&context, &pod).await;
                Outcome::ShimFolderRemoved(errors)
            }),
            Job::RemovePod(record, containers) => with(remove_pod(context, recorder, record, containers)),
        }
    }
}

/// Work with an outcome.
fn with(work: impl Future<Output = Outcome> + Send + 'static) -> Work {
    Box::pin(async { (Some(work.await), None) })
}

/// Work without an outcome.
fn without(work: impl Future<Output = ()> + Send + 'static) -> Work {
    Box::pin(async {
        work.await;
        (None, None)
    })
}

fn unrecorded() -> Error {
    Error::internal("bug in copepod: the pod's driver has no record of this container")
}

fn lost() -> Error {
    ClientError::Lost.into()
}

async fn launch_pod(context: Arc<Context>, record: Arc<PodRecord>) -> JobEnd {
    match launch::launch(context, Arc::unwrap_or_clone(record)).await {
        Ok(launch::LaunchedPod { record, connection }) => {
            (Some(Outcome::Launched(Ok(Box::new(record)))), Some(Box::new(connection)))
        }
        Err(failed) => (Some(Outcome::Launched(Err(failed))), None),
    }
}

async fn create(
    context: Arc<Context>,
    client: Option<Client>,
    pod: Arc<PodRecord>,
    record: Arc<ContainerRecord>,
) -> Outcome {
    let id = record.id.clone();
    let created = match client {
        Some(client) => containers::create(context, &pod, client, ContainerRecord::clone(&record)).await,
        None => Err(lost()),
    };
    Outcome::Created(id, created.map(Box::new))
}

async fn start(
    context: Arc<Context>,
    client: Option<Client>,
    id: ContainerId,
    recorder: Option<Arc<Recorder<ContainerRecord>>>,
) -> Outcome {
    let started = match (client, recorder) {
        (Some(client), Some(recorder)) => containers::start(context, client, id.clone(), recorder).await,
        (None, _) => Err(StartError::Other(lost())),
        (_, None) => Err(StartError::Other(unrecorded())),
    };
    Outcome::Started(id, started)
}

async fn stop_container(
    context: Arc<Context>,
    client: Option<Client>,
    record: Arc<ContainerRecord>,
    shim_pid: u32,
    watch: Option<StopWatch>,
) -> Outcome {
    let id = record.id.clone();
    let ended = match watch {
        Some(StopWatch { deadline, exited }) => {
            Stop { client, shim_pid, record, deadline, exited }.run(&context).await
        }
        None => Err(unrecorded()),
    };
    Outcome::StopEnded(id, ended)
}

async fn record_exit(
    context: &Arc<Context>,
    id: &ContainerId,
    recorder: Option<Arc<Recorder<ContainerRecord>>>,
) -> bool {
    let recorded = match recorder {
        Some(recorder) => recorder.persist(context, true).await,
        None => Err(unrecorded()),
    };
    if let Err(error) = &recorded {
        tracing::error!(container = %id, error = %error.text(), "cannot record the exit: a power loss would lose it");
    }
    recorded.is_ok()
}

async fn remove_container(
    context: Arc<Context>,
    client: Option<Client>,
    record: Arc<ContainerRecord>,
    recorder: Option<Arc<Recorder<ContainerRecord>>>,
) -> Outcome {
    // With this record the next start of the daemon continues the removal after a crash; without it, the client must
    // repeat its call. A full disk must not prevent a removal, so an error is ignored. On a disk that hangs, the removal
    // ends when the disk responds, because it removes files there; its callers have time limits of their own.
    if let Some(recorder) = recorder
        && let Err(error) = recorder.persist(&context, false).await
    {
        tracing::debug!(container = %record.id, error = %error.text(), "the removal is not recorded, and continues");
    }
    let errors = containers::remove(&context, client.as_ref(), &record).await;
    Outcome::ContainerRemoved(record.id.clone(), errors)
}

async fn remove_cgroup(context: Arc<Context>, pod: PodId, record: Arc<ContainerRecord>) {
    let work = move || Ok(context.cgroups.remove(&record.cgroup)?);
    if let Err(error) = lanes::run(lanes::kill(), pod.as_str(), "remove the cgroup", work).await {
        tracing::debug!(error = %error.text(), "cannot remove the cgroup of an exited container yet");
    }
}

async fn reopen_log(client: Option<Client>, container: ContainerId) -> Result<(), Error> {
    let client = client.ok_or_else(lost)?;
    Ok(client.done("the log's reopening", Request::ReopenLog { container }, REOPEN).await?)
}

/// Kills the execs that an earlier connection started. Nobody waits for them: their callers got an error when that
/// connection, or the earlier daemon, ended.
async fn kill_execs(client: Option<Client>, pod: PodId, execs: Vec<ExecId>) {
    let Some(client) = client else { return };
    let mut kills = JoinSet::new();
    for id in execs {
        if kills.len() >= KILLS {
            kills.join_next().await;
        }
        let (client, pod) = (client.clone(), pod.clone());
        kills.spawn(async move {
            if let Err(error) = exec::kill(&client, id).await {
                tracing::warn!(%pod, exec = id.0, %error, "cannot kill an exec of an earlier connection");
            }
        });
    }
    while kills.join_next().await.is_some() {}
}

async fn remove_pod(
    context: Arc<Context>,
    recorder: Arc<Recorder<PodRecord>>,
    record: Arc<PodRecord>,
    containers: Vec<Arc<ContainerRecord>>,
) -> Outcome {
    // As with containers, a full disk must not prevent this, and a disk that hangs must respond first.
    if let Err(error) = recorder.persist(&context, false).await {
        tracing::debug!(error = %error.text(), "the removal is not recorded, and continues");
    }
    let removed = parallel::for_all(containers, |container| {
        let context = Arc::clone(&context);
        async move { containers::remove(&context, None, &container).await }
    });
    let mut errors: Vec<Error> = removed.await.into_iter().flatten().collect();
    // The shim's folder is still there if exits could not be recorded, and a create that was running when the pod was
    // stopped may have created cgroups again.
    errors.extend(teardown::remove_shim_rest(&context, &record).await);
    if errors.is_empty() {
        let dir = context.layout.pod_dir(&record.id);
        let removed = blocking("remove the pod", move || Ok(state::file::remove_dir(&dir)?)).await;
        errors.extend(removed.err());
    }
    Outcome::PodRemoved(errors)
}
