//! Frames: a 16-byte header, then JSON. Bytes in, messages out; no I/O.
//!
//! ```text
//!  0      2        3       4          8            16
//!  | "cp" | format | nfds  | length   | id         | payload (length bytes of JSON)
//! ```
//!
//! Numbers are little-endian. `id` matches a reply to its request and is 0 otherwise. `nfds` descriptors
//! ride on the frame's first byte; the receiver takes them in order of arrival.

use crate::{Event, MAX_FDS, MAX_FRAME, Message, Request};

/// First bytes of each frame.
const MAGIC: [u8; 2] = *b"cp";
/// Raised only if the header itself changes, which would end compatibility.
const FORMAT: u8 = 1;
/// Header length.
const HEADER: usize = 16;

/// Why bytes are no frame, or a message makes none.
#[derive(Debug, thiserror::Error)]
pub enum CodecError {
    /// Something else speaks on this socket.
    #[error("frame begins with {0:02x?}, not with \"cp\" and format 1")]
    Foreign([u8; 3]),
    /// Longer than [`MAX_FRAME`].
    #[error("payload of {0} bytes; the limit is {MAX_FRAME}")]
    TooLong(usize),
    /// More than [`MAX_FDS`].
    #[error("{0} descriptors on a frame; the limit is {MAX_FDS}")]
    TooManyFds(usize),
    /// Not JSON, or not of this protocol.
    #[error("payload cannot be read: {0}")]
    Payload(#[source] serde_json::Error),
    /// A message that JSON cannot hold.
    #[error("message cannot be written: {0}")]
    Encode(#[source] serde_json::Error),
}

/// A received frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// Of the request; 0 where there is none.
    pub id: u64,
    /// Descriptors that came with it.
    pub nfds: usize,
    /// What it says.
    pub message: Message,
}

/// Appends a frame to `out`; on error `out` is as before.
pub fn encode(id: u64, nfds: usize, message: &Message, out: &mut Vec<u8>) -> Result<(), CodecError> {
    let fds = match u8::try_from(nfds) {
        Ok(fds) if nfds <= MAX_FDS => fds,
        _ => return Err(CodecError::TooManyFds(nfds)),
    };
    let start = out.len();
    out.extend_from_slice(&[0; HEADER]);
    if let Err(error) = serde_json::to_writer(&mut *out, message) {
        out.truncate(start);
        return Err(CodecError::Encode(error));
    }
    let length = out.len() - start - HEADER;
    let length32 = match u32::try_from(length) {
        Ok(l) if length <= MAX_FRAME => l,
        _ => {
            out.truncate(start);
            return Err(CodecError::TooLong(length));
        }
    };
    let mut header = [0; HEADER];
    header[..2].copy_from_slice(&MAGIC);
    header[2] = FORMAT;
    header[3] = fds;
    header[4..8].copy_from_slice(&length32.to_le_bytes());
    header[8..].copy_from_slice(&id.to_le_bytes());
    if let Some(place) = out.get_mut(start..start + HEADER) {
        place.copy_from_slice(&header);
    }
    Ok(())
}

/// Collects bytes until frames are whole. Holds at most one frame and one read.
#[derive(Debug, Default)]
pub struct Decoder {
    buffer: Vec<u8>,
}

impl Decoder {
    /// Takes what was read.
    pub fn feed(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// The next whole frame. After an error the connection cannot be used any more: where the next frame
    /// would begin is not known.
    pub fn next_frame(&mut self) -> Result<Option<Frame>, CodecError> {
        let Some(header) = self.buffer.first_chunk::<HEADER>() else { return Ok(None) };
        let [m0, m1, format, nfds, l0, l1, l2, l3, id @ ..] = *header;
        if [m0, m1] != MAGIC || format != FORMAT {
            return Err(CodecError::Foreign([m0, m1, format]));
        }
        let length = u32::from_le_bytes([l0, l1, l2, l3]) as usize;
        if length > MAX_FRAME {
            return Err(CodecError::TooLong(length));
        }
        let nfds = usize::from(nfds);
        if nfds > MAX_FDS {
            return Err(CodecError::TooManyFds(nfds));
        }
        let Some(payload) = self.buffer.get(HEADER..HEADER + length) else { return Ok(None) };
        let message = message(payload)?;
        self.buffer.drain(..HEADER + length);
        if self.buffer.is_empty() && self.buffer.capacity() > 4096 {
            // The shim keeps no memory for a burst that is over.
            self.buffer = Vec::new();
        }
        Ok(Some(Frame { id: u64::from_le_bytes(id), nfds, message }))
    }
}

/// Reads a payload. What a later version added (a request or an event not known here) becomes `Unknown`;
/// anything else that cannot be read is an error.
fn message(payload: &[u8]) -> Result<Message, CodecError> {
    let error = match serde_json::from_slice(payload) {
        Ok(message) => return Ok(message),
        Err(error) => error,
    };
    // serde's `other` takes only variants without content, so the name is looked at by hand.
    let Ok(serde_json::Value::Object(outer)) = serde_json::from_slice(payload) else {
        return Err(CodecError::Payload(error));
    };
    let name = |value: &serde_json::Value| match value {
        serde_json::Value::Object(inner) if inner.len() == 1 => inner.keys().next().cloned(),
        _ => None,
    };
    match outer.iter().next() {
        Some((kind, value)) if outer.len() == 1 => match (kind.as_str(), name(value)) {
            ("Request", Some(name)) if !KNOWN_REQUESTS.contains(&name.as_str()) => Ok(Message::Request(Request::Unknown)),
            ("Event", Some(name)) if !KNOWN_EVENTS.contains(&name.as_str()) => Ok(Message::Event(Event::Unknown)),
            _ => Err(CodecError::Payload(error)),
        },
        _ => Err(CodecError::Payload(error)),
    }
}

/// Requests with content; a known one that cannot be read is an error, not `Unknown`.
const KNOWN_REQUESTS: [&str; 7] = ["Create", "Start", "Kill", "Exec", "KillExec", "ReopenLog", "Forget"];
/// Events with content.
const KNOWN_EVENTS: [&str; 4] = ["Exited", "ExecExited", "PauseExited", "Warning"];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Hello, PROTOCOL, Reply};
    use model::{ContainerId, PodId};
    use proptest::prelude::*;

    fn frames() -> Vec<(u64, usize, Message)> {
        let id = ContainerId::from_random([7; 32]);
        vec![
            (0, 0, Message::Hello(Hello { protocol: PROTOCOL, build: "1".into(), pod: PodId::from_random([1; 32]), pid: 9 })),
            (1, 12, Message::Request(Request::Create { container: id.clone(), deadline_ms: 5 })),
            (2, 0, Message::Request(Request::StopPod)),
            (1, 1, Message::Reply(Reply::PauseStarted { pid: 3 })),
            (0, 0, Message::Event(Event::Warning { container: Some(id), message: "disk".into() })),
            (0, 0, Message::SnapshotEnd),
        ]
    }

    proptest! {
        #[test]
        fn any_chunking_gives_the_same_frames(cuts in proptest::collection::vec(1usize..40, 1..64)) {
            let mut bytes = Vec::new();
            for (id, nfds, message) in frames() {
                encode(id, nfds, &message, &mut bytes).unwrap();
            }
            let (mut decoder, mut got, mut rest) = (Decoder::default(), Vec::new(), bytes.as_slice());
            let mut cuts = cuts.iter().cycle();
            while !rest.is_empty() {
                let (now, later) = rest.split_at((*cuts.next().unwrap()).min(rest.len()));
                decoder.feed(now);
                rest = later;
                while let Some(f) = decoder.next_frame().unwrap() {
                    got.push((f.id, f.nfds, f.message));
                }
            }
            prop_assert_eq!(got, frames());
        }

        #[test]
        fn garbage_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mut decoder = Decoder::default();
            decoder.feed(b"cp\x01\x00");
            decoder.feed(&bytes);
            while let Ok(Some(_)) = decoder.next_frame() {}
        }
    }

    fn raw(json: &str) -> Result<Option<Frame>, CodecError> {
        let mut decoder = Decoder::default();
        decoder.feed(b"cp\x01\x00");
        decoder.feed(&u32::try_from(json.len()).unwrap().to_le_bytes());
        decoder.feed(&[0; 8]);
        decoder.feed(json.as_bytes());
        decoder.next_frame()
    }

    #[test]
    fn what_is_not_known_yet_is_told_apart_from_what_is_broken() {
        for later in [r#"{"Request":{"Resize":{"rows":3}}}"#, r#"{"Request":"Pause2"}"#] {
            assert_eq!(raw(later).unwrap().unwrap().message, Message::Request(Request::Unknown), "{later}");
        }
        assert_eq!(raw(r#"{"Event":{"Oom":{}}}"#).unwrap().unwrap().message, Message::Event(Event::Unknown));
        for broken in ["{}", "[]", r#"{"Request":{"Start":{}}}"#, r#"{"Reply":"Perhaps"}"#, "not json"] {
            assert!(matches!(raw(broken), Err(CodecError::Payload(_))), "{broken}");
        }
    }

    #[test]
    fn limits() {
        let mut decoder = Decoder::default();
        decoder.feed(b"GET / HTTP/1.1\r\n\r\n");
        assert!(matches!(decoder.next_frame(), Err(CodecError::Foreign(_))));
        let mut decoder = Decoder::default();
        decoder.feed(&[b'c', b'p', 1, 0, 255, 255, 255, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        assert!(matches!(decoder.next_frame(), Err(CodecError::TooLong(_))));
        let message = Message::Event(Event::Warning { container: None, message: "x".repeat(MAX_FRAME) });
        let mut out = vec![1];
        assert!(matches!(encode(0, 0, &message, &mut out), Err(CodecError::TooLong(_))));
        assert!(matches!(encode(0, MAX_FDS + 1, &Message::SnapshotEnd, &mut out), Err(CodecError::TooManyFds(_))));
        assert_eq!(out, [1], "a failed encode leaves nothing");
    }
}
