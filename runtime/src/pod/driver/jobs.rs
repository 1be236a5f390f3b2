//! Jobs: each performs one piece of work and tells how it ended. None of them decides what comes next.

use super::Ended;
use crate::error::{Error, ErrorKind};
use crate::lanes;
use crate::pod::context::{Context, blocking};
use crate::pod::life::{Job, Outcome, StartError};
use crate::pod::recorder::Recorder;
use crate::pod::stop::Stop;
use crate::pod::{containers, launch, teardown};
use crate::shims::Client;
use futures_util::future::BoxFuture;
use model::{ContainerId, ContainerRecord, ExecId, PodId, PodRecord};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;
use wire::Request;

/// For the shim to open a log file.
const REOPEN: Duration = Duration::from_secs(20);
/// Execs of an earlier connection that are killed at a time.
const KILLS: usize = 16;
/// For the shim to kill one session.
const KILL: Duration = Duration::from_secs(15);

/// What jobs work with.
#[derive(Debug)]
pub(super) struct Tools {
    pub(super) context: Arc<Context>,
    /// To the shim, where it answers as the job begins.
    pub(super) client: Option<Client>,
    pub(super) pod: PodId,
    pub(super) recorder: Arc<Recorder<PodRecord>>,
}

/// A stop at work, as the driver reaches it.
#[derive(Debug)]
pub(super) struct StopHandle {
    /// When to kill.
    pub(super) deadline: watch::Sender<Instant>,
    /// True once the exit is recorded.
    pub(super) exited: watch::Sender<bool>,
}

type Recorders = BTreeMap<ContainerId, Arc<Recorder<ContainerRecord>>>;
type Work = BoxFuture<'static, Ended>;

/// The work of a job.
pub(super) fn work(
    tools: Tools,
    job: Job,
    recorders: &Recorders,
    stops: &BTreeMap<ContainerId, StopHandle>,
) -> Work {
    let Tools { context, client, pod, recorder } = tools;
    match job {
        Job::Launch(record) => Box::pin(launched(context, record)),
        Job::Create(pod, record) => with(create(context, client, pod, record)),
        Job::Start(id) => match recorders.get(&id).cloned() {
            Some(recorder) => with(start(context, client, id, recorder)),
            None => with(async { Outcome::Started(id, Err(StartError::Other(unrecorded()))) }),
        },
        Job::Stop { record, shim_pid, .. } => match stops.get(&record.id) {
            Some(handle) => {
                let (deadline, exited) = (handle.deadline.subscribe(), handle.exited.subscribe());
                let stop = Stop { client, shim_pid, record, deadline, exited };
                with(async move {
                    let id = stop.record.id.clone();
                    Outcome::StopEnded(id, stop.run(&context).await)
                })
            }
            None => with(async move { Outcome::StopEnded(record.id.clone(), Err(unrecorded())) }),
        },
        Job::RecordExit(id) => {
            let recorder = recorders.get(&id).cloned();
            with(async move { Outcome::ExitRecorded(id.clone(), record_exit(&context, &id, recorder).await) })
        }
        Job::RemoveContainer(record) => {
            let recorder = recorders.get(&record.id).cloned();
            with(remove_container(context, client, record, recorder))
        }
        Job::Unmake(record) => without(async move {
            for error in containers::unmake(&context, client.as_ref(), &record).await {
                tracing::error!(container = %record.id, %error, "left by a create that was cut off");
            }
        }),
        Job::KillOrphan(id) => without(async move {
            if let Some(client) = client
                && let Err(error) = containers::kill_and_forget(&client, &id).await
            {
                tracing::warn!(container = %id, %error, "container that should not live is still held by the shim");
            }
        }),
        Job::RemoveCgroup(record) => without(remove_cgroup(context, pod, record)),
        Job::ReopenLog(waiter, container) => {
            with(async move { Outcome::LogReopened(waiter, reopen_log(client, container).await) })
        }
        Job::KillExecs(execs) => without(kill_execs(client, pod, execs)),
        Job::EndPod(record, leaves) => {
            with(async move { Outcome::PodEnded(teardown::end(&context, &record, client, leaves).await) })
        }
        Job::BuryPod(record, leaves) => {
            with(async move { Outcome::PodBuried(teardown::kill(&context, &record, None, leaves).await) })
        }
        Job::RecordPod => without(async move {
            if let Err(error) = recorder.persist(&context, false).await {
                tracing::error!(%pod, %error, "pod record not written");
            }
        }),
        Job::RecordStop => with(async move {
            // Nothing of it lives, whatever the disk says: a node that cannot write must still end its pods.
            if let Err(error) = recorder.persist(&context, true).await {
                tracing::error!(%pod, %error, "stop not recorded: the next start of the daemon stops it again");
            }
            Outcome::PodRecorded
        }),
        Job::ForgetShim => {
            with(async move { Outcome::ShimForgotten(teardown::forget_shim(&context, &pod).await) })
        }
        Job::RemovePod(record, containers) => with(remove_pod(context, recorder, record, containers)),
    }
}

fn with(work: impl Future<Output = Outcome> + Send + 'static) -> Work {
    Box::pin(async { (Some(work.await), None) })
}

fn without(work: impl Future<Output = ()> + Send + 'static) -> Work {
    Box::pin(async {
        work.await;
        (None, None)
    })
}

fn unrecorded() -> Error {
    Error::internal("the pod's driver has nothing of this container")
}

fn lost() -> Error {
    Error::new(ErrorKind::Unavailable, "the connection to the shim was lost")
}

async fn launched(context: Arc<Context>, record: Arc<PodRecord>) -> Ended {
    match launch::launch(context, Arc::unwrap_or_clone(record)).await {
        Ok(launch::Up { record, connection }) => {
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
    recorder: Arc<Recorder<ContainerRecord>>,
) -> Outcome {
    let started = match client {
        Some(client) => containers::start(context, client, id.clone(), recorder).await,
        None => Err(StartError::Other(lost())),
    };
    Outcome::Started(id, started)
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
        tracing::error!(container = %id, %error, "exit not recorded: it is forgotten if the node ends now");
    }
    recorded.is_ok()
}

async fn remove_container(
    context: Arc<Context>,
    client: Option<Client>,
    record: Arc<ContainerRecord>,
    recorder: Option<Arc<Recorder<ContainerRecord>>>,
) -> Outcome {
    // So that a crash in the middle goes on removing. A disk that is full must not prevent what makes it
    // empty: without the record, whoever asked asks again after a crash.
    if let Some(recorder) = recorder
        && let Err(error) = recorder.persist(&context, false).await
    {
        tracing::debug!(container = %record.id, %error, "removed without a record of it");
    }
    let errors = containers::remove(&context, client.as_ref(), &record).await;
    Outcome::ContainerRemoved(record.id.clone(), errors)
}

async fn remove_cgroup(context: Arc<Context>, pod: PodId, record: Arc<ContainerRecord>) {
    let work = move || Ok(context.cgroups.remove(&record.cgroup)?);
    if let Err(error) = lanes::run(lanes::kill(), pod.as_str(), "remove the cgroup", work).await {
        tracing::debug!(%error, "cgroup of an exited container stays until it is removed");
    }
}

async fn reopen_log(client: Option<Client>, container: ContainerId) -> Result<(), Error> {
    let client = client.ok_or_else(lost)?;
    Ok(client.done("the log's reopening", Request::ReopenLog { container }, REOPEN).await?)
}

/// Kills the execs that an earlier connection started: whoever waited for them has had an answer, or is gone
/// with the daemon that was.
async fn kill_execs(client: Option<Client>, pod: PodId, execs: Vec<ExecId>) {
    let Some(client) = client else { return };
    let mut kills = JoinSet::new();
    for exec in execs {
        if kills.len() >= KILLS {
            kills.join_next().await;
        }
        let (client, pod) = (client.clone(), pod.clone());
        kills.spawn(async move {
            let kill = client.done("the kill of an exec", Request::KillExec { exec }, KILL).await;
            if let Err(error) = kill {
                tracing::warn!(%pod, exec = exec.0, %error, "exec of an earlier connection not killed");
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
    // As with containers, a disk that is full must not prevent this.
    if let Err(error) = recorder.persist(&context, false).await {
        tracing::debug!(pod = %record.id, %error, "removed without a record of it");
    }
    let mut errors = Vec::new();
    for container in containers {
        errors.extend(containers::remove(&context, None, &container).await);
    }
    // It stays where exits could not be recorded.
    errors.extend(teardown::forget_shim(&context, &record.id).await);
    // A create that was at work when the pod was stopped may have made them again.
    errors.extend(teardown::remove_cgroups(&context, &record, Vec::new()).await);
    if errors.is_empty() {
        let dir = context.layout.pod_dir(&record.id);
        let removed = blocking("remove the pod", move || Ok(state::file::remove_dir(&dir)?)).await;
        errors.extend(removed.err());
    }
    Outcome::PodRemoved(errors)
}
