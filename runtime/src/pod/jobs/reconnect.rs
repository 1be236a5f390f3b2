//! Connects to a pod's shim after a restart of the daemon or a lost connection.

use crate::clock::now;
use crate::error::Error;
use crate::lanes;
use crate::pod::context::Context;
use crate::pod::life::{DialResult, ExitReport};
use crate::pod::registry::Registry;
use crate::pod::{exit, teardown};
use crate::shims::Connection;
use crate::shims::dial::{self, Dialled};
use model::reconcile::{InShim, Shim};
use model::{ContainerId, PodId};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use wire::{ContainerState, Snapshot};

/// The result of connecting, and the connection if there is one.
type Reconnected = (DialResult, Option<Box<Connection>>);

/// Connects to a pod's shim, and reads its exit files. `pid` is the shim's in the pod's record.
pub(super) async fn reconnect(
    context: &Arc<Context>,
    registry: &Registry,
    pod: &PodId,
    pid: u32,
    limit: Duration,
) -> Reconnected {
    let found = match dial::dial(&context.layout, pod, pid, limit).await {
        Dialled::Connected(connection) => (of_snapshot(registry, &connection), Some(connection)),
        Dialled::Gone => (DialResult::of(Shim::Gone), None),
        Dialled::Silent(why) => silent(why),
    };
    let (shared, id) = (Arc::clone(context), pod.clone());
    let read = move || teardown::exits(&shared.layout, &id);
    with_exits(found, lanes::run(lanes::kill(), pod.as_str(), "read exit files", read).await)
}

fn silent(why: String) -> Reconnected {
    (DialResult { why, ..DialResult::of(Shim::Silent) }, None)
}

/// Adds the exits in the exit files. If they could not be read (no thread or descriptor is left), the attempt has failed and
/// is retried: without them, containers of a dead shim would get exits whose code nobody knows.
fn with_exits(
    (dialled, connection): Reconnected,
    exits: Result<BTreeMap<ContainerId, ExitReport>, Error>,
) -> Reconnected {
    match exits {
        Ok(exits) => (DialResult { exits, ..dialled }, connection),
        Err(error) => silent(format!("the daemon could not read its exit files: {}", error.text())),
    }
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

#[cfg(test)]
mod tests {
    use super::*;
    use model::Exit;

    #[test]
    fn without_its_exit_files_a_dead_shim_is_asked_for_again() {
        let gone = || (DialResult::of(Shim::Gone), None);
        let id = ContainerId::from_random([1; 32]);
        let exits = BTreeMap::from([(id, (Exit { code: 3, ..Exit::default() }, 7))]);
        let (read, _) = with_exits(gone(), Ok(exits.clone()));
        assert_eq!((read.shim, read.exits), (Shim::Gone, exits));
        let (unread, connection) = with_exits(gone(), Err(Error::internal("no thread")));
        assert_eq!(
            (unread.shim, unread.why.as_str()),
            (Shim::Silent, "the daemon could not read its exit files: no thread")
        );
        assert!(connection.is_none());
    }
}
