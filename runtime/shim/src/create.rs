//! The worker of one container: prepares its streams, sends them to the shim, and creates the container.

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use model::ContainerId;
use serde::Deserialize;
use sys::namespace::Namespaces;
use wire::{CgroupPlan, ErrorKind, NamespacePlan, NamespaceSource};

use crate::failure::{failure, refusal};
use crate::packet::{Prepared, Reporter, read_plan};
use crate::worker::container::Holders;
use crate::worker::{CreateInput, Stdio, create};

/// The part of the request that the shim needs.
#[derive(Deserialize)]
struct Peek {
    cgroup: CgroupPlan,
    namespaces: NamespacePlan,
    privileged: bool,
}

/// The streams in the request.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Streams {
    pub(crate) terminal: bool,
    pub(crate) stdin: bool,
}

/// Runs in the worker. `fds`: the plan, kubelet's mount namespace, then the cgroup folders. `of` returns the
/// namespaces of the pod's other containers.
pub(crate) fn work<'a>(
    reporter: &Reporter,
    fds: Vec<OwnedFd>,
    streams: Streams,
    pause: &'a Namespaces,
    of: impl Fn(&ContainerId) -> Option<&'a Namespaces>,
) -> i32 {
    let prepared = prepare(reporter, fds, streams, pause, of);
    let reply = match prepared {
        Ok(input) => create(input, &|warning: &str| reporter.warning(warning)),
        Err(failure) => wire::Reply::Failed(failure),
    };
    // If the report fails, the shim notices that the worker exited without one.
    i32::from(reporter.reply(&reply).is_err())
}

fn prepare<'a>(
    reporter: &Reporter,
    fds: Vec<OwnedFd>,
    streams: Streams,
    pause: &'a Namespaces,
    of: impl Fn(&ContainerId) -> Option<&'a Namespaces>,
) -> Result<CreateInput<'a>, wire::Failure> {
    let at = |stage: &'static str| move |error: io::Error| failure(ErrorKind::Internal, stage, &error);
    let mut fds = fds.into_iter();
    let (Some(plan), Some(kubelet_mntns)) = (fds.next(), fds.next()) else {
        return Err(refusal(ErrorKind::Invalid, "plan", "the request has no plan or no mount namespace"));
    };
    let cgroups: Vec<OwnedFd> = fds.collect();
    let peek: Peek = read_plan(plan.as_fd())?;
    let target = match &peek.namespaces.pid {
        NamespaceSource::Container(id) => Some(of(id).ok_or_else(|| {
            refusal(
                ErrorKind::NotFound,
                "pid namespace",
                format!("container {id} is not running in this pod"),
            )
        })?),
        _ => None,
    };
    let place = |name: &str| {
        peek.cgroup.members.iter().position(|member| member.hierarchy.split(',').any(|part| part == name))
    };
    let prepared = Prepared {
        unified: peek.cgroup.unified,
        memory: if peek.cgroup.unified { Some(0) } else { place("memory") },
        freezer: if peek.cgroup.unified { Some(0) } else { place("freezer") },
        roams: peek.privileged && !peek.cgroup.unified,
    };
    let pipe = || sys::scm::pipe().map_err(at("pipe"));
    let (error_end, exec_error) = pipe()?;
    let stdio = if streams.terminal {
        let (ours, sock) = sys::scm::stream_pair().map_err(at("console socket"))?;
        report(reporter, &prepared, &[error_end.as_fd(), ours.as_fd()])?;
        Stdio::Console { sock }
    } else {
        let ((out_end, stdout), (err_end, stderr)) = (pipe()?, pipe()?);
        let mut ends = vec![error_end.as_fd(), out_end.as_fd(), err_end.as_fd()];
        let (stdin, stdin_end) = if streams.stdin {
            let (stdin, end) = pipe()?;
            (stdin, Some(end))
        } else {
            (sys::proc::null().map_err(at("/dev/null"))?, None)
        };
        ends.extend(stdin_end.as_ref().map(|end| end.as_fd()));
        report(reporter, &prepared, &ends)?;
        Stdio::Pipes { stdin, stdout, stderr }
    };
    Ok(CreateInput {
        plan,
        kubelet_mntns,
        cgroups,
        stdio,
        exec_error,
        holders: Holders { pause: Some(pause), target },
    })
}

fn report(reporter: &Reporter, prepared: &Prepared, fds: &[BorrowedFd<'_>]) -> Result<(), wire::Failure> {
    reporter.prepared(prepared, fds).map_err(|error| failure(ErrorKind::Internal, "streams", &error))
}
