//! Stops and removes what has no record. The folder and the image lease of a container stay as long as a process of it
//! may be left, because such a process would lose the files that it uses.

use crate::cgroups::SHIM_ROOT;
use crate::error::Error;
use crate::lanes;
use crate::pod::context::blocking;
use crate::pod::{Context, containers};
use crate::shims::dial::{Dialled, dial};
use crate::shims::spawn;
use model::{ContainerId, ContainerRecord, PodId};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use wire::{Request, Snapshot};

/// Time limit for the hello of a shim without a record.
const GREETING: Duration = Duration::from_secs(3);
/// Time limit for such a shim to stop its processes.
const STOP: Duration = Duration::from_secs(10);

/// What has no record, and is removed.
#[derive(Debug, Default)]
pub(super) struct Strays {
    /// Shims whose pods have no record.
    pub(super) shims: Vec<PodId>,
    /// Containers whose pods have no record.
    pub(super) containers: Vec<ContainerRecord>,
    /// Pods whose folders have no record.
    pub(super) pod_dirs: Vec<PodId>,
    /// Containers whose folders have no record.
    pub(super) container_dirs: Vec<ContainerId>,
}

impl Strays {
    /// The containers. Each is removed together with its image lease.
    pub(super) fn container_ids(&self) -> impl Iterator<Item = &ContainerId> {
        self.containers.iter().map(|record| &record.id).chain(&self.container_dirs)
    }

    /// Whether all containers are removed.
    pub(super) fn has_no_container(&self) -> bool {
        self.containers.is_empty() && self.container_dirs.is_empty()
    }

    /// Stops and removes everything. Errors are logged. The folders that are left of pods and shims are found again by
    /// the next start of the daemon; a container that cannot be removed stays in this value.
    pub(super) async fn remove(&mut self, context: &Arc<Context>) {
        for pod in std::mem::take(&mut self.shims) {
            remove_shim(context, &pod).await;
        }
        self.remove_containers(context).await;
        for id in std::mem::take(&mut self.pod_dirs) {
            let dir = context.layout.pod_dir(&id);
            if let Err(error) = discard(context, dir).await {
                tracing::warn!(pod = %id, error = %error.text(), "cannot remove a pod's folder without a record");
            }
        }
    }

    /// Kills and removes the containers. Errors are logged, and their containers stay in this value.
    pub(super) async fn remove_containers(&mut self, context: &Arc<Context>) {
        let mut left = Vec::new();
        for record in std::mem::take(&mut self.containers) {
            if !remove_container(context, &record).await {
                left.push(record);
            }
        }
        self.containers = left;
        if self.container_dirs.is_empty() {
            return;
        }
        let ids: BTreeSet<ContainerId> = self.container_dirs.iter().cloned().collect();
        let find = move || {
            leaves_named(Path::new("/proc"), &ids).map_err(|error| Error::of("list the processes", error))
        };
        let mut leaves = match lanes::run(lanes::kill(), "strays", "find processes", find).await {
            Ok(leaves) => leaves,
            Err(error) => {
                tracing::warn!(error = %error.text(), "containers without records are not removed yet: they may have processes");
                return;
            }
        };
        let mut left = Vec::new();
        for id in std::mem::take(&mut self.container_dirs) {
            let leaves = leaves.remove(&id).unwrap_or_default();
            if let Err(error) = remove_container_dir(context, &id, leaves).await {
                tracing::warn!(container = %id, error = %error.text(), "cannot remove a container without a record");
                left.push(id);
            }
        }
        self.container_dirs = left;
    }
}

/// Stops a shim without a record, kills its processes and removes its cgroups.
async fn remove_shim(context: &Arc<Context>, pod: &PodId) {
    tracing::warn!(%pod, "stopping a shim without a record");
    let connection = match dial(&context.layout, pod, 0, GREETING).await {
        Dialled::Connected(connection) => Some(connection),
        Dialled::Gone | Dialled::Silent(_) => None,
    };
    let mut processes = Vec::new();
    for entry in connection.iter().flat_map(|connection| &connection.snapshot) {
        match entry {
            Snapshot::Pause { pid, .. } => processes.push((*pid, pod.to_string())),
            Snapshot::Container { container, pid, .. } => processes.push((*pid, container.to_string())),
            Snapshot::Exec { .. } => {}
        }
    }
    // Before the stop, because only living processes show the paths of their cgroups.
    let find = move || Ok(leaves(Path::new("/proc"), &processes));
    let leaves = blocking("find the cgroups of a shim", find).await.unwrap_or_default();
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
        // The pod has no record, and this one stands for it: with it `remove_pod` removes the shim's cgroup and the default
        // parent. Its scope, if it has one, is not known here, and needs no removal: it ends with its last process.
        let stand_in = model::PodRecord::new(id, model::PodConfig::default(), 1);
        errors.extend(shared.cgroups.remove_pod(&stand_in).err().map(Error::from));
        Error::gathered(errors)
    });
    if let Err(error) = removed.await {
        tracing::warn!(%pod, error = %error.text(), "cannot remove a shim without a record");
    }
}

/// Removes a container whose pod has no record, and the cgroup of that pod's pause. Returns false if something of the
/// container is left.
async fn remove_container(context: &Arc<Context>, record: &ContainerRecord) -> bool {
    tracing::warn!(container = %record.id, pod = %record.pod, "removing a container without a pod");
    let errors = containers::undo_create(context, None, record).await;
    for error in &errors {
        tracing::warn!(container = %record.id, error = %error.text(), "cannot remove a container without a pod");
    }
    // No record and no shim has the path of pause's cgroup, but it is beside the container's.
    if let Some((parent, _)) = record.cgroup.rsplit_once('/') {
        let (cgroups, leaf) = (context.cgroups.clone(), crate::cgroups::leaf_path(parent, &record.pod));
        let removed = blocking("remove pause's cgroup", move || {
            cgroups.kill_all(&leaf)?;
            Ok(cgroups.remove(&leaf)?)
        });
        if let Err(error) = removed.await {
            tracing::warn!(pod = %record.pod, error = %error.text(), "cannot remove the cgroup of a lost pod");
        }
    }
    errors.is_empty()
}

/// Removes a container without a record: its processes, which are in `leaves`, then its folder, and then its image lease.
///
/// The shim is not asked, because it may be silent. If it still has the container in its table when the pod's driver
/// connects, the driver removes it there (`KillOrphan` of `model::reconcile`).
async fn remove_container_dir(
    context: &Arc<Context>,
    id: &ContainerId,
    leaves: BTreeSet<String>,
) -> Result<(), Error> {
    let cgroups = context.cgroups.clone();
    lanes::run(lanes::kill(), id.as_str(), "kill the container", move || {
        for leaf in &leaves {
            cgroups.kill_all(leaf)?;
            cgroups.remove(leaf)?;
        }
        Ok(())
    })
    .await?;
    discard(context, context.layout.container_dir(id)).await?;
    Ok(context.images.release(id.as_str()).await?)
}

/// Moves a folder to the trash.
async fn discard(context: &Context, dir: PathBuf) -> Result<(), Error> {
    let trash = context.trash.clone();
    blocking("remove a folder", move || Ok(state::file::discard_dir(&dir, &trash, ())?)).await
}

/// The leaf cgroups of a shim's processes, each given as its pid and the name of its leaf. In a cgroup of another name the
/// pid is that of a new process, or the process has moved: that cgroup may be another container's. Blocking.
fn leaves(proc: &Path, processes: &[(u32, String)]) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for (pid, name) in processes.iter().filter(|(pid, _)| *pid != 0) {
        let Ok(text) = std::fs::read_to_string(proc.join(pid.to_string()).join("cgroup")) else { continue };
        for path in sys::proc::cgroup_paths(&text) {
            let is_leaf = path.rsplit('/').next() == Some(name.as_str());
            // By components: the name of `SHIM_ROOT` is also the beginning of that of `DEFAULT_PARENT`.
            if is_leaf && !Path::new(path).starts_with(SHIM_ROOT) {
                found.insert(path.to_owned());
            }
        }
    }
    found
}

/// The leaf cgroups of these containers that have processes, in themselves or below. Their paths are in the records, which
/// cannot be read; but a leaf is named by its container, and every process shows its cgroups. Blocking.
///
/// # Errors
/// `proc` or the cgroups of a process cannot be read: a process of such a container may be missed.
fn leaves_named(
    proc: &Path,
    ids: &BTreeSet<ContainerId>,
) -> io::Result<BTreeMap<ContainerId, BTreeSet<String>>> {
    let mut found: BTreeMap<ContainerId, BTreeSet<String>> = BTreeMap::new();
    for entry in std::fs::read_dir(proc)? {
        let process = entry?;
        if !process.file_name().as_encoded_bytes().iter().all(u8::is_ascii_digit) {
            continue;
        }
        let read = std::fs::read(process.path().join("cgroup"));
        let Some(text) = sys::proc::unless_gone(read)? else { continue };
        let text = String::from_utf8_lossy(&text);
        for path in sys::proc::cgroup_paths(&text) {
            let mut leaf = String::new();
            for part in path.split('/').filter(|part| !part.is_empty()) {
                leaf.push('/');
                leaf.push_str(part);
                if let Some(id) = part.parse::<ContainerId>().ok().filter(|id| ids.contains(id)) {
                    found.entry(id).or_default().insert(leaf.clone());
                    break;
                }
            }
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A container without a record may run: its shim can be silent.
    #[test]
    fn processes_of_a_container_are_found_without_its_record() {
        let proc = tempfile::tempdir().unwrap();
        let id = |byte| ContainerId::from_random([byte; 32]);
        let (direct, nested, ended, other) = (id(1), id(2), id(3), id(4));
        let write = |pid: &str, text: String| {
            std::fs::create_dir(proc.path().join(pid)).unwrap();
            std::fs::write(proc.path().join(pid).join("cgroup"), text).unwrap();
        };
        write("1", "1:name=systemd:/init.scope\n0::/\n".to_owned());
        write("20", format!("9:memory:/kubepods/podu/{direct}\n1:name=systemd:/kubepods/podu/{direct}\n"));
        // It has left the leaf in one hierarchy, and is below it in another.
        write("21", format!("9:memory:/\n2:pids:/copepod-pods/p/{nested}/app/{direct}\n"));
        // A zombie: its cgroup was removed.
        write("22", format!("9:memory:/kubepods/podu/{ended} (deleted)\n"));
        write("23", format!("9:memory:/kubepods/podu/{other}\n"));
        write("self-like", format!("9:memory:/kubepods/podu/{ended}\n"));
        // A process that has ended meanwhile.
        std::fs::create_dir(proc.path().join("24")).unwrap();
        let ids = BTreeSet::from([direct.clone(), nested.clone(), ended]);
        let found = leaves_named(proc.path(), &ids).unwrap();
        assert_eq!(
            found,
            BTreeMap::from([
                (direct.clone(), BTreeSet::from([format!("/kubepods/podu/{direct}")])),
                (nested.clone(), BTreeSet::from([format!("/copepod-pods/p/{nested}")])),
            ])
        );
        assert!(leaves_named(&proc.path().join("missing"), &ids).is_err());
    }

    /// With other names, a container whose process has moved could end another container.
    #[test]
    fn leaves_of_a_shim_have_the_names_of_its_containers() {
        let proc = tempfile::tempdir().unwrap();
        let write = |pid: u32, path: &str| {
            std::fs::create_dir(proc.path().join(pid.to_string())).unwrap();
            let text = format!("9:memory:{path}\n1:name=systemd:{path}\n");
            std::fs::write(proc.path().join(pid.to_string()).join("cgroup"), text).unwrap();
        };
        write(20, "/copepod-pods/pod/container");
        write(21, "/kubepods/podu/pod");
        // The pid was reused, or its process has moved into the leaf of another container.
        write(22, "/kubepods/podu/other");
        write(23, "/copepod/pod");
        let named = |pid, name: &str| (pid, name.to_owned());
        let processes = [
            named(20, "container"),
            named(21, "pod"),
            named(22, "moved"),
            named(23, "pod"),
            named(24, "ended"),
            named(0, "creating"),
        ];
        let expected = ["/copepod-pods/pod/container", "/kubepods/podu/pod"].map(str::to_owned);
        assert_eq!(leaves(proc.path(), &processes), BTreeSet::from(expected));
    }

    #[test]
    fn every_stray_container_counts() {
        let config = model::ContainerConfig::default();
        let record = |byte| {
            let id = ContainerId::from_random([byte; 32]);
            ContainerRecord::new(id, PodId::from_random([9; 32]), config.clone(), 1)
        };
        let strays = Strays {
            containers: vec![record(1)],
            container_dirs: vec![ContainerId::from_random([2; 32])],
            ..Strays::default()
        };
        let ids: Vec<_> = strays.container_ids().cloned().collect();
        assert_eq!(ids, [ContainerId::from_random([1; 32]), ContainerId::from_random([2; 32])]);
        assert!(!strays.has_no_container() && Strays::default().has_no_container());
    }
}
