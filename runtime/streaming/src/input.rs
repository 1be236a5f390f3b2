//! What one read from a client brought.

/// Received bytes and how far they were understood.
///
/// The connections take bytes only as far as they need for one event. Whoever cannot use an event at once (the
/// process's stdin is full) calls no further, reads no further, and TCP stops the client.
#[derive(Debug)]
pub struct Input<'i> {
    /// As they were received.
    pub(crate) raw: &'i mut [u8],
    /// Taken from `raw` by an outer protocol, and not yet by the one inside it.
    pub(crate) inner: &'i mut [u8],
}

impl<'i> Input<'i> {
    /// The bytes of one read. They are changed in place: WebSocket payloads are masked.
    pub fn new(bytes: &'i mut [u8]) -> Self {
        Self { raw: bytes, inner: &mut [] }
    }

    /// Whether everything was understood. If not, and there is no event, output must be written first.
    pub fn is_empty(&self) -> bool {
        self.raw.is_empty() && self.inner.is_empty()
    }
}

/// Takes at most `count` bytes from the front of `input`.
pub(crate) fn take<'i>(input: &mut &'i mut [u8], count: usize) -> &'i mut [u8] {
    let bytes = std::mem::take(input);
    let (taken, rest) = bytes.split_at_mut(count.min(bytes.len()));
    *input = rest;
    taken
}
