//! Removing a container, and undoing a create.

use super::images;
use crate::error::Error;
use crate::lanes;
use crate::pod::context::Context;
use crate::shims::Client;
use crate::shims::client::ClientError;
use model::{ContainerId, ContainerRecord};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;
use wire::{ErrorKind as ShimErrorKind, Request};

/// Time limit of requests that only make system calls.
const SHORT: Duration = Duration::from_secs(10);
/// Time limit for the shim to reap processes that were killed. One that hangs in the kernel cannot be reaped.
const REAP: Duration = Duration::from_secs(5);
/// How long RemoveContainer waits for the deletion of the container's files. When a disk runs low, kubelet removes
/// dead containers, measures the free space right after (`reclaimNodeLevelResources` of its eviction manager), and
/// evicts a pod if there is too little.
const DELETED: Duration = Duration::from_secs(10);

/// Removes a container: its entry in the shim, cgroup, files, and then its image lease. Idempotent.
pub(crate) async fn remove(
    context: &Arc<Context>,
    client: Option<&Client>,
    record: &ContainerRecord,
) -> Vec<Error> {
    if let Some(client) = client
        && let Err(error) = forget(client, &record.id).await
    {
        // The rest does not need the shim. Its entry is removed when the shim is connected again.
        tracing::warn!(container = %record.id, %error, "the shim did not remove the container from its table");
    }
    let (shared, container) = (Arc::clone(context), record.clone());
    let owner = record.pod.as_str();
    let (deleting, deleted) = tokio::sync::oneshot::channel::<()>();
    let removed = lanes::run(lanes::records(), owner, "remove the container", move || {
        let mut errors = Vec::new();
        if !container.cgroup.is_empty() {
            errors.extend(shared.cgroups.remove(&container.cgroup).err().map(Error::from));
        }
        let dir = shared.layout.container_dir(&container.id);
        errors.extend(state::file::discard_dir(&dir, &shared.trash, deleting).err().map(Error::from));
        Ok(errors)
    });
    let mut errors = removed.await.unwrap_or_else(|error| vec![error]);
    // Last, because the lease keeps the image's layers, which the container's root consists of.
    if errors.is_empty()
        && let Err(error) = release(context, record).await
    {
        errors.push(Error::from(error));
    }
    let _step = progress::enter("delete the container's files", lanes::advice(lanes::records()));
    // Nothing is sent on this channel. The receiver resolves when `deleting` is dropped: when the files are deleted.
    drop(tokio::time::timeout(DELETED, deleted).await);
    errors
}

/// Releases the lease on the image.
async fn release(context: &Context, record: &ContainerRecord) -> Result<(), image::Error> {
    let _step = progress::enter("release the image", images::STORE);
    context.images.release(record.id.as_str()).await
}

/// Asks the shim to remove an exited container from its table. Until the shim has reaped the container's processes, it
/// refuses; that is retried. A missing container or a lost connection is not an error.
async fn forget(client: &Client, id: &ContainerId) -> Result<(), ClientError> {
    let until = Instant::now() + REAP;
    let mut pause = Duration::from_millis(2);
    loop {
        match client.done("forget", Request::Forget { container: id.clone() }, SHORT).await {
            Ok(()) | Err(ClientError::Lost) => return Ok(()),
            Err(ClientError::Failed(failure)) if failure.kind == ShimErrorKind::NotFound => return Ok(()),
            Err(ClientError::Failed(failure))
                if failure.kind == ShimErrorKind::WrongState && Instant::now() < until =>
            {
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(Duration::from_millis(200));
            }
            Err(error) => return Err(error),
        }
    }
}

/// Asks the shim to kill all processes of a container.
async fn kill(client: &Client, id: &ContainerId) -> Result<(), ClientError> {
    let kill = Request::Kill { container: id.clone(), signal: 9, all: true };
    client.done("the kill", kill, SHORT).await
}

/// Kills a container and asks the shim to remove it from its table.
pub(crate) async fn kill_and_forget(client: &Client, id: &ContainerId) -> Result<(), ClientError> {
    match kill(client, id).await {
        Err(ClientError::Failed(failure)) if failure.kind == ShimErrorKind::NotFound => {}
        done => done?,
    }
    forget(client, id).await
}

/// Undoes a create, whichever of its steps were completed.
pub(crate) async fn undo_create(
    context: &Arc<Context>,
    client: Option<&Client>,
    record: &ContainerRecord,
) -> Vec<Error> {
    if let Some(client) = client {
        // The shim may not have the container.
        if let Err(error) = kill(client, &record.id).await {
            tracing::debug!(container = %record.id, %error, "cannot kill a container whose create is undone");
        }
    }
    if !record.cgroup.is_empty() {
        let (cgroups, leaf) = (context.cgroups.clone(), record.cgroup.clone());
        let kill = move || Ok(cgroups.kill_all(&leaf)?);
        if let Err(error) = lanes::run(lanes::kill(), record.pod.as_str(), "kill the container", kill).await {
            return vec![error];
        }
    }
    remove(context, client, record).await
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shims::fakes::connected;
    use wire::Reply;

    /// A shim refuses to remove the entry of a container while processes that were killed are not reaped.
    #[tokio::test]
    async fn an_entry_is_removed_once_the_processes_are_reaped() {
        let (connection, mut shim) = connected().await;
        let id = ContainerId::from_random([1; 32]);
        let (outcome, ()) = tokio::join!(kill_and_forget(&connection.client, &id), async {
            let (request, kill) = shim.request().await;
            assert!(matches!(kill, Request::Kill { signal: 9, all: true, .. }), "{kill:?}");
            shim.reply(request, Reply::Done).await;
            for _ in 0..3 {
                let (request, forget) = shim.request().await;
                assert!(matches!(forget, Request::Forget { .. }), "{forget:?}");
                shim.refuse(request, ShimErrorKind::WrongState, "the container has not exited").await;
            }
            let (request, forget) = shim.request().await;
            assert!(matches!(forget, Request::Forget { .. }), "{forget:?}");
            shim.reply(request, Reply::Done).await;
        });
        assert!(outcome.is_ok(), "{outcome:?}");
    }

    #[tokio::test]
    async fn a_container_that_the_shim_does_not_have_is_no_error() {
        let (connection, mut shim) = connected().await;
        let id = ContainerId::from_random([1; 32]);
        let (outcome, ()) = tokio::join!(kill_and_forget(&connection.client, &id), async {
            for _ in 0..2 {
                let (request, _) = shim.request().await;
                shim.refuse(request, ShimErrorKind::NotFound, "no such container").await;
            }
        });
        assert!(outcome.is_ok(), "{outcome:?}");
    }
}
