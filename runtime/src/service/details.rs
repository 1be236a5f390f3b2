//! What replies say of one pod or container in full: statuses, verbose information and events.

use super::{Backend, convert};
use crate::node::{ContainerView, Event, EventKind, PodView};
use cri_api::v1 as cri;
use model::{ContainerConfig, ContainerRecord, PodResources};
use prost::Message as _;
use std::collections::HashMap;
use std::sync::Arc;

/// Most bytes of all statuses of one message: half of what a client receives, since the pod's own status is beside them.
/// Only thousands of containers in one pod, or labels as no Kubernetes object has them, make more.
const MAX_STATUSES: usize = 8 * 1024 * 1024;

/// The status of a container.
pub(super) fn status(backend: &Backend, container: &ContainerRecord) -> cri::ContainerStatus {
    convert::container_status(container, || {
        format!("{}/silent/{}", backend.config.borrow().state.display(), container.id)
    })
}

/// The statuses of the containers of a pod; `None` if they do not fit a message. Then clients must ask for them one by
/// one.
pub(super) fn statuses(
    backend: &Backend,
    containers: &[Arc<ContainerRecord>],
) -> Option<Vec<cri::ContainerStatus>> {
    let mut left = MAX_STATUSES;
    let status = |container: &Arc<ContainerRecord>| {
        let status = status(backend, container);
        left = left.checked_sub(status.encoded_len())?;
        Some(status)
    };
    containers.iter().map(status).collect()
}

/// An event.
pub(super) fn event(backend: &Backend, event: &Event) -> cri::ContainerEventResponse {
    let Event { id, kind, created_at, snapshot } = event;
    let kind = match kind {
        EventKind::Created => cri::ContainerEventType::ContainerCreatedEvent,
        EventKind::Started => cri::ContainerEventType::ContainerStartedEvent,
        EventKind::Stopped => cri::ContainerEventType::ContainerStoppedEvent,
        EventKind::Deleted => cri::ContainerEventType::ContainerDeletedEvent,
    };
    // Both or none: a client must not take a pod whose containers do not fit a message for one without containers. kubelet
    // ignores events without a pod, and lists.
    let complete = snapshot.as_ref().and_then(|snapshot| {
        Some((convert::pod_status(&snapshot.pod), statuses(backend, &snapshot.containers)?))
    });
    let (pod, containers) = complete.unzip();
    cri::ContainerEventResponse {
        container_id: id.to_string(),
        container_event_type: kind.into(),
        created_at: *created_at,
        pod_sandbox_status: pod,
        containers_statuses: containers.unwrap_or_default(),
    }
}

/// One JSON object under the key that crictl prints.
fn info(value: &serde_json::Value) -> HashMap<String, String> {
    [("info".to_owned(), value.to_string())].into()
}

/// Verbose information of a pod.
pub(super) fn pod_info(pod: &PodView) -> HashMap<String, String> {
    let record = &pod.record;
    let mut config = record.config.clone();
    if let Some(PodResources { overhead, resources }) = record.updated.as_deref().cloned() {
        config.overhead = overhead.or(config.overhead);
        config.resources = resources.or(config.resources);
    }
    info(&serde_json::json!({
        "sandboxID": record.id,
        "pid": record.pause_pid,
        "shimPid": record.shim_pid,
        // Nanoseconds since the epoch, like all times in CRI; 0 while the shim responds.
        "shimSilentSince": pod.silent_since,
        "phase": record.phase,
        "message": record.message,
        "netns": record.netns,
        "ips": record.ips,
        "config": config,
    }))
}

/// Verbose information of a container.
pub(super) fn container_info(container: &ContainerView) -> HashMap<String, String> {
    let record = &container.record;
    let config = ContainerConfig { envs: spec::exec::requested_env(record), ..record.config.clone() };
    info(&serde_json::json!({
        "sandboxID": record.pod,
        "pid": record.pid,
        "phase": record.phase,
        "cgroup": record.cgroup,
        "stopSignal": record.stop_signal,
        "exit": record.exit,
        "updateAnnotations": record.update_annotations,
        "config": config,
        "process": record.exec_template,
    }))
}
