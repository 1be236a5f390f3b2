//! The worker of one container: prepares its streams, sends them to the shim, and creates the container.

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use model::ContainerId;
use sys::namespace::{Kinds, Namespaces};
use wire::{ContainerPlan, ErrorKind, NamespaceSource};

use crate::failure::{failure, refusal};
use crate::packet::{CgroupUses, Reporter, read_plan};
use crate::worker::{CreateInput, Stdio, create};
use crate::worker_only::{Holders, Receiver};

/// The streams in the request.
#[derive(Debug, Clone, Copy)]
pub(crate) struct StreamRequest {
    pub(crate) terminal: bool,
    pub(crate) stdin: bool,
}

/// Describes the descriptors that are passed to the worker.
#[derive(Clone)]
pub(crate) struct Passed {
    /// Number of descriptors of the request: the plan, kubelet's mount namespace, then the cgroup folders.
    pub(crate) requested: usize,
    /// The worker was created in the container's cgroup.
    pub(crate) in_cgroup: bool,
    pub(crate) streams: StreamRequest,
    /// Kinds of pause's namespaces, which follow.
    pub(crate) pause: Kinds,
    /// The pod's containers. The PID namespace of each that has its own follows.
    pub(crate) targets: Vec<(ContainerId, Kinds)>,
}

impl Receiver for Reporter {
    fn warn(&self, text: &str) {
        self.warning(text);
    }

    fn init(&self, pidfd: BorrowedFd<'_>) -> io::Result<()> {
        self.init(pidfd)
    }

    fn reply(&self, reply: &wire::Reply) -> io::Result<()> {
        self.reply(reply)
    }
}

/// Runs in the worker. `passed` describes `fds`.
pub(crate) fn work(reporter: Reporter, fds: Vec<OwnedFd>, passed: Passed) -> i32 {
    match prepare(&reporter, fds, passed) {
        Ok(input) => create(input, Box::new(reporter)),
        Err(failure) => {
            reporter.failed(&failure);
            1
        }
    }
}

fn prepare(reporter: &Reporter, mut fds: Vec<OwnedFd>, passed: Passed) -> Result<CreateInput, wire::Failure> {
    let Passed { requested, in_cgroup, streams, pause, targets } = passed;
    let mut theirs = fds.split_off(requested.min(fds.len())).into_iter();
    let at = |stage: &'static str| move |error: io::Error| failure(ErrorKind::Internal, stage, &error);
    let pause = Namespaces::from_fds(pause, &mut theirs).map_err(at("namespaces"))?;
    let mut targets = targets
        .into_iter()
        .map(|(id, kinds)| Ok((id, Namespaces::from_fds(kinds, &mut theirs)?)))
        .collect::<io::Result<Vec<(ContainerId, Namespaces)>>>()
        .map_err(at("namespaces"))?;
    let mut fds = fds.into_iter();
    let (Some(plan), Some(kubelet_mntns)) = (fds.next(), fds.next()) else {
        return Err(refusal(ErrorKind::Invalid, "plan", "the request has no plan or no mount namespace"));
    };
    let cgroups: Vec<OwnedFd> = if in_cgroup { Vec::new() } else { fds.collect() };
    let plan: ContainerPlan = read_plan(plan.as_fd())?;
    let target = match &plan.namespaces.pid {
        NamespaceSource::Container(id) => {
            let place = targets.iter().position(|(target, _)| target == id).ok_or_else(|| {
                let message = format!("container {id} is not running in this pod");
                refusal(ErrorKind::NotFound, "pid namespace", message)
            })?;
            Some(targets.swap_remove(place).1)
        }
        _ => None,
    };
    drop(targets);
    let unified = plan.cgroup.unified;
    let place = |name: &str| {
        plan.cgroup.members.iter().position(|member| member.hierarchy.split(',').any(|part| part == name))
    };
    let uses = CgroupUses {
        unified,
        memory: if unified { Some(0) } else { place("memory") },
        freezer: if unified { Some(0) } else { place("freezer") },
        search_all: plan.privileged && !unified,
    };
    let (stdio, start_pipe) = open_streams(reporter, &uses, streams)?;
    Ok(CreateInput {
        plan,
        kubelet_mntns,
        cgroups,
        stdio,
        start_pipe,
        holders: Holders { pause: Some(pause), target },
    })
}

/// Creates the container's streams and the pipe for an error of execve, and reports the shim's ends.
fn open_streams(
    reporter: &Reporter,
    uses: &CgroupUses,
    streams: StreamRequest,
) -> Result<(Stdio, OwnedFd), wire::Failure> {
    let at = |stage: &'static str| move |error: io::Error| failure(ErrorKind::Internal, stage, &error);
    let pipe = || sys::scm::pipe().map_err(at("pipe"));
    let (read_end, start_pipe) = pipe()?;
    let stdio = if streams.terminal {
        let (ours, sock) = sys::scm::stream_pair().map_err(at("console socket"))?;
        report(reporter, uses, &[read_end.as_fd(), ours.as_fd()])?;
        Stdio::Console { sock }
    } else {
        let ((out_end, stdout), (err_end, stderr)) = (pipe()?, pipe()?);
        let mut ends = vec![read_end.as_fd(), out_end.as_fd(), err_end.as_fd()];
        let (stdin, stdin_end) = if streams.stdin {
            let (stdin, end) = pipe()?;
            (stdin, Some(end))
        } else {
            (sys::fds::null().map_err(at("/dev/null"))?, None)
        };
        ends.extend(stdin_end.as_ref().map(|end| end.as_fd()));
        report(reporter, uses, &ends)?;
        Stdio::Pipes { stdin, stdout, stderr }
    };
    Ok((stdio, start_pipe))
}

fn report(reporter: &Reporter, uses: &CgroupUses, fds: &[BorrowedFd<'_>]) -> Result<(), wire::Failure> {
    reporter.streams(uses, fds).map_err(|error| failure(ErrorKind::Internal, "streams", &error))
}
