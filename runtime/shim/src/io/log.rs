//! CRI log lines: `<RFC3339Nano> <stdout|stderr> <P|F> <content>\n`.
//!
//! The budget is 500 MiB/s of 100-byte lines. So there is one time stamp for all lines of one read(2), lines
//! are found with memchr, and headers and content are copied into one buffer and written at once. The only
//! allocation is for the beginning of an incomplete line (at most 16 KiB per stream, freed at its end).
//!
//! The boundaries of reads affect only the time stamps in the file.

use std::io::{BufRead as _, Write as _};

use crate::io::stamp::Stamp;

/// Longest content of one log line in bytes, as in containerd: longer lines are split into pieces tagged P.
pub(crate) const MAX_CONTENT: usize = 16 * 1024;
/// Time stamp, stream, tag and the spaces after each.
const HEADER: usize = Stamp::LEN + 1 + 6 + 1 + 1 + 1;
/// Smallest buffer of a [`Batch`]: an empty one has space for any piece.
pub(crate) const MIN_BUFFER: usize = HEADER + MAX_CONTENT + 1;

/// The stream of a line. A terminal has only stdout.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stream {
    /// Descriptor 1.
    Stdout,
    /// Descriptor 2.
    Stderr,
}

/// Collects log lines and writes them in large blocks.
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

    /// Writes the collected lines.
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
            // Writing to a slice of sufficient length cannot fail.
            for part in [header.as_slice(), first, second, b"\n"] {
                drop(place.write_all(part));
            }
            self.used += len;
        }
    }
}

/// The lines of one stream.
#[derive(Debug)]
pub(crate) struct Lines {
    stream: Stream,
    /// A terminal ends lines with CR LF; this CR is not from the program.
    terminal: bool,
    /// The beginning of an incomplete line, at most [`MAX_CONTENT`] bytes.
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

    /// Takes the bytes of one read.
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
            // A piece of the longest size is written once it is known that more follows.
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

    /// Ends the stream: a last line without a newline is written with tag P (as containerd does), so that
    /// readers do not add a newline.
    pub(crate) fn finish<W: FnMut(&[u8])>(&mut self, stamp: &Stamp, batch: &mut Batch<'_, W>) {
        if !self.carry.is_empty() {
            batch.line(&self.header(stamp, b'P'), &self.carry, &[]);
        }
        self.carry = Vec::new();
    }
}

#[cfg(test)]
mod tests;
