//! Debian's docker-registry, and other programs that tests start.

use super::{Built, MANIFEST};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Bytes;
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use tempfile::TempDir;
use tokio::net::TcpStream;

/// `user` with the password `secret`, as htpasswd -B writes it.
const HTPASSWD: &str = "user:$2y$05$abcdefghijklmnopqrstuuOQiyCxlgf/oeuTqixKmWdcYUh4Hjl0a\n";
/// The Authorization header of that user.
pub const BASIC: &str = "Basic dXNlcjpzZWNyZXQ=";

/// A program that ends with the test.
pub struct Running(pub Child);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

/// Starts a server that can only listen on a port that the test chooses. It may be taken meanwhile, so another is tried.
pub async fn listening_on(start: impl Fn(u16) -> Command) -> (Running, u16) {
    for _ in 0..20 {
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let mut running = Running(start(port).spawn().expect("it must be installed: make deps"));
        for _ in 0..1200 {
            if running.0.try_wait().unwrap().is_some() {
                break;
            }
            if TcpStream::connect(("127.0.0.1", port)).await.is_ok() {
                return (running, port);
            }
            tokio::time::sleep(Duration::from_millis(25)).await;
        }
    }
    panic!("the server does not start");
}

/// Makes a self-signed certificate and its key as Docker's documentation does: `<name>.crt` and `<name>.key`.
pub fn self_signed(folder: &Path, name: &str, alternative: &str) {
    let (key, certificate) = (format!("{name}.key"), format!("{name}.crt"));
    let made = Command::new("openssl")
        .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"])
        .args(["-days", "2", "-subj", "/CN=test", "-addext", &format!("subjectAltName={alternative}")])
        .args(["-keyout", &key, "-out", &certificate])
        .current_dir(folder)
        .output()
        .unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
}

pub struct Registry {
    child: Running,
    pub address: String,
    pub folder: TempDir,
}

/// Starts a registry; `tls` has `cert.pem` and `key.pem`. The kernel chooses the port, and the registry's log
/// tells it: a port that the test chose could be taken by another test in between.
pub async fn start(tls: Option<&Path>) -> Registry {
    started(tls, false).await
}

/// As [`start`], without TLS, for `user` with the password `secret` alone.
pub async fn start_with_htpasswd() -> Registry {
    started(None, true).await
}

async fn started(tls: Option<&Path>, with_htpasswd: bool) -> Registry {
    let folder = tempfile::tempdir().unwrap();
    let tls = tls.map_or(String::new(), |tls| {
        let (cert, key) = (tls.join("cert.pem"), tls.join("key.pem"));
        format!("  tls:\n    certificate: {}\n    key: {}\n", cert.display(), key.display())
    });
    let htpasswd = folder.path().join("htpasswd");
    std::fs::write(&htpasswd, HTPASSWD).unwrap();
    let auth = if with_htpasswd {
        format!("auth:\n  htpasswd:\n    realm: test\n    path: {}\n", htpasswd.display())
    } else {
        String::new()
    };
    let config = format!(
        "version: 0.1\nlog:\n  level: info\nstorage:\n  filesystem:\n    rootdirectory: {}\nhttp:\n  addr: 127.0.0.1:0\n{tls}{auth}",
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
    let mut registry = Registry { child: Running(child), address: String::new(), folder };
    for _ in 0..1200 {
        let text = std::fs::read_to_string(&log).unwrap();
        if let Some(address) = listening(&text) {
            registry.address = address;
            return registry;
        }
        assert!(registry.child.0.try_wait().unwrap().is_none(), "docker-registry ended: {text}");
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
        // Registries without users ignore it.
        .header("authorization", BASIC)
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

pub async fn push(registry: &Registry, repository: &str, tag: &str, image: &Built) -> String {
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
