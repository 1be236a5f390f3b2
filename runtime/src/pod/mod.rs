//! Pods: one driver task each, which owns its state; what it works with.
//!
//! ```text
//! Node ──Command──► driver ──jobs──► launch, containers, teardown ──► shim, CNI, cgroups, files
//!                     │  ▲─────outcomes, shim events─────┘
//!                     └──► publish (List, Status)
//! ```

pub(crate) mod admission;
pub(crate) mod containers;
pub(crate) mod driver;
pub(crate) mod exec;
pub(crate) mod launch;
pub(crate) mod output;
pub(crate) mod publish;
pub(crate) mod stop;
pub(crate) mod teardown;

use crate::cgroups::Cgroups;
use crate::error::{Error, ErrorKind};
use crate::lanes;
use crate::node::NodeOptions;
use crate::registry::{Registry, Reply, Reservation};
use crate::root::Root;
use crate::seccomp::Compiled;
use crate::seccomp::Compiler;
use crate::shims::spawn::Binaries;
use image::ImageStore;
use model::{ContainerConfig, ContainerId, PodConfig, PodId, SeccompProfile};
use network::Cni;
use serde::Serialize;
use state::Layout;
use std::io::Read as _;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use sys::tree::Trash;

/// `kind` of pods' records.
pub(crate) const POD_RECORD: &str = "pod";
/// `kind` of containers' records.
pub(crate) const CONTAINER_RECORD: &str = "container";

/// What a driver is asked to do.
#[derive(Debug)]
pub(crate) enum Command {
    /// StopPodSandbox.
    StopPod(Reply<()>),
    /// RemovePodSandbox.
    RemovePod(Reply<()>),
    /// CreateContainer.
    Create {
        /// Boxed: it is the one large command.
        config: Box<ContainerConfig>,
        /// Gets the id.
        reply: Reply<ContainerId>,
    },
    /// StartContainer.
    Start {
        /// Which.
        id: ContainerId,
        /// When it has exec'd.
        reply: Reply<()>,
    },
    /// StopContainer.
    Stop {
        /// Which.
        id: ContainerId,
        /// Time between the stop signal and SIGKILL.
        grace: Duration,
        /// When it has exited.
        reply: Reply<()>,
    },
    /// RemoveContainer.
    Remove {
        /// Which.
        id: ContainerId,
        /// When nothing is left.
        reply: Reply<()>,
    },
    /// ReopenContainerLog.
    ReopenLog {
        /// Which.
        id: ContainerId,
        /// When the new file exists.
        reply: Reply<()>,
    },
    /// May a process be started in it, and how.
    Exec {
        /// Which.
        id: ContainerId,
        /// Gets what it takes.
        reply: Reply<exec::Ticket>,
    },
}

/// What all drivers share.
#[derive(Debug)]
pub(crate) struct Context {
    pub(crate) layout: Layout,
    /// Where removed containers' folders go.
    pub(crate) trash: Trash,
    pub(crate) root: Root,
    pub(crate) boot_id: String,
    pub(crate) images: ImageStore,
    pub(crate) cni: Cni,
    pub(crate) cgroups: Cgroups,
    pub(crate) compiler: Arc<Compiler>,
    pub(crate) binaries: Binaries,
    /// Mount namespace that volumes are looked up in.
    pub(crate) mount_namespace: OwnedFd,
    pub(crate) netns_dir: PathBuf,
    pub(crate) create_timeout: Duration,
    /// Our bounding set: no container can have more.
    pub(crate) cap_bounding: u64,
    /// The node's host name.
    pub(crate) node_name: String,
    /// stdin of execs.
    pub(crate) dev_null: OwnedFd,
}

impl Context {
    /// Opens and asks what does not change in a boot.
    pub(crate) async fn new(options: NodeOptions) -> Result<Self, Error> {
        blocking("open the node", move || {
            let open = |path: &Path| match std::fs::File::open(path) {
                Ok(file) => Ok(OwnedFd::from(file)),
                Err(error) => Err(Error::of(format!("open {}", path.display()), &error)),
            };
            let NodeOptions { layout, root, boot_id, images, cni, cgroups, compiler, .. } = options;
            let (shim, pause) = (&options.shim_binary, &options.pause_binary);
            let trash = Trash::new(layout.trash_dir(), |error| {
                tracing::warn!(%error, "left in the trash, tried again later and at the next start");
            });
            Ok(Self {
                layout,
                trash,
                root,
                boot_id,
                images,
                cni,
                cgroups,
                compiler,
                binaries: Binaries::open(shim, pause)?,
                mount_namespace: mount_namespace(&options.mount_namespace)?,
                netns_dir: options.netns_dir,
                create_timeout: options.create_timeout,
                cap_bounding: cap_bounding()?,
                node_name: node_name()?,
                dev_null: open(Path::new("/dev/null"))?,
            })
        })
        .await
    }

    /// Writes a record. Blocking.
    pub(crate) fn write<T: Serialize>(
        &self,
        path: &Path,
        kind: &str,
        record: &T,
        durable: bool,
    ) -> Result<(), Error> {
        self.write_within(state::file::MAX_BYTES, path, kind, record, durable)
    }

    /// Writes a record of at most `limit` bytes. Blocking.
    pub(crate) fn write_within<T: Serialize>(
        &self,
        limit: u64,
        path: &Path,
        kind: &str,
        record: &T,
        durable: bool,
    ) -> Result<(), Error> {
        let written = state::file::write_within(limit, path, kind, &self.boot_id, record, durable);
        if matches!(written, Err(state::Error::Io { .. })) {
            self.root.check_soon();
        }
        Ok(written?)
    }
}

fn cap_bounding() -> Result<u64, Error> {
    let path = "/proc/self/status";
    let text = std::fs::read_to_string(path).map_err(|error| Error::of(format!("read {path}"), &error))?;
    let hex = text.lines().find_map(|line| line.strip_prefix("CapBnd:")).map(str::trim).unwrap_or_default();
    u64::from_str_radix(hex, 16).map_err(|error| Error::of(format!("{path}: CapBnd {hex:?}"), &error))
}

fn node_name() -> Result<String, Error> {
    let path = "/proc/sys/kernel/hostname";
    let text = std::fs::read_to_string(path).map_err(|error| Error::of(format!("read {path}"), &error))?;
    Ok(text.trim().to_owned())
}

/// Runs what blocks on `root`'s disk and belongs to no single pod. What belongs to one: [`lanes::run`].
pub(crate) async fn blocking<T: Send + 'static>(
    what: &'static str,
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    match lanes::records().run(work).await {
        Ok(outcome) => outcome,
        Err(error) => Err(Error::from(error).context(what)),
    }
}

/// How long a file that a request names may take to be read.
const FOREIGN: Duration = Duration::from_secs(30);

/// The filter of a profile. A Localhost profile lies wherever the node's administrator put it, so it is read
/// where nothing but such files can hang.
///
/// # Errors
/// DeadlineExceeded when the profile's file system does not answer; those of the compiler.
pub(crate) async fn seccomp(
    context: &Arc<Context>,
    pod: &str,
    profile: &SeccompProfile,
    caps: u64,
) -> Result<Option<Arc<Compiled>>, Error> {
    let (compiler, wanted) = (Arc::clone(&context.compiler), profile.clone());
    let work = move || Ok(compiler.program(&wanted, caps)?);
    let lane = match profile {
        SeccompProfile::Localhost(_) => lanes::foreign(),
        // Compiled from a table.
        SeccompProfile::Unconfined | SeccompProfile::RuntimeDefault => lanes::exec(),
    };
    let compiled = lanes::run(lane, pod, "seccomp profile", work);
    answered(compiled, |limit| {
        format!("seccomp profile {profile:?} was not read within {limit:?}: its file system hangs")
    })
    .await
}

/// What comes of work on files that a request names, or `late` where their file system does not answer.
///
/// # Errors
/// DeadlineExceeded; those of `work`.
async fn answered<T>(
    work: impl Future<Output = Result<T, Error>>,
    late: impl FnOnce(Duration) -> String,
) -> Result<T, Error> {
    match tokio::time::timeout(FOREIGN, work).await {
        Ok(outcome) => outcome,
        Err(_) => Err(Error::new(ErrorKind::DeadlineExceeded, late(FOREIGN))),
    }
}

/// Opens the mount namespace that volumes are looked up in. Where PID 1's may not be opened (a hardened or
/// foreign init) it is the daemon's own, which is the same unless a service manager made it another.
fn mount_namespace(path: &Path) -> Result<OwnedFd, Error> {
    let open = |path: &Path| std::fs::File::open(path).map(OwnedFd::from);
    match open(path) {
        Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => {
            tracing::warn!(path = %path.display(), %error, "volumes are looked up in the daemon's own mount namespace");
            open(Path::new("/proc/self/ns/mnt"))
        }
        opened => opened,
    }
    .map_err(|error| Error::of(format!("open the mount namespace {}", path.display()), &error))
}

/// 32 random bytes for an id. /dev/urandom is memory: it does not block after boot.
pub(crate) fn random() -> Result<[u8; 32], Error> {
    let mut bytes = [0; 32];
    std::fs::File::open("/dev/urandom")
        .and_then(|mut file| file.read_exact(&mut bytes))
        .map_err(|error| Error::of("read /dev/urandom", &error))?;
    Ok(bytes)
}

/// Nanoseconds since the epoch, never 0.
pub(crate) fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX).max(1)
}

/// How often a name is tried for that becomes free while one waits for it.
const TRIES: usize = 3;

/// RunPodSandbox: reserves the name, or joins who has it, and waits for the launch.
pub(crate) async fn run(
    context: &Arc<Context>,
    registry: &Arc<Registry>,
    config: PodConfig,
) -> Result<PodId, Error> {
    spec::refuse::pod(&config)?;
    context.root.writable().await?;
    let config = Arc::new(config);
    for _ in 0..TRIES {
        let id = PodId::from_random(random()?);
        let mut launched = match registry.reserve(id, &config)? {
            Reservation::Join(launched) => launched,
            Reservation::New(seat, launched) => {
                driver::launch(Arc::clone(context), Arc::clone(registry), seat, &config);
                launched
            }
        };
        // An error: the pod that had the name was left half-made by an earlier daemon, and is gone now.
        if let Ok(ended) = launched.wait_for(Option::is_some).await
            && let Some(outcome) = &*ended
        {
            return outcome.clone();
        }
    }
    Err(Error::new(ErrorKind::Aborted, "the daemon is stopping"))
}
