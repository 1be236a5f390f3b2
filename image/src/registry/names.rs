//! Host names of registries, resolved on threads of ours: the HTTP library's own resolver asks tokio for one, which
//! panics when the node is out of processes.

use hyper_util::client::legacy::connect::dns::Name;
use pool::{Lane, Size};
use std::future::Future;
use std::io;
use std::net::{SocketAddr, ToSocketAddrs as _};
use std::pin::Pin;
use std::sync::LazyLock;
use std::task::{Context, Poll};

/// A resolver that hangs holds up other names, and nothing else.
static LANE: LazyLock<Lane> =
    LazyLock::new(|| Lane::new(Size { name: "names", kept: 0, most: 8, each: 8, waiting: 256 }));

/// getaddrinfo(3).
#[derive(Debug, Clone, Copy)]
pub(crate) struct Names;

impl tower_service::Service<Name> for Names {
    type Response = std::vec::IntoIter<SocketAddr>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, name: Name) -> Self::Future {
        Box::pin(async move {
            // The port is the connector's business.
            LANE.run(move || (name.as_str(), 0).to_socket_addrs()).await.map_err(io::Error::from)?
        })
    }
}
