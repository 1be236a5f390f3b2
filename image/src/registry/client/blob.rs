//! The transfer of a layer.

use super::fault::{Failures, Fault};
use super::{BACKOFF, Get, Registry};
use crate::error::{Error, Result};
use crate::manifest::Descriptor;
use bytes::Bytes;
use hyper::body::Incoming;
use hyper::header::{CONTENT_LENGTH, CONTENT_RANGE, HeaderValue};
use hyper::{Response, StatusCode};
use tokio::time::sleep;

/// Number of times that the transfer of one blob may break and be resumed.
const MAX_RESUMES: usize = 6;

/// A transfer that resumes after broken connections.
#[derive(Debug)]
pub(crate) struct Blob<'a> {
    registry: &'a Registry,
    wanted: Descriptor,
    /// Bytes returned to the caller so far.
    offset: u64,
    /// Bytes of this connection to skip, because they were returned before it was opened.
    skip: u64,
    body: Option<Incoming>,
    breaks: usize,
}

impl<'a> Blob<'a> {
    pub(super) fn new(registry: &'a Registry, wanted: Descriptor) -> Self {
        Self { registry, wanted, offset: 0, skip: 0, body: None, breaks: 0 }
    }

    /// Returns the next bytes in order, each once; `None` after as many bytes as the manifest promises. The
    /// caller must verify the digest.
    pub(crate) async fn next(&mut self) -> Result<Option<Bytes>> {
        while self.offset < self.wanted.size {
            let mut body = match self.body.take() {
                Some(body) => body,
                None => self.open().await?,
            };
            let fault = match self.registry.part(&mut body).await {
                Ok(Some(mut part)) => {
                    let old = usize::try_from(self.skip).map_or(part.len(), |skip| skip.min(part.len()));
                    self.skip -= old as u64;
                    let part = part.split_off(old);
                    self.offset += part.len() as u64;
                    if self.offset > self.wanted.size {
                        let reason = format!("more than the promised {} bytes", self.wanted.size);
                        return Err(Error::corrupt(format!("layer {}", self.wanted.digest), reason));
                    }
                    self.body = Some(body);
                    if part.is_empty() {
                        continue;
                    }
                    return Ok(Some(part));
                }
                Ok(None) => "connection closed early".to_owned(),
                Err(Fault::Transient { what, .. }) => what,
                Err(_) => "connection broke".to_owned(),
            };
            self.breaks += 1;
            if self.breaks > MAX_RESUMES {
                let detail = format!("layer {}: {fault}, {} times", self.wanted.digest, self.breaks);
                return Err(Error::Unavailable { reference: self.registry.reference.to_string(), detail });
            }
            tracing::debug!(layer = %self.wanted.digest, offset = self.offset, fault, "transfer resumed");
            sleep(BACKOFF[self.breaks.min(BACKOFF.len()) - 1]).await;
        }
        Ok(None)
    }

    async fn open(&mut self) -> Result<Incoming> {
        let registry = self.registry;
        let mut failures = Failures::new(&registry.reference);
        let path = format!("{}/blobs/{}", registry.reference.repository(), self.wanted.digest);
        let range = (self.offset > 0).then_some(self.offset);
        let get = Get { path: &path, accept: "*/*", range, verified: true };
        for endpoint in registry.endpoints.iter().filter(|endpoint| endpoint.host.pull) {
            match registry.retried(endpoint, || registry.get(endpoint, &get)).await {
                Ok(response) => match self.continues(&response) {
                    Ok(skip) => {
                        self.skip = skip;
                        return Ok(response.into_body());
                    }
                    Err(fault) => failures.add(endpoint, fault),
                },
                Err(fault) => failures.add(endpoint, fault),
            }
        }
        Err(failures.error(Some(format!("blobs/{}", self.wanted.digest))))
    }

    /// Number of bytes of this response that were already returned.
    fn continues(&self, response: &Response<Incoming>) -> Result<u64, Fault> {
        let header = |name| response.headers().get(name).and_then(|value: &HeaderValue| value.to_str().ok());
        let skip = if response.status() == StatusCode::PARTIAL_CONTENT {
            let start =
                header(CONTENT_RANGE).and_then(|range| range.strip_prefix("bytes ")?.split('-').next());
            let start = start.and_then(|start| start.parse::<u64>().ok());
            match start.and_then(|start| self.offset.checked_sub(start)) {
                Some(skip) => skip,
                None => return Err(Fault::Final("the range served is not the one asked for".to_owned())),
            }
        } else {
            self.offset
        };
        let length = header(CONTENT_LENGTH).and_then(|length| length.parse::<u64>().ok());
        let wanted = self.wanted.size - self.offset + skip;
        if length.is_some_and(|length| length != wanted) {
            let reason =
                format!("serves {} bytes where the manifest says {wanted}", length.unwrap_or_default());
            return Err(Fault::Final(reason));
        }
        Ok(skip)
    }
}
