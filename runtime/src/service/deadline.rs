//! The caller's deadline, from the `grpc-timeout` header.
//!
//! The gRPC library enforces it too, but returns the code Cancelled, which kubelet does not treat as a probe
//! time-out. So our timer fires earlier than the library's, and returns DeadlineExceeded. It also fires earlier than the
//! caller's own timer, which was started when the request was sent: the error says where the call was, and must arrive
//! while the caller still waits for it.

use std::time::Duration;
use tonic::metadata::MetadataMap;

/// How much earlier than the library's timer ours fires, at least: the library's has a resolution of 1 ms.
const EARLY: Duration = Duration::from_millis(2);
/// How much earlier it fires at most: time for the reply on a busy node.
const EARLIEST: Duration = Duration::from_millis(100);
/// Between these, it fires earlier by this part of the deadline.
const PART: u32 = 50;
/// A longer deadline is treated as none (the timer wheel ends at about two years).
const FAR: Duration = Duration::from_secs(365 * 24 * 3600);

/// Time that is left for the call; `None` means no limit.
pub(super) fn time_left(metadata: &MetadataMap) -> Option<Duration> {
    let text = metadata.get("grpc-timeout")?.to_str().ok()?;
    let timeout = parse(text).filter(|timeout| *timeout < FAR)?;
    Some(timeout.saturating_sub((timeout / PART).clamp(EARLY, EARLIEST)))
}

/// 1 to 8 digits and a unit.
fn parse(text: &str) -> Option<Duration> {
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let number: u64 = digits.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(number * 3600),
        "M" => Duration::from_secs(number * 60),
        "S" => Duration::from_secs(number),
        "m" => Duration::from_millis(number),
        "u" => Duration::from_micros(number),
        "n" => Duration::from_nanos(number),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_grpc_clients_send() {
        let time_left = |text: &str| {
            let mut metadata = MetadataMap::new();
            metadata.insert("grpc-timeout", text.parse().unwrap());
            super::time_left(&metadata)
        };
        assert_eq!(time_left("1m"), Some(Duration::ZERO));
        assert_eq!(time_left("50m"), Some(Duration::from_millis(48)));
        assert_eq!(time_left("120000000u"), None, "nine digits are not allowed");
        assert_eq!(time_left("2S"), Some(Duration::from_millis(1960)));
        assert_eq!(time_left("3M"), Some(Duration::from_millis(179_900)));
        assert_eq!(time_left("99999999H"), None, "longer than any real deadline");
        for bad in ["", "S", "5", "5x", "-5S", "5 S", "ü"] {
            assert!(parse(bad).is_none(), "{bad}");
        }
        assert_eq!(super::time_left(&MetadataMap::new()), None);
    }
}
