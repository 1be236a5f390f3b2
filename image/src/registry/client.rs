//! The HTTP client of one pull: asks the hosts in order, fetches tokens, follows redirects and retries. Every wait has
//! a time limit.
//!
//! ```text
//! document, Blob::open    what is wanted
//!   hosts                 for each host in order; one that failed lately only if all have
//!     retried             again while the fault may be temporary
//!       get               again with credentials after a 401
//!         follow          again at the target of a redirect
//!           send          one request
//! ```

mod blob;
mod error_body;
mod fault;
mod location;
mod request;
mod source;
mod token;

use self::blob::Blob;
use self::fault::{Fault, HostFaults, Silence};
use self::request::Get;
use super::connect::Connector;
use super::credentials::{self, Credentials};
use super::dns::HostKind;
use super::health::{self, Health};
use super::mirror::{self, Host};
use super::proxy::Proxies;
use super::reach::{Nearness, OutOfReach, Reach};
use super::tls::Tls;
use crate::error::{Error, Result};
use crate::manifest::{ACCEPT, Descriptor};
use crate::reference::{Digest, Reference, Selector};
use crate::source::Fetched;
use crate::{Auth, Options};
use bytes::Bytes;
use http_body_util::Full;
use hyper::Uri;
use hyper::header::HeaderValue;
use hyper_rustls::HttpsConnector;
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use rustls::ClientConfig;
use std::sync::{Arc, PoisonError};
use std::time::Duration;
use tokio::sync::Mutex;
use tokio::time::sleep;

type Http = Client<HttpsConnector<Connector>, Full<Bytes>>;

/// Waits before the second, third and fourth attempt at a host that is overloaded or faulty.
const BACKOFF: [Duration; 3] =
    [Duration::from_millis(200), Duration::from_millis(800), Duration::from_secs(2)];
/// Maximum wait for `Retry-After`. A host that asks for more is not asked again; then kubelet's own back-off applies.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(20);

/// Bytes that are read from a connection at once. The parts of a body have at most twice as many, because hyper's buffers may
/// grow to that; from 128 KiB on glibc would map each of them anew.
pub(crate) const READ: usize = 64 << 10;

/// The hosts that serve one repository. Lives as long as one pull.
#[derive(Debug)]
pub(crate) struct Registry {
    reference: Reference,
    endpoints: Vec<Endpoint>,
    idle_timeout: Duration,
    /// For a whole document.
    document_timeout: Duration,
    proxies: Arc<Proxies>,
    health: Arc<Health>,
}

/// A host, with the connections and credentials for it.
#[derive(Debug)]
struct Endpoint {
    host: Host,
    /// For the host itself, with all that `hosts.toml` says about its TLS.
    http: Http,
    /// For the hosts near it that it leads to, and for all others: see [`Endpoint::client_for`].
    near: Http,
    other: Http,
    reach: Arc<Reach>,
    /// Credentials that may be sent to this host.
    credentials: Credentials,
    /// The Authorization header to send: `None` until a host asks for one.
    authorization: Mutex<Option<HeaderValue>>,
    /// For any host but the reference's own: the registry of the reference, sent as `?ns=`, because one mirror may serve
    /// several registries.
    namespace: Option<String>,
    /// Why it failed in this pull.
    failure: std::sync::Mutex<Option<String>>,
}

impl Registry {
    /// Reads the registry configuration. Blocks.
    pub(crate) fn new(
        options: &Options,
        reference: &Reference,
        auth: Option<&Auth>,
        health: Arc<Health>,
    ) -> Result<Self> {
        let (registry, repository) = (reference.registry(), reference.repository());
        let node = match &options.credentials_file {
            Some(path) => credentials::read(path)?,
            None => None,
        };
        let mut endpoints = Vec::new();
        for host in mirror::hosts(&options.certs_dir, registry)? {
            // A proxy's certificate may be of the same CA, but the proxy gets no client certificate.
            let for_proxies = Tls { authorities: host.tls.authorities.clone(), ..Tls::default() };
            let for_proxies =
                options.proxies.any_by_tls().then(|| for_proxies.client_config()).transpose()?;
            let limit = host.dial_timeout.unwrap_or(options.connect_timeout);
            let reach = Arc::new(Reach::of(&host.authority));
            let client = |kind: HostKind, tls: ClientConfig| {
                let connector =
                    Connector::new(limit, (kind, &reach), options.proxies.clone(), for_proxies.clone());
                Client::builder(TokioExecutor::new())
                    .http1_max_buf_size(READ)
                    .build(HttpsConnector::from((connector, tls)))
            };
            let itself = if host.is_configured { HostKind::Configured } else { HostKind::Any };
            let (own, near, other) = tls_of(&host)?;
            let (http, near, other) =
                (client(itself, own), client(HostKind::LedTo, near), client(HostKind::LedTo, other));
            let is_other = host.authority != mirror::own_authority(registry);
            endpoints.push(Endpoint {
                http,
                near,
                other,
                reach,
                credentials: Credentials::for_host(&host, (registry, repository), auth, node.clone()),
                authorization: Mutex::new(None),
                namespace: is_other.then(|| registry.to_owned()),
                failure: std::sync::Mutex::default(),
                host,
            });
        }
        Ok(Self {
            reference: reference.clone(),
            endpoints,
            idle_timeout: options.idle_timeout,
            document_timeout: options.progress_timeout,
            proxies: options.proxies.clone(),
            health,
        })
    }

    /// What is pulled.
    pub(crate) fn reference(&self) -> &Reference {
        &self.reference
    }

    /// The registry in the reference. Transfers from its mirrors are counted for it too.
    pub(crate) fn name(&self) -> &str {
        self.reference.registry()
    }

    /// The digest that the reference has now, without the manifest (HEAD), which registries do not count as a pull. Also
    /// for a reference with a digest: the answer shows that the caller has access. `None` if no host tells it; then the
    /// manifest must be fetched.
    pub(crate) async fn current_digest(&self) -> Result<Option<Digest>> {
        let (name, wanted) = match self.reference.selector() {
            Selector::Tag(tag) => (tag.to_owned(), None),
            Selector::Digest(digest) => (digest.to_string(), Some(*digest)),
        };
        let (path, accept) = (self.path(Kind::Manifests, &name), ACCEPT.join(", "));
        let head = Get { path: &path, accept: &accept, range: None, verified: false, head: true };
        let head = &head;
        let ask = |endpoint| async move {
            match self.get(endpoint, head).await {
                Ok(response) => {
                    let digest = response.headers().get("docker-content-digest");
                    let digest = digest.and_then(|digest| Digest::parse(digest.to_str().ok()?));
                    // A host must not replace the digest of a reference. The answer to GET is verified.
                    Ok(digest.filter(|digest| wanted.is_none_or(|wanted| *digest == wanted)))
                }
                Err(fault @ Fault::Transient { .. }) => Err(fault),
                // Not all hosts support HEAD, and the answer to GET has the reason.
                Err(_) => Ok(None),
            }
        };
        let may_serve = |host: &Host| host.pull && (host.resolve || wanted.is_some());
        Ok(self.first_served(may_serve, None, ask).await?.1)
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

    /// The path of an object below that of the host.
    fn path(&self, kind: Kind, name: &str) -> String {
        format!("{}/{}/{name}", self.reference.repository(), kind.segment())
    }

    /// Fetches `<kind>/<name>` from the first host that serves it, and verifies its digest if one is expected.
    async fn document(
        &self,
        kind: Kind,
        name: &str,
        expected: Option<&Digest>,
        limit: u64,
    ) -> Result<Fetched> {
        let path = self.path(kind, name);
        let accept = match kind {
            Kind::Manifests => ACCEPT.join(", "),
            Kind::Blobs => "*/*".to_owned(),
        };
        let verified = expected.is_some();
        let get = Get { path: &path, accept: &accept, range: None, verified, head: false };
        let object = expected.map(|digest| format!("{}/{digest}", kind.segment()));
        let get = &get;
        let fetch = |endpoint| async move {
            let response = self.get(endpoint, get).await?;
            let header = |name: &str| {
                let value = response.headers().get(name).and_then(|value| value.to_str().ok());
                value.unwrap_or_default().to_owned()
            };
            let (content_type, claimed) = (header("content-type"), header("docker-content-digest"));
            let bytes = self.read_all(response, limit).await?;
            // Of a wrong path, or of a network that asks for a login.
            if matches!(kind, Kind::Manifests) && bytes.trim_ascii_start().starts_with(b"<") {
                return Err(Fault::Final("it answers with a web page instead of a manifest".to_owned()));
            }
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
        };
        Ok(self.first_served(|host| host.pull && (verified || host.resolve), object, fetch).await?.1)
    }

    /// What the first host that serves it has served, and which one that is. `object` is what is wanted, for errors.
    async fn first_served<'a, T, F: Future<Output = Result<T, Fault>>>(
        &'a self,
        may_serve: impl Fn(&Host) -> bool,
        object: Option<String>,
        try_once: impl Fn(&'a Endpoint) -> F,
    ) -> Result<(&'a Endpoint, T)> {
        let (hosts, mut faults) = self.hosts(may_serve);
        for (endpoint, is_last) in hosts {
            let result = self.retried((endpoint, is_last), || try_once(endpoint)).await;
            if let Some(found) = self.served(endpoint, result, &mut faults) {
                return Ok((endpoint, found));
            }
        }
        Err(faults.into_error(object))
    }

    /// The hosts that may serve something, in the order to ask them; the last one is marked. Hosts that have failed in this
    /// pull, or lately in another one, are left out unless all have.
    fn hosts(&self, may_serve: impl Fn(&Host) -> bool) -> (Vec<(&Endpoint, bool)>, HostFaults<'_>) {
        let mut faults = HostFaults::new(&self.reference);
        let hosts = self.endpoints.iter().filter(|endpoint| may_serve(&endpoint.host));
        let (mut work, mut failed) = (Vec::new(), Vec::new());
        for endpoint in hosts {
            match self.failure(endpoint) {
                None => work.push((endpoint, false)),
                Some(reason) => failed.push((endpoint, reason)),
            }
        }
        if work.is_empty() {
            work.extend(failed.into_iter().map(|(endpoint, _)| (endpoint, false)));
        } else {
            failed.iter().for_each(|(endpoint, reason)| faults.add_left_out(endpoint, reason));
        }
        if let Some((_, is_last)) = work.last_mut() {
            *is_last = true;
        }
        (work, faults)
    }

    /// What a host has served. Its fault is remembered.
    fn served<T>(
        &self,
        endpoint: &Endpoint,
        result: Result<T, Fault>,
        faults: &mut HostFaults<'_>,
    ) -> Option<T> {
        match result {
            Ok(found) => {
                self.health.mark_working(&endpoint.key());
                Some(found)
            }
            Err(fault) => {
                if let Fault::Transient { reason, silence, .. } = &fault {
                    self.note_failure(endpoint, reason);
                    if *silence == Silence::Own {
                        self.health.mark_silent(&endpoint.key());
                    }
                }
                faults.add(endpoint, fault);
                None
            }
        }
    }

    /// Remembers for this pull that a host failed.
    fn note_failure(&self, endpoint: &Endpoint, reason: &str) {
        *endpoint.failure.lock().unwrap_or_else(PoisonError::into_inner) = Some(reason.to_owned());
    }

    /// Why a host should not be asked: it failed in this pull, or was silent in another one.
    fn failure(&self, endpoint: &Endpoint) -> Option<String> {
        let failure = endpoint.failure.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let silent = || {
            let ago = health::MEMORY.as_secs();
            let was_silent = self.health.was_silent(&endpoint.key());
            was_silent.then(|| format!("because another pull had no answer from it less than {ago} s ago"))
        };
        failure.map(|reason| format!("again after: {reason}")).or_else(silent)
    }

    /// Retries a request to one host while its fault may be temporary. If another host can be asked, a host that cannot
    /// be reached is not tried again, because each attempt may take a whole time limit.
    async fn retried<T, F: Future<Output = Result<T, Fault>>>(
        &self,
        (endpoint, is_last): (&Endpoint, bool),
        try_once: impl Fn() -> F,
    ) -> Result<T, Fault> {
        let mut waits = BACKOFF.iter();
        loop {
            let fault = match try_once().await {
                Err(fault @ Fault::Transient { .. }) => fault,
                other => return other,
            };
            let Fault::Transient { reason, retry_after, silence } = &fault else { return Err(fault) };
            let Some(wait) = waits.next() else { return Err(fault) };
            if *silence != Silence::No {
                if !is_last {
                    return Err(fault);
                }
                waits = [].iter();
            }
            let wait = retry_after.unwrap_or_default().max(*wait);
            if wait > MAX_RETRY_AFTER {
                return Err(fault);
            }
            tracing::debug!(host = endpoint.host.authority, reason, ?wait, "request to registry is retried");
            sleep(wait).await;
        }
    }
}

impl Endpoint {
    /// The client for a host that this one leads to. The client certificate and headers of `hosts.toml` are for the host
    /// that they are configured for. Its `ca` is trusted for all, as token servers and storage often have certificates of
    /// the same CA. `skip_verify` holds for hosts near it: a registry with a certificate that nobody has signed has its
    /// token server beside it, with another such certificate.
    fn client_for(&self, url: &Uri) -> Result<&Http, OutOfReach> {
        match Nearness::of(url, &self.host.authority) {
            Nearness::Same => Ok(&self.http),
            Nearness::Sibling => self.reach.check_url(url).map(|()| &self.near),
            Nearness::Other => self.reach.check_url(url).map(|()| &self.other),
        }
    }

    /// Its name among the hosts of all pulls.
    fn key(&self) -> String {
        format!("{}://{}", self.host.scheme, self.host.authority)
    }
}

/// The TLS for a host, for the hosts near it that it leads to, and for others (see [`Endpoint::client_for`]).
fn tls_of(host: &Host) -> Result<(ClientConfig, ClientConfig, ClientConfig)> {
    if host.scheme == "http" {
        // For redirects to https from a host that is configured with http.
        let tls = Tls::default().client_config()?;
        return Ok((tls.clone(), tls.clone(), tls));
    }
    let own = host.tls.client_config()?;
    let without_client = Tls { clients: Vec::new(), ..host.tls.clone() };
    let near = if host.tls.clients.is_empty() { own.clone() } else { without_client.client_config()? };
    let verified = Tls { skip_verify: false, ..without_client };
    let other = if host.tls.skip_verify { verified.client_config()? } else { near.clone() };
    Ok((own, near, other))
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
