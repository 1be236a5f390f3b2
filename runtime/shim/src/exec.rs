//! Starting a process in a running container.
//!
//! It forks twice. The first child enters the container's cgroup and namespaces and drops all privileges that
//! the process must not have. The second is created in the container's PID namespace as a child of the shim
//! (CLONE_PARENT). vfork is not used: a container with ptrace could see the shim's memory.

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;

use sys::namespace::Namespaces;
use wire::{ErrorKind, ExecPlan};

use crate::failure::{failure, refusal};
use crate::packet::{Reporter, read_plan};
use crate::process::{self, Ready, Road};

/// The container to enter.
pub(crate) struct Target<'a> {
    /// The namespaces that it was created with: init may have created others, with files of its choice.
    pub(crate) namespaces: &'a Namespaces,
    pub(crate) cgroups: &'a [OwnedFd],
    pub(crate) unified: bool,
}

/// Ready for the second fork.
struct Prepared {
    ready: Ready,
    master: Option<OwnedFd>,
    terminal: bool,
    single: sys::fork::SingleThreaded,
}

/// Runs in the worker. `fds`: the plan, then stdin, stdout and stderr unless it has a terminal.
pub(crate) fn work(reporter: Reporter, fds: Vec<OwnedFd>, target: &Target<'_>) -> i32 {
    let Prepared { ready, master, terminal, single } = match prepare(&reporter, fds, target) {
        Ok(prepared) => prepared,
        Err(failure) => {
            reporter.failed(&failure);
            return 1;
        }
    };
    let report = match reporter.0.try_clone() {
        Ok(fd) => fd,
        Err(_) => return 1,
    };
    let sibling = sys::clone::sibling(&single, || {
        let Some(Reporter(own)) = reporter_of(&report) else { return 1 };
        match settle(terminal, own.as_fd()) {
            Ok(()) => ready.become_process(own),
            Err((stage, error)) => {
                Reporter(own).failed(&failure(ErrorKind::ExecFailed, stage, &error));
                1
            }
        }
    });
    match sibling {
        Ok(pid) => match reporter.made(pid, master.as_ref().map(|fd| fd.as_fd())) {
            Ok(()) => 0,
            Err(_) => 1,
        },
        Err(error) => {
            reporter.failed(&failure(ErrorKind::Internal, "clone", &error));
            1
        }
    }
}

fn prepare(
    reporter: &Reporter,
    mut fds: Vec<OwnedFd>,
    target: &Target<'_>,
) -> Result<Prepared, wire::Failure> {
    let at = |stage: &'static str| move |error| failure(ErrorKind::Internal, stage, &error);
    let mut streams = fds.split_off(fds.len().min(1));
    let plan = fds.pop();
    let plan = plan.ok_or_else(|| refusal(ErrorKind::Invalid, "plan", "the request has no plan"))?;
    let plan: ExecPlan = read_plan(plan.as_fd())?;
    let single = sys::fork::single_threaded().map_err(at("threads"))?;
    sys::proc::set_dumpable(false).map_err(at("dumpable"))?;
    for folder in target.cgroups {
        sys::cgroup::join(folder.as_fd(), target.unified).map_err(at("cgroup"))?;
    }
    // Must be done while /proc is the host's.
    if let Some(warning) = process::before_namespaces(&plan.process).map_err(at("oom_score_adj"))? {
        reporter.warning(&warning);
    }
    target.namespaces.enter().map_err(at("setns"))?;
    let mut master = None;
    if plan.process.terminal {
        let devpts = sys::mount::open_path(Path::new("/dev/pts")).map_err(at("pty"))?;
        let pty = sys::pty::open_in(devpts.as_fd()).map_err(at("pty"))?;
        master = Some(pty.master);
        streams = [&pty.slave, &pty.slave, &pty.slave]
            .into_iter()
            .map(OwnedFd::try_clone)
            .collect::<io::Result<_>>()
            .map_err(at("pty"))?;
    }
    for (fd, number) in streams.iter().zip(0..3) {
        sys::proc::place(fd.as_fd(), number).map_err(at("stdio"))?;
    }
    drop(streams);
    let ready = process::prepare(&plan.process, &plan.user, Road::Exec, ErrorKind::ExecFailed)?;
    Ok(Prepared { ready, master, terminal: plan.process.terminal, single })
}

/// A copy of the socket above the numbers of stdio.
fn reporter_of(report: &OwnedFd) -> Option<Reporter> {
    sys::proc::dup_above(report.as_fd(), 3).ok().map(Reporter)
}

/// Sets up session and terminal of the new process; [`Ready::become_process`] does the rest.
fn settle(terminal: bool, report: std::os::fd::BorrowedFd<'_>) -> Result<(), (&'static str, io::Error)> {
    let at = |stage: &'static str| move |error: io::Error| (stage, error);
    sys::proc::new_session();
    if terminal {
        sys::pty::make_controlling(io::stdin().as_fd()).map_err(at("controlling terminal"))?;
    }
    sys::proc::close_all_but(3, &[report]).map_err(at("descriptors"))
}
