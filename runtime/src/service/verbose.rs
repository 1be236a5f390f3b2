//! The verbose part of statuses: JSON for people, without a schema.

use crate::node::{ContainerView, PodView};
use model::ContainerConfig;
use std::collections::HashMap;

/// One JSON object under the key that crictl prints.
fn info(value: &serde_json::Value) -> HashMap<String, String> {
    [("info".to_owned(), value.to_string())].into()
}

/// What is known of a pod.
pub(super) fn pod_info(pod: &PodView) -> HashMap<String, String> {
    let record = &pod.record;
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
        "config": record.config,
    }))
}

/// What is known of a container.
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
        "config": config,
        "process": record.exec_template,
    }))
}
