//! Pulls from Debian's docker-registry, over HTTP and HTTPS, and stacks the result with overlayfs.
#![allow(missing_docs)]

mod common;

use common::{Built, Codec, MANIFEST, Node, build, noise, tar};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Bytes;
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use tempfile::TempDir;
use tokio::net::TcpStream;

struct Registry {
    child: Child,
    address: String,
    _folder: TempDir,
}

impl Drop for Registry {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// Starts a registry; `tls` has `cert.pem` and `key.pem`. The kernel chooses the port, and the registry's log
/// tells it: a port that the test chose could be taken by another test in between.
async fn start(tls: Option<&Path>) -> Registry {
    let folder = tempfile::tempdir().unwrap();
    let tls = tls.map_or(String::new(), |tls| {
        let (cert, key) = (tls.join("cert.pem"), tls.join("key.pem"));
        format!("  tls:\n    certificate: {}\n    key: {}\n", cert.display(), key.display())
    });
    let config = format!(
        "version: 0.1\nlog:\n  level: info\nstorage:\n  filesystem:\n    rootdirectory: {}\nhttp:\n  addr: 127.0.0.1:0\n{tls}",
        folder.path().join("data").display()
    );
    std::fs::write(folder.path().join("config.yml"), config).unwrap();
    let log = folder.path().join("log");
    let child = Command::new("/usr/bin/docker-registry")
        .arg("serve")
        .arg(folder.path().join("config.yml"))
        .stdout(Stdio::null())
        .stderr(std::fs::File::create(&log).unwrap())
        .spawn()
        .expect("docker-registry must be installed: make deps");
    let mut registry = Registry { child, address: String::new(), _folder: folder };
    for _ in 0..1200 {
        let text = std::fs::read_to_string(&log).unwrap();
        if let Some(address) = listening(&text) {
            registry.address = address;
            return registry;
        }
        assert!(registry.child.try_wait().unwrap().is_none(), "docker-registry ended: {text}");
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
    panic!("docker-registry does not start: {}", std::fs::read_to_string(&log).unwrap());
}

/// The address in the log's line `listening on 127.0.0.1:PORT`; the TLS registry adds `, tls`.
fn listening(log: &str) -> Option<String> {
    let rest = log.split_once("listening on ")?.1;
    let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.' && c != ':')?;
    Some(rest[..end].to_owned())
}

async fn put(
    address: &str,
    method: Method,
    path: &str,
    content_type: &str,
    body: Vec<u8>,
) -> (StatusCode, String) {
    let stream = TcpStream::connect(address).await.unwrap();
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
    let task = tokio::spawn(connection);
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header("host", address)
        .header("content-type", content_type)
        .body(Full::new(Bytes::from(body)))
        .unwrap();
    let response = sender.send_request(request).await.unwrap();
    let location =
        response.headers().get("location").map(|l| l.to_str().unwrap().to_owned()).unwrap_or_default();
    let status = response.status();
    response.into_body().collect().await.unwrap();
    task.abort();
    (status, location)
}

async fn push(registry: &Registry, repository: &str, tag: &str, image: &Built) -> String {
    for (digest, blob) in &image.blobs {
        let path = format!("/v2/{repository}/blobs/uploads/");
        let (status, location) = put(&registry.address, Method::POST, &path, "", Vec::new()).await;
        assert_eq!(status, StatusCode::ACCEPTED);
        let path = location.trim_start_matches(&format!("http://{}", registry.address)).to_owned();
        let path = format!("{path}&digest={digest}");
        let octets = "application/octet-stream";
        let (status, _) = put(&registry.address, Method::PUT, &path, octets, blob.clone()).await;
        assert_eq!(status, StatusCode::CREATED);
    }
    let path = format!("/v2/{repository}/manifests/{tag}");
    let (status, _) = put(&registry.address, Method::PUT, &path, MANIFEST, image.manifest.clone()).await;
    assert_eq!(status, StatusCode::CREATED);
    format!("{}/{repository}:{tag}", registry.address)
}

fn image() -> Built {
    let lower =
        tar(&[("etc/gone", b"1"), ("etc/kept", b"1"), ("data/old", b"1"), ("bin/big", &noise(3 << 20, 7))]);
    let middle = tar(&[("etc/.wh.gone", b""), ("data/.wh..wh..opq", b""), ("data/new", b"2")]);
    let upper = tar(&[("etc/kept", b"3")]);
    build(&[(lower, Codec::Gzip), (middle, Codec::Zstd), (upper, Codec::Plain)], "")
}

/// Checks the files as overlayfs shows them.
fn check_through_overlay(record: &image::ImageRecord) {
    let mount = tempfile::tempdir().unwrap();
    let lower: Vec<_> =
        record.layers.iter().map(|l| record.layers_dir.join(l).display().to_string()).collect();
    let options = format!("lowerdir={}", lower.join(":"));
    // A private mount namespace, so that no mount is left behind.
    let script = "set -e; mount -t overlay overlay -o \"$1\" \"$2\"; cd \"$2\"; \
        ! test -e etc/gone; ! test -e data/old; cat etc/kept data/new; stat -c %s bin/big; ls data etc";
    let output = Command::new("unshare")
        .args(["--mount", "--propagation", "private", "sh", "-c", script, "sh", &options])
        .arg(mount.path())
        .output()
        .unwrap();
    let shown = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{shown} {}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(shown, "323145728\ndata:\nnew\n\netc:\nkept\n");
}

#[tokio::test]
async fn over_http() {
    let (registry, node) = (start(None).await, Node::new());
    let image = image();
    let name = push(&registry, "team/app", "1.0", &image).await;
    let record = node.store.pull(&name, None).await.unwrap();
    assert_eq!(record.id, image.config);
    check_through_overlay(&record);
    let error = node.store.pull(&format!("{}/team/app:none", registry.address), None).await.unwrap_err();
    assert!(matches!(error, image::Error::NotFound { .. }), "{error}");
    node.store.remove(&record.id).await.unwrap();
    node.assert_empty().await;
}

#[tokio::test]
async fn over_https_with_a_private_ca() {
    let certificates = tempfile::tempdir().unwrap();
    let status = Command::new("openssl")
        .args([
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:prime256v1",
            "-nodes",
            "-days",
            "2",
        ])
        .args(["-subj", "/CN=test", "-addext", "subjectAltName=IP:127.0.0.1"])
        .args(["-addext", "basicConstraints=critical,CA:FALSE", "-keyout", "key.pem", "-out", "cert.pem"])
        .current_dir(certificates.path())
        .stderr(Stdio::null())
        .status()
        .unwrap();
    assert!(status.success());
    // The same content by a plain and by a TLS registry.
    let (plain, node) = (start(None).await, Node::new());
    let image = image();
    push(&plain, "team/app", "1.0", &image).await;
    let secure = start(Some(certificates.path())).await;
    let data = plain._folder.path().join("data");
    let target = secure._folder.path().join("data");
    assert!(Command::new("cp").arg("-a").arg(&data).arg(&target).status().unwrap().success());
    let name = format!("{}/team/app:1.0", secure.address);
    let server = format!("server = \"https://{}\"\n", secure.address);
    node.hosts(&secure.address, &server);
    let error = node.store.pull(&name, None).await.unwrap_err();
    assert!(matches!(error, image::Error::Unavailable { .. }), "an unknown CA must be refused: {error}");
    node.assert_empty().await;
    let ca = certificates.path().join("cert.pem");
    node.hosts(&secure.address, &format!("{server}ca = \"{}\"\n", ca.display()));
    let record = node.store.pull(&name, None).await.unwrap();
    check_through_overlay(&record);
    node.store.remove(&record.id).await.unwrap();
    node.hosts(&secure.address, &format!("{server}skip_verify = true\n"));
    node.store.pull(&name, None).await.unwrap();
}
