//! A shim whose part a test plays, on a real socket. It needs no root and no process.

use super::client::{self, ClientError, Connection};
use model::PodId;
use std::collections::VecDeque;
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{UnixListener, UnixStream};
use wire::codec::{self, Decoder, Frame};
use wire::{ErrorKind, Failure, Hello, Message, Reply, Request};

/// Time limit for the handshake of tests; it takes less than a millisecond.
const HANDSHAKE: Duration = Duration::from_secs(20);

/// The shim's end of a connection. Dropping it ends the connection.
#[derive(Debug)]
pub(crate) struct FakeShim {
    stream: UnixStream,
    decoder: Decoder,
    frames: VecDeque<Frame>,
}

impl FakeShim {
    /// Sends a message; `id` is that of the request it replies to, 0 for others.
    pub(crate) async fn send(&mut self, id: u64, message: Message) {
        let mut bytes = Vec::new();
        codec::encode(id, 0, &message, &mut bytes).expect("a frame");
        // The daemon may have closed the connection.
        drop(self.stream.write_all(&bytes).await);
    }

    /// Replies to a request.
    pub(crate) async fn reply(&mut self, id: u64, reply: Reply) {
        self.send(id, Message::Reply(reply)).await;
    }

    /// Refuses a request.
    pub(crate) async fn refuse(&mut self, id: u64, kind: ErrorKind, message: &str) {
        let failure = Failure { kind, stage: String::new(), message: message.to_owned(), errno: 0 };
        self.reply(id, Reply::Failed(failure)).await;
    }

    /// The next request with its id. Its descriptors are closed.
    pub(crate) async fn request(&mut self) -> (u64, Request) {
        loop {
            if let Some(frame) = self.frames.pop_front() {
                let Message::Request(request) = frame.message else { panic!("{:?}", frame.message) };
                return (frame.id, request);
            }
            let mut buffer = [0; 4096];
            let count = self.stream.read(&mut buffer).await.expect("a connection");
            assert!(count > 0, "the daemon has closed the connection");
            self.decoder.feed(&buffer[..count]);
            while let Some(frame) = self.decoder.next().expect("frames") {
                self.frames.push_back(frame);
            }
        }
    }
}

/// The pod of every fake shim.
pub(crate) fn pod() -> PodId {
    PodId::from_random([3; 32])
}

/// What a shim without containers sends first.
pub(crate) fn greeting() -> Vec<Message> {
    let hello = Hello {
        protocol: wire::PROTOCOL,
        build: "test".to_owned(),
        pod: pod(),
        pid: std::process::id(),
        features: vec![wire::feature::STRICT_PLANS.to_owned()],
    };
    vec![Message::Hello(hello), Message::SnapshotEnd]
}

/// Connects to a shim that sends `greeting` first.
pub(crate) async fn dial(greeting: Vec<Message>) -> (Result<Connection, ClientError>, FakeShim) {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("sock");
    let listener = UnixListener::bind(&path).expect("a socket");
    let accept = async {
        let (stream, _) = listener.accept().await.expect("a connection");
        let mut shim = FakeShim { stream, decoder: Decoder::new(), frames: VecDeque::new() };
        for message in greeting {
            shim.send(0, message).await;
        }
        shim
    };
    let pod = pod();
    tokio::join!(client::dial(&path, &pod, HANDSHAKE), accept)
}

/// A connection to a shim without containers.
pub(crate) async fn connected() -> (Connection, FakeShim) {
    let (connection, shim) = dial(greeting()).await;
    (connection.expect("a connection"), shim)
}
