//! The work on one container, as jobs of its pod's driver: create, start, remove.

use super::launch::memfd;
use super::{CONTAINER_RECORD, Context, blocking, now, random};
use crate::cgroups::{Limits, host_devices, leaf_path, pod_parent};
use crate::error::{Error, ErrorKind};
use crate::seccomp::Compiled;
use crate::shims::Client;
use crate::shims::client::ClientError;
use crate::{failpoint, files, lanes};
use image::ImageRecord;
use model::{
    ContainerConfig, ContainerId, ContainerPhase, ContainerRecord, Exit, ImageOfContainer, PodRecord, User,
};
use serde::Serialize;
use spec::devices::HostDevice;
use spec::{HostFacts, ImageFacts};
use state::file::MAX_NEW_BYTES;
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::time::Instant;
use wire::{ErrorKind as ShimErrorKind, ExitFacts, LogPlan, ProcessPlan, Reply, Request, RootfsPlan};

/// Beyond the worker's own deadline: for the shim to kill it and say so.
const SLACK: Duration = Duration::from_secs(5);
/// Of requests that only tell the kernel something.
const SHORT: Duration = Duration::from_secs(10);
/// From "go on" to execve, on a machine that swaps.
const START: Duration = Duration::from_secs(60);
/// For the shim to reap what was killed, unless a process hangs in the kernel.
const REAP: Duration = Duration::from_secs(5);
/// For the space of a removed container: kubelet removes dead containers when a disk runs low, measures at once
/// (`reclaimNodeLevelResources` of its eviction manager), and evicts a pod when there is none.
const SPACE: Duration = Duration::from_secs(10);
/// Exit code of a container that never ran.
const NEVER_RAN: i32 = 128;

/// Writes one record, one write at a time, always the newest content: writers may come in any order.
#[derive(Debug)]
pub(crate) struct Recorder<T> {
    path: PathBuf,
    kind: &'static str,
    newest: Mutex<T>,
    writing: tokio::sync::Mutex<()>,
}

impl<T: Clone + Serialize + Send + 'static> Recorder<T> {
    pub(crate) fn new(path: PathBuf, kind: &'static str, content: T) -> Arc<Self> {
        Arc::new(Self { path, kind, newest: Mutex::new(content), writing: tokio::sync::Mutex::new(()) })
    }

    /// What the next write writes.
    pub(crate) fn set(&self, content: T) {
        *self.newest.lock().unwrap_or_else(PoisonError::into_inner) = content;
    }

    /// Writes the newest content.
    pub(crate) async fn persist(&self, context: &Arc<Context>, durable: bool) -> Result<(), Error> {
        self.persist_within(state::file::MAX_BYTES, context, durable).await
    }

    /// Writes the newest content, of at most `limit` bytes.
    pub(crate) async fn persist_within(
        &self,
        limit: u64,
        context: &Arc<Context>,
        durable: bool,
    ) -> Result<(), Error> {
        let _turn = self.writing.lock().await;
        let content = self.newest.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let (context, path, kind) = (Arc::clone(context), self.path.clone(), self.kind);
        blocking("write a record", move || context.write_within(limit, &path, kind, &content, durable)).await
    }
}

/// A recorder for a container's record.
pub(crate) fn recorder(context: &Context, record: &ContainerRecord) -> Arc<Recorder<ContainerRecord>> {
    Recorder::new(context.layout.container_record(&record.id), CONTAINER_RECORD, record.clone())
}

/// The record with which a container begins.
pub(crate) fn intent(
    id: ContainerId,
    pod: &PodRecord,
    config: ContainerConfig,
) -> Result<ContainerRecord, Error> {
    let cgroup = leaf_path(&pod_parent(&pod.config, &pod.id)?, &id);
    let directory = pod.config.log_directory.trim_end_matches('/');
    let log_path = if directory.is_empty() || config.log_path.is_empty() {
        String::new()
    } else {
        format!("{directory}/{}", config.log_path)
    };
    Ok(ContainerRecord {
        id,
        pod: pod.id.clone(),
        config,
        image: ImageOfContainer::default(),
        created_at: now(),
        started_at: 0,
        phase: ContainerPhase::Creating,
        exit: None,
        pid: 0,
        user: User::default(),
        log_path,
        stop_signal: 0,
        cgroup,
        exec_template: None,
        asked_env: Vec::new(),
    })
}

/// Makes a container whose init waits for start. On an error nothing is left, or the log says what.
pub(crate) async fn create(
    context: Arc<Context>,
    pod: PodRecord,
    client: Client,
    record: ContainerRecord,
) -> Result<ContainerRecord, Error> {
    let name = format!(
        "container {} of pod {}/{}",
        record.config.meta.name, pod.config.meta.namespace, pod.config.meta.name
    );
    // Refused before anything is made.
    spec::refuse::container(&record.config).map_err(|error| Error::from(error).context(&name))?;
    match make(&context, &pod, &client, record.clone()).await {
        Ok(record) => Ok(record),
        Err(error) => {
            for left in unmake(&context, Some(&client), &record).await {
                tracing::warn!(container = %record.id, error = %left, "left by a create that failed");
            }
            Err(error.context(name))
        }
    }
}

async fn make(
    context: &Arc<Context>,
    pod: &PodRecord,
    client: &Client,
    mut record: ContainerRecord,
) -> Result<ContainerRecord, Error> {
    let (asked, pod_id) = (&record.config.image.image, pod.id.clone());
    let image = context.images.resolve(asked).ok_or_else(|| {
        Error::new(ErrorKind::NotFound, format!("image {asked:?} is not on this node: pull it first"))
    })?;
    let lease = context.images.lease_for(&image.id, record.id.as_str()).await?;
    record.image = ImageOfContainer {
        id: image.id.clone(),
        digested: image.repo_digests.first().cloned().unwrap_or_else(|| image.id.clone()),
    };
    let rootfs = RootfsPlan {
        store: lease.layers_dir.to_string_lossy().into_owned(),
        layers: lease.layers,
        rw: context.layout.container_rw(&record.id).to_string_lossy().into_owned(),
        readonly: false,
        folders: Vec::new(),
        volatile: true,
    };
    let foreign = foreign(context, &record).await?;
    let (theirs, pod) = (Arc::clone(context), pod.clone());
    let work = move || prepare(&theirs, &pod, &image, rootfs, foreign, record);
    let prepared = lanes::run(lanes::records(), pod_id.as_str(), "prepare the container", work).await?;
    failpoint::hit("container.prepared");
    let Prepared { mut record, mut process, log, fds } = prepared;
    let request = Request::Create {
        container: record.id.clone(),
        deadline_ms: u64::try_from(context.create_timeout.as_millis()).unwrap_or(u64::MAX),
        log,
        terminal: record.config.tty,
        stdin: record.config.stdin,
    };
    let (pid, user, home) =
        match client.request("create", request, fds, context.create_timeout + SLACK).await? {
            (Reply::Created { pid, user, home }, _) => (pid, user, home),
            _ => return Err(ClientError::Odd("create").into()),
        };
    failpoint::hit("container.created");
    process.set_home(&home);
    spec::exec::keep(&mut record, &process)
        .map_err(|error| Error::of("encode the process for execs", &error))?;
    (record.pid, record.user, record.phase) = (pid, user, ContainerPhase::Created);
    // It holds for this boot only: start makes it durable.
    recorder(context, &record).persist_within(MAX_NEW_BYTES, context, false).await?;
    failpoint::hit("container.committed");
    Ok(record)
}

struct Prepared {
    record: ContainerRecord,
    process: ProcessPlan,
    log: Option<LogPlan>,
    /// Plan, mount namespace, cgroup folders.
    fds: Vec<OwnedFd>,
}

/// What lies outside of our folders.
struct Foreign {
    seccomp: Option<Arc<Compiled>>,
    devices: Vec<HostDevice>,
}

/// Reads what the request names, before anything is made: these paths can be on any file system of the node.
async fn foreign(context: &Arc<Context>, record: &ContainerRecord) -> Result<Foreign, Error> {
    let (security, pod) = (&record.config.security, record.pod.as_str());
    let seccomp = if security.privileged {
        None
    } else {
        let caps = spec::security::caps(security, context.cap_bounding)?;
        super::seccomp(context, pod, &security.seccomp, caps.bounding).await?
    };
    if record.config.devices.is_empty() && !security.privileged {
        return Ok(Foreign { seccomp, devices: Vec::new() });
    }
    let config = record.config.clone();
    let find = lanes::run(lanes::foreign(), pod, "devices", move || Ok(host_devices::find(&config)?));
    let devices =
        super::answered(find, |limit| format!("devices: their host_path did not answer within {limit:?}"));
    Ok(Foreign { seccomp, devices: devices.await? })
}

/// Folders, intent, cgroup leaf, plan. Blocking.
fn prepare(
    context: &Context,
    pod: &PodRecord,
    image: &ImageRecord,
    rootfs: RootfsPlan,
    foreign: Foreign,
    mut record: ContainerRecord,
) -> Result<Prepared, Error> {
    let Foreign { seccomp, devices } = foreign;
    let config = &record.config;
    let limits = Limits {
        writes: spec::resources::v1(&config.resources, spec::resources::Mode::Create)?,
        devices: spec::devices::rules(&config.devices, config.security.privileged, &devices)?,
    };
    let facts = ImageFacts {
        entrypoint: image.config.entrypoint.clone(),
        cmd: image.config.cmd.clone(),
        env: image.config.env.clone(),
        user: image.config.user.clone(),
        working_dir: image.config.working_dir.clone(),
        stop_signal: image.config.stop_signal.clone(),
        volumes: image.config.volumes.clone(),
    };
    record.stop_signal = spec::signals::stop_signal(config.stop_signal, &facts.stop_signal)?;
    folders(&context.layout.container_dir(&record.id), &context.layout.container_rw(&record.id))?;
    let path = context.layout.container_record(&record.id);
    context.write_within(MAX_NEW_BYTES, &path, CONTAINER_RECORD, &record, false)?;
    failpoint::hit("container.recorded");
    let leaf = context.cgroups.create_leaf(&record.cgroup, &limits)?;
    if !leaf.skipped.is_empty() {
        tracing::info!(container = %record.id, skipped = ?leaf.skipped, "limits this host has no files for");
    }
    let host = HostFacts { cap_bounding: context.cap_bounding, hostname: context.node_name.clone(), devices };
    let plan = spec::container(spec::ContainerInput {
        pod,
        container: &record,
        image: &facts,
        rootfs,
        files: files::of(&context.layout, pod),
        cgroup: leaf.plan,
        seccomp_flags: seccomp.as_ref().map_or(0, |compiled| compiled.flags),
        seccomp: seccomp.map(|compiled| compiled.program.clone()),
        keyring: keyring()?,
        host: &host,
    })?;
    let mounts = context.mount_namespace.try_clone();
    let mounts = mounts.map_err(|error| Error::of("copy the mount namespace", &error))?;
    let mut fds = vec![memfd("container-plan", &plan)?, mounts];
    fds.extend(leaf.folders);
    Ok(Prepared { log: plan_log(&record, pod)?, process: plan.process, record, fds })
}

/// A name for a container's session keyring that nobody can guess: ids of containers are public. The prefix is
/// runc's.
fn keyring() -> Result<String, Error> {
    Ok(format!("_ses.{}", ContainerId::from_random(random()?)))
}

/// What the resident shim must know of the output without reading the plan.
fn plan_log(record: &ContainerRecord, pod: &PodRecord) -> Result<Option<LogPlan>, Error> {
    if record.log_path.is_empty() || pod.config.log_directory.is_empty() {
        return Ok(None);
    }
    Ok(Some(LogPlan { path: spec::path::clean_relative("log_path", &record.config.log_path)? }))
}

/// The container's folder with its writable layer. They are as durable as the container: not at all before
/// it starts.
fn folders(dir: &Path, rw: &Path) -> Result<(), Error> {
    let make = |path: &Path, mode: u32| {
        let made = std::fs::DirBuilder::new().mode(mode).create(path);
        made.map_err(|error| Error::of(format!("make {}", path.display()), &error))
    };
    make(dir, 0o700)?;
    make(rw, 0o700)?;
    // The root of the container's file system.
    make(&rw.join("upper"), 0o755)?;
    make(&rw.join("work"), 0o700)
}

/// Lets init go on, and makes the record durable meanwhile: what may have run must not be forgotten.
pub(crate) async fn start(
    context: Arc<Context>,
    client: Client,
    id: ContainerId,
    recorder: Arc<Recorder<ContainerRecord>>,
) -> Result<i64, StartError> {
    let started = async {
        match client.request("start", Request::Start { container: id.clone() }, Vec::new(), START).await {
            Ok((Reply::Started { started_at }, _)) => Ok(started_at),
            Ok(_) => Err(StartError::Other(ClientError::Odd("start").into())),
            Err(ClientError::Failed(failure)) if failure.kind == ShimErrorKind::StartFailed => {
                Err(StartError::Never(failure.message))
            }
            Err(error) => Err(StartError::Other(error.into())),
        }
    };
    let (started, recorded) = tokio::join!(started, recorder.persist(&context, true));
    failpoint::hit("container.started");
    let started_at = started?;
    // It runs, and whoever hears otherwise makes another. The exit writes the record again.
    if let Err(error) = recorded {
        tracing::error!(container = %id, %error, "start not recorded: it is forgotten if the node ends now");
    }
    Ok(started_at)
}

/// Why a container did not start.
#[derive(Debug)]
pub(crate) enum StartError {
    /// It is exited: execve said this.
    Never(String),
    /// It may still be created, or run.
    Other(Error),
}

/// Removes what a container has: the shim's memory of it, cgroup, lease, files. Idempotent; all steps run. Waits for
/// the space of its files, [`SPACE`] at most.
pub(crate) async fn remove(
    context: &Arc<Context>,
    client: Option<&Client>,
    record: &ContainerRecord,
) -> Vec<Error> {
    if let Some(client) = client
        && let Err(error) = forget(client, &record.id).await
    {
        // Files, cgroup and lease depend on its processes alone; the shim is told again when it is dialled.
        tracing::warn!(container = %record.id, %error, "not forgotten by its shim");
    }
    let (theirs, gone) = (Arc::clone(context), record.clone());
    let owner = record.pod.as_str();
    let (held, deleted) = tokio::sync::oneshot::channel::<()>();
    let removed = lanes::run(lanes::records(), owner, "remove the container", move || {
        let mut errors = Vec::new();
        if !gone.cgroup.is_empty() {
            errors.extend(theirs.cgroups.remove(&gone.cgroup).err().map(Error::from));
        }
        let dir = theirs.layout.container_dir(&gone.id);
        errors.extend(state::file::discard_dir(&dir, &theirs.trash, held).err().map(Error::from));
        Ok(errors)
    });
    let mut errors = removed.await.unwrap_or_else(|error| vec![error]);
    // The layers are free once nothing can be mounted from them.
    if errors.is_empty()
        && let Err(error) = context.images.release(record.id.as_str()).await
    {
        errors.push(Error::from(error));
    }
    // Nothing is sent: it ends when the other side is dropped. No thread waits meanwhile.
    drop(tokio::time::timeout(SPACE, deleted).await);
    errors
}

/// Has the shim drop a container from its table once it is over there: the shim may not have reaped yet what was
/// killed a moment ago. One that is not in the table, or a lost connection, is no error.
async fn forget(client: &Client, id: &ContainerId) -> Result<(), ClientError> {
    let until = Instant::now() + REAP;
    let mut pause = Duration::from_millis(2);
    loop {
        match client.done("forget", Request::Forget { container: id.clone() }, SHORT).await {
            Ok(()) | Err(ClientError::Lost) => return Ok(()),
            Err(ClientError::Failed(failure)) if failure.kind == ShimErrorKind::NotFound => return Ok(()),
            Err(ClientError::Failed(failure))
                if failure.kind == ShimErrorKind::WrongState && Instant::now() < until =>
            {
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(Duration::from_millis(200));
            }
            Err(error) => return Err(error),
        }
    }
}

/// Ends a container that only the shim knows of.
pub(crate) async fn kill_and_forget(client: &Client, id: &ContainerId) -> Result<(), ClientError> {
    let kill = Request::Kill { container: id.clone(), signal: 9, all: true };
    match client.done("the kill", kill, SHORT).await {
        Err(ClientError::Failed(failure)) if failure.kind == ShimErrorKind::NotFound => {}
        done => done?,
    }
    forget(client, id).await
}

/// Undoes a create, however far it came.
pub(crate) async fn unmake(
    context: &Arc<Context>,
    client: Option<&Client>,
    record: &ContainerRecord,
) -> Vec<Error> {
    if let Some(client) = client {
        let kill = Request::Kill { container: record.id.clone(), signal: 9, all: true };
        // It may never have heard of it.
        if let Err(error) = client.done("the kill", kill, SHORT).await {
            tracing::debug!(container = %record.id, %error, "kill of a container that is undone");
        }
    }
    if !record.cgroup.is_empty() {
        let (cgroups, leaf) = (context.cgroups.clone(), record.cgroup.clone());
        let kill = move || Ok(cgroups.kill_all(&leaf)?);
        if let Err(error) = lanes::run(lanes::kill(), record.pod.as_str(), "kill the container", kill).await {
            return vec![error];
        }
    }
    remove(context, client, record).await
}

/// CRI's exit of the shim's facts.
pub(crate) fn exit_of(facts: &ExitFacts) -> Exit {
    let (reason, message) = match &facts.start_error {
        Some(error) => ("StartError", error.clone()),
        None if facts.oom_killed => ("OOMKilled", String::new()),
        None if facts.code == 0 => ("Completed", String::new()),
        None => ("Error", String::new()),
    };
    let code = if facts.start_error.is_some() { NEVER_RAN } else { facts.code };
    Exit {
        code,
        finished_at: if facts.finished_at == 0 { now() } else { facts.finished_at },
        oom_killed: facts.oom_killed,
        reason: reason.to_owned(),
        message,
    }
}

/// The exit of a container that execve refused.
pub(crate) fn never_ran(message: String) -> Exit {
    exit_of(&ExitFacts { start_error: Some(message), ..ExitFacts::default() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_of_exits() {
        let facts = |code, oom_killed| ExitFacts { code, oom_killed, finished_at: 5, ..ExitFacts::default() };
        assert_eq!(exit_of(&facts(0, false)).reason, "Completed");
        assert_eq!(exit_of(&facts(3, false)).reason, "Error");
        assert_eq!(exit_of(&facts(137, true)).reason, "OOMKilled");
        let never = never_ran("no such file".into());
        assert_eq!(
            (never.code, never.reason.as_str(), never.message.as_str()),
            (128, "StartError", "no such file")
        );
        assert!(never.finished_at > 0);
    }
}
