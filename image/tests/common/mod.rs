//! Images built from scratch, and a registry that misbehaves on request.
#![allow(dead_code, missing_docs, unreachable_pub, clippy::unwrap_used)]

pub mod archives;
pub mod programs;

use bytes::Bytes;
use futures_util::stream;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use image::{ImageStore, Options};
use sha2::{Digest as _, Sha256};
use std::collections::HashMap;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::runtime::Handle;
use tokio::task::JoinHandle;

pub const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
pub const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub const INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

#[derive(Clone, Copy)]
pub enum Codec {
    Plain,
    Gzip,
    Zstd,
    /// With the largest window, of 128 MiB.
    ZstdLong,
}

impl Codec {
    fn suffix(self) -> &'static str {
        match self {
            Self::Plain => "",
            Self::Gzip => "+gzip",
            Self::Zstd | Self::ZstdLong => "+zstd",
        }
    }
    fn encode(self, plain: &[u8]) -> Vec<u8> {
        match self {
            Self::Plain => plain.to_vec(),
            Self::Gzip => {
                let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
                encoder.write_all(plain).unwrap();
                encoder.finish().unwrap()
            }
            Self::Zstd => zstd::bulk::compress(plain, 3).unwrap(),
            Self::ZstdLong => {
                let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), 1).unwrap();
                encoder.window_log(27).unwrap();
                encoder.write_all(plain).unwrap();
                encoder.finish().unwrap()
            }
        }
    }
}

/// A layer with these files.
pub fn tar(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, content) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1);
        builder.append_data(&mut header, name, *content).unwrap();
    }
    builder.into_inner().unwrap()
}

/// Blobs by digest, and the manifest that refers to them.
#[derive(Clone, Default)]
pub struct Built {
    pub blobs: HashMap<String, Vec<u8>>,
    pub manifest: Vec<u8>,
    pub config: String,
    pub layers: Vec<String>,
}

impl Built {
    pub fn digest(&self) -> String {
        digest_of(&self.manifest)
    }
}

/// Builds an image. Images with the same layers differ by `user`.
pub fn build(layers: &[(Vec<u8>, Codec)], user: &str) -> Built {
    let mut built = Built::default();
    let mut descriptors = Vec::new();
    let mut diff_ids = Vec::new();
    for (plain, codec) in layers {
        let blob = codec.encode(plain);
        let digest = digest_of(&blob);
        descriptors.push(serde_json::json!({
            "mediaType": format!("{LAYER}{}", codec.suffix()), "digest": digest, "size": blob.len()}));
        diff_ids.push(digest_of(plain));
        built.layers.push(digest.clone());
        built.blobs.insert(digest, blob);
    }
    let config = serde_json::to_vec(&serde_json::json!({
        "architecture": "amd64", "os": "linux",
        "config": {"User": user, "Env": ["PATH=/bin"], "Entrypoint": ["/bin/sh"], "Labels": {"a": "b"}},
        "rootfs": {"type": "layers", "diff_ids": diff_ids}}))
    .unwrap();
    built.config = digest_of(&config);
    built.manifest = serde_json::to_vec(&serde_json::json!({
        "schemaVersion": 2, "mediaType": MANIFEST,
        "config": {"mediaType": CONFIG, "digest": built.config, "size": config.len()},
        "layers": descriptors}))
    .unwrap();
    built.blobs.insert(built.config.clone(), config);
    built
}

/// Incompressible bytes, the same for the same seed.
pub fn noise(length: usize, mut seed: u64) -> Vec<u8> {
    let next = || {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed.to_le_bytes()[0]
    };
    std::iter::repeat_with(next).take(length).collect()
}

/// What the registry does wrong.
#[derive(Clone, Debug)]
pub enum Fault {
    /// This status, with a `Retry-After`.
    Status(u16, Option<&'static str>),
    /// This status, with a body.
    Says(u16, &'static str),
    /// 503 with this body, and a `Retry-After` that is too long to wait for.
    Busy(&'static str),
    /// Half of the body, then the connection is closed.
    Truncate,
    /// The body in 20 pieces, with this many milliseconds between them.
    Slow(u64),
    /// Headers, then nothing.
    Hang,
    /// No response at all.
    Silence,
    /// One bit is flipped.
    Flip,
    /// The body twice.
    Longer,
    /// A redirect to another host.
    Redirect(String),
}

/// The registry's content and behaviour, and its log of requests.
#[derive(Default)]
pub struct Shared {
    /// By digest.
    pub blobs: HashMap<String, Vec<u8>>,
    /// Content and media type, by `<repository>/manifests/<tag or digest>`.
    pub manifests: HashMap<String, (Vec<u8>, String)>,
    /// The next so many requests whose path contains the text have the fault.
    pub faults: Vec<(String, usize, Fault)>,
    /// Method, path with query, Authorization, Range.
    pub log: Vec<(String, String, Option<String>, Option<String>)>,
    /// The required bearer token, its realm, and the Basic header that the realm requires.
    pub token: Option<(String, String, Option<String>)>,
    /// The required Authorization header.
    pub basic: Option<String>,
}

/// A registry that misbehaves on request.
pub struct Faulty {
    pub address: String,
    pub shared: Arc<Mutex<Shared>>,
    task: JoinHandle<()>,
}

impl Drop for Faulty {
    fn drop(&mut self) {
        self.task.abort();
    }
}

type Body = BoxBody<Bytes, io::Error>;

fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).map_err(|never| match never {}).boxed()
}

fn status(code: u16) -> Response<Body> {
    Response::builder().status(code).body(full("{}")).unwrap()
}

impl Faulty {
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let shared: Arc<Mutex<Shared>> = Arc::default();
        let state = shared.clone();
        let task = tokio::spawn(async move {
            loop {
                let Ok((stream, _)) = listener.accept().await else { return };
                let state = state.clone();
                tokio::spawn(async move {
                    let service = hyper::service::service_fn(move |request| serve(state.clone(), request));
                    hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service)
                        .await
                        .ok();
                });
            }
        });
        Self { address, shared, task }
    }

    pub fn push(&self, repository: &str, tag: &str, image: &Built) -> String {
        let mut shared = self.shared.lock().unwrap();
        shared.blobs.extend(image.blobs.clone());
        for name in [tag.to_owned(), image.digest()] {
            let content = (image.manifest.clone(), MANIFEST.to_owned());
            shared.manifests.insert(format!("{repository}/manifests/{name}"), content);
        }
        format!("{}/{repository}:{tag}", self.address)
    }

    pub fn fault(&self, path: &str, times: usize, fault: Fault) {
        self.shared.lock().unwrap().faults.push((path.to_owned(), times, fault));
    }

    /// Requests with this method whose path contains the text.
    pub fn requests_by(&self, method: &str, containing: &str) -> usize {
        let shared = self.shared.lock().unwrap();
        shared.log.iter().filter(|(by, path, ..)| by == method && path.contains(containing)).count()
    }

    pub fn requests(&self, containing: &str) -> usize {
        self.shared.lock().unwrap().log.iter().filter(|(_, path, ..)| path.contains(containing)).count()
    }
}

#[expect(clippy::too_many_lines, reason = "one request from its first check to its answer")]
async fn serve(shared: Arc<Mutex<Shared>>, request: Request<Incoming>) -> Result<Response<Body>, io::Error> {
    let path = request.uri().path_and_query().map(|path| path.as_str().to_owned()).unwrap_or_default();
    let header = |name: &str| request.headers().get(name).map(|v| v.to_str().unwrap().to_owned());
    let (authorization, range) = (header("authorization"), header("range"));
    let is_post = request.method() == Method::POST;
    let line = (request.method().to_string(), path.clone(), authorization.clone(), range.clone());
    let body = request.into_body().collect().await.map(|body| body.to_bytes()).unwrap_or_default();
    let (fault, response) = {
        let mut shared = shared.lock().unwrap();
        shared.log.push(line);
        let fault =
            shared.faults.iter_mut().find(|(part, times, _)| path.contains(part.as_str()) && *times > 0).map(
                |f| {
                    f.1 -= 1;
                    f.2.clone()
                },
            );
        (fault, answer(&shared, &path, authorization, range, is_post, &body))
    };
    let Some(fault) = fault else { return Ok(response) };
    let (mut parts, body) = response.into_parts();
    let bytes = body.collect().await.unwrap().to_bytes();
    Ok(match fault {
        Fault::Status(code, after) => {
            let mut response = status(code);
            if let Some(after) = after {
                response.headers_mut().insert("retry-after", after.parse().unwrap());
            }
            response
        }
        Fault::Says(code, words) => Response::builder().status(code).body(full(words)).unwrap(),
        Fault::Busy(words) => {
            Response::builder().status(503).header("retry-after", "3600").body(full(words)).unwrap()
        }
        Fault::Truncate => {
            let half = bytes.slice(..bytes.len() / 2);
            parts.headers.insert("content-length", bytes.len().to_string().parse().unwrap());
            let frames = stream::unfold(Some(half), |half| async move {
                if let Some(half) = half {
                    return Some((Ok(Frame::data(half)), None));
                }
                // Let the sent bytes reach the client before the connection breaks.
                tokio::time::sleep(Duration::from_millis(100)).await;
                Some((Err(io::Error::other("cut")), None))
            });
            Response::from_parts(parts, StreamBody::new(Box::pin(frames)).boxed())
        }
        Fault::Hang | Fault::Slow(_) => {
            parts.headers.insert("content-length", bytes.len().to_string().parse().unwrap());
            let pause = match fault {
                Fault::Slow(ms) => Duration::from_millis(ms),
                _ => Duration::from_secs(3600),
            };
            let pieces: Vec<Bytes> =
                bytes.chunks(bytes.len().div_ceil(20).max(1)).map(Bytes::copy_from_slice).collect();
            let frames = stream::unfold(pieces.into_iter(), move |mut pieces| async move {
                let piece = pieces.next()?;
                tokio::time::sleep(pause).await;
                Some((Ok(Frame::data(piece)), pieces))
            });
            Response::from_parts(parts, StreamBody::new(Box::pin(frames)).boxed())
        }
        Fault::Silence => {
            tokio::time::sleep(Duration::from_secs(3600)).await;
            status(500)
        }
        Fault::Flip => {
            let mut bytes = bytes.to_vec();
            let middle = bytes.len() / 2;
            bytes[middle] ^= 1;
            Response::from_parts(parts, full(bytes))
        }
        Fault::Longer => {
            parts.headers.insert("content-length", (bytes.len() * 2).to_string().parse().unwrap());
            Response::from_parts(parts, full([bytes.clone(), bytes].concat()))
        }
        Fault::Redirect(to) => Response::builder().status(307).header("location", to).body(full("")).unwrap(),
    })
}

fn challenged(challenge: &str) -> Response<Body> {
    Response::builder().status(401).header("www-authenticate", challenge).body(full("")).unwrap()
}

fn answer(
    shared: &Shared,
    path: &str,
    authorization: Option<String>,
    range: Option<String>,
    is_post: bool,
    body: &[u8],
) -> Response<Body> {
    let plain = path.split('?').next().unwrap();
    if let Some((token, realm, basic)) = &shared.token {
        if plain == "/token" {
            let refresh = String::from_utf8_lossy(body).contains("refresh_token=idtoken");
            let allowed = if is_post { refresh } else { authorization == *basic };
            if !allowed {
                return status(401);
            }
            return Response::new(full(serde_json::json!({ "token": token }).to_string()));
        }
        if authorization.as_deref() != Some(&format!("Bearer {token}")) {
            let challenge =
                format!("Bearer realm=\"{realm}\",service=\"test\",scope=\"repository:a/b:pull\"");
            return challenged(&challenge);
        }
    }
    if let Some(basic) = &shared.basic
        && authorization.as_ref() != Some(basic)
    {
        return challenged("Basic realm=x");
    }
    let Some(rest) = plain.strip_prefix("/v2/").or_else(|| plain.strip_prefix("/elsewhere/")) else {
        return status(404);
    };
    if let Some((bytes, media_type)) = shared.manifests.get(rest) {
        return Response::builder()
            .header("content-type", media_type)
            .header("docker-content-digest", digest_of(bytes))
            .body(full(bytes.clone()))
            .unwrap();
    }
    let digest = rest.rsplit('/').next().unwrap();
    let Some(bytes) = shared.blobs.get(digest).filter(|_| rest.contains("blobs/")) else {
        return status(404);
    };
    part_of(bytes, range.as_deref())
}

/// A blob, from where a `Range` header asks.
fn part_of(bytes: &[u8], range: Option<&str>) -> Response<Body> {
    let start = range.and_then(|r| r.strip_prefix("bytes=")?.strip_suffix('-')?.parse::<usize>().ok());
    match start {
        Some(start) if start < bytes.len() => Response::builder()
            .status(StatusCode::PARTIAL_CONTENT)
            .header("content-range", format!("bytes {start}-{}/{}", bytes.len() - 1, bytes.len()))
            .body(full(bytes[start..].to_vec()))
            .unwrap(),
        _ => Response::new(full(bytes.to_vec())),
    }
}

/// A name that no image has.
pub const NOTHING: &str = "registry.test/nothing:1";

/// A store in a temporary folder, with short time limits.
pub struct Node {
    pub folder: TempDir,
    pub store: ImageStore,
    upkeep: Option<JoinHandle<()>>,
}

impl Drop for Node {
    fn drop(&mut self) {
        self.end();
    }
}

impl Node {
    pub fn new() -> Self {
        Self::with(|_| {})
    }

    /// A store with other options.
    pub fn with(change: impl FnOnce(&mut Options)) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut options = Self::options(folder.path());
        change(&mut options);
        let store = ImageStore::open(options).unwrap();
        let mut node = Self { folder, store, upkeep: None };
        node.begin();
        node
    }

    /// As the daemon does once it serves.
    fn begin(&mut self) {
        let store = self.store.clone();
        self.upkeep =
            Handle::try_current().ok().map(|runtime| runtime.spawn(async move { store.upkeep().await }));
    }

    fn end(&mut self) {
        if let Some(upkeep) = self.upkeep.take() {
            upkeep.abort();
        }
    }

    pub fn options(folder: &Path) -> Options {
        let mut options = Options::new(folder.join("store"), folder.join("certs"));
        "this boot".clone_into(&mut options.boot_id);
        options.idle_timeout = Duration::from_millis(700);
        options.connect_timeout = Duration::from_millis(500);
        options
    }

    pub fn root(&self) -> PathBuf {
        self.folder.path().join("store")
    }

    pub fn hosts(&self, registry: &str, text: &str) {
        let folder = self.folder.path().join("certs").join(registry);
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join("hosts.toml"), text).unwrap();
    }

    pub fn reopen(&mut self) {
        self.reopen_with(|_| {});
    }

    pub fn reopen_with(&mut self, change: impl FnOnce(&mut Options)) {
        self.end();
        let mut options = Self::options(self.folder.path());
        change(&mut options);
        self.store = ImageStore::open(options).unwrap();
        self.begin();
    }

    pub fn count(&self, folder: &str) -> usize {
        std::fs::read_dir(self.root().join(folder)).unwrap().count()
    }

    /// Asserts that the store is empty, once the layers of failed pulls are given up; waits for deletion in the
    /// background.
    pub async fn assert_empty(&self) {
        let folders = ["blobs", "layers", "facts", "leases", "pulls", "ingest", "trash"];
        let mut left = Vec::new();
        for _ in 0..1500 {
            self.store.remove(NOTHING).await.unwrap();
            left = folders.iter().filter(|folder| self.count(folder) > 0).copied().collect();
            if left.is_empty() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("left behind in {left:?}");
    }
}

/// An image whose upper layer removes and adds files.
pub fn two_layers() -> Built {
    let lower = tar(&[("etc/name", b"lower"), ("big", &noise(200_000, 1))]);
    let upper = tar(&[("etc/.wh.name", b""), ("etc/other", b"upper")]);
    build(&[(lower, Codec::Gzip), (upper, Codec::Zstd)], "1000:1000")
}

/// The digest of bytes as registries write it.
pub fn digest_of(bytes: &[u8]) -> String {
    let hash = Sha256::digest(bytes);
    hash.iter().fold("sha256:".to_owned(), |text, byte| format!("{text}{byte:02x}"))
}
