//! The id of the trace that a request belongs to, from W3C's `traceparent` header. kubelet and other clients that are
//! instrumented with OpenTelemetry send it. The daemon exports no spans: the id is shown with the call, in its log lines
//! and in verbose Status, so that they are found from a trace.

use std::fmt;

/// A trace id: 32 lower-case hex digits, not all zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TraceId([u8; DIGITS]);

/// Number of hex digits of a trace id.
const DIGITS: usize = 32;

impl TraceId {
    /// Reads the id from a `traceparent`: `<version>-<trace id>-<parent id>-<flags>`, to which later versions append more
    /// parts. `None` if it is not valid.
    pub(crate) fn of_traceparent(text: &[u8]) -> Option<Self> {
        let mut parts = text.split(|byte| *byte == b'-');
        let (version, id, parent, flags) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
        let lengths = version.len() == 2 && parent.len() == 16 && flags.len() == 2;
        let more = parts.next().is_some();
        let hex = |part: &[u8]| part.iter().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        let valid = lengths && hex(version) && hex(id) && hex(parent) && hex(flags);
        if !valid || version == b"ff" || (version == b"00" && more) {
            return None;
        }
        let id: [u8; DIGITS] = id.try_into().ok()?;
        id.iter().any(|digit| *digit != b'0').then_some(Self(id))
    }
}

impl fmt::Display for TraceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Only hex digits.
        f.write_str(std::str::from_utf8(&self.0).unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_the_specification_allows() {
        let id = "4bf92f3577b34da6a3ce929d0e0e4736";
        let of = |text: &str| TraceId::of_traceparent(text.as_bytes()).map(|id| id.to_string());
        assert_eq!(of(&format!("00-{id}-00f067aa0ba902b7-01")).as_deref(), Some(id));
        assert_eq!(of(&format!("cc-{id}-00f067aa0ba902b7-01-later")).as_deref(), Some(id));
        for bad in [
            String::new(),
            "-".to_owned(),
            id.to_owned(),
            format!("00-{id}-00f067aa0ba902b7"),
            format!("00-{id}-00f067aa0ba902b7-01-more"),
            format!("ff-{id}-00f067aa0ba902b7-01"),
            format!("00-{id}-short-01"),
            format!("00-{}-00f067aa0ba902b7-01", id.to_uppercase()),
            format!("00-{}-00f067aa0ba902b7-01", "0".repeat(32)),
            format!("00-{}ä-00f067aa0ba902b7-01", "0".repeat(30)),
        ] {
            assert_eq!(of(&bad), None, "{bad}");
        }
    }
}
