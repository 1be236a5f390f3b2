//! Starting a process in a running container.
//!
//! It forks twice. The first child enters the container's cgroup and namespaces and drops all privileges that
//! the process must not have. The second is created in the container's PID namespace as a child of the shim
//! (CLONE_PARENT). vfork is not used: a container with ptrace could see the shim's memory.

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::Path;

use sys::namespace::{Kinds, Namespaces};
use wire::{ErrorKind, ExecPlan, TerminalSize};

use crate::failure::{failure, refusal};
use crate::packet::{Reporter, read_plan};
use crate::process::{self, OfHost, ProcessKind, Ready};

/// How long a sibling has for execve before the shim is told of it.
const EXECVE_WAIT: rustix::event::Timespec = rustix::event::Timespec { tv_sec: 0, tv_nsec: 100_000_000 };

/// Describes the descriptors that are passed to the worker.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Passed {
    /// Number of descriptors of the request: the plan, then stdin, stdout and stderr unless it has a terminal.
    pub(crate) requested: usize,
    /// Number of the descriptors by which its cgroups are joined, which follow: on v2 its folder, on v1 files `tasks`.
    pub(crate) cgroups: usize,
    /// The host has cgroup v2.
    pub(crate) unified: bool,
    /// The worker was created in the container's cgroup.
    pub(crate) in_cgroup: bool,
    /// Kinds of the namespaces that the container was created with, which follow. Init may be in others by now, which
    /// it has created itself, with files of its choice: an exec must not enter those.
    pub(crate) namespaces: Kinds,
    /// Pid of the container's init. It may have ended.
    pub(crate) init: u32,
}

/// What the worker has after it has entered the container, for the second fork.
struct Entered {
    ready: Ready,
    master: Option<OwnedFd>,
    terminal: bool,
    /// A pipe: this end learns that the sibling has called execve or ended, because that closes the other end.
    executes: OwnedFd,
    /// The other end.
    executed: OwnedFd,
    single: sys::fork::SingleThreaded,
}

/// Runs in the worker. `passed` describes `fds`.
pub(crate) fn work(reporter: Reporter, fds: Vec<OwnedFd>, passed: Passed) -> i32 {
    let Entered { ready, master, terminal, executes, executed, single } =
        match prepare(&reporter, fds, passed) {
            Ok(entered) => entered,
            Err(failure) => {
                reporter.failed(&failure);
                return 1;
            }
        };
    // In the child these variables are copies, so taking them there leaves the worker's alone.
    let (mut reporter, mut master) = (Some(reporter), master);
    let sibling = sys::clone::sibling(&single, || {
        drop(master.take());
        let Some(reporter) = reporter.take() else { return 1 };
        match begin_session(terminal) {
            Ok(()) => ready.become_process(reporter.0),
            Err((stage, error)) => {
                reporter.failed(&failure(ErrorKind::ExecFailed, stage, &error));
                1
            }
        }
    });
    let Some(reporter) = reporter else { return 1 };
    match sibling {
        Ok(child) => {
            drop(executed);
            wait_for_execve(executes.as_fd());
            i32::from(reporter.made(&child, master.as_ref().map(|fd| fd.as_fd())).is_err())
        }
        Err(error) => {
            reporter.failed(&failure(ErrorKind::Internal, "clone", &error));
            1
        }
    }
}

/// Waits until the sibling has called execve or ended, at most [`EXECVE_WAIT`]. If the worker sent its packet earlier, the
/// shim would wake up twice, once while execve needs the processor: that costs 4 % of an exec. The wait is limited, because
/// execve may hang, for example on a dead file system, and the shim must know the process in order to kill it.
fn wait_for_execve(executes: BorrowedFd<'_>) {
    let mut poll = [rustix::event::PollFd::new(&executes, rustix::event::PollFlags::IN)];
    let _outcome = rustix::event::poll(&mut poll, Some(&EXECVE_WAIT));
}

fn prepare(reporter: &Reporter, mut fds: Vec<OwnedFd>, passed: Passed) -> Result<Entered, wire::Failure> {
    let at = |stage: &'static str| move |error| failure(ErrorKind::Internal, stage, &error);
    let mut theirs = fds.split_off(passed.requested.min(fds.len())).into_iter();
    let cgroups: Vec<OwnedFd> = theirs.by_ref().take(passed.cgroups).collect();
    let namespaces = Namespaces::from_fds(passed.namespaces, &mut theirs).map_err(at("setns"))?;
    let mut streams = fds.split_off(fds.len().min(1));
    let plan = fds.pop();
    let plan = plan.ok_or_else(|| refusal(ErrorKind::Invalid, "plan", "the request has no plan"))?;
    let plan: ExecPlan = read_plan(plan.as_fd())?;
    let single = sys::fork::single_threaded().map_err(at("threads"))?;
    sys::proc::set_dumpable(false).map_err(at("dumpable"))?;
    for cgroup in cgroups.iter().filter(|_| !passed.in_cgroup) {
        join(cgroup.as_fd(), passed).map_err(at("cgroup"))?;
    }
    drop(cgroups);
    // Before the container's namespaces are entered, because it needs the host's /proc.
    let OfHost { warning, proc } = process::before_namespaces(&plan.process).map_err(at("/proc"))?;
    if let Some(warning) = warning {
        reporter.warning(&warning);
    }
    let users = namespaces.get("user").is_some();
    give_pipes(&plan, users, &streams)?;
    namespaces.enter().map_err(at("setns"))?;
    if users {
        sys::userns::become_root().map_err(at("user namespace"))?;
    }
    drop(namespaces);
    let mut master = None;
    if plan.process.terminal {
        let devpts = sys::mount::open_path(Path::new("/dev/pts")).map_err(at("pty"))?;
        let pty = sys::pty::open_in(devpts.as_fd()).map_err(at("pty"))?;
        if let Some(TerminalSize { columns, rows }) = plan.size {
            sys::pty::set_size(pty.master.as_fd(), columns, rows).map_err(at("pty"))?;
        }
        master = Some(pty.master);
        streams = [&pty.slave, &pty.slave, &pty.slave]
            .into_iter()
            .map(OwnedFd::try_clone)
            .collect::<io::Result<_>>()
            .map_err(at("pty"))?;
    }
    if let [stdin, stdout, stderr] = streams.as_slice() {
        sys::fds::set_stdio(stdin.as_fd(), stdout.as_fd(), stderr.as_fd()).map_err(at("stdio"))?;
    }
    drop(streams);
    let (executes, executed) = sys::scm::pipe().map_err(at("pipe"))?;
    let ready = process::prepare(&plan.process, &plan.user, ProcessKind::Exec, proc, ErrorKind::ExecFailed)?;
    Ok(Entered { ready, master, terminal: plan.process.terminal, executes, executed, single })
}

/// Gives the streams of a container with its own user namespace to the user. `users`: the container has one, as its plan
/// must say.
fn give_pipes(plan: &ExecPlan, users: bool, streams: &[OwnedFd]) -> Result<(), wire::Failure> {
    let stage = "user namespace";
    if plan.mapping.is_some() != users {
        let message = "the plan and the container do not agree on whether there is one";
        return Err(refusal(ErrorKind::Invalid, stage, message));
    }
    let Some(mapping) = plan.mapping else { return Ok(()) };
    let uid = mapping.host_uid(plan.user.uid);
    let uid = uid.ok_or_else(|| refusal(ErrorKind::Invalid, stage, "the user is not mapped in it"))?;
    let streams: Vec<_> = streams.iter().map(|fd| fd.as_fd()).collect();
    process::give_pipes(&streams, uid).map_err(|error| failure(ErrorKind::Internal, "owner of pipes", &error))
}

/// Joins the container's cgroup. If the container has moved its processes to cgroups below that, the kernel may allow
/// processes only there: then the one that init is in, as with runc.
fn join(cgroup: BorrowedFd<'_>, passed: Passed) -> io::Result<()> {
    if !passed.unified {
        return sys::cgroup::join_by(cgroup);
    }
    match sys::cgroup::join(cgroup, true) {
        Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {
            sys::cgroup::join_below(cgroup, passed.init)
        }
        joined => joined,
    }
}

/// Makes the new process the leader of a session, with its terminal if it has one; [`Ready::become_process`] does the
/// rest.
fn begin_session(terminal: bool) -> Result<(), (&'static str, io::Error)> {
    sys::proc::new_session();
    if terminal {
        rustix::process::ioctl_tiocsctty(io::stdin()).map_err(|e| ("controlling terminal", e.into()))?;
    }
    Ok(())
}
