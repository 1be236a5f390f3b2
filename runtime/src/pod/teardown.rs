//! Tears a pod down. Every step runs even if others fail, each is idempotent, and all errors are returned.

use super::context::Context;
use super::life::{ExitReport, Leaf, TornDown};
use super::{exit, parallel, scope, stop};
use crate::cgroups::{leaf_path, pod_parent};
use crate::clock::now;
use crate::error::Error;
use crate::shims::{Client, spawn};
use crate::{failpoint, lanes, netns};
use causes::with_causes;
use model::{ContainerId, NamespaceMode, PodId, PodRecord};
use network::Released;
use state::Layout;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use wire::{ExitFacts, Request};

/// Time limit for the shim to kill and reap everything. After that the daemon kills by the pod's cgroups.
const STOP: Duration = Duration::from_secs(8);
/// How long the pod's end waits for CNI DEL. Kubelet gives StopPodSandbox two minutes.
const RELEASE: Duration = Duration::from_secs(30);
/// Time limit for a shim without processes to exit.
const EXIT: Duration = Duration::from_secs(2);

/// Tears a pod down: processes, network, shim and cgroups. Its records stay, and so does its shim's folder with the
/// exit files, until the exits are durable in the records ([`remove_shim_folder`]).
pub(crate) async fn tear_down(
    context: &Arc<Context>,
    record: &PodRecord,
    client: Option<Client>,
    leaves: Vec<Leaf>,
) -> TornDown {
    let cgroups = leaves.iter().map(|leaf| leaf.cgroup.clone()).collect();
    let mut torn_down = kill(context, record, client.as_ref(), leaves).await;
    failpoint::hit("pod.stop.killed");
    torn_down.errors.extend(release_network(context, record).await);
    failpoint::hit("pod.stop.network");
    if let Some(client) = client {
        shut_down(&client).await;
    }
    let kill_first = |context: &Context, id: &PodId| spawn::kill(&context.cgroups, id);
    torn_down.errors.extend(remove_cgroups(context, record, cgroups, kill_first).await);
    torn_down
}

/// Kills all processes of the pod's containers and pause: by the shim, or by their cgroups if that fails.
pub(crate) async fn kill(
    context: &Arc<Context>,
    record: &PodRecord,
    client: Option<&Client>,
    leaves: Vec<Leaf>,
) -> TornDown {
    let by_shim = match client {
        Some(client) => kill_by_shim(client, record).await,
        None => false,
    };
    let all = leaves.iter().map(|leaf| leaf.id.clone()).collect();
    let mut killed = TornDown::default();
    if !by_shim {
        kill_by_cgroups(context, record, &leaves, &mut killed).await;
    }
    let (shared, pod) = (Arc::clone(context), record.clone());
    let read = move || {
        let mut exits = BTreeMap::new();
        // A silent shim has not reaped the inits that were killed: the kernel still tells how they ended. The shim is
        // killed after this.
        for leaf in leaves.into_iter().filter(|_| !by_shim) {
            let Some(code) = stop::code(leaf.pid, pod.shim_pid) else { continue };
            let facts = ExitFacts { code, finished_at: now(), ..ExitFacts::default() };
            exits.insert(leaf.id, (exit::exit_of(&facts, now()), 0));
        }
        exits.extend(self::exits(&shared.layout, &pod.id)?);
        Ok(exits)
    };
    match lanes::run(lanes::kill(), record.id.as_str(), "read exits", read).await {
        Ok(exits) => killed.exits = exits,
        // Without the exits no process is known to have ended.
        Err(error) => {
            killed.errors.push(error);
            killed.alive = all;
        }
    }
    killed
}

/// Returns true if the shim has killed and reaped everything.
async fn kill_by_shim(client: &Client, record: &PodRecord) -> bool {
    match client.done("the pod's stop", Request::StopPod, STOP).await {
        Ok(()) => true,
        Err(error) => {
            tracing::warn!(pod = %record.id, %error, "the shim did not stop its pod: killing by cgroups");
            false
        }
    }
}

/// Kills by cgroups: the containers a few at once, because each can take ten seconds, and then pause.
async fn kill_by_cgroups(context: &Arc<Context>, record: &PodRecord, leaves: &[Leaf], killed: &mut TornDown) {
    let kill = |cgroup: String| {
        let (context, pod) = (Arc::clone(context), record.id.clone());
        async move {
            let kill = move || Ok(context.cgroups.kill_all(&cgroup)?);
            lanes::run(lanes::kill(), pod.as_str(), "kill a container", kill).await
        }
    };
    let cgroups: Vec<String> = leaves.iter().map(|leaf| leaf.cgroup.clone()).collect();
    let outcomes = parallel::for_all(cgroups, kill).await;
    for (leaf, outcome) in leaves.iter().zip(outcomes) {
        // A process that survives SIGKILL hangs in the kernel and still counts as running.
        if let Err(error) = outcome {
            killed.alive.insert(leaf.id.clone());
            killed.errors.push(error);
        }
    }
    if let Some(pause) = pause_leaf(record) {
        killed.errors.extend(kill(pause).await.err());
    }
}

/// The cgroup of pause.
pub(crate) fn pause_leaf(record: &PodRecord) -> Option<String> {
    // Nothing was created in an invalid parent: the launch has refused it.
    let parent = pod_parent(record).ok()?;
    Some(leaf_path(&parent, &record.id))
}

/// The exits in a pod's exit files. A file with a wrong content is logged and treated as missing. Blocking.
///
/// # Errors
/// The folder or a file cannot be read, for example because no descriptor is left: there may be exits that nobody else knows.
pub(crate) fn exits(layout: &Layout, pod: &PodId) -> Result<BTreeMap<ContainerId, ExitReport>, Error> {
    let mut found = BTreeMap::new();
    for id in layout.exits(pod)? {
        match state::file::read::<ExitFacts>(&layout.exit(pod, &id), state::kind::EXIT) {
            Ok(Some(stored)) => {
                let facts = stored.data;
                found.insert(id, (exit::exit_of(&facts, now()), facts.started_at));
            }
            Ok(None) => {}
            Err(error @ state::Error::Io { .. }) => return Err(error.into()),
            Err(error) => {
                tracing::warn!(%pod, container = %id, error = %with_causes(&error), "an exit file is not used");
            }
        }
    }
    Ok(found)
}

/// Runs CNI DEL and removes the pin. A DEL that fails or takes long is no error: the daemon repeats it and removes the pin
/// then, whatever becomes of the pod. Does nothing for a pod with the host network.
pub(crate) async fn release_network(context: &Arc<Context>, record: &PodRecord) -> Vec<Error> {
    if record.config.security.namespaces.network == NamespaceMode::Node {
        return Vec::new();
    }
    let _step = progress::enter("release the network", "");
    let pin = pin_path(context, record);
    match context.cni.release(&record.id, &pin, RELEASE).await {
        Released::Now => {}
        Released::Later => return Vec::new(),
    }
    let removed = lanes::run(lanes::kill(), record.id.as_str(), "unpin", move || {
        netns::unpin(&pin).map_err(|error| Error::of(format!("unpin {}", pin.display()), error))
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

/// Tells a shim without processes to exit. Errors are only logged, because the caller kills the shim next.
async fn shut_down(client: &Client) {
    if let Err(error) = client.done("shutdown", Request::Shutdown, EXIT).await {
        // The shim may exit before its reply is read.
        tracing::debug!(pid = client.pid(), %error, "no reply to the shutdown request");
    }
    let _step = progress::enter("wait for the end of the shim", lanes::advice(lanes::kill()));
    if tokio::time::timeout(EXIT, client.ended()).await.is_err() {
        tracing::warn!(pid = client.pid(), "the shim did not exit: killing it");
    }
}

/// Removes the folder of a shim that has exited, with the exit files in it.
pub(crate) async fn remove_shim_folder(context: &Arc<Context>, pod: &PodId) -> Vec<Error> {
    let (context, id) = (Arc::clone(context), pod.clone());
    // On the lane that waits for no disk: the run folder is on a tmpfs.
    let work = move || spawn::remove_folder(&context.layout, &id);
    let removed = lanes::run(lanes::kill(), pod.as_str(), "remove the shim's folder", work);
    removed.await.err().into_iter().collect()
}

/// Removes the folder of a shim that has exited, and the pod's cgroups, which a late create may have made again.
pub(crate) async fn remove_shim_rest(context: &Arc<Context>, record: &PodRecord) -> Vec<Error> {
    remove_cgroups(context, record, Vec::new(), |context, id| spawn::remove_folder(&context.layout, id)).await
}

/// Kills the shim if it is running, then removes its folder and the pod's cgroups. If it cannot be killed, the folder
/// stays.
pub(crate) async fn remove_shim(context: &Arc<Context>, record: &PodRecord) -> Vec<Error> {
    let first = |context: &Context, id: &PodId| spawn::remove(&context.layout, &context.cgroups, id);
    remove_cgroups(context, record, Vec::new(), first).await
}

/// Runs `first`, and then removes the cgroups of containers, pause and shim, and the pod's if kubelet did not create it.
/// This is one piece of work on a lane, because each piece costs two context switches.
async fn remove_cgroups(
    context: &Arc<Context>,
    record: &PodRecord,
    leaves: Vec<String>,
    first: impl FnOnce(&Context, &PodId) -> Result<(), Error> + Send + 'static,
) -> Vec<Error> {
    let (context, record) = (Arc::clone(context), record.clone());
    let id = record.id.clone();
    let removed = lanes::run(lanes::kill(), id.as_str(), "remove the shim and the cgroups", move || {
        let mut errors: Vec<_> = first(&context, &record.id).err().into_iter().collect();
        let leaves = leaves.into_iter().chain(pause_leaf(&record));
        errors.extend(context.cgroups.remove_all(leaves).into_iter().map(Error::from));
        errors.extend(context.cgroups.remove_pod(&record).err().map(Error::from));
        if errors.is_empty() {
            scope::wait_for_removal(&context, &record);
        }
        Ok(errors)
    });
    removed.await.unwrap_or_else(|error| vec![error])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_files_that_cannot_be_read_are_not_missing_ones() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::new(dir.path().join("root"), dir.path().join("run")).unwrap();
        let pod = PodId::from_random([1; 32]);
        let [good, damaged] = [2, 3].map(|byte| ContainerId::from_random([byte; 32]));
        assert_eq!(exits(&layout, &pod), Ok(BTreeMap::new()), "there is no folder");
        std::fs::create_dir_all(layout.exits_dir(&pod)).unwrap();
        let facts = ExitFacts { code: 3, started_at: 4, finished_at: 5, ..ExitFacts::default() };
        let path = layout.exit(&pod, &good);
        state::file::write(&path, state::kind::EXIT, "boot", &facts, false).unwrap();
        std::fs::write(layout.exit(&pod, &damaged), "{").unwrap();
        let found = exits(&layout, &pod).unwrap();
        assert_eq!(found.into_iter().map(|(id, (exit, _))| (id, exit.code)).collect::<Vec<_>>(), [(good, 3)]);
        // As if no descriptor were left: the folder exists, and cannot be listed.
        sys::tree::remove_path(&layout.exits_dir(&pod)).unwrap();
        std::fs::write(layout.exits_dir(&pod), "").unwrap();
        assert!(exits(&layout, &pod).is_err());
    }
}
