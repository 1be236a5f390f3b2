//! A small HTTP/1.1 client based on hyper-util: pushes images and reads kubelet's endpoints.

use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::{Method, Request, StatusCode, header};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;

/// Maximum size of a body that is read; test images and kubelet's responses are far smaller.
const MAX_BODY: usize = 256 << 20;
/// Time limit of one request.
const LIMIT: Duration = Duration::from_secs(30);

/// The client; cloning shares its connections.
#[derive(Debug, Clone)]
pub(crate) struct Http(Client<HttpConnector, Full<Bytes>>);

/// A response.
#[derive(Debug)]
pub(crate) struct Answer {
    /// HTTP status.
    pub(crate) status: StatusCode,
    /// The `Location` header.
    pub(crate) location: Option<String>,
    /// The whole body.
    pub(crate) body: Bytes,
}

impl Answer {
    /// The body as text, or an error if the status is not 2xx.
    pub(crate) fn text(self) -> Result<String> {
        if !self.status.is_success() {
            bail!("HTTP {}: {}", self.status, String::from_utf8_lossy(&self.body));
        }
        Ok(String::from_utf8_lossy(&self.body).into_owned())
    }
}

impl Http {
    /// A client for plain HTTP.
    pub(crate) fn new() -> Self {
        Self(Client::builder(TokioExecutor::new()).build(HttpConnector::new()))
    }

    /// Sends one request, limited in time and size.
    pub(crate) async fn send(
        &self,
        method: Method,
        url: &str,
        kind: Option<&str>,
        body: Bytes,
    ) -> Result<Answer> {
        let mut request = Request::builder().method(method.clone()).uri(url);
        if let Some(kind) = kind {
            request = request.header(header::CONTENT_TYPE, kind);
        }
        let request = request.body(Full::new(body))?;
        let work = async {
            let reply = self.0.request(request).await?;
            let status = reply.status();
            let location =
                reply.headers().get(header::LOCATION).and_then(|v| v.to_str().ok()).map(str::to_owned);
            let body = Limited::new(reply.into_body(), MAX_BODY)
                .collect()
                .await
                .map_err(|e| anyhow::anyhow!(e))?
                .to_bytes();
            Ok::<_, anyhow::Error>(Answer { status, location, body })
        };
        crate::wait::timeout(LIMIT, work)
            .await
            .with_context(|| format!("{method} {url}: no answer in {LIMIT:?}"))?
            .with_context(|| format!("{method} {url}"))
    }

    /// The body of a GET request, which must succeed.
    pub(crate) async fn get(&self, url: &str) -> Result<String> {
        self.send(Method::GET, url, None, Bytes::new()).await?.text().with_context(|| format!("GET {url}"))
    }
}
