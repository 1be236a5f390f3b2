//! Exec and attach.

use std::future::{Future as _, poll_fn};
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::SetOnce;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::time::timeout;

use super::client::{Client, spdy, stream, websocket};
use super::{ALL, Options, Running, STEP, Script, Seen, Server, TERMINAL, exec, running, server};
use crate::remote::{Outcome, Protocol, Streams, Version};
use crate::server::Shared;
use crate::server::places::Places;
use crate::server::socket::Stream;
use crate::testing::spdy::{Client as Spdy, FIN, Sent, data, ping};
use crate::testing::websocket::{BINARY, CLOSE, PING, PONG, frame, message, read};
use crate::websocket::Codec;

/// A client of exec over SPDY.
struct Session {
    client: Client,
    spdy: Spdy,
    seen: UnboundedReceiver<Seen>,
    /// All frames that came.
    sent: Vec<Sent>,
}

impl Session {
    /// One whose streams are accepted: 1 (error), 3 and so on, in the order of the names.
    async fn new(server: &Running, streams: Streams, script: Script, names: &[&str]) -> Self {
        let (url, seen) = exec(server, streams, script);
        let client = Client::upgraded("POST", &url, &spdy("v4.channel.k8s.io")).await;
        let mut session = Self { client, spdy: Spdy::new(), seen, sent: Vec::new() };
        let mut opened = Vec::new();
        for name in names {
            opened.extend(session.spdy.open(0, &[("streamtype", name)]).1);
        }
        session.client.send(&opened).await;
        let replies = |sent: &[Sent]| sent.iter().filter(|frame| matches!(frame, Sent::Reply(_))).count();
        session.until(|sent| replies(sent) == names.len()).await;
        session
    }

    /// Reads until all frames that came satisfy `enough`.
    async fn until(&mut self, enough: impl Fn(&[Sent]) -> bool) {
        while !enough(&self.sent) {
            let sent = self.client.frames(&mut self.spdy, |sent| !sent.is_empty()).await;
            self.sent.extend(sent);
        }
    }

    /// Reads to the end: all frames that came.
    async fn rest(&mut self) -> &[Sent] {
        let sent = self.spdy.read(&self.client.rest().await);
        self.sent.extend(sent);
        &self.sent
    }

    async fn send(&mut self, bytes: &[u8]) {
        self.client.send(bytes).await;
    }
}

const NAMES: [&str; 4] = ["error", "stdin", "stdout", "stderr"];

/// All bytes of the error stream: the status after white space.
fn json(outcome: &Outcome) -> Vec<u8> {
    [b" ".to_vec(), outcome.json()].concat()
}

/// Without a status, Go's client would take the end of the connection for success
/// (<https://github.com/kubernetes/kubernetes/issues/73056>).
#[tokio::test]
async fn a_server_that_stops_says_so() {
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let address = "127.0.0.1:0".parse().unwrap();
    let options = Options { address, idle: None, creation: STEP, tls: None, freed: || () };
    let server = Server::bind(options).await.unwrap();
    let urls = server.urls();
    let serving = tokio::spawn(server.serve(async { drop(stopped.await) }));
    let server = Running { urls, task: serving };
    let mut session = Session::new(&server, ALL, Script::Hang, &NAMES).await;
    assert_eq!(session.seen.recv().await, Some(Seen::Started(None)));
    stop.send(()).unwrap();
    let (status, ended) = stream(session.rest().await, 1);
    let status: serde_json::Value = serde_json::from_slice(&status).unwrap();
    assert!(ended && status["status"] == "Failure", "{status}");
    assert_eq!(session.seen.recv().await, Some(Seen::Closed));
}

/// A connection that is lost, as when this process is killed, is no success: what the client has of the status until
/// then is not empty, and no JSON.
#[tokio::test]
async fn a_lost_connection_is_no_success() {
    let server = server().await;
    let mut session = Session::new(&server, ALL, Script::Hang, &NAMES).await;
    assert_eq!(session.seen.recv().await, Some(Seen::Started(None)));
    session.until(|sent| !stream(sent, 1).0.is_empty()).await;
    drop(server);
    let (status, ended) = stream(session.rest().await, 1);
    assert!(!ended && status == b" ", "{status:?}");
}

#[tokio::test]
async fn cat_over_spdy() {
    let server = server().await;
    let mut session = Session::new(&server, ALL, Script::Cat, &NAMES).await;
    session.send(&data(3, 0, b"hello\n")).await;
    session.until(|sent| stream(sent, 5).0 == b"hello\n").await;
    assert!(!stream(&session.sent, 5).1);
    // Half-close: the process sees the end of its input and exits.
    session.send(&data(3, FIN, b"bye\n")).await;
    let sent = session.rest().await;
    assert_eq!(stream(sent, 5), (b"hello\nbye\n".to_vec(), true));
    assert_eq!(stream(sent, 1), (json(&Outcome::Exit(0)), true));
    assert!(matches!(sent.last(), Some(Sent::GoAway(..))), "{sent:?}");
    assert_eq!(session.seen.recv().await, Some(Seen::Started(None)));
    assert_eq!(session.seen.recv().await, Some(Seen::Closed));
}

/// More than all buffers hold, in both directions at once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn much_through_cat() {
    let server = server().await;
    let mut session = Session::new(&server, ALL, Script::Cat, &NAMES).await;
    session.until(|sent| !stream(sent, 1).0.is_empty()).await;
    let (bytes, mut spdy) = ((0..4_000_000u32).flat_map(u32::to_le_bytes).collect::<Vec<u8>>(), session.spdy);
    let (mut from, mut to) = session.client.stream.into_split();
    let sending = tokio::spawn({
        let bytes = bytes.clone();
        async move {
            for chunk in bytes.chunks(50_000) {
                to.write_all(&data(3, 0, chunk)).await.unwrap();
            }
            to.write_all(&data(3, FIN, b"")).await.unwrap();
            to
        }
    });
    let mut all = Vec::new();
    timeout(STEP, from.read_to_end(&mut all)).await.unwrap().unwrap();
    let mut sent = session.sent;
    sent.extend(spdy.read(&all));
    assert!(stream(&sent, 5) == (bytes, true), "the same bytes in the same order");
    assert_eq!(stream(&sent, 1), (json(&Outcome::Exit(0)), true));
    drop(sending.await.unwrap());
}

#[tokio::test]
async fn exit_code_and_both_outputs() {
    let server = server().await;
    let script = Script::Exit(b"out".to_vec(), b"err".to_vec(), 3);
    let mut session = Session::new(&server, ALL, script, &NAMES).await;
    let sent = session.rest().await;
    assert_eq!(stream(sent, 5), (b"out".to_vec(), true));
    assert_eq!(stream(sent, 7), (b"err".to_vec(), true));
    assert_eq!(stream(sent, 1), (json(&Outcome::Exit(3)), true));
}

#[tokio::test]
async fn a_failed_start_is_told() {
    let server = server().await;
    let mut session = Session::new(&server, ALL, Script::Fail, &NAMES).await;
    assert_eq!(stream(session.rest().await, 1), (json(&Outcome::Failed("no such program".into())), true));
}

#[tokio::test]
async fn bytes_that_come_with_the_request_are_not_lost() {
    let server = server().await;
    let (url, _seen) = exec(&server, ALL, Script::Cat);
    let mut client = Spdy::new();
    let mut early = Vec::new();
    for name in NAMES {
        early.extend(client.open(0, &[("streamtype", name)]).1);
    }
    early.extend(data(3, FIN, b"early"));
    let (mut connection, head) = Client::request("POST", &url, &spdy("v4.channel.k8s.io"), &early).await;
    assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
    let sent = client.read(&connection.rest().await);
    assert_eq!(stream(&sent, 5), (b"early".to_vec(), true));
}

#[tokio::test]
async fn streams_that_do_not_come_end_the_session() {
    let server = running(None, Duration::from_millis(200)).await;
    let mut session = Session::new(&server, ALL, Script::Cat, &NAMES[..2]).await;
    let (status, ended) = stream(session.rest().await, 1);
    assert!(ended && String::from_utf8_lossy(&status).contains("did not create all streams"), "{status:?}");
    assert!(session.seen.try_recv().is_err(), "nothing was started");
}

#[tokio::test]
async fn a_session_without_traffic_ends() {
    let idle = Duration::from_secs(1);
    let server = running(Some(idle), STEP).await;
    let mut session = Session::new(&server, ALL, Script::Hang, &NAMES).await;
    // Pings are traffic: the client is there.
    for id in 0..4u32 {
        tokio::time::sleep(idle / 3).await;
        session.send(&ping(2 * id + 1)).await;
    }
    assert_eq!(session.seen.recv().await, Some(Seen::Started(None)));
    assert!(session.seen.try_recv().is_err(), "it runs");
    let (status, _) = stream(session.rest().await, 1);
    assert!(String::from_utf8_lossy(&status).contains("no traffic for"), "{status:?}");
    assert_eq!(session.seen.recv().await, Some(Seen::Closed));
}

/// A client that leaves takes the process's streams with it, also while the process reads nothing.
#[tokio::test]
async fn a_client_that_leaves_is_noticed() {
    let server = server().await;
    // More than the process's pipe holds, and less than the sockets do.
    for sent in [0, 60_000] {
        let Session { mut client, mut seen, .. } = Session::new(&server, ALL, Script::Hang, &NAMES).await;
        assert_eq!(seen.recv().await, Some(Seen::Started(None)));
        client.send(&data(3, 0, &vec![7; sent])).await;
        tokio::time::sleep(Duration::from_millis(100)).await;
        drop(client);
        assert_eq!(timeout(STEP, seen.recv()).await.unwrap(), Some(Seen::Closed), "{sent}");
    }
}

#[tokio::test]
async fn a_held_output_does_not_keep_the_session() {
    let server = server().await;
    let mut session = Session::new(&server, ALL, Script::Orphan, &NAMES).await;
    let began = Instant::now();
    let sent = session.rest().await;
    assert_eq!(stream(sent, 5), (b"last words".to_vec(), true));
    assert_eq!(stream(sent, 1), (json(&Outcome::Exit(7)), true));
    assert!(began.elapsed() < STEP / 4, "{:?}", began.elapsed());
}

/// `tail -f log & exit`, while the log grows: the session ends with the process (moby/moby#33039).
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_held_output_that_is_written_to_does_not_keep_the_session() {
    let server = server().await;
    for pause in [Some(Duration::from_millis(10)), None] {
        let mut session = Session::new(&server, ALL, Script::Chatty(pause), &NAMES).await;
        let began = Instant::now();
        let sent = session.rest().await;
        assert!(stream(sent, 5).0.starts_with(b"last words"), "{pause:?}");
        assert_eq!(stream(sent, 1), (json(&Outcome::Exit(7)), true), "{pause:?}");
        assert!(began.elapsed() < STEP / 4, "{pause:?}: {:?}", began.elapsed());
    }
}

/// A client that does not read stops its own output, and gets all of it when it reads again.
#[tokio::test]
async fn a_slow_client_loses_nothing() {
    let server = server().await;
    let out = vec![b'x'; 32_000_000];
    let script = Script::Exit(out.clone(), Vec::new(), 0);
    let mut slow = Session::new(&server, ALL, script, &NAMES).await;
    assert_eq!(slow.seen.recv().await, Some(Seen::Started(None)));
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert!(slow.seen.try_recv().is_err(), "the process waits");
    let mut other = Session::new(&server, ALL, Script::Cat, &NAMES).await;
    other.send(&data(3, FIN, b"meanwhile")).await;
    assert_eq!(stream(other.rest().await, 5).0, b"meanwhile");
    let sent = slow.rest().await;
    assert!(stream(sent, 5) == (out, true), "all of it");
    assert_eq!(stream(sent, 1), (json(&Outcome::Exit(0)), true));
}

#[tokio::test]
async fn terminal_over_websocket() {
    let server = server().await;
    let (url, mut seen) = exec(&server, TERMINAL, Script::Cat);
    let mut client = Client::upgraded("GET", &url, &websocket("v5.channel.k8s.io")).await;
    let input = [
        message(BINARY, b"\x04{\"Width\":80,\"Height\":24}"),
        message(PING, b"there?"),
        frame(BINARY, b"\0hel"),
        frame(0x80, b"lo"),
        message(BINARY, &[255, 0]),
    ];
    client.send(&input.concat()).await;
    let sent = read(&client.rest().await);
    let out: Vec<u8> = sent
        .iter()
        .filter(|(kind, bytes)| *kind == BINARY && bytes.first() == Some(&1))
        .flat_map(|(_, bytes)| bytes[1..].to_vec())
        .collect();
    assert_eq!(out, b"hello");
    assert!(sent.contains(&(PONG, b"there?".to_vec())), "{sent:?}");
    let status = [&b"\x03"[..], &Outcome::Exit(0).json()].concat();
    assert!(sent.contains(&(BINARY, status)), "{sent:?}");
    assert_eq!(sent.last(), Some(&(CLOSE, vec![3, 232])));
    assert_eq!(seen.recv().await, Some(Seen::Started(Some((80, 24)))));
    assert_eq!(seen.recv().await, Some(Seen::Resized(80, 24)));
}

/// A process with a terminal is started without a size if the client sends none, or other input first.
#[tokio::test]
async fn a_terminal_whose_size_does_not_come() {
    let server = server().await;
    for first in [None, Some(b"\0input first")] {
        let (url, mut seen) = exec(&server, TERMINAL, Script::Hang);
        let mut client = Client::upgraded("GET", &url, &websocket("v5.channel.k8s.io")).await;
        if let Some(first) = first {
            client.send(&message(BINARY, first)).await;
        }
        assert_eq!(timeout(STEP, seen.recv()).await.unwrap(), Some(Seen::Started(None)));
        client.send(&message(BINARY, b"\x04{\"Width\":80,\"Height\":24}")).await;
        assert_eq!(timeout(STEP, seen.recv()).await.unwrap(), Some(Seen::Resized(80, 24)));
    }
}

#[tokio::test]
async fn a_client_that_breaks_the_protocol_is_told() {
    let server = server().await;
    let mut session = Session::new(&server, ALL, Script::Hang, &NAMES).await;
    assert_eq!(session.seen.recv().await, Some(Seen::Started(None)));
    session.send(&[0x80, 9, 0, 1, 0, 0, 0, 0]).await;
    let sent = session.rest().await;
    assert!(matches!(sent.last(), Some(Sent::GoAway(_, code)) if *code != 0), "{sent:?}");
    assert_eq!(session.seen.recv().await, Some(Seen::Closed));
}

/// The state of a server with one place.
fn shared() -> Shared {
    Shared {
        tokens: Arc::default(),
        idle: None,
        creation: STEP,
        handshakes: crate::server::Handshakes::default(),
        sessions: Places::new(1),
        forwarded: Places::new(1),
        tls: None,
        freed: || (),
        stopping: SetOnce::new(),
    }
}

/// Frames of a few bytes may cost as much as thousands: whoever sends many must not have one of the daemon's threads
/// for itself, nor signal a terminal's processes for each size.
#[tokio::test]
async fn a_client_that_floods_takes_turns() {
    const READS: usize = 8;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    let stream = listener.accept().await.unwrap().0;
    let size = |width: usize| message(BINARY, format!("\u{4}{{\"Width\":{width},\"Height\":24}}").as_bytes());
    // All of it is in the kernel's buffers before the session begins.
    let mut flood = Vec::new();
    let mut sizes = 0;
    while flood.len() < READS * 32 * 1024 {
        sizes += 1;
        flood.extend(size(sizes));
    }
    timeout(STEP, client.write_all(&flood)).await.expect("the kernel takes it").unwrap();
    let (command, mut seen) = super::command(Script::Hang);
    let protocol = Protocol::WebSocket(Version::V5, Codec::Binary);
    let shared = shared();
    let stream = Stream::accepted(stream, None).await.unwrap();
    let watch = stream.watch().unwrap();
    let mut session =
        pin!(crate::server::remote::run(stream, watch, &[], protocol, TERMINAL, command, &shared));
    let (mut polls, mut set) = (0, Vec::new());
    let counted = poll_fn(|cx| {
        polls += 1;
        session.as_mut().poll(cx)
    });
    let last = async {
        while set.last() != Some(&sizes) {
            if let Seen::Resized(width, _) = seen.recv().await.unwrap() {
                set.push(usize::from(width));
            }
        }
    };
    timeout(STEP, async {
        tokio::select! {
            () = counted => panic!("the session ended"),
            () = last => {}
        }
    })
    .await
    .unwrap();
    assert!(polls >= READS, "{READS} reads in {polls} turns");
    assert!(set.len() <= 2 * READS && set.is_sorted(), "{} of {sizes} sizes were set", set.len());
}
