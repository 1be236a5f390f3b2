//! The client on a real socket, with a shim whose part the test plays.

use super::*;
use crate::shims::fakes::{self, connected, greeting};
use model::ContainerId;
use std::os::fd::AsFd as _;
use wire::{ErrorKind as ShimErrorKind, Failure};

/// For what must happen at once.
const LIMIT: Duration = Duration::from_secs(20);

fn id() -> ContainerId {
    ContainerId::from_random([1; 32])
}

fn start() -> Request {
    Request::Start { container: id() }
}

#[tokio::test]
async fn a_shim_that_cannot_start_says_why() {
    let failure = Failure {
        kind: ShimErrorKind::Internal,
        stage: "log folder".to_owned(),
        message: "No space left on device".to_owned(),
        errno: 28,
    };
    let (connection, _shim) = fakes::dial(vec![Message::Reply(Reply::Failed(failure))]).await;
    let error = connection.expect_err("no shim");
    assert!(matches!(error, ClientError::Failed(_)), "{error:?}");
    assert_eq!(error.to_string(), "log folder: No space left on device");
}

#[tokio::test]
async fn the_socket_of_another_pod_is_refused() {
    let mut messages = greeting();
    if let Some(Message::Hello(hello)) = messages.first_mut() {
        hello.pod = PodId::from_random([9; 32]);
    }
    let (connection, _shim) = fakes::dial(messages).await;
    assert!(matches!(connection, Err(ClientError::OtherPod(_))));
}

/// A reply after the time limit has no receiver, but the event that the shim sends as well does arrive.
#[tokio::test]
async fn a_late_reply_is_dropped_and_its_event_arrives() {
    let (mut connection, mut shim) = connected().await;
    let client = connection.client.clone();
    let limit = Duration::from_millis(20);
    let outcome = client.request("start", start(), Vec::new(), limit).await;
    assert!(matches!(outcome, Err(ClientError::Silent { what: "start", .. })), "{outcome:?}");
    let (request, _) = shim.request().await;
    shim.send(0, Message::Event(Event::Started { container: id(), started_at: 7 })).await;
    shim.reply(request, Reply::Started { started_at: 7 }).await;
    let event = timeout(LIMIT, connection.events.recv()).await.expect("in time");
    assert!(matches!(event, Some(Event::Started { started_at: 7, .. })), "{event:?}");
    // The connection is still used.
    let (reply, ()) =
        tokio::join!(client.done("forget", Request::Forget { container: id() }, LIMIT), async {
            let (request, _) = shim.request().await;
            shim.reply(request, Reply::Done).await;
        });
    assert!(reply.is_ok(), "{reply:?}");
}

#[tokio::test]
async fn the_end_of_the_connection_ends_all_that_waits_for_it() {
    let (mut connection, mut shim) = connected().await;
    let client = connection.client.clone();
    let waiting = tokio::spawn(async move { client.request("start", start(), Vec::new(), LIMIT).await });
    shim.request().await;
    let exec = next_exec();
    let request = Request::Exec { exec, container: id(), deadline_ms: None };
    let (exit, ()) = tokio::join!(connection.client.exec(exec, request, Vec::new(), LIMIT), async {
        let (request, _) = shim.request().await;
        shim.reply(request, Reply::ExecStarted { pid: 5 }).await;
    });
    drop(shim);
    let outcome = waiting.await.expect("no panic");
    assert!(matches!(outcome, Err(ClientError::Lost)), "{outcome:?}");
    exit.expect("a start").exit.await.expect_err("its exit is not known");
    assert!(timeout(LIMIT, connection.events.recv()).await.expect("in time").is_none());
    let after = connection.client.request("start", start(), Vec::new(), LIMIT).await;
    assert!(matches!(after, Err(ClientError::Lost)), "{after:?}");
}

/// The exit of a short command may be sent directly after the reply, before its caller has run again.
#[tokio::test]
async fn the_exit_of_an_exec_is_not_missed() {
    let (connection, mut shim) = connected().await;
    let exec = next_exec();
    let request = Request::Exec { exec, container: id(), deadline_ms: None };
    let (exit, ()) = tokio::join!(connection.client.exec(exec, request, Vec::new(), LIMIT), async {
        let (request, _) = shim.request().await;
        shim.reply(request, Reply::ExecStarted { pid: 5 }).await;
        shim.send(0, Message::Event(Event::ExecExited { exec, code: 3 })).await;
    });
    assert_eq!(timeout(LIMIT, exit.expect("a start").exit).await.expect("in time"), Ok(3));
}

/// They would use up the daemon's own.
#[tokio::test]
async fn descriptors_without_a_message_end_the_connection() {
    let (ours, theirs) = std::os::unix::net::UnixStream::pair().expect("sockets");
    ours.set_nonblocking(true).expect("a socket");
    let watched = crate::shims::watched(ours, Interest::READABLE | Interest::WRITABLE);
    let mut link = Link::new(watched.expect("a watched socket"));
    let mut hello = Vec::new();
    wire::codec::encode(0, 0, &greeting()[0], &mut hello).expect("a frame");
    let null = sys::fds::null().expect("/dev/null");
    let many = [null.as_fd(); wire::MAX_FDS];
    for byte in hello.iter().take(3) {
        sys::scm::send_with_fds(theirs.as_fd(), std::slice::from_ref(byte), &many).expect("a write");
    }
    let received = timeout(LIMIT, link.next()).await.expect("in time");
    assert!(matches!(received, Err(ClientError::Protocol(_))), "{received:?}");
}
