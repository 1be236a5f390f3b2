//! What the URLs of the streaming server stand for.

use super::Node;
use crate::error::{Error, ErrorKind};
use crate::{lanes, pod};
use model::{PodId, Text};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
use std::fs::File;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd as _, OwnedFd};
use streaming::remote::{Size, Streams};
use streaming::server::{Command, Network, Pending, Process};
use tokio::net::{TcpSocket, TcpStream};

/// The command of an Exec request.
#[derive(Debug)]
pub(crate) struct Exec {
    pub(super) node: Node,
    /// The container's pod.
    pub(crate) pod: PodId,
    pub(super) container: String,
    pub(super) cmd: Vec<Text>,
    pub(super) streams: Streams,
}

impl Command for Exec {
    /// The container may have ended since the request.
    fn start(self: Box<Self>, size: Option<Size>) -> Pending<Result<Process, String>> {
        let Self { node, container, cmd, streams, .. } = *self;
        Box::pin(async move {
            let started = async {
                let ticket = node.ticket(&container).await?;
                pod::exec::session(&node.0.context, ticket, cmd, streams, size).await
            };
            started.await.map_err(|error: Error| error.text())
        })
    }
}

/// The streams of an Attach request.
#[derive(Debug)]
pub(crate) struct Attach {
    pub(super) node: Node,
    /// The container's pod.
    pub(crate) pod: PodId,
    pub(super) container: String,
    pub(super) streams: Streams,
}

impl Command for Attach {
    /// The container has its terminal already, so that its size is set afterwards.
    fn start(self: Box<Self>, _size: Option<Size>) -> Pending<Result<Process, String>> {
        let Self { node, container, streams, .. } = *self;
        Box::pin(async move {
            let attached = async {
                let ticket = node.ticket(&container).await?;
                pod::attach::attach(&node.0.context.inputs, ticket, streams).await
            };
            attached.await.map_err(|error: Error| error.text())
        })
    }
}

/// The network of a PortForward request's pod.
#[derive(Debug)]
pub(crate) struct PodNetwork {
    pub(super) node: Node,
    pub(crate) pod: PodId,
}

impl Network for PodNetwork {
    /// The pod may have been stopped since the request.
    fn connect(&self, port: u16) -> Pending<Result<TcpStream, String>> {
        let (node, pod) = (self.node.clone(), self.pod.clone());
        Box::pin(async move {
            let connected = async {
                let view = node.ready_pod(pod.as_str())?;
                let [v4, v6] = sockets(pod.as_str(), view.record.netns.clone()).await?;
                connect(v4, v6, port).await
            };
            connected.await.map_err(|error: Error| failure(&pod, port, error))
        })
    }
}

/// The error of a connection, for the client.
fn failure(pod: &PodId, port: u16, error: Error) -> String {
    error.context(format!("pod {pod}, port {port}")).text()
}

/// A socket of each family, if the kernel has it, in the network namespace pinned at `netns`, or in this one (host
/// network). A socket stays in the namespace in which it was made.
async fn sockets(pod: &str, netns: String) -> Result<[Option<OwnedFd>; 2], Error> {
    let make = || -> io::Result<[Option<OwnedFd>; 2]> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let [v4, v6] = [AddressFamily::INET, AddressFamily::INET6]
            .map(|family| socket_with(family, SocketType::STREAM, flags, None));
        match (v4, v6) {
            (Err(error), Err(_)) => Err(error.into()),
            (v4, v6) => Ok([v4.ok(), v6.ok()]),
        }
    };
    if netns.is_empty() {
        return make().map_err(|error| Error::of("make a socket", error));
    }
    lanes::run(lanes::exec(), pod, "make a socket in the pod", move || {
        let pinned = File::open(&netns).map_err(|error| Error::of(format!("open {netns}"), error))?;
        sys::netns::inside(pinned.as_fd(), make)
            .map_err(|error| Error::of("make a socket in the pod's network namespace", error))
    })
    .await
}

/// Connects to localhost by IPv4, then by IPv6.
async fn connect(v4: Option<OwnedFd>, v6: Option<OwnedFd>, port: u16) -> Result<TcpStream, Error> {
    let hosts: [(_, IpAddr); 2] = [(v4, Ipv4Addr::LOCALHOST.into()), (v6, Ipv6Addr::LOCALHOST.into())];
    let mut failures = Vec::new();
    for (socket, host) in hosts {
        let address = SocketAddr::new(host, port);
        let Some(socket) = socket else { continue };
        match TcpSocket::from_std_stream(socket.into()).connect(address).await {
            Ok(stream) => return Ok(stream),
            Err(error) => failures.push(format!("{address}: {error}")),
        }
    }
    Err(Error::new(ErrorKind::Unavailable, format!("cannot connect to {}", failures.join(", "))))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    #[tokio::test]
    async fn a_client_is_told_the_reason() {
        let error = sockets("pod", "/nonexistent/netns".to_owned()).await.unwrap_err();
        let text = failure(&PodId::from_random([1; 32]), 80, error);
        assert!(text.contains(", port 80: open /nonexistent/netns: No such file"), "{text}");
    }

    #[tokio::test]
    async fn localhost_is_tried_in_both_families() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let Ok(listener) = TcpListener::bind(address) else { continue };
            let port = listener.local_addr().unwrap().port();
            let [v4, v6] = sockets("pod", String::new()).await.unwrap();
            let stream = connect(v4, v6, port).await.unwrap();
            assert_eq!(stream.peer_addr().unwrap(), listener.local_addr().unwrap());
        }
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        drop(listener);
        let [v4, v6] = sockets("pod", String::new()).await.unwrap();
        let error = connect(v4, v6, port).await.unwrap_err();
        assert!(error.text().contains(&format!("127.0.0.1:{port}: ")), "{error}");
    }
}
