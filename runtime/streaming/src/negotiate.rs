//! Chooses a protocol from the headers of a request, and answers.
//!
//! | request | supported; the first of the client's list that is supported is taken |
//! | --- | --- |
//! | exec, attach by SPDY | `v4.channel.k8s.io`, `v3.…`, `v2.…`, `channel.k8s.io` |
//! | exec, attach by WebSocket | `v5.channel.k8s.io`, `v4.…`, `v4.base64.…`, `base64.channel.k8s.io`, `channel.k8s.io`, none |
//! | port-forward by SPDY | `portforward.k8s.io` |
//! | port-forward by WebSocket | `SPDY/3.1+portforward.k8s.io`, `v4.channel.k8s.io`, `v4.base64.…`, none |
//!
//! The lists and the codes of refusals are those of Go's server, with v5 and the tunnel added; clients fall back from
//! WebSocket to SPDY on any of them.

#[cfg(test)]
mod tests;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Method, Response, StatusCode, request::Parts};
use sha1::{Digest as _, Sha1};

use crate::remote::Version;
use crate::websocket::Codec;
use crate::{forward, remote};

/// SPDY's header for protocols: those that the client offers, and in the response the chosen one.
const SPDY_PROTOCOL: HeaderName = HeaderName::from_static("x-stream-protocol-version");
/// SPDY's header of a refusal: the protocols that the client could have offered.
const SPDY_ACCEPTED: HeaderName = HeaderName::from_static("x-accepted-stream-protocol-versions");
/// What is hashed with the client's key (RFC 6455, 4.2.2).
const WEBSOCKET_GUID: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";
/// The only version of WebSocket.
const WEBSOCKET_VERSION: &str = "13";

/// Names of protocols, and what each means. The empty name is for clients that offer none.
type Names<P> = &'static [(&'static str, P)];

const REMOTE_SPDY: Names<remote::Protocol> = &[
    ("v4.channel.k8s.io", remote::Protocol::Spdy(Version::V4)),
    ("v3.channel.k8s.io", remote::Protocol::Spdy(Version::V3)),
    ("v2.channel.k8s.io", remote::Protocol::Spdy(Version::V2)),
    ("channel.k8s.io", remote::Protocol::Spdy(Version::V1)),
];

const REMOTE_WEBSOCKET: Names<remote::Protocol> = &[
    ("v5.channel.k8s.io", remote::Protocol::WebSocket(Version::V5, Codec::Binary)),
    ("v4.channel.k8s.io", remote::Protocol::WebSocket(Version::V4, Codec::Binary)),
    ("v4.base64.channel.k8s.io", remote::Protocol::WebSocket(Version::V4, Codec::Base64)),
    ("base64.channel.k8s.io", remote::Protocol::WebSocket(Version::V1, Codec::Base64)),
    ("channel.k8s.io", remote::Protocol::WebSocket(Version::V1, Codec::Binary)),
    ("", remote::Protocol::WebSocket(Version::V1, Codec::Binary)),
];

const FORWARD_SPDY: Names<forward::Protocol> = &[("portforward.k8s.io", forward::Protocol::Spdy)];

const FORWARD_WEBSOCKET: Names<forward::Protocol> = &[
    ("SPDY/3.1+portforward.k8s.io", forward::Protocol::Tunnel),
    ("v4.channel.k8s.io", forward::Protocol::Channels(Codec::Binary)),
    ("v4.base64.channel.k8s.io", forward::Protocol::Channels(Codec::Base64)),
    ("", forward::Protocol::Channels(Codec::Binary)),
];

/// What was agreed on.
#[derive(Debug)]
pub struct Upgrade<P> {
    /// The protocol after the response. The HTTP parser may have read the first bytes of it with the request.
    pub protocol: P,
    /// 101 with its headers.
    pub response: Response<()>,
}

/// Why a request is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// No upgrade to a protocol that this server has.
    #[error(
        "unable to upgrade: the request asks neither for SPDY/3.1 nor for websocket (headers Connection, Upgrade)"
    )]
    NoUpgrade,
    /// SPDY without a protocol on top.
    #[error("unable to upgrade: header X-Stream-Protocol-Version is missing or empty")]
    NoProtocol,
    /// Nothing in common.
    #[error("unable to upgrade: none of the offered protocols is one of: {}", .ours.join(", "))]
    Protocol {
        /// What could have been offered.
        ours: Vec<&'static str>,
        /// The list goes into a header of its own.
        spdy: bool,
    },
    /// WebSocket by a method other than GET, or without a proper key (RFC 6455, 4.2.1).
    #[error("unable to upgrade: WebSocket needs GET and a header Sec-WebSocket-Key of 16 bytes in base64")]
    Handshake,
    /// Another version of WebSocket.
    #[error("unable to upgrade: Sec-WebSocket-Version is not 13")]
    Version,
}

impl Refusal {
    /// The answer: 400, 403 or 426, with the reason as text.
    pub fn response(&self) -> Response<String> {
        let mut response = Response::new(format!("{self}\n"));
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
        headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        let status = match self {
            Self::NoUpgrade | Self::NoProtocol | Self::Handshake => StatusCode::BAD_REQUEST,
            Self::Protocol { ours, spdy } => {
                for name in ours.iter().filter(|_| *spdy) {
                    headers.append(SPDY_ACCEPTED, HeaderValue::from_static(name));
                }
                StatusCode::FORBIDDEN
            }
            Self::Version => {
                headers.insert(header::SEC_WEBSOCKET_VERSION, HeaderValue::from_static(WEBSOCKET_VERSION));
                StatusCode::UPGRADE_REQUIRED
            }
        };
        *response.status_mut() = status;
        response
    }
}

/// For exec and attach.
///
/// # Errors
/// [`Refusal`].
pub fn remote(request: &Parts) -> Result<Upgrade<remote::Protocol>, Refusal> {
    negotiate(request, REMOTE_SPDY, REMOTE_WEBSOCKET)
}

/// For port-forward.
///
/// # Errors
/// [`Refusal`].
pub fn forward(request: &Parts) -> Result<Upgrade<forward::Protocol>, Refusal> {
    negotiate(request, FORWARD_SPDY, FORWARD_WEBSOCKET)
}

fn negotiate<P: Copy>(request: &Parts, spdy: Names<P>, websocket: Names<P>) -> Result<Upgrade<P>, Refusal> {
    let headers = &request.headers;
    let asks = |word: &str| contains(headers, &header::UPGRADE, word);
    if !contains(headers, &header::CONNECTION, "upgrade") {
        return Err(Refusal::NoUpgrade);
    }
    if asks("websocket") {
        return by_websocket(request, websocket);
    }
    if !asks("spdy/3.1") {
        return Err(Refusal::NoUpgrade);
    }
    let offered = list(headers, &SPDY_PROTOCOL);
    if offered.is_empty() {
        return Err(Refusal::NoProtocol);
    }
    let (name, protocol) = choose(&offered, spdy, true)?;
    Ok(Upgrade { protocol, response: switch("SPDY/3.1", [(SPDY_PROTOCOL, HeaderValue::from_static(name))]) })
}

/// RFC 6455, 4.2.
fn by_websocket<P: Copy>(request: &Parts, ours: Names<P>) -> Result<Upgrade<P>, Refusal> {
    let headers = &request.headers;
    let text = |name: HeaderName| headers.get(name).and_then(|value: &HeaderValue| value.to_str().ok());
    if request.method != Method::GET {
        return Err(Refusal::Handshake);
    }
    if text(header::SEC_WEBSOCKET_VERSION) != Some(WEBSOCKET_VERSION) {
        return Err(Refusal::Version);
    }
    let key = text(header::SEC_WEBSOCKET_KEY).map(str::trim).ok_or(Refusal::Handshake)?;
    let proper = STANDARD.decode(key).is_ok_and(|bytes| bytes.len() == 16);
    let accept = HeaderValue::try_from(accept(key)).ok().filter(|_| proper).ok_or(Refusal::Handshake)?;
    let mut offered = list(headers, &header::SEC_WEBSOCKET_PROTOCOL);
    if offered.is_empty() {
        offered.push("");
    }
    let (name, protocol) = choose(&offered, ours, false)?;
    let chosen = (!name.is_empty()).then(|| (header::SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(name)));
    let headers = [(header::SEC_WEBSOCKET_ACCEPT, accept)].into_iter().chain(chosen);
    Ok(Upgrade { protocol, response: switch("websocket", headers) })
}

/// The client's first that is among ours.
fn choose<P: Copy>(offered: &[&str], ours: Names<P>, spdy: bool) -> Result<(&'static str, P), Refusal> {
    let known = |offer: &&str| ours.iter().find(|(name, _)| name == offer).copied();
    offered.iter().find_map(known).ok_or_else(|| Refusal::Protocol {
        ours: ours.iter().map(|(name, _)| *name).filter(|name| !name.is_empty()).collect(),
        spdy,
    })
}

/// 101 with the headers that every upgrade has, and `more`.
fn switch(to: &'static str, more: impl IntoIterator<Item = (HeaderName, HeaderValue)>) -> Response<()> {
    let mut response = Response::new(());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(header::UPGRADE, HeaderValue::from_static(to));
    headers.extend(more);
    response
}

/// Answer to a WebSocket key: it shows that this server speaks WebSocket and that no cache answered.
fn accept(key: &str) -> String {
    STANDARD.encode(Sha1::new().chain_update(key).chain_update(WEBSOCKET_GUID).finalize())
}

/// Whether a header contains `word` (lower case) in any of its lines, compared without case, as Go's server does.
fn contains(headers: &HeaderMap, name: &HeaderName, word: &str) -> bool {
    let mut lines = headers.get_all(name).iter().filter_map(|line| line.to_str().ok());
    lines.any(|line| line.to_ascii_lowercase().contains(word))
}

/// The names in a header: lines with commas between them.
fn list<'h>(headers: &'h HeaderMap, name: &HeaderName) -> Vec<&'h str> {
    let lines = headers.get_all(name).iter().filter_map(|line| line.to_str().ok());
    lines.flat_map(|line| line.split(',')).map(str::trim).filter(|name| !name.is_empty()).collect()
}
