//! Start and stop of the daemon: the order in which its parts come up.

use crate::cgroups::{self, Cgroups};
use crate::config::{Config, Given, MissingBinary};
use crate::node::{Node, NodeOptions};
use crate::reload::{Hangups, Live};
use crate::root::Root;
use crate::seccomp::Compiler;
use crate::service::{self, Backend, Figures, Socket};
use crate::shutdown::Shutdown;
use crate::stats::StatsReader;
use crate::{cni_watch, lanes, memory, telemetry};
use image::ImageStore;
use network::{Cni, CniConfig};
use state::Layout;
use state::lock::Lock;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

/// Threads that run calls. The work is waiting, not computing; what blocks goes to a lane ([`lanes`]).
const WORKERS: usize = 2;
/// tokio's own threads for what blocks: not used ([`lanes`]), but 0 is not allowed.
const BLOCKING: usize = 1;
/// Arenas of the C library's allocator: one a worker thread.
const ARENAS: i32 = 2;
/// Bytes of a worker's stack. Futures live on the heap; glibc's 8 MiB would only be address space. (Frames of
/// unoptimised builds are several times as large.)
const STACK: usize = if cfg!(debug_assertions) { 4 << 20 } else { 512 * 1024 };
/// Tasks still running after the stop are abandoned after this.
const ABANDON: Duration = Duration::from_secs(1);
/// The longest that the last log lines are waited for.
const LAST_LINES: Duration = Duration::from_secs(1);

/// Where network namespaces are pinned: CNI agents mount this folder from the host and look there.
const NETNS_DIR: &str = "/run/netns";
/// The longest that one container's file systems and init may take. kubelet gives CreateContainer two
/// minutes: a volume that hangs is reported, with the step it hangs in, before kubelet stops listening.
const CREATE_TIMEOUT: Duration = Duration::from_secs(100);

/// Why the daemon could not start, or ended.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Logging.
    #[error("cannot set up logging")]
    Telemetry(#[from] telemetry::AlreadySet),
    /// Threads, signals, timers.
    #[error("cannot {doing}")]
    Process {
        /// The failed step.
        doing: &'static str,
        /// The kernel's word.
        source: std::io::Error,
    },
    /// The host's cgroups.
    #[error("cannot run pods on this host")]
    Cgroups(#[from] cgroups::Error),
    /// The shim or pause.
    #[error(transparent)]
    Binary(#[from] MissingBinary),
    /// State folders, or another daemon that has them.
    #[error("cannot use the state folders")]
    State(#[from] state::Error),
    /// The image store.
    #[error("cannot open the image store")]
    Images(#[from] image::Error),
    /// Pods and containers.
    #[error("cannot take pods and containers over")]
    Node(#[from] crate::error::Error),
    /// The socket, or the server.
    #[error(transparent)]
    Server(#[from] service::Error),
}

/// Runs the daemon until it is told to stop. `given` is where `config` was read from, to read it again.
pub fn run(config: Config, given: Given) -> Result<(), Error> {
    telemetry::init(config.log)?;
    sys::malloc::limit_arenas(ARENAS);
    let print = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        // What led to it, first.
        telemetry::flush(LAST_LINES);
        print(panic);
    }));
    if let Err(error) = sys::rlimit::raise_open_files() {
        tracing::warn!(%error, "limit of open files not raised");
    }
    let alone = threads_to_spare().err();
    if let Some(error) = &alone {
        tracing::error!(%error, "no threads can be started: the daemon works with one until it is restarted");
    }
    let runtime = workers(alone.is_some())
        .thread_stack_size(STACK)
        .thread_name("copepod")
        .enable_all()
        .build()
        .map_err(|source| Error::Process { doing: "start threads", source })?;
    lanes::start(alone.is_some());
    let result = runtime.block_on(daemon(config, given));
    runtime.shutdown_timeout(ABANDON);
    telemetry::flush(LAST_LINES);
    result
}

fn workers(alone: bool) -> tokio::runtime::Builder {
    if alone {
        return tokio::runtime::Builder::new_current_thread();
    }
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    builder.worker_threads(WORKERS).max_blocking_threads(BLOCKING);
    builder
}

/// Whether the workers can be started. tokio starts them itself and panics when it cannot, so as many threads
/// are started before it, all at once, and ended again.
fn threads_to_spare() -> std::io::Result<()> {
    let (release, held) = std::sync::mpsc::channel::<()>();
    let held = std::sync::Mutex::new(held);
    std::thread::scope(|scope| {
        // Dropped at the end, or with the first error: then all of them end.
        let _release = release;
        for _ in 0..WORKERS {
            let wait = || drop(held.lock().map(|held| held.recv()));
            std::thread::Builder::new().stack_size(STACK).spawn_scoped(scope, wait)?;
        }
        Ok(())
    })
}

/// Locks first, records next, the socket after them: whoever can connect gets true answers.
async fn daemon(config: Config, given: Given) -> Result<(), Error> {
    let uncaught = |source| Error::Process { doing: "catch signals", source };
    let (stopping, hangups) =
        (Shutdown::on_signals().map_err(uncaught)?, Hangups::catch().map_err(uncaught)?);
    let config = Arc::new(config);
    let Found { layout, lock, boot_id, images, cgroups, shim_binary, pause_binary } = blocking({
        let config = Arc::clone(&config);
        move || find(&config)
    })
    .await?;
    let cni = Cni::new(CniConfig {
        conf_dir: config.network.conf_dir.clone(),
        bin_dirs: config.network.bin_dirs.clone(),
        cache_dir: layout.network_dir(),
        max_parallel: config.network.max_parallel,
        timeout: config.network.timeout,
    });
    if let Err(error) = cni.lane().start() {
        tracing::warn!(%error, "no thread for CNI yet: it is started when it can be");
    }
    let root = Root::new(layout.clone());
    let looked = root.clone();
    blocking(move || {
        looked.look();
        Ok(())
    })
    .await?;
    let figures = Arc::new(Figures::new(StatsReader::new(cgroups.clone()), layout.clone()));
    let node = Node::open(NodeOptions {
        layout,
        root: root.clone(),
        boot_id,
        images: images.clone(),
        cni: cni.clone(),
        cgroups,
        compiler: Arc::new(Compiler::new()),
        shim_binary,
        pause_binary,
        mount_namespace: config.mount_namespace.path().into(),
        netns_dir: NETNS_DIR.into(),
        create_timeout: CREATE_TIMEOUT,
    })
    .await?;
    let (sender, receiver) = watch::channel(Arc::clone(&config));
    let live = Live { given, config: sender, cni: cni.clone(), images: images.clone() };
    let backend = Backend {
        node: node.clone(),
        images,
        cni: cni.clone(),
        root: root.clone(),
        figures,
        config: receiver,
    };
    let (socket, lock) = blocking({
        let config = Arc::clone(&config);
        move || {
            let socket = Socket::bind(&config.socket, &lock)?;
            Ok((socket, lock))
        }
    })
    .await?;
    let conf_dir = config.network.conf_dir.clone();
    let watching = tokio::spawn(cni_watch::follow(conf_dir, move || {
        let cni = cni.clone();
        async move { reload(&cni).await }
    }));
    let probing = tokio::spawn(root.follow());
    let trimming = tokio::spawn(memory::trim());
    let reloading = tokio::spawn(live.follow(hangups));
    ready(&config);
    let served = service::serve(socket, backend, stopping).await;
    reloading.abort();
    watching.abort();
    trimming.abort();
    probing.abort();
    node.shutdown().await;
    drop(lock);
    tracing::info!("stopped");
    Ok(served?)
}

/// What must be there before anything is done.
struct Found {
    layout: Layout,
    lock: Lock,
    boot_id: String,
    images: ImageStore,
    cgroups: Cgroups,
    shim_binary: PathBuf,
    pause_binary: PathBuf,
}

/// In the order in which a fault is cheapest to mend: the host, the programs, the folders, the store.
fn find(config: &Config) -> Result<Found, Error> {
    let cgroups = Cgroups::detect()?;
    let own = std::env::current_exe()
        .map_err(|source| Error::Process { doing: "find the daemon's own binary", source })?;
    let shim_binary = config.binaries.shim(&own)?;
    let pause_binary = config.binaries.pause(&own)?;
    let layout = Layout::new(&config.root, &config.state)?;
    let lock = state::lock::acquire(&layout)?;
    let boot_id = state::boot::id()?;
    let mut options = image::Options::new(layout.images_dir(), &config.image.certs_dir);
    options.parallel_layers = config.image.max_parallel_downloads;
    let images = ImageStore::open(options)?;
    Ok(Found { layout, lock, boot_id, images, cgroups, shim_binary, pause_binary })
}

/// Runs a step of the start that waits for the disk.
async fn blocking<T: Send + 'static>(
    step: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    match lanes::records().run(step).await {
        Ok(result) => result,
        Err(error) => Err(Error::Process { doing: "run a step of the start", source: error.into() }),
    }
}

/// Reads the CNI folder; a change of readiness is worth a line.
async fn reload(cni: &Cni) {
    let before = cni.readiness();
    let after = cni.reload().await;
    if before != after {
        match &after.problem {
            None => tracing::info!(network = after.network, file = ?after.file, "the pod network is ready"),
            Some(problem) => tracing::warn!(problem, "the pod network is not ready"),
        }
    }
}

/// Tells the service manager, if there is one, that the socket answers.
fn ready(config: &Config) {
    tracing::info!(socket = %config.socket.display(), version = env!("CARGO_PKG_VERSION"), "ready");
    if let Err(error) = sd_notify::notify(&[sd_notify::NotifyState::Ready]) {
        tracing::warn!(%error, "cannot tell the service manager that the daemon is ready");
    }
}
