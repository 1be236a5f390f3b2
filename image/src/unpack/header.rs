//! Fields of a tar header that depend on its format: v7, ustar, star or GNU. Pure.

use super::numbers::{signed, unsigned, until_nul};
use tar::Header;

/// Offsets in the header, in bytes.
const NAME: std::ops::Range<usize> = 0..100;
const CHECKSUM: std::ops::Range<usize> = 148..156;
const MAGIC: std::ops::Range<usize> = 257..263;
const MAJOR: std::ops::Range<usize> = 329..337;
const MINOR: std::ops::Range<usize> = 337..345;
const USTAR_PREFIX: std::ops::Range<usize> = 345..500;
/// star has times after a shorter prefix, and a mark at the end.
const STAR_PREFIX: std::ops::Range<usize> = 345..476;
const STAR_MARK: std::ops::Range<usize> = 508..512;
/// Two numbers in the place of ustar's prefix.
const GNU_ATIME: std::ops::Range<usize> = 345..357;
const GNU_CTIME: std::ops::Range<usize> = 357..369;

/// The entry's name, if no extension says another one.
pub(super) fn name(header: &Header) -> Vec<u8> {
    let bytes = header.as_bytes();
    let text = |range: std::ops::Range<usize>| until_nul(bytes[range].to_vec());
    let prefix = match &bytes[MAGIC] {
        b"ustar\0" if bytes[STAR_MARK] == *b"tar\0" => text(STAR_PREFIX),
        b"ustar\0" => text(USTAR_PREFIX),
        // Go wrote ustar's prefix into GNU headers before version 1.8, and Docker layers with it. There it is no number.
        b"ustar " if bytes[MAGIC.end..].starts_with(b" \0") => {
            let is_number = |range: std::ops::Range<usize>| signed(&bytes[range]).is_some();
            let prefix = text(USTAR_PREFIX);
            let is_prefix = prefix.is_ascii() && !(is_number(GNU_ATIME) && is_number(GNU_CTIME));
            if is_prefix { prefix } else { Vec::new() }
        }
        _ => Vec::new(),
    };
    let name = text(NAME);
    if prefix.is_empty() { name } else { [&prefix[..], b"/", &name[..]].concat() }
}

/// The major and minor number of a device; 0 if the format has none.
pub(super) fn device(header: &Header) -> Option<(u32, u32)> {
    let bytes = header.as_bytes();
    if !matches!(&bytes[MAGIC], b"ustar\0" | b"ustar ") {
        return Some((0, 0));
    }
    let number = |range: std::ops::Range<usize>| unsigned(&bytes[range]).and_then(|n| u32::try_from(n).ok());
    Some((number(MAJOR)?, number(MINOR)?))
}

/// Whether the checksum is that of the header. Old systems added the bytes as signed numbers.
pub(super) fn is_checksum_right(header: &Header) -> bool {
    let bytes = header.as_bytes();
    let sum = |value: fn(u8) -> i64| -> i64 {
        // The checksum's own eight bytes count as blanks.
        let counted = |(at, byte): (usize, &u8)| value(if CHECKSUM.contains(&at) { b' ' } else { *byte });
        bytes.iter().enumerate().map(counted).sum()
    };
    let stated = signed(&bytes[CHECKSUM]);
    stated == Some(sum(i64::from)) || stated == Some(sum(|byte| i64::from(byte.cast_signed())))
}
