//! SPDY's client side.

use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress};

use crate::spdy::DICTIONARY;

/// Ends a direction.
pub(crate) const FIN: u8 = 1;
/// The server cannot send.
pub(crate) const ONE_WAY: u8 = 2;

/// A frame of the server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Sent {
    Reply(u32),
    Reset(u32, u32),
    Ping(u32),
    GoAway(u32, u32),
    Data(u32, bool, Vec<u8>),
}

/// A client, with both directions' compression.
#[derive(Debug)]
pub(crate) struct Client {
    deflate: Compress,
    inflate: Decompress,
    newest: u32,
}

impl Client {
    pub(crate) fn new() -> Self {
        let mut deflate = Compress::new(Compression::best(), true);
        deflate.set_dictionary(DICTIONARY).unwrap();
        Self { deflate, inflate: Decompress::new(true), newest: 0 }
    }

    /// SYN_STREAM with the next id, which is returned too.
    pub(crate) fn open(&mut self, flags: u8, headers: &[(&str, &str)]) -> (u32, Vec<u8>) {
        let id = if self.newest == 0 { 1 } else { self.newest + 2 };
        (id, self.open_as(id, flags, headers))
    }

    /// SYN_STREAM with any id.
    pub(crate) fn open_as(&mut self, id: u32, flags: u8, headers: &[(&str, &str)]) -> Vec<u8> {
        self.open_raw(id, flags, &plain(headers))
    }

    /// SYN_STREAM with any block.
    pub(crate) fn open_raw(&mut self, id: u32, flags: u8, block: &[u8]) -> Vec<u8> {
        self.newest = id;
        let block = self.compress(block);
        control(1, flags, &[&id.to_be_bytes(), &[0; 6], &block])
    }

    /// HEADERS.
    pub(crate) fn headers(&mut self, id: u32, flags: u8, headers: &[(&str, &str)]) -> Vec<u8> {
        let block = self.compress(&plain(headers));
        control(8, flags, &[&id.to_be_bytes(), &block])
    }

    fn compress(&mut self, plain: &[u8]) -> Vec<u8> {
        let mut block = Vec::with_capacity(plain.len() + 1024);
        self.deflate.compress_vec(plain, &mut block, FlushCompress::Sync).unwrap();
        assert!(block.len() < block.capacity(), "cut off");
        block
    }

    /// Reads all that a server sent; it must be whole frames.
    pub(crate) fn read(&mut self, mut bytes: &[u8]) -> Vec<Sent> {
        let mut sent = Vec::new();
        while !bytes.is_empty() {
            let (head, rest) = bytes.split_first_chunk::<8>().expect("a header");
            let [a, b, c, d, flags, x, y, z] = *head;
            let (content, rest) = rest.split_at(u32::from_be_bytes([0, x, y, z]) as usize);
            bytes = rest;
            let word = |at: usize| u32::from_be_bytes(content[at..at + 4].try_into().unwrap());
            sent.push(match (a, b, c, d) {
                (0x80, 3, 0, 2) => {
                    assert_eq!(self.inflate(&content[4..]), [0; 4], "no headers");
                    Sent::Reply(word(0))
                }
                (0x80, 3, 0, 3) => Sent::Reset(word(0), word(4)),
                (0x80, 3, 0, 6) => Sent::Ping(word(0)),
                (0x80, 3, 0, 7) => Sent::GoAway(word(0), word(4)),
                (0..0x80, ..) => Sent::Data(u32::from_be_bytes([a, b, c, d]), flags == FIN, content.to_vec()),
                other => panic!("frame {other:?}"),
            });
        }
        sent
    }

    fn inflate(&mut self, mut block: &[u8]) -> Vec<u8> {
        let mut plain = Vec::with_capacity(1024);
        while !block.is_empty() {
            let before = self.inflate.total_in();
            if let Err(error) = self.inflate.decompress_vec(block, &mut plain, FlushDecompress::None) {
                error.needs_dictionary().expect("zlib");
                self.inflate.set_dictionary(DICTIONARY).unwrap();
            }
            block = &block[usize::try_from(self.inflate.total_in() - before).unwrap()..];
        }
        plain
    }
}

/// A header block that is not compressed yet.
pub(crate) fn plain(headers: &[(&str, &str)]) -> Vec<u8> {
    let number = |count: usize| u32::try_from(count).unwrap().to_be_bytes();
    let mut block = number(headers.len()).to_vec();
    for (name, value) in headers {
        for text in [name, value] {
            block.extend(number(text.len()));
            block.extend(text.as_bytes());
        }
    }
    block
}

/// Any control frame.
pub(crate) fn control(kind: u8, flags: u8, content: &[&[u8]]) -> Vec<u8> {
    let content = content.concat();
    let [_, x, y, z] = u32::try_from(content.len()).unwrap().to_be_bytes();
    [&[0x80, 3, 0, kind, flags, x, y, z][..], &content].concat()
}

/// A data frame.
pub(crate) fn data(id: u32, flags: u8, payload: &[u8]) -> Vec<u8> {
    let [_, x, y, z] = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&id.to_be_bytes()[..], &[flags, x, y, z], payload].concat()
}

/// RST_STREAM.
pub(crate) fn reset(id: u32) -> Vec<u8> {
    control(3, 0, &[&id.to_be_bytes(), &5u32.to_be_bytes()])
}

/// PING.
pub(crate) fn ping(id: u32) -> Vec<u8> {
    control(6, 0, &[&id.to_be_bytes()])
}

/// GOAWAY.
pub(crate) fn go_away() -> Vec<u8> {
    control(7, 0, &[&[0; 8]])
}
