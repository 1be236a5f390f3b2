//! Reading kubelet's PodList.

use std::time::Duration;

use anyhow::{Context as _, Result};
use serde_json::Value;

use super::Rig;
use crate::expect::ensure;
use crate::wait;

/// One pod as kubelet sees it.
#[derive(Debug, Clone)]
pub(crate) struct View(Value);

impl View {
    fn text(&self, pointer: &str) -> String {
        self.0.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned()
    }

    /// Pending, Running, Succeeded or Failed.
    pub(crate) fn phase(&self) -> String {
        self.text("/status/phase")
    }

    /// Its first address.
    pub(crate) fn ip(&self) -> String {
        self.text("/status/podIP")
    }

    /// Its uid.
    pub(crate) fn uid(&self) -> String {
        // The uid of a mirror pod would differ: static pods carry the hash of their file.
        let hash = self
            .0
            .pointer("/metadata/annotations")
            .and_then(|a| a.get("kubernetes.io/config.hash"))
            .and_then(Value::as_str);
        hash.map_or_else(|| self.text("/metadata/uid"), str::to_owned)
    }

    /// Whether a condition is true.
    pub(crate) fn is(&self, condition: &str) -> bool {
        self.0.pointer("/status/conditions").and_then(Value::as_array).is_some_and(|all| {
            all.iter().any(|c| {
                c.get("type").and_then(Value::as_str) == Some(condition)
                    && c.get("status").and_then(Value::as_str) == Some("True")
            })
        })
    }

    /// The status of a container, init containers included.
    pub(crate) fn container(&self, name: &str) -> Result<&Value> {
        ["/status/containerStatuses", "/status/initContainerStatuses"]
            .iter()
            .filter_map(|p| self.0.pointer(p).and_then(Value::as_array))
            .flatten()
            .find(|c| c.get("name").and_then(Value::as_str) == Some(name))
            .with_context(|| format!("no status of container {name}"))
    }

    /// How often a container was restarted.
    pub(crate) fn restarts(&self, name: &str) -> Result<u64> {
        Ok(self.container(name)?.get("restartCount").and_then(Value::as_u64).unwrap_or(0))
    }

    /// A container's id without `copepod://`.
    pub(crate) fn container_id(&self, name: &str) -> Result<String> {
        let id = self.container(name)?.get("containerID").and_then(Value::as_str).unwrap_or_default();
        let (_, bare) = id.split_once("://").with_context(|| format!("container id is `{id}`"))?;
        Ok(bare.to_owned())
    }

    /// Why a container is waiting.
    pub(crate) fn waiting(&self, name: &str) -> String {
        self.container(name)
            .ok()
            .and_then(|c| c.pointer("/state/waiting/reason"))
            .and_then(Value::as_str)
            .unwrap_or_default()
            .to_owned()
    }

    /// The terminated state of a container, or of its previous run.
    pub(crate) fn terminated(&self, name: &str) -> Option<Value> {
        let c = self.container(name).ok()?;
        c.pointer("/state/terminated").or_else(|| c.pointer("/lastState/terminated")).cloned()
    }

    /// The ids and restart counts of all containers, which restarts of the daemon must not change.
    pub(crate) fn identity(&self) -> Vec<Identity> {
        ["/status/containerStatuses", "/status/initContainerStatuses"]
            .iter()
            .filter_map(|p| self.0.pointer(p).and_then(Value::as_array))
            .flatten()
            .map(|c| {
                let field = |n: &str| c.get(n).and_then(Value::as_str).unwrap_or_default().to_owned();
                (
                    field("name"),
                    field("containerID"),
                    c.get("restartCount").and_then(Value::as_u64).unwrap_or(0),
                )
            })
            .collect()
    }

    /// The JSON, for messages.
    pub(crate) fn status(&self) -> String {
        self.0.get("status").map(Value::to_string).unwrap_or_default()
    }
}

/// A pod by the name in its manifest; kubelet adds the node's.
pub(crate) async fn pod(rig: &Rig, name: &str) -> Result<View> {
    find(rig, name).await?.with_context(|| format!("kubelet has no pod {name}"))
}

/// Like [`pod`], but `None` if kubelet does not have it.
pub(crate) async fn find(rig: &Rig, name: &str) -> Result<Option<View>> {
    let full = format!("{name}-node1");
    Ok(all(rig).await?.into_iter().find(|(name, _)| *name == full).map(|(_, view)| view))
}

/// A container's name, id and restart count.
pub(crate) type Identity = (String, String, u64);

/// Every pod's name and what kubelet says of it.
pub(crate) async fn all(rig: &Rig) -> Result<Vec<(String, View)>> {
    let list = rig.kubelet.pods().await?;
    let items = list.get("items").and_then(Value::as_array).cloned().unwrap_or_default();
    let name = |p: &Value| p.pointer("/metadata/name").and_then(Value::as_str).unwrap_or_default().to_owned();
    Ok(items.into_iter().map(|p| (name(&p), View(p))).collect())
}

/// Every pod's name and containers.
pub(crate) async fn identities(rig: &Rig) -> Result<Vec<(String, Vec<Identity>)>> {
    let mut all: Vec<_> = all(rig).await?.into_iter().map(|(name, view)| (name, view.identity())).collect();
    all.sort();
    Ok(all)
}

/// Waits until `right` holds for a pod.
pub(crate) async fn until(
    rig: &Rig,
    name: &str,
    what: &str,
    seconds: u64,
    right: impl Fn(&View) -> bool,
) -> Result<View> {
    wait::until(&format!("{name} to be {what}"), Duration::from_secs(seconds), || async {
        let view = pod(rig, name).await?;
        ensure!(right(&view), "it is {}", view.status());
        Ok(Some(view))
    })
    .await
}

/// Waits until a pod is Running with all containers ready.
pub(crate) async fn ready(rig: &Rig, name: &str) -> Result<View> {
    until(rig, name, "ready", 60, |v| v.phase() == "Running" && v.is("Ready")).await
}
