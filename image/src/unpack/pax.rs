//! PAX records: what an extended header says about the next entry (POSIX, pax, "pax Extended Header"). Pure.

use super::numbers::number;
use super::sparse;

/// Maximum size of an entry's PAX records, in bytes, as in Go. The kernel limits one extended attribute to 64 KiB.
pub(super) const MAX_PAX: u64 = 1 << 20;
/// Maximum number of extended attributes of an entry.
const MAX_XATTRS: usize = 64;

/// The records of one extended header that have a meaning here.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Records {
    pub(super) path: Option<Vec<u8>>,
    /// Target of a link.
    pub(super) link: Option<Vec<u8>>,
    pub(super) size: Option<u64>,
    pub(super) uid: Option<i64>,
    pub(super) gid: Option<i64>,
    /// Seconds since 1970 and nanoseconds.
    pub(super) mtime: Option<(i64, u32)>,
    /// Names and values; only those of [`allowed_xattr`].
    pub(super) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    pub(super) sparse: Option<sparse::Records>,
}

/// Parses records, `<length> <key>=<value>\n`. The length is that of the whole record, its own digits included. Values
/// may be binary; an empty one leaves what the entry's header says.
pub(super) fn parse(mut records: &[u8]) -> Result<Records, &'static str> {
    const BAD: &str = "its PAX records are malformed";
    let mut found = Records::default();
    // Some writers fill the rest of the block with NUL.
    while records.first().is_some_and(|b| *b != 0) {
        let space = records.iter().take(20).position(|b| *b == b' ').ok_or(BAD)?;
        let length: usize = number(&records[..space]).and_then(|n| usize::try_from(n).ok()).ok_or(BAD)?;
        if length <= space + 1 || length > records.len() || records[length - 1] != b'\n' {
            return Err(BAD);
        }
        let record = &records[space + 1..length - 1];
        records = &records[length..];
        let equals = record.iter().position(|b| *b == b'=').ok_or(BAD)?;
        let (key, value) = (&record[..equals], &record[equals + 1..]);
        match key {
            b"path" => found.path = (!value.is_empty()).then(|| value.to_vec()),
            b"linkpath" => found.link = (!value.is_empty()).then(|| value.to_vec()),
            b"size" if !value.is_empty() => found.size = Some(number(value).ok_or(BAD)?),
            b"uid" if !value.is_empty() => found.uid = Some(signed(value).ok_or(BAD)?),
            b"gid" if !value.is_empty() => found.gid = Some(signed(value).ok_or(BAD)?),
            b"mtime" if !value.is_empty() => found.mtime = Some(seconds(value).ok_or(BAD)?),
            _ => {
                if let Some(key) = key.strip_prefix(b"GNU.sparse.") {
                    found.sparse.get_or_insert_default().add(key, value)?;
                } else if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                    if found.xattrs.len() == MAX_XATTRS {
                        return Err("it has too many extended attributes");
                    }
                    if allowed_xattr(name) {
                        found.xattrs.push((name.to_vec(), value.to_vec()));
                    }
                }
            }
        }
    }
    Ok(found)
}

/// Whether an image may set this extended attribute. Others are dropped without an error, because the image runs
/// without them: overlayfs's own could refer to another layer, and labels of security modules are the host's.
pub(crate) fn allowed_xattr(name: &[u8]) -> bool {
    if name.len() > 255 || name.contains(&0) || name.starts_with(b"user.overlay.") {
        return false;
    }
    matches!(
        name,
        b"security.capability" | b"security.ima" | b"system.posix_acl_access" | b"system.posix_acl_default"
    ) || name.strip_prefix(b"user.").is_some_and(|rest| !rest.is_empty())
}

/// Parses decimal digits, perhaps with a minus.
fn signed(value: &[u8]) -> Option<i64> {
    let (digits, sign) = value.strip_prefix(b"-").map_or((value, 1), |digits| (digits, -1));
    number(digits).and_then(|number| i64::try_from(number).ok()).map(|number| sign * number)
}

/// Parses a time in seconds, such as `1234.5678`, `.5` or `-1.5`: seconds and nanoseconds, which count upwards before 1970
/// too.
fn seconds(value: &[u8]) -> Option<(i64, u32)> {
    let (value, negative) = value.strip_prefix(b"-").map_or((value, false), |value| (value, true));
    let point = value.iter().position(|b| *b == b'.');
    let (whole, fraction) = point.map_or((value, &[][..]), |at| (&value[..at], &value[at + 1..]));
    if whole.is_empty() && fraction.is_empty() || !fraction.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let whole = if whole.is_empty() { 0 } else { i64::try_from(number(whole)?).ok()? };
    let digits = fraction.iter().copied().chain(std::iter::repeat(b'0')).take(9);
    let nanoseconds = digits.fold(0, |sum, digit| sum * 10 + u32::from(digit - b'0'));
    Some(match (negative, nanoseconds) {
        (false, _) => (whole, nanoseconds),
        (true, 0) => (-whole, 0),
        (true, _) => (-whole - 1, 1_000_000_000 - nanoseconds),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times() {
        for (text, wanted) in [
            ("0", Some((0, 0))),
            ("1700000000", Some((1_700_000_000, 0))),
            ("1.", Some((1, 0))),
            (".5", Some((0, 500_000_000))),
            ("1.000000001", Some((1, 1))),
            ("1.0000000019", Some((1, 1))),
            ("-1", Some((-1, 0))),
            ("-1.0", Some((-1, 0))),
            ("-1.5", Some((-2, 500_000_000))),
            ("-.25", Some((-1, 750_000_000))),
            ("-0.25", Some((-1, 750_000_000))),
            ("9223372036854775807", Some((i64::MAX, 0))),
            ("-9223372036854775807.5", Some((i64::MIN, 500_000_000))),
            ("9223372036854775808", None),
            ("", None),
            (".", None),
            ("-", None),
            ("-.", None),
            ("1e9", None),
            ("1.x", None),
            ("1.000000000x", None),
            ("--1", None),
            ("1,5", None),
        ] {
            assert_eq!(seconds(text.as_bytes()), wanted, "{text:?}");
        }
    }

    #[test]
    fn empty_values_and_unknown_keys_say_nothing() {
        let text = b"8 path=\n13 linkpath=\n7 uid=\n9 mtime=\n20 VENDOR.key=value\n15 comment=a=b\n\0\0\0";
        assert_eq!(parse(text).unwrap(), Records::default());
        assert_eq!(parse(b"10 uid=-2\n").unwrap().uid, Some(-2));
        assert_eq!(parse(b"7 uid=\n9 uid=17\n11 gid=017\n").unwrap().gid, Some(17));
        for bad in ["9 uid=1x\n", "6 uid=1\n", "x uid=1\n", "8 uid=1", "8 uid 1\n", "999 uid=1\n"] {
            assert!(parse(bad.as_bytes()).is_err(), "{bad:?}");
        }
    }
}
