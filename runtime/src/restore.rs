//! After a restart: records first, so that lists answer at once; then every pod's driver asks its shim and
//! carries out its part of the plan (`model::reconcile`). What belongs to no record is swept meanwhile.

use crate::kept::{self, KeptContainer, KeptPod};
use crate::netns;
use crate::node::Error;
use crate::pod::driver::{self, Driver};
use crate::pod::{CONTAINER_RECORD, Context, POD_RECORD, blocking, containers, now, teardown};
use crate::registry::{Registry, Seat};
use crate::shims::client::{self, ClientError};
use crate::shims::{Client, Connection, spawn};
use model::reconcile::{ContainerAction, Facts, Held, PodAction, Shim, reconcile};
use model::{ContainerId, ContainerRecord, Exit, PodId, PodPhase, PodRecord};
use serde::de::DeserializeOwned;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use wire::{ContainerState, Request, Snapshot};

/// How long a living shim may take to greet.
const GREETING: Duration = Duration::from_secs(3);
/// How often a shim that was lost in the middle is dialled again, and how long each may take: all of it is
/// over before five seconds are.
const TRIES: u32 = 3;
const AGAIN: Duration = Duration::from_secs(1);
const PAUSE: Duration = Duration::from_millis(200);
/// How long a killed shim may take to go.
const KILL: Duration = Duration::from_secs(1);
/// Between questions to a silent shim, and after how many it is taken for dead.
const RETRY: Duration = Duration::from_secs(1);
const MOST_SILENCE: u32 = 8;
/// For an orphan's processes.
const STOP: Duration = Duration::from_secs(10);

/// What asking a shim has brought.
#[derive(Debug)]
pub(crate) struct Answer {
    said: Said,
    exits: BTreeMap<ContainerId, (Exit, i64)>,
    /// False when the pod is of another boot.
    same_boot: bool,
}

#[derive(Debug)]
enum Said {
    Here(Box<Connection>),
    Gone,
    /// `ours`: for lack of descriptors or memory in this process, which says nothing about the shim.
    Silent {
        ours: bool,
    },
}

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
        let leaving = match record.phase {
            // With containers it may be one whose commit a power loss took.
            PodPhase::Launching => same_boot || containers.is_empty(),
            phase => phase == PodPhase::Removing,
        };
        let seat = registry.restore(&record.id, &Arc::new(record.config.clone()), leaving);
        adopt(context, registry, seat, record, containers, same_boot);
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

/// Starts the driver of a recorded pod.
fn adopt(
    context: &Arc<Context>,
    registry: &Arc<Registry>,
    seat: Seat,
    record: PodRecord,
    containers: Vec<ContainerRecord>,
    same_boot: bool,
) {
    let mut driver = Driver::new(Arc::clone(context), Arc::clone(registry), record);
    // What was never committed, or is going, is not shown.
    driver.hidden = matches!(driver.record.phase, PodPhase::Launching | PodPhase::Removing);
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
        let answer = if same_boot { ask(&context, &id, GREETING).await } else { Answer::of_another_boot() };
        driver.dialled(answer);
        driver.launched = Some(launched);
        driver.run(&mut commands, &mut closing).await;
    });
}

impl Answer {
    fn of_another_boot() -> Self {
        Self { said: Said::Gone, exits: BTreeMap::new(), same_boot: false }
    }
}

/// Dials a pod's shim and reads the exit records it has left.
async fn ask(context: &Arc<Context>, pod: &PodId, limit: Duration) -> Answer {
    let said = dial(context, pod, limit).await;
    let (theirs, id) = (Arc::clone(context), pod.clone());
    let exits =
        blocking("read exit records", move || Ok(teardown::exits(&theirs, &id))).await.unwrap_or_default();
    let exits = exits.into_iter().map(|(id, facts)| (id, (containers::exit_of(&facts), facts.started_at)));
    Answer { said, exits: exits.collect(), same_boot: true }
}

async fn dial(context: &Arc<Context>, pod: &PodId, limit: Duration) -> Said {
    let socket = context.layout.shim_socket(pod);
    let reachable = blocking("find the shim", move || {
        match socket
            .try_exists()
            .map_err(|error| Error::of(format!("look at {}", socket.display()), &error))?
        {
            true => spawn::reachable(&socket).map(Some),
            false => Ok(None),
        }
    });
    let socket = match reachable.await {
        Ok(Some(socket)) => socket,
        Ok(None) => return Said::Gone,
        // Our own trouble (no descriptors, no memory) says nothing about the shim.
        Err(error) => {
            tracing::warn!(%pod, %error, "cannot look for the shim");
            return Said::Silent { ours: true };
        }
    };
    match client::dial(&socket.path, pod, limit).await {
        Ok(connection) => Said::Here(Box::new(connection)),
        // The shim holds the listening socket: refused means that nobody does.
        Err(ClientError::Socket { source, .. })
            if matches!(
                source.kind(),
                std::io::ErrorKind::ConnectionRefused | std::io::ErrorKind::NotFound
            ) =>
        {
            Said::Gone
        }
        Err(error) => {
            tracing::warn!(%pod, %error, "shim does not answer");
            Said::Silent { ours: matches!(&error, ClientError::Socket { source, .. } if is_lack(source)) }
        }
    }
}

/// Does this process or machine lack something that it needs to ask?
fn is_lack(error: &std::io::Error) -> bool {
    use rustix::io::Errno;
    matches!(
        Errno::from_io_error(error),
        Some(Errno::MFILE | Errno::NFILE | Errno::NOMEM | Errno::NOBUFS | Errno::AGAIN)
    )
}

/// After a lost connection: dials again, or sees to it that the shim is dead.
pub(crate) async fn dial_again(context: &Arc<Context>, pod: &PodId, client: Client) -> Answer {
    let mut tries = 0;
    while tries < TRIES {
        if tokio::time::timeout(PAUSE, client.ended()).await.is_ok() {
            break;
        }
        let answer = ask(context, pod, AGAIN).await;
        match answer.said {
            Said::Here(_) => return answer,
            // A shim is not killed for our own lack of descriptors or memory.
            Said::Silent { ours: true } => {}
            Said::Silent { ours: false } | Said::Gone => tries += 1,
        }
    }
    kill(pod, &client).await;
    let mut answer = ask(context, pod, AGAIN).await;
    answer.said = Said::Gone;
    answer
}

async fn kill(pod: &PodId, client: &Client) {
    if let Err(error) = client.kill()
        && error.raw_os_error() != Some(rustix::io::Errno::SRCH.raw_os_error())
    {
        tracing::warn!(%pod, %error, "cannot kill the shim");
    }
    if tokio::time::timeout(KILL, client.ended()).await.is_err() {
        tracing::warn!(%pod, "the shim does not die: its pod is ended without it");
    }
}

/// Carries out the plan for one pod.
pub(crate) fn apply(driver: &mut Driver, answer: Answer) {
    let Answer { said, exits, same_boot } = answer;
    let (shim, connection) = match said {
        Said::Here(connection) => (held(&connection.snapshot), Some(connection)),
        Said::Gone => (Shim::Gone, None),
        Said::Silent { .. } => (Shim::Silent, None),
    };
    let records: Vec<ContainerRecord> = driver.containers.values().map(|it| it.record.clone()).collect();
    let gone = shim == Shim::Gone;
    let facts = Facts { same_boot, pod: &driver.record, containers: &records, shim, exits };
    let plan = reconcile(&facts, now());
    tracing::debug!(pod = %driver.record.id, action = ?plan.pod, containers = ?plan.containers, "reconciled");
    if let Some(connection) = connection {
        driver.attach(*connection);
    }
    // A dead shim's processes are killed before anything is said of their end.
    let bury = gone && same_boot && matches!(plan.pod, PodAction::NotReady { .. } | PodAction::RollBack);
    for (id, action) in plan.containers {
        match action {
            ContainerAction::Adopt { phase, pid, started_at } => {
                let recorded = records.iter().find(|record| record.id == id).map(|it| it.started_at);
                let started_at = if started_at == 0 { recorded.unwrap_or(0) } else { started_at };
                driver.resume(&id, phase, pid, started_at);
            }
            ContainerAction::MarkExited { .. } if bury => {}
            ContainerAction::MarkExited { exit, started_at } => driver.exited(&id, exit, started_at),
            // With its pod.
            ContainerAction::RollBack if plan.pod == PodAction::RollBack => {}
            ContainerAction::Remove if plan.pod == PodAction::Remove => {}
            ContainerAction::RollBack => driver.roll_back(&id),
            ContainerAction::Remove => driver.begin_remove(&id),
            // Its record is there, and cannot be used.
            ContainerAction::KillOrphan if driver.registry.managed(id.as_str()).is_err() => {}
            ContainerAction::KillOrphan => driver.kill_orphan(&id),
            ContainerAction::Keep | ContainerAction::Retry => {}
        }
    }
    match plan.pod {
        PodAction::Adopt => driver.publish(),
        PodAction::Keep => {}
        PodAction::NotReady { reason } => {
            driver.not_ready(&reason);
            if bury {
                driver.bury();
            } else if gone {
                // Another boot: nothing lives, the network may be owed.
                driver.begin_stop();
            }
        }
        PodAction::RollBack => {
            driver.remove_when_stopped = true;
            driver.not_ready("the daemon ended while it was launched");
            driver.begin_stop();
        }
        PodAction::Remove => {
            driver.remove_when_stopped = true;
            driver.begin_stop();
        }
        PodAction::Retry => driver.ask_later(),
    }
}

/// Asks a silent shim again after a while; too long a silence is death.
pub(crate) async fn ask_later(context: Arc<Context>, pod: PodId, silence: u32) -> Answer {
    tokio::time::sleep(RETRY).await;
    let mut answer = ask(&context, &pod, GREETING).await;
    if matches!(answer.said, Said::Silent { ours: false }) && silence >= MOST_SILENCE {
        tracing::error!(%pod, "the shim stays silent: its pod is ended without it");
        answer.said = Said::Gone;
    }
    answer
}

/// The snapshot as the plan reads it.
fn held(snapshot: &[Snapshot]) -> Shim {
    let (mut pause, mut containers) = (false, BTreeMap::new());
    for entry in snapshot {
        match entry {
            Snapshot::Pause { exited, .. } => pause = exited.is_none(),
            Snapshot::Container { container, state, pid } => {
                let pid = *pid;
                let held = match state {
                    ContainerState::Creating => Held::Creating,
                    ContainerState::Created => Held::Created { pid },
                    ContainerState::Running { started_at } => Held::Running { pid, started_at: *started_at },
                    // Of a later version; its init lives, and when it began is in the record.
                    ContainerState::Unknown => Held::Running { pid, started_at: 0 },
                    ContainerState::Exited(facts) => {
                        Held::Exited { exit: containers::exit_of(facts), started_at: facts.started_at }
                    }
                };
                containers.insert(container.clone(), held);
            }
            // Their callers are gone with the daemon that was.
            Snapshot::Exec { .. } => {}
        }
    }
    Shim::Answered { pause, containers }
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
        let connection = match dial(context, pod, GREETING).await {
            Said::Here(connection) => Some(connection),
            Said::Gone | Said::Silent { .. } => None,
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
        if let Err(error) = blocking("remove a folder", move || Ok(state::file::remove_dir(&removed)?)).await
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
