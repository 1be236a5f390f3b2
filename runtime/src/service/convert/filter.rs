//! Filters of the list calls: all conditions must be met, and an absent condition always is.

use super::{Field, Result};
use cri_api::v1 as cri;
use model::{ContainerRecord, PodRecord};
use std::collections::{BTreeMap, HashMap};

type Labels = HashMap<String, String>;

fn selects(selector: &Labels, labels: &BTreeMap<String, String>) -> bool {
    selector.iter().all(|(key, value)| labels.get(key) == Some(value))
}

/// `PodSandboxFilter`. Ids match by prefix.
#[derive(Debug, Default)]
pub(crate) struct PodFilter {
    id: String,
    state: Option<cri::PodSandboxState>,
    labels: Labels,
}

impl PodFilter {
    pub(crate) fn new(given: Option<cri::PodSandboxFilter>) -> Result<Self> {
        let cri::PodSandboxFilter { id, state, label_selector } = given.unwrap_or_default();
        let field = Field::root("filter.state");
        let state = state
            .map(|cri::PodSandboxStateValue { state }| {
                super::choice(&field, state, "SANDBOX_READY, SANDBOX_NOTREADY")
            })
            .transpose()?;
        Ok(Self { id, state, labels: label_selector })
    }

    /// `PodSandboxStatsFilter`. Only ready pods have stats.
    pub(crate) fn for_stats(given: Option<cri::PodSandboxStatsFilter>) -> Self {
        let cri::PodSandboxStatsFilter { id, label_selector } = given.unwrap_or_default();
        Self { id, state: Some(cri::PodSandboxState::SandboxReady), labels: label_selector }
    }

    pub(crate) fn matches(&self, pod: &PodRecord) -> bool {
        pod.id.as_str().starts_with(&self.id)
            && self.state.is_none_or(|state| state == super::pod::state(pod.phase))
            && selects(&self.labels, &pod.config.labels)
    }
}

/// `ContainerFilter` and `ContainerStatsFilter`. Ids match by prefix.
#[derive(Debug, Default)]
pub(crate) struct ContainerFilter {
    id: String,
    pod: String,
    state: Option<cri::ContainerState>,
    labels: Labels,
}

impl ContainerFilter {
    pub(crate) fn new(given: Option<cri::ContainerFilter>) -> Result<Self> {
        let cri::ContainerFilter { id, state, pod_sandbox_id, label_selector } = given.unwrap_or_default();
        let field = Field::root("filter.state");
        let want = "CONTAINER_CREATED, CONTAINER_RUNNING, CONTAINER_EXITED, CONTAINER_UNKNOWN";
        let state =
            state.map(|cri::ContainerStateValue { state }| super::choice(&field, state, want)).transpose()?;
        Ok(Self { id, pod: pod_sandbox_id, state, labels: label_selector })
    }

    /// `ContainerStatsFilter`. Only running containers have stats. kubelet finds a container in a list of stats by its name
    /// alone: beside an entry without values, such as that of the same container before its restart, it never lowers the
    /// container's memory limit ("missing container memory usage").
    pub(crate) fn for_stats(given: Option<cri::ContainerStatsFilter>) -> Self {
        let cri::ContainerStatsFilter { id, pod_sandbox_id, label_selector } = given.unwrap_or_default();
        let state = Some(cri::ContainerState::ContainerRunning);
        Self { id, pod: pod_sandbox_id, state, labels: label_selector }
    }

    pub(crate) fn matches(&self, container: &ContainerRecord) -> bool {
        container.id.as_str().starts_with(&self.id)
            && container.pod.as_str().starts_with(&self.pod)
            && self.state.is_none_or(|state| state == super::container::state(container.phase))
            && selects(&self.labels, &container.config.labels)
    }
}
