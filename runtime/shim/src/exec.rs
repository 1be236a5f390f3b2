//! Starting a process in a running container.
//!
//! Two forks: the first enters the container's cgroup and namespaces, the second is born in its PID
//! namespace as the shim's own child (CLONE_PARENT). Not vfork: a container that may trace would see the
//! shim's memory.

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;

use wire::{ErrorKind, ExecPlan, parse_plan};

use crate::job::{MAX_PLAN, Teller, failure, refusal};
use crate::process;

/// The container that is entered.
pub(crate) struct Into<'a> {
    pub(crate) init: u32,
    pub(crate) cgroups: &'a [OwnedFd],
    pub(crate) unified: bool,
}

/// Runs in the worker. `fds`: the plan, then stdin, stdout and stderr unless a terminal is asked for.
pub(crate) fn work(teller: Teller, mut fds: Vec<OwnedFd>, into: &Into<'_>) -> i32 {
    let mut streams = fds.split_off(fds.len().min(1));
    let plan = fds.pop();
    let prepared = (|| {
        let at = |stage: &'static str| move |error| failure(ErrorKind::Internal, stage, &error);
        let plan =
            plan.ok_or_else(|| refusal(ErrorKind::Invalid, "plan", "no plan came with the request"))?;
        let json = sys::memfd::read_all(plan.as_fd(), MAX_PLAN).map_err(at("plan"))?;
        let plan: ExecPlan = parse_plan(&json)?;
        let single = sys::fork::single_threaded().map_err(at("threads"))?;
        sys::proc::set_dumpable(false).map_err(at("dumpable"))?;
        for folder in into.cgroups {
            sys::cgroup::join(folder.as_fd(), into.unified).map_err(at("cgroup"))?;
        }
        // While /proc is the host's.
        process::before_namespaces(&plan.process).map_err(at("oom_score_adj"))?;
        // By number: init was not reaped, which only the shim does, and it waits for no one meanwhile.
        let init = sys::pidfd::open(into.init).map_err(at("pidfd of init"))?;
        sys::pidfd::enter_namespaces(init.as_fd(), sys::pidfd::ALL_NAMESPACES).map_err(at("setns"))?;
        let mut master = None;
        if plan.process.terminal {
            let pty = sys::pty::open(Path::new("/dev/pts/ptmx")).map_err(at("pty"))?;
            master = Some(pty.master);
            streams = [&pty.slave, &pty.slave, &pty.slave]
                .into_iter()
                .map(OwnedFd::try_clone)
                .collect::<io::Result<_>>()
                .map_err(at("pty"))?;
        }
        Ok((plan, master, single))
    })();
    let (plan, master, single) = match prepared {
        Ok(prepared) => prepared,
        Err(failure) => {
            teller.failed(&failure);
            return 1;
        }
    };
    let report = match teller.0.try_clone() {
        Ok(fd) => fd,
        Err(_) => return 1,
    };
    let sibling = sys::clone::sibling(&single, || {
        let Some(Teller(own)) = teller_of(&report) else { return 1 };
        match settle(&plan, &streams, own.as_fd()) {
            Ok(()) => process::become_process(&plan.process, &plan.user, own),
            Err((stage, error)) => {
                Teller(own).failed(&failure(ErrorKind::ExecFailed, stage, &error));
                1
            }
        }
    });
    match sibling {
        Ok(pid) => match teller.made(pid, master.as_ref().map(|fd| fd.as_fd())) {
            Ok(()) => 0,
            Err(_) => 1,
        },
        Err(error) => {
            teller.failed(&failure(ErrorKind::Internal, "clone", &error));
            1
        }
    }
}

/// A copy of the socket above stdio, where it is not in the way.
fn teller_of(report: &OwnedFd) -> Option<Teller> {
    sys::proc::dup_above(report.as_fd(), 3).ok().map(Teller)
}

/// Session, terminal and stdio of the new process; [`process::become_process`] does the rest.
fn settle(
    plan: &ExecPlan,
    streams: &[OwnedFd],
    report: std::os::fd::BorrowedFd<'_>,
) -> Result<(), (&'static str, io::Error)> {
    let at = |stage: &'static str| move |error: io::Error| (stage, error);
    sys::proc::new_session();
    for (fd, number) in streams.iter().zip(0..3) {
        sys::proc::place(fd.as_fd(), number).map_err(at("stdio"))?;
    }
    if let (true, Some(terminal)) = (plan.process.terminal, streams.first()) {
        sys::pty::make_controlling(terminal.as_fd()).map_err(at("controlling terminal"))?;
    }
    sys::proc::close_all_but(3, &[report]).map_err(at("descriptors"))
}
