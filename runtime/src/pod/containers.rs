//! The work of CreateContainer and StartContainer. `remove` does that of RemoveContainer, and undoes failed creates.

mod host;
mod images;
mod remove;

pub(crate) use remove::{kill_and_forget, remove, undo_create};

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
use wire::{
    ErrorKind as ShimErrorKind, LayerSource, LogPlan, MountKind, MountPlan, ProcessPlan, Reply, Request,
    RootfsPlan,
};

/// How much longer the daemon waits than the shim does: time for the shim to kill the worker and reply.
const SLACK: Duration = Duration::from_secs(5);
/// Time limit from the start request to execve. That takes milliseconds, but much longer on a machine that swaps.
const START: Duration = Duration::from_secs(60);

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
        layers: lease.layers.into_iter().map(LayerSource::Folder).collect(),
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
        host: host::look_up(context, client, pod, &record).await?,
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

/// Creates the folders, records the intent, creates the leaf cgroup, and computes the plan. Blocking.
fn prepare(
    context: &Context,
    pod: &PodRecord,
    sources: Sources,
    mut record: ContainerRecord,
) -> Result<Prepared, Error> {
    let Sources { image, rootfs, layers, host: HostParts { seccomp, devices, apparmor, selinux } } = sources;
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
        selinux,
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
    // If the write fails or its disk hangs, the call still succeeds: the container is running, and after an error kubelet
    // would create another one. The record is written again when the container exits.
    if let Err(error) = recorded {
        tracing::error!(container = %id, error = %error.text(), "cannot record the start: after a power loss the container would be unknown");
    }
    Ok(started_at)
}

#[cfg(test)]
mod tests {
    use super::*;

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
        // The error of a silent shim names the volume too; any other failure has a cause of its own.
        let after = Duration::from_secs(105);
        let silent = not_created(ClientError::Silent { what: "create", after }, hanging()).text();
        assert!(silent.contains("/mnt/nfs/data") && silent.contains("within 105s"), "{silent}");
        let other = not_created(failed(ShimErrorKind::Invalid), hanging()).text();
        assert_eq!(other, "worker: the deadline has passed");
    }
}
