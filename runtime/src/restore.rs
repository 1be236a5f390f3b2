//! Restores the node after a restart of the daemon. The records are read and published first, so that lists work at
//! once. Then each pod's driver connects to its shim and applies its part of the plan (`model::reconcile`). What belongs
//! to no record is removed meanwhile.

mod strays;

use crate::error::Error;
use crate::kept::{self, KeptContainer, KeptPod};
use crate::netns;
use crate::pod::context::blocking;
use crate::pod::{Context, Registry, adopt};
use causes::with_causes;
use model::{ContainerId, ContainerRecord, PodId, PodPhase, PodRecord};
use serde::de::DeserializeOwned;
use state::Layout;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use strays::Strays;

/// Pause before the daemon tries again to remove the containers of [`Strays`] that it could not remove, for example
/// because a process has survived SIGKILL.
const AGAIN: Duration = Duration::from_secs(60);

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

/// The ids of all objects whose leases stay (for pods: except those that are `torn_down`). They include the containers that are being removed because they or their pods
/// have no record: the lease of such a container is released after its processes have ended.
struct Known {
    pods: BTreeSet<PodId>,
    /// Those of `pods` that are torn down: CNI DEL is all that can still be due for their networks.
    torn_down: BTreeSet<PodId>,
    containers: BTreeSet<ContainerId>,
}

impl Known {
    fn of(records: &Records) -> Self {
        let pods = records.pods.iter().map(|(record, _)| &record.id).chain(records.kept_pods.keys());
        let kept = records.kept_containers.iter().map(|container| &container.record);
        let recorded = records.containers.values().flatten().chain(kept).map(|record| &record.id);
        let containers = recorded.chain(records.strays.container_ids());
        let is_torn_down =
            |record: &PodRecord| matches!(record.phase, PodPhase::Stopped | PodPhase::Removing);
        let torn_down = records.pods.iter().map(|(record, _)| record).filter(|record| is_torn_down(record));
        Self {
            pods: pods.cloned().collect(),
            torn_down: torn_down.map(|record| record.id.clone()).collect(),
            containers: containers.cloned().collect(),
        }
    }
}

/// Reads and publishes the records, and starts the drivers and the removal of what has no record.
pub(crate) async fn restore(context: &Arc<Context>, registry: &Arc<Registry>) -> Result<(), Error> {
    let (layout, boot_id) = (context.layout.clone(), context.boot_id.clone());
    let mut records = blocking("read the records", move || read(&layout, &boot_id)).await?;
    let known = Known::of(&records);
    let mut strays = std::mem::take(&mut records.strays);
    let containers = known.containers.len() - strays.container_ids().count();
    tracing::info!(pods = known.pods.len(), containers, "records read");
    // Before any driver starts, because a driver kills the containers of its shim that are not known.
    for pod in records.kept_pods.values() {
        tracing::error!("{}", pod.refusal.text());
        registry.keep_pod(pod);
    }
    for container in &records.kept_containers {
        tracing::error!("{}", container.refusal.text());
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
    let (context, mut held) = (Arc::clone(context), registry.hold());
    tokio::spawn(async move {
        strays.remove(&context).await;
        release_images(&context, image_leases, &known).await;
        match network_leases {
            Ok(pods) => release_networks(&context, pods, &known),
            Err(error) => tracing::warn!(error = %with_causes(&error), "cannot list CNI leases"),
        }
        while !strays.has_no_container() {
            tokio::select! {
                // The daemon is stopping; the next start continues.
                _ = held.changed() => return,
                () = tokio::time::sleep(AGAIN) => strays.remove_containers(&context).await,
            }
        }
    });
    Ok(())
}

/// Reads every record. A damaged record is set aside, and its object is then one without a record: [`Strays`] stops and
/// removes it. If a record cannot be read, is too large or was written by a later version, its object is kept (`kept`).
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

/// Releases the image leases of containers that are not in `known`: they have no record, and [`Strays`] does not remove
/// them.
async fn release_images(context: &Context, leases: Vec<String>, known: &Known) {
    // An image volume's lease belongs to a part of the container: `<id>_<number>`.
    let container = |owner: &str| owner.split('_').next().unwrap_or_default().parse();
    let is_known = |owner: &str| container(owner).is_ok_and(|id| known.containers.contains(&id));
    for owner in leases.into_iter().filter(|owner| !is_known(owner)) {
        if let Err(error) = context.images.release(&owner).await {
            tracing::warn!(
                owner,
                error = with_causes(&error),
                "cannot release an image lease without an owner"
            );
        }
    }
}

/// CNI DEL is due for pods that have a lease but no record, or are torn down.
fn release_networks(context: &Context, pods: Vec<PodId>, known: &Known) {
    for pod in pods.into_iter().filter(|pod| !known.pods.contains(pod) || known.torn_down.contains(pod)) {
        context.cni.add_pending_del(&pod, &netns::path(&context.netns_dir, &pod));
    }
}

#[cfg(test)]
mod tests;
