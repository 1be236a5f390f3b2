//! A device plugin of kubelet with one device: a gRPC server on a socket beside kubelet's, where it registers
//! (kubelet's device plugin API, v1beta1).

use std::fs;
use std::path::Path;
use std::pin::Pin;

use anyhow::{Context as _, Result};
use futures_util::{Stream, StreamExt as _, stream};
use tokio::net::UnixListener;
use tokio::task::JoinHandle;
use tonic::{Request, Response, Status};

use self::v1beta1::device_plugin_server::{DevicePlugin, DevicePluginServer};
use self::v1beta1::registration_client::RegistrationClient;
use self::v1beta1::{
    AllocateRequest, AllocateResponse, Device, DevicePluginOptions, Empty, ListAndWatchResponse,
    RegisterRequest,
};
use crate::cri;
use crate::wait::{self, secs};

/// The messages and services of `proto/deviceplugin.proto`.
// The code is generated, so our lints do not apply.
#[allow(
    missing_docs,
    unreachable_pub,
    let_underscore_drop,
    clippy::all,
    clippy::pedantic,
    clippy::restriction
)]
pub(super) mod v1beta1 {
    include!(concat!(env!("OUT_DIR"), "/v1beta1.rs"));
}

/// Where kubelet has its socket for plugins, whatever its root folder is.
const FOLDER: &str = "/var/lib/kubelet/device-plugins";
/// The plugin's socket there.
const SOCKET: &str = "copepod-test.sock";
/// The file in which kubelet keeps what it knows of plugins' devices.
const STATE: &str = "kubelet_internal_checkpoint";
/// What pods ask for.
pub(super) const RESOURCE: &str = "copepod.test/thing";
/// The only device.
const DEVICE: &str = "the-only-thing";

/// What a container with the device gets.
pub(super) type Given = v1beta1::ContainerAllocateResponse;

/// A plugin that is registered. Its server ends when this is dropped.
#[derive(Debug)]
pub(super) struct Plugin {
    server: JoinHandle<std::result::Result<(), tonic::transport::Error>>,
}

impl Plugin {
    /// Starts a plugin that adds `given` to a container with the device; returns when kubelet knows the device: before that,
    /// it would start a pod without it.
    pub(super) async fn start(given: Given) -> Result<Self> {
        let folder = Path::new(FOLDER);
        // kubelet empties its folder before it makes its own socket.
        let kubelet = folder.join("kubelet.sock");
        wait::until_true("kubelet's socket for plugins", secs(30), || kubelet.exists()).await?;
        let listener = UnixListener::bind(folder.join(SOCKET)).context("the plugin's socket")?;
        let incoming = stream::unfold(listener, |listener| async move {
            Some((listener.accept().await.map(|(connection, _)| connection), listener))
        });
        let service = DevicePluginServer::new(Service(given));
        let serving = tonic::transport::Server::builder().add_service(service).serve_with_incoming(incoming);
        let this = Self { server: tokio::spawn(serving) };
        let mut registration = RegistrationClient::new(cri::channel(&kubelet)?);
        let request = RegisterRequest {
            version: "v1beta1".into(),
            endpoint: SOCKET.into(),
            resource_name: RESOURCE.into(),
            options: Some(DevicePluginOptions {}),
        };
        registration
            .register(cri::bounded(request, wait::longer(secs(20))))
            .await
            .context("register the plugin")?;
        wait::until("kubelet to know the device", secs(20), || async {
            let state = fs::read_to_string(folder.join(STATE))?;
            Ok((state.contains(RESOURCE) && state.contains(DEVICE)).then_some(()))
        })
        .await?;
        Ok(this)
    }
}

impl Drop for Plugin {
    fn drop(&mut self) {
        self.server.abort();
        drop(fs::remove_file(Path::new(FOLDER).join(SOCKET)));
    }
}

/// The service, with what a container gets.
struct Service(Given);

#[tonic::async_trait]
impl DevicePlugin for Service {
    type ListAndWatchStream =
        Pin<Box<dyn Stream<Item = std::result::Result<ListAndWatchResponse, Status>> + Send>>;

    async fn get_device_plugin_options(
        &self,
        _: Request<Empty>,
    ) -> std::result::Result<Response<DevicePluginOptions>, Status> {
        Ok(Response::new(DevicePluginOptions {}))
    }

    /// The list, which never changes. To kubelet, a stream that ends is a plugin that has ended.
    async fn list_and_watch(
        &self,
        _: Request<Empty>,
    ) -> std::result::Result<Response<Self::ListAndWatchStream>, Status> {
        let devices = vec![Device { id: DEVICE.into(), health: "Healthy".into() }];
        let list = stream::iter([Ok(ListAndWatchResponse { devices })]);
        Ok(Response::new(Box::pin(list.chain(stream::pending()))))
    }

    async fn allocate(
        &self,
        request: Request<AllocateRequest>,
    ) -> std::result::Result<Response<AllocateResponse>, Status> {
        let asked = request.into_inner().container_requests;
        let devices: Vec<String> = asked.iter().flat_map(|container| container.devices_ids.clone()).collect();
        if devices != [DEVICE] {
            return Err(Status::invalid_argument(format!("there is {DEVICE} only, and not {devices:?}")));
        }
        Ok(Response::new(AllocateResponse { container_responses: vec![self.0.clone()] }))
    }
}
