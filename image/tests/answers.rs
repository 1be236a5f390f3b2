//! What is read of a registry's answers: the table of docs/image-members.md, each line proved by a pull from a registry
//! that answers so.
#![allow(missing_docs)]

mod common;

use common::{Codec, Node, build, digest_of, tar};
use members::{Member, check, honoured, ignored, markdown, refused};
use serde_json::{Value, json};
use std::path::Path;
use std::sync::{Arc, Mutex};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

/// `manifest` and `layer` are the answers for these, with their status and headers; `challenge` are the parameters of
/// `WWW-Authenticate: Bearer`, `token` is the answer of the realm.
const ANSWERS: &[Member] = &[
    honoured("/challenge/service", "\"other\"", "Sent to the realm"),
    honoured(
        "/challenge/scope",
        "\"repository:other:pull\"",
        "Sent to the realm; absent, it is that of a pull of the repository",
    ),
    ignored(
        "/challenge/error",
        "\"invalid_token\"",
        "Another token is requested anyhow, but never twice in vain",
    ),
    ignored("/challenge/error_description", "\"x\"", "As `error`"),
    honoured("/token/token", "\"t2\"", "The bearer token"),
    honoured("/token/access_token", "\"t3\"", "The same by OAuth2's name, if `token` is absent"),
    ignored("/token/expires_in", "1", "A token that has expired brings another challenge"),
    ignored("/token/issued_at", "\"2024-01-01T00:00:00Z\"", "As `expires_in`"),
    ignored("/token/refresh_token", "\"r\"", "A token is kept for one pull"),
    ignored("/token/token_type", "\"Basic\"", "Only bearer tokens are defined"),
    ignored("/token/scope", "\"none\"", "The registry decides what the token is for"),
    honoured(
        "/manifest/status",
        "404",
        "200, and redirects, are followed; others are errors, after retries for 408, 429 and those from 500 on",
    ),
    honoured(
        "/manifest/Content-Type",
        "\"application/vnd.docker.distribution.manifest.v1+prettyjws\"",
        "If the document has no `mediaType`. Without parameters",
    ),
    refused(
        "/manifest/Docker-Content-Digest",
        "\"sha256:cccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccc\"",
        "Must be that of the content, or no digest at all. With sha512 it becomes the name of the manifest",
    ),
    ignored("/manifest/Docker-Distribution-Api-Version", "\"registry/2.0\"", "All have version 2"),
    ignored("/manifest/OCI-Subject", "\"sha256:00\"", "For pushes"),
    ignored(
        "/manifest/OCI-Filters-Applied",
        "\"artifactType\"",
        "For lists of referrers, which are not requested",
    ),
    ignored("/manifest/Link", "\"</v2/_catalog>; rel=next\"", "For lists of tags, which are not requested"),
    ignored("/manifest/Warning", "\"299 - text\"", "Text for people, which a kubelet could not show"),
    ignored("/manifest/ETag", "\"x\"", "The digest is enough"),
    ignored(
        "/manifest/Cache-Control",
        "\"no-store\"",
        "A digest never changes, and a tag is always requested again",
    ),
    honoured("/layer/status", "404", "200, or 206 for the rest of a broken transfer, and redirects"),
    refused("/layer/Content-Length", "7", "Must be the size that the manifest states"),
    refused("/layer/Content-Range", "\"bytes 7-9/10\"", "With 206, must begin where the transfer broke"),
    ignored(
        "/layer/Content-Type",
        "\"text/html\"",
        "The manifest has the media type, and the content tells how it is compressed",
    ),
    ignored("/layer/Docker-Content-Digest", "\"x\"", "The manifest has the digest"),
    ignored("/layer/Accept-Ranges", "\"none\"", "Whether a range was honoured shows in the answer"),
];

fn answers() -> Value {
    json!({
        "challenge": {"service": "registry", "scope": "repository:a/b:pull"},
        "token": {"token": null, "access_token": "t1"},
        "manifest": {"status": 200},
        "layer": {"status": 206, "Content-Range": "bytes 0-"},
    })
}

#[test]
fn every_part_of_an_answer() {
    let page = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/image-members.md");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    check(&answers(), ANSWERS, |answers| runtime.block_on(pull(answers)));
    members::document(Path::new(page), "answers", &markdown(ANSWERS));
}

/// The image that a pull gives, and all requests that it sends.
async fn pull(answers: &Value) -> Result<(String, Vec<String>), String> {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let log = Arc::new(Mutex::new(Vec::new()));
    let server = tokio::spawn({
        let (answers, address, log) = (answers.clone(), address.clone(), log.clone());
        async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, answers.clone(), address.clone(), log.clone()));
            }
        }
    });
    let node = Node::new();
    let record = node.store.pull(&format!("{address}/a/b:v"), None).await.map_err(|error| error.to_string());
    server.abort();
    let requests = std::mem::take(&mut *log.lock().unwrap());
    Ok((record?.id.clone(), requests))
}

/// Answers one request and closes the connection.
async fn serve(mut stream: TcpStream, answers: Value, address: String, log: Arc<Mutex<Vec<String>>>) {
    let mut request = Vec::new();
    while !request.ends_with(b"\r\n\r\n") {
        match stream.read_u8().await {
            Ok(byte) => request.push(byte),
            Err(_) => return,
        }
    }
    let request = String::from_utf8(request).unwrap();
    let first = request.lines().next().unwrap_or_default().to_owned();
    let authorization = request.lines().find(|line| line.to_ascii_lowercase().starts_with("authorization:"));
    log.lock().unwrap().push(format!("{first} {}", authorization.unwrap_or_default()));
    let path = first.split(' ').nth(1).unwrap_or_default();
    let response = respond(path, authorization.is_some(), &answers, &address);
    // A client that has refused the head reads no more.
    drop(stream.write_all(&response).await);
    drop(stream.shutdown().await);
}

fn respond(path: &str, has_token: bool, answers: &Value, address: &str) -> Vec<u8> {
    let layer = tar(&[("file", b"content")]);
    let image = build(&[(layer.clone(), Codec::Plain)], "");
    if path.starts_with("/token") {
        return response(&json!({"status": 200}), answers["token"].to_string().as_bytes());
    }
    if !has_token {
        let parameters = answers["challenge"].as_object().unwrap().iter();
        let parameters =
            parameters.map(|(name, value)| format!(",{name}=\"{}\"", text(value).replace('"', "'")));
        let challenge = format!("Bearer realm=\"http://{address}/token\"{}", parameters.collect::<String>());
        return response(&json!({"status": 401, "WWW-Authenticate": challenge}), b"");
    }
    if path.contains("/manifests/") {
        let mut manifest: Value = serde_json::from_slice(&image.manifest).unwrap();
        manifest["mediaType"] = Value::Null;
        return response(&answers["manifest"], manifest.to_string().as_bytes());
    }
    if path.contains(&digest_of(&layer)) {
        return response(&answers["layer"], &layer);
    }
    response(&json!({"status": 200}), &image.blobs[&image.config])
}

/// The bytes of an answer with this status and these headers.
fn response(head: &Value, body: &[u8]) -> Vec<u8> {
    let mut headers = head.as_object().cloned().unwrap_or_default();
    headers.entry("Content-Length").or_insert(body.len().into());
    let headers = headers.iter().filter(|(name, _)| *name != "status");
    let headers: String = headers.map(|(name, value)| format!("{name}: {}\r\n", text(value))).collect();
    let head = format!("HTTP/1.1 {} x\r\nConnection: close\r\n{headers}\r\n", head["status"]);
    [head.as_bytes(), body].concat()
}

/// A string as it is, any other value as JSON.
fn text(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}
