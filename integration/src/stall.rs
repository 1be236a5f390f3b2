//! A registry that stalls: a proxy that forwards requests to a real one, but for some blobs sends only the
//! response headers and keeps the connection open.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context as _, Result};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

use crate::expect::ensure;

/// Maximum size of a request's head in bytes; a registry client's is below one KiB.
const MAX_HEAD: usize = 16 << 10;

/// The listener; it stops on drop.
#[derive(Debug)]
pub(crate) struct Stall {
    /// Its port on 127.0.0.1.
    pub(crate) port: u16,
    stalled: Arc<AtomicUsize>,
    task: JoinHandle<()>,
}

impl Stall {
    /// Starts a proxy for the registry on port `behind`. For a path that ends in one of `digests`, it sends
    /// response headers that announce `length` bytes, and no body.
    pub(crate) async fn start(behind: u16, digests: Vec<String>, length: usize) -> Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let port = listener.local_addr()?.port();
        let stalled = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&stalled);
        let task = tokio::spawn(async move {
            let digests = Arc::new(digests);
            // Connections end with the listener's task, at the latest with the run.
            let mut open = tokio::task::JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                let (digests, counter) = (Arc::clone(&digests), Arc::clone(&counter));
                open.spawn(async move { drop(connection(client, behind, &digests, length, &counter).await) });
            }
        });
        Ok(Self { port, stalled, task })
    }

    /// Number of responses that have stalled so far.
    pub(crate) fn stalled(&self) -> usize {
        self.stalled.load(Ordering::Relaxed)
    }
}

impl Drop for Stall {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Handles one request; connections are not reused.
async fn connection(
    mut client: TcpStream,
    behind: u16,
    digests: &[String],
    length: usize,
    stalled: &AtomicUsize,
) -> Result<()> {
    let text = head(&mut client).await?;
    let path = text.split(' ').nth(1).context("no path")?;
    let path = path.split('?').next().unwrap_or_default();
    if digests.iter().any(|digest| path.ends_with(digest.as_str())) {
        stalled.fetch_add(1, Ordering::Relaxed);
        client.write_all(format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n").as_bytes()).await?;
        // Until the client closes the connection.
        let mut rest = [0; 1];
        client.read_exact(&mut rest).await?;
        return Ok(());
    }
    forward(&mut client, behind, &text).await
}

/// Reads the head of a request, up to its empty line.
pub(crate) async fn head(client: &mut TcpStream) -> Result<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        ensure!(head.len() < MAX_HEAD, "a request head is longer than {MAX_HEAD} bytes");
        head.push(client.read_u8().await?);
    }
    Ok(String::from_utf8(head)?)
}

/// Sends a request without a body to the registry on port `behind`, and its answer to the client.
pub(crate) async fn forward(client: &mut TcpStream, behind: u16, head: &str) -> Result<()> {
    let mut server = TcpStream::connect(SocketAddr::from(([127, 0, 0, 1], behind))).await?;
    let (first, rest) = head.split_once("\r\n").context("no request line")?;
    server.write_all(format!("{first}\r\nConnection: close\r\n{rest}").as_bytes()).await?;
    tokio::io::copy(&mut server, client).await?;
    Ok(())
}
