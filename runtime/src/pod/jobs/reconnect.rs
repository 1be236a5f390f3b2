//! Connects to a pod's shim after a restart of the daemon or a lost connection.

use crate::clock::now;
use crate::lanes;
use crate::pod::context::Context;
use crate::pod::life::DialResult;
use crate::pod::registry::Registry;
use crate::pod::{exit, teardown};
use crate::shims::Connection;
use crate::shims::dial::{self, Dialled};
use model::PodId;
use model::reconcile::{InShim, Shim};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use wire::{ContainerState, Snapshot};

/// Connects to a pod's shim, and reads its exit files. `pid` is the shim's in the pod's record.
pub(super) async fn reconnect(
    context: &Arc<Context>,
    registry: &Registry,
    pod: &PodId,
    pid: u32,
    limit: Duration,
) -> (DialResult, Option<Box<Connection>>) {
    let (mut dialled, connection) = match dial::dial(&context.layout, pod, pid, limit).await {
        Dialled::Connected(connection) => (of_snapshot(registry, &connection), Some(connection)),
        Dialled::Gone => (DialResult::of(Shim::Gone), None),
        Dialled::Silent(why) => (DialResult { why, ..DialResult::of(Shim::Silent) }, None),
    };
    let (shared, id) = (Arc::clone(context), pod.clone());
    let read = move || Ok(teardown::exits(&shared, &id));
    dialled.exits =
        lanes::run(lanes::kill(), pod.as_str(), "read exit files", read).await.unwrap_or_default();
    (dialled, connection)
}

fn of_snapshot(registry: &Registry, connection: &Connection) -> DialResult {
    let (mut pause, mut containers, mut execs) = (false, BTreeMap::new(), Vec::new());
    for entry in &connection.snapshot {
        match entry {
            Snapshot::Pause { exited, .. } => pause = exited.is_none(),
            Snapshot::Container { container, state, pid } => {
                let pid = *pid;
                let held = match state {
                    ContainerState::Creating => InShim::Creating,
                    ContainerState::Created => InShim::Created { pid },
                    ContainerState::Running { started_at } => {
                        InShim::Running { pid, started_at: *started_at }
                    }
                    // A state that this build does not know. It is not Exited, which every build sends under this name,
                    // so init exists. The record has the start time.
                    ContainerState::Unknown => InShim::Running { pid, started_at: 0 },
                    ContainerState::Exited(facts) => {
                        InShim::Exited { exit: exit::exit_of(facts, now()), started_at: facts.started_at }
                    }
                };
                containers.insert(container.clone(), held);
            }
            Snapshot::Exec { exec, .. } => execs.push(*exec),
        }
    }
    let kept = containers.keys().filter(|id| registry.managed(id.as_str()).is_err()).cloned().collect();
    let shim = Shim::Answered { pause, containers };
    DialResult { pid: connection.client.pid(), execs, kept, ..DialResult::of(shim) }
}
