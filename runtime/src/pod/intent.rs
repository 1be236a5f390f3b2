//! Intents: records that are written before anything is created.

use crate::cgroups::{leaf_path, pod_parent};
use crate::error::Error;
use model::{
    ContainerConfig, ContainerId, ContainerPhase, ContainerRecord, ImageOfContainer, PodRecord, User,
};

/// The first record of a container, created at a time in nanoseconds since the epoch.
pub(crate) fn container(
    id: ContainerId,
    pod: &PodRecord,
    config: ContainerConfig,
    now: i64,
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
        created_at: now,
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
