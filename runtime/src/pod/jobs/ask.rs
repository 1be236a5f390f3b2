//! Asks a shim for the state of its pod.

use crate::clock::now;
use crate::lanes;
use crate::pod::context::Context;
use crate::pod::life::Heard;
use crate::pod::registry::Registry;
use crate::pod::{exit, teardown};
use crate::shims::Connection;
use crate::shims::dial::{self, Dialled};
use model::PodId;
use model::reconcile::{Held, Shim};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use wire::{ContainerState, Snapshot};

/// Connects to a pod's shim, whose pid is in the record, and reads its exit files.
pub(super) async fn ask(
    context: &Arc<Context>,
    registry: &Registry,
    pod: &PodId,
    pid: u32,
    limit: Duration,
) -> (Heard, Option<Box<Connection>>) {
    let (mut heard, connection) = match dial::dial(&context.layout, pod, pid, limit).await {
        Dialled::Here(connection) => (of_snapshot(registry, &connection), Some(connection)),
        Dialled::Gone => (Heard::of(Shim::Gone), None),
        Dialled::Silent(why) => (Heard { why, ..Heard::of(Shim::Silent) }, None),
    };
    let (theirs, id) = (Arc::clone(context), pod.clone());
    let read = move || Ok(teardown::exits(&theirs, &id));
    heard.exits =
        lanes::run(lanes::kill(), pod.as_str(), "read exit records", read).await.unwrap_or_default();
    (heard, connection)
}

fn of_snapshot(registry: &Registry, connection: &Connection) -> Heard {
    let (mut pause, mut containers, mut execs) = (false, BTreeMap::new(), Vec::new());
    for entry in &connection.snapshot {
        match entry {
            Snapshot::Pause { exited, .. } => pause = exited.is_none(),
            Snapshot::Container { container, state, pid } => {
                let pid = *pid;
                let held = match state {
                    ContainerState::Creating => Held::Creating,
                    ContainerState::Created => Held::Created { pid },
                    ContainerState::Running { started_at } => Held::Running { pid, started_at: *started_at },
                    // A state of a later version: its init is running, and the record has the start time.
                    ContainerState::Unknown => Held::Running { pid, started_at: 0 },
                    ContainerState::Exited(facts) => {
                        Held::Exited { exit: exit::exit_of(facts, now()), started_at: facts.started_at }
                    }
                };
                containers.insert(container.clone(), held);
            }
            Snapshot::Exec { exec, .. } => execs.push(*exec),
        }
    }
    let kept = containers.keys().filter(|id| registry.managed(id.as_str()).is_err()).cloned().collect();
    let shim = Shim::Answered { pause, containers };
    Heard { pid: connection.client.pid(), execs, kept, ..Heard::of(shim) }
}
