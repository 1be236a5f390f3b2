//! Creates a container in a forked process: hangs, leaks and panics are limited to that process.

mod container;
mod dev;
mod executor;
mod hide;
mod late;
mod mounts;
mod nested;
mod rootfs;
mod scratch;
mod stage;
mod tree;
mod volumes;

use std::fs;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;

use sys::mount::{self, Attributes};
use wire::{ContainerPlan, ErrorKind, Failure, Reply, parse_plan};

use executor::{Init, Parts, TITLE};
use late::Late;
use scratch::Scratch;
use stage::{Step, internal, invalid};

use crate::held::{Answer, Holders, WorkerOnly};
use crate::{bundle, process, user};

/// Largest plan in bytes; the shim's own limit is smaller (`packet::MAX_PLAN`).
const MAX_PLAN: usize = 16 << 20;
/// Names that libcgroups expects below a v1 /sys/fs/cgroup.
const HIERARCHIES: [&str; 13] = [
    "systemd",
    "cpu",
    "cpuacct",
    "cpuset",
    "memory",
    "devices",
    "blkio",
    "pids",
    "freezer",
    "net_cls",
    "net_prio",
    "hugetlb",
    "perf_event",
];

/// The source of stdio.
#[derive(Debug)]
pub(crate) enum Stdio {
    /// Pipes or other descriptors.
    Pipes {
        /// Read end.
        stdin: OwnedFd,
        /// Write end.
        stdout: OwnedFd,
        /// Write end.
        stderr: OwnedFd,
    },
    /// A terminal; its master is sent over this socket, with one byte.
    Console {
        /// A unix stream socket.
        sock: OwnedFd,
    },
}

/// The input of a worker: all its descriptors except 0-2 and that of its [`Answer`].
#[derive(Debug)]
pub(crate) struct CreateInput {
    /// memfd of a [`ContainerPlan`].
    pub(crate) plan: OwnedFd,
    /// Kubelet's mount namespace.
    pub(crate) kubelet_mntns: OwnedFd,
    /// One folder per member of the plan's cgroups.
    pub(crate) cgroups: Vec<OwnedFd>,
    /// Stdio.
    pub(crate) stdio: Stdio,
    /// Write end of the error pipe: execve closes it, or init writes its error to it. Close-on-exec.
    pub(crate) exec_error: OwnedFd,
    /// The processes whose namespaces the plan joins.
    pub(crate) holders: Holders,
}

/// Creates the container, sends the result and returns the worker's exit status. Init is a child of the caller's
/// parent and waits for [`bundle::start`]. On a failure the bundle is left to the shim: in the worker's namespace the
/// container's volumes are mounted in it.
pub(crate) fn create(input: CreateInput, answer: Box<dyn Answer>) -> i32 {
    let mut answer = Some(answer);
    let reply = attempt(input, &mut answer).unwrap_or_else(Reply::Failed);
    // If that fails, the shim notices that the worker exited without a result.
    i32::from(answer.is_none_or(|answer| answer.reply(&reply).is_err()))
}

fn attempt(input: CreateInput, answer: &mut Option<Box<dyn Answer>>) -> Step<Reply> {
    let bytes = sys::memfd::read_all(input.plan.as_fd(), MAX_PLAN).map_err(internal("plan", "reading"))?;
    let plan: ContainerPlan = parse_plan(&bytes)?;
    drop((input.plan, bytes));
    let rest = Rest {
        kubelet_mntns: input.kubelet_mntns,
        cgroups: input.cgroups,
        stdio: input.stdio,
        exec_error: input.exec_error,
        holders: input.holders,
        answer,
    };
    // Nothing is cleaned up here, where the container's mounts are visible: the shim removes its files,
    // because the bundle is an empty folder in its namespace. The mounts are removed with this process's
    // namespace.
    assemble(plan, rest)
}

struct Rest<'a> {
    kubelet_mntns: OwnedFd,
    cgroups: Vec<OwnedFd>,
    stdio: Stdio,
    exec_error: OwnedFd,
    holders: Holders,
    /// `None` while libcontainer creates init.
    answer: &'a mut Option<Box<dyn Answer>>,
}

#[expect(clippy::too_many_lines, reason = "the order of namespaces and mounts matters, and it is read here")]
fn assemble(plan: ContainerPlan, rest: Rest<'_>) -> Step<Reply> {
    let id = plan.id.clone();
    let spec = container::spec(&plan, &rest.holders).map_err(|e| invalid("namespaces", e))?;
    let split = mounts::split(&plan)?;
    // Folders for mounts are created with mode 0755 whatever umask the shim inherited.
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));

    // In kubelet's namespace: clone everything that is taken from the host.
    let pod = sys::namespace::own_mount().map_err(internal("namespaces", "own mount namespace"))?;
    sys::namespace::enter_mount(rest.kubelet_mntns.as_fd())
        .map_err(internal("namespaces", "kubelet's mount namespace"))?;
    let table = volumes::Table::open()?;
    let sources = rootfs::clone_sources(&plan.rootfs)?;
    let mut late = mounts::clone_late(&split.init, &plan.cgroup, plan.namespaces.cgroup)?;
    let early = mounts::clone_early(&split.worker)?;

    // In a copy of the pod's namespace: attach the clones.
    sys::namespace::enter_mount(pod.as_fd()).map_err(internal("namespaces", "pod's mount namespace"))?;
    drop(pod);
    sys::namespace::unshare_mount().map_err(internal("namespaces", "a mount namespace for the container"))?;
    let own = sys::namespace::own_mount().map_err(internal("namespaces", "own mount namespace"))?;
    let at = bundle::rootfs(&id);
    let scratch = Scratch::attach(&at)?;
    rootfs::assemble(&plan.rootfs, &sources, &Scratch::root_below(&at))?;
    drop(sources);
    let root = scratch.root()?;
    // Before volumes are attached: both must depend on the image only.
    let found = user::resolve(root.as_fd(), &plan.user).map_err(|e| unknown_user(&e))?;
    rootfs::make_folders(&root, &plan.rootfs)?;
    let namespaces = mounts::Namespaces { kubelet: rest.kubelet_mntns.as_fd(), own: own.as_fd() };
    let nested = mounts::attach_early(&root, &scratch, &split.worker, early, &table, &namespaces)?;
    mounts::clone_from_pod(&mut late)?;
    drop((table, own, root));

    let mut process = plan.process.clone();
    process.set_home(&found.home);
    hide_cgroups()?;
    let config = bundle::bundle(&id).join("config.json");
    fs::write(&config, spec.to_string()).map_err(internal("bundle", config.display()))?;

    for (folder, member) in rest.cgroups.iter().zip(&plan.cgroup.members) {
        sys::cgroup::join(folder.as_fd(), plan.cgroup.unified).map_err(internal("cgroup", &member.path))?;
    }
    let warning = process::before_namespaces(&plan.process).map_err(internal("process", "oom_score_adj"))?;
    if let (Some(warning), Some(answer)) = (warning, rest.answer.as_deref()) {
        answer.warn(&warning);
    }
    // Visible to the container while init waits, so it must not contain the node's data.
    sys::proc::set_title(TITLE).map_err(internal("process", "title"))?;
    let console = match rest.stdio {
        Stdio::Console { sock } => Some(sock),
        Stdio::Pipes { stdin, stdout, stderr } => {
            sys::fds::set_stdio(stdin.as_fd(), stdout.as_fd(), stderr.as_fd())
                .map_err(internal("stdio", "dup2"))?;
            None
        }
    };
    drop((rest.cgroups, rest.kubelet_mntns));
    // libcontainer accesses it by path, as root of the host.
    scratch.check(&at)?;
    drop(scratch);
    let (told, failed) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)
        .map_err(|e| internal("process", "pipe")(e.into()))?;

    let late = Late { plan, mounts: late, nested, console };
    let Some(answer) = rest.answer.take() else {
        return Err(invalid("process", "there is no receiver of the result"));
    };
    let worker = WorkerOnly { answer, told, _holders: rest.holders };
    let report = rest.exec_error;
    let init = Init::new(Parts { late, failed, process, user: found.user.clone(), report, worker });
    let built = container::build(&id, init.clone());
    // Closes the worker's copies of init's descriptors, including the error pipe.
    let told = init.take_back().map(|worker| {
        *rest.answer = Some(worker.answer);
        worker.told
    });
    match built {
        Ok(pid) => Ok(Reply::Created { pid, user: found.user, home: found.home }),
        Err(e) => Err(told.and_then(late::told).unwrap_or_else(|| Failure {
            kind: ErrorKind::Internal,
            stage: "libcontainer".to_owned(),
            message: chain(&e),
            errno: 0,
        })),
    }
}

/// An error with its causes, on one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        let words = inner.to_string();
        if !text.contains(&words) {
            text = format!("{text}: {words}");
        }
        cause = inner.source();
    }
    text
}

fn unknown_user(error: &user::UserError) -> Failure {
    match error {
        user::UserError::Unknown { .. } | user::UserError::Nobody { .. } => invalid("user", error),
        user::UserError::File { source, .. } => Failure {
            kind: ErrorKind::Internal,
            stage: "user".to_owned(),
            message: error.to_string(),
            errno: source.raw_os_error().unwrap_or(0),
        },
    }
}

/// Hides cgroups from libcontainer: they are created, limited and joined already.
fn hide_cgroups() -> Step<()> {
    let path = Path::new("/sys/fs/cgroup");
    let stage = "hiding cgroups";
    // EINVAL: it is not a mount point.
    match mount::detach(path) {
        Err(e) if e.raw_os_error() == Some(rustix::io::Errno::INVAL.raw_os_error()) => {}
        other => other.map_err(internal(stage, path.display()))?,
    }
    let tmpfs = mount::tmpfs(0o755, 1 << 20, Attributes::default()).map_err(internal(stage, "tmpfs"))?;
    for name in HIERARCHIES {
        rustix::fs::mkdirat(&tmpfs, name, rustix::fs::Mode::from_raw_mode(0o755))
            .map_err(|e| internal(stage, name)(e.into()))?;
    }
    mount::attach_at(tmpfs.as_fd(), path).map_err(internal(stage, path.display()))
}
