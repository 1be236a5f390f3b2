//! Tests of the services through their socket, with a real client.

mod c_core;

use super::*;
use crate::cgroups::Cgroups;
use crate::config::Overrides;
use crate::node::NodeOptions;
use crate::seccomp::Compiler;
use crate::shutdown::Shutdown;
use crate::stats::StatsReader;
use cri_api::v1 as cri;
use cri_api::v1::image_service_client::ImageServiceClient;
use cri_api::v1::runtime_service_client::RuntimeServiceClient;
use std::sync::Arc;
use std::time::Duration;
use streaming::server::{Options, Server};
use tokio::sync::watch;
use tonic::Request;
use tonic::transport::{Channel, Endpoint};

/// A daemon's services with an empty state folder.
struct Fixture {
    runtime: RuntimeServiceClient<Channel>,
    images: ImageServiceClient<Channel>,
    stop: watch::Sender<bool>,
    serving: tokio::task::JoinHandle<Result<(), Error>>,
    _lock: state::lock::Lock,
    folder: tempfile::TempDir,
}

impl Fixture {
    #[expect(clippy::too_many_lines, reason = "a backend with all its parts")]
    async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let overrides = Overrides {
            root: Some(path("root").display().to_string()),
            state: Some(path("run").display().to_string()),
            socket: None,
        };
        // In a test container, PID 1's mount namespace may not be the host's, so the test uses its own.
        let text =
            format!("mount_namespace = \"self\"\n[network]\nconf_dir = \"{}\"\n", path("net.d").display());
        let config = Arc::new(Config::parse(&text, &overrides).unwrap());
        let layout = state::Layout::new(&config.root, &config.state).unwrap();
        let lock = state::lock::acquire(&layout).unwrap();
        let options = ::image::Options::new(layout.images_dir(), path("certs.d"));
        let images = tokio::task::spawn_blocking(|| ImageStore::open(options)).await.unwrap().unwrap();
        let cgroups = Cgroups::detect().unwrap();
        let cgroup_driver = cgroups.driver();
        let cni = Cni::new(network::CniConfig {
            conf_dir: config.network.conf_dir.clone(),
            bin_dirs: config.network.bin_dirs.clone(),
            cache_dir: layout.network_dir(),
            boot_id: state::boot::id().unwrap(),
            max_parallel: 1,
            timeout: Duration::from_secs(5),
        });
        for binary in ["copepod-shim", "pause"] {
            std::fs::write(path(binary), "#!/bin/false").unwrap();
        }
        let stats = Arc::new(StatsCache::new(StatsReader::new(cgroups.clone()), layout.clone()));
        let metrics = Arc::new(Metrics::new(cgroups.clone(), Arc::clone(&stats), &layout));
        let root = crate::root::Root::new(layout.clone());
        let apparmor = crate::apparmor::AppArmor::new(crate::apparmor::Support::Absent);
        let node = Node::open(NodeOptions {
            layout,
            root: root.clone(),
            boot_id: state::boot::id().unwrap(),
            images: images.clone(),
            cni: cni.clone(),
            cgroups,
            compiler: Arc::new(Compiler::new()),
            apparmor: apparmor.clone(),
            selinux: crate::selinux::Selinux::absent(),
            shim_binary: path("copepod-shim"),
            pause_binary: path("pause"),
            mount_namespace: config.mount_namespace.path().into(),
            netns_dir: path("netns"),
            create_timeout: Duration::from_secs(5),
        })
        .await
        .unwrap();
        let socket = Socket::bind(&config.socket, &lock).unwrap();
        let (stop, stopping) = watch::channel(false);
        let address = format!("unix://{}", config.socket.display());
        let options = Options {
            address: config.streaming.address,
            idle: config.streaming.idle_timeout,
            creation: config.streaming.creation_timeout,
            tls: None,
            freed: || (),
        };
        let urls = Server::bind(options).await.unwrap().urls();
        let user_namespaces = UserNamespaces::known(None);
        let config = watch::channel(config).1;
        let backend = Backend {
            node,
            images,
            cni,
            root,
            user_namespaces,
            apparmor,
            selinux: crate::selinux::Selinux::absent(),
            stats,
            metrics,
            urls,
            cgroup_driver,
            config,
        };
        let serving = tokio::spawn(serve(socket, backend, Shutdown::of(stopping)));
        let channel = Endpoint::from_shared(address).unwrap().connect().await.unwrap();
        Self {
            runtime: RuntimeServiceClient::new(channel.clone()),
            images: ImageServiceClient::new(channel),
            stop,
            serving,
            _lock: lock,
            folder,
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_empty_node_answers_kubelets_first_calls() {
    let Fixture { mut runtime, mut images, stop, serving, folder, .. } = Fixture::new().await;
    let version = runtime.version(cri::VersionRequest { version: String::new() }).await.unwrap().into_inner();
    assert_eq!((version.version.as_str(), version.runtime_name.as_str()), ("0.1.0", "copepod"));
    let status = runtime.status(cri::StatusRequest { verbose: true }).await.unwrap().into_inner();
    assert_eq!(status.status.unwrap().conditions.len(), 2);
    assert!(status.info["config"].contains("stateDir"));
    let driver =
        runtime.runtime_config(cri::RuntimeConfigRequest {}).await.unwrap().into_inner().linux.unwrap();
    assert_eq!(driver.cgroup_driver(), cri::CgroupDriver::Cgroupfs);
    let cidr = cri::NetworkConfig { pod_cidr: "10.0.0.0/24,fd00::/64".into() };
    let config = Some(cri::RuntimeConfig { network_config: Some(cidr) });
    runtime.update_runtime_config(cri::UpdateRuntimeConfigRequest { runtime_config: config }).await.unwrap();
    assert!(
        runtime
            .list_pod_sandbox(cri::ListPodSandboxRequest::default())
            .await
            .unwrap()
            .into_inner()
            .items
            .is_empty()
    );
    let listed = runtime.list_containers(cri::ListContainersRequest::default()).await.unwrap().into_inner();
    assert!(listed.containers.is_empty());
    let stats =
        runtime.list_container_stats(cri::ListContainerStatsRequest::default()).await.unwrap().into_inner();
    assert!(stats.stats.is_empty());
    assert!(
        images.list_images(cri::ListImagesRequest::default()).await.unwrap().into_inner().images.is_empty()
    );
    // kubelet calls stat on the mount point, so it must exist before anything was pulled.
    let fs = images.image_fs_info(cri::ImageFsInfoRequest {}).await.unwrap().into_inner();
    let mountpoint = &fs.image_filesystems[0].fs_id.as_ref().unwrap().mountpoint;
    assert!(std::path::Path::new(mountpoint).is_dir(), "{mountpoint}");
    let absent = cri::ImageSpec { image: "registry.invalid/absent".into(), ..Default::default() };
    let status = cri::ImageStatusRequest { image: Some(absent.clone()), verbose: true };
    assert_eq!(images.image_status(status).await.unwrap().into_inner().image, None);
    images.remove_image(cri::RemoveImageRequest { image: Some(absent) }).await.unwrap();

    stop.send_replace(true);
    tokio::time::timeout(Duration::from_secs(20), serving).await.expect("stops").unwrap().unwrap();
    assert!(!folder.path().join("run/copepod.sock").exists());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_daemons_probe_of_itself_succeeds_until_the_server_stops() {
    let Fixture { stop, serving, folder, .. } = Fixture::new().await;
    let socket = folder.path().join("run/copepod.sock");
    for _ in 0..3 {
        probe_socket(&socket).await.unwrap();
    }
    stop.send_replace(true);
    serving.await.unwrap().unwrap();
    let stopped = probe_socket(&socket).await;
    assert!(matches!(stopped, Err(SelfProbeError::Connect(_))), "{stopped:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_get_the_codes_they_branch_on() {
    // The other parts of the fixture must live as long as the clients.
    let Fixture { mut runtime, mut images, stop: _stop, _lock, folder: _folder, .. } = Fixture::new().await;
    let id = "ab".repeat(32);
    // Unknown objects: NotFound for queries and changes, success for removals.
    let status = cri::PodSandboxStatusRequest { pod_sandbox_id: id.clone(), verbose: false };
    assert_eq!(runtime.pod_sandbox_status(status).await.unwrap_err().code(), Code::NotFound);
    let status = cri::ContainerStatusRequest { container_id: id.clone(), verbose: false };
    assert_eq!(runtime.container_status(status).await.unwrap_err().code(), Code::NotFound);
    let stats = cri::ContainerStatsRequest { container_id: id.clone() };
    assert_eq!(runtime.container_stats(stats).await.unwrap_err().code(), Code::NotFound);
    let exec = cri::ExecSyncRequest { container_id: id.clone(), cmd: vec!["true".into()], timeout: 1 };
    assert_eq!(runtime.exec_sync(exec).await.unwrap_err().code(), Code::NotFound);
    let exec = cri::ExecRequest {
        container_id: id.clone(),
        cmd: vec!["true".into()],
        stdout: true,
        ..Default::default()
    };
    assert_eq!(runtime.exec(exec.clone()).await.unwrap_err().code(), Code::NotFound);
    let attach = cri::AttachRequest { container_id: id.clone(), stdout: true, ..Default::default() };
    assert_eq!(runtime.attach(attach).await.unwrap_err().code(), Code::NotFound);
    let forward = cri::PortForwardRequest { pod_sandbox_id: id.clone(), port: vec![80] };
    assert_eq!(runtime.port_forward(forward).await.unwrap_err().code(), Code::NotFound);
    let stats = cri::PodSandboxStatsRequest { pod_sandbox_id: id.clone() };
    assert_eq!(runtime.pod_sandbox_stats(stats).await.unwrap_err().code(), Code::NotFound);
    // kubelet's first call of it.
    let stats = cri::PodSandboxStatsRequest::default();
    assert_eq!(runtime.pod_sandbox_stats(stats).await.unwrap_err().code(), Code::NotFound);
    let both = cri::ExecRequest { tty: true, stderr: true, ..exec };
    assert_eq!(runtime.exec(both).await.unwrap_err().code(), Code::InvalidArgument);
    runtime.stop_pod_sandbox(cri::StopPodSandboxRequest { pod_sandbox_id: id.clone() }).await.unwrap();
    runtime.remove_pod_sandbox(cri::RemovePodSandboxRequest { pod_sandbox_id: id.clone() }).await.unwrap();
    runtime.stop_container(cri::StopContainerRequest { container_id: id.clone(), timeout: 1 }).await.unwrap();
    runtime.remove_container(cri::RemoveContainerRequest { container_id: id.clone() }).await.unwrap();
    // Invalid requests.
    let empty = runtime.run_pod_sandbox(cri::RunPodSandboxRequest::default()).await.unwrap_err();
    assert_eq!((empty.code(), empty.message()), (Code::InvalidArgument, "config: absent: must be set"));
    let bad = cri::ImageSpec { image: "UPPER/case:::".into(), ..Default::default() };
    let pull = cri::PullImageRequest { image: Some(bad), ..Default::default() };
    assert_eq!(images.pull_image(pull).await.unwrap_err().code(), Code::InvalidArgument);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_that_are_not_implemented_return_unimplemented() {
    // The other parts of the fixture must live as long as the clients.
    let Fixture { mut runtime, stop: _stop, _lock, folder: _folder, .. } = Fixture::new().await;
    macro_rules! unimplemented_are {
        ($client:ident: $($call:ident($message:ident)),* $(,)?) => {
            $(
                let status = $client.$call(cri::$message::default()).await.map(drop).unwrap_err();
                assert_eq!(status.code(), Code::Unimplemented, stringify!($call));
                assert!(status.message().contains("not implemented yet: "), "{}", status.message());
            )*
        };
    }
    unimplemented_are!(runtime:
        checkpoint_container(CheckpointContainerRequest),
        checkpoint_pod(CheckpointPodRequest),
        restore_pod(RestorePodRequest),
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_end() {
    let Fixture { mut runtime, mut images, stop, serving, _lock, folder: _folder } = Fixture::new().await;
    let mut events = runtime.get_container_events(cri::GetEventsRequest {}).await.unwrap().into_inner();
    // A list without items has no reply.
    macro_rules! is_empty {
        ($client:ident: $call:ident($message:ident)) => {
            let mut replies = $client.$call(cri::$message::default()).await.unwrap().into_inner();
            assert!(replies.message().await.unwrap().is_none(), stringify!($call));
        };
    }
    is_empty!(runtime: stream_pod_sandboxes(StreamPodSandboxesRequest));
    is_empty!(runtime: stream_containers(StreamContainersRequest));
    is_empty!(runtime: stream_container_stats(StreamContainerStatsRequest));
    is_empty!(runtime: stream_pod_sandbox_stats(StreamPodSandboxStatsRequest));
    is_empty!(images: stream_images(StreamImagesRequest));
    let state = cri::PodSandboxStateValue { state: 77 };
    let filter = Some(cri::PodSandboxFilter { state: Some(state), ..Default::default() });
    let refused = runtime.stream_pod_sandboxes(cri::StreamPodSandboxesRequest { filter }).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);

    // Streams of events end when the daemon stops, and do not delay it.
    stop.send_replace(true);
    let soon = crate::shutdown::DRAIN / 2;
    let ended = tokio::time::timeout(soon, events.message()).await.expect("an end").unwrap_err();
    assert_eq!(ended.code(), Code::Unavailable, "{ended}");
    tokio::time::timeout(soon, serving).await.expect("stops").unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn the_callers_deadline_returns_deadline_exceeded() {
    let mut request = Request::new(());
    request.set_timeout(Duration::from_secs(3));
    let began = tokio::time::Instant::now();
    let late = handle("Test", request, NOTHING_CONTINUES, |()| std::future::pending::<Result<(), Failure>>())
        .await
        .unwrap_err();
    assert_eq!(late.code(), Code::DeadlineExceeded);
    assert!(began.elapsed() < Duration::from_secs(3), "the library's own timer fired first");
    assert!(late.message().contains(NOTHING_CONTINUES), "{}", late.message());
}
