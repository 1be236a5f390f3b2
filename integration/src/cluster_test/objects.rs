//! Objects of the API: how the checks write and read them.

use anyhow::{Context as _, Result};
use cri_api::v1::PodSandboxState;
use serde_json::{Value, json};

use super::Cluster;
use crate::expect::ensure;
use crate::wait::{self, secs};

/// The template of a controller's pods, with the label `app`.
pub(super) fn template(app: &str, containers: Value) -> Value {
    json!({"metadata": {"labels": {"app": app}}, "spec": {"terminationGracePeriodSeconds": 2, "containers": containers}})
}

/// A Deployment or a `StatefulSet` of pods with the label `app`, which is its name too.
pub(super) fn replicated(kind: &str, app: &str, replicas: u32, template: Value) -> Value {
    json!({"apiVersion": "apps/v1", "kind": kind, "metadata": {"name": app},
           "spec": {"replicas": replicas, "selector": {"matchLabels": {"app": app}}, "template": template}})
}

/// A `DaemonSet`.
pub(super) fn daemon_set(app: &str, template: Value) -> Value {
    json!({"apiVersion": "apps/v1", "kind": "DaemonSet", "metadata": {"name": app},
           "spec": {"selector": {"matchLabels": {"app": app}}, "template": template}})
}

/// A Job with fields of its specification; its pods are not restarted unless the template says so.
pub(super) fn job(name: &str, containers: Value, fields: Value) -> Value {
    let mut template = template(name, containers);
    template["spec"]["restartPolicy"] = json!("Never");
    let mut spec = fields;
    spec["template"] = template;
    json!({"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": name}, "spec": spec})
}

/// Fields that put a pod on a node, through the scheduler.
pub(super) fn on(node: &str) -> Value {
    json!({"nodeSelector": {"kubernetes.io/hostname": node}})
}

impl Cluster {
    /// An object or a list.
    pub(super) async fn get(&self, arguments: &[&str]) -> Result<Value> {
        let text = self.kubectl.quiet(&[["get", "-o", "json"].as_slice(), arguments].concat()).await?;
        serde_json::from_str(&text).with_context(|| format!("kubectl get {}", arguments.join(" ")))
    }

    /// The pods with the label `app` that are not being deleted, sorted by name.
    pub(super) async fn pods(&self, app: &str) -> Result<Vec<Value>> {
        let list = self.get(&["pods", "--selector", &format!("app={app}")]).await?;
        let items = list["items"].as_array().cloned().unwrap_or_default();
        Ok(items.into_iter().filter(|pod| pod["metadata"]["deletionTimestamp"].is_null()).collect())
    }

    /// Waits until an object of the API is as wanted; it is returned.
    pub(super) async fn until(
        &self,
        what: &str,
        object: &[&str],
        right: impl Fn(&Value) -> bool,
    ) -> Result<Value> {
        wait::until(what, secs(60), || async {
            let found = self.get(object).await?;
            ensure!(right(&found), "{} has the status {}", object.join(" "), found["status"]);
            Ok(Some(found))
        })
        .await
    }

    /// Waits until a pod is ready; it is returned.
    pub(super) async fn ready(&self, pod: &str) -> Result<Value> {
        self.until(&format!("{pod} to be ready"), &["pod", pod], |pod| is(pod, "Ready")).await
    }

    /// What a shell line in a pod's first container prints.
    pub(super) async fn sh(&self, pod: &str, line: &str) -> Result<String> {
        self.kubectl.quiet(&["exec", pod, "--", "/bin/sh", "-c", line]).await
    }

    /// Waits until a shell line prints this.
    pub(super) async fn prints(&self, pod: &str, line: &str, wanted: &str) -> Result<()> {
        wait::until(&format!("{pod} to print {wanted:?}"), secs(60), || async {
            let found = self.sh(pod, line).await?;
            ensure!(found == wanted, "{line}: {found:?}");
            Ok(Some(()))
        })
        .await
    }

    /// The names of the pods that have a ready sandbox on a node with the label `app`, sorted: what the runtime has, whatever
    /// the API says.
    pub(super) async fn sandboxes(&self, app: &str) -> Result<Vec<String>> {
        let mut names = Vec::new();
        for member in &self.members {
            for sandbox in member.node.cri.pods(None).await? {
                let labelled = sandbox.labels.get("app").is_some_and(|label| label == app);
                if labelled && sandbox.state() == PodSandboxState::SandboxReady {
                    names.push(sandbox.metadata.map(|it| it.name).unwrap_or_default());
                }
            }
        }
        names.sort();
        Ok(names)
    }

    /// Waits until the nodes have exactly one ready sandbox for each of the API's pods.
    pub(super) async fn agree(&self, app: &str) -> Result<()> {
        wait::until("the nodes to have the API's pods", secs(30), || async {
            let wanted = names(&self.pods(app).await?);
            let found = self.sandboxes(app).await?;
            ensure!(found == wanted, "the nodes have {found:?}, the API {wanted:?}");
            Ok(Some(()))
        })
        .await
    }
}

/// The names of objects.
pub(super) fn names(objects: &[Value]) -> Vec<String> {
    objects.iter().map(name).collect()
}

/// The name of an object.
pub(super) fn name(object: &Value) -> String {
    text(object, "/metadata/name")
}

/// A text in an object, or an empty one.
pub(super) fn text(object: &Value, pointer: &str) -> String {
    object.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned()
}

/// Whether a condition is true.
pub(super) fn is(object: &Value, condition: &str) -> bool {
    object["status"]["conditions"]
        .as_array()
        .is_some_and(|all| all.iter().any(|it| it["type"] == condition && it["status"] == "True"))
}

/// The status of a pod's container, also of an init container; null if there is none.
pub(super) fn container<'p>(pod: &'p Value, name: &str) -> &'p Value {
    let lists = [&pod["status"]["containerStatuses"], &pod["status"]["initContainerStatuses"]];
    let mut all = lists.into_iter().filter_map(Value::as_array).flatten();
    all.find(|it| it["name"] == name).unwrap_or(&Value::Null)
}
