//! Starts a pod's shim. Its folder, socket and cgroup are created first, so that it finds all of them.

use crate::cgroups::{Cgroups, ShimCgroup, shim_path};
use crate::error::{Error, ErrorKind};
use model::{PodId, PodRecord};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{WaitId, WaitIdOptions, WaitIdStatus, waitid};
use state::{Layout, file};
use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use sys::spawn::{Binary, Child, Program};
use tokio::io::Interest;
use tokio::task::JoinHandle;
use wire::ShimInit;

/// The two programs that a pod runs, opened once, as read-only clones that nobody can write to.
#[derive(Debug, Clone)]
pub(crate) struct Binaries {
    shim: Arc<OwnedFd>,
    pause: Arc<OwnedFd>,
}

impl Binaries {
    /// Blocking.
    pub(crate) fn open(shim: &Path, pause: &Path) -> Result<Self, Error> {
        let sealed = |path: &Path| match sys::seal::sealed_binary(path) {
            Ok(fd) => Ok(Arc::new(fd)),
            Err(error) => Err(Error::of(format!("seal {}", path.display()), error)),
        };
        Ok(Self { shim: sealed(shim)?, pause: sealed(pause)? })
    }
}

/// Starts the shim of a pod. After an error, [`remove`] ends the process, if there is one, and removes the folder; the
/// cgroup goes with `Cgroups::remove_pod`. Blocking.
pub(crate) fn spawn(
    layout: &Layout,
    cgroups: &Cgroups,
    binaries: &Binaries,
    pod: &PodRecord,
) -> Result<Child, Error> {
    let at = |what: &'static str| move |error: io::Error| Error::of(what, error);
    let id = &pod.id;
    // These sync their parents, which costs nothing: the run folder is on a tmpfs.
    file::create_dir(&layout.shim_dir(id))?;
    file::create_dir(&layout.exits_dir(id))?;
    let ShimCgroup { start_in, join } = cgroups.create_shim(id)?;
    let socket = short_path(&layout.shim_socket(id))?;
    let listener = UnixListener::bind(&socket.path).map_err(at("bind the shim's socket"))?;
    let exits = std::fs::File::open(layout.exits_dir(id)).map_err(at("open the folder of exit files"))?;
    let init = ShimInit {
        protocol: wire::PROTOCOL,
        pod: id.clone(),
        log_directory: pod.config.log_directory.clone(),
        cgroups: join.iter().map(|path| path.to_string_lossy().into_owned()).collect(),
        oom_score_adj: spec::SHIM_OOM_SCORE_ADJ,
    };
    let init = serde_json::to_vec(&init).map_err(|error| Error::of("encode the shim's start", error))?;
    let init = sys::memfd::create_sealed("copepod-shim", &init).map_err(at("make the shim's memfd"))?;
    let fds = [listener.as_fd(), exits.as_fd(), init.as_fd(), binaries.pause.as_fd()];
    // Neither contains a NUL byte.
    let args = [c"copepod-shim".to_owned(), CString::new(id.as_str()).unwrap_or_default()];
    // Until a daemon is connected, the shim writes its errors to standard error, which is the daemon's.
    let stderr = std::io::stderr();
    let program = Program {
        binary: Binary::Fd(binaries.shim.as_fd()),
        args: &args,
        env: &[],
        stdio: [None, None, Some(stderr.as_fd())],
        fds: &fds,
        cgroup: start_in.as_ref().map(|folder| folder.as_fd()),
    };
    sys::spawn::spawn(&program).map_err(|error| match error.kind() {
        // EAGAIN: a limit of processes is reached.
        io::ErrorKind::WouldBlock => {
            let text = format!(
                "start the shim: {error}; the node, or the pids cgroup of the daemon, has reached its limit"
            );
            Error::of(text, error).with_kind(ErrorKind::Unavailable)
        }
        _ => Error::of("start the shim", error),
    })
}

/// Starts a process that only waits until the returned descriptor is closed, for the pod's scope. Blocking.
pub(crate) fn holder(
    binaries: &Binaries,
    pod: &PodId,
    cgroup: Option<BorrowedFd<'_>>,
) -> Result<(Child, OwnedFd), Error> {
    let failed = |error: io::Error| Error::of("start the process that the pod's scope begins with", error);
    let (input, end) = pipe_with(PipeFlags::CLOEXEC).map_err(|error| failed(error.into()))?;
    // Neither contains a NUL byte.
    let texts = ["copepod-shim", wire::HOLD, pod.as_str()];
    let args = texts.map(|text| CString::new(text).unwrap_or_default());
    let stderr = std::io::stderr();
    let child = sys::spawn::spawn(&Program {
        binary: Binary::Fd(binaries.shim.as_fd()),
        args: &args,
        env: &[],
        stdio: [Some(input.as_fd()), None, Some(stderr.as_fd())],
        fds: &[],
        cgroup,
    })
    .map_err(failed)?;
    Ok((child, end))
}

/// A short path of a socket, by the descriptor of its folder. The real path may be longer than sun_path (108 bytes,
/// unix(7)).
#[derive(Debug)]
pub(crate) struct ShortPath {
    /// Valid as long as this value exists.
    pub(crate) path: PathBuf,
    _folder: std::fs::File,
}

/// Opens the folder of a socket, for a short path of it. Blocking.
pub(crate) fn short_path(socket: &Path) -> Result<ShortPath, Error> {
    let (Some(dir), Some(name)) = (socket.parent(), socket.file_name()) else {
        return Err(Error::internal(format!("{} is not the path of a socket", socket.display())));
    };
    let folder =
        std::fs::File::open(dir).map_err(|error| Error::of(format!("open {}", dir.display()), error))?;
    let path = PathBuf::from(format!("/proc/self/fd/{}", folder.as_raw_fd())).join(name);
    Ok(ShortPath { path, _folder: folder })
}

/// Reaps a child in the background when it ends, so that it does not stay a zombie. The task returns how it ended, or
/// `None` if that is not known.
pub(crate) fn reap_later(child: Child) -> JoinHandle<Option<WaitIdStatus>> {
    tokio::spawn(async move {
        let Child { pid, pidfd } = child;
        let outcome = async {
            let watched = super::watched(pidfd, Interest::READABLE)?;
            drop(watched.readable().await?);
            waitid(WaitId::PidFd(watched.get_ref().as_fd()), WaitIdOptions::EXITED).map_err(io::Error::from)
        };
        match outcome.await {
            Ok(ended) => {
                tracing::debug!(pid, "child reaped");
                ended
            }
            Err(error) => {
                tracing::warn!(pid, %error, "cannot reap a child");
                None
            }
        }
    })
}

/// The error for a shim that ended before it was connected. After a signal (the OOM killer, an operator) a retry may
/// succeed: Unavailable.
pub(crate) fn ended_early(ended: Option<WaitIdStatus>) -> Error {
    let text = |how: String| {
        format!("the shim ended {how} before it was connected; its errors are in the daemon's log")
    };
    match ended.map(|ended| (ended.exit_status(), ended.terminating_signal())) {
        Some((Some(code), _)) if code != 0 => Error::internal(text(format!("with code {code}"))),
        Some((_, Some(signal))) => Error::new(ErrorKind::Unavailable, text(format!("by signal {signal}"))),
        _ => Error::new(ErrorKind::Unavailable, text("for an unknown reason".to_owned())),
    }
}

/// Kills a shim and all other processes in its cgroup, and removes its folder. Idempotent, blocking.
pub(crate) fn remove(layout: &Layout, cgroups: &Cgroups, pod: &PodId) -> Result<(), Error> {
    kill(cgroups, pod)?;
    remove_folder(layout, pod)
}

/// Kills a shim and all other processes in its cgroup. Idempotent, blocking.
pub(crate) fn kill(cgroups: &Cgroups, pod: &PodId) -> Result<(), Error> {
    cgroups.kill_all(&shim_path(pod)).map_err(|error| Error::from(error).context("kill the shim"))
}

/// Removes a shim's folder. Idempotent, blocking.
pub(crate) fn remove_folder(layout: &Layout, pod: &PodId) -> Result<(), Error> {
    Ok(file::remove_dir(&layout.shim_dir(pod))?)
}
