//! TLS: sessions by it, and a certificate that is replaced.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::client::{spdy, websocket};
use super::{ALL, Running, STEP, Script, exec};
use crate::server::tls::Tls;
use crate::server::{BindError, Certificate, Options, Server, TlsError};

/// A new certificate for 127.0.0.1, by Debian's openssl.
fn certificate(folder: &Path, name: &str) -> Certificate {
    let files =
        Certificate { chain: folder.join(format!("{name}.pem")), key: folder.join(format!("{name}.key")) };
    let made = Command::new("openssl")
        .args([
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
            "-nodes",
            "-days",
            "2",
        ])
        .args([
            "-subj",
            "/CN=streaming",
            "-addext",
            "subjectAltName=IP:127.0.0.1",
            "-addext",
            "basicConstraints=critical,CA:FALSE",
            "-keyout",
        ])
        .arg(&files.key)
        .arg("-out")
        .arg(&files.chain)
        .output()
        .expect("openssl is installed");
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    files
}

async fn secure(files: Certificate) -> Result<Running, BindError> {
    let address = "127.0.0.1:0".parse().unwrap();
    let server =
        Server::bind(Options { address, idle: None, creation: STEP, tls: Some(files), freed: || () }).await?;
    let urls = server.urls();
    Ok(Running { urls, task: tokio::spawn(server.serve(std::future::pending())) })
}

/// A connection of a client that trusts one certificate.
async fn connect(address: &str, trusted: &Path, protocols: &[&str]) -> std::io::Result<TlsStream<TcpStream>> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(trusted).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = protocols.iter().map(|name| name.as_bytes().to_vec()).collect();
    let stream = TcpStream::connect(address).await?;
    let name = ServerName::try_from("127.0.0.1").unwrap();
    timeout(STEP, TlsConnector::from(Arc::new(config)).connect(name, stream)).await.expect("a handshake")
}

/// Everything that the server answers to a request.
async fn all(url: &str, trusted: &Path, protocols: &[&str], method: &str, headers: &str) -> Vec<u8> {
    let (address, path) = url.strip_prefix("https://").expect("the URL says TLS").split_once('/').unwrap();
    let mut stream = connect(address, trusted, protocols).await.unwrap();
    let head = format!("{method} /{path} HTTP/1.1\r\nHost: {address}\r\n{headers}\r\n");
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut received = Vec::new();
    timeout(STEP, stream.read_to_end(&mut received)).await.expect("an end").expect("a proper end");
    received
}

fn contains(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|window| window == part)
}

#[tokio::test]
async fn sessions_by_tls() {
    let folder = tempfile::tempdir().unwrap();
    let files = certificate(folder.path(), "one");
    let server = secure(files.clone()).await.unwrap();
    // Clients that offer HTTP/2 too, and that offer nothing.
    for protocols in [&["h2", "http/1.1"][..], &[]] {
        // More than the socket takes at once.
        let much = vec![b'x'; 4 * 1024 * 1024];
        let (url, mut seen) = exec(&server, ALL, Script::Exit(much.clone(), b"error".to_vec(), 3));
        let received = all(&url, &files.chain, protocols, "GET", &websocket("v4.channel.k8s.io")).await;
        assert!(received.starts_with(b"HTTP/1.1 101 "), "{}", String::from_utf8_lossy(&received[..100]));
        assert_eq!(
            received.iter().filter(|byte| **byte == b'x').count() / much.len(),
            1,
            "all of the output"
        );
        assert!(contains(&received, b"error") && contains(&received, b"ExitCode"));
        assert_eq!(seen.recv().await, Some(super::Seen::Started(None)));
    }
    let (url, _seen) = exec(&server, ALL, Script::Cat);
    let wrong = url.replace("/exec/", "/attach/");
    let refused = all(&wrong, &files.chain, &[], "POST", &spdy("v4.channel.k8s.io")).await;
    assert!(refused.starts_with(b"HTTP/1.1 404 "), "{}", String::from_utf8_lossy(&refused));
}

#[tokio::test]
async fn plain_http_gets_no_session() {
    let folder = tempfile::tempdir().unwrap();
    let files = certificate(folder.path(), "one");
    let server = secure(files).await.unwrap();
    let (url, mut seen) = exec(&server, ALL, Script::Cat);
    let (address, path) = url.strip_prefix("https://").unwrap().split_once('/').unwrap();
    let mut stream = TcpStream::connect(address).await.unwrap();
    let head = format!("GET /{path} HTTP/1.1\r\nHost: x\r\n{}\r\n", websocket("v4.channel.k8s.io"));
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut received = Vec::new();
    drop(timeout(STEP, stream.read_to_end(&mut received)).await.expect("an end"));
    assert!(!contains(&received, b"HTTP/1.1 101"));
    assert!(seen.try_recv().is_err());
}

/// A client that vanishes while the process does not read is noticed by TLS too.
#[tokio::test]
async fn a_vanished_client_is_noticed() {
    let folder = tempfile::tempdir().unwrap();
    let files = certificate(folder.path(), "one");
    let server = secure(files.clone()).await.unwrap();
    let (url, mut seen) = exec(&server, ALL, Script::Hang);
    let (address, path) = url.strip_prefix("https://").unwrap().split_once('/').unwrap();
    let mut stream = connect(address, &files.chain, &[]).await.unwrap();
    let head = format!("GET /{path} HTTP/1.1\r\nHost: x\r\n{}\r\n", websocket("v4.channel.k8s.io"));
    stream.write_all(head.as_bytes()).await.unwrap();
    // Frames with mask 0: a channel, and a byte.
    let frames = [0x82, 0x82, 0, 0, 0, 0, 0, b'x'].repeat(64 * 1024);
    // It takes no more at some point.
    drop(timeout(std::time::Duration::from_millis(500), stream.write_all(&frames)).await);
    assert_eq!(timeout(STEP, seen.recv()).await.unwrap(), Some(super::Seen::Started(None)));
    drop(stream);
    assert_eq!(timeout(STEP, seen.recv()).await.expect("noticed"), Some(super::Seen::Closed));
}

#[tokio::test]
async fn files_that_are_not_usable_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let good = certificate(folder.path(), "one");
    let other = certificate(folder.path(), "two");
    let missing = Certificate { chain: folder.path().join("none"), ..good.clone() };
    assert!(matches!(secure(missing).await, Err(BindError::Tls(TlsError::Read(..)))));
    // Nobody writes to it: a server that opened it for reading would wait for ever.
    let fifo = folder.path().join("fifo");
    assert!(Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    let waits = Certificate { key: fifo, ..good.clone() };
    let refused = timeout(STEP, secure(waits)).await.expect("it is not opened");
    let Err(BindError::Tls(TlsError::Read(path, error))) = refused else { panic!("a FIFO was read") };
    assert!(path.ends_with("fifo") && error.to_string().contains("not a regular file"), "{error}");
    let no_chain = Certificate { chain: good.key.clone(), ..good.clone() };
    assert!(matches!(secure(no_chain).await, Err(BindError::Tls(TlsError::Pem(..)))));
    let no_key = Certificate { key: good.chain.clone(), ..good.clone() };
    assert!(matches!(secure(no_key).await, Err(BindError::Tls(TlsError::Pem(..)))));
    let mixed = Certificate { key: other.key, ..good };
    assert!(matches!(secure(mixed).await, Err(BindError::Tls(TlsError::Pair { .. }))));
}

#[tokio::test]
async fn a_new_certificate_is_used_and_a_broken_one_is_not() {
    let folder = tempfile::tempdir().unwrap();
    let files = certificate(folder.path(), "one");
    let next = certificate(folder.path(), "two");
    let tls = Arc::new(Tls::new(files.clone()).unwrap());
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let accepts = async |trusted: &Path| {
        let client = connect(&address, trusted, &[]);
        let server = async { tls.acceptor().accept(listener.accept().await.unwrap().0).await };
        tokio::join!(client, server).0.is_ok()
    };
    let first = folder.path().join("first.pem");
    std::fs::copy(&files.chain, &first).unwrap();
    assert!(accepts(&first).await);
    std::fs::copy(&next.chain, &files.chain).unwrap();
    Arc::clone(&tls).refresh().await;
    assert!(accepts(&first).await, "the key is still the other's");
    std::fs::copy(&next.key, &files.key).unwrap();
    Arc::clone(&tls).refresh().await;
    assert!(accepts(&next.chain).await && !accepts(&first).await);
    std::fs::remove_file(&files.key).unwrap();
    Arc::clone(&tls).refresh().await;
    assert!(accepts(&next.chain).await);
}

/// tokio's blocking pool panics when it cannot start a thread. Here its only thread is busy for as long as the test runs.
#[test]
fn files_are_read_without_the_blocking_pool_of_tokio() {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().max_blocking_threads(1).build().unwrap();
    // Dropped before the runtime, which waits for the thread.
    let (_release, released) = std::sync::mpsc::channel::<()>();
    runtime.spawn_blocking(move || released.recv());
    let folder = tempfile::tempdir().unwrap();
    let files = certificate(folder.path(), "one");
    let next = certificate(folder.path(), "two");
    runtime.block_on(async {
        let address = "127.0.0.1:0".parse().unwrap();
        let options = Options { address, idle: None, creation: STEP, tls: Some(files.clone()), freed: || () };
        let bound = timeout(STEP, Server::bind(options)).await.expect("the files are read at the start");
        let server = bound.unwrap();
        std::fs::copy(&next.chain, &files.chain).unwrap();
        std::fs::copy(&next.key, &files.key).unwrap();
        let address = server.listener.local_addr().unwrap().to_string();
        let serving = tokio::spawn(server.serve(std::future::pending()));
        let replaced = async { while connect(&address, &next.chain, &[]).await.is_err() {} };
        timeout(STEP, replaced).await.expect("the files are read again");
        serving.abort();
    });
}
