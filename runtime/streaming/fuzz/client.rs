//! What a client sends.

use std::cell::RefCell;

use flate2::{Compress, Compression, FlushCompress};

/// SPDY's header compression, of one connection.
pub struct Blocks(Compress);

impl Blocks {
    /// Stores the bytes as they are, so that the fuzzer's changes reach the headers and not only the compression.
    pub fn stored() -> Self {
        Self(Compress::new(Compression::none(), true))
    }

    /// Compresses.
    pub fn deflated() -> Self {
        Self(Compress::new(Compression::best(), true))
    }

    /// SYN_STREAM with any header block.
    pub fn open_raw(&mut self, id: u32, flags: u8, block: &[u8]) -> Vec<u8> {
        let mut out = Vec::with_capacity(block.len() + block.len() / 1000 + 1024);
        self.0.compress_vec(block, &mut out, FlushCompress::Sync).expect("room for the block");
        control(1, flags, &[&id.to_be_bytes(), &[0; 6], &out])
    }

    /// SYN_STREAM with headers.
    pub fn open(&mut self, id: u32, headers: &[(&str, &str)]) -> Vec<u8> {
        self.open_raw(id, 0, &plain(headers))
    }
}

thread_local! {
    /// Used for every input: it is large.
    static FAST: RefCell<Blocks> = RefCell::new(Blocks(Compress::new(Compression::fast(), true)));
}

/// SYN_STREAM frames with these header blocks.
pub fn opened<'b>(blocks: impl Iterator<Item = &'b [u8]>) -> Vec<u8> {
    FAST.with_borrow_mut(|compressed| {
        compressed.0.reset();
        blocks.zip((1..).step_by(2)).flat_map(|(block, id)| compressed.open_raw(id, 0, block)).collect()
    })
}

/// A header block that is not compressed yet.
pub fn plain(headers: &[(&str, &str)]) -> Vec<u8> {
    let mut block = (headers.len() as u32).to_be_bytes().to_vec();
    for text in headers.iter().flat_map(|(name, value)| [name, value]) {
        block.extend((text.len() as u32).to_be_bytes());
        block.extend(text.as_bytes());
    }
    block
}

/// Any control frame.
pub fn control(kind: u8, flags: u8, content: &[&[u8]]) -> Vec<u8> {
    framed([0x80, 3, 0, kind], flags, &content.concat())
}

/// A data frame.
pub fn data(id: u32, flags: u8, payload: &[u8]) -> Vec<u8> {
    framed(id.to_be_bytes(), flags, payload)
}

fn framed([a, b, c, d]: [u8; 4], flags: u8, content: &[u8]) -> Vec<u8> {
    let [_, x, y, z] = (content.len() as u32).to_be_bytes();
    [&[a, b, c, d, flags, x, y, z], content].concat()
}

/// PING.
pub fn ping(id: u32) -> Vec<u8> {
    control(6, 0, &[&id.to_be_bytes()])
}

/// RST_STREAM.
pub fn reset(id: u32) -> Vec<u8> {
    control(3, 0, &[&id.to_be_bytes(), &[0, 0, 0, 5]])
}

/// GOAWAY.
pub fn go_away() -> Vec<u8> {
    control(7, 0, &[&[0; 8]])
}

/// A WebSocket frame with any first byte. The mask is 0, which leaves the payload as it is.
pub fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![first];
    match payload.len() {
        short @ ..=125 => bytes.push(0x80 | short as u8),
        medium => {
            bytes.push(0x80 | 126);
            bytes.extend((medium as u16).to_be_bytes());
        }
    }
    bytes.extend([0; 4]);
    bytes.extend(payload);
    bytes
}
