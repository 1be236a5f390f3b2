//! A client of exec and port-forward over SPDY/3.1 that does no work for a byte: what it receives, the kernel drops
//! (`MSG_TRUNC`), and what it sends was made before. So the runtime limits the rate, not the client.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::os::fd::AsFd as _;
use std::time::Duration;

use anyhow::{Context as _, Result};
use rustix::net::{RecvFlags, recv};

use crate::expect::ensure;

/// Time limit of one read or write.
const LIMIT: Duration = Duration::from_secs(60);
/// Most bytes that the kernel drops by one call.
const DISCARD: usize = 1 << 20;
/// Payload of a data frame that is sent: client-go's.
const PAYLOAD: usize = 32 * 1024;
/// Data frames of one write.
const FRAMES: usize = 16;
/// Longest control frame or text that is kept.
const SHORT: usize = 64 * 1024;
/// Flag of the last frame of a stream's direction.
const FIN: u8 = 1;

/// The stream on which the server says what failed.
const ERROR: u32 = 1;
/// The stream with the bytes: standard output, or a connection's data.
const DATA: u32 = 3;

/// The header of a zlib stream with SPDY's dictionary, which no stored block refers to.
const ZLIB: [u8; 6] = [0x78, 0x20, 0xe3, 0xc6, 0xa7, 0xc2];
/// An empty stored block: Go's reader hands out what is before it.
const FLUSH: [u8; 5] = [0, 0, 0, 0xff, 0xff];

/// A connection with an error stream and a data stream.
#[derive(Debug)]
pub(super) struct Client {
    socket: TcpStream,
    nothing: Vec<u8>,
}

impl Client {
    /// Connects to the URL of an Exec that wants standard output only.
    pub(super) fn exec(url: &str) -> Result<Self> {
        Self::connect(url, "v4.channel.k8s.io", &[("streamtype", "error")], &[("streamtype", "stdout")])
    }

    /// Connects to the URL of a PortForward, and through it to a port.
    pub(super) fn forward(url: &str, port: u16) -> Result<Self> {
        let port = port.to_string();
        let headers = |kind| [("streamtype", kind), ("port", port.as_str()), ("requestid", "0")];
        Self::connect(url, "portforward.k8s.io", &headers("error"), &headers("data"))
    }

    fn connect(url: &str, protocol: &str, error: &[(&str, &str)], data: &[(&str, &str)]) -> Result<Self> {
        let (address, path) =
            url.strip_prefix("http://").and_then(|rest| rest.split_once('/')).context("no http URL")?;
        let socket = TcpStream::connect(address).with_context(|| format!("connect to {url}"))?;
        socket.set_read_timeout(Some(LIMIT))?;
        socket.set_write_timeout(Some(LIMIT))?;
        let mut client = Self { socket, nothing: vec![0; DISCARD] };
        let head = format!(
            "POST /{path} HTTP/1.1\r\nHost: {address}\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\n\
             X-Stream-Protocol-Version: {protocol}\r\nContent-Length: 0\r\n\r\n"
        );
        client.socket.write_all(head.as_bytes())?;
        let mut answer = Vec::new();
        while !answer.ends_with(b"\r\n\r\n") {
            ensure!(answer.len() < SHORT, "{url}: an endless answer");
            answer.extend(client.take::<1>()?);
        }
        let answer = String::from_utf8_lossy(&answer).into_owned();
        ensure!(answer.starts_with("HTTP/1.1 101 "), "{answer}");
        client.socket.write_all(&open(ERROR, &ZLIB, error)?)?;
        client.socket.write_all(&open(DATA, &[], data)?)?;
        Ok(client)
    }

    fn take<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut bytes = [0; N];
        self.socket.read_exact(&mut bytes).context("the server sends nothing more")?;
        Ok(bytes)
    }

    /// Receives until the data stream has had `bytes` bytes.
    pub(super) fn receive(&mut self, bytes: u64) -> Result<()> {
        let mut missing = bytes;
        while missing > 0 {
            let [a, b, c, d, flags, x, y, z] = self.take::<8>()?;
            let (id, length) = (u32::from_be_bytes([a, b, c, d]), u32::from_be_bytes([0, x, y, z]));
            if id == DATA {
                self.discard(length.try_into()?)?;
                missing = missing.checked_sub(length.into()).context("more bytes than there are")?;
                ensure!(missing == 0 || flags & FIN == 0, "the stream ended {missing} bytes early");
                continue;
            }
            ensure!(usize::try_from(length)? <= SHORT, "a frame of {length} bytes");
            let mut content = vec![0; length.try_into()?];
            self.socket.read_exact(&mut content)?;
            let text = String::from_utf8_lossy(&content).into_owned();
            // copepod's status begins with white space, at once.
            ensure!(id != ERROR || text.trim().is_empty(), "the server says: {text}");
            // RST_STREAM and GOAWAY: nothing more would come.
            ensure!(!matches!((a & 0x80, d), (0x80, 3 | 7)), "the server gave up, with frame {d}: {text:?}");
        }
        Ok(())
    }

    /// Drops what comes next.
    fn discard(&mut self, length: usize) -> Result<()> {
        let mut left = length;
        while left > 0 {
            let room = self.nothing.get_mut(..left.min(DISCARD)).unwrap_or_default();
            let (_, count) = recv(self.socket.as_fd(), room, RecvFlags::TRUNC)?;
            ensure!(count > 0, "the connection ended inside a frame");
            left -= count;
        }
        Ok(())
    }

    /// Sends zeros on the data stream, as data frames of client-go's size. `bytes` is a multiple of what one write has.
    pub(super) fn send(&mut self, bytes: u64) -> Result<()> {
        let mut frame = DATA.to_be_bytes().to_vec();
        frame.extend(u32::try_from(PAYLOAD)?.to_be_bytes());
        frame.resize(frame.len() + PAYLOAD, 0);
        let many = frame.repeat(FRAMES);
        let each = u64::try_from(PAYLOAD * FRAMES)?;
        ensure!(bytes.is_multiple_of(each), "{bytes} bytes are no multiple of {each}");
        for _ in 0..bytes / each {
            self.socket.write_all(&many).context("the server takes nothing")?;
        }
        Ok(())
    }

    /// Sends a few bytes on the data stream.
    pub(super) fn say(&mut self, bytes: &[u8]) -> Result<()> {
        let mut frame = DATA.to_be_bytes().to_vec();
        frame.extend(u32::try_from(bytes.len())?.to_be_bytes());
        frame.extend(bytes);
        Ok(self.socket.write_all(&frame)?)
    }

    /// Waits for the answer to a SYN_STREAM of the data stream: servers drop data that comes before it.
    pub(super) fn accepted(&mut self) -> Result<()> {
        loop {
            let [a, _, _, kind, _, x, y, z] = self.take::<8>()?;
            ensure!(a & 0x80 != 0, "data before the streams were accepted");
            let mut content = vec![0; u32::from_be_bytes([0, x, y, z]).try_into()?];
            self.socket.read_exact(&mut content)?;
            ensure!(kind == 2, "control frame {kind} instead of a reply");
            if content.get(..4) == Some(&DATA.to_be_bytes()) {
                return Ok(());
            }
        }
    }
}

/// SYN_STREAM with these headers in a stored block; `zlib` begins the connection's compressed stream.
fn open(id: u32, zlib: &[u8], headers: &[(&str, &str)]) -> Result<Vec<u8>> {
    let mut plain = u32::try_from(headers.len())?.to_be_bytes().to_vec();
    for text in headers.iter().flat_map(|(name, value)| [name, value]) {
        plain.extend(u32::try_from(text.len())?.to_be_bytes());
        plain.extend(text.as_bytes());
    }
    let length = u16::try_from(plain.len())?;
    let mut block = zlib.to_vec();
    block.push(0);
    block.extend(length.to_le_bytes());
    block.extend((!length).to_le_bytes());
    block.extend(plain);
    block.extend(FLUSH);
    let mut frame = vec![0x80, 3, 0, 1];
    // Besides the block: the stream, the associated one, the priority and a slot.
    frame.extend(u32::try_from(block.len() + 10)?.to_be_bytes());
    frame.extend(id.to_be_bytes());
    frame.extend([0; 6]);
    frame.extend(block);
    Ok(frame)
}
