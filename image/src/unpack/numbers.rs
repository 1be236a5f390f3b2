//! Numbers and strings in tar headers and PAX records.

/// Parses a number in a header: octal digits between blanks and NULs, nothing (0), or binary in two's complement if the
/// first bit is set.
pub(super) fn signed(bytes: &[u8]) -> Option<i64> {
    if let Some((first @ 0x80.., rest)) = bytes.split_first() {
        // The first bit is a mark, and the second one the sign.
        let first =
            if first & 0x40 == 0 { i128::from(first & 0x3f) } else { i128::from(first.cast_signed()) };
        let number = rest.iter().try_fold(first, |number, byte| {
            number.checked_mul(256).and_then(|number| number.checked_add(i128::from(*byte)))
        });
        return number.and_then(|number| i64::try_from(number).ok());
    }
    // Some writers put NULs before the digits.
    let start = bytes.iter().position(|b| *b != 0 && *b != b' ').unwrap_or(bytes.len());
    let text = until_nul(bytes[start..].to_vec());
    let text = std::str::from_utf8(&text).ok()?.trim_end();
    match text.bytes().all(|b| b.is_ascii_digit()) {
        true if text.is_empty() => Some(0),
        true => i64::from_str_radix(text, 8).ok(),
        false => None,
    }
}

/// As [`signed`]; negative numbers are refused.
pub(super) fn unsigned(bytes: &[u8]) -> Option<u64> {
    signed(bytes).and_then(|number| u64::try_from(number).ok())
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_in_headers() {
        for (bytes, wanted) in [
            (&b"0000644\0"[..], Some(0o644)),
            (b"   644 \0", Some(0o644)),
            (b"\0\0  644\0", Some(0o644)),
            (b"77777777", Some(0o77_777_777)),
            (b"644\0junk", Some(0o644)),
            (b"\0\0\0\0", Some(0)),
            (b"", Some(0)),
            (b"6 44", None),
            (b"+644", None),
            (b"-1", None),
            (b"8", None),
            (b"\x80\0\0\0\x01\0\0\0", Some(1 << 24)),
            (b"\x80\0\0\0\0\0\0\0\0\0\0\x05", Some(5)),
            (b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xfe", Some(-2)),
            (b"\xff\xff\xff\xff\x7f\xff\xff\xff\xff\xff\xff\xff", None),
            (b"\x80\0\0\0\x80\0\0\0\0\0\0\0", None),
            (b"\x80\0\0\0\x7f\xff\xff\xff\xff\xff\xff\xff", Some(i64::MAX)),
        ] {
            assert_eq!(signed(bytes), wanted, "{}", bytes.escape_ascii());
        }
        assert_eq!(unsigned(b"\xff\xff\xff\xff\xff\xff\xff\xff"), None);
    }
}
