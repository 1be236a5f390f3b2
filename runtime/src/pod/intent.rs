//! The intent to create a container: its record, before anything of it is created.

use crate::cgroups::{leaf_path, pod_parent};
use crate::error::Error;
use model::{ContainerConfig, ContainerId, ContainerRecord, PodRecord};

/// The first record of a container. `now`, in nanoseconds since the epoch, becomes its creation time.
pub(crate) fn container(
    id: ContainerId,
    pod: &PodRecord,
    config: ContainerConfig,
    now: i64,
) -> Result<ContainerRecord, Error> {
    let cgroup = leaf_path(&pod_parent(pod)?, &id);
    let directory = pod.config.log_directory.trim_end_matches('/');
    let log_path = if directory.is_empty() || config.log_path.is_empty() {
        String::new()
    } else {
        format!("{directory}/{}", config.log_path)
    };
    Ok(ContainerRecord { log_path, cgroup, ..ContainerRecord::new(id, pod.id.clone(), config, now) })
}
