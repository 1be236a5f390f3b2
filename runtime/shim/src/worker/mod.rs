//! Creates a container in a forked process: hangs, leaks and panics are limited to that process.

mod bare;
mod container;
mod dev;
mod early;
mod executor;
mod filesystems;
mod hide;
mod images;
mod late;
mod locked;
mod mounts;
mod nested;
mod placement;
mod relabel;
mod rootfs;
mod scratch;
mod stage;
mod tree;
mod users;
mod volumes;

use std::fs;
use std::os::fd::{AsFd as _, OwnedFd};

use causes::with_causes;
use wire::{ContainerPlan, ErrorKind, Failure, Reply};

use executor::{Init, InitData, TITLE};
use images::Images;
use late::Late;
use locked::Locked;
use scratch::Scratch;
use stage::{Step, internal, invalid};
use users::Users;

use crate::process::OfHost;
use crate::worker_only::{Holders, Receiver, WorkerOnly};
use crate::{bundle, process, user};

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

/// The input of a worker: the plan, and all its descriptors except 0-2 and its [`Receiver`].
#[derive(Debug)]
pub(crate) struct CreateInput {
    pub(crate) plan: ContainerPlan,
    /// Kubelet's mount namespace.
    pub(crate) kubelet_mntns: OwnedFd,
    /// One folder per member of the plan's cgroups; none if the worker was created in the cgroup.
    pub(crate) cgroups: Vec<OwnedFd>,
    /// Stdio.
    pub(crate) stdio: Stdio,
    /// Write end of the start pipe: execve closes it, and init writes there why its start failed. Close-on-exec.
    pub(crate) start_pipe: OwnedFd,
    /// The namespaces that the plan joins.
    pub(crate) holders: Holders,
}

/// Creates the container, sends the result and returns the worker's exit status. Init is a child of the caller's
/// parent and waits for [`bundle::start`]. The bundle stays in any case, and the shim removes it.
pub(crate) fn create(input: CreateInput, receiver: Box<dyn Receiver>) -> i32 {
    let mut receiver = Some(receiver);
    // Nothing is cleaned up here, where the bundle contains the container's mounts. The shim removes the bundle: in its
    // namespace nothing is mounted there. The mounts end with this process's namespace.
    let reply = assemble(input, &mut receiver).unwrap_or_else(Reply::Failed);
    // If the result cannot be sent, the shim notices that the worker exited without one.
    i32::from(receiver.is_none_or(|receiver| receiver.reply(&reply).is_err()))
}

/// `receiver` is `None` while libcontainer creates init.
#[expect(clippy::too_many_lines, reason = "the order of namespaces and mounts matters, and it is read here")]
fn assemble(input: CreateInput, receiver: &mut Option<Box<dyn Receiver>>) -> Step<Reply> {
    let CreateInput { plan, kubelet_mntns, cgroups, stdio, start_pipe, holders } = input;
    let id = plan.id.clone();
    let split = placement::split(&plan)?;
    let users = Users::of(&plan, &holders)?;
    let locked = users.map(Locked::fork).transpose()?;
    // Folders for mounts are created with mode 0755 whatever umask the shim inherited.
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));

    // In kubelet's namespace: clone everything that is taken from the host.
    let pod = sys::namespace::own_mount().map_err(internal("namespaces", "own mount namespace"))?;
    sys::namespace::enter_mount(kubelet_mntns.as_fd())
        .map_err(internal("namespaces", "kubelet's mount namespace"))?;
    let table = volumes::HostMounts::open()?;
    let sources = rootfs::clone_sources(&plan.rootfs, users)?;
    let mut late = mounts::clone_late(&split.init, &plan, users)?;
    let early_mounts = early::clone(&split.worker, users)?;

    // In a copy of the pod's namespace: attach the clones.
    sys::namespace::enter_mount(pod.as_fd()).map_err(internal("namespaces", "pod's mount namespace"))?;
    sys::namespace::unshare_mount().map_err(internal("namespaces", "a mount namespace for the container"))?;
    let own = sys::namespace::own_mount().map_err(internal("namespaces", "own mount namespace"))?;
    let at = bundle::rootfs(&id);
    let scratch = Users::as_root(users, || Scratch::attach(&at, users.is_some(), &plan.file_label))?;
    // As root of the host: an overlay accesses its layers with the ids of its creator.
    let attached = sources.attach()?;
    rootfs::assemble(&plan.rootfs, &plan.file_label, &Scratch::root_below(&at))?;
    let images = Images::assemble(&plan, &scratch, &at, users)?;
    attached.detach()?;
    let root = scratch.root()?;
    // Before volumes are attached: the user and these folders must depend on the image only.
    let found = user::resolve(root.as_fd(), &plan.user).map_err(|e| unknown_user(&e))?;
    let host_uid = users.map(|users| users.host_uid(&found.user)).transpose()?;
    let nested = Users::as_root(users, || {
        rootfs::make_folders(&root, &plan.rootfs)?;
        let namespaces = early::Namespaces { kubelet: kubelet_mntns.as_fd(), own: own.as_fd(), users };
        let nested =
            early::attach(&root, &scratch, &split.worker, early_mounts, &images, &table, &namespaces)?;
        if let Some(mapping) = plan.namespaces.user {
            let owner = (mapping.uid, mapping.gid);
            mounts::create_dev(&mut late, |dev| dev::populate(&root, dev, &plan.devices, owner))?;
        }
        Ok(nested)
    })?;
    mounts::clone_here(&mut late, &images)?;
    images.detach()?;
    // libcontainer uses the scratch root by path, as root of the host.
    scratch.check(&at)?;
    drop((table, root, scratch));
    // Init must not keep the worker's namespace: with a user namespace it enters a copy.
    let mounts = match users {
        Some(users) => {
            let copy = locked::copy_for(users, own.as_fd())?;
            drop(own);
            copy
        }
        None => own,
    };

    // In another copy of the pod's namespace: libcontainer's part, until init enters the container's.
    bare::enter(pod.as_fd())?;
    drop(pod);
    let spec = container::spec(&plan, &holders, mounts.as_fd()).map_err(|e| invalid("namespaces", e))?;
    let mut process = plan.process.clone();
    process.set_home(&found.home);
    let config = bundle::bundle(&id).join("config.json");
    fs::write(&config, spec.to_string()).map_err(internal("bundle", config.display()))?;

    for (folder, member) in cgroups.iter().zip(&plan.cgroup.members) {
        sys::cgroup::join(folder.as_fd(), plan.cgroup.unified).map_err(internal("cgroup", &member.path))?;
    }
    let OfHost { warning, proc: host_proc } =
        process::before_namespaces(&plan.process).map_err(internal("process", "/proc"))?;
    if let (Some(warning), Some(receiver)) = (warning, receiver.as_deref()) {
        receiver.warn(&warning);
    }
    // Containers that share a PID namespace see the command line of a waiting init, and the shim's has the pod's id.
    sys::proc::set_title(TITLE).map_err(internal("process", "title"))?;
    let console = match stdio {
        Stdio::Console { sock } => Some(sock),
        Stdio::Pipes { stdin, stdout, stderr } => {
            if let Some(uid) = host_uid {
                let pipes = [stdin.as_fd(), stdout.as_fd(), stderr.as_fd()];
                process::give_pipes(&pipes, uid).map_err(internal("stdio", "owner of pipes"))?;
            }
            sys::fds::set_stdio(stdin.as_fd(), stdout.as_fd(), stderr.as_fd())
                .map_err(internal("stdio", "dup2"))?;
            None
        }
    };
    drop((cgroups, kubelet_mntns));
    let (create_pipe_read, create_pipe) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)
        .map_err(|e| internal("process", "pipe")(e.into()))?;

    let late = Late { plan, mounts: late, nested, console, locked };
    let Some(taken) = receiver.take() else {
        return Err(invalid("process", "the worker has no socket for its result"));
    };
    let worker = WorkerOnly { receiver: taken, create_pipe_read, _holders: holders, _mounts: mounts };
    let user = found.user.clone();
    let procfs = executor::libcontainer_procfs().map_err(internal("process", "procfs of libcontainer"))?;
    let init =
        Init::new(InitData { late, create_pipe, process, host_proc, user, start_pipe, procfs, worker });
    let built = container::build(&id, init.clone());
    // Closes the worker's copies of init's descriptors, among them the write ends of both pipes.
    let create_pipe_read = init.take_back().map(|worker| {
        *receiver = Some(worker.receiver);
        worker.create_pipe_read
    });
    match built {
        Ok(pid) => Ok(Reply::Created { pid, user: found.user, home: found.home }),
        Err(e) => Err(create_pipe_read.and_then(late::read_failure).unwrap_or_else(|| Failure {
            kind: ErrorKind::Internal,
            stage: "libcontainer".to_owned(),
            message: with_causes(&e),
            errno: 0,
        })),
    }
}

fn unknown_user(error: &user::UserError) -> Failure {
    match error {
        user::UserError::Unknown { .. } | user::UserError::NoId { .. } => invalid("user", error),
        user::UserError::File { source, .. } => Failure {
            kind: ErrorKind::Internal,
            stage: "user".to_owned(),
            message: error.to_string(),
            errno: source.raw_os_error().unwrap_or(0),
        },
    }
}
