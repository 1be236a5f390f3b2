//! The transfer of a layer's blob.

use super::fault::Fault;
use super::request::Get;
use super::{BACKOFF, Endpoint, Kind, Registry};
use crate::error::{Error, Result};
use crate::manifest::Descriptor;
use bytes::Bytes;
use hyper::body::Incoming;
use hyper::header::{CONTENT_LENGTH, CONTENT_RANGE, HeaderValue};
use hyper::{Response, StatusCode};
use tokio::time::sleep;

/// Maximum number of times that the transfer of one blob is resumed.
const MAX_RESUMES: usize = 6;
/// After so many broken connections in a row, another host is asked first.
const MAX_BREAKS_OF_HOST: usize = 2;

/// The transfer of one blob. It is resumed after broken connections.
#[derive(Debug)]
pub(crate) struct Blob<'a> {
    registry: &'a Registry,
    wanted: Descriptor,
    /// Bytes returned to the caller so far.
    offset: u64,
    /// Bytes to skip at the start of `body`, because an earlier connection has returned them.
    skip: u64,
    /// The current connection's response.
    body: Option<Incoming>,
    /// Broken connections so far.
    breaks: usize,
    /// The host that sends, and how many of its connections broke in a row.
    sender: Option<(&'a Endpoint, usize)>,
}

impl<'a> Blob<'a> {
    pub(super) fn new(registry: &'a Registry, wanted: Descriptor) -> Self {
        Self { registry, wanted, offset: 0, skip: 0, body: None, breaks: 0, sender: None }
    }

    /// Waits for the next bytes, never empty; `None` after as many bytes as the manifest states. The caller must
    /// verify the digest.
    pub(crate) async fn next(&mut self) -> Result<Option<Bytes>> {
        while self.offset < self.wanted.size {
            let mut body = match self.body.take() {
                Some(body) => body,
                None => self.open().await?,
            };
            let reason = match self.registry.next_part(&mut body).await {
                Ok(Some(mut part)) => {
                    let old = usize::try_from(self.skip).map_or(part.len(), |skip| skip.min(part.len()));
                    self.skip -= old as u64;
                    let part = part.split_off(old);
                    self.offset += part.len() as u64;
                    if self.offset > self.wanted.size {
                        let reason = format!(
                            "it has more than the {} bytes that the manifest states",
                            self.wanted.size
                        );
                        return Err(Error::corrupt(format!("layer {}", self.wanted.digest), reason));
                    }
                    self.body = Some(body);
                    if part.is_empty() {
                        continue;
                    }
                    return Ok(Some(part));
                }
                Ok(None) => "connection closed early".to_owned(),
                Err(Fault::Transient { reason, .. }) => reason,
                Err(_) => "connection broke".to_owned(),
            };
            self.breaks += 1;
            self.count_break(&reason);
            if self.breaks > MAX_RESUMES {
                let detail = format!("layer {}: {reason}, {} times", self.wanted.digest, self.breaks);
                return Err(Error::Unavailable { reference: self.registry.reference.to_string(), detail });
            }
            tracing::debug!(layer = %self.wanted.digest, offset = self.offset, reason, "layer transfer is resumed");
            sleep(BACKOFF[self.breaks.min(BACKOFF.len()) - 1]).await;
        }
        Ok(None)
    }

    /// Counts a broken connection of the host that sends. One whose connections break again and again counts as failed.
    fn count_break(&mut self, reason: &str) {
        if let Some((endpoint, breaks)) = &mut self.sender {
            *breaks += 1;
            if *breaks >= MAX_BREAKS_OF_HOST {
                self.registry.failed(endpoint, reason);
            }
        }
    }

    /// Requests the rest of the blob from the first host that serves it.
    async fn open(&mut self) -> Result<Incoming> {
        let registry = self.registry;
        let path = registry.path(Kind::Blobs, &self.wanted.digest.to_string());
        let range = (self.offset > 0).then_some(self.offset);
        let get = Get { path: &path, accept: "*/*", range, verified: true, head: false };
        let object = Some(format!("blobs/{}", self.wanted.digest));
        let (get, offset, size) = (&get, self.offset, self.wanted.size);
        let request = |endpoint| async move {
            let response = registry.get(endpoint, get).await?;
            Ok((overlap(&response, offset, size)?, response.into_body()))
        };
        let (endpoint, (skip, body)) = registry.first_served(|host| host.pull, object, request).await?;
        let before = self.sender.filter(|(before, _)| std::ptr::eq(*before, endpoint));
        (self.skip, self.sender) = (skip, Some((endpoint, before.map_or(0, |(_, breaks)| breaks))));
        Ok(body)
    }
}

/// Number of bytes at the start of this response that were already returned, of a blob of `size` of which `offset` were:
/// 0 if the host honours the range. Fails if the response does not continue the transfer.
fn overlap(response: &Response<Incoming>, offset: u64, size: u64) -> Result<u64, Fault> {
    let header = |name| response.headers().get(name).and_then(|value: &HeaderValue| value.to_str().ok());
    let skip = if response.status() == StatusCode::PARTIAL_CONTENT {
        let start = header(CONTENT_RANGE).and_then(|range| range.strip_prefix("bytes ")?.split('-').next());
        let start = start.and_then(|start| start.parse::<u64>().ok());
        match start.and_then(|start| offset.checked_sub(start)) {
            Some(skip) => skip,
            None => {
                return Err(Fault::Corrupt("the response has another range than requested".to_owned()));
            }
        }
    } else {
        offset
    };
    let length = header(CONTENT_LENGTH).and_then(|length| length.parse::<u64>().ok());
    let wanted = size - offset + skip;
    if length.is_some_and(|length| length != wanted) {
        let reason =
            format!("{} bytes instead of {wanted}, as the manifest states", length.unwrap_or_default());
        return Err(Fault::Corrupt(reason));
    }
    Ok(skip)
}
