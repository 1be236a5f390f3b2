//! Resolves the host names of registries on threads of our own. The default resolver of hyper-util uses tokio's
//! blocking pool, which panics when the node has no processes left.

use super::reach::Reach;
use hyper_util::client::legacy::connect::dns::Name;
use pool::{Lane, Size};
use std::future::Future;
use std::io;
use std::net::{SocketAddr, ToSocketAddrs as _};
use std::pin::Pin;
use std::sync::{Arc, LazyLock};
use std::task::{Context, Poll};

/// A name server that does not respond delays other look-ups, but no other work.
static LANE: LazyLock<Lane> = LazyLock::new(|| {
    Lane::new(Size { name: "names", kept_threads: 0, max_threads: 8, max_per_owner: 8, max_queued: 256 })
});

/// Resolves names with getaddrinfo(3).
#[derive(Debug, Clone)]
pub(crate) struct Resolver {
    reach: Arc<Reach>,
    kind: HostKind,
}

/// Whose name is resolved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum HostKind {
    /// A registry or mirror whose URL is in `hosts.toml`: its addresses are learnt. (What another name is resolved to, its
    /// owner decides, perhaps anew at every look-up.)
    Configured,
    /// Any other registry, or a proxy.
    Any,
    /// A host that a registry leads to, by a redirect or as its token server: addresses that are out of the registry's
    /// reach are left out.
    LedTo,
}

impl Resolver {
    pub(crate) fn new(reach: Arc<Reach>, kind: HostKind) -> Self {
        Self { reach, kind }
    }
}

impl tower_service::Service<Name> for Resolver {
    type Response = std::vec::IntoIter<SocketAddr>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, name: Name) -> Self::Future {
        let Self { reach, kind } = self.clone();
        Box::pin(async move {
            // The connector sets the port.
            let found =
                LANE.run(move || (name.as_str(), 0).to_socket_addrs()).await.map_err(io::Error::from)??;
            within(&reach, kind, found.collect()).map(Vec::into_iter)
        })
    }
}

/// Those of the addresses that may be connected to. Fails if that is none of several.
fn within(reach: &Reach, kind: HostKind, found: Vec<SocketAddr>) -> io::Result<Vec<SocketAddr>> {
    match kind {
        HostKind::Configured => {
            found.iter().for_each(|address| reach.learn(address.ip()));
            return Ok(found);
        }
        HostKind::Any => return Ok(found),
        HostKind::LedTo => {}
    }
    let mut refused = None;
    let (mut allowed, all) = (Vec::new(), found);
    for address in all {
        match reach.check(address.ip()) {
            Ok(()) => allowed.push(address),
            Err(out_of_reach) => refused = Some(out_of_reach),
        }
    }
    match refused {
        Some(refused) if allowed.is_empty() => Err(io::Error::other(refused)),
        _ => Ok(allowed),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_out_of_reach_are_left_out() {
        let addresses =
            |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect::<Vec<SocketAddr>>();
        let reach = Reach::of("r.example");
        let (near, far) = (addresses(&["127.0.0.1:0", "[::1]:0"]), addresses(&["192.0.2.1:0"]));
        let both = [near.clone(), far.clone()].concat();
        assert_eq!(within(&reach, HostKind::LedTo, both).unwrap(), far);
        let error = within(&reach, HostKind::LedTo, near.clone()).unwrap_err();
        assert!(error.to_string().contains("must not send the node"), "{error}");
        assert!(within(&reach, HostKind::LedTo, Vec::new()).unwrap().is_empty());
        // A proxy of this node says nothing about the registry.
        assert_eq!(within(&reach, HostKind::Any, near.clone()).unwrap(), near);
        assert!(within(&reach, HostKind::LedTo, near.clone()).is_err());
        // A registry that has such an address itself.
        assert_eq!(within(&reach, HostKind::Configured, near.clone()).unwrap(), near);
        assert_eq!(within(&reach, HostKind::LedTo, near.clone()).unwrap(), near);
    }
}
