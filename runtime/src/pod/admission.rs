//! Which command is allowed in which state, and why not.

use crate::error::{Error, ErrorKind};
use model::{ContainerId, ContainerPhase, ContainerRecord, NamespaceMode, PodPhase, PodRecord};

/// New containers and starts need a pod that is up.
pub(crate) fn ready(pod: &PodRecord) -> Result<(), Error> {
    if pod.phase == PodPhase::Ready {
        return Ok(());
    }
    let why = if pod.message.is_empty() { String::new() } else { format!(" ({})", pod.message) };
    Err(Error::state(format!("pod {} is not ready{why}", pod.id)))
}

/// Start is for created containers.
pub(crate) fn start(record: &ContainerRecord) -> Result<(), Error> {
    match record.phase {
        ContainerPhase::Created => Ok(()),
        phase => Err(state(&record.id, phase, "only a created one can be started")),
    }
}

/// Execs and log rotation are for running containers.
pub(crate) fn running(record: &ContainerRecord) -> Result<(), Error> {
    match record.phase {
        ContainerPhase::Running => Ok(()),
        phase => Err(state(&record.id, phase, "it must be running")),
    }
}

/// The container whose PID namespace is to be joined must run in the same pod.
pub(crate) fn target<'a>(
    record: &ContainerRecord,
    find: impl FnOnce(&str) -> Option<&'a ContainerRecord>,
) -> Result<(), Error> {
    let namespaces = &record.config.security.namespaces;
    if namespaces.pid != NamespaceMode::Target {
        return Ok(());
    }
    let field = "linux.security_context.namespace_options.target_id";
    match find(&namespaces.target) {
        Some(target) if target.phase == ContainerPhase::Running => Ok(()),
        Some(_) => Err(Error::state(format!("{field}: container {} does not run", namespaces.target))),
        None => {
            let text = format!("{field}: {:?} is no container of this pod", namespaces.target);
            Err(Error::new(ErrorKind::InvalidArgument, text))
        }
    }
}

fn state(id: &ContainerId, phase: ContainerPhase, want: &str) -> Error {
    Error::state(format!("container {id} is {}: {want}", format!("{phase:?}").to_lowercase()))
}
