//! The HTTP side of a pull: mirrors in order, tokens, redirects, retries, and a time limit on every wait.

mod blob;
mod fault;

use self::blob::Blob;
use self::fault::{Failures, Fault, causes, fault_of};
use super::auth::{self, Challenge};
use super::mirror::{self, Host};
use crate::error::{Error, Result};
use crate::manifest::{ACCEPT, Descriptor};
use crate::reference::{Digest, Reference, Selector};
use crate::registry::dns::Resolver;
use crate::{Auth, Options};
use bytes::{Bytes, BytesMut};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::header::{
    ACCEPT as ACCEPT_HEADER, AUTHORIZATION, CONTENT_TYPE, HeaderValue, LOCATION, RANGE, USER_AGENT,
};
use hyper::{Method, Request, Response, StatusCode, Uri};
use hyper_rustls::HttpsConnector;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde::Deserialize;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Mutex;
use tokio::time::{sleep, timeout};

type Http = Client<HttpsConnector<HttpConnector<Resolver>>, Full<Bytes>>;

/// Waits before the second, third and fourth attempt at a host that is overloaded or faulty.
const BACKOFF: [Duration; 3] =
    [Duration::from_millis(200), Duration::from_millis(800), Duration::from_secs(2)];
/// A longer `Retry-After` is not waited for: kubelet's own back-off takes over.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(20);
const MAX_REDIRECTS: usize = 10;
/// Token responses are a few KiB.
const MAX_TOKEN: u64 = 1 << 20;

/// The hosts that serve one repository. Lives as long as one pull.
#[derive(Debug)]
pub(crate) struct Registry {
    reference: Reference,
    endpoints: Vec<Endpoint>,
    user_agent: HeaderValue,
    idle: Duration,
}

#[derive(Debug)]
struct Endpoint {
    host: Host,
    http: Http,
    /// Credentials that may be sent to this host.
    auth: Option<Arc<Auth>>,
    /// The Authorization header that was accepted last.
    authorization: Mutex<Option<HeaderValue>>,
    /// The registry that a mirror stands for, sent as `?ns=`.
    namespace: Option<String>,
}

impl Registry {
    /// Reads the registry configuration. Blocks.
    pub(crate) fn new(options: &Options, reference: &Reference, auth: Option<&Auth>) -> Result<Self> {
        let user_agent = HeaderValue::from_str(&options.user_agent)
            .map_err(|_| Error::unsupported("user agent", "it is not a header value"))?;
        let registry = reference.registry();
        let mut endpoints = Vec::new();
        for host in mirror::hosts(&options.certs_dir, registry)? {
            let mut tcp = HttpConnector::new_with_resolver(Resolver);
            tcp.enforce_http(false);
            tcp.set_nodelay(true);
            tcp.set_connect_timeout(Some(options.connect_timeout));
            let tls = if host.scheme == "https" {
                mirror::tls_config(&host.tls)?
            } else {
                // For redirects to https from a host that is configured with http.
                mirror::tls_config(&mirror::Tls::default())?
            };
            let connector = hyper_rustls::HttpsConnectorBuilder::new()
                .with_tls_config(tls)
                .https_or_http()
                .enable_http1();
            let http = Client::builder(TokioExecutor::new()).build(connector.wrap_connector(tcp));
            let own = host.authority == mirror::own_authority(registry);
            let auth = auth.filter(|auth| auth::entitled(auth, &host.authority, registry));
            endpoints.push(Endpoint {
                http,
                auth: auth.cloned().map(Arc::new),
                authorization: Mutex::new(None),
                namespace: (!own).then(|| registry.to_owned()),
                host,
            });
        }
        Ok(Self { reference: reference.clone(), endpoints, user_agent, idle: options.idle_timeout })
    }

    /// The registry in the reference. Its mirrors count as this registry too.
    pub(crate) fn name(&self) -> &str {
        self.reference.registry()
    }

    /// Fetches the manifest or index of the reference. Returns its digest, content type and bytes.
    pub(crate) async fn resolve(&self, limit: u64) -> Result<(Digest, String, Bytes)> {
        match self.reference.selector() {
            Selector::Tag(tag) => self.document("manifests", tag, None, limit).await,
            Selector::Digest(digest) => {
                self.document("manifests", &digest.to_string(), Some(digest), limit).await
            }
        }
    }

    /// Fetches a manifest by digest.
    pub(crate) async fn manifest(&self, wanted: &Descriptor, limit: u64) -> Result<(Digest, String, Bytes)> {
        self.document("manifests", &wanted.digest.to_string(), Some(&wanted.digest), limit).await
    }

    /// Fetches a small blob completely.
    pub(crate) async fn small_blob(&self, wanted: &Descriptor, limit: u64) -> Result<Bytes> {
        if wanted.size > limit {
            return Err(Error::TooLarge { object: format!("blob {}", wanted.digest), limit, unit: "bytes" });
        }
        let (_, _, bytes) =
            self.document("blobs", &wanted.digest.to_string(), Some(&wanted.digest), limit).await?;
        Ok(bytes)
    }

    /// Starts the transfer of a layer.
    pub(crate) fn blob(&self, wanted: &Descriptor) -> Blob<'_> {
        Blob::new(self, wanted.clone())
    }

    async fn document(
        &self,
        kind: &str,
        name: &str,
        expected: Option<&Digest>,
        limit: u64,
    ) -> Result<(Digest, String, Bytes)> {
        let mut failures = Failures::new(&self.reference);
        for endpoint in &self.endpoints {
            if !endpoint.host.pull || (expected.is_none() && !endpoint.host.resolve) {
                continue;
            }
            let path = format!("{}/{kind}/{name}", self.reference.repository());
            let accept = if kind == "manifests" { ACCEPT.join(", ") } else { "*/*".to_owned() };
            let get = Get { path: &path, accept: &accept, range: None, verified: expected.is_some() };
            let result = self.retried(endpoint, || async {
                let response = self.get(endpoint, &get).await?;
                let header = |name: &str| {
                    let value = response.headers().get(name).and_then(|value| value.to_str().ok());
                    value.unwrap_or_default().to_owned()
                };
                let (content_type, claimed) = (header("content-type"), header("docker-content-digest"));
                let bytes = self.whole(response, limit).await?;
                let found = Digest::of(&bytes);
                if let Some(wanted) = expected.copied().or_else(|| Digest::parse(&claimed))
                    && wanted != found
                {
                    return Err(Fault::Final(format!("served {found} for {wanted}")));
                }
                Ok((found, content_type, bytes))
            });
            match result.await {
                Ok(found) => return Ok(found),
                Err(fault) => failures.add(endpoint, fault),
            }
        }
        Err(failures.error(expected.map(|digest| format!("{kind}/{digest}"))))
    }

    /// Retries while the fault may be temporary.
    async fn retried<T, F: Future<Output = Result<T, Fault>>>(
        &self,
        endpoint: &Endpoint,
        try_once: impl Fn() -> F,
    ) -> Result<T, Fault> {
        let mut waits = BACKOFF.iter();
        loop {
            let fault = match try_once().await {
                Err(fault @ Fault::Transient { .. }) => fault,
                other => return other,
            };
            let Fault::Transient { what, after, quick } = &fault else { return Err(fault) };
            let Some(wait) = waits.next() else { return Err(fault) };
            if *quick {
                // A host that cannot be reached is retried once, not three times.
                waits = [].iter();
            }
            let wait = after.map_or(*wait, |after| after.clamp(*wait, MAX_RETRY_AFTER));
            tracing::debug!(host = endpoint.host.authority, fault = what, ?wait, "registry asked again");
            sleep(wait).await;
        }
    }

    /// Sends one request with the header that was accepted last; on a 401 it authenticates and tries again.
    async fn get(&self, endpoint: &Endpoint, get: &Get<'_>) -> Result<Response<Incoming>, Fault> {
        let mut refused = None;
        for _ in 0..3 {
            let authorization = self.authorization(endpoint, refused.take()).await?;
            let response = self.follow(endpoint, get, authorization.as_ref()).await?;
            match response.status() {
                StatusCode::OK | StatusCode::PARTIAL_CONTENT => return Ok(response),
                StatusCode::UNAUTHORIZED => match auth::challenge(response.headers()) {
                    Some(challenge) => refused = Some((authorization, challenge)),
                    None => return Err(Fault::Unauthorized),
                },
                status => return Err(fault_of(&response, status)),
            }
        }
        Err(Fault::Unauthorized)
    }

    /// The header to send. `refused` is the header that got a 401, and the challenge in that response.
    async fn authorization(
        &self,
        endpoint: &Endpoint,
        refused: Option<(Option<HeaderValue>, Challenge)>,
    ) -> Result<Option<HeaderValue>, Fault> {
        // Held during the token request, so that parallel layers request one token.
        let mut current = endpoint.authorization.lock().await;
        let Some((sent, challenge)) = refused else { return Ok(current.clone()) };
        if *current != sent {
            return Ok(current.clone());
        }
        let auth = endpoint.auth.as_deref();
        let password = auth.and_then(auth::user_and_password);
        let next = match challenge {
            Challenge::Basic => password.and_then(|(user, password)| auth::basic(&user, &password)),
            Challenge::Bearer { realm, service, scope } => match auth {
                Some(auth) if !auth.registry_token.is_empty() => auth::bearer(&auth.registry_token),
                _ => Some(self.token(endpoint, &realm, service.as_deref(), scope.as_deref()).await?),
            },
        };
        // Sending the same header again would fail again.
        if next.is_none() || (next == sent && sent.is_some()) {
            return Err(Fault::Unauthorized);
        }
        current.clone_from(&next);
        Ok(next)
    }

    /// Requests a token from the realm, with the user's credentials if there are any.
    async fn token(
        &self,
        endpoint: &Endpoint,
        realm: &str,
        service: Option<&str>,
        scope: Option<&str>,
    ) -> Result<HeaderValue, Fault> {
        #[derive(Deserialize)]
        struct Answer {
            token: Option<String>,
            access_token: Option<String>,
        }
        let uri: Uri = realm.parse().map_err(|_| Fault::Final("token realm is not a URL".to_owned()))?;
        let host = uri.authority().map(|authority| authority.as_str().to_owned()).unwrap_or_default();
        if !matches!(uri.scheme_str(), Some("http" | "https")) || host.is_empty() || host.contains('@') {
            return Err(Fault::Final("token realm is not a URL".to_owned()));
        }
        let own_scope = format!("repository:{}:pull", self.reference.repository());
        let scope = scope.unwrap_or(&own_scope);
        let auth = endpoint.auth.as_deref();
        if endpoint.host.scheme == "https" && uri.scheme_str() == Some("http") && auth.is_some() {
            return Err(Fault::Final(format!(
                "token realm {host} would receive the credentials unencrypted"
            )));
        }
        let request = token_request(realm, uri, service, scope, auth);
        let mut request = request.map_err(|_| Fault::Final("token realm is not a URL".to_owned()))?;
        request.headers_mut().insert(USER_AGENT, self.user_agent.clone());
        let response = self.send(&endpoint.http, request).await?;
        match response.status() {
            StatusCode::OK => {}
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => return Err(Fault::Unauthorized),
            status => return Err(fault_of(&response, status)),
        }
        let bytes = self.whole(response, MAX_TOKEN).await?;
        let unusable = || Fault::Final(format!("{host} gave no usable token"));
        let answer: Answer = serde_json::from_slice(&bytes).map_err(|_| unusable())?;
        let token = answer.token.or(answer.access_token).filter(|token| !token.is_empty());
        token.and_then(|token| auth::bearer(&token)).ok_or_else(unusable)
    }

    /// Sends a request and follows redirects. Headers that carry credentials are sent only to the host they
    /// belong to.
    async fn follow(
        &self,
        endpoint: &Endpoint,
        get: &Get<'_>,
        authorization: Option<&HeaderValue>,
    ) -> Result<Response<Incoming>, Fault> {
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
        let mut uri: Uri =
            text.parse().map_err(|_| Fault::Final("image name cannot be part of a URL".to_owned()))?;
        let mut same_host = true;
        for _ in 0..=MAX_REDIRECTS {
            let mut request = Request::builder().uri(uri.clone()).header(USER_AGENT, self.user_agent.clone());
            if same_host {
                request = request.header(ACCEPT_HEADER, get.accept);
                for (name, value) in &host.headers.0 {
                    request = request.header(name, value);
                }
                if let Some(authorization) = authorization {
                    request = request.header(AUTHORIZATION, authorization);
                }
            }
            if let Some(from) = get.range {
                request = request.header(RANGE, format!("bytes={from}-"));
            }
            let request = request.body(Full::default());
            let request =
                request.map_err(|error| Fault::Final(format!("request cannot be made: {error}")))?;
            let response = self.send(&endpoint.http, request).await?;
            if !matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308) {
                // Credentials are not for other hosts, so a 401 after a redirect is final.
                if response.status() == StatusCode::UNAUTHORIZED && !same_host {
                    return Err(Fault::Final(
                        "redirect leads to a host that wants other credentials".to_owned(),
                    ));
                }
                return Ok(response);
            }
            let next = location(&uri, &response)?;
            if uri.scheme_str() == Some("https") && next.scheme_str() == Some("http") && !get.verified {
                return Err(Fault::Final("redirect from https to http for a name without digest".to_owned()));
            }
            same_host &= next.scheme() == uri.scheme() && next.authority() == uri.authority();
            uri = next;
        }
        Err(Fault::Final(format!("more than {MAX_REDIRECTS} redirects")))
    }

    async fn send(&self, http: &Http, request: Request<Full<Bytes>>) -> Result<Response<Incoming>, Fault> {
        match timeout(self.idle, http.request(request)).await {
            Ok(Ok(response)) => Ok(response),
            Ok(Err(error)) => {
                let quick = error.is_connect();
                Err(Fault::Transient { what: causes(&error), after: None, quick })
            }
            Err(_) => {
                let what = format!("no answer within {} s", self.idle.as_secs_f32());
                Err(Fault::Transient { what, after: None, quick: true })
            }
        }
    }

    /// Reads a whole body of at most `limit` bytes.
    async fn whole(&self, response: Response<Incoming>, limit: u64) -> Result<Bytes, Fault> {
        let mut body = response.into_body();
        let mut bytes = BytesMut::new();
        while let Some(part) = self.part(&mut body).await? {
            if bytes.len() as u64 + part.len() as u64 > limit {
                return Err(Fault::Final(format!("answer exceeds {limit} bytes")));
            }
            bytes.extend_from_slice(&part);
        }
        Ok(bytes.freeze())
    }

    /// Reads the next bytes of a body, within the idle time limit.
    async fn part(&self, body: &mut Incoming) -> Result<Option<Bytes>, Fault> {
        loop {
            match timeout(self.idle, body.frame()).await {
                Ok(None) => return Ok(None),
                Ok(Some(Ok(frame))) => match frame.into_data() {
                    Ok(data) if !data.is_empty() => return Ok(Some(data)),
                    _ => {}
                },
                Ok(Some(Err(error))) => {
                    return Err(Fault::Transient { what: causes(&error), after: None, quick: false });
                }
                Err(_) => {
                    let what = format!("no bytes for {} s", self.idle.as_secs_f32());
                    return Err(Fault::Transient { what, after: None, quick: true });
                }
            }
        }
    }
}

/// Asks for a token: a refresh token is exchanged by POST, a password is sent with GET.
fn token_request(
    realm: &str,
    uri: Uri,
    service: Option<&str>,
    scope: &str,
    auth: Option<&Auth>,
) -> Result<Request<Full<Bytes>>, hyper::http::Error> {
    let password = auth.and_then(auth::user_and_password);
    let mut pairs = vec![("scope", scope)];
    pairs.extend(service.map(|service| ("service", service)));
    let identity = auth.map(|auth| auth.identity_token.as_str()).filter(|token| !token.is_empty());
    if let Some(identity) = identity {
        pairs.extend([
            ("grant_type", "refresh_token"),
            ("refresh_token", identity),
            ("client_id", "copepod"),
        ]);
        Request::builder()
            .method(Method::POST)
            .uri(uri)
            .header(CONTENT_TYPE, "application/x-www-form-urlencoded")
            .body(Full::new(auth::form(&pairs).into()))
    } else {
        pairs.extend(password.iter().map(|(user, _)| ("account", user.as_str())));
        let joint = if uri.query().is_some() { '&' } else { '?' };
        let mut request = Request::builder().uri(format!("{realm}{joint}{}", auth::form(&pairs)));
        if let Some(basic) = password.as_ref().and_then(|(user, password)| auth::basic(user, password)) {
            request = request.header(AUTHORIZATION, basic);
        }
        request.body(Full::default())
    }
}

/// One request to a host.
struct Get<'a> {
    path: &'a str,
    accept: &'a str,
    range: Option<u64>,
    /// The response is verified against a digest that is already known.
    verified: bool,
}

fn location(from: &Uri, response: &Response<Incoming>) -> Result<Uri, Fault> {
    let wrong = || Fault::Final("redirect leads nowhere".to_owned());
    let text = response.headers().get(LOCATION).and_then(|value| value.to_str().ok()).ok_or_else(wrong)?;
    let full = match (from.scheme_str(), from.authority()) {
        (Some(scheme), _) if text.starts_with("//") => format!("{scheme}:{text}"),
        (Some(scheme), Some(authority)) if text.starts_with('/') => format!("{scheme}://{authority}{text}"),
        _ => text.to_owned(),
    };
    // A fragment is not sent to the server.
    let uri: Uri = full.split('#').next().unwrap_or_default().parse().map_err(|_| wrong())?;
    let plain_host = uri.authority().is_some_and(|authority| !authority.as_str().contains('@'));
    if !matches!(uri.scheme_str(), Some("http" | "https")) || !plain_host {
        return Err(wrong());
    }
    Ok(uri)
}
