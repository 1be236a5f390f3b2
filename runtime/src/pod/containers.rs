//! The work of CreateContainer, StartContainer and RemoveContainer.

mod host;
mod images;

use super::context::{Context, random};
use super::life::StartError;
use super::plan::memfd;
use super::recorder::{self, Recorder};
use super::volume_watch::{self, Hanging, Volume};
use crate::cgroups::{Cgroups, Limits};
use crate::error::{Error, ErrorKind};
use crate::shims::Client;
use crate::shims::client::ClientError;
use crate::{failpoint, files, lanes};
use host::HostParts;
use image::ImageRecord;
use model::transition::{self, ContainerEvent};
use model::{ContainerId, ContainerRecord, PodRecord};
use spec::devices::HostDevice;
use spec::{HostFacts, ImageFacts, ImageLayers};
use state::file::MAX_NEW_BYTES;
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;
use wire::{
    ErrorKind as ShimErrorKind, LogPlan, MountKind, MountPlan, ProcessPlan, Reply, Request, RootfsPlan,
};

/// How much longer the daemon waits than the shim does: time for the shim to kill the worker and reply.
const SLACK: Duration = Duration::from_secs(5);
/// Time limit of requests that only make system calls.
const SHORT: Duration = Duration::from_secs(10);
/// Time limit from the start request to execve. That takes milliseconds, but much longer on a machine that swaps.
const START: Duration = Duration::from_secs(60);
/// Time limit for the shim to reap processes that were killed. If one hangs in the kernel, it cannot.
const REAP: Duration = Duration::from_secs(5);
/// How long RemoveContainer waits for the deletion of the container's files. When a disk runs low, kubelet removes
/// dead containers, measures the free space right after (`reclaimNodeLevelResources` of its eviction manager), and
/// evicts a pod if there is too little.
const DELETED: Duration = Duration::from_secs(10);

/// Creates a container whose init waits for the start request. On an error it is undone; what cannot be undone is
/// logged.
pub(crate) async fn create(
    context: Arc<Context>,
    pod: &PodRecord,
    client: Client,
    record: ContainerRecord,
) -> Result<ContainerRecord, Error> {
    let name = format!(
        "container {} of pod {}/{}",
        record.config.meta.name, pod.config.meta.namespace, pod.config.meta.name
    );
    match make(&context, pod, &client, record.clone()).await {
        Ok(record) => Ok(record),
        Err(error) => {
            let _step = progress::enter("undo the failed create", "");
            for left in undo_create(&context, Some(&client), &record).await {
                tracing::warn!(container = %record.id, error = %left.text(), "cannot undo a failed create; the next start of the daemon tries again");
            }
            Err(error.context(name))
        }
    }
}

/// What the image decides about the container's root file system; [`spec::container`] fills in the rest.
fn rootfs(context: &Context, id: &ContainerId, lease: image::Lease) -> RootfsPlan {
    RootfsPlan {
        store: lease.layers_dir.to_string_lossy().into_owned(),
        layers: lease.layers,
        rw: context.layout.container_rw(id).to_string_lossy().into_owned(),
        readonly: false,
        folders: Vec::new(),
        volatile: true,
    }
}

async fn make(
    context: &Arc<Context>,
    pod: &PodRecord,
    client: &Client,
    mut record: ContainerRecord,
) -> Result<ContainerRecord, Error> {
    let (image, lease) = images::of_root(context, &mut record).await?;
    let layers = images::of_volumes(context, &mut record).await?;
    let sources = Sources {
        image,
        rootfs: rootfs(context, &record.id, lease),
        layers,
        host: host::look_up(context, client, &record).await?,
    };
    let (shared, pod, pod_id) = (Arc::clone(context), pod.clone(), pod.id.clone());
    let work = move || prepare(&shared, &pod, sources, record);
    let prepared = lanes::run(lanes::records(), pod_id.as_str(), "prepare the container", work).await?;
    failpoint::hit("container.prepared");
    let Prepared { mut record, mut process, log, volumes, fds } = prepared;
    let request = Request::Create {
        container: record.id.clone(),
        deadline_ms: u64::try_from(context.create_timeout.as_millis()).unwrap_or(u64::MAX),
        log,
        terminal: record.config.tty,
        stdin: record.config.stdin,
    };
    let created = client.request("create", request, fds, context.create_timeout + SLACK);
    let (created, hanging) = volume_watch::watched(client.pid(), &volumes, created).await;
    let (pid, user, home) = match created {
        Ok((Reply::Created { pid, user, home }, _)) => (pid, user, home),
        Ok(_) => return Err(ClientError::UnexpectedReply("create").into()),
        Err(error) => return Err(not_created(error, hanging)),
    };
    failpoint::hit("container.created");
    process.set_home(&home);
    spec::exec::keep(&mut record, &process)
        .map_err(|error| Error::of("encode the process for execs", error))?;
    (record.pid, record.user) = (pid, user);
    record.phase = transition::container(record.phase, ContainerEvent::Created)
        .map_err(|refusal| Error::from(refusal).context(format!("container {}", record.id)))?;
    // Not synced: a container that was not started need not survive a power loss. The start syncs it.
    let record = Arc::new(record);
    recorder::of_container(&context.layout, Arc::clone(&record)).persist_new(context).await?;
    failpoint::hit("container.committed");
    Ok(Arc::unwrap_or_clone(record))
}

/// The error of a create request; `hanging`: the volume in which the worker was at the end.
fn not_created(error: ClientError, hanging: Option<Hanging>) -> Error {
    let error = Error::from(error);
    match hanging {
        Some(hanging) if error.kind == ErrorKind::DeadlineExceeded => error.context(hanging.text()),
        _ => error,
    }
}

/// What the create request needs.
struct Prepared {
    record: ContainerRecord,
    process: ProcessPlan,
    log: Option<LogPlan>,
    /// The volumes that the shim's worker mounts.
    volumes: Vec<Volume>,
    /// The request's descriptors: plan, mount namespace, cgroup folders.
    fds: Vec<OwnedFd>,
}

/// What a container is created from.
struct Sources {
    image: Arc<ImageRecord>,
    rootfs: RootfsPlan,
    /// The layers of its image volumes.
    layers: ImageLayers,
    host: HostParts,
}

/// What the cgroup of a new container limits.
fn limits(cgroups: &Cgroups, record: &ContainerRecord, devices: &[HostDevice]) -> Result<Limits, Error> {
    let config = &record.config;
    let devices = spec::devices::rules(&config.devices, config.security.privileged, devices)?;
    Ok(cgroups.limits(&record.cgroup, &config.resources, devices)?)
}

/// Creates the folders and the leaf cgroup, records the intent, and computes the plan. Blocking.
fn prepare(
    context: &Context,
    pod: &PodRecord,
    sources: Sources,
    mut record: ContainerRecord,
) -> Result<Prepared, Error> {
    let Sources { image, rootfs, layers, host: HostParts { seccomp, devices, apparmor } } = sources;
    let config = &record.config;
    let limits = limits(&context.cgroups, &record, &devices)?;
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
    let owner = pod.config.security.namespaces.mapping().map(|mapping| (mapping.uid, mapping.gid));
    folders(&context.layout.container_dir(&record.id), &context.layout.container_rw(&record.id), owner)?;
    let path = context.layout.container_record(&record.id);
    context.write_within(MAX_NEW_BYTES, &path, state::kind::CONTAINER, &record, false)?;
    failpoint::hit("container.recorded");
    let leaf = context.cgroups.create_leaf(&record.cgroup, &limits)?;
    if !leaf.skipped.is_empty() {
        tracing::info!(container = %record.id, skipped = ?leaf.skipped, "skipped limits that this host has no files for");
    }
    let host = HostFacts { cap_bounding: context.cap_bounding, hostname: context.node_name.clone(), devices };
    let plan = spec::container(spec::ContainerInput {
        pod,
        container: &record,
        image: &facts,
        rootfs,
        files: files::of(&context.layout, pod),
        image_layers: &layers,
        cgroup: leaf.plan,
        seccomp_flags: seccomp.as_ref().map_or(0, |compiled| compiled.flags),
        seccomp: seccomp.map(|compiled| compiled.program.clone()),
        apparmor,
        keyring: keyring()?,
        host: &host,
    })?;
    let mounts = context.mount_namespace.try_clone();
    let mounts = mounts.map_err(|error| Error::of("copy the mount namespace", error))?;
    let mut fds = vec![memfd("container-plan", &plan)?, mounts];
    fds.extend(leaf.folders);
    Ok(Prepared {
        log: spec::log_plan(config, &pod.config.log_directory)?,
        volumes: volumes(&plan.mounts),
        process: plan.process,
        record,
        fds,
    })
}

/// The volumes of a plan, which may be on any file system of the node.
fn volumes(mounts: &[MountPlan]) -> Vec<Volume> {
    let volume = |mount: &MountPlan| match &mount.kind {
        MountKind::Bind { source, .. } => {
            Some(Volume { target: mount.target.clone(), source: source.clone() })
        }
        _ => None,
    };
    mounts.iter().filter_map(volume).collect()
}

/// A random name for a container's session keyring, with runc's prefix. Other containers could join a keyring whose name
/// they can guess, such as the id.
fn keyring() -> Result<String, Error> {
    Ok(format!("_ses.{}", ContainerId::from_random(random()?)))
}

/// Creates the container's folder with its writable layer, which belongs to `owner`, root of its user namespace. Not
/// synced: a container that was not started need not survive a power loss.
fn folders(dir: &Path, rw: &Path, owner: Option<(u32, u32)>) -> Result<(), Error> {
    let make = |path: &Path, mode: u32| {
        let made = std::fs::DirBuilder::new().mode(mode).create(path);
        made.map_err(|error| Error::of(format!("make {}", path.display()), error))
    };
    make(dir, 0o700)?;
    make(rw, 0o700)?;
    // The upper folder is the root of the container's file system.
    make(&rw.join("upper"), 0o755)?;
    make(&rw.join("work"), 0o700)?;
    let Some((uid, gid)) = owner else { return Ok(()) };
    for folder in [rw.join("upper"), rw.join("work")] {
        // Only root of the host can reach them, so nobody can have replaced one by a link.
        std::os::unix::fs::lchown(&folder, Some(uid), Some(gid))
            .map_err(|error| Error::of(format!("change the owner of {}", folder.display()), error))?;
    }
    Ok(())
}

/// Starts init, and syncs the record at the same time: after a power loss a container that may have run must be known.
pub(crate) async fn start(
    context: Arc<Context>,
    client: Client,
    id: ContainerId,
    recorder: Arc<Recorder<ContainerRecord>>,
) -> Result<i64, StartError> {
    let started = async {
        match client.request("start", Request::Start { container: id.clone() }, Vec::new(), START).await {
            Ok((Reply::Started { started_at }, _)) => Ok(started_at),
            Ok(_) => Err(StartError::Other(ClientError::UnexpectedReply("start").into())),
            Err(ClientError::Failed(failure)) if failure.kind == ShimErrorKind::StartFailed => {
                Err(StartError::Never(failure.message))
            }
            Err(error) => Err(StartError::Other(error.into())),
        }
    };
    let (started, recorded) = tokio::join!(started, recorder.persist(&context, true));
    failpoint::hit("container.started");
    let started_at = started?;
    // Not an error of the call, whether the write failed or its disk hangs: the container is running, and kubelet would
    // create another one. The record is written again when it exits.
    if let Err(error) = recorded {
        tracing::error!(container = %id, error = %error.text(), "cannot record the start: after a power loss the container would be unknown");
    }
    Ok(started_at)
}

/// Removes a container: its entry in the shim, cgroup, files, and then its image lease. Idempotent.
pub(crate) async fn remove(
    context: &Arc<Context>,
    client: Option<&Client>,
    record: &ContainerRecord,
) -> Vec<Error> {
    if let Some(client) = client
        && let Err(error) = forget(client, &record.id).await
    {
        // The rest does not need the shim. Its entry is removed when the shim is connected again.
        tracing::warn!(container = %record.id, %error, "the shim did not remove the container from its table");
    }
    let (shared, container) = (Arc::clone(context), record.clone());
    let owner = record.pod.as_str();
    let (deleting, deleted) = tokio::sync::oneshot::channel::<()>();
    let removed = lanes::run(lanes::records(), owner, "remove the container", move || {
        let mut errors = Vec::new();
        if !container.cgroup.is_empty() {
            errors.extend(shared.cgroups.remove(&container.cgroup).err().map(Error::from));
        }
        let dir = shared.layout.container_dir(&container.id);
        errors.extend(state::file::discard_dir(&dir, &shared.trash, deleting).err().map(Error::from));
        Ok(errors)
    });
    let mut errors = removed.await.unwrap_or_else(|error| vec![error]);
    // Last, because the lease keeps the image's layers, which the container's root consists of.
    if errors.is_empty()
        && let Err(error) = release(context, record).await
    {
        errors.push(Error::from(error));
    }
    let _step = progress::enter("delete the container's files", lanes::advice(lanes::records()));
    // Nothing is sent on this channel. The receiver resolves when `deleting` is dropped: when the files are deleted.
    drop(tokio::time::timeout(DELETED, deleted).await);
    errors
}

/// Releases the lease on the image.
async fn release(context: &Context, record: &ContainerRecord) -> Result<(), image::Error> {
    let _step = progress::enter("release the image", images::STORE);
    context.images.release(record.id.as_str()).await
}

/// Asks the shim to remove an exited container from its table. Until the shim has reaped the container's processes, it
/// refuses; that is retried. A missing container or a lost connection is not an error.
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

/// Kills a container and asks the shim to remove it from its table.
pub(crate) async fn kill_and_forget(client: &Client, id: &ContainerId) -> Result<(), ClientError> {
    let kill = Request::Kill { container: id.clone(), signal: 9, all: true };
    match client.done("the kill", kill, SHORT).await {
        Err(ClientError::Failed(failure)) if failure.kind == ShimErrorKind::NotFound => {}
        done => done?,
    }
    forget(client, id).await
}

/// Undoes a create, whichever of its steps were completed.
pub(crate) async fn undo_create(
    context: &Arc<Context>,
    client: Option<&Client>,
    record: &ContainerRecord,
) -> Vec<Error> {
    if let Some(client) = client {
        let kill = Request::Kill { container: record.id.clone(), signal: 9, all: true };
        // The shim may not have the container.
        if let Err(error) = client.done("the kill", kill, SHORT).await {
            tracing::debug!(container = %record.id, %error, "cannot kill a container whose create is undone");
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shims::fakes::connected;

    #[tokio::test]
    async fn a_create_that_took_too_long_names_the_volume_that_hangs() {
        let failed = |kind| {
            let (stage, message) = ("worker".to_owned(), "the deadline has passed".to_owned());
            ClientError::Failed(wire::Failure { kind, stage, message, errno: 0 })
        };
        let hanging = || {
            let volume = Volume { target: "/data".to_owned(), source: "/mnt/nfs/data".to_owned() };
            Some(Hanging::since_now(volume))
        };
        let error = not_created(failed(ShimErrorKind::Timeout), hanging());
        assert_eq!(error.kind, ErrorKind::DeadlineExceeded);
        let text = error.text();
        assert!(text.starts_with("volume /data from /mnt/nfs/data was not mounted within "), "{text}");
        assert!(
            text.contains("file system may hang") && text.ends_with("worker: the deadline has passed"),
            "{text}"
        );
        // A silent shim is told as well; another failure has its own cause.
        let after = Duration::from_secs(105);
        let silent = not_created(ClientError::Silent { what: "create", after }, hanging()).text();
        assert!(silent.contains("/mnt/nfs/data") && silent.contains("within 105s"), "{silent}");
        let other = not_created(failed(ShimErrorKind::Invalid), hanging()).text();
        assert_eq!(other, "worker: the deadline has passed");
    }

    /// A shim refuses to remove the entry of a container while processes that were killed are not reaped.
    #[tokio::test]
    async fn an_entry_is_removed_once_the_processes_are_reaped() {
        let (connection, mut shim) = connected().await;
        let id = ContainerId::from_random([1; 32]);
        let (outcome, ()) = tokio::join!(kill_and_forget(&connection.client, &id), async {
            let (request, kill) = shim.request().await;
            assert!(matches!(kill, Request::Kill { signal: 9, all: true, .. }), "{kill:?}");
            shim.reply(request, Reply::Done).await;
            for _ in 0..3 {
                let (request, forget) = shim.request().await;
                assert!(matches!(forget, Request::Forget { .. }), "{forget:?}");
                shim.refuse(request, ShimErrorKind::WrongState, "the container has not exited").await;
            }
            let (request, forget) = shim.request().await;
            assert!(matches!(forget, Request::Forget { .. }), "{forget:?}");
            shim.reply(request, Reply::Done).await;
        });
        assert!(outcome.is_ok(), "{outcome:?}");
    }

    #[tokio::test]
    async fn a_container_that_the_shim_does_not_have_is_no_error() {
        let (connection, mut shim) = connected().await;
        let id = ContainerId::from_random([1; 32]);
        let (outcome, ()) = tokio::join!(kill_and_forget(&connection.client, &id), async {
            for _ in 0..2 {
                let (request, _) = shim.request().await;
                shim.refuse(request, ShimErrorKind::NotFound, "no such container").await;
            }
        });
        assert!(outcome.is_ok(), "{outcome:?}");
    }
}
