//! CRI log lines: `<RFC3339Nano> <stdout|stderr> <P|F> <content>\n`.
//!
//! The budget is 500 MiB/s of 100-byte lines, so: one time stamp for all that one read(2) brought, lines
//! found by memchr, headers and content copied into one buffer and written at once, nothing allocated but the
//! start of a line that is not complete yet (16 KiB a stream at most, given back when it is).
//!
//! How the output was cut into reads never shows in the file, but for the time stamps.

use std::io::{BufRead as _, Write as _};

use crate::io::stamp::Stamp;

/// Longest content of one log line, bytes, as containerd cuts it: longer lines become pieces tagged P.
pub(crate) const MAX_CONTENT: usize = 16 * 1024;
/// Time stamp, stream, tag and the spaces after each.
const HEADER: usize = Stamp::LEN + 1 + 6 + 1 + 1 + 1;
/// Least size of a [`Batch`]'s buffer: any piece fits an empty one.
pub(crate) const MIN_BUFFER: usize = HEADER + MAX_CONTENT + 1;

/// Which stream a line came on. A terminal has only stdout.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stream {
    /// Descriptor 1.
    Stdout,
    /// Descriptor 2.
    Stderr,
}

/// Gathers log lines and hands them on in large pieces.
pub(crate) struct Batch<'a, W: FnMut(&[u8])> {
    buffer: &'a mut [u8],
    used: usize,
    write: W,
}

impl<'a, W: FnMut(&[u8])> Batch<'a, W> {
    /// `buffer` of at least [`MIN_BUFFER`] bytes; `write` gets whole lines only.
    pub(crate) fn new(buffer: &'a mut [u8], write: W) -> Self {
        Self { buffer, used: 0, write }
    }

    /// Hands on what is gathered.
    pub(crate) fn flush(&mut self) {
        if let Some(lines) = self.buffer.get(..self.used).filter(|lines| !lines.is_empty()) {
            (self.write)(lines);
        }
        self.used = 0;
    }

    #[inline]
    fn line(&mut self, header: &[u8; HEADER], first: &[u8], second: &[u8]) {
        let len = HEADER + first.len() + second.len() + 1;
        if self.buffer.len() - self.used < len {
            self.flush();
        }
        if let Some(mut place) = self.buffer.get_mut(self.used..self.used + len) {
            // Writing to a slice that is long enough cannot fail.
            for part in [header.as_slice(), first, second, b"\n"] {
                drop(place.write_all(part));
            }
            self.used += len;
        }
    }
}

/// One stream's lines.
#[derive(Debug)]
pub(crate) struct Lines {
    stream: Stream,
    /// A terminal ends lines by CR LF; that CR is not the program's.
    terminal: bool,
    /// Start of a line whose end was not read yet, at most [`MAX_CONTENT`] bytes.
    carry: Vec<u8>,
}

impl Lines {
    pub(crate) fn new(stream: Stream, terminal: bool) -> Self {
        Self { stream, terminal, carry: Vec::new() }
    }

    fn header(&self, stamp: &Stamp, tag: u8) -> [u8; HEADER] {
        let mut header = [b' '; HEADER];
        let stream: &[u8] = if self.stream == Stream::Stdout { b"stdout" } else { b"stderr" };
        let mut place = header.as_mut_slice();
        for part in [stamp.as_bytes(), b" ", stream, b" ", &[tag]] {
            drop(place.write_all(part));
        }
        header
    }

    /// Takes what one read brought.
    pub(crate) fn push<W: FnMut(&[u8])>(
        &mut self,
        mut chunk: &[u8],
        stamp: &Stamp,
        batch: &mut Batch<'_, W>,
    ) {
        let (full, partial) = (self.header(stamp, b'F'), self.header(stamp, b'P'));
        while !chunk.is_empty() {
            // skip_until is memchr, and cannot fail on a slice.
            let mut rest = chunk;
            let taken = rest.skip_until(b'\n').unwrap_or(chunk.len());
            let (line, after) = chunk.split_at(taken.min(chunk.len()));
            let (mut content, ended) = match line.split_last() {
                Some((b'\n', content)) => (content, true),
                _ => (line, false),
            };
            // Pieces of the longest size go out once it is known that more follows them.
            while self.carry.len() + content.len() > MAX_CONTENT {
                let room = MAX_CONTENT - self.carry.len().min(MAX_CONTENT);
                let (piece, more) = content.split_at(room.min(content.len()));
                batch.line(&partial, &self.carry, piece);
                self.carry.clear();
                content = more;
            }
            if ended {
                self.end(&full, content, batch);
            } else {
                self.carry.extend_from_slice(content);
            }
            chunk = after;
        }
        if self.carry.is_empty() && self.carry.capacity() > 0 {
            self.carry = Vec::new();
        }
    }

    #[inline]
    fn end<W: FnMut(&[u8])>(&mut self, full: &[u8; HEADER], content: &[u8], batch: &mut Batch<'_, W>) {
        let (mut first, mut second) = (self.carry.as_slice(), content);
        if self.terminal {
            if let Some((b'\r', before)) = second.split_last() {
                second = before;
            } else if let (true, Some((b'\r', before))) = (second.is_empty(), first.split_last()) {
                first = before;
            }
        }
        batch.line(full, first, second);
        self.carry.clear();
    }

    /// The stream has ended: a last line without newline is written, tagged P (as containerd does), so that
    /// readers add no newline that was not there.
    pub(crate) fn finish<W: FnMut(&[u8])>(&mut self, stamp: &Stamp, batch: &mut Batch<'_, W>) {
        if !self.carry.is_empty() {
            batch.line(&self.header(stamp, b'P'), &self.carry, &[]);
        }
        self.carry = Vec::new();
    }
}

#[cfg(test)]
mod tests;
