//! Restores the node after a restart of the daemon. The records are read and published first, so that lists work at
//! once. Then each pod's driver connects to its shim and applies its part of the plan (`model::reconcile`). What belongs
//! to no record is removed meanwhile.

use crate::error::Error;
use crate::kept::{self, KeptContainer, KeptPod};
use crate::netns;
use crate::pod::context::blocking;
use crate::pod::{Context, Registry, adopt, containers};
use crate::shims::dial::{Dialled, dial};
use crate::shims::spawn;
use model::{ContainerId, ContainerRecord, PodId, PodRecord};
use serde::de::DeserializeOwned;
use state::Layout;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use wire::{Request, Snapshot};

/// Time limit for the hello of a shim without a record.
const GREETING: Duration = Duration::from_secs(3);
/// Time limit for such a shim to stop its processes.
const STOP: Duration = Duration::from_secs(10);

/// The records that were read.
#[derive(Debug, Default)]
struct Records {
    /// Pods, with true if the record is of this boot.
    pods: Vec<(PodRecord, bool)>,
    containers: BTreeMap<PodId, Vec<ContainerRecord>>,
    /// Objects whose records cannot be used; they are not touched.
    kept_pods: BTreeMap<PodId, KeptPod>,
    kept_containers: Vec<KeptContainer>,
    strays: Strays,
}

/// What has no record, and is removed.
#[derive(Debug, Default)]
struct Strays {
    /// Shims whose pods have no record.
    shims: Vec<PodId>,
    /// Containers whose pods have no record.
    containers: Vec<ContainerRecord>,
    /// Pods whose folders have no record.
    pod_dirs: Vec<PodId>,
    /// Containers whose folders have no record.
    container_dirs: Vec<ContainerId>,
}

/// The ids of all objects that have a record, usable or not.
struct Known {
    pods: BTreeSet<PodId>,
    containers: BTreeSet<ContainerId>,
}

impl Known {
    fn of(records: &Records) -> Self {
        let pods = records.pods.iter().map(|(record, _)| &record.id).chain(records.kept_pods.keys());
        let kept = records.kept_containers.iter().map(|container| &container.record);
        let containers = records.containers.values().flatten().chain(kept).map(|record| &record.id);
        Self { pods: pods.cloned().collect(), containers: containers.cloned().collect() }
    }
}

/// Reads and publishes the records, and starts the drivers and the removal of what has no record.
pub(crate) async fn restore(context: &Arc<Context>, registry: &Arc<Registry>) -> Result<(), Error> {
    let (layout, boot_id) = (context.layout.clone(), context.boot_id.clone());
    let mut records = blocking("read the records", move || read(&layout, &boot_id)).await?;
    let known = Known::of(&records);
    tracing::info!(pods = known.pods.len(), containers = known.containers.len(), "records read");
    // Before any driver starts, because a driver kills the containers of its shim that are not known.
    for pod in records.kept_pods.values() {
        tracing::error!("{}", pod.refusal.message);
        registry.keep_pod(pod);
    }
    for container in &records.kept_containers {
        tracing::error!("{}", container.refusal.message);
        registry.keep_container(container);
    }
    for (record, same_boot) in records.pods {
        let containers = records.containers.remove(&record.id).unwrap_or_default();
        let leaving = model::reconcile::is_leaving(same_boot, &record, &containers);
        adopt(context, registry, record, containers, same_boot, leaving);
    }
    // Listed before the first call is served, so that no lease of a new object is among them.
    let image_leases = context.images.lease_owners();
    let network_leases = context.cni.leases().await;
    let (context, held) = (Arc::clone(context), registry.hold());
    tokio::spawn(async move {
        let _held = held;
        remove_strays(&context, &records.strays).await;
        release_images(&context, image_leases, &known).await;
        match network_leases {
            Ok(pods) => release_networks(&context, pods, &known).await,
            Err(error) => tracing::warn!(%error, "cannot list CNI leases"),
        }
    });
    Ok(())
}

/// Reads every record. A damaged one is set aside, and its object is lost; the object of one that cannot be used is kept.
/// Blocking.
///
/// # Errors
/// The folders of records cannot be listed. The daemon must not start then: kubelet would see an empty node, and start
/// all pods again beside those that run.
fn read(layout: &Layout, boot_id: &str) -> Result<Records, Error> {
    let mut records = Records::default();
    let mut known = BTreeSet::new();
    for id in layout.pods()? {
        let path = layout.pod_record(&id);
        match load::<PodRecord>(layout, &path, state::kind::POD) {
            Ok(Some((record, written_in))) if record.id == id => {
                known.insert(id);
                records.pods.push((record, written_in == boot_id));
            }
            Ok(_) => records.strays.pod_dirs.push(id),
            Err(why) => {
                records.kept_pods.insert(id.clone(), kept::pod(&id, &path, &why));
            }
        }
    }
    for id in layout.containers()? {
        let path = layout.container_record(&id);
        match load::<ContainerRecord>(layout, &path, state::kind::CONTAINER) {
            Ok(Some((record, _))) if record.id == id => match records.kept_pods.get(&record.pod) {
                Some(pod) => records.kept_containers.push(kept::container_of(pod, record)),
                None if known.contains(&record.pod) => {
                    records.containers.entry(record.pod.clone()).or_default().push(record);
                }
                None => records.strays.containers.push(record),
            },
            Ok(_) => records.strays.container_dirs.push(id),
            Err(why) => records.kept_containers.push(kept::container(&id, &path, &why)),
        }
    }
    let kept = |id: &PodId| records.kept_pods.contains_key(id);
    records.strays.shims =
        layout.shims()?.into_iter().filter(|id| !known.contains(id) && !kept(id)).collect();
    Ok(records)
}

/// Reads a record, and the id of the boot in which it was written. `None` if it does not exist or is damaged; a damaged
/// one is set aside.
///
/// # Errors
/// It cannot be read, was written by a later version, or cannot be set aside. It must not be treated as missing: its
/// object may be running.
fn load<T: DeserializeOwned>(
    layout: &Layout,
    path: &Path,
    kind: &str,
) -> Result<Option<(T, String)>, state::Error> {
    match state::file::read::<T>(path, kind) {
        Ok(stored) => Ok(stored.map(|stored| (stored.data, stored.boot_id))),
        Err(error) if error.is_bad_file() => {
            tracing::error!(path = %path.display(), %error, "a record is damaged: it is set aside");
            state::set_aside(path, layout).map(|_| None)
        }
        Err(error) => Err(error),
    }
}

/// Stops and removes what has no record. Errors are logged, and the next start tries again.
async fn remove_strays(context: &Arc<Context>, strays: &Strays) {
    for pod in &strays.shims {
        remove_shim(context, pod).await;
    }
    for record in &strays.containers {
        remove_container(context, record).await;
    }
    let pods = strays.pod_dirs.iter().map(|id| context.layout.pod_dir(id));
    let containers = strays.container_dirs.iter().map(|id| context.layout.container_dir(id));
    for dir in pods.chain(containers) {
        let (removed, trash) = (dir.clone(), context.trash.clone());
        let remove = move || Ok(state::file::discard_dir(&removed, &trash, ())?);
        if let Err(error) = blocking("remove a folder", remove).await {
            tracing::warn!(dir = %dir.display(), %error, "cannot remove a folder without a record");
        }
    }
}

/// Stops a shim without a record, kills its processes and removes its cgroups.
async fn remove_shim(context: &Arc<Context>, pod: &PodId) {
    tracing::warn!(%pod, "stopping a shim without a record");
    let connection = match dial(&context.layout, pod, 0, GREETING).await {
        Dialled::Connected(connection) => Some(connection),
        Dialled::Gone | Dialled::Silent(_) => None,
    };
    let mut pids = Vec::new();
    for entry in connection.iter().flat_map(|connection| &connection.snapshot) {
        if let Snapshot::Pause { pid, .. } | Snapshot::Container { pid, .. } = entry {
            pids.push(*pid);
        }
    }
    // Before the stop, because only living processes show the paths of their cgroups.
    let leaves = blocking("find the cgroups of a shim", move || Ok(leaves(&pids))).await.unwrap_or_default();
    if let Some(connection) = connection
        && let Err(error) = connection.client.done("the pod's stop", Request::StopPod, STOP).await
    {
        tracing::warn!(%pod, %error, "a shim without a record did not stop its pod");
    }
    let (shared, id) = (Arc::clone(context), pod.clone());
    let removed = blocking("remove a shim", move || {
        let mut errors = Vec::new();
        for leaf in &leaves {
            errors.extend(shared.cgroups.kill_all(leaf).err().map(Error::from));
        }
        errors.extend(spawn::remove(&shared.layout, &shared.cgroups, &id).err());
        for leaf in &leaves {
            errors.extend(shared.cgroups.remove(leaf).err().map(Error::from));
        }
        let gone = shared.cgroups.remove_pod(&model::PodConfig::default(), &id);
        errors.extend(gone.err().map(Error::from));
        Error::gathered(errors)
    });
    if let Err(error) = removed.await {
        tracing::warn!(%pod, %error, "cannot remove a shim without a record");
    }
}

/// Removes a container whose pod has no record, and the cgroup of that pod's pause.
async fn remove_container(context: &Arc<Context>, record: &ContainerRecord) {
    tracing::warn!(container = %record.id, pod = %record.pod, "removing a container without a pod");
    for error in containers::undo_create(context, None, record).await {
        tracing::warn!(container = %record.id, %error, "cannot remove a container without a pod");
    }
    // No record and no shim has the path of pause's cgroup, but it is beside the container's.
    if let Some((parent, _)) = record.cgroup.rsplit_once('/') {
        let (cgroups, leaf) = (context.cgroups.clone(), crate::cgroups::leaf_path(parent, &record.pod));
        let removed = blocking("remove pause's cgroup", move || {
            cgroups.kill_all(&leaf)?;
            Ok(cgroups.remove(&leaf)?)
        });
        if let Err(error) = removed.await {
            tracing::warn!(pod = %record.pod, %error, "cannot remove the cgroup of a lost pod");
        }
    }
}

/// Releases the image leases of containers that have no record.
async fn release_images(context: &Context, leases: Vec<String>, known: &Known) {
    let is_known = |owner: &str| owner.parse().is_ok_and(|id| known.containers.contains(&id));
    for owner in leases.into_iter().filter(|owner| !is_known(owner)) {
        if let Err(error) = context.images.release(&owner).await {
            let error = crate::error::with_causes(&error);
            tracing::warn!(owner, error, "cannot release an image lease without an owner");
        }
    }
}

/// Runs CNI DEL for pods that have a lease but no record, and removes their pins.
async fn release_networks(context: &Context, pods: Vec<PodId>, known: &Known) {
    for pod in pods.into_iter().filter(|pod| !known.pods.contains(pod)) {
        let pin = netns::path(&context.netns_dir, &pod);
        match context.cni.del(&pod, Some(&pin)).await {
            Ok(()) => unpin(&pin).await,
            Err(error) => tracing::warn!(%pod, %error, "cannot release the network of an unknown pod"),
        }
    }
}

/// The leaf cgroups of these processes. A process may be in any cgroup, but only ours are named by an id. Blocking.
fn leaves(pids: &[u32]) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for pid in pids.iter().filter(|pid| **pid != 0) {
        let Ok(text) = std::fs::read_to_string(format!("/proc/{pid}/cgroup")) else { continue };
        for path in text.lines().filter_map(|line| line.splitn(3, ':').nth(2)) {
            let name = path.rsplit('/').next().unwrap_or_default();
            if name.parse::<ContainerId>().is_ok() && !path.starts_with(crate::cgroups::SHIM_ROOT) {
                found.insert(path.to_owned());
            }
        }
    }
    found
}

async fn unpin(pin: &Path) {
    let path = pin.to_owned();
    let removed = blocking("unpin", move || netns::unpin(&path).map_err(|error| Error::of("unpin", &error)));
    if let Err(error) = removed.await {
        tracing::warn!(pin = %pin.display(), %error, "cannot remove a network namespace pin without a pod");
    }
}

#[cfg(test)]
mod tests;
