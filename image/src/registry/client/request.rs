//! One request to a host: its credentials, its redirects, its response.

use super::fault::{Fault, Silence};
use super::{Endpoint, Http, Registry, error_body, location};
use crate::registry::auth::{self, Challenge};
use crate::registry::proxy::Kind;
use crate::registry::reach::OutOfReach;
use bytes::{Bytes, BytesMut};
use causes::with_causes;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::header::{
    ACCEPT, AUTHORIZATION, HeaderValue, LOCATION, PROXY_AUTHORIZATION, RANGE, RETRY_AFTER, USER_AGENT,
};
use hyper::{Method, Request, Response, StatusCode, Uri};
use std::error::Error;
use std::time::{Duration, SystemTime};
use tokio::time::timeout;

pub(super) const MAX_REDIRECTS: usize = 10;
/// The User-Agent of all requests.
pub(super) const PRODUCT: &str = concat!("copepod/", env!("CARGO_PKG_VERSION"));
/// Attempts of one request: each 401 may bring another challenge, such as one for a token that has expired.
const MAX_ATTEMPTS: usize = 3;
/// Time limit for the body of an error response.
const WORDS_LIMIT: Duration = Duration::from_secs(5);

/// A request to a host.
pub(super) struct Get<'a> {
    /// Path below the host's own: repository, kind and name.
    pub(super) path: &'a str,
    pub(super) accept: &'a str,
    /// Offsets of the first byte to send, and of the last one if it is not that of the blob; `None` for all bytes.
    pub(super) range: Option<(u64, Option<u64>)>,
    /// The content will be verified by a digest that did not come from this host.
    pub(super) verified: bool,
    /// Only the headers are wanted.
    pub(super) head: bool,
}

/// A request that was answered with a 401.
struct Refused {
    /// The header that was sent.
    sent: Option<HeaderValue>,
    challenge: Challenge,
    /// What the registry said.
    words: String,
}

/// The URL of a request to the host itself.
fn url(endpoint: &Endpoint, get: &Get<'_>) -> Result<Uri, Fault> {
    let host = &endpoint.host;
    let query = endpoint.namespace.as_deref().map(|ns| format!("?{}", auth::form(&[("ns", ns)])));
    let text = format!(
        "{}://{}{}/{}{}",
        host.scheme,
        host.authority,
        host.path,
        get.path,
        query.unwrap_or_default()
    );
    text.parse().map_err(|_| Fault::Final("the image name does not make a valid URL".to_owned()))
}

impl Registry {
    /// Requests something of a host. After a 401 it authenticates as the host's challenge says and tries again.
    pub(super) async fn get(&self, endpoint: &Endpoint, get: &Get<'_>) -> Result<Response<Incoming>, Fault> {
        let mut refused = None;
        for _ in 0..MAX_ATTEMPTS {
            let authorization = self.authorization(endpoint, refused.take()).await?;
            let response = self.follow(endpoint, get, authorization.as_ref()).await?;
            match response.status() {
                StatusCode::OK | StatusCode::PARTIAL_CONTENT => return Ok(response),
                StatusCode::UNAUTHORIZED => {
                    let Some(challenge) = auth::challenge(response.headers()) else {
                        return Err(self.fault(response).await);
                    };
                    let words = self.words(response).await;
                    refused = Some(Refused { sent: authorization, challenge, words });
                }
                _ => return Err(self.fault(response).await),
            }
        }
        let words = refused.map(|refused| refused.words).unwrap_or_default();
        Err(Fault::Unauthorized(error_body::after("unauthorized", &words)))
    }

    /// The Authorization header to send.
    async fn authorization(
        &self,
        endpoint: &Endpoint,
        refused: Option<Refused>,
    ) -> Result<Option<HeaderValue>, Fault> {
        // Locked during the token request, so that parallel layers request one token.
        let mut current = endpoint.authorization.lock().await;
        let Some(Refused { sent, challenge, words }) = refused else { return Ok(current.clone()) };
        // A parallel request has authenticated since.
        if *current != sent {
            return Ok(current.clone());
        }
        let found = endpoint.credentials.get().await;
        let auth = found.auth.as_deref();
        let password = auth.and_then(auth::user_and_password);
        let next = match challenge {
            Challenge::Basic => password.and_then(|(user, password)| auth::basic(&user, &password)),
            Challenge::Bearer { realm, service, scope } => match auth {
                Some(auth) if !auth.registry_token.is_empty() => auth::bearer(&auth.registry_token),
                _ => {
                    let token = self.token(endpoint, &realm, service.as_deref(), scope.as_deref(), auth);
                    Some(token.await.map_err(|fault| fault.with_problem(found.problem.as_deref()))?)
                }
            },
        };
        // Sending the same header again would fail again.
        if next.is_none() || (next == sent && sent.is_some()) {
            let what = if auth.is_some() { "unauthorized" } else { "unauthorized, without credentials" };
            let fault = Fault::Unauthorized(error_body::after(what, &words));
            return Err(fault.with_problem(found.problem.as_deref()));
        }
        current.clone_from(&next);
        Ok(next)
    }

    /// Sends a request and follows redirects. Credentials, and the headers of `hosts.toml`, are sent only to the host
    /// itself: once a redirect has left it, they are not sent again.
    async fn follow(
        &self,
        endpoint: &Endpoint,
        get: &Get<'_>,
        authorization: Option<&HeaderValue>,
    ) -> Result<Response<Incoming>, Fault> {
        let mut uri = url(endpoint, get)?;
        // Whether the host itself is asked: credentials and the headers of hosts.toml are for it alone. Its
        // TLS settings are chosen by `Endpoint::client_for`.
        let mut same_host = true;
        let mut http = &endpoint.http;
        for _ in 0..=MAX_REDIRECTS {
            let request = request(endpoint, get, &uri, same_host.then_some(authorization))
                .map_err(|error| Fault::Final(format!("the request is not valid: {error}")))?;
            let response = self.send(http, request).await;
            let response =
                response.map_err(|fault| if same_host { fault } else { redirected(&uri, fault) })?;
            if !matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308) {
                // Credentials are not for other hosts, so a 401 after a redirect is final.
                if response.status() == StatusCode::UNAUTHORIZED && !same_host {
                    return Err(Fault::Final("the target of the redirect asks for credentials".to_owned()));
                }
                return Ok(response);
            }
            let next = redirect_target(&uri, &response)?;
            if uri.scheme_str() == Some("https") && next.scheme_str() == Some("http") && !get.verified {
                let reason = "redirect from https to http, where content without a known digest is not safe";
                return Err(Fault::Final(reason.to_owned()));
            }
            same_host &= next.scheme() == uri.scheme() && next.authority() == uri.authority();
            if !same_host {
                http = endpoint
                    .client_for(&next)
                    .map_err(|out_of_reach| redirected(&next, Fault::Final(out_of_reach.to_string())))?;
            }
            uri = next;
        }
        Err(Fault::Final(format!("more than {MAX_REDIRECTS} redirects")))
    }

    /// Sends one request and waits for the headers of the response.
    pub(super) async fn send(
        &self,
        http: &Http,
        mut request: Request<Full<Bytes>>,
    ) -> Result<Response<Incoming>, Fault> {
        // A proxy gets requests for http itself; those for https go through a tunnel, which `connect` opens.
        if request.uri().scheme_str() == Some("http")
            && let Some(proxy) = self.proxies.of(request.uri()).filter(|proxy| proxy.kind != Kind::Socks5)
            && let Some(authorization) = proxy.authorization()
        {
            request.headers_mut().insert(PROXY_AUTHORIZATION, authorization);
        }
        match timeout(self.idle_timeout, http.request(request)).await {
            Ok(Ok(response)) => Ok(response),
            Ok(Err(error)) => {
                if let Some(out_of_reach) = out_of_reach(&error) {
                    return Err(Fault::Final(out_of_reach.to_string()));
                }
                let silence = if error.is_connect() { Silence::Own } else { Silence::No };
                // hyper's messages contain host names and system errors, but no paths or queries, which may be secret.
                Err(Fault::Transient { reason: with_causes(&error), retry_after: None, silence })
            }
            Err(_) => {
                let reason = format!("no response within {} s", self.idle_timeout.as_secs_f32());
                Err(Fault::Transient { reason, retry_after: None, silence: Silence::Own })
            }
        }
    }

    /// The fault that an error response stands for, with what the registry says about it.
    pub(super) async fn fault(&self, response: Response<Incoming>) -> Fault {
        let status = response.status();
        let retry_after = retry_after(&response);
        let mut reason = error_body::after(&format!("status {status}"), &self.words(response).await);
        match status.as_u16() {
            404 => Fault::NotFound(reason),
            401 | 403 => Fault::Unauthorized(reason),
            408 | 429 | 500..=599 => {
                if let Some(after) = retry_after {
                    reason = format!("{reason} (it asks for a wait of {} s)", after.as_secs());
                }
                Fault::Transient { reason, retry_after, silence: Silence::No }
            }
            _ => Fault::Final(reason),
        }
    }

    /// What an error response says. Whatever cannot be read is left out.
    async fn words(&self, response: Response<Incoming>) -> String {
        let mut body = response.into_body();
        let mut bytes = BytesMut::new();
        let read = async {
            while let Ok(Some(part)) = self.next_part(&mut body).await {
                let room = error_body::MAX_BYTES.saturating_sub(bytes.len());
                bytes.extend_from_slice(&part[..part.len().min(room)]);
                if bytes.len() == error_body::MAX_BYTES {
                    break;
                }
            }
        };
        // What has come in time is used.
        timeout(WORDS_LIMIT, read).await.unwrap_or_default();
        error_body::text(&bytes)
    }

    /// Reads a body of at most `limit` bytes to its end.
    pub(super) async fn read_all(&self, response: Response<Incoming>, limit: u64) -> Result<Bytes, Fault> {
        let read = async {
            let mut body = response.into_body();
            let mut bytes = BytesMut::new();
            while let Some(part) = self.next_part(&mut body).await? {
                if bytes.len() as u64 + part.len() as u64 > limit {
                    return Err(Fault::Corrupt(format!("the response exceeds {limit} bytes")));
                }
                bytes.extend_from_slice(&part);
            }
            Ok(bytes.freeze())
        };
        // Each of its parts may come in time, and the whole never.
        timeout(self.document_timeout, read).await.unwrap_or_else(|_| {
            let reason = format!("not complete after {} s", self.document_timeout.as_secs_f32());
            Err(Fault::Transient { reason, retry_after: None, silence: Silence::Own })
        })
    }

    /// Waits for the next bytes of a body, never empty; `None` at its end.
    pub(super) async fn next_part(&self, body: &mut Incoming) -> Result<Option<Bytes>, Fault> {
        loop {
            match timeout(self.idle_timeout, body.frame()).await {
                Ok(None) => return Ok(None),
                Ok(Some(Ok(frame))) => match frame.into_data() {
                    Ok(data) if !data.is_empty() => return Ok(Some(data)),
                    _ => {}
                },
                Ok(Some(Err(error))) => {
                    let reason = with_causes(&error);
                    return Err(Fault::Transient { reason, retry_after: None, silence: Silence::No });
                }
                Err(_) => {
                    let reason = format!("no bytes for {} s", self.idle_timeout.as_secs_f32());
                    return Err(Fault::Transient { reason, retry_after: None, silence: Silence::Own });
                }
            }
        }
    }
}

/// The wait that a host asks for: a number of seconds, or a date.
fn retry_after(response: &Response<Incoming>) -> Option<Duration> {
    let text = response.headers().get(RETRY_AFTER)?.to_str().ok()?.trim();
    match text.parse() {
        Ok(seconds) => Some(Duration::from_secs(seconds)),
        Err(_) => httpdate::parse_http_date(text).ok()?.duration_since(SystemTime::now()).ok(),
    }
}

/// A request for `url`. `own` is the Authorization header to send if the host itself is asked.
fn request(
    endpoint: &Endpoint,
    get: &Get<'_>,
    url: &Uri,
    own: Option<Option<&HeaderValue>>,
) -> Result<Request<Full<Bytes>>, hyper::http::Error> {
    let method = if get.head { Method::HEAD } else { Method::GET };
    let mut request = Request::builder().method(method).uri(url.clone()).header(USER_AGENT, PRODUCT);
    if let Some(authorization) = own {
        request = request.header(ACCEPT, get.accept);
        for (name, value) in &endpoint.host.headers.0 {
            request = request.header(name, value);
        }
        if let Some(authorization) = authorization {
            request = request.header(AUTHORIZATION, authorization);
        }
    }
    if let Some((first, last)) = get.range {
        let last = last.map(|last| last.to_string()).unwrap_or_default();
        request = request.header(RANGE, format!("bytes={first}-{last}"));
    }
    request.body(Full::default())
}

/// The target of a redirect.
pub(super) fn redirect_target(from: &Uri, response: &Response<Incoming>) -> Result<Uri, Fault> {
    let text = response.headers().get(LOCATION).and_then(|value| value.to_str().ok());
    let target = text.and_then(|text| location::target(from, text));
    target.ok_or_else(|| Fault::Final("redirect without a valid Location".to_owned()))
}

/// The fault of a host that a redirect has led to.
fn redirected(to: &Uri, fault: Fault) -> Fault {
    let host = to.authority().map_or("", |authority| authority.as_str());
    fault.about(&format!("redirect to {host}")).of_another_host()
}

/// Why no connection was made, if the host's name was resolved to an address that the registry must not lead to.
fn out_of_reach(error: &(dyn Error + 'static)) -> Option<OutOfReach> {
    let mut next = Some(error);
    while let Some(error) = next {
        // An error of I/O does not give the error that it consists of as its cause, but the cause of that.
        let inner = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
        if let Some(found) = inner.and_then(|inner| inner.downcast_ref()) {
            return Some(*found);
        }
        next = error.source();
    }
    None
}
