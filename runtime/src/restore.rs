//! After a restart: records first, so that lists answer at once; then every pod's driver asks its shim and
//! carries out its part of the plan (`model::reconcile`). What belongs to no record is swept meanwhile.

use crate::error::Error;
use crate::kept::{self, KeptContainer, KeptPod};
use crate::netns;
use crate::pod::driver::link::{self, Answer, Link};
use crate::pod::driver::{self, Driver};
use crate::pod::{CONTAINER_RECORD, Context, POD_RECORD, blocking, containers};
use crate::registry::{Registry, Seat};
use crate::shims::dial::{Dialled, dial};
use crate::shims::spawn;
use model::{ContainerId, ContainerRecord, PodId, PodRecord};
use serde::de::DeserializeOwned;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use wire::{Request, Snapshot};

/// For an orphan's processes.
const STOP: Duration = Duration::from_secs(10);

/// All records.
#[derive(Debug, Default)]
struct Records {
    pods: Vec<(PodRecord, bool)>,
    containers: BTreeMap<PodId, Vec<ContainerRecord>>,
    /// Whose records cannot be used: left as they are.
    kept_pods: BTreeMap<PodId, KeptPod>,
    kept_containers: Vec<KeptContainer>,
    /// Of pods that have no record.
    strays: Vec<ContainerRecord>,
    /// Folders without a record.
    bare_pods: Vec<PodId>,
    bare_containers: Vec<ContainerId>,
    /// Shims' folders without a pod.
    shims: Vec<PodId>,
}

/// Reads, publishes, starts drivers and the sweep.
pub(crate) async fn restore(context: &Arc<Context>, registry: &Arc<Registry>) -> Result<(), Error> {
    let theirs = Arc::clone(context);
    let mut records = blocking("read the records", move || read(&theirs)).await?;
    let known: BTreeSet<PodId> = records.pods.iter().map(|(record, _)| record.id.clone()).collect();
    let known: BTreeSet<PodId> = known.into_iter().chain(records.kept_pods.keys().cloned()).collect();
    let kept = records.kept_containers.iter().map(|kept| &kept.record);
    let owners: BTreeSet<String> =
        records.containers.values().flatten().chain(kept).map(|record| record.id.to_string()).collect();
    tracing::info!(pods = known.len(), containers = owners.len(), "records read");
    // Before any driver: what a shim holds of these is not an orphan.
    for kept in records.kept_pods.values() {
        tracing::error!("{}", kept.refusal.message);
        registry.keep_pod(kept);
    }
    for kept in &records.kept_containers {
        tracing::error!("{}", kept.refusal.message);
        registry.keep_container(kept);
    }
    for (record, same_boot) in std::mem::take(&mut records.pods) {
        let containers = records.containers.remove(&record.id).unwrap_or_default();
        let leaving = model::reconcile::is_leaving(same_boot, &record, &containers);
        let seat = registry.restore(&record.id, &Arc::new(record.config.clone()), leaving);
        adopt(context, registry, seat, record, containers, Origin { same_boot, leaving });
    }
    let leases = context.images.leases();
    let context = Arc::clone(context);
    // What is new from here on is in none of these lists.
    let network = context.cni.leases().await;
    let held = registry.hold();
    tokio::spawn(async move {
        let _held = held;
        sweep(&context, records, &known).await;
        for owner in leases.into_iter().filter(|owner| !owners.contains(owner)) {
            if let Err(error) = context.images.release(&owner).await {
                tracing::warn!(owner, %error, "image lease of nobody not released");
            }
        }
        match network {
            Err(error) => tracing::warn!(%error, "cannot list CNI leases"),
            Ok(owed) => {
                for pod in owed.into_iter().filter(|pod| !known.contains(pod)) {
                    let pin = netns::path(&context.netns_dir, &pod);
                    match context.cni.del(&pod, Some(&pin)).await {
                        Ok(()) => unpin(&pin).await,
                        Err(error) => tracing::warn!(%pod, %error, "network of no pod not given back"),
                    }
                }
            }
        }
    });
    Ok(())
}

/// What a pod's record says beside the pod.
#[derive(Debug, Clone, Copy)]
struct Origin {
    /// What it names may live.
    same_boot: bool,
    /// It is rolled back or removed: not shown, and whoever wants its name waits.
    leaving: bool,
}

/// Starts the driver of a recorded pod.
fn adopt(
    context: &Arc<Context>,
    registry: &Arc<Registry>,
    seat: Seat,
    record: PodRecord,
    containers: Vec<ContainerRecord>,
    origin: Origin,
) {
    let mut driver = Driver::new(Arc::clone(context), Arc::clone(registry), record);
    driver.hidden = origin.leaving;
    driver.link = Link::down("it has not been asked since the daemon's start");
    driver.publish();
    for container in containers {
        let id = container.id.clone();
        driver.containers.insert(id.clone(), driver::Container::new(context, container));
        driver.publish_container(&id);
    }
    let context = Arc::clone(context);
    tokio::spawn(async move {
        // Dropped with the driver: whoever waits for the name of a pod that leaves then tries again.
        let Seat { id, mut commands, launched, mut closing } = seat;
        let answer = match origin.same_boot {
            true => link::ask(&context, &id, driver.record.shim_pid, link::GREETING).await,
            false => Answer::of_another_boot(),
        };
        driver.dialled(answer);
        driver.launched = Some(launched);
        driver.run(&mut commands, &mut closing).await;
    });
}

/// Reads every record. A torn one is set aside and costs its object; one that cannot be used is kept as it is.
/// Blocking.
///
/// # Errors
/// When the folders of the records cannot be listed: nothing is known then of what runs, and kubelet, told of an
/// empty node, would start everything a second time.
fn read(context: &Context) -> Result<Records, Error> {
    let layout = &context.layout;
    let mut records = Records::default();
    let mut known = BTreeSet::new();
    for id in layout.pods()? {
        let path = layout.pod_record(&id);
        match load::<PodRecord>(context, &path, POD_RECORD) {
            Ok(Some((record, boot_id))) if record.id == id => {
                known.insert(id);
                let same_boot = boot_id == context.boot_id;
                records.pods.push((record, same_boot));
            }
            Ok(_) => records.bare_pods.push(id),
            Err(why) => {
                records.kept_pods.insert(id.clone(), kept::pod(&id, &path, &why));
            }
        }
    }
    for id in layout.containers()? {
        let path = layout.container_record(&id);
        match load::<ContainerRecord>(context, &path, CONTAINER_RECORD) {
            Ok(Some((record, _))) if record.id == id => match records.kept_pods.get(&record.pod) {
                Some(pod) => records.kept_containers.push(kept::container_of(pod, record)),
                None if known.contains(&record.pod) => {
                    records.containers.entry(record.pod.clone()).or_default().push(record);
                }
                None => records.strays.push(record),
            },
            Ok(_) => records.bare_containers.push(id),
            Err(why) => records.kept_containers.push(kept::container(&id, &path, &why)),
        }
    }
    let kept = |id: &PodId| records.kept_pods.contains_key(id);
    records.shims = layout.shims()?.into_iter().filter(|id| !known.contains(id) && !kept(id)).collect();
    Ok(records)
}

/// `None` for a record that is not there, or is torn: that is set aside. An error for one that the disk does not
/// give, that a later version wrote, or that cannot be set aside: taken for a missing one it would cost a
/// running pod.
fn load<T: DeserializeOwned>(
    context: &Context,
    path: &Path,
    kind: &str,
) -> Result<Option<(T, String)>, state::Error> {
    match state::file::read::<T>(path, kind) {
        Ok(stored) => Ok(stored.map(|stored| (stored.data, stored.boot_id))),
        Err(error) if error.is_bad_file() => {
            tracing::error!(path = %path.display(), %error, "record not readable: set aside");
            state::file::set_aside(path, &context.layout).map(|_| None)
        }
        Err(error) => Err(error),
    }
}

/// Ends and removes what has no record. Errors are told and cost nothing else; the next start tries again.
async fn sweep(context: &Arc<Context>, records: Records, known: &BTreeSet<PodId>) {
    for pod in &records.shims {
        tracing::warn!(%pod, "shim without a record: ending it");
        let mut pids = Vec::new();
        let connection = match dial(&context.layout, pod, 0, link::GREETING).await {
            Dialled::Here(connection) => Some(connection),
            Dialled::Gone | Dialled::Silent(_) => None,
        };
        for entry in connection.iter().flat_map(|connection| &connection.snapshot) {
            if let Snapshot::Pause { pid, .. } | Snapshot::Container { pid, .. } = entry {
                pids.push(*pid);
            }
        }
        let leaves = blocking("find its cgroups", move || Ok(leaves(&pids))).await.unwrap_or_default();
        if let Some(connection) = connection
            && let Err(error) = connection.client.done("the pod's stop", Request::StopPod, STOP).await
        {
            tracing::warn!(%pod, %error, "shim without a record did not stop its pod");
        }
        let (theirs, id) = (Arc::clone(context), pod.clone());
        let removed = blocking("remove a shim", move || {
            let mut errors = Vec::new();
            for leaf in &leaves {
                errors.extend(theirs.cgroups.kill_all(leaf).err().map(Error::from));
            }
            errors.extend(spawn::remove(&theirs.layout, &theirs.cgroups, &id).err());
            for leaf in &leaves {
                errors.extend(theirs.cgroups.remove(leaf).err().map(Error::from));
            }
            let gone = theirs.cgroups.remove_pod(&model::PodConfig::default(), &id);
            errors.extend(gone.err().map(Error::from));
            Error::gathered(errors)
        });
        if let Err(error) = removed.await {
            tracing::warn!(%pod, %error, "shim without a record not removed");
        }
    }
    for record in &records.strays {
        tracing::warn!(container = %record.id, pod = %record.pod, "container of no pod: removing it");
        for error in containers::unmake(context, None, record).await {
            tracing::warn!(container = %record.id, %error, "container of no pod not removed");
        }
        // Pause lay beside it, and may have had no shim to tell where.
        if let Some((parent, _)) = record.cgroup.rsplit_once('/') {
            let (cgroups, leaf) = (context.cgroups.clone(), crate::cgroups::leaf_path(parent, &record.pod));
            let removed = blocking("remove pause's cgroup", move || {
                cgroups.kill_all(&leaf)?;
                Ok(cgroups.remove(&leaf)?)
            });
            if let Err(error) = removed.await {
                tracing::warn!(pod = %record.pod, %error, "cgroup of a lost pod not removed");
            }
        }
    }
    let pods = records.bare_pods.iter().filter(|id| !known.contains(id)).map(|id| context.layout.pod_dir(id));
    let containers = records.bare_containers.iter().map(|id| context.layout.container_dir(id));
    for dir in pods.chain(containers) {
        let removed = dir.clone();
        let trash = context.trash.clone();
        if let Err(error) =
            blocking("remove a folder", move || Ok(state::file::discard_dir(&removed, &trash, ())?)).await
        {
            tracing::warn!(dir = %dir.display(), %error, "folder without a record not removed");
        }
    }
}

/// Leaves of ours that these processes are in: those named by an id, as nobody else names any. Blocking.
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
        tracing::warn!(pin = %pin.display(), %error, "pin of no pod not removed");
    }
}
