//! A client of exec, attach and port-forward: WebSocket as a client writes it, byte by byte, so that a test decides
//! what is sent and when it stops reading.

use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use cri_api::v1 as api;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::cri::{Answer, Cri, bounded};
use crate::expect::ensure;

/// Protocol of exec with half-close.
pub(crate) const V5: &str = "v5.channel.k8s.io";
/// Protocol of port-forward with two channels for each port.
pub(crate) const V4: &str = "v4.channel.k8s.io";
/// Time limit of one step.
const LIMIT: Duration = Duration::from_secs(60);
/// First byte of a message that ends a channel.
const END: u8 = 255;

/// What a session has sent, by channel, until the server closed.
#[derive(Debug, Default)]
pub(crate) struct Ended {
    /// Channel 1.
    pub(crate) stdout: Vec<u8>,
    /// Channel 2.
    pub(crate) stderr: Vec<u8>,
    /// Channel 3, a metav1.Status.
    pub(crate) status: serde_json::Value,
}

impl Ended {
    /// Standard output as text.
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// The exit code that the status tells.
    pub(crate) fn code(&self) -> Result<i64> {
        if self.status["status"] == "Success" {
            return Ok(0);
        }
        let cause = &self.status["details"]["causes"][0];
        ensure!(cause["reason"] == "ExitCode", "the status is {}", self.status);
        Ok(cause["message"].as_str().unwrap_or_default().parse()?)
    }
}

/// The streams that an Exec or Attach is for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Streams {
    /// The client's input is wanted.
    pub(crate) stdin: bool,
    /// Standard output is wanted.
    pub(crate) stdout: bool,
    /// Standard error is wanted.
    pub(crate) stderr: bool,
    /// There is a terminal.
    pub(crate) tty: bool,
}

impl Streams {
    /// All that there can be. With a terminal, standard error is part of standard output.
    pub(crate) const fn all(tty: bool) -> Self {
        Self { stdin: true, stdout: true, stderr: !tty, tty }
    }

    /// Every combination that CRI allows.
    pub(crate) fn combinations() -> Vec<Self> {
        let bits = |n: u8| Self { stdin: n & 1 > 0, stdout: n & 2 > 0, stderr: n & 4 > 0, tty: n & 8 > 0 };
        (0..16).map(bits).filter(|s| (s.stdin || s.stdout || s.stderr) && !(s.tty && s.stderr)).collect()
    }
}

/// The URL of an Exec with all streams.
pub(crate) async fn exec(cri: &Cri, id: &str, cmd: &[&str], tty: bool) -> Answer<String> {
    exec_with(cri, id, cmd, Streams::all(tty)).await
}

/// The URL of an Exec.
pub(crate) async fn exec_with(cri: &Cri, id: &str, cmd: &[&str], streams: Streams) -> Answer<String> {
    let Streams { stdin, stdout, stderr, tty } = streams;
    let cmd = cmd.iter().map(|word| (*word).to_owned()).collect();
    let request = api::ExecRequest { container_id: id.to_owned(), cmd, tty, stdin, stdout, stderr };
    Ok(cri.runtime.clone().exec(bounded(request, LIMIT)).await?.into_inner().url)
}

/// The URL of an Attach with all streams.
pub(crate) async fn attach(cri: &Cri, id: &str, tty: bool) -> Answer<String> {
    attach_with(cri, id, Streams::all(tty)).await
}

/// The URL of an Attach.
pub(crate) async fn attach_with(cri: &Cri, id: &str, streams: Streams) -> Answer<String> {
    let Streams { stdin, stdout, stderr, tty } = streams;
    let request = api::AttachRequest { container_id: id.to_owned(), stdin, tty, stdout, stderr };
    Ok(cri.runtime.clone().attach(bounded(request, LIMIT)).await?.into_inner().url)
}

/// The URL of a PortForward.
pub(crate) async fn forward(cri: &Cri, pod: &str, port: u16) -> Answer<String> {
    let request = api::PortForwardRequest { pod_sandbox_id: pod.to_owned(), port: vec![port.into()] };
    Ok(cri.runtime.clone().port_forward(bounded(request, LIMIT)).await?.into_inner().url)
}

/// A session.
#[derive(Debug)]
pub(crate) struct Client {
    socket: TcpStream,
    received: Vec<u8>,
}

impl Client {
    /// Connects to a URL. The error has the answer's head, if it is not an upgrade.
    pub(crate) async fn connect(url: &str, protocol: &str) -> Result<Self> {
        let (address, path) =
            url.strip_prefix("http://").and_then(|rest| rest.split_once('/')).context("no http URL")?;
        let mut socket = TcpStream::connect(address).await.with_context(|| format!("connect to {url}"))?;
        let head = format!(
            "GET /{path} HTTP/1.1\r\nHost: {address}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
             Sec-WebSocket-Protocol: {protocol}\r\n\r\n"
        );
        socket.write_all(head.as_bytes()).await?;
        let mut client = Self { socket, received: Vec::new() };
        let end = loop {
            if let Some(end) = client.received.windows(4).position(|four| four == b"\r\n\r\n") {
                break end + 4;
            }
            ensure!(client.read().await?, "{url} was closed without an answer");
        };
        let head: Vec<u8> = client.received.drain(..end).collect();
        let head = String::from_utf8_lossy(&head).into_owned();
        ensure!(head.starts_with("HTTP/1.1 101 "), "{head}");
        Ok(client)
    }

    /// Sends bytes on a channel.
    pub(crate) async fn send(&mut self, channel: u8, bytes: &[u8]) -> Result<()> {
        let mut message = vec![channel];
        message.extend_from_slice(bytes);
        self.frame(0x82, &message).await
    }

    /// Ends a channel (v5).
    pub(crate) async fn end(&mut self, channel: u8) -> Result<()> {
        self.frame(0x82, &[END, channel]).await
    }

    /// Sets the terminal's size.
    pub(crate) async fn resize(&mut self, width: u16, height: u16) -> Result<()> {
        self.send(4, format!("{{\"Width\":{width},\"Height\":{height}}}").as_bytes()).await
    }

    /// Resets the connection: the server gets RST, and no end.
    pub(crate) fn reset(self) -> Result<()> {
        Ok(self.socket.set_zero_linger()?)
    }

    /// The client's port.
    pub(crate) fn port(&self) -> Result<u16> {
        Ok(self.socket.local_addr()?.port())
    }

    /// A frame whose mask is zero, which is as good as any for a test.
    async fn frame(&mut self, first: u8, payload: &[u8]) -> Result<()> {
        let mut frame = vec![first];
        match u16::try_from(payload.len()) {
            Ok(short @ ..=125) => frame.push(0x80 | u8::try_from(short)?),
            Ok(medium) => {
                frame.push(0x80 | 126);
                frame.extend(medium.to_be_bytes());
            }
            Err(_) => bail!("a message of {} bytes", payload.len()),
        }
        frame.extend([0; 4]);
        frame.extend_from_slice(payload);
        timeout(LIMIT, self.socket.write_all(&frame)).await.context("the server takes nothing")??;
        Ok(())
    }

    async fn read(&mut self) -> Result<bool> {
        let mut buffer = vec![0; 64 * 1024];
        let count =
            timeout(LIMIT, self.socket.read(&mut buffer)).await.context("the server sends nothing")??;
        self.received.extend_from_slice(buffer.get(..count).unwrap_or_default());
        Ok(count > 0)
    }

    /// The next message: its channel and bytes; `None` after the close frame.
    pub(crate) async fn next(&mut self) -> Result<Option<(u8, Vec<u8>)>> {
        loop {
            if let Some((first, payload)) = self.take() {
                match (first & 0x0f, payload.split_first()) {
                    (8, _) => return Ok(None),
                    (9 | 10, _) | (_, None) => {}
                    (_, Some((channel, bytes))) => return Ok(Some((*channel, bytes.to_vec()))),
                }
            } else if !self.read().await? {
                bail!("the server closed without a close frame");
            }
        }
    }

    /// Takes a whole frame out of what was received.
    fn take(&mut self) -> Option<(u8, Vec<u8>)> {
        let (first, short) = (*self.received.first()?, *self.received.get(1)?);
        let (head, length) = match short {
            126 => (4, usize::from(u16::from_be_bytes(self.received.get(2..4)?.try_into().ok()?))),
            127 => {
                (10, usize::try_from(u64::from_be_bytes(self.received.get(2..10)?.try_into().ok()?)).ok()?)
            }
            short => (2, usize::from(short)),
        };
        let payload = self.received.get(head..head + length)?.to_vec();
        self.received.drain(..head + length);
        Some((first, payload))
    }

    /// Reads until channel 1 has sent `text`, among whatever else.
    pub(crate) async fn until(&mut self, text: &str) -> Result<()> {
        // The last bytes: what `text` may begin in.
        let mut tail = Vec::new();
        while !tail.windows(text.len()).any(|window| window == text.as_bytes()) {
            tail.drain(..tail.len().saturating_sub(text.len()));
            let Some((channel, bytes)) = self.next().await? else {
                bail!("the session ended without {text:?}, after {:?}", String::from_utf8_lossy(&tail));
            };
            if channel == 1 {
                tail.extend(bytes);
            }
        }
        Ok(())
    }

    /// Reads to the end.
    pub(crate) async fn rest(mut self) -> Result<Ended> {
        let (mut ended, mut status) = (Ended::default(), Vec::new());
        while let Some((channel, bytes)) = self.next().await? {
            match channel {
                1 => ended.stdout.extend(bytes),
                2 => ended.stderr.extend(bytes),
                3 => status.extend(bytes),
                other => bail!("{} bytes on channel {other}", bytes.len()),
            }
        }
        ended.status = serde_json::from_slice(&status).context("the status")?;
        Ok(ended)
    }
}
