//! Transfers on several connections, from a registry that sends slowly.

use super::ahead::{CONNECTIONS, PIECE};
use super::*;
use crate::Options;
use crate::reference::{Digest, Reference};
use crate::registry::client::READ;
use std::sync::{Arc, Mutex};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

/// Bytes of the blob, and of what the registry sends at once.
const SIZE: u64 = 32 * PIECE;
const SENT: usize = 8 << 10;
/// Its pause after each of them: a tenth of the blob takes longer than the first connection is watched.
const PAUSE: Duration = Duration::from_millis(6);

/// After so many bytes [`Ranges::Cuts`] breaks a connection: more often than a transfer without progress is resumed.
const CUT: u64 = 3 * PIECE;

/// What the registry does with a range.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ranges {
    /// It sends it.
    Honours,
    /// It sends the whole blob.
    Ignores,
    /// It sends the bytes after it.
    Shifts,
    /// It breaks the connection after half of every second one.
    Breaks,
    /// The blob has changed: each byte of a range is another.
    Changes,
    /// It sends nothing of the second one, until that is requested again.
    Stalls,
    /// It sends the second one byte by byte, until that is requested again.
    Drips,
    /// It refuses them with this status.
    Refuses,
    /// It sends the first one, and refuses the others, as there are too many requests.
    Limits,
    /// More bytes than requested.
    Exceeds,
    /// It is not slow, but breaks each connection after a while.
    Cuts,
    /// It is not slow.
    Fast,
}

/// A registry with one blob. Requested ranges are in the log.
struct Slow {
    address: String,
    log: Arc<Mutex<Vec<(u64, u64)>>>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Slow {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn content() -> Vec<u8> {
    (0..SIZE).map(|at| (at.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56).to_le_bytes()[0]).collect()
}

impl Slow {
    async fn start(ranges: Ranges) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let log: Arc<Mutex<Vec<(u64, u64)>>> = Arc::default();
        let (blob, requested) = (Arc::new(content()), log.clone());
        let task = tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let (blob, requested) = (blob.clone(), requested.clone());
                // An error is a client that has left.
                tokio::spawn(async move { serve(stream, &blob, ranges, &requested).await.ok() });
            }
        });
        Self { address, log, task }
    }

    /// All that a transfer brings, or its error, with the largest number of bytes that were buffered meanwhile. No part
    /// may be larger than twice what is read at once, as hyper's buffers may grow to that.
    async fn fetch(&self, room: usize) -> (Result<Vec<u8>>, usize) {
        let reference = Reference::parse(&format!("{}/a/b:v", self.address)).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let options = Options::new(folder.path(), folder.path());
        let registry = Registry::new(&options, &reference, None, Arc::default()).unwrap();
        let wanted = Descriptor { digest: Digest::of(&content()), size: SIZE };
        let mut blob = registry.blob(&wanted);
        blob.ahead.set_room(Box::leak(Box::new(Semaphore::new(room))));
        let (mut bytes, mut most) = (Vec::new(), 0);
        loop {
            most = most.max(blob.ahead.buffered());
            match blob.next().await {
                Ok(Some(part)) => {
                    assert!(part.len() <= 2 * READ, "{}", part.len());
                    bytes.extend_from_slice(&part);
                }
                Ok(None) => return (Ok(bytes), most),
                Err(error) => return (Err(error), most),
            }
        }
    }

    fn ranges(&self) -> Vec<(u64, u64)> {
        self.log.lock().unwrap().clone()
    }
}

/// What a request asks for.
struct Asked {
    first: u64,
    end: u64,
    /// A range with an end. A transfer that goes on after a break has none in its range.
    is_piece: bool,
    /// How many pieces were asked for so far.
    number: usize,
}

/// Reads one request.
async fn request(stream: &mut TcpStream, log: &Mutex<Vec<(u64, u64)>>) -> std::io::Result<Asked> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await?);
    }
    let head = String::from_utf8(head).unwrap().to_lowercase();
    let range = head.lines().find_map(|line| line.strip_prefix("range: bytes=")).unwrap_or("0-");
    let (first, last) = range.split_once('-').unwrap();
    let (first, end) = (first.parse().unwrap(), last.parse().map_or(SIZE, |last: u64| last + 1));
    let is_piece = !last.is_empty();
    let mut log = log.lock().unwrap();
    if is_piece {
        log.push((first, end));
    }
    Ok(Asked { first, end, is_piece, number: log.len() })
}

/// Serves the requests of one connection.
#[expect(clippy::too_many_lines, reason = "the faults of a registry, one after the other")]
async fn serve(
    mut stream: TcpStream,
    blob: &[u8],
    ranges: Ranges,
    log: &Mutex<Vec<(u64, u64)>>,
) -> std::io::Result<()> {
    loop {
        let asked = request(&mut stream, log).await?;
        let does = |what: Ranges| asked.is_piece && ranges == what;
        if does(Ranges::Refuses) {
            stream.write_all(b"HTTP/1.1 416 No\r\ncontent-length: 0\r\n\r\n").await?;
            continue;
        }
        if does(Ranges::Limits) && asked.number > 1 {
            stream.write_all(b"HTTP/1.1 429 Slow\r\ncontent-length: 0\r\n\r\n").await?;
            continue;
        }
        let (first, end) = match asked {
            _ if does(Ranges::Ignores) => (0, SIZE),
            _ if does(Ranges::Shifts) => (asked.first + 1, (asked.end + 1).min(SIZE)),
            _ => (asked.first, asked.end),
        };
        let mut bytes = blob[usize::try_from(first).unwrap()..usize::try_from(end).unwrap()].to_vec();
        if does(Ranges::Exceeds) {
            bytes.push(0);
        }
        if does(Ranges::Changes) {
            bytes.iter_mut().for_each(|byte| *byte ^= 1);
        }
        let length = bytes.len();
        let status = if (first, end) == (0, SIZE) { "200 OK" } else { "206 Partial Content" };
        let head = format!(
            "HTTP/1.1 {status}\r\ncontent-length: {length}\r\ncontent-range: bytes {first}-{}/{SIZE}\r\n\r\n",
            end - 1
        );
        stream.write_all(head.as_bytes()).await?;
        let breaks = does(Ranges::Breaks) && asked.number.is_multiple_of(2);
        let cut = ranges == Ranges::Cuts && length as u64 > CUT;
        let sent = match () {
            () if breaks => length / 2,
            () if cut => usize::try_from(CUT).unwrap(),
            () => length,
        };
        for part in bytes[..sent].chunks(SENT) {
            if does(Ranges::Stalls) && asked.number == 2 {
                std::future::pending::<()>().await;
            }
            if does(Ranges::Drips) && asked.number == 2 {
                for byte in part {
                    stream.write_all(&[*byte]).await?;
                    tokio::time::sleep(PAUSE).await;
                }
                continue;
            }
            stream.write_all(part).await?;
            if !matches!(ranges, Ranges::Fast | Ranges::Cuts) {
                tokio::time::sleep(PAUSE).await;
            }
        }
        if breaks || cut {
            return Ok(());
        }
    }
}

#[tokio::test]
async fn a_slow_blob_comes_in_pieces() {
    let registry = Slow::start(Ranges::Honours).await;
    let (bytes, most) = registry.fetch(100).await;
    assert!(bytes.unwrap() == content());
    let ranges = registry.ranges();
    assert!(ranges.len() >= 3, "{ranges:?}");
    // Without gaps, each once, to the end.
    assert!(ranges.windows(2).all(|pair| pair[0].1 == pair[1].0), "{ranges:?}");
    assert_eq!(ranges.last().unwrap().1, SIZE);
    assert!(most > 0 && most as u64 <= CONNECTIONS as u64 * PIECE, "{most}");
}

#[tokio::test]
async fn a_fast_blob_comes_on_one_connection_in_small_parts() {
    let registry = Slow::start(Ranges::Fast).await;
    let (bytes, most) = registry.fetch(100).await;
    assert!(bytes.unwrap() == content());
    assert_eq!((registry.ranges().len(), most), (0, 0));
}

#[tokio::test]
async fn a_transfer_that_makes_progress_is_always_resumed() {
    let registry = Slow::start(Ranges::Cuts).await;
    let (bytes, _) = registry.fetch(0).await;
    assert!(bytes.unwrap() == content());
}

#[tokio::test]
async fn a_host_that_does_not_honour_ranges_is_asked_once() {
    for ranges in [Ranges::Ignores, Ranges::Shifts, Ranges::Refuses] {
        let registry = Slow::start(ranges).await;
        let (bytes, _) = registry.fetch(100).await;
        assert!(bytes.unwrap() == content(), "{ranges:?}");
        assert_eq!(registry.ranges().len(), 1, "{ranges:?}");
    }
}

#[tokio::test]
async fn a_host_that_limits_requests_is_not_flooded_with_them() {
    let registry = Slow::start(Ranges::Limits).await;
    let (bytes, _) = registry.fetch(100).await;
    assert!(bytes.unwrap() == content());
    let asked = registry.ranges().len();
    assert!((2..=4).contains(&asked), "{asked}");
}

#[tokio::test]
async fn broken_pieces_are_fetched_again() {
    for ranges in [Ranges::Breaks, Ranges::Exceeds] {
        let registry = Slow::start(ranges).await;
        let (bytes, _) = registry.fetch(100).await;
        assert!(bytes.unwrap() == content(), "{ranges:?}");
        let asked = registry.ranges().len();
        assert!((2..=50).contains(&asked), "{ranges:?}: {asked}");
    }
}

/// The caller's digest tells.
#[tokio::test]
async fn bytes_of_a_changed_blob_are_not_hidden() {
    let registry = Slow::start(Ranges::Changes).await;
    let (bytes, _) = registry.fetch(100).await;
    let bytes = bytes.unwrap();
    assert_eq!(bytes.len() as u64, SIZE);
    assert!(!Digest::of(&content()).is_of(&bytes));
}

#[tokio::test]
async fn a_stalled_piece_gets_another_connection() {
    for how in [Ranges::Stalls, Ranges::Drips] {
        let registry = Slow::start(how).await;
        let (bytes, most) = registry.fetch(100).await;
        assert!(bytes.unwrap() == content());
        let ranges = registry.ranges();
        let stalled = ranges[1];
        assert!(ranges.iter().filter(|range| range.1 == stalled.1).count() == 2, "{how:?}: {ranges:?}");
        assert!(most as u64 <= CONNECTIONS as u64 * PIECE, "{how:?}: {most}");
    }
}

#[tokio::test]
async fn without_room_on_the_node_there_is_one_connection() {
    let registry = Slow::start(Ranges::Honours).await;
    let (bytes, most) = registry.fetch(0).await;
    assert!(bytes.unwrap() == content());
    assert_eq!((registry.ranges().len(), most), (0, 0));
}
