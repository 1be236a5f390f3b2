//! The connection to the daemon: the clients that tonic generates, on hyper's HTTP/2, which the server has linked already.
//! tonic's own channel would bring tower's buffer and balance.

use super::Error;
use api::v1::images_client::ImagesClient;
use cri_api::v1::image_service_client::ImageServiceClient;
use futures_util::future::{BoxFuture, FutureExt as _};
use http::Uri;
use hyper::body::Incoming;
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo};
use std::path::Path;
use std::task::{Context, Poll};
use tokio::net::UnixStream;
use tonic::body::Body;

/// Maximum size of a list of CRI, in bytes: the daemon's own limit.
const MAX_LIST: usize = 16 << 20;

/// A connection. Clones share it.
#[derive(Debug, Clone)]
pub(super) struct Connection(SendRequest<Body>);

/// Connects to the daemon.
pub(super) async fn connect(socket: &Path) -> Result<Connection, Error> {
    let failed = |source| Error::Connect { path: socket.to_owned(), source };
    let stream = UnixStream::connect(socket).await.map_err(|error| failed(error.into()))?;
    let (requests, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
        .await
        .map_err(|error| failed(error.into()))?;
    // Its error is that of the calls too.
    tokio::spawn(connection);
    Ok(Connection(requests))
}

impl Connection {
    /// CRI's ImageService.
    pub(super) fn images(&self) -> ImageServiceClient<Self> {
        ImageServiceClient::with_origin(self.clone(), origin()).max_decoding_message_size(MAX_LIST)
    }

    /// The daemon's own service.
    pub(super) fn archives(&self) -> ImagesClient<Self> {
        ImagesClient::with_origin(self.clone(), origin()).max_decoding_message_size(api::MAX_MESSAGE)
    }
}

/// The socket has no name of a host.
fn origin() -> Uri {
    Uri::from_static("http://localhost")
}

impl tower_service::Service<http::Request<Body>> for Connection {
    type Response = http::Response<Incoming>;
    type Error = hyper::Error;
    type Future = BoxFuture<'static, Result<Self::Response, Self::Error>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        self.0.send_request(request).boxed()
    }
}
