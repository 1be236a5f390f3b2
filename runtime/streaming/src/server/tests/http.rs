//! Requests, tokens, limits.

use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::client::{Client, spdy, websocket};
use super::{ALL, STEP, Script, command, exec, port_forward, server};
use crate::server::link::LINGER;
use crate::server::{BindError, Full, IssueError, MAX_HANDSHAKES, MAX_SESSIONS, Options, Server};

async fn answer(method: &str, url: &str, headers: &str) -> String {
    Client::request(method, url, headers, b"").await.1
}

#[tokio::test]
async fn a_url_can_be_used_once_and_only_for_what_it_is() {
    let server = server().await;
    let (url, _seen) = exec(&server, ALL, Script::Cat);
    assert!(answer("POST", &url, &spdy("v4.channel.k8s.io")).await.starts_with("HTTP/1.1 101 "));
    let again = answer("POST", &url, &spdy("v4.channel.k8s.io")).await;
    assert!(again.starts_with("HTTP/1.1 404 ") && again.contains("connection: close"), "{again}");
    let (url, _seen) = exec(&server, ALL, Script::Cat);
    let wrong = url.replace("/exec/", "/attach/");
    assert!(answer("POST", &wrong, &spdy("v4.channel.k8s.io")).await.starts_with("HTTP/1.1 404 "));
    let base = url.split("/exec/").next().unwrap();
    for path in ["/", "/exec", "/exec/", "/exec/AAAAAAAAAAAAAAAAAAAAAA", "/other/x", "/exec/../exec"] {
        let refused = answer("GET", &format!("{base}{path}"), &spdy("v4.channel.k8s.io")).await;
        assert!(refused.starts_with("HTTP/1.1 404 "), "{path}: {refused}");
    }
}

#[tokio::test]
async fn refusals_say_why() {
    let server = server().await;
    let url = || exec(&server, ALL, Script::Cat).0;
    for (method, headers, status) in [
        ("PUT", spdy("v4.channel.k8s.io"), "405"),
        ("POST", String::new(), "400"),
        ("POST", spdy(""), "400"),
        ("POST", spdy("v9.channel.k8s.io"), "403"),
        ("POST", websocket("v5.channel.k8s.io"), "400"),
        ("GET", websocket("v9.channel.k8s.io"), "403"),
        ("GET", websocket("v5.channel.k8s.io").replace("13", "12"), "426"),
    ] {
        let (mut client, head) = Client::request(method, &url(), &headers, b"").await;
        assert!(head.starts_with(&format!("HTTP/1.1 {status} ")), "{method} {headers}: {head}");
        assert!(!client.rest().await.is_empty(), "a text, and then the end: {head}");
    }
    let forward = answer("GET", &port_forward(&server, &[80; 33]), &websocket("v4.channel.k8s.io")).await;
    assert!(forward.starts_with("HTTP/1.1 400 "), "{forward}");
}

#[tokio::test]
async fn what_is_no_http_gets_no_session() {
    let server = server().await;
    let (url, mut seen) = exec(&server, ALL, Script::Cat);
    let mut client = Client::request("GET", &url, "Connection: Upgrade\r\nUpgrade: \u{1}\r\n", b"").await.0;
    client.rest().await;
    assert!(seen.try_recv().is_err());
}

/// Clients that open connections and send nothing must not keep out a client that has a token.
#[tokio::test]
async fn silent_connections_make_room_for_others() {
    let server = server().await;
    let (url, _seen) = exec(&server, ALL, Script::Cat);
    let address = url.strip_prefix("http://").unwrap().split('/').next().unwrap();
    let mut silent = Vec::new();
    for _ in 0..MAX_HANDSHAKES {
        silent.push(TcpStream::connect(address).await.unwrap());
    }
    let session = Client::upgraded("POST", &url, &spdy("v4.channel.k8s.io")).await;
    let end = timeout(STEP, silent[0].read(&mut [0; 1])).await.expect("the oldest is closed");
    assert!(matches!(end, Ok(0) | Err(_)), "{end:?}");
    // A session is none of them any more.
    for _ in 0..=MAX_HANDSHAKES {
        silent.push(TcpStream::connect(address).await.unwrap());
    }
    tokio::time::sleep(Duration::from_millis(200)).await;
    let mut session = session;
    let open = timeout(Duration::from_millis(200), session.read()).await;
    assert!(open.is_err(), "the session is still open");
}

/// Whoever is refused and keeps its connection open must not either: 1,024 of these took all places for ten seconds.
#[tokio::test]
async fn refused_connections_make_room_for_others() {
    let server = server().await;
    let (url, _seen) = exec(&server, ALL, Script::Cat);
    let refused = url.rsplit_once('/').unwrap().0.to_owned() + "/AAAAAAAAAAAAAAAAAAAAAA";
    let begun = Instant::now();
    let mut open = Vec::new();
    for _ in 0..=MAX_HANDSHAKES {
        let (client, head) = Client::request("GET", &refused, "", b"").await;
        assert!(head.starts_with("HTTP/1.1 404 "), "{head}");
        open.push(client.stream);
    }
    // The oldest is closed, so what it sends is answered by a reset.
    while open[0].write_all(b"x").await.is_ok() {
        assert!(begun.elapsed() < LINGER, "it is kept as long as if it were alone");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert!(open[1].write_all(b"x").await.is_ok(), "the others stay");
    Client::upgraded("POST", &url, &spdy("v4.channel.k8s.io")).await;
}

#[tokio::test]
async fn a_session_too_many_is_refused_at_once() {
    let server = server().await;
    let upgrade = |url: String| async move { answer("POST", &url, &spdy("v4.channel.k8s.io")).await };
    let issue = |pod: &str| server.urls.exec(pod, ALL, command(Script::Cat).0);
    let session =
        |url: String| async move { Client::upgraded("POST", &url, &spdy("v4.channel.k8s.io")).await };
    // Each pod gets half of what is left.
    let (mut left, mut sessions) = (MAX_SESSIONS, Vec::new());
    while left > 1 {
        let (pod, share) = (left.to_string(), left / 2);
        for _ in 1..share {
            sessions.push(session(issue(&pod).unwrap()).await);
        }
        // Only now, as a URL expires, and all these sessions take their time on a slow machine.
        let (last, late) = (issue(&pod).unwrap(), issue(&pod).unwrap());
        sessions.push(session(last).await);
        left -= share;
        // Others are let in, and neither a URL from before nor a new one helps this pod.
        let refused = upgrade(late).await;
        assert!(refused.starts_with("HTTP/1.1 429 "), "{refused}");
        assert_eq!(issue(&pod), Err(IssueError::Sessions(Full::Owner(share))));
    }
    let (last, late) = (issue("last").unwrap(), issue("late").unwrap());
    sessions.push(session(last).await);
    let refused = upgrade(late).await;
    assert!(refused.starts_with("HTTP/1.1 503 "), "{refused}");
    assert_eq!(issue("pod"), Err(IssueError::Sessions(Full::Node(MAX_SESSIONS))));
    drop(sessions.pop());
    let begun = Instant::now();
    let url = loop {
        match issue("pod") {
            Ok(url) => break url,
            Err(_) => assert!(begun.elapsed() < STEP, "the place of a session that has ended is not free"),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    let upgraded = upgrade(url).await;
    assert!(upgraded.starts_with("HTTP/1.1 101 "), "{upgraded}");
}

#[tokio::test]
async fn a_wildcard_address_is_refused() {
    for address in ["0.0.0.0:0", "[::]:0"] {
        let options = Options {
            address: address.parse().unwrap(),
            idle: None,
            creation: STEP,
            tls: None,
            freed: || (),
        };
        assert!(matches!(Server::bind(options).await, Err(BindError::Wildcard(_))), "{address}");
    }
}
