//! Start and stop of the daemon, and the order in which its parts are created.

use crate::apparmor::{AppArmor, Support};
use crate::cgroups::{self, Cgroups};
use crate::config::{Arguments, Config, MissingBinary, Switch};
use crate::node::{Node, NodeOptions};
use crate::notify::ServiceManager;
use crate::reload::{Hangups, Reloader};
use crate::root::Root;
use crate::seccomp::Compiler;
use crate::selinux::Selinux;
use crate::service::{self, Backend, Metrics, Socket, StatsCache};
use crate::shutdown::Shutdown;
use crate::stats::StatsReader;
use crate::user_namespaces::UserNamespaces;
use crate::{cni_watch, lanes, memory, netns, telemetry, watchdog};
use image::ImageStore;
use network::{Cni, CniConfig, Pace};
use state::Layout;
use state::lock::Lock;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use streaming::server::{BindError, Certificate, Options, Server};
use tokio::sync::watch;

/// Threads that run calls. Calls wait more than they compute; blocking work runs on a lane ([`lanes`]).
const WORKERS: usize = 2;
/// tokio's own blocking threads: not used ([`lanes`]), but 0 is not allowed.
const BLOCKING: usize = 1;
/// Arenas of the C library's allocator, one per worker thread.
const ARENAS: i32 = 2;
/// The umask: permission bits that no new file or folder gets, whatever umask was inherited.
const UMASK: u32 = 0o022;
/// Stack size of a worker in bytes. Futures live on the heap, and glibc's 8 MiB would only use address space.
/// (Frames of unoptimised builds are several times as large.)
const STACK: usize = if cfg!(debug_assertions) { 4 << 20 } else { 512 * 1024 };
/// Time limit for tasks that are still running after the stop; then they are abandoned.
const SHUTDOWN_LIMIT: Duration = Duration::from_secs(1);
/// Time limit for writing the last log lines.
const FLUSH_LIMIT: Duration = Duration::from_secs(1);

/// Network namespaces are pinned in this folder, because CNI agents mount it from the host and look there.
const NETNS_DIR: &str = "/run/netns";
/// Time limit for setting up one container's file systems and init. It is shorter than kubelet's limit for
/// CreateContainer, two minutes, so that kubelet receives an error that names the step that hangs.
const CREATE_TIMEOUT: Duration = Duration::from_secs(100);

/// Why the daemon could not start, or ended with an error.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Logging could not be set up.
    #[error("cannot set up logging")]
    Telemetry(#[from] telemetry::AlreadySet),
    /// Threads, signals or timers failed.
    #[error("cannot {doing}")]
    Process {
        /// The failed step.
        doing: &'static str,
        /// The error of the system call.
        source: std::io::Error,
    },
    /// The host's cgroups cannot be used.
    #[error("cannot run pods on this host")]
    Cgroups(#[from] cgroups::Error),
    /// The shim or pause was not found.
    #[error(transparent)]
    Binary(#[from] MissingBinary),
    /// The state folders cannot be used, or another daemon uses them.
    #[error("cannot use the state folders")]
    State(#[from] state::Error),
    /// The image store could not be opened.
    #[error("cannot open the image store")]
    Images(#[from] image::Error),
    /// A variable such as HTTPS_PROXY is invalid.
    #[error(transparent)]
    Proxy(#[from] image::InvalidProxy),
    /// Pods and containers could not be restored.
    #[error("cannot restore pods and containers")]
    Node(#[from] crate::error::Error),
    /// The streaming server cannot listen.
    #[error("cannot serve exec, attach and port-forward (table streaming of the configuration)")]
    Streaming(#[from] BindError),
    /// The socket or the server failed.
    #[error(transparent)]
    Server(#[from] service::Error),
}

/// Runs the daemon until a signal stops it. A reload reads `config` again, from the files that `arguments` name.
pub(crate) fn run(config: Config, arguments: Arguments) -> Result<(), Error> {
    // Before the first thread is started, which is that of the log.
    sys::malloc::limit_arenas(ARENAS);
    sys::signal::undo_inherited();
    // This process makes folders that containers see, as their root: a stricter umask would keep other users out of them.
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(UMASK));
    telemetry::init(config.log)?;
    let print = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        // Write the log lines that led to the panic first.
        telemetry::flush(FLUSH_LIMIT);
        print(panic);
    }));
    if let Err(error) = sys::rlimit::raise_open_files() {
        tracing::warn!(%error, "cannot raise the limit of open files");
    }
    let single_threaded = can_start_workers().err();
    if let Some(error) = &single_threaded {
        tracing::error!(%error, "cannot start threads: the daemon works with a single one until it is restarted");
    }
    let runtime = workers(single_threaded.is_some())
        .thread_stack_size(STACK)
        .thread_name("copepod")
        .enable_all()
        .build()
        .map_err(|source| Error::Process { doing: "start threads", source })?;
    lanes::start(single_threaded.is_some());
    let result = runtime.block_on(daemon(config, arguments));
    runtime.shutdown_timeout(SHUTDOWN_LIMIT);
    telemetry::flush(FLUSH_LIMIT);
    result
}

fn workers(single_threaded: bool) -> tokio::runtime::Builder {
    if single_threaded {
        return tokio::runtime::Builder::new_current_thread();
    }
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    builder.worker_threads(WORKERS).max_blocking_threads(BLOCKING);
    builder
}

/// Tests whether the worker threads can be started: tokio panics if it cannot start them. Starts the same number of
/// threads, all of which exist at the same time, and ends them.
///
/// # Errors
/// The error of clone(2).
fn can_start_workers() -> std::io::Result<()> {
    let (release, released) = std::sync::mpsc::channel::<()>();
    let released = std::sync::Mutex::new(released);
    std::thread::scope(|scope| {
        // Dropped at the end or on the first error; then `recv` fails and all of these threads end.
        let _release = release;
        for _ in 0..WORKERS {
            let wait = || drop(released.lock().map(|released| released.recv()));
            std::thread::Builder::new().stack_size(STACK).spawn_scoped(scope, wait)?;
        }
        Ok(())
    })
}

/// Takes the lock, restores the records and then opens the socket, so that every client gets correct replies.
#[expect(clippy::too_many_lines, reason = "the order of the start, and that of the stop, are read here")]
async fn daemon(config: Config, arguments: Arguments) -> Result<(), Error> {
    let failed = |source| Error::Process { doing: "catch signals", source };
    let hangups = Hangups::catch().map_err(failed)?;
    let stopping = Shutdown::on_signals().map_err(failed)?;
    let manager = ServiceManager::from_environment();
    let config = Arc::new(config);
    let Prerequisites {
        layout,
        lock,
        boot_id,
        images,
        cgroups,
        apparmor,
        selinux,
        shim_binary,
        pause_binary,
    } = blocking({
        let config = Arc::clone(&config);
        move || check_prerequisites(&config)
    })
    .await?;
    let cni = Cni::new(CniConfig {
        conf_dir: config.network.conf_dir.clone(),
        bin_dirs: config.network.bin_dirs.clone(),
        cache_dir: layout.network_dir(),
        boot_id: boot_id.clone(),
        max_parallel: config.network.max_parallel,
        timeout: config.network.timeout,
    });
    if let Err(error) = cni.lane().start() {
        tracing::warn!(%error, "cannot start a thread for CNI; tried again when there is work");
    }
    let root = Root::new(layout.clone());
    let hung_check = root.check_in_time().await;
    let user_namespaces = UserNamespaces::default();
    let measuring = tokio::spawn({
        let (measured, shim, images) = (user_namespaces.clone(), shim_binary.clone(), images.root());
        async move { measured.measure(shim, images).await }
    });
    selinux.log();
    let apparmor = AppArmor::new(apparmor);
    let loading_apparmor = tokio::spawn({
        let apparmor = apparmor.clone();
        async move { apparmor.start().await }
    });
    let stats = Arc::new(StatsCache::new(StatsReader::new(cgroups.clone()), layout.clone()));
    let cgroup_driver = cgroups.driver();
    let metrics = Arc::new(Metrics::new(cgroups.clone(), Arc::clone(&stats), &layout));
    let node = Node::open(NodeOptions {
        layout,
        root: root.clone(),
        boot_id,
        images: images.clone(),
        cni: cni.clone(),
        cgroups,
        compiler: Arc::new(Compiler::new()),
        apparmor: apparmor.clone(),
        selinux: selinux.clone(),
        shim_binary,
        pause_binary,
        mount_namespace: config.mount_namespace.path().into(),
        netns_dir: NETNS_DIR.into(),
        create_timeout: CREATE_TIMEOUT,
    })
    .await?;
    let streaming = Server::bind(streaming_options(&config)).await?;
    let urls = streaming.urls();
    let (sender, receiver) = watch::channel(Arc::clone(&config));
    let reloader = Reloader {
        arguments,
        config: sender,
        cni: cni.clone(),
        images: images.clone(),
        manager: manager.clone(),
    };
    let image_store = images.clone();
    let backend = Backend {
        node: node.clone(),
        images,
        cni: cni.clone(),
        root: root.clone(),
        user_namespaces,
        apparmor,
        selinux,
        stats,
        metrics,
        urls,
        cgroup_driver,
        config: receiver,
    };
    let socket = blocking({
        let config = Arc::clone(&config);
        move || Ok(Socket::bind(&config.socket, lock)?)
    })
    .await?;
    // It has a time limit. The first Status must be right: kubelet refuses pods by it.
    drop(measuring.await);
    // The run of its parser has one too.
    drop(loading_apparmor.await);
    let conf_dir = config.network.conf_dir.clone();
    let watching = tokio::spawn({
        let cni = cni.clone();
        cni_watch::follow(conf_dir, move || {
            let cni = cni.clone();
            async move { reload_cni(&cni).await }
        })
    });
    let cni_upkeep = tokio::spawn(async move { cni.upkeep(Pace::default(), unpin).await });
    let checking_root = tokio::spawn(root.follow(hung_check));
    let trimming = tokio::spawn(memory::trim());
    let sampling = tokio::spawn(service::sample_stats(Arc::clone(&backend.stats), node.clone()));
    let reloading = tokio::spawn(reloader.run(hangups));
    let streaming = tokio::spawn(streaming.serve(stopping.clone().wait()));
    ready(&config, &manager).await;
    let image_upkeep = tokio::spawn(async move { image_store.upkeep().await });
    let managed = tokio::spawn(managed(manager, Arc::clone(&config), stopping.clone()));
    let served = service::serve(socket, backend, stopping).await;
    match &served {
        // It stops by the same signal, and tells its clients.
        Ok(()) => drop(streaming.await),
        Err(_) => streaming.abort(),
    }
    managed.abort();
    reloading.abort();
    watching.abort();
    cni_upkeep.abort();
    image_upkeep.abort();
    trimming.abort();
    sampling.abort();
    checking_root.abort();
    node.shutdown().await;
    tracing::info!("stopped");
    Ok(served?)
}

fn streaming_options(config: &Config) -> Options {
    let crate::config::Streaming { address, idle_timeout, creation_timeout, tls_certificate, tls_key } =
        config.streaming.clone();
    let tls = tls_certificate.zip(tls_key).map(|(chain, key)| Certificate { chain, key });
    Options { address, idle: idle_timeout, creation: creation_timeout, tls, freed: memory::freed }
}

/// What must exist before the daemon starts working.
struct Prerequisites {
    layout: Layout,
    lock: &'static Lock,
    boot_id: String,
    images: ImageStore,
    cgroups: Cgroups,
    apparmor: Support,
    selinux: Selinux,
    shim_binary: PathBuf,
    pause_binary: PathBuf,
}

/// Checks the host, the binaries, the folders and the image store, in this order: the first fault is the error.
fn check_prerequisites(config: &Config) -> Result<Prerequisites, Error> {
    let cgroups = Cgroups::detect()?.driven_by(config.cgroup_driver)?;
    let own = std::env::current_exe()
        .map_err(|source| Error::Process { doing: "find the daemon's own binary", source })?;
    let shim_binary = config.binaries.shim(&own)?;
    let pause_binary = config.binaries.pause(&own)?;
    let layout = Layout::new(&config.root, &config.state)?;
    // Leaked on purpose: threads of the lanes may write until the process ends, and another daemon must not use the
    // folders before that. The kernel releases the lock when the process ends.
    let lock = Box::leak(Box::new(state::lock::acquire(&layout)?));
    let boot_id = state::boot::id()?;
    let mut options = image::Options::new(layout.images_dir(), &config.image.certs_dir);
    options.parallel_layers = config.image.max_parallel_downloads;
    options.pinned.clone_from(&config.image.pinned);
    options.progress_timeout = config.image.progress_timeout;
    options.credentials_file = config.image.credentials_file.clone();
    options.proxies = Arc::new(image::Proxies::from_environment()?);
    options.boot_id.clone_from(&boot_id);
    let images = ImageStore::open(options)?;
    let apparmor = Support::detect(config.apparmor == Switch::Auto);
    let selinux = Selinux::detect(config.enable_selinux);
    Ok(Prerequisites { layout, lock, boot_id, images, cgroups, apparmor, selinux, shim_binary, pause_binary })
}

/// Runs a blocking step of the start. There is no time limit: nothing can be served before it ends. If a disk hangs, the
/// service manager's time limit for the start ends it.
async fn blocking<T: Send + 'static>(
    step: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    match lanes::records().run(step).await {
        Ok(result) => result,
        Err(error) => Err(Error::Process { doing: "run a step of the start", source: error.into() }),
    }
}

/// Reads the CNI folder and logs a change of readiness.
async fn reload_cni(cni: &Cni) {
    let before = cni.readiness();
    let after = cni.reload().await;
    if before != after {
        match &after.problem {
            None => tracing::info!(network = after.network, file = ?after.file, "the pod network is ready"),
            Some(problem) => tracing::warn!(problem, "the pod network is not ready"),
        }
    }
}

/// Removes the pin of a pod whose network is released after the pod's end.
async fn unpin(pin: PathBuf) {
    let shown = pin.display().to_string();
    let removed = lanes::kill().run(move || netns::unpin(&pin)).await;
    if let Err(error) = removed.map_err(std::io::Error::from).flatten() {
        tracing::warn!(pin = shown, %error, "cannot remove a network namespace pin");
    }
}

/// Tells the service manager, if there is one, that the daemon is ready.
async fn ready(config: &Config, manager: &ServiceManager) {
    let socket = config.socket.display();
    tracing::info!(%socket, version = env!("CARGO_PKG_VERSION"), "ready");
    manager.ready(&format!("Serving {socket}")).await;
}

/// Feeds the service manager's watchdog, if there is one, until the daemon stops, and tells that it stops.
async fn managed(manager: ServiceManager, config: Arc<Config>, stopping: Shutdown) {
    let feeding = async {
        match watchdog::period() {
            Some(period) => watchdog::run(&manager, period, &config.socket).await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        () = feeding => {}
        () = stopping.wait() => manager.stopping().await,
    }
}
