//! A connection: one request, and the session that it upgrades to.

use std::convert::Infallible;
use std::future::ready;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use http::header::{self, HeaderValue};
use http::request::Parts;
use http::{Method, Request, Response, StatusCode};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use rustix::net::sockopt;
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::backend::{Command, Network};
use super::places::{Full, Place};
use super::socket::Stream;
use super::tokens::{IssueError, Kind, Target};
use super::{Shared, forward, link, remote};
use crate::remote::{Protocol, Streams};
use crate::{forward as forwarding, negotiate};

/// Time limit from accept to the answer. A client sends its request at once.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// Maximum number of bytes of a request, and of what a client sends before it has the answer.
const MAX_REQUEST: usize = 16 * 1024;
/// After this time without a packet of the client, and with nothing left to acknowledge, TCP probes whether it is still there.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(60);
/// Number of probes without an answer after which the connection fails.
const KEEPALIVE_PROBES: u32 = 4;
/// Time between two probes.
const KEEPALIVE_PAUSE: Duration = Duration::from_secs(15);

/// The answer to a request that is refused.
type Refused = Box<Response<String>>;

/// Why no request was answered on a connection.
#[derive(Debug, thiserror::Error)]
enum Failed {
    #[error("TLS")]
    Tls(#[from] std::io::Error),
    #[error("HTTP")]
    Http(#[from] hyper::Error),
}

/// A session that was agreed on.
enum Work {
    Remote(Protocol, Streams, Box<dyn Command>),
    Forward(Box<forwarding::Session>, Arc<dyn Network>),
}

/// A session, and its place among all.
struct Begun {
    work: Work,
    place: Place,
}

/// Serves a connection to its end. `place` is its place among the handshakes.
pub(super) async fn connection(shared: Arc<Shared>, stream: TcpStream, place: u64) {
    let upgraded = upgrade(&shared, stream).await;
    shared.handshakes.end(place);
    let Some((stream, early, Begun { work, place })) = upgraded else { return };
    let watch = match stream.watch() {
        Ok(watch) => watch,
        Err(error) => return tracing::warn!(%error, "a streaming session was not begun"),
    };
    match work {
        Work::Remote(protocol, streams, command) => {
            remote::run(stream, watch, &early, protocol, streams, command, &shared).await;
        }
        Work::Forward(session, network) => {
            forward::run(stream, watch, &early, *session, (network, place.owner()), &shared).await;
        }
    }
    drop(place);
}

/// Reads a request and answers it. Returns the connection, what the client has sent after the request, and the session;
/// `None` if the request was refused. A refused client may keep its connection open: this function waits for its end, so that
/// it counts among the connections without a token.
async fn upgrade(shared: &Arc<Shared>, stream: TcpStream) -> Option<(Stream, Vec<u8>, Begun)> {
    if let Err(error) = prepare(&stream) {
        tracing::debug!(%error, "cannot set the options of a streaming connection");
    }
    let begun = Arc::new(Mutex::new(None));
    let service = service_fn({
        let (shared, begun) = (Arc::clone(shared), Arc::clone(&begun));
        move |request: Request<hyper::body::Incoming>| {
            let (request, _) = request.into_parts();
            let response = match begin(&shared, &request) {
                Ok((session, response)) => {
                    *begun.lock().unwrap_or_else(PoisonError::into_inner) = Some(session);
                    response.map(|()| String::new())
                }
                Err(mut refusal) => {
                    refusal.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
                    *refusal
                }
            };
            ready(Ok::<_, Infallible>(response))
        }
    });
    let http = async {
        let stream = Stream::accepted(stream, shared.tls.as_deref()).await?;
        let mut http = http1::Builder::new();
        http.max_buf_size(MAX_REQUEST);
        http.serve_connection(TokioIo::new(stream), service).without_shutdown().await.map_err(Failed::from)
    };
    let (stream, early) = match timeout(HANDSHAKE, http).await {
        Ok(Ok(parts)) => (parts.io.into_inner(), parts.read_buf.to_vec()),
        Ok(Err(error)) => {
            let error = &error as &dyn std::error::Error;
            tracing::debug!(error, "a streaming request failed");
            return None;
        }
        Err(_) => {
            tracing::debug!("no streaming request within {HANDSHAKE:?}");
            return None;
        }
    };
    let begun = begun.lock().unwrap_or_else(PoisonError::into_inner).take();
    let Some(begun) = begun else {
        link::close(stream).await;
        return None;
    };
    Some((stream, early, begun))
}

/// No delay, because frames are small and the other side waits for them; keepalive, because a client may vanish without
/// closing the connection.
fn prepare(stream: &TcpStream) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    sockopt::set_socket_keepalive(stream, true)?;
    sockopt::set_tcp_keepidle(stream, KEEPALIVE_IDLE)?;
    sockopt::set_tcp_keepintvl(stream, KEEPALIVE_PAUSE)?;
    sockopt::set_tcp_keepcnt(stream, KEEPALIVE_PROBES)?;
    Ok(())
}

/// The session that a request begins, and the answer to it; or the refusal.
fn begin(shared: &Shared, request: &Parts) -> Result<(Begun, Response<()>), Refused> {
    if request.method != Method::GET && request.method != Method::POST {
        let mut refusal = refuse(StatusCode::METHOD_NOT_ALLOWED, "the methods are GET and POST");
        refusal.headers_mut().insert(header::ALLOW, HeaderValue::from_static("GET, POST"));
        return Err(refusal);
    }
    let (target, owner) = route(request.uri.path())
        .and_then(|(kind, token)| shared.tokens.redeem(kind, token, Instant::now()))
        .ok_or_else(|| {
            refuse(StatusCode::NOT_FOUND, "this URL was not issued, was used before or has expired")
        })?;
    let place = shared.sessions.take(&owner).map_err(|full| {
        let status = match full {
            Full::Node(_) => StatusCode::SERVICE_UNAVAILABLE,
            Full::Owner(_) => StatusCode::TOO_MANY_REQUESTS,
        };
        refuse(status, &IssueError::Sessions(full).to_string())
    })?;
    let (work, response) = match target {
        Target::Exec(streams, command) | Target::Attach(streams, command) => {
            let upgrade = negotiate::remote(request).map_err(|refusal| Box::new(refusal.response()))?;
            (Work::Remote(upgrade.protocol, streams, command), upgrade.response)
        }
        Target::Forward(ports, network) => {
            let upgrade = negotiate::forward(request).map_err(|refusal| Box::new(refusal.response()))?;
            let session = forwarding::Session::new(upgrade.protocol, &ports, shared.creation)
                .map_err(|error| refuse(StatusCode::BAD_REQUEST, &error.to_string()))?;
            (Work::Forward(Box::new(session), network), upgrade.response)
        }
    };
    Ok((Begun { work, place }, response))
}

/// The parts of a path such as `/exec/TOKEN`.
fn route(path: &str) -> Option<(Kind, &str)> {
    let (kind, token) = path.strip_prefix('/')?.split_once('/')?;
    Some((Kind::named(kind)?, token))
}

fn refuse(status: StatusCode, why: &str) -> Refused {
    let mut response = Box::new(Response::new(format!("{why}\n")));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}
