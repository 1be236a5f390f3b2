//! Resolves the host names of registries on threads of our own. The default resolver of hyper-util uses tokio's
//! blocking pool, which panics when the node has no processes left.

use hyper_util::client::legacy::connect::dns::Name;
use pool::{Lane, Size};
use std::future::Future;
use std::io;
use std::net::{SocketAddr, ToSocketAddrs as _};
use std::pin::Pin;
use std::sync::LazyLock;
use std::task::{Context, Poll};

/// A name server that does not respond delays other look-ups, but no other work.
static LANE: LazyLock<Lane> = LazyLock::new(|| {
    Lane::new(Size { name: "names", kept_threads: 0, max_threads: 8, max_per_owner: 8, max_queued: 256 })
});

/// Resolves names with getaddrinfo(3).
#[derive(Debug, Clone, Copy)]
pub(crate) struct Resolver;

impl tower_service::Service<Name> for Resolver {
    type Response = std::vec::IntoIter<SocketAddr>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, name: Name) -> Self::Future {
        Box::pin(async move {
            // The connector sets the port.
            LANE.run(move || (name.as_str(), 0).to_socket_addrs()).await.map_err(io::Error::from)?
        })
    }
}
