//! Port-forward by client-go: plain SPDY, SPDY tunnelled in WebSocket, and the fall-back from one to the other.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use anyhow::{Context as _, Result};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStdout};
use tokio::time::timeout;

use crate::clientgo::{Forwarder, USUAL, connection};
use crate::context::{Context, Pod};
use crate::echo;
use crate::expect::ensure;
use crate::registry::free_port;
use crate::runner::{Test, test};
use crate::shapes::PodExt as _;
use crate::streaming::{self, Client, V4};
use crate::wait::secs;

pub(super) fn tests() -> Vec<Test> {
    vec![
        test!(clientgo_forward_to_each_family).ours(),
        test!(clientgo_forward_to_the_hosts_network).ours(),
        test!(clientgo_forward_of_half_closed_connections).ours(),
        test!(clientgo_forward_to_a_closed_port).ours(),
    ]
}

/// A server in a pod's network, until it is dropped.
#[derive(Debug)]
pub(super) struct Server {
    _child: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Server {
    /// Starts it in the network namespace of a process, and waits until it listens.
    pub(super) async fn start(pid: u32, address: SocketAddr, first: bool) -> Result<Self> {
        let (address, option) = (address.to_string(), "--first");
        let arguments = ["tcp-echo", address.as_str(), option];
        let arguments = if first { &arguments[..] } else { &arguments[..2] };
        let mut child = echo::start(pid, arguments)?;
        let lines = BufReader::new(child.stdout.take().context("no standard output")?).lines();
        let mut server = Self { _child: child, lines };
        let line = server.line().await.with_context(|| format!("a server on {address}"))?;
        ensure!(line == "listening", "the server says {line:?}");
        Ok(server)
    }

    /// The next line that it prints.
    async fn line(&mut self) -> Result<String> {
        let line = timeout(secs(20), self.lines.next_line()).await.context("it prints nothing")??;
        line.context("it has ended")
    }
}

/// Sends through a forwarded port, ends its direction, and must get all of it back with the server's last words.
pub(super) async fn talk(forwarder: &Forwarder, bytes: Vec<u8>) -> Result<()> {
    let (mut read, mut write) = forwarder.connect().await?.into_split();
    let sent = bytes.clone();
    let writer = tokio::spawn(async move {
        write.write_all(&sent).await?;
        write.shutdown().await
    });
    let mut got = Vec::new();
    timeout(secs(40), read.read_to_end(&mut got)).await.context("the connection does not end")??;
    writer.await??;
    ensure!(got.len() == bytes.len() + echo::LAST.len(), "{} of {} bytes came", got.len(), bytes.len());
    ensure!(got.starts_with(&bytes) && got.ends_with(echo::LAST), "other bytes came");
    Ok(())
}

/// A pod and a process in its network.
async fn target(cx: &Context, own: bool) -> Result<(Pod, u32)> {
    let config = cx.pod_config();
    let pod = cx.pod_of(if own { config.own_network() } else { config }).await?;
    let pid = cx.node.pause(&pod.id)?.pid;
    Ok((pod, pid))
}

async fn talk_in_every_way(cx: &Context, pod: &Pod, port: u16) -> Result<()> {
    for variant in USUAL {
        let url = streaming::forward(&cx.cri, &pod.id, port).await?;
        let forwarder = Forwarder::start(&cx.fixture.bin, variant, &url, port).await?;
        for size in [0, 5, 3 << 20] {
            talk(&forwarder, vec![b'x'; size])
                .await
                .with_context(|| format!("{size} bytes to port {port}, {variant:?}"))?;
        }
        forwarder.end().await?;
    }
    // The old form of WebSocket, which client-go no longer speaks.
    let mut client = Client::connect(&streaming::forward(&cx.cri, &pod.id, port).await?, V4).await?;
    client.send(0, b"echo").await?;
    let mut got = Vec::new();
    while !got.ends_with(b"echo") {
        let (channel, bytes) = client.next().await?.context("it closed")?;
        ensure!(channel == 0 || bytes == port.to_le_bytes(), "channel {channel} has {bytes:?}");
        got.extend(bytes);
    }
    Ok(())
}

/// A listener on one family's loopback address only; there is no container.
async fn clientgo_forward_to_each_family(cx: Context) -> Result<()> {
    let (pod, pid) = target(&cx, true).await?;
    let _v4 = Server::start(pid, SocketAddr::from((Ipv4Addr::LOCALHOST, 7004)), false).await?;
    let _v6 = Server::start(pid, SocketAddr::from((Ipv6Addr::LOCALHOST, 7006)), false).await?;
    talk_in_every_way(&cx, &pod, 7004).await.context("IPv4")?;
    talk_in_every_way(&cx, &pod, 7006).await.context("IPv6")
}

async fn clientgo_forward_to_the_hosts_network(cx: Context) -> Result<()> {
    let (pod, pid) = target(&cx, false).await?;
    let (v4, v6) = (free_port()?, free_port()?);
    let _v4 = Server::start(pid, SocketAddr::from((Ipv4Addr::LOCALHOST, v4)), false).await?;
    let _v6 = Server::start(pid, SocketAddr::from((Ipv6Addr::LOCALHOST, v6)), false).await?;
    talk_in_every_way(&cx, &pod, v4).await.context("IPv4")?;
    talk_in_every_way(&cx, &pod, v6).await.context("IPv6")
}

/// The port ends its direction first; what the client sends afterwards arrives, and so does its end.
async fn clientgo_forward_of_half_closed_connections(cx: Context) -> Result<()> {
    let (pod, pid) = target(&cx, true).await?;
    let mut server = Server::start(pid, SocketAddr::from((Ipv4Addr::LOCALHOST, 7004)), true).await?;
    for variant in USUAL {
        let url = streaming::forward(&cx.cri, &pod.id, 7004).await?;
        let got = connection(&cx.fixture.bin, variant, &url, 7004, vec![b'x'; 3 << 20])
            .await
            .with_context(|| format!("{variant:?}"))?;
        ensure!(got == echo::GREETING, "the port sent {got:?}");
        let line = server.line().await?;
        ensure!(line == format!("{} bytes after the end", 3 << 20), "{variant:?}: the server says {line:?}");
    }
    Ok(())
}

/// client-go ends the whole forwarding at the first connection that fails; the error names the port.
async fn clientgo_forward_to_a_closed_port(cx: Context) -> Result<()> {
    let (pod, _) = target(&cx, true).await?;
    for variant in USUAL {
        let url = streaming::forward(&cx.cri, &pod.id, 9).await?;
        let forwarder = Forwarder::start(&cx.fixture.bin, variant, &url, 9).await?;
        let mut bytes = Vec::new();
        let mut socket = forwarder.connect().await?;
        // The client may reset the connection.
        drop(timeout(secs(20), socket.read_to_end(&mut bytes)).await.context("it stays open")?);
        ensure!(bytes.is_empty(), "{variant:?}: a closed port sent {bytes:?}");
        forwarder.failed().await?;
        let url = streaming::forward(&cx.cri, &pod.id, 9).await?;
        let error =
            connection(&cx.fixture.bin, variant, &url, 9, Vec::new()).await.err().context("no error")?;
        let text = format!("{error:#}");
        ensure!(text.contains("port 9") || text.contains("9:"), "{variant:?}: {text}");
    }
    Ok(())
}
