//! The daemon's threads for blocking work, separated by what the work can hang on.
//!
//! | lane | work | can hang on |
//! | --- | --- | --- |
//! | exec | plan and pipes of an exec; sockets of port-forward; compiling RuntimeDefault; the list of AppArmor profiles; SELinux labels | nothing: memory, and what the kernel answers from memory |
//! | kill | finding, signalling and killing processes; exit files; starting and removing shims; pause's cgroup and plan; removing cgroups; network namespace pins and sysctls | processes in D state, for a bounded time |
//! | records | durable records and a pod's own files; checks of the durable folders; the cgroup of a container that is created or removed, in one piece of work with its files; what `restore` removes with a shim or a pod that has no record; the steps of the daemon's start; starting a program for its answer (`attempt`); the size of the layers' file system | the disk of `root` |
//! | foreign | paths in requests: seccomp profiles, device nodes; limits of a container that change, as the kernel writes reclaimed memory to its files; the configuration; the CNI folder | any file system of the node |
//! | metrics | cgroup files, descriptors of processes and counters of pods' interfaces, for ListPodSandboxMetrics: one call at a time | nothing |
//! | systemd | scopes of new pods | systemd and the message bus, for a bounded time |
//! | stats | cgroup files, samples of CPU time and counters of pods' interfaces; a short wait for the first walk of writable layers; the names of a create's workers; what the kernel can do; returning freed memory to the kernel | nothing |
//!
//! Images, CNI and the certificate of the streaming server have their own lanes, in their crates. A pod whose work hangs
//! uses up its share of one lane ([`pool::Size::max_per_owner`]) and nothing of the others: stop, kill and exec of every
//! pod continue to work, and they need no new thread. If the disk of `root` hangs, the records lane fills, and what needs
//! it waits. Stops use it for records only, and do not wait for these longer than `pod::recorder` says.

use crate::error::Error;
use pool::{Lane, Size};
use std::sync::LazyLock;
use tracing::Span;

/// Maximum number of entries in the queue of a lane. The server limits the number of calls (`service::server`), and each
/// call has one entry at a time; a teardown has a few.
const MAX_QUEUED: usize = 4096;

static EXEC: LazyLock<Lane> = LazyLock::new(|| lane("exec", 1, 8, 4));
static KILL: LazyLock<Lane> = LazyLock::new(|| lane("kill", 2, 32, 4));
static RECORDS: LazyLock<Lane> = LazyLock::new(|| lane("records", 2, 64, 8));
static FOREIGN: LazyLock<Lane> = LazyLock::new(|| lane("foreign", 1, 32, 4));
// Its one thread is not kept: clients read metrics every 15 seconds or less often.
static METRICS: LazyLock<Lane> = LazyLock::new(|| lane("metrics", 0, 1, 1));
// As many as systemd makes at once with profit; each waits 30 s at most.
static SYSTEMD: LazyLock<Lane> = LazyLock::new(|| lane("systemd", 0, 8, 1));
static STATS: LazyLock<Lane> = LazyLock::new(|| lane("stats", 1, 4, 4));

fn lane(name: &'static str, kept_threads: usize, max_threads: usize, max_per_owner: usize) -> Lane {
    Lane::new(Size { name, kept_threads, max_threads, max_per_owner, max_queued: MAX_QUEUED })
}

/// For execs.
pub(crate) fn exec() -> &'static Lane {
    &EXEC
}

/// For killing and removing.
pub(crate) fn kill() -> &'static Lane {
    &KILL
}

/// For records.
pub(crate) fn records() -> &'static Lane {
    &RECORDS
}

/// For paths in requests, changes of limits, and the configuration.
pub(crate) fn foreign() -> &'static Lane {
    &FOREIGN
}

/// For metrics.
pub(crate) fn metrics() -> &'static Lane {
    &METRICS
}

/// For stats.
pub(crate) fn stats() -> &'static Lane {
    &STATS
}

/// For scopes.
pub(crate) fn systemd() -> &'static Lane {
    &SYSTEMD
}

fn inline_lanes() -> [&'static Lane; 9] {
    let (images, certificate) = (image::ImageStore::lane(), streaming::server::Server::lane());
    [exec(), kill(), records(), foreign(), metrics(), systemd(), stats(), images, certificate]
}

/// Starts the threads that these lanes keep. `single_threaded` means that the process could not start any: then a caller does
/// work of these lanes itself until threads can be started. Not so CNI's lane, which `daemon` starts, nor the image crate's
/// `unpack`, `space` and `names`: without a thread, work on them fails.
pub(crate) fn start(single_threaded: bool) {
    for lane in inline_lanes() {
        if single_threaded {
            lane.allow_inline();
        }
        if let Err(error) = lane.start() {
            tracing::warn!(?lane, %error, "cannot start threads; tried again when there is work");
        }
    }
}

/// What an operator can do if work on a lane takes too long ([`progress::Place::advice`]).
pub(crate) fn advice(lane: &Lane) -> &'static str {
    match lane.name() {
        "kill" => {
            "look for processes in state D (`ps -eo pid,stat,wchan,args`): they hang in the kernel, mostly on a disk or a \
             network file system"
        }
        "records" => {
            "the disk of the daemon's root may hang: look at RuntimeReady in Status and at the kernel's log"
        }
        "foreign" => {
            "the file system of a path in the request may hang: look for its mount and at the kernel's log"
        }
        "systemd" => {
            "systemd or the message bus may hang: `systemctl list-jobs` and `systemctl status dbus` show it"
        }
        _ => "",
    }
}

/// Runs `work` on a lane for an owner, usually a pod's id. It is a step, named `what`, of the current operation, and lines
/// that it logs are in the current span.
///
/// # Errors
/// Unavailable if it could not be started; the errors of `work`.
pub(crate) async fn run<T: Send + 'static>(
    lane: &Lane,
    owner: &str,
    what: &'static str,
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    let _step = progress::enter(what, advice(lane));
    let span = Span::current();
    match lane.run_for(owner, move || span.in_scope(work)).await {
        Ok(outcome) => outcome,
        Err(error) => Err(Error::from(error).context(what)),
    }
}
