//! The transfer of a layer's blob.

mod ahead;

use self::ahead::Ahead;
use super::fault::Fault;
use super::request::Get;
use super::{BACKOFF, Endpoint, Kind, Registry};
use crate::error::{Error, Result};
use crate::manifest::Descriptor;
use bytes::Bytes;
use hyper::body::Incoming;
use hyper::header::{CONTENT_LENGTH, CONTENT_RANGE, HeaderValue};
use hyper::{Response, StatusCode};
use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, sleep};

/// Maximum number of times in a row that the transfer of one blob is resumed without progress.
const MAX_RESUMES: usize = 6;
/// A connection makes progress if it brings so many bytes. Some proxies end each connection after a minute, so that a large
/// blob needs many.
const PROGRESS: u64 = if cfg!(test) { 64 << 10 } else { 1 << 20 };
/// After so many broken connections in a row, another host is asked first.
const MAX_BREAKS_OF_HOST: usize = 2;

/// For how long the rate of the first connection is watched before others are opened. If the transfer has waited for the
/// network for three quarters of this time, that is what limits it.
const WATCHED: Duration = Duration::from_millis(if cfg!(test) { 200 } else { 1000 });

/// The transfer of one blob. It is resumed after broken connections.
#[derive(Debug)]
pub(crate) struct Blob<'a> {
    registry: &'a Registry,
    wanted: Descriptor,
    /// Below that of the host.
    path: Arc<str>,
    /// Bytes returned to the caller so far.
    offset: u64,
    /// Bytes to skip at the start of `body`, because an earlier connection has returned them.
    skip: u64,
    /// The current connection's response.
    body: Option<Incoming>,
    /// Broken connections since the last one that made progress.
    breaks: usize,
    /// `offset` at the last broken connection.
    broke_at: u64,
    /// The host that sends, and how many of its connections broke in a row.
    sender: Option<(&'a Endpoint, usize)>,
    /// What further connections bring.
    ahead: Ahead<'a>,
    watched: Watched,
}

/// What the first connection did since it is watched.
#[derive(Debug)]
struct Watched {
    since: Instant,
    /// How long the transfer has waited for it.
    waited: Duration,
    /// What it has brought.
    bytes: u64,
}

impl Watched {
    fn new() -> Self {
        Self { since: Instant::now(), waited: Duration::ZERO, bytes: 0 }
    }
}

impl<'a> Blob<'a> {
    pub(super) fn new(registry: &'a Registry, wanted: Descriptor) -> Self {
        let path: Arc<str> = registry.path(Kind::Blobs, &wanted.digest.to_string()).into();
        let (ahead, watched) = (Ahead::new(registry, path.clone(), wanted.size), Watched::new());
        let (offset, skip, body, breaks, broke_at, sender) = (0, 0, None, 0, 0, None);
        Self { registry, wanted, path, offset, skip, body, breaks, broke_at, sender, ahead, watched }
    }

    /// Waits for the next bytes, never empty; `None` after as many bytes as the manifest states. The caller must
    /// verify the digest.
    pub(crate) async fn next(&mut self) -> Result<Option<Bytes>> {
        while self.offset < self.wanted.size {
            // Without a body the first connection has been dropped where the pieces begin, or has broken before that: then it
            // is opened again, and the pieces wait until it reaches them.
            if self.body.is_none()
                && self.is_at_pieces()
                && let Some(part) = self.ahead.next().await
            {
                self.offset += part.len() as u64;
                return Ok(Some(part));
            }
            let mut body = match self.body.take() {
                Some(body) => body,
                None => self.open().await?,
            };
            let reason = match self.next_part(&mut body).await {
                Ok(Some(mut part)) => {
                    let old = usize::try_from(self.skip).map_or(part.len(), |skip| skip.min(part.len()));
                    self.skip -= old as u64;
                    let part = part.split_off(old);
                    let Some(part) = self.received(part, body)? else { continue };
                    return Ok(Some(part));
                }
                Ok(None) => "connection closed early".to_owned(),
                Err(Fault::Transient { reason, .. }) => reason,
                Err(_) => "connection broke".to_owned(),
            };
            self.breaks = if self.offset - self.broke_at < PROGRESS { self.breaks + 1 } else { 1 };
            self.broke_at = self.offset;
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

    /// Whether the next byte is the first one of the pieces.
    fn is_at_pieces(&self) -> bool {
        self.ahead.first().is_some_and(|(start, _)| start <= self.offset)
    }

    /// Waits for the next bytes of the first connection. Meanwhile the others make progress.
    async fn next_part(&mut self, body: &mut Incoming) -> Result<Option<Bytes>, Fault> {
        let began = Instant::now();
        let mut part = pin!(self.registry.next_part(body));
        let part = poll_fn(|cx| {
            self.ahead.drive(cx, 0);
            part.as_mut().poll(cx)
        });
        let part = part.await;
        self.watched.waited += began.elapsed();
        part
    }

    /// Counts what the first connection has brought; `None` if it has brought nothing new. Opens further connections if
    /// it is slow, and drops it where their pieces begin.
    fn received(&mut self, mut part: Bytes, body: Incoming) -> Result<Option<Bytes>> {
        let end = self.offset + part.len() as u64;
        if end > self.wanted.size {
            let reason = format!("it has more than the {} bytes that the manifest states", self.wanted.size);
            return Err(Error::corrupt(format!("layer {}", self.wanted.digest), reason));
        }
        match self.ahead.first() {
            Some((start, true)) if end >= start => {
                part.truncate(usize::try_from(start - self.offset).unwrap_or(part.len()));
            }
            overtaken => {
                if overtaken.is_some_and(|(start, _)| end >= start) {
                    self.ahead.give_up();
                }
                self.body = Some(body);
            }
        }
        self.offset += part.len() as u64;
        self.watched.bytes += part.len() as u64;
        if self.watched.since.elapsed() >= WATCHED {
            self.open_more_if_slow();
        }
        Ok((!part.is_empty()).then_some(part))
    }

    /// Opens further connections if the first one was slow since it is watched.
    fn open_more_if_slow(&mut self) {
        let Watched { since, waited, bytes } = std::mem::replace(&mut self.watched, Watched::new());
        if waited >= since.elapsed() * 3 / 4
            && let Some((endpoint, _)) = self.sender
        {
            // The first connection must not have overtaken the first piece before the host answers, which it may do about
            // a second later.
            self.ahead.start(self.offset + bytes, endpoint);
        }
    }

    /// Counts a broken connection of the host that sends. One whose connections break again and again counts as failed.
    fn count_break(&mut self, reason: &str) {
        if let Some((endpoint, breaks)) = &mut self.sender {
            *breaks += 1;
            if *breaks >= MAX_BREAKS_OF_HOST {
                self.registry.note_failure(endpoint, reason);
            }
        }
    }

    /// Requests the rest of the blob from the first host that serves it.
    async fn open(&mut self) -> Result<Incoming> {
        let registry = self.registry;
        let range = (self.offset > 0).then_some((self.offset, None));
        let get = Get { path: &self.path, accept: "*/*", range, verified: true, head: false };
        let object = Some(format!("blobs/{}", self.wanted.digest));
        let whole = Get { range: None, ..get };
        let (get, whole, offset, size) = (&get, &whole, self.offset, self.wanted.size);
        let request = |endpoint| async move {
            let response = match registry.get(endpoint, get).await {
                // Storage may refuse the rest of what it has sent before (400, 416).
                Err(Fault::Final(_)) if offset > 0 => registry.get(endpoint, whole).await?,
                other => other?,
            };
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

#[cfg(test)]
mod tests;
