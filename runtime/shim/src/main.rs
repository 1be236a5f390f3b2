//! `copepod-shim`: parent of one pod's processes, for as long as the pod lives.
//!
//! One thread, one epoll loop, about 80 KiB of private memory. Whatever can hang, crash, use much memory or change
//! the process is done in forked workers with a single task ([`packet`]). The resident part reaps children,
//! writes logs and exit files, and serves the daemon. It does not need the daemon: losing it changes nothing.
//!
//! A panic here would orphan a pod, so lints refuse code that could panic.
#![cfg_attr(
    not(test),
    deny(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)
)]

mod bundle;
mod conn;
mod create;
mod descriptors;
mod event_loop;
mod exec;
mod exit_record;
mod failure;
mod forks;
mod io;
mod lifecycle;
mod link;
mod packet;
mod pause;
mod performer;
mod podns;
mod probe;
mod process;
mod processes;
mod streams;
mod tokens;
mod user;
mod worker;
mod worker_only;

use std::os::fd::{AsFd as _, BorrowedFd};
use std::process::ExitCode;

use sys::epoll::{Epoll, Interest};
use sys::fds::Inherited;
use sys::signal::{self, SignalFd};
use wire::ShimInit;

use crate::event_loop::{Shim, Start};
use crate::exit_record::Records;
use crate::io::folder::LogFolder;
use crate::performer::FromDaemon;

/// Descriptor numbers of the daemon; see [`ShimInit`].
mod passed {
    pub(super) const LISTENER: i32 = 3;
    pub(super) const RECORDS: i32 = 4;
    pub(super) const INIT: i32 = 5;
    pub(super) const PAUSE: i32 = 6;
    /// How many there are.
    pub(super) const COUNT: u8 = 4;
}

/// The signals that are blocked and read by signalfd. SIGTERM, SIGINT and SIGHUP do not end a shim: it exits when its pod is
/// gone, not before.
const SIGNALS: [i32; 4] = [signal::CHLD, signal::TERM, signal::INT, signal::HUP];
/// The kernel's own default (core(5)): private and shared anonymous memory, ELF headers, private huge pages.
const COREDUMP_FILTER: u32 = 0x33;
/// Largest [`ShimInit`].
const MAX_INIT: usize = 64 * 1024;

/// How long to wait for the daemon, which has just started this shim, to connect and receive a [`StartError`].
const REPORT_MS: u64 = 5000;

/// An error before the loop: sent to the daemon instead of the hello, and printed.
#[derive(Debug, thiserror::Error)]
#[error("{step}: {source}")]
struct StartError {
    step: &'static str,
    source: std::io::Error,
}

fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1);
    let outcome = match (arguments.next(), arguments.next()) {
        (Some(what), Some(folder)) if what == wire::PROBE_USER_NAMESPACES => {
            probe::run(folder.as_ref()).map_err(at("probe"))
        }
        (Some(what), Some(_)) if what == wire::HOLD => hold().map_err(at("hold")),
        _ => run(),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            use std::io::Write as _;
            drop(writeln!(std::io::stderr(), "copepod-shim: {error}"));
            ExitCode::FAILURE
        }
    }
}

/// The first process of a scope of systemd ([`wire::HOLD`]): waits until the daemon closes the other end of stdin,
/// or has ended.
fn hold() -> std::io::Result<()> {
    std::io::copy(&mut std::io::stdin(), &mut std::io::sink()).map(drop)
}

fn run() -> Result<(), StartError> {
    let mut inherited = Inherited::claim(passed::COUNT).map_err(at("descriptors"))?;
    let listener = inherited.take(passed::LISTENER).map_err(at("descriptor 3 (socket)"))?;
    let start = prepare(inherited).inspect_err(|error| {
        // Fails if the daemon has gone, which does not matter.
        drop(report(listener.as_fd(), error));
    })?;
    let mut shim = Shim::new(listener, start).map_err(at("epoll"))?;
    shim.run().map_err(at("event loop"))
}

/// Sends the error to the first daemon that connects.
fn report(listener: BorrowedFd<'_>, error: &StartError) -> std::io::Result<()> {
    // Nobody may have connected when the wait ends.
    sys::fds::set_nonblocking(listener)?;
    let epoll = Epoll::new()?;
    epoll.add(listener, 0, Interest::READ)?;
    epoll.wait(Some(REPORT_MS), |_| {})?;
    let Some(daemon) = sys::scm::accept(listener)? else { return Ok(()) };
    let failure = failure::failure(wire::ErrorKind::Internal, error.step, &error.source);
    let mut bytes = Vec::new();
    wire::codec::encode(0, 0, &wire::Message::Reply(wire::Reply::Failed(failure)), &mut bytes)
        .map_err(std::io::Error::other)?;
    sys::scm::send_with_fds(daemon.as_fd(), &bytes, &[])?;
    Ok(())
}

fn at(step: &'static str) -> impl FnOnce(std::io::Error) -> StartError {
    move |source| StartError { step, source }
}

/// Everything before the loop. The order matters.
fn prepare(mut inherited: Inherited) -> Result<Start, StartError> {
    // 1. Read the initial data.
    let mut take = |number, step| inherited.take(number).map_err(at(step));
    let init = take(passed::INIT, "descriptor 5 (init)")?;
    let json = sys::memfd::read_all(init.as_fd(), MAX_INIT).map_err(at("init"))?;
    drop(init);
    let init: ShimInit =
        serde_json::from_slice(&json).map_err(|error| at("init")(std::io::Error::other(error)))?;
    drop(json);
    let mut warnings = Vec::new();

    // 2. Join the shim's cgroups, before memory is charged to the daemon's.
    for path in &init.cgroups {
        if let Err(error) = join(path) {
            warnings.push(format!("the shim cannot join cgroup {path}: {error}"));
        }
    }

    // 3. Open what is in the host's mount namespace.
    let log_folder = match init.log_directory.as_str() {
        "" => None,
        path => Some(LogFolder::open(path).map_err(|error| {
            at("log folder")(std::io::Error::new(error.kind(), format!("{path}: {error}")))
        })?),
    };
    let boot = state::boot::id().map_err(|error| at("boot id")(std::io::Error::other(error)))?;

    // 4. Keep only the passed descriptors: nothing else may leak into a pod.
    let records = take(passed::RECORDS, "descriptor 4 (exit files)")?;
    let pause_binary = take(passed::PAUSE, "descriptor 6 (pause)")?;
    drop(inherited);

    // 5. Leave the daemon's terminal and session, and become the subreaper of the pod's orphans.
    sys::proc::new_session();
    sys::proc::become_subreaper().map_err(at("subreaper"))?;
    match sys::proc::set_oom_score_adj(init.oom_score_adj) {
        Ok(set) if set == init.oom_score_adj => {}
        Ok(set) => {
            warnings.push(format!("oom_score_adj {} is not allowed here, it is {set}", init.oom_score_adj))
        }
        Err(error) => {
            warnings
                .push(format!("oom_score_adj {} cannot be set for the shim: {error}", init.oom_score_adj));
        }
    }

    // 6. Set the core dump filter, which containers' processes inherit, and the shim's own limit of open files, which they
    // do not: `process` restores it. (Pause opens nothing, and keeps the raised one.)
    if let Err(error) = sys::proc::set_coredump_filter(COREDUMP_FILTER) {
        warnings.push(format!("coredump_filter cannot be set: {error}"));
    }
    if let Err(error) = sys::rlimit::raise_open_files() {
        warnings.push(format!("the shim's limit of open files cannot be raised: {error}"));
    }

    // 7. Leave the host's mount namespace.
    podns::enter().map_err(at("mount namespace"))?;

    // 8. Read signals by signalfd. Processes of containers reset the mask. Pause keeps it, so that no signal before its first
    // instruction is lost.
    let signals = SignalFd::new(&SIGNALS).map_err(at("signalfd"))?;
    let from_daemon = FromDaemon { pause_binary, records: Records::new(records, boot), log_folder };
    Ok(Start { pod: init.pod, from_daemon, signals, warnings })
}

/// Joins a cgroup by its path. Only v1 has the file `tasks`, by which joining does not wait for an RCU grace period.
fn join(path: &str) -> std::io::Result<()> {
    let folder = std::fs::File::open(path)?;
    match sys::cgroup::join(folder.as_fd(), false) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => sys::cgroup::join(folder.as_fd(), true),
        joined => joined,
    }
}
