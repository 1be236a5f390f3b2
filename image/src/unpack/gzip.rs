//! Decompresses gzip streams (RFC 1952) of several members.
//!
//! What follows the last member and is none is ignored, as by gzip(1) and by unpigz, which other runtimes use if it is
//! installed. The digest covers it all the same.

use super::GZIP_MAGIC;
use flate2::bufread::GzDecoder;
use std::io::{self, BufRead, Read};

/// A stream that can show its first bytes without consuming them.
pub(super) trait Peek: BufRead {
    /// The next bytes, at least as many as the longest mark of a compression has, unless the stream ends before.
    fn peek(&mut self) -> &[u8];
}

/// Reads the content of all members.
#[derive(Debug)]
pub(super) struct Members<'a, R> {
    /// `None` between two members, and after the last one.
    member: Option<GzDecoder<&'a mut R>>,
    /// `None` while a member has it.
    input: Option<&'a mut R>,
}

impl<'a, R: Peek> Members<'a, R> {
    /// `input` must begin with a member.
    pub(super) fn new(input: &'a mut R) -> Self {
        Self { member: Some(GzDecoder::new(input)), input: None }
    }
}

impl<R: Peek> Read for Members<'_, R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        loop {
            if let Some(member) = &mut self.member {
                match member.read(into)? {
                    0 if !into.is_empty() => self.input = self.member.take().map(GzDecoder::into_inner),
                    read => return Ok(read),
                }
            }
            let Some(input) = self.input.take() else { return Ok(0) };
            if !input.peek().starts_with(GZIP_MAGIC) {
                self.input = Some(input);
                return Ok(0);
            }
            self.member = Some(GzDecoder::new(input));
        }
    }
}
