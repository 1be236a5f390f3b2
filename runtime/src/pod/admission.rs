//! Checks whether the phase of a pod or container allows a call.

use crate::error::{Error, ErrorKind};
use model::{ContainerId, ContainerPhase, ContainerRecord, NamespaceMode, PodPhase, PodRecord};

/// Containers are created and started only in a ready pod.
pub(crate) fn ready(pod: &PodRecord) -> Result<(), Error> {
    if pod.phase == PodPhase::Ready {
        return Ok(());
    }
    let why = if pod.message.is_empty() { String::new() } else { format!(" ({})", pod.message) };
    Err(Error::state(format!("pod {} is not ready{why}", pod.id)))
}

/// Only a created container can be started.
pub(crate) fn start(record: &ContainerRecord) -> Result<(), Error> {
    match record.phase {
        ContainerPhase::Created => Ok(()),
        phase => Err(state(&record.id, phase, "only a created one can be started")),
    }
}

/// Execs and log rotation need a running container.
pub(crate) fn running(record: &ContainerRecord) -> Result<(), Error> {
    match record.phase {
        ContainerPhase::Running => Ok(()),
        phase => Err(state(&record.id, phase, "it must be running")),
    }
}

/// Limits can be changed from the creation of a container to its exit.
pub(crate) fn has_cgroup(record: &ContainerRecord) -> Result<(), Error> {
    match record.phase {
        ContainerPhase::Created | ContainerPhase::Running => Ok(()),
        phase => Err(state(&record.id, phase, "limits can be changed only until it exits")),
    }
}

/// A container whose PID namespace another one joins must be running in the same pod.
pub(crate) fn target<'a>(
    record: &ContainerRecord,
    find: impl FnOnce(&str) -> Option<&'a ContainerRecord>,
) -> Result<(), Error> {
    let namespaces = &record.config.security.namespaces;
    if namespaces.pid != NamespaceMode::Target {
        return Ok(());
    }
    let field = "config.linux.security_context.namespace_options.target_id";
    match find(&namespaces.target) {
        Some(target) if target.phase == ContainerPhase::Running => Ok(()),
        Some(_) => Err(Error::state(format!("{field}: container {} is not running", namespaces.target))),
        None => {
            let text = format!("{field}: {:?} is not a container of this pod", namespaces.target);
            Err(Error::new(ErrorKind::InvalidArgument, text))
        }
    }
}

fn state(id: &ContainerId, phase: ContainerPhase, want: &str) -> Error {
    Error::state(format!("container {id} is {}: {want}", format!("{phase:?}").to_lowercase()))
}
