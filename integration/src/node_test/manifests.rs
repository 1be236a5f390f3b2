//! Pod manifests as JSON.

use serde_json::{Value, json};

use crate::wait;

/// A pod in namespace default with these containers.
pub(crate) fn pod(name: &str, containers: Value) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": "default", "labels": {"app": name}},
        "spec": {"terminationGracePeriodSeconds": 2, "containers": containers},
    })
}

/// A busybox container running a shell line.
pub(crate) fn shell(name: &str, line: &str) -> Value {
    json!({"name": name, "image": "registry.test/busybox:1", "command": ["/bin/sh", "-c", line]})
}

/// A container that sleeps and exits at once on SIGTERM.
pub(crate) fn sleeper(name: &str) -> Value {
    shell(name, "trap 'exit 0' TERM; while :; do sleep 0.2; done")
}

/// A probe every second with this action. It may take a second, which is kubelet's default, and longer on a slow machine:
/// kubelet would restart what is well there.
pub(crate) fn probe(action: Value) -> Value {
    with(action, &json!({"periodSeconds": 1, "timeoutSeconds": wait::longer(wait::secs(1)).as_secs()}))
}

/// Merges fields into an object.
pub(crate) fn with(mut base: Value, fields: &Value) -> Value {
    if let (Some(to), Some(from)) = (base.as_object_mut(), fields.as_object()) {
        for (k, v) in from {
            to.insert(k.clone(), v.clone());
        }
    }
    base
}

/// Merges fields into a pod's spec.
pub(crate) fn with_spec(mut pod: Value, fields: &Value) -> Value {
    if let Some(spec) = pod.get_mut("spec") {
        *spec = with(spec.take(), fields);
    }
    pod
}
