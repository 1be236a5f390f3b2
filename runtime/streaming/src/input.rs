//! What one read from a client brought.

/// Received bytes, and which of them were not taken yet.
///
/// The connections take only the bytes that they need for one event. A caller that cannot handle an event yet (the
/// process's stdin is full) makes no further call and does not read, so that TCP stops the client.
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

    /// Whether all bytes were taken. If not, and there is no event, output must be written first.
    pub fn is_empty(&self) -> bool {
        self.raw.is_empty() && self.inner.is_empty()
    }
}

/// Fills `head`, of which `have` bytes have come, from the front of `input`; returns how many have come now.
pub(crate) fn fill(head: &mut [u8], have: usize, input: &mut &mut [u8]) -> usize {
    let bytes = take(input, head.len() - have);
    for (place, byte) in head.iter_mut().skip(have).zip(bytes.iter()) {
        *place = *byte;
    }
    have + bytes.len()
}

/// Takes at most `count` bytes from the front of `input`.
pub(crate) fn take<'i>(input: &mut &'i mut [u8], count: usize) -> &'i mut [u8] {
    let bytes = std::mem::take(input);
    let (taken, rest) = bytes.split_at_mut(count.min(bytes.len()));
    *input = rest;
    taken
}
