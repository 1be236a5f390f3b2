//! Pulls through forward proxies: Debian's tinyproxy, with a password, behind TLS, and a SOCKS5 server. The registry's
//! name is known to the proxy alone. And a registry whose connections end without the end of TLS.
#![allow(missing_docs)]

mod common;

use common::programs::{Running, listening_on, self_signed};
use common::{Built, Fault, Faulty, MANIFEST, Node, two_layers};
use image::{Error, Proxies};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};

fn proxies(variables: &[(&str, String)]) -> Arc<Proxies> {
    let value =
        |name: &str| variables.iter().find(|(known, _)| *known == name).map(|(_, value)| value.clone());
    Arc::new(Proxies::from_variables(value).unwrap())
}

/// tinyproxy with a file of hosts of its own, which it gets in a private mount namespace.
async fn tinyproxy(folder: &Path) -> (Running, u16) {
    std::fs::write(folder.join("hosts"), "127.0.0.1 registry.test\n").unwrap();
    listening_on(|port| {
        let config = format!(
            "Port {port}\nListen 127.0.0.1\nBasicAuth user secret\nLogFile \"{}\"\nLogLevel Connect\n",
            folder.join("log").display()
        );
        std::fs::write(folder.join("tinyproxy.conf"), config).unwrap();
        let mut command = Command::new("unshare");
        command
            .args(["--mount", "--propagation", "private", "sh", "-c"])
            .arg("mount --bind hosts /etc/hosts && exec tinyproxy -d -c tinyproxy.conf")
            .current_dir(folder)
            .stdout(Stdio::null());
        command
    })
    .await
}

fn port_of(registry: &Faulty) -> &str {
    registry.address.rsplit_once(':').unwrap().1
}

#[tokio::test]
async fn http_goes_through_the_proxy() {
    let folder = tempfile::tempdir().unwrap();
    let (_proxy, port) = tinyproxy(folder.path()).await;
    let registry = Faulty::start().await;
    let image = two_layers();
    registry.push("a/b", "v", &image);
    let authority = format!("registry.test:{}", port_of(&registry));
    let name = format!("{authority}/a/b:v");
    let pull = async |variables: &[(&str, String)]| {
        let node = Node::with(|options| options.proxies = proxies(variables));
        node.hosts(&authority, &format!("server = \"http://{authority}\"\n"));
        node.store.pull(&name, None).await.map(|record| record.id.clone())
    };
    let at = |login: &str| format!("http://{login}127.0.0.1:{port}");
    let through = [("http_proxy", at("user:secret@")), ("NO_PROXY", ".registry.test".to_owned())];
    assert_eq!(pull(&through).await.unwrap(), image.config);
    assert!(registry.requests("/blobs/") == 3, "the registry was not asked");
    // tinyproxy refuses such requests as a server would, with a 401.
    let refused = pull(&[("ALL_PROXY", at("user:hunter2@"))]).await.unwrap_err();
    assert!(matches!(refused, Error::Unauthorized { .. }), "{refused}");
    assert!(!refused.to_string().contains("hunter2"), "{refused}");
    // Without the proxy, nobody knows the name.
    for exception in ["registry.test", "*"] {
        let direct = [("HTTP_PROXY", at("user:secret@")), ("no_proxy", exception.to_owned())];
        assert!(matches!(pull(&direct).await, Err(Error::Unavailable { .. })), "{exception}");
    }
}

/// Loopback addresses are never reached through a proxy, so they are the node's own.
#[tokio::test]
async fn a_registry_elsewhere_does_not_lead_to_this_node() {
    let folder = tempfile::tempdir().unwrap();
    let (_proxy, port) = tinyproxy(folder.path()).await;
    let (registry, service) = (Faulty::start().await, Faulty::start().await);
    let image = two_layers();
    registry.push("a/b", "v", &image);
    service.push("a/b", "v", &image);
    let authority = format!("registry.test:{}", port_of(&registry));
    let all = format!("http://user:secret@127.0.0.1:{port}");
    let node = Node::with(|options| options.proxies = proxies(&[("ALL_PROXY", all)]));
    node.hosts(&authority, &format!("server = \"http://{authority}\"\n"));
    let pull = async || node.store.pull(&format!("{authority}/a/b:v"), None).await;
    // By its address, and by a name that is resolved here.
    for host in [service.address.clone(), format!("localhost:{}", port_of(&service))] {
        registry.fault("/manifests/", 1, Fault::Redirect(format!("http://{host}/v2/a/b/manifests/v")));
        let error = pull().await.unwrap_err();
        assert!(error.to_string().contains("is a loopback address, where"), "{error}");
        let realm = format!("http://{host}/token");
        registry.shared.lock().unwrap().token = Some(("t0ken".into(), realm, None));
        let error = pull().await.unwrap_err();
        assert!(error.to_string().contains("is a loopback address, where"), "{error}");
        registry.shared.lock().unwrap().token = None;
    }
    assert_eq!(service.requests(""), 0);
    pull().await.unwrap();
}

/// TLS with a certificate of `folder`.
fn acceptor(folder: &Path, name: &str) -> tokio_rustls::TlsAcceptor {
    let read = |path: &str| std::fs::read(folder.join(path)).unwrap();
    let chain = certificates::certificates(&read(&format!("{name}.crt"))).unwrap();
    let key = certificates::private_key(&read(&format!("{name}.key"))).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .unwrap();
    tokio_rustls::TlsAcceptor::from(Arc::new(config))
}

/// TLS in front of a server; `folder` has its certificate.
async fn tls_in_front(folder: &Path, name: &str, to: String) -> u16 {
    let acceptor = acceptor(folder, name);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    // It ends with the test's runtime.
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            let (acceptor, to) = (acceptor.clone(), to.clone());
            tokio::spawn(async move {
                let Ok(mut client) = acceptor.accept(client).await else { return };
                let Ok(mut server) = TcpStream::connect(to).await else { return };
                copy_bidirectional(&mut client, &mut server).await.ok();
            });
        }
    });
    port
}

/// A registry with TLS at `registry.test`.
async fn secure_registry() -> (TempDir, Faulty, u16) {
    let folder = tempfile::tempdir().unwrap();
    self_signed(folder.path(), "registry", "DNS:registry.test");
    self_signed(folder.path(), "proxy", "IP:127.0.0.1");
    let registry = Faulty::start().await;
    registry.push("a/b", "v", &two_layers());
    let port = tls_in_front(folder.path(), "registry", registry.address.clone()).await;
    (folder, registry, port)
}

/// A registry with TLS that ends each connection without TLS's own end. It states the lengths of bodies or not.
async fn abrupt_registry(folder: &Path, image: Built, states_lengths: bool) -> u16 {
    let acceptor = acceptor(folder, "registry");
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            let Ok(mut client) = acceptor.accept(client).await else { continue };
            let mut head = String::new();
            let mut buffer = [0; 4096];
            while !head.ends_with("\r\n\r\n") {
                let read = client.read(&mut buffer).await.unwrap();
                head.push_str(std::str::from_utf8(&buffer[..read]).unwrap());
            }
            let path = head.split(' ').nth(1).unwrap();
            let blob = image.blobs.iter().find(|(digest, _)| path.contains(digest.as_str()));
            let body = blob.map_or(&image.manifest, |(_, blob)| blob);
            let length = format!("content-length: {}\r\n", body.len());
            let length = if states_lengths { &length } else { "" };
            let head =
                format!("HTTP/1.1 200 OK\r\ncontent-type: {MANIFEST}\r\n{length}connection: close\r\n\r\n");
            client.write_all(&[head.as_bytes(), body].concat()).await.unwrap();
            client.flush().await.unwrap();
            // What is dropped sends no close_notify.
        }
    });
    port
}

#[tokio::test]
async fn a_body_without_the_end_of_tls_must_have_its_length() {
    let folder = tempfile::tempdir().unwrap();
    self_signed(folder.path(), "registry", "IP:127.0.0.1");
    for states_lengths in [true, false] {
        let port = abrupt_registry(folder.path(), two_layers(), states_lengths).await;
        let (authority, node) = (format!("127.0.0.1:{port}"), Node::new());
        let ca = folder.path().join("registry.crt");
        node.hosts(&authority, &format!("server = \"https://{authority}\"\nca = \"{}\"\n", ca.display()));
        let pulled = node.store.pull(&format!("{authority}/a/b:v"), None).await;
        match states_lengths {
            true => drop(pulled.unwrap()),
            false => assert!(matches!(pulled, Err(Error::Unavailable { .. })), "{pulled:?}"),
        }
    }
}

#[tokio::test]
async fn https_goes_through_tunnels() {
    let (folder, registry, port) = secure_registry().await;
    let (_proxy, http) = tinyproxy(folder.path()).await;
    let https = tls_in_front(folder.path(), "proxy", format!("127.0.0.1:{http}")).await;
    let authority = format!("registry.test:{port}");
    let name = format!("{authority}/a/b:v");
    let path = |file: &str| folder.path().join(file).display().to_string();
    let pull = async |proxy: String, authorities: &[&str]| {
        let node = Node::with(|options| options.proxies = proxies(&[("HTTPS_PROXY", proxy)]));
        let ca: Vec<_> = authorities.iter().map(|file| path(file)).collect();
        node.hosts(&authority, &format!("server = \"https://{authority}\"\nca = {ca:?}\n"));
        node.store.pull(&name, None).await.map(drop)
    };
    pull(format!("http://user:secret@127.0.0.1:{http}"), &["registry.crt"]).await.unwrap();
    assert!(registry.requests("/blobs/") == 3, "the registry was not asked");
    pull(format!("https://user:secret@127.0.0.1:{https}"), &["registry.crt", "proxy.crt"]).await.unwrap();
    let log = std::fs::read_to_string(folder.path().join("log")).unwrap();
    assert!(log.contains(&format!("CONNECT {authority}")), "{log}");
    // The registry's certificate is verified behind the tunnel, and the proxy's before it.
    let error = pull(format!("http://user:secret@127.0.0.1:{http}"), &["proxy.crt"]).await.unwrap_err();
    assert!(error.to_string().contains("certificate"), "{error}");
    let error = pull(format!("https://user:secret@127.0.0.1:{https}"), &["registry.crt"]).await.unwrap_err();
    assert!(error.to_string().contains("certificate"), "{error}");
    let error = pull(format!("http://user:hunter2@127.0.0.1:{http}"), &["registry.crt"]).await.unwrap_err();
    let expected = format!("proxy 127.0.0.1:{http} does not connect to {authority}: status 4");
    assert!(error.to_string().contains(&expected) && !error.to_string().contains("hunter2"), "{error}");
}

/// A SOCKS5 server for `user` with the password `secret` (RFC 1928, RFC 1929), which knows one name.
async fn socks() -> u16 {
    async fn serve(mut client: TcpStream) -> std::io::Result<()> {
        let mut greeting = [0; 2];
        client.read_exact(&mut greeting).await?;
        let mut methods = vec![0; greeting[1].into()];
        client.read_exact(&mut methods).await?;
        assert!(methods.contains(&2), "{methods:?}");
        client.write_all(&[5, 2]).await?;
        let mut login = [0; 13];
        client.read_exact(&mut login).await?;
        let known = login == *b"\x01\x04user\x06secret";
        client.write_all(&[1, u8::from(!known)]).await?;
        let mut request = vec![0; 5 + "registry.test".len() + 2];
        client.read_exact(&mut request).await?;
        assert_eq!(&request[..5], &[5, 1, 0, 3, 13]);
        assert_eq!(&request[5..18], b"registry.test");
        let port = u16::from_be_bytes([request[18], request[19]]);
        let mut server = TcpStream::connect(("127.0.0.1", port)).await?;
        client.write_all(&[5, 0, 0, 1, 0, 0, 0, 0, 0, 0]).await?;
        copy_bidirectional(&mut client, &mut server).await.map(drop)
    }
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            tokio::spawn(serve(client));
        }
    });
    port
}

#[tokio::test]
async fn socks5() {
    let (folder, registry, port) = secure_registry().await;
    let socks = socks().await;
    let (secure, plain) = (format!("registry.test:{port}"), format!("registry.test:{}", port_of(&registry)));
    for (login, is_served) in [("user:secret", true), ("user:hunter2", false)] {
        let all = format!("socks5h://{login}@127.0.0.1:{socks}");
        let node = Node::with(|options| options.proxies = proxies(&[("ALL_PROXY", all)]));
        let ca = folder.path().join("registry.crt");
        node.hosts(&secure, &format!("server = \"https://{secure}\"\nca = \"{}\"\n", ca.display()));
        node.hosts(&plain, &format!("server = \"http://{plain}\"\n"));
        for authority in [&secure, &plain] {
            let pulled = node.store.pull(&format!("{authority}/a/b:v"), None).await;
            assert_eq!(pulled.is_ok(), is_served, "{authority}: {pulled:?}");
            let error = pulled.err().map(|error| error.to_string()).unwrap_or_default();
            assert!(!error.contains("hunter2"), "{error}");
        }
    }
}
