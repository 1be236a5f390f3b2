//! Numbers and strings in tar headers and PAX records.

/// Parses a number in a header: octal digits, nothing (0), or binary if the first bit is set. Negative numbers are
/// refused.
pub(super) fn field(bytes: &[u8]) -> Option<u64> {
    if let Some((first @ 0x80.., rest)) = bytes.split_first() {
        let number = rest.iter().try_fold(u64::from(first & 0x7f), |number, byte| {
            number.checked_mul(256).map(|number| number | u64::from(*byte))
        });
        return number.filter(|_| first & 0x40 == 0);
    }
    let text = until_nul(bytes.to_vec());
    let text = std::str::from_utf8(&text).ok()?.trim();
    if text.is_empty() { Some(0) } else { u64::from_str_radix(text, 8).ok() }
}

/// Parses decimal digits without a sign.
pub(super) fn number(digits: &[u8]) -> Option<u64> {
    std::str::from_utf8(digits).ok().filter(|text| text.bytes().all(|b| b.is_ascii_digit()))?.parse().ok()
}

/// Cuts a string at its first NUL.
pub(super) fn until_nul(mut bytes: Vec<u8>) -> Vec<u8> {
    let end = bytes.iter().position(|b| *b == 0).unwrap_or(bytes.len());
    bytes.truncate(end);
    bytes
}
