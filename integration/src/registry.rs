//! Debian's docker-registry, twice with one storage folder: plain HTTP, and TLS with a
//! certificate of a CA made by openssl. Images are pushed to the plain one. A third one for a user alone, if a test wants it.

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result};
use bytes::Bytes;
use hyper::Method;

use crate::expect::ensure;
use crate::http::Http;
use crate::images::{Blob, Image};
use crate::isolation::command;
use crate::{proc, wait};

/// As htpasswd writes it: `user` with the password `secret`.
const HTPASSWD: &str = "user:$2y$05$abcdefghijklmnopqrstuuOQiyCxlgf/oeuTqixKmWdcYUh4Hjl0a\n";

/// A registry with all images for `user` with the password `secret`, by plain HTTP. It ends when this is dropped.
#[derive(Debug)]
pub(crate) struct Private {
    /// Its port on 127.0.0.1.
    pub(crate) port: u16,
    child: Child,
}

impl Drop for Private {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// A running pair of registries.
#[derive(Debug)]
pub(crate) struct Registry {
    dir: PathBuf,
    /// Port of the HTTP registry.
    pub(crate) port: u16,
    /// Port of the TLS registry.
    pub(crate) tls_port: u16,
    http: Http,
    children: Vec<Child>,
}

impl Registry {
    /// Starts both in `dir` and waits until they respond.
    pub(crate) async fn start(dir: &Path) -> Result<Self> {
        let dir = dir.join("registry");
        fs::create_dir_all(dir.join("data"))?;
        certificates(&dir)?;
        let (port, tls_port) = (free_port()?, free_port()?);
        let plain = config(&dir, port, None);
        let tls = config(&dir, tls_port, Some((&dir.join("server.crt"), &dir.join("server.key"))));
        let children = vec![serve(&dir, "plain", &plain)?, serve(&dir, "tls", &tls)?];
        let this = Self { dir, port, tls_port, http: Http::new(), children };
        wait::until("the registry to answer", Duration::from_secs(20), || async {
            this.http.get(&format!("http://127.0.0.1:{port}/v2/")).await.map(Some)
        })
        .await?;
        wait::until_true("the TLS registry to listen", Duration::from_secs(20), || {
            std::net::TcpStream::connect(("127.0.0.1", tls_port)).is_ok()
        })
        .await?;
        Ok(this)
    }

    /// Starts a registry with the same images that asks for user and password.
    pub(crate) async fn private(&self) -> Result<Private> {
        let (port, users) = (free_port()?, self.dir.join("htpasswd"));
        fs::write(&users, HTPASSWD)?;
        let auth = format!("auth:\n  htpasswd:\n    realm: test\n    path: {}\n", users.display());
        let child = serve(&self.dir, "private", &(config(&self.dir, port, None) + &auth))?;
        let this = Private { port, child };
        wait::until_true("the private registry to listen", Duration::from_secs(20), || {
            std::net::TcpStream::connect(("127.0.0.1", port)).is_ok()
        })
        .await?;
        Ok(this)
    }

    /// The CA that signed the TLS registry's certificate.
    pub(crate) fn ca(&self) -> PathBuf {
        self.dir.join("ca.crt")
    }

    /// `127.0.0.1:PORT/name`.
    pub(crate) fn plain(&self, name: &str) -> String {
        format!("127.0.0.1:{}/{name}", self.port)
    }

    /// The file of a blob in the registry's storage; tests of hostile registries change it.
    pub(crate) fn blob_file(&self, digest: &str) -> PathBuf {
        let hex = digest.trim_start_matches("sha256:");
        self.dir
            .join("data/docker/registry/v2/blobs/sha256")
            .join(hex.get(..2).unwrap_or_default())
            .join(hex)
            .join("data")
    }

    /// Pushes an image with everything it refers to; returns its manifest's digest.
    pub(crate) async fn push(&self, name: &str, tag: &str, image: &Image) -> Result<String> {
        for blob in &image.blobs {
            self.push_blob(name, blob).await?;
        }
        for child in &image.children {
            self.push_manifest(name, &child.digest, &child.media_type, &child.bytes).await?;
        }
        self.push_manifest(name, tag, &image.manifest.media_type, &image.manifest.bytes).await?;
        Ok(image.manifest.digest.clone())
    }

    /// Reads all blobs of an image once, as a pull does.
    pub(crate) async fn read(&self, name: &str, image: &Image) -> Result<()> {
        for blob in &image.blobs {
            let url = format!("http://127.0.0.1:{}/v2/{name}/blobs/{}", self.port, blob.digest);
            let got = self.http.send(Method::GET, &url, None, Bytes::new()).await?;
            ensure!(
                got.body.len() == blob.bytes.len(),
                "{url}: {} of {} bytes",
                got.body.len(),
                blob.bytes.len()
            );
        }
        Ok(())
    }

    async fn push_blob(&self, name: &str, blob: &Blob) -> Result<()> {
        let base = format!("http://127.0.0.1:{}", self.port);
        let head = self
            .http
            .send(Method::HEAD, &format!("{base}/v2/{name}/blobs/{}", blob.digest), None, Bytes::new())
            .await?;
        if head.status.is_success() {
            return Ok(());
        }
        let begun = self
            .http
            .send(Method::POST, &format!("{base}/v2/{name}/blobs/uploads/"), None, Bytes::new())
            .await?;
        let place = begun.location.clone().context("registry gave no upload location")?;
        let place = if place.starts_with('/') { format!("{base}{place}") } else { place };
        let mark = if place.contains('?') { '&' } else { '?' };
        let put = self
            .http
            .send(
                Method::PUT,
                &format!("{place}{mark}digest={}", blob.digest),
                Some("application/octet-stream"),
                blob.bytes.clone(),
            )
            .await?;
        ensure!(
            put.status.is_success(),
            "push blob {} of {name}: {}",
            blob.digest,
            String::from_utf8_lossy(&put.body)
        );
        Ok(())
    }

    async fn push_manifest(
        &self,
        name: &str,
        reference: &str,
        media_type: &str,
        bytes: &Bytes,
    ) -> Result<()> {
        let url = format!("http://127.0.0.1:{}/v2/{name}/manifests/{reference}", self.port);
        let put = self.http.send(Method::PUT, &url, Some(media_type), bytes.clone()).await?;
        ensure!(
            put.status.is_success(),
            "the registry refused {name}:{reference}: {}",
            String::from_utf8_lossy(&put.body)
        );
        Ok(())
    }

    /// Returns when all earlier requests are in the log of the HTTP registry.
    pub(crate) async fn settled(&self) -> Result<()> {
        let mark = format!("/v2/?mark={}", crate::shapes::unique());
        self.http.get(&format!("http://127.0.0.1:{}{mark}", self.port)).await?;
        wait::until_true(
            &format!("the registry to log the request of {mark}"),
            Duration::from_secs(20),
            || self.requests(&format!("{mark} ")) > 0,
        )
        .await
    }

    /// Number of successful requests to the HTTP registry whose log line contains `text`.
    pub(crate) fn requests(&self, text: &str) -> usize {
        let log = fs::read_to_string(self.dir.join("plain.log")).unwrap_or_default();
        log.lines()
            .filter(|l| l.contains("\" 200 ") || l.contains("\" 206 "))
            .filter(|l| l.contains(text))
            .count()
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        for child in &mut self.children {
            drop(child.kill());
            drop(child.wait());
        }
    }
}

fn serve(dir: &Path, name: &str, config: &str) -> Result<Child> {
    let file = dir.join(format!("{name}.yml"));
    fs::write(&file, config)?;
    proc::start(Command::new("docker-registry").arg("serve").arg(&file), &dir.join(format!("{name}.log")))
        .context("the Debian package docker-registry is needed")
}

fn config(dir: &Path, port: u16, tls: Option<(&Path, &Path)>) -> String {
    let tls = tls.map_or_else(String::new, |(c, k)| {
        format!("  tls:\n    certificate: {}\n    key: {}\n", c.display(), k.display())
    });
    format!(
        "version: 0.1\nlog:\n  accesslog:\n    disabled: false\nstorage:\n  filesystem:\n    rootdirectory: {}\n  delete:\n    enabled: true\nhttp:\n  addr: :{port}\n{tls}",
        dir.join("data").display()
    )
}

#[expect(clippy::too_many_lines, reason = "the arguments of openssl, one in each line")]
fn certificates(dir: &Path) -> Result<()> {
    let path = |name: &str| dir.join(name).display().to_string();
    command(
        "openssl",
        &[
            "req",
            "-x509",
            "-newkey",
            "rsa:2048",
            "-nodes",
            "-days",
            "30",
            "-subj",
            "/CN=copepod test CA",
            "-addext",
            "basicConstraints=critical,CA:TRUE",
            "-keyout",
            &path("ca.key"),
            "-out",
            &path("ca.crt"),
        ],
    )?;
    command(
        "openssl",
        &[
            "req",
            "-newkey",
            "rsa:2048",
            "-nodes",
            "-subj",
            "/CN=127.0.0.1",
            "-keyout",
            &path("server.key"),
            "-out",
            &path("server.csr"),
        ],
    )?;
    fs::write(
        dir.join("ext"),
        "subjectAltName=IP:127.0.0.1,DNS:localhost\nbasicConstraints=CA:FALSE\nextendedKeyUsage=serverAuth\n",
    )?;
    command(
        "openssl",
        &[
            "x509",
            "-req",
            "-days",
            "30",
            "-in",
            &path("server.csr"),
            "-CA",
            &path("ca.crt"),
            "-CAkey",
            &path("ca.key"),
            "-CAcreateserial",
            "-extfile",
            &path("ext"),
            "-out",
            &path("server.crt"),
        ],
    )?;
    Ok(())
}

/// An unused TCP port; each is returned once per run. The tests have their own network namespace, where
/// outgoing connections use ports from 32768 on, so nothing else takes the port before it is used.
pub(crate) fn free_port() -> Result<u16> {
    static NEXT: AtomicU16 = AtomicU16::new(20_000);
    loop {
        let port = NEXT.fetch_add(1, Ordering::Relaxed);
        ensure!(port < 32_768, "no port is left");
        if TcpListener::bind(("0.0.0.0", port)).is_ok() {
            return Ok(port);
        }
    }
}
