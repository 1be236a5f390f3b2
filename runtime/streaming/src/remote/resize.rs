//! Terminal sizes: JSON objects one after another, such as `{"Width":80,"Height":24}`.

use serde::Deserialize;

/// Maximum size of one object in bytes; a longer one is dropped.
const MAX_OBJECT: usize = 1024;

/// Size of a terminal in characters; neither is 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size {
    /// Columns.
    pub width: u16,
    /// Rows.
    pub height: u16,
}

/// As it is sent. Go reads names without regard to case, so clients differ.
#[derive(Deserialize)]
struct Wire {
    #[serde(rename = "Width", alias = "width", default)]
    width: u16,
    #[serde(rename = "Height", alias = "height", default)]
    height: u16,
}

/// Reads a client's sizes. A malformed one is dropped with everything that was received with it; the session goes on.
#[derive(Debug, Default)]
pub(super) struct Resizes {
    /// An object that is not complete.
    rest: Vec<u8>,
}

impl Resizes {
    /// The last size that `bytes` complete: earlier ones would be overwritten at once.
    pub(super) fn last(&mut self, bytes: &[u8]) -> Option<Size> {
        // A limit on what is kept, not on the read: whole objects are used up first.
        self.rest.extend_from_slice(bytes);
        let mut objects = serde_json::Deserializer::from_slice(&self.rest).into_iter::<Wire>();
        let mut size = None;
        let mut used = 0;
        loop {
            match objects.next() {
                Some(Ok(Wire { width, height })) => {
                    used = objects.byte_offset();
                    // Zero means that the client does not know.
                    if width > 0 && height > 0 {
                        size = Some(Size { width, height });
                    }
                }
                Some(Err(error)) if error.is_eof() && self.rest.len() - used <= MAX_OBJECT => break,
                Some(Err(_)) | None => {
                    used = self.rest.len();
                    break;
                }
            }
        }
        self.rest.drain(..used);
        size
    }
}
