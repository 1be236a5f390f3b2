//! Parses CRI log files as strictly as kubelet does.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};

use crate::expect::ensure;

/// Maximum size of a line's content in bytes; longer ones are split and tagged P.
const CUT: usize = 16 * 1024;

/// One physical line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Line {
    /// RFC 3339 with nanoseconds.
    pub(crate) time: String,
    /// stdout or stderr.
    pub(crate) stream: String,
    /// Tagged P: the next line of its stream continues it.
    pub(crate) partial: bool,
    /// The bytes.
    pub(crate) content: Vec<u8>,
}

/// A whole file.
#[derive(Debug, Clone, Default)]
pub(crate) struct Log {
    /// Its lines, in order.
    pub(crate) lines: Vec<Line>,
}

impl Log {
    /// Reads a file; every line must be well-formed.
    pub(crate) fn read(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let bytes = fs::read(path).with_context(|| format!("log file {}", path.display()))?;
        Self::parse(&bytes).with_context(|| path.display().to_string())
    }

    /// Reads several files as one, oldest first.
    pub(crate) fn read_all(paths: &[&Path]) -> Result<Self> {
        let mut all = Self::default();
        for path in paths {
            all.lines.extend(Self::read(path)?.lines);
        }
        Ok(all)
    }

    fn parse(bytes: &[u8]) -> Result<Self> {
        let mut lines = Vec::new();
        let Some(whole) = bytes.strip_suffix(b"\n") else {
            ensure!(bytes.is_empty(), "the last line is incomplete");
            return Ok(Self::default());
        };
        for raw in whole.split(|b| *b == b'\n') {
            let mut parts = raw.splitn(4, |b| *b == b' ');
            let mut word = || parts.next().map(String::from_utf8_lossy).map(std::borrow::Cow::into_owned);
            let (time, stream, tag) = (word(), word(), word());
            let content = parts.next();
            let bad = || {
                format!(
                    "malformed line `{}`",
                    String::from_utf8_lossy(raw.get(..raw.len().min(80)).unwrap_or_default())
                )
            };
            let (Some(time), Some(stream), Some(tag), Some(content)) = (time, stream, tag, content) else {
                anyhow::bail!(bad())
            };
            ensure!(time.len() >= 20 && time.as_bytes().get(10) == Some(&b'T'), "{}", bad());
            ensure!(
                time.ends_with('Z') || time.get(19..).is_some_and(|z| z.contains(['+', '-'])),
                "{}",
                bad()
            );
            ensure!(stream == "stdout" || stream == "stderr", "{}", bad());
            let tag = tag.split(':').next().unwrap_or_default();
            ensure!(tag == "P" || tag == "F", "{}", bad());
            ensure!(content.len() <= CUT, "a line of {} bytes was not cut", content.len());
            lines.push(Line { time, stream, partial: tag == "P", content: content.to_vec() });
        }
        Ok(Self { lines })
    }

    /// The bytes that were written to one stream, or to both: a full line ends with LF, a partial one does
    /// not.
    pub(crate) fn bytes(&self, stream: Option<&str>) -> Vec<u8> {
        let mut out = Vec::new();
        for line in self.lines.iter().filter(|l| stream.is_none_or(|s| s == l.stream)) {
            out.extend_from_slice(&line.content);
            if !line.partial {
                out.push(b'\n');
            }
        }
        out
    }

    /// As [`Self::bytes`], as text.
    pub(crate) fn text(&self, stream: Option<&str>) -> String {
        String::from_utf8_lossy(&self.bytes(stream)).into_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIME: &str = "2026-01-02T03:04:05.123456789Z";

    #[test]
    fn lines_are_parsed_and_joined() {
        let text = format!("{TIME} stdout P one\n{TIME} stderr F \n{TIME} stdout F  two \n");
        let log = Log::parse(text.as_bytes()).unwrap();
        assert_eq!(log.lines.len(), 3);
        assert_eq!(
            (log.text(Some("stdout")).as_str(), log.text(Some("stderr")).as_str()),
            ("one two \n", "\n")
        );
        assert!(Log::parse(b"").unwrap().lines.is_empty());
    }

    #[test]
    fn malformed_logs_are_refused() {
        let long = format!("{TIME} stdout F {}\n", "x".repeat(CUT + 1));
        for text in [
            "\n",
            &format!("{TIME} stdout F one"),
            &format!("{TIME} stdout F one\n\n"),
            &format!("{TIME} stdout F one\n\n{TIME} stdout F two\n"),
            &format!("{TIME} stdout F\n"),
            &format!("{TIME} stdin F one\n"),
            &format!("{TIME} stdout X one\n"),
            "2026-01-02 03:04:05 stdout F one\n",
            "2026-01-02T03:04:05.123456789 stdout F one\n",
            &long,
        ] {
            assert!(Log::parse(text.as_bytes()).is_err(), "{text:.80}");
        }
    }
}
