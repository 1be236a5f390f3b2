//! Converts between frames and messages, with size limits.
//!
//! ```text
//! 0      2         3        4          8         16
//! | "cp" | version | nfds:u8 | len:u32 | id:u64  | JSON, len bytes |     little-endian
//! ```
//! Descriptors are sent with the frame's first byte. The header has their number, so that a reader which
//! keeps them in order of arrival can assign them to frames.
//!
//! Unknown content from a peer of a later version is not an error: see [`decode`].

use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, MapAccess, Visitor};

use crate::failure::{ErrorKind, Failure};
use crate::message::{Event, MAX_FDS, MAX_FRAME, Message, Reply, Request};

/// Bytes of a header.
const HEADER: usize = 16;
/// First two bytes of each frame.
const MAGIC: [u8; 2] = *b"cp";
/// Version of the frame format, not of the messages.
const VERSION: u8 = 1;
/// Maximum number of bytes that an idle decoder keeps allocated: one large frame must not enlarge the shim's heap.
const KEEP: usize = 1024;

/// Why bytes are not a frame, or a payload not a message. The connection must be closed.
#[derive(Debug, thiserror::Error)]
pub enum CodecError {
    /// The header is invalid.
    #[error("no frame header: starts with {0:02x?}")]
    Header([u8; 4]),
    /// Larger than [`MAX_FRAME`].
    #[error("payload of {0} bytes, at most {MAX_FRAME} are allowed")]
    TooLarge(usize),
    /// More than [`MAX_FDS`].
    #[error("{0} descriptors on a frame, at most {MAX_FDS} are allowed")]
    TooManyFds(u8),
    /// Not JSON, or a known message with missing or invalid fields.
    #[error("frame {id}: {source}")]
    Payload {
        /// The id in its header.
        id: u64,
        /// The error of the JSON parser.
        source: serde_json::Error,
    },
}

/// A received frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// Id of the request, also on its reply; 0 for other messages.
    pub id: u64,
    /// Number of its descriptors.
    pub nfds: u8,
    /// Its payload.
    pub message: Message,
}

/// Appends one frame to `out`, which is unchanged on an error.
///
/// # Errors
/// [`CodecError::TooLarge`] and [`CodecError::TooManyFds`].
pub fn encode(id: u64, nfds: u8, message: &Message, out: &mut Vec<u8>) -> Result<(), CodecError> {
    if usize::from(nfds) > MAX_FDS {
        return Err(CodecError::TooManyFds(nfds));
    }
    let start = out.len();
    out.extend_from_slice(&MAGIC);
    out.extend_from_slice(&[VERSION, nfds, 0, 0, 0, 0]);
    out.extend_from_slice(&id.to_le_bytes());
    if let Err(source) = serde_json::to_writer(&mut *out, message) {
        out.truncate(start);
        return Err(CodecError::Payload { id, source });
    }
    let len = out.len() - start - HEADER;
    match u32::try_from(len) {
        Ok(short) if len <= MAX_FRAME => {
            if let Some(place) = out.get_mut(start + 4..start + 8) {
                place.copy_from_slice(&short.to_le_bytes());
            }
            Ok(())
        }
        _ => {
            out.truncate(start);
            Err(CodecError::TooLarge(len))
        }
    }
}

/// Splits a byte stream into frames. It holds at most one incomplete frame if [`Decoder::next`] is called
/// until it returns `None` after each [`Decoder::feed`].
#[derive(Debug, Default)]
pub struct Decoder {
    buffer: Vec<u8>,
    used: usize,
}

impl Decoder {
    /// An empty decoder.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes received bytes.
    pub fn feed(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// The next complete frame; `None` if more bytes are needed.
    ///
    /// # Errors
    /// [`CodecError`]; every further call returns the same.
    #[expect(clippy::should_implement_trait, reason = "an iterator would end at the first None")]
    pub fn next(&mut self) -> Result<Option<Frame>, CodecError> {
        let rest = self.buffer.get(self.used..).unwrap_or_default();
        let Some((header, body)) = rest.split_first_chunk::<HEADER>() else {
            if !rest.is_empty() && !MAGIC.starts_with(rest.get(..rest.len().min(2)).unwrap_or_default()) {
                return Err(CodecError::Header(first_four(rest)));
            }
            self.compact();
            return Ok(None);
        };
        let [m0, m1, version, nfds, l0, l1, l2, l3, id @ ..] = *header;
        if [m0, m1] != MAGIC || version != VERSION {
            return Err(CodecError::Header(first_four(rest)));
        }
        if usize::from(nfds) > MAX_FDS {
            return Err(CodecError::TooManyFds(nfds));
        }
        let len = usize::try_from(u32::from_le_bytes([l0, l1, l2, l3])).unwrap_or(usize::MAX);
        if len > MAX_FRAME {
            return Err(CodecError::TooLarge(len));
        }
        let id = u64::from_le_bytes(id);
        let Some(payload) = body.get(..len) else {
            self.compact();
            return Ok(None);
        };
        let message = decode(payload).map_err(|source| CodecError::Payload { id, source })?;
        self.used += HEADER + len;
        Ok(Some(Frame { id, nfds, message }))
    }

    /// Discards the bytes of returned frames.
    fn compact(&mut self) {
        self.buffer.drain(..self.used.min(self.buffer.len()));
        self.used = 0;
        if self.buffer.is_empty() {
            self.buffer.shrink_to(KEEP);
        }
    }
}

fn first_four(bytes: &[u8]) -> [u8; 4] {
    let mut four = [0; 4];
    four.iter_mut().zip(bytes).for_each(|(to, from)| *to = *from);
    four
}

/// Decodes a payload. Unknown variants become messages that each side can handle: a request
/// [`Request::Unknown`] (replied to with [`ErrorKind::Unsupported`]), an event [`Event::Unknown`] (skipped),
/// a reply [`Reply::Failed`] with `Unsupported`, and a snapshot entry or a message of an unknown class
/// [`Event::Unknown`]. A known variant with missing or invalid fields is an error.
///
/// # Errors
/// Not JSON, or a known message with missing or invalid fields.
pub fn decode(payload: &[u8]) -> Result<Message, serde_json::Error> {
    let error = match serde_json::from_slice(payload) {
        Ok(message) => return Ok(message),
        Err(error) => error,
    };
    let Ok(Tags { class, variant }) = serde_json::from_slice(payload) else { return Err(error) };
    let variant = variant.as_deref().unwrap_or_default();
    let unknown = |known: &[&str]| !variant.is_empty() && !known.contains(&variant);
    match class.as_str() {
        "Request" if unknown(REQUESTS) => Ok(Message::Request(Request::Unknown)),
        "Event" if unknown(EVENTS) => Ok(Message::Event(Event::Unknown)),
        "Snapshot" if unknown(SNAPSHOTS) => Ok(Message::Event(Event::Unknown)),
        "Reply" if unknown(REPLIES) => Ok(Message::Reply(Reply::Failed(Failure {
            kind: ErrorKind::Unsupported,
            stage: "reply".to_owned(),
            message: format!("reply {variant:?} is not known to this build"),
            errno: 0,
        }))),
        "Hello" | "Snapshot" | "SnapshotEnd" | "Request" | "Reply" | "Event" => Err(error),
        _ => Ok(Message::Event(Event::Unknown)),
    }
}

// serde's `other` accepts no variant with content, so the names are listed here; a test compares them with
// the fixtures.
const REQUESTS: &[&str] = &[
    "StartPause",
    "Create",
    "Start",
    "Kill",
    "Exec",
    "KillExec",
    "ReopenLog",
    "Attach",
    "CloseStdin",
    "Forget",
    "StopPod",
    "Shutdown",
    "Unknown",
];
const EVENTS: &[&str] = &["Exited", "Started", "ExecExited", "PauseExited", "Warning", "Unknown"];
const SNAPSHOTS: &[&str] = &["Pause", "Container", "Exec"];
const REPLIES: &[&str] = &["Done", "PauseStarted", "Created", "Started", "ExecStarted", "Failed"];

/// The two outer names of a message: `{"Request":{"Create":..}}` or `{"Request":"StopPod"}`.
struct Tags {
    class: String,
    variant: Option<String>,
}

impl<'de> Deserialize<'de> for Tags {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Outer;
        impl<'de> Visitor<'de> for Outer {
            type Value = Tags;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a message")
            }
            fn visit_str<E>(self, class: &str) -> Result<Tags, E> {
                Ok(Tags { class: class.to_owned(), variant: None })
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Tags, A::Error> {
                let Some((class, Tag(variant))) = map.next_entry()? else {
                    return Err(serde::de::Error::custom("empty message"));
                };
                while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
                Ok(Tags { class, variant })
            }
        }
        deserializer.deserialize_any(Outer)
    }
}

/// The name of a variant of an externally tagged enum; its content is skipped.
struct Tag(Option<String>);

impl<'de> Deserialize<'de> for Tag {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Inner;
        impl<'de> Visitor<'de> for Inner {
            type Value = Tag;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a variant")
            }
            fn visit_str<E>(self, name: &str) -> Result<Tag, E> {
                Ok(Tag(Some(name.to_owned())))
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Tag, A::Error> {
                let mut name = None;
                while let Some((key, IgnoredAny)) = map.next_entry::<String, IgnoredAny>()? {
                    name = name.or(Some(key));
                }
                Ok(Tag(name))
            }
        }
        deserializer.deserialize_any(Inner)
    }
}

#[cfg(test)]
mod tests;
