//! What replies say of one pod or container in full: statuses, verbose information and events.

mod oci;
mod requested;
#[cfg(test)]
mod tests;

use super::{Backend, convert};
use crate::node::{ContainerView, Event, EventKind, PodView};
use cri_api::v1 as cri;
use model::{ContainerPhase, ContainerRecord, NamespaceMode, PodPhase, PodRecord, PodResources};
use prost::Message as _;
use std::collections::HashMap;
use std::sync::Arc;

/// Maximum size in bytes of the containers' statuses in one message: half of the 16 MiB that clients accept, because the
/// pod's own status is in the message too. Only a pod with thousands of containers, or with labels that are longer than
/// Kubernetes allows, has more.
const MAX_STATUSES: usize = 8 * 1024 * 1024;

/// The status of a container. The path is the `log_path` of one that does not log: no file is ever there
/// (`convert::container_status`). It has nothing to do with a silent shim.
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

/// The snapshotter of every container.
const SNAPSHOTTER: &str = "overlayfs";
/// The program that runs a pod, where other runtimes name their shim.
const RUNTIME_TYPE: &str = "copepod-shim";

/// Verbose information of a pod. docs/crictl.md describes the keys, and which keys of other runtimes are missing.
pub(super) fn pod_info(pod: &PodView) -> HashMap<String, String> {
    let record = &pod.record;
    let mut config = record.config.clone();
    if let Some(PodResources { overhead, resources }) = record.updated.as_deref().cloned() {
        config.overhead = overhead.or(config.overhead);
        config.resources = resources.or(config.resources);
    }
    let host_network = record.config.security.namespaces.network == NamespaceMode::Node;
    info(&serde_json::json!({
        "sandboxID": record.id,
        "pid": record.pause_pid,
        // containerd's words for the status of a sandbox's task.
        "processStatus": match record.phase {
            PodPhase::Launching => "created",
            PodPhase::Ready => "running",
            PodPhase::Stopping => "stopped",
            PodPhase::Stopped | PodPhase::Removing => "deleted",
        },
        // CNI's DEL, and with it the end of the namespace, may still be due while the pod is stopping.
        "netNamespaceClosed": !host_network && matches!(record.phase, PodPhase::Stopped | PodPhase::Removing),
        "runtimeHandler": record.config.runtime_handler,
        "runtimeType": RUNTIME_TYPE,
        "runtimeSpec": oci::pod(record),
        "cniResult": cni_result(record),
        "overhead": config.overhead.as_ref().map(requested::resources),
        "resources": config.resources.as_ref().map(requested::resources),
        "config": requested::pod(&config),
        "shimPid": record.shim_pid,
        // Nanoseconds since the epoch, like all times in CRI; 0 while the shim responds.
        "shimSilentSince": pod.silent_since,
        "phase": record.phase,
        "message": record.message,
        "netns": record.netns,
        "ips": record.ips,
    }))
}

/// The part of containerd's `cniResult` that the record has: the pod's addresses. Null with the host's network.
fn cni_result(record: &PodRecord) -> Option<serde_json::Value> {
    let addresses: Vec<_> = record.ips.iter().map(|ip| serde_json::json!({ "IP": ip })).collect();
    let interface = serde_json::json!({ "IPConfigs": addresses, "Sandbox": record.netns });
    (!addresses.is_empty()).then(|| serde_json::json!({ "Interfaces": { "eth0": interface } }))
}

/// Verbose information of a container, as [`pod_info`].
pub(super) fn container_info(backend: &Backend, container: &ContainerView) -> HashMap<String, String> {
    let record = &container.record;
    let pod = backend.node.pod(record.pod.as_str()).ok();
    info(&serde_json::json!({
        "sandboxID": record.pod,
        "pid": record.pid,
        // Containerd's key; always false: while this daemon removes a container it lists it as Exited, and one that is Removing
        // is not listed.
        "removing": record.phase == ContainerPhase::Removing,
        "snapshotter": SNAPSHOTTER,
        // The name of the folder with its writable layer.
        "snapshotKey": record.id,
        "runtimeType": RUNTIME_TYPE,
        "runtimeSpec": oci::container(record, pod.as_ref().map(|pod| &*pod.record)),
        "privileged": record.config.security.privileged,
        "config": requested::container(record),
        "phase": record.phase,
        "cgroup": record.cgroup,
        "stopSignal": record.stop_signal,
        "exit": record.exit,
        "updateAnnotations": record.update_annotations,
        "process": record.exec_template,
    }))
}
