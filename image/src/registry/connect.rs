//! Connections to hosts: directly, or through the proxy of the request (`proxy`). The TLS to the host itself comes
//! above this, so of a request by https a proxy sees only the encrypted bytes.

use super::dns::{HostKind, Resolver};
use super::proxy::{Kind, Proxies, Proxy};
use super::reach::Reach;
use bytes::Bytes;
use futures_util::future::{BoxFuture, FutureExt as _};
use http_body_util::Empty;
use hyper::header::{HOST, PROXY_AUTHORIZATION};
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper::{Method, Request, StatusCode, Uri};
use hyper_rustls::HttpsConnector;
use hyper_util::client::legacy::connect::proxy::SocksV5;
use hyper_util::client::legacy::connect::{Connected, Connection, HttpConnector};
use rustls::ClientConfig;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tower_service::Service;

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// A connection through a proxy failed.
#[derive(Debug, thiserror::Error)]
enum ProxyError {
    #[error("proxy {proxy}")]
    Connect { proxy: Proxy, source: BoxError },
    #[error("proxy {proxy} does not connect to {target}: status {status}")]
    Refused { proxy: Proxy, target: String, status: StatusCode },
    #[error("proxy {proxy} does not connect to {target}")]
    Broken { proxy: Proxy, target: String, source: BoxError },
}

/// Connects to the hosts of registries.
#[derive(Debug, Clone)]
pub(crate) struct Connector {
    tcp: HttpConnector<Resolver>,
    to_proxies: HttpConnector<Resolver>,
    /// To proxies that are reached by TLS, if there are any.
    tls: Option<HttpsConnector<HttpConnector<Resolver>>>,
    proxies: Arc<Proxies>,
}

impl Connector {
    /// `limit` is the time for a TCP connection, `tls` how the certificates of proxies are verified, `kind` and `reach` for
    /// whom names are resolved.
    pub(crate) fn new(
        limit: Duration,
        (kind, reach): (HostKind, &Arc<Reach>),
        proxies: Arc<Proxies>,
        tls: Option<ClientConfig>,
    ) -> Self {
        let tcp = |kind| {
            let mut tcp = HttpConnector::new_with_resolver(Resolver::new(reach.clone(), kind));
            tcp.enforce_http(false);
            tcp.set_nodelay(true);
            tcp.set_connect_timeout(Some(limit));
            tcp
        };
        let to_proxies = tcp(HostKind::Any);
        let tls = tls.map(|tls| HttpsConnector::from((to_proxies.clone(), tls)));
        Self { tcp: tcp(kind), to_proxies, tls, proxies }
    }

    /// A connection to the proxy itself.
    async fn reach_proxy(mut self, proxy: &Proxy) -> Result<Stream, BoxError> {
        Ok(match &mut self.tls {
            Some(tls) if proxy.kind == Kind::Https => Stream::new(tls.call(proxy.uri.clone()).await?),
            _ => Stream::new(self.to_proxies.call(proxy.uri.clone()).await?),
        })
    }

    /// A connection through a proxy.
    async fn through(self, proxy: Proxy, target: Uri) -> Result<Stream, BoxError> {
        // Port and host as the proxy needs them.
        let is_https = target.scheme_str() == Some("https");
        let port = target.port_u16().unwrap_or(if is_https { 443 } else { 80 });
        let name = format!("{}:{port}", target.host().unwrap_or_default());
        if proxy.kind == Kind::Socks5 {
            let mut socks = SocksV5::new(proxy.uri.clone(), self.to_proxies);
            if let Some((user, password)) = proxy.login.clone() {
                socks = socks.with_auth(user, password);
            }
            let target =
                Uri::builder().scheme("http").authority(name.as_str()).path_and_query("/").build()?;
            let connected = socks.call(target).await;
            let failed = |error: BoxError| ProxyError::Broken { proxy, target: name, source: error };
            return Ok(Stream::new(connected.map_err(|error| failed(error.into()))?));
        }
        let stream = self.reach_proxy(&proxy).await;
        let stream = stream.map_err(|source| ProxyError::Connect { proxy: proxy.clone(), source })?;
        if is_https {
            return Ok(tunnel(stream, proxy, name).await?);
        }
        // The proxy gets the whole URL with each request.
        Ok(Stream { is_for_proxy: true, ..stream })
    }
}

/// Asks a proxy for a connection to `target` (CONNECT, RFC 9110, 9.3.6).
async fn tunnel(stream: Stream, proxy: Proxy, target: String) -> Result<Stream, ProxyError> {
    let attempt = async {
        let (mut sender, connection) = hyper::client::conn::http1::handshake(stream).await?;
        // Ends with the request if it is given up, and with the response.
        tokio::spawn(connection.with_upgrades());
        let mut request = Request::builder().method(Method::CONNECT).uri(&target).header(HOST, &target);
        if let Some(authorization) = proxy.authorization() {
            request = request.header(PROXY_AUTHORIZATION, authorization);
        }
        let response = sender.send_request(request.body(Empty::<Bytes>::new())?).await?;
        let status = response.status();
        if !status.is_success() {
            return Ok(Err(status));
        }
        Ok::<_, BoxError>(Ok(Stream::new(hyper::upgrade::on(response).await?)))
    };
    match attempt.await {
        Ok(Ok(stream)) => Ok(stream),
        Ok(Err(status)) => Err(ProxyError::Refused { proxy, target, status }),
        Err(source) => Err(ProxyError::Broken { proxy, target, source }),
    }
}

impl Service<Uri> for Connector {
    type Response = Stream;
    type Error = BoxError;
    type Future = BoxFuture<'static, Result<Stream, BoxError>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        // The connectors below are always ready, because the resolver is.
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, target: Uri) -> Self::Future {
        match self.proxies.of(&target).cloned() {
            Some(proxy) => self.clone().through(proxy, target).boxed(),
            None => {
                let connecting = self.tcp.call(target);
                async { Ok(Stream::new(connecting.await?)) }.boxed()
            }
        }
    }
}

/// What every kind of connection is.
trait Io: Read + Write + Send + Unpin {}

impl<T: Read + Write + Send + Unpin> Io for T {}

/// A connection to a host, or to the proxy that serves its requests.
pub(crate) struct Stream {
    io: Box<dyn Io>,
    /// Requests are for the proxy, so they must name the host.
    is_for_proxy: bool,
}

impl Stream {
    fn new(io: impl Io + 'static) -> Self {
        Self { io: Box::new(io), is_for_proxy: false }
    }
}

impl Connection for Stream {
    fn connected(&self) -> Connected {
        Connected::new().proxy(self.is_for_proxy)
    }
}

impl Read for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, into)
    }
}

impl Write for Stream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}
