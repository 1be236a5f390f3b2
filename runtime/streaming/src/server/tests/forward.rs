//! Port-forward.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

use super::super::link::LINGER;
use super::client::{Client, spdy, stream, websocket};
use super::{Local, STEP, Silent, echo, port_forward, server};
use crate::forward::MAX_CONNECTIONS;
use crate::server::{MAX_FORWARDED, Network, Pending};
use crate::testing::spdy::{Client as Spdy, FIN, Sent, data, reset};
use crate::testing::websocket::{BINARY, message, read};

/// The two streams of a connection, as Go's client opens them: its side of the error stream is ended at once.
fn open(spdy: &mut Spdy, port: u16, request: u32) -> (u32, u32, Vec<u8>) {
    let (port, request) = (port.to_string(), request.to_string());
    let headers = |kind| [("streamtype", kind), ("port", port.as_str()), ("requestid", request.as_str())];
    let (error, mut bytes) = spdy.open(FIN, &headers("error"));
    let (data, more) = spdy.open(0, &headers("data"));
    bytes.extend(more);
    (error, data, bytes)
}

async fn session(port: u16) -> (super::Running, Client, Spdy) {
    let server = server().await;
    let url = port_forward(&server, &[port]);
    (server, Client::upgraded("POST", &url, &spdy("portforward.k8s.io")).await, Spdy::new())
}

/// A session with one connection.
struct Connected {
    client: Client,
    spdy: Spdy,
    /// Its error stream.
    error: u32,
    /// Its data stream.
    id: u32,
    of_port: TcpStream,
    _server: super::Running,
}

/// A session with one connection, on which the client has sent `first`.
async fn connected(first: &[u8]) -> Connected {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let (server, mut client, mut spdy) = session(port).await;
    let (error, id, mut bytes) = open(&mut spdy, port, 0);
    if !first.is_empty() {
        bytes.extend(data(id, 0, first));
    }
    client.send(&bytes).await;
    let (of_port, _) = timeout(STEP, listener.accept()).await.unwrap().unwrap();
    Connected { client, spdy, error, id, of_port, _server: server }
}

#[tokio::test]
async fn directions_end_by_themselves() {
    let (port, _echo) = echo().await;
    let (_server, mut client, mut spdy) = session(port).await;
    let (error, id, bytes) = open(&mut spdy, port, 0);
    // The port answers only after the end of what it gets.
    client.send(&[bytes, data(id, 0, b"hello, "), data(id, FIN, b"port")].concat()).await;
    let sent = client.frames(&mut spdy, |sent| stream(sent, id).1 && stream(sent, error).1).await;
    assert_eq!(stream(&sent, id).0, b"hello, port");
    assert_eq!(stream(&sent, error).0, b"");
}

#[tokio::test]
async fn many_connections_at_a_time() {
    let (port, _echo) = echo().await;
    let (_server, mut client, mut spdy) = session(port).await;
    let mut ids = Vec::new();
    for request in 0..100 {
        let (_, id, bytes) = open(&mut spdy, port, request);
        client.send(&bytes).await;
        ids.push(id);
    }
    for id in &ids {
        client.send(&data(*id, FIN, format!("connection {id}").as_bytes())).await;
    }
    let all = |sent: &[Sent]| ids.iter().all(|id| stream(sent, *id).1);
    let sent = client.frames(&mut spdy, all).await;
    for id in ids {
        assert_eq!(stream(&sent, id).0, format!("connection {id}").as_bytes());
    }
}

#[tokio::test]
async fn a_closed_port_costs_its_connection_only() {
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let closed_port = closed.local_addr().unwrap().port();
    drop(closed);
    let (port, _echo) = echo().await;
    let (_server, mut client, mut spdy) = session(port).await;
    let (error, id, bytes) = open(&mut spdy, closed_port, 0);
    client.send(&[bytes, data(id, 0, b"x")].concat()).await;
    let is_reset = |sent: &[Sent]| sent.iter().any(|frame| matches!(frame, Sent::Reset(of, _) if *of == id));
    let sent = client.frames(&mut spdy, is_reset).await;
    let (text, ended) = stream(&sent, error);
    assert!(ended && String::from_utf8_lossy(&text).contains(&closed_port.to_string()), "{sent:?}");
    let (_, id, bytes) = open(&mut spdy, port, 1);
    client.send(&[bytes, data(id, FIN, b"still here")].concat()).await;
    let sent = client.frames(&mut spdy, |sent| stream(sent, id).1).await;
    assert_eq!(stream(&sent, id).0, b"still here");
}

/// A port that neither answers nor reads stops nobody else until its queue is full.
#[tokio::test]
async fn a_port_without_an_answer_does_not_stop_the_others() {
    let (port, _echo) = echo().await;
    let server = server().await;
    let url = server.urls.forward("pod", vec![port], Arc::new(Silent)).unwrap();
    let mut client = Client::upgraded("POST", &url, &spdy("portforward.k8s.io")).await;
    let mut spdy = Spdy::new();
    let (_, first, bytes) = open(&mut spdy, port, 0);
    client.send(&[bytes, data(first, 0, b"request")].concat()).await;
    let (_, _, bytes) = open(&mut spdy, port, 1);
    client.send(&bytes).await;
    let replies = |sent: &[Sent]| sent.iter().filter(|frame| matches!(frame, Sent::Reply(_))).count();
    client.frames(&mut spdy, |sent| replies(sent) == 4).await;
}

#[tokio::test]
async fn a_reset_closes_the_connection_to_the_port() {
    let Connected { mut client, mut spdy, error, id, mut of_port, _server } = connected(b"x").await;
    of_port.read_exact(&mut [0; 1]).await.unwrap();
    client.send(&reset(id)).await;
    let end = timeout(STEP, of_port.read(&mut [0; 1])).await.expect("the end");
    assert!(matches!(end, Ok(0) | Err(_)), "{end:?}");
    client.frames(&mut spdy, |sent| stream(sent, error).1).await;
}

/// The client gives up a download, as kubectl does when its own client closes (kubernetes/kubectl#1620). The port always
/// has more to send, so there is always something to read when the reset comes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reset_ends_a_download_without_an_end() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let (_server, mut client, mut spdy) = session(port).await;
    for request in 0..8 {
        let (error, id, bytes) = open(&mut spdy, port, request);
        client.send(&bytes).await;
        let (mut of_port, _) = timeout(STEP, listener.accept()).await.unwrap().unwrap();
        let sending = tokio::spawn(async move {
            let (chunk, mut sent) = (vec![b'z'; 256 * 1024], 0);
            while of_port.write_all(&chunk).await.is_ok() {
                sent += chunk.len();
            }
            sent
        });
        client.frames(&mut spdy, |sent| !stream(sent, id).0.is_empty()).await;
        client.send(&reset(id)).await;
        client.frames(&mut spdy, |sent| stream(sent, error).1).await;
        let sent = timeout(STEP, sending).await.expect("the connection to the port is closed").unwrap();
        assert!(sent < 64 << 20, "connection {request}: {sent} bytes");
    }
}

#[tokio::test]
async fn the_port_may_end_first() {
    let Connected { mut client, mut spdy, error, id, mut of_port, _server } = connected(b"").await;
    of_port.write_all(b"greeting").await.unwrap();
    of_port.shutdown().await.unwrap();
    let sent = client.frames(&mut spdy, |sent| stream(sent, id).1).await;
    assert_eq!(stream(&sent, id).0, b"greeting");
    // Much later the client still sends.
    tokio::time::sleep(Duration::from_millis(300)).await;
    client.send(&data(id, 0, b"late")).await;
    let mut late = [0; 4];
    timeout(STEP, of_port.read_exact(&mut late)).await.unwrap().unwrap();
    assert_eq!(&late, b"late");
    client.send(&data(id, FIN, b"")).await;
    client.frames(&mut spdy, |sent| stream(sent, error).1).await;
}

#[tokio::test]
async fn a_client_that_leaves_closes_its_connections() {
    let Connected { client, mut of_port, _server, .. } = connected(b"").await;
    drop(client);
    let end = timeout(STEP, of_port.read(&mut [0; 1])).await.expect("the end");
    assert!(matches!(end, Ok(0) | Err(_)), "{end:?}");
}

/// The client says that it leaves, and does not close.
#[tokio::test]
async fn a_client_that_says_goodbye_closes_its_connections() {
    let Connected { mut client, mut of_port, _server, .. } = connected(b"").await;
    let go_away = [0x80, 3, 0, 7, 0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 0];
    client.send(&go_away).await;
    // Not only when this side no longer waits for the client.
    let end = timeout(LINGER / 2, of_port.read(&mut [0; 1])).await.expect("the end");
    assert!(matches!(end, Ok(0) | Err(_)), "{end:?}");
}

#[tokio::test]
async fn in_a_tunnel() {
    let (port, _echo) = echo().await;
    let server = server().await;
    let url = port_forward(&server, &[]);
    let mut client = Client::upgraded("GET", &url, &websocket("SPDY/3.1+portforward.k8s.io")).await;
    let mut spdy = Spdy::new();
    let (_, id, bytes) = open(&mut spdy, port, 0);
    let bytes = [bytes, data(id, FIN, b"through")].concat();
    for piece in bytes.chunks(7) {
        client.send(&message(BINARY, piece)).await;
    }
    client.send(&message(8, &[3, 232])).await;
    // The close may be answered before the port has.
    let sent = read(&client.rest().await);
    let inner: Vec<u8> =
        sent.iter().filter(|(kind, _)| *kind == BINARY).flat_map(|(_, bytes)| bytes.clone()).collect();
    let replies = spdy.read(&inner).iter().filter(|frame| matches!(frame, Sent::Reply(_))).count();
    assert_eq!(replies, 2);
}

#[tokio::test]
async fn the_old_form() {
    let (port, _echo) = echo().await;
    let server = server().await;
    let url = port_forward(&server, &[port]);
    let mut client = Client::upgraded("GET", &url, &websocket("v4.channel.k8s.io")).await;
    while client.received.len() < 10 {
        assert!(client.read().await);
    }
    let [low, high] = port.to_le_bytes();
    let first: Vec<u8> = client.received.drain(..10).collect();
    assert_eq!(read(&first), [(BINARY, vec![0, low, high]), (BINARY, vec![1, low, high])]);
    client.send(&message(BINARY, b"\0hello")).await;
    client.send(&message(8, &[3, 232])).await;
    client.rest().await;
}

/// Bytes that are different everywhere, more than all buffers hold.
fn many() -> Vec<u8> {
    (0..2_000_000u32).flat_map(u32::to_le_bytes).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn much_from_a_port() {
    let Connected { mut client, mut spdy, id, mut of_port, _server, .. } = connected(b"").await;
    let sending = tokio::spawn(async move {
        of_port.write_all(&many()).await.unwrap();
        of_port.shutdown().await.unwrap();
        of_port
    });
    let ended =
        |sent: &[Sent]| sent.iter().any(|frame| matches!(frame, Sent::Data(of, true, _) if *of == id));
    let sent = client.frames(&mut spdy, ended).await;
    assert!(stream(&sent, id).0 == many(), "the same bytes in the same order");
    drop(sending.await.unwrap());
}

/// Part of it waits in the queue, part is written at once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn much_to_a_port_that_pauses() {
    let Connected { mut client, id, mut of_port, _server, .. } = connected(b"").await;
    let reading = tokio::spawn(async move {
        let (mut all, mut part) = (Vec::new(), vec![0; 1 << 20]);
        loop {
            let count = of_port.read(&mut part).await.unwrap();
            if count == 0 {
                return all;
            }
            all.extend_from_slice(&part[..count]);
            if all.len() % 7 == 0 {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
    });
    for chunk in many().chunks(30_000) {
        client.send(&data(id, 0, chunk)).await;
    }
    client.send(&data(id, FIN, b"")).await;
    let all = timeout(STEP, reading).await.expect("the end").unwrap();
    assert!(all == many(), "the same bytes in the same order");
}

/// A network without an answer, which counts the connections that have their place and are asked for.
#[derive(Default)]
struct Counted(AtomicUsize);

impl Network for Counted {
    fn connect(&self, _: u16) -> Pending<Result<TcpStream, String>> {
        self.0.fetch_add(1, Ordering::Relaxed);
        Box::pin(std::future::pending())
    }
}

/// A session of this pod with so many connections, of which each has its place.
async fn holding(server: &super::Running, pod: &str, connections: usize) -> Client {
    let network = Arc::new(Counted::default());
    let url = server.urls.forward(pod, Vec::new(), network.clone()).unwrap();
    let (mut client, mut spdy) =
        (Client::upgraded("POST", &url, &spdy("portforward.k8s.io")).await, Spdy::new());
    let requests = 0..u32::try_from(connections).unwrap();
    let bytes: Vec<u8> = requests.flat_map(|request| open(&mut spdy, 80, request).2).collect();
    client.send(&bytes).await;
    let replies = |sent: &[Sent]| sent.iter().filter(|frame| matches!(frame, Sent::Reply(_))).count();
    client.frames(&mut spdy, |sent| replies(sent) == 2 * connections).await;
    let placed = async {
        while network.0.load(Ordering::Relaxed) < connections {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(STEP, placed).await.expect("all have a place");
    client
}

/// A connection that is refused; why.
async fn refused(client: &mut Client, spdy: &mut Spdy, port: u16) -> String {
    let (error, _, bytes) = open(spdy, port, 0);
    client.send(&bytes).await;
    let sent = client.frames(spdy, |sent| stream(sent, error).1).await;
    String::from_utf8(stream(&sent, error).0).unwrap()
}

/// The limit of a session is not one of the node: 512 connections each of many sessions took the daemon's memory and descriptors.
#[tokio::test]
async fn connections_of_all_sessions_are_limited() {
    let server = server().await;
    let (port, _echo) = echo().await;
    let upgrade = spdy("portforward.k8s.io");
    // Each pod gets half of what is left.
    let (mut left, mut full) = (MAX_FORWARDED, Vec::new());
    while left > 1 {
        let (pod, share) = (left.to_string(), left / 2);
        for begun in (0..share).step_by(MAX_CONNECTIONS) {
            full.push(holding(&server, &pod, MAX_CONNECTIONS.min(share - begun)).await);
        }
        left -= share;
        let url = server.urls.forward(&pod, Vec::new(), Arc::new(Local)).unwrap();
        let why = refused(&mut Client::upgraded("POST", &url, &upgrade).await, &mut Spdy::new(), port).await;
        assert!(why.contains(&format!("this pod has {share},")), "{why}");
    }
    full.push(holding(&server, "last", 1).await);
    let mut client = Client::upgraded("POST", &port_forward(&server, &[]), &upgrade).await;
    let mut spdy = Spdy::new();
    let why = refused(&mut client, &mut spdy, port).await;
    assert!(why.contains(&format!("there are {MAX_FORWARDED} on this node")), "{why}");
    // Those of a session that ends make room.
    drop(full.pop());
    for request in 1.. {
        let (error, id, bytes) = open(&mut spdy, port, request);
        client.send(&[bytes, data(id, FIN, b"room")].concat()).await;
        let sent = client.frames(&mut spdy, |sent| stream(sent, error).1).await;
        if stream(&sent, error).0.is_empty() {
            return assert_eq!(stream(&sent, id).0, b"room");
        }
        assert!(request < 100, "{sent:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
