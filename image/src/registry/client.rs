//! The HTTP client of one pull: asks the hosts in order, fetches tokens, follows redirects and retries. Every wait has
//! a time limit.
//!
//! ```text
//! document, Blob::open    for each host in order
//!   retried               again while the fault may be temporary
//!     get                 again with credentials after a 401
//!       follow            again at the target of a redirect
//!         send            one request
//! ```

mod blob;
mod fault;
mod token;

use self::blob::Blob;
use self::fault::{Fault, HostFaults, fault_of};
use super::auth::{self, Challenge};
use super::dns::Resolver;
use super::mirror::{self, Host};
use super::tls::Tls;
use crate::error::{Error, Result};
use crate::manifest::{ACCEPT, Descriptor};
use crate::reference::{Digest, Reference, Selector};
use crate::{Auth, Options};
use bytes::{Bytes, BytesMut};
use causes::with_causes;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::header::{ACCEPT as ACCEPT_HEADER, AUTHORIZATION, HeaderValue, LOCATION, RANGE, USER_AGENT};
use hyper::{Request, Response, StatusCode, Uri};
use hyper_rustls::HttpsConnector;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Mutex;
use tokio::time::{sleep, timeout};

type Http = Client<HttpsConnector<HttpConnector<Resolver>>, Full<Bytes>>;

/// Waits before the second, third and fourth attempt at a host that is overloaded or faulty.
const BACKOFF: [Duration; 3] =
    [Duration::from_millis(200), Duration::from_millis(800), Duration::from_secs(2)];
/// Maximum wait for `Retry-After`. After that, kubelet's own back-off applies.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(20);
const MAX_REDIRECTS: usize = 10;
/// The User-Agent of all requests.
const PRODUCT: &str = concat!("copepod/", env!("CARGO_PKG_VERSION"));
/// Attempts of one request: each 401 may bring another challenge, such as one for a token that has expired.
const MAX_ATTEMPTS: usize = 3;

/// A manifest, index or config.
#[derive(Debug)]
pub(crate) struct Fetched {
    pub(crate) digest: Digest,
    /// The header; empty if there is none.
    pub(crate) content_type: String,
    pub(crate) bytes: Bytes,
}

/// The hosts that serve one repository. Lives as long as one pull.
#[derive(Debug)]
pub(crate) struct Registry {
    reference: Reference,
    endpoints: Vec<Endpoint>,
    idle_timeout: Duration,
}

/// A host, with the connections and credentials for it.
#[derive(Debug)]
struct Endpoint {
    host: Host,
    http: Http,
    /// Credentials that may be sent to this host.
    auth: Option<Arc<Auth>>,
    /// The Authorization header to send: `None` until a host asks for one.
    authorization: Mutex<Option<HeaderValue>>,
    /// For a mirror: the registry of the reference, sent as `?ns=`, because one mirror may serve several registries.
    namespace: Option<String>,
}

impl Registry {
    /// Reads the registry configuration. Blocks.
    pub(crate) fn new(options: &Options, reference: &Reference, auth: Option<&Auth>) -> Result<Self> {
        let registry = reference.registry();
        let mut endpoints = Vec::new();
        for host in mirror::hosts(&options.certs_dir, registry)? {
            let mut tcp = HttpConnector::new_with_resolver(Resolver);
            tcp.enforce_http(false);
            tcp.set_nodelay(true);
            tcp.set_connect_timeout(Some(options.connect_timeout));
            let tls = if host.scheme == "https" {
                host.tls.client_config()?
            } else {
                // For redirects to https from a host that is configured with http.
                Tls::default().client_config()?
            };
            let connector = hyper_rustls::HttpsConnectorBuilder::new()
                .with_tls_config(tls)
                .https_or_http()
                .enable_http1();
            let http = Client::builder(TokioExecutor::new()).build(connector.wrap_connector(tcp));
            let is_mirror = host.authority != mirror::own_authority(registry);
            let auth = auth.filter(|auth| auth::may_receive(auth, &host.authority, registry));
            endpoints.push(Endpoint {
                http,
                auth: auth.cloned().map(Arc::new),
                authorization: Mutex::new(None),
                namespace: is_mirror.then(|| registry.to_owned()),
                host,
            });
        }
        let (reference, idle_timeout) = (reference.clone(), options.idle_timeout);
        Ok(Self { reference, endpoints, idle_timeout })
    }

    /// The registry in the reference. Transfers from its mirrors are counted for it too.
    pub(crate) fn name(&self) -> &str {
        self.reference.registry()
    }

    /// Fetches the manifest or index of the reference, of at most `limit` bytes.
    pub(crate) async fn resolve(&self, limit: u64) -> Result<Fetched> {
        match self.reference.selector() {
            Selector::Tag(tag) => self.document(Kind::Manifests, tag, None, limit).await,
            Selector::Digest(digest) => self.manifest(digest, limit).await,
        }
    }

    /// Fetches a manifest or index by digest, of at most `limit` bytes.
    pub(crate) async fn manifest(&self, digest: &Digest, limit: u64) -> Result<Fetched> {
        self.document(Kind::Manifests, &digest.to_string(), Some(digest), limit).await
    }

    /// Fetches a blob of at most `limit` bytes into memory.
    pub(crate) async fn small_blob(&self, wanted: &Descriptor, limit: u64) -> Result<Bytes> {
        if wanted.size > limit {
            return Err(Error::TooLarge { object: format!("blob {}", wanted.digest), limit, unit: "bytes" });
        }
        let name = wanted.digest.to_string();
        Ok(self.document(Kind::Blobs, &name, Some(&wanted.digest), limit).await?.bytes)
    }

    /// Starts the transfer of a layer.
    pub(crate) fn blob(&self, wanted: &Descriptor) -> Blob<'_> {
        Blob::new(self, wanted.clone())
    }

    /// Fetches `<kind>/<name>` from the first host that serves it, and verifies its digest if one is expected.
    async fn document(
        &self,
        kind: Kind,
        name: &str,
        expected: Option<&Digest>,
        limit: u64,
    ) -> Result<Fetched> {
        let mut faults = HostFaults::new(&self.reference);
        for endpoint in &self.endpoints {
            if !endpoint.host.pull || (expected.is_none() && !endpoint.host.resolve) {
                continue;
            }
            let path = format!("{}/{}/{name}", self.reference.repository(), kind.segment());
            let accept = match kind {
                Kind::Manifests => ACCEPT.join(", "),
                Kind::Blobs => "*/*".to_owned(),
            };
            let get = Get { path: &path, accept: &accept, range: None, verified: expected.is_some() };
            let result = self.retried(endpoint, || async {
                let response = self.get(endpoint, &get).await?;
                let header = |name: &str| {
                    let value = response.headers().get(name).and_then(|value| value.to_str().ok());
                    value.unwrap_or_default().to_owned()
                };
                let (content_type, claimed) = (header("content-type"), header("docker-content-digest"));
                let bytes = self.read_all(response, limit).await?;
                let wanted = expected.copied().or_else(|| Digest::parse(&claimed));
                let digest = wanted.map_or_else(|| Digest::of(&bytes), |wanted| wanted.same_of(&bytes));
                if let Some(wanted) = wanted
                    && wanted != digest
                {
                    return Err(Fault::Corrupt(format!(
                        "the digest of the content is {digest} instead of {wanted}"
                    )));
                }
                Ok(Fetched { digest, content_type, bytes })
            });
            match result.await {
                Ok(fetched) => return Ok(fetched),
                Err(fault) => faults.add(endpoint, fault),
            }
        }
        Err(faults.into_error(expected.map(|digest| format!("{}/{digest}", kind.segment()))))
    }

    /// Retries a request to one host while its fault may be temporary.
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
            let Fault::Transient { reason, retry_after, retry_once } = &fault else { return Err(fault) };
            let Some(wait) = waits.next() else { return Err(fault) };
            if *retry_once {
                waits = [].iter();
            }
            let wait = retry_after.map_or(*wait, |after| after.clamp(*wait, MAX_RETRY_AFTER));
            tracing::debug!(host = endpoint.host.authority, reason, ?wait, "request to registry is retried");
            sleep(wait).await;
        }
    }

    /// Requests something of a host. After a 401 it authenticates as the host's challenge says and tries again.
    async fn get(&self, endpoint: &Endpoint, get: &Get<'_>) -> Result<Response<Incoming>, Fault> {
        let mut refused = None;
        for _ in 0..MAX_ATTEMPTS {
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

    /// The Authorization header to send. `refused` is the header that was answered with a 401, and the challenge of
    /// that response.
    async fn authorization(
        &self,
        endpoint: &Endpoint,
        refused: Option<(Option<HeaderValue>, Challenge)>,
    ) -> Result<Option<HeaderValue>, Fault> {
        // Locked during the token request, so that parallel layers request one token.
        let mut current = endpoint.authorization.lock().await;
        let Some((sent, challenge)) = refused else { return Ok(current.clone()) };
        // A parallel request has authenticated since.
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

    /// Sends a request and follows redirects. Credentials, and the headers of `hosts.toml`, are sent only to the host
    /// itself: once a redirect has left it, they are not sent again.
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
            text.parse().map_err(|_| Fault::Final("the image name does not make a valid URL".to_owned()))?;
        let mut same_host = true;
        for _ in 0..=MAX_REDIRECTS {
            let mut request = Request::builder().uri(uri.clone()).header(USER_AGENT, PRODUCT);
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
                request.map_err(|error| Fault::Final(format!("the request is not valid: {error}")))?;
            let response = self.send(&endpoint.http, request).await?;
            if !matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308) {
                // Credentials are not for other hosts, so a 401 after a redirect is final.
                if response.status() == StatusCode::UNAUTHORIZED && !same_host {
                    return Err(Fault::Final("the target of the redirect asks for credentials".to_owned()));
                }
                return Ok(response);
            }
            let next = location(&uri, &response)?;
            if uri.scheme_str() == Some("https") && next.scheme_str() == Some("http") && !get.verified {
                let reason = "redirect from https to http, where content without a known digest is not safe";
                return Err(Fault::Final(reason.to_owned()));
            }
            same_host &= next.scheme() == uri.scheme() && next.authority() == uri.authority();
            uri = next;
        }
        Err(Fault::Final(format!("more than {MAX_REDIRECTS} redirects")))
    }

    /// Sends one request and waits for the headers of the response.
    async fn send(&self, http: &Http, request: Request<Full<Bytes>>) -> Result<Response<Incoming>, Fault> {
        match timeout(self.idle_timeout, http.request(request)).await {
            Ok(Ok(response)) => Ok(response),
            Ok(Err(error)) => {
                let retry_once = error.is_connect();
                // hyper's messages contain host names and system errors, but no paths or queries, which may be secret.
                Err(Fault::Transient { reason: with_causes(&error), retry_after: None, retry_once })
            }
            Err(_) => {
                let reason = format!("no response within {} s", self.idle_timeout.as_secs_f32());
                Err(Fault::Transient { reason, retry_after: None, retry_once: true })
            }
        }
    }

    /// Reads a body of at most `limit` bytes to its end.
    async fn read_all(&self, response: Response<Incoming>, limit: u64) -> Result<Bytes, Fault> {
        let mut body = response.into_body();
        let mut bytes = BytesMut::new();
        while let Some(part) = self.next_part(&mut body).await? {
            if bytes.len() as u64 + part.len() as u64 > limit {
                return Err(Fault::Corrupt(format!("the response exceeds {limit} bytes")));
            }
            bytes.extend_from_slice(&part);
        }
        Ok(bytes.freeze())
    }

    /// Waits for the next bytes of a body, never empty; `None` at its end.
    async fn next_part(&self, body: &mut Incoming) -> Result<Option<Bytes>, Fault> {
        loop {
            match timeout(self.idle_timeout, body.frame()).await {
                Ok(None) => return Ok(None),
                Ok(Some(Ok(frame))) => match frame.into_data() {
                    Ok(data) if !data.is_empty() => return Ok(Some(data)),
                    _ => {}
                },
                Ok(Some(Err(error))) => {
                    let reason = with_causes(&error);
                    return Err(Fault::Transient { reason, retry_after: None, retry_once: false });
                }
                Err(_) => {
                    let reason = format!("no bytes for {} s", self.idle_timeout.as_secs_f32());
                    return Err(Fault::Transient { reason, retry_after: None, retry_once: true });
                }
            }
        }
    }
}

/// What a pull may fetch of a repository.
#[derive(Debug, Clone, Copy)]
enum Kind {
    Manifests,
    Blobs,
}

impl Kind {
    /// Its part of the URL's path.
    fn segment(self) -> &'static str {
        match self {
            Self::Manifests => "manifests",
            Self::Blobs => "blobs",
        }
    }
}

/// A request to a host.
struct Get<'a> {
    /// Path below the host's own: repository, kind and name.
    path: &'a str,
    accept: &'a str,
    /// Offset of the first byte to send; `None` for all bytes.
    range: Option<u64>,
    /// The content will be verified by a digest that did not come from this host.
    verified: bool,
}

/// The target of a redirect.
fn location(from: &Uri, response: &Response<Incoming>) -> Result<Uri, Fault> {
    let wrong = || Fault::Final("redirect without a valid Location".to_owned());
    let text = response.headers().get(LOCATION).and_then(|value| value.to_str().ok()).ok_or_else(wrong)?;
    let full = match (from.scheme_str(), from.authority()) {
        (Some(scheme), _) if text.starts_with("//") => format!("{scheme}:{text}"),
        (Some(scheme), Some(authority)) if text.starts_with('/') => format!("{scheme}://{authority}{text}"),
        _ => text.to_owned(),
    };
    // A fragment is not sent to the server.
    let uri: Uri = full.split('#').next().unwrap_or_default().parse().map_err(|_| wrong())?;
    let has_user = uri.authority().is_none_or(|authority| authority.as_str().contains('@'));
    if !matches!(uri.scheme_str(), Some("http" | "https")) || has_user {
        return Err(wrong());
    }
    Ok(uri)
}
