//! Tears a pod down: every step runs even if others fail, each is idempotent, and all errors are returned.

use super::context::Context;
use super::life::{Ended, Ending, Leaf};
use super::{exit, stop};
use crate::cgroups::{leaf_path, pod_parent};
use crate::clock::now;
use crate::error::Error;
use crate::shims::{Client, spawn};
use crate::{failpoint, lanes, netns};
use model::{ContainerId, NamespaceMode, PodId, PodRecord};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use wire::{ExitFacts, Request};

/// Time limit for the shim to kill and reap everything; then its cgroups are killed instead.
const STOP: Duration = Duration::from_secs(8);
/// Time limit for a shim without processes to exit.
const LEAVE: Duration = Duration::from_secs(2);

/// Tears everything of a pod down except its records and its shim's folder, where exit files stay until the
/// exits are durable elsewhere ([`forget_shim`]).
pub(crate) async fn end(
    context: &Arc<Context>,
    record: &PodRecord,
    client: Option<Client>,
    leaves: Vec<Leaf>,
) -> Ended {
    let cgroups = leaves.iter().map(|leaf| leaf.cgroup.clone()).collect();
    let mut ended = kill(context, record, client.as_ref(), leaves).await;
    failpoint::hit("pod.stop.killed");
    ended.errors.extend(release_network(context, record).await);
    failpoint::hit("pod.stop.network");
    if let Some(client) = client {
        leave(&client).await;
    }
    let kill_first = |context: &Context, id: &PodId| spawn::kill(&context.cgroups, id);
    ended.errors.extend(remove_cgroups(context, record, cgroups, kill_first).await);
    ended
}

/// Kills all processes of the pod's containers and pause: by the shim, or by their cgroups if that fails.
pub(crate) async fn kill(
    context: &Arc<Context>,
    record: &PodRecord,
    client: Option<&Client>,
    leaves: Vec<Leaf>,
) -> Ended {
    let mut by_shim = false;
    if let Some(client) = client {
        match client.done("the pod's stop", Request::StopPod, STOP).await {
            Ok(()) => by_shim = true,
            Err(error) => {
                tracing::warn!(pod = %record.id, %error, "the shim did not stop its pod: killing by cgroups");
            }
        }
    }
    let (context, record) = (Arc::clone(context), record.clone());
    let id = record.id.clone();
    let all = leaves.iter().map(|leaf| leaf.id.clone()).collect();
    let killed = lanes::run(lanes::kill(), id.as_str(), "kill the pod", move || {
        let mut ended = Ended::default();
        if !by_shim {
            for leaf in &leaves {
                // A process that survives SIGKILL hangs in the kernel and still counts as running.
                if let Err(error) = context.cgroups.kill_all(&leaf.cgroup) {
                    ended.alive.insert(leaf.id.clone());
                    ended.errors.push(error.into());
                }
            }
            if let Some(pause) = pause_leaf(&record) {
                ended.errors.extend(context.cgroups.kill_all(&pause).err().map(Error::from));
            }
            // A silent shim has not reaped them; it is killed next.
            for leaf in leaves {
                let Some(code) = stop::code(leaf.pid, record.shim_pid) else { continue };
                let facts = ExitFacts { code, finished_at: now(), ..ExitFacts::default() };
                ended.exits.insert(leaf.id, (exit::exit_of(&facts, now()), 0));
            }
        }
        ended.exits.extend(exits(&context, &record.id));
        Ok(ended)
    });
    // If the check itself failed, no process is known to have ended.
    killed.await.unwrap_or_else(|error| Ended { errors: vec![error], alive: all, ..Ended::default() })
}

/// The cgroup of pause.
pub(crate) fn pause_leaf(record: &PodRecord) -> Option<String> {
    // An invalid parent was refused before anything was created in it.
    let parent = pod_parent(&record.config, &record.id).ok()?;
    Some(leaf_path(&parent, &record.id))
}

/// The exit files of a pod's containers. A torn file is treated as missing. Blocking.
pub(crate) fn exits(context: &Context, pod: &PodId) -> BTreeMap<ContainerId, Ending> {
    let mut found = BTreeMap::new();
    let ids = context.layout.exits(pod).unwrap_or_else(|error| {
        tracing::warn!(%pod, %error, "cannot list exit files");
        Vec::new()
    });
    for id in ids {
        match state::file::read::<ExitFacts>(&context.layout.exit(pod, &id), state::kind::EXIT) {
            Ok(Some(stored)) => {
                let facts = stored.data;
                found.insert(id, (exit::exit_of(&facts, now()), facts.started_at));
            }
            Ok(None) => {}
            Err(error) => tracing::warn!(%pod, container = %id, %error, "cannot read an exit file"),
        }
    }
    found
}

/// Runs CNI DEL and removes the pin. Does nothing for a pod with the host network.
pub(crate) async fn release_network(context: &Arc<Context>, record: &PodRecord) -> Vec<Error> {
    if record.config.security.namespaces.network == NamespaceMode::Node {
        return Vec::new();
    }
    let pin = pin_path(context, record);
    // A failed DEL is retried, so the namespace must stay.
    if let Err(error) = context.cni.del(&record.id, Some(&pin)).await {
        return vec![Error::from(error).context(format!("pod {}: give the network back", record.id))];
    }
    let removed = lanes::run(lanes::kill(), record.id.as_str(), "unpin", move || {
        netns::unpin(&pin).map_err(|error| Error::of(format!("unpin {}", pin.display()), &error))
    });
    removed.await.err().into_iter().collect()
}

/// The path of the pod's network namespace pin.
pub(crate) fn pin_path(context: &Context, record: &PodRecord) -> PathBuf {
    if record.netns.is_empty() {
        netns::path(&context.netns_dir, &record.id)
    } else {
        PathBuf::from(&record.netns)
    }
}

/// Tells a shim without processes to exit. Errors are ignored, because `remove_shim` follows.
async fn leave(client: &Client) {
    if let Err(error) = client.done("shutdown", Request::Shutdown, LEAVE).await {
        // It may close the connection before its reply is read.
        tracing::debug!(pid = client.pid(), %error, "no reply to the shutdown request");
    }
    if tokio::time::timeout(LEAVE, client.ended()).await.is_err() {
        tracing::warn!(pid = client.pid(), "the shim did not exit: killing it");
    }
}

/// Removes the folder of an exited shim, including exit files.
pub(crate) async fn forget_shim(context: &Arc<Context>, pod: &PodId) -> Vec<Error> {
    let (context, id) = (Arc::clone(context), pod.clone());
    // Does not wait for a disk: the run folder is a tmpfs.
    let work = move || spawn::forget(&context.layout, &id);
    let removed = lanes::run(lanes::kill(), pod.as_str(), "remove the shim's folder", work);
    removed.await.err().into_iter().collect()
}

/// Removes the folder of an exited shim, and cgroups that a late create has made again.
pub(crate) async fn forget(context: &Arc<Context>, record: &PodRecord) -> Vec<Error> {
    remove_cgroups(context, record, Vec::new(), |context, id| spawn::forget(&context.layout, id)).await
}

/// Kills the shim if it is still running, removes its folder, and removes the pod's cgroups. The folder stays while the
/// shim runs.
pub(crate) async fn remove_shim(context: &Arc<Context>, record: &PodRecord) -> Vec<Error> {
    let first = |context: &Context, id: &PodId| spawn::remove(&context.layout, &context.cgroups, id);
    remove_cgroups(context, record, Vec::new(), first).await
}

/// Does `first`, and then removes the cgroups of containers, pause, shim, and of the pod if it is ours. Both are one
/// job, because each job costs two changes of thread.
async fn remove_cgroups(
    context: &Arc<Context>,
    record: &PodRecord,
    leaves: Vec<String>,
    first: impl FnOnce(&Context, &PodId) -> Result<(), Error> + Send + 'static,
) -> Vec<Error> {
    let (context, record) = (Arc::clone(context), record.clone());
    let id = record.id.clone();
    let removed = lanes::run(lanes::kill(), id.as_str(), "remove the shim and the cgroups", move || {
        // Processes that remain in the cgroups are killed with the shim.
        let mut errors: Vec<_> = first(&context, &record.id).err().into_iter().collect();
        for leaf in leaves.into_iter().chain(pause_leaf(&record)) {
            errors.extend(context.cgroups.remove(&leaf).err().map(Error::from));
        }
        errors.extend(context.cgroups.remove_pod(&record.config, &record.id).err().map(Error::from));
        Ok(errors)
    });
    removed.await.unwrap_or_else(|error| vec![error])
}
