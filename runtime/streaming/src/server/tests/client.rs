//! The client: requests, bytes, and what came back.

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::STEP;
use crate::testing::spdy::{Client as Spdy, Sent};

/// Headers of an upgrade to SPDY with this protocol.
pub(super) fn spdy(protocol: &str) -> String {
    format!("Connection: Upgrade\r\nUpgrade: SPDY/3.1\r\nX-Stream-Protocol-Version: {protocol}\r\n")
}

/// Headers of an upgrade to WebSocket with this protocol.
pub(super) fn websocket(protocol: &str) -> String {
    format!(
        "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: {protocol}\r\n"
    )
}

/// A connection to the server.
pub(super) struct Client {
    pub(super) stream: TcpStream,
    /// What came after the answer, and was not taken yet.
    pub(super) received: Vec<u8>,
}

impl Client {
    /// Sends a request for a URL, with headers and what follows at once. Returns the answer's head.
    pub(super) async fn request(method: &str, url: &str, headers: &str, more: &[u8]) -> (Self, String) {
        let (address, path) = url.strip_prefix("http://").unwrap().split_once('/').unwrap();
        let mut stream = TcpStream::connect(address).await.unwrap();
        let head = format!("{method} /{path} HTTP/1.1\r\nHost: {address}\r\n{headers}\r\n");
        stream.write_all(&[head.as_bytes(), more].concat()).await.unwrap();
        let mut client = Self { stream, received: Vec::new() };
        let end = loop {
            let end = client.received.windows(4).position(|window| window == b"\r\n\r\n");
            if let Some(end) = end {
                break end + 4;
            }
            assert!(client.read().await, "closed without an answer");
        };
        let head = client.received.drain(..end).collect();
        (client, String::from_utf8(head).unwrap())
    }

    /// An upgraded connection.
    pub(super) async fn upgraded(method: &str, url: &str, headers: &str) -> Self {
        let (client, head) = Self::request(method, url, headers, b"").await;
        assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
        client
    }

    pub(super) async fn send(&mut self, bytes: &[u8]) {
        timeout(STEP, self.stream.write_all(bytes)).await.expect("the server takes it").unwrap();
    }

    /// Reads once; whether anything came.
    pub(super) async fn read(&mut self) -> bool {
        let mut buffer = vec![0; 64 * 1024];
        let count =
            timeout(STEP, self.stream.read(&mut buffer)).await.expect("bytes or the end").unwrap_or(0);
        self.received.extend_from_slice(&buffer[..count]);
        count > 0
    }

    /// Reads to the end, and takes all.
    pub(super) async fn rest(&mut self) -> Vec<u8> {
        while self.read().await {}
        std::mem::take(&mut self.received)
    }

    /// Reads until the frames of SPDY that came satisfy `enough`; returns all of them.
    pub(super) async fn frames(&mut self, spdy: &mut Spdy, enough: impl Fn(&[Sent]) -> bool) -> Vec<Sent> {
        let mut sent = Vec::new();
        loop {
            let whole = whole(&self.received);
            let bytes: Vec<u8> = self.received.drain(..whole).collect();
            sent.extend(spdy.read(&bytes));
            if enough(&sent) {
                return sent;
            }
            assert!(self.read().await, "closed after {sent:?}");
        }
    }
}

/// Length of the whole frames of SPDY at the beginning.
fn whole(bytes: &[u8]) -> usize {
    let mut at = 0;
    while let Some([.., x, y, z]) = bytes.get(at..at + 8).map(|head| <[u8; 8]>::try_from(head).unwrap()) {
        let next = at + 8 + u32::from_be_bytes([0, x, y, z]) as usize;
        if next > bytes.len() {
            break;
        }
        at = next;
    }
    at
}

/// All bytes of a stream, and whether it has ended.
pub(super) fn stream(sent: &[Sent], id: u32) -> (Vec<u8>, bool) {
    let (mut all, mut ended) = (Vec::new(), false);
    for frame in sent {
        if let Sent::Data(of, fin, bytes) = frame
            && *of == id
        {
            assert!(!ended, "data after the end");
            all.extend_from_slice(bytes);
            ended = *fin;
        }
    }
    (all, ended)
}
