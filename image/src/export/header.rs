//! Headers of tar members: ustar, with PAX records where a value does not fit (POSIX, pax). Pure. Equal members have equal
//! headers.

use tar::{EntryType, Header};

const BLOCK: usize = 512;
/// Largest numbers of ustar's fields: 7 octal digits for ids, 11 for sizes and times.
const MAX_ID: u32 = 0o7_777_777;
const MAX_SIZE: u64 = 0o77_777_777_777;

/// What the header of a member says.
#[derive(Debug, Clone)]
pub(super) struct Item<'a> {
    /// Relative; that of a folder ends in a slash.
    pub(super) name: &'a [u8],
    pub(super) kind: EntryType,
    /// Permission bits with setuid, setgid and sticky.
    pub(super) mode: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    /// Seconds since 1970 and nanoseconds, which count upwards before 1970 too.
    pub(super) mtime: (i64, u32),
    /// Bytes of content.
    pub(super) size: u64,
    /// Target of a link.
    pub(super) link: &'a [u8],
    /// Major and minor number.
    pub(super) device: (u32, u32),
    /// Names and values, sorted.
    pub(super) xattrs: &'a [(Vec<u8>, Vec<u8>)],
}

impl<'a> Item<'a> {
    /// A file of root with mode 0644 and no time.
    pub(super) fn file(name: &'a [u8], size: u64) -> Self {
        Self {
            name,
            kind: EntryType::Regular,
            mode: 0o644,
            uid: 0,
            gid: 0,
            mtime: (0, 0),
            size,
            link: &[],
            device: (0, 0),
            xattrs: &[],
        }
    }
}

/// The blocks before a member's content.
pub(super) fn encode(item: &Item<'_>) -> Vec<u8> {
    let records = records(item);
    let mut blocks = Vec::new();
    if !records.is_empty() {
        let extended = Item::file(b"././@PaxHeader", records.len() as u64);
        blocks.extend_from_slice(ustar(&Item { kind: EntryType::XHeader, ..extended }).as_bytes());
        blocks.extend_from_slice(&records);
        blocks.resize(blocks.len().next_multiple_of(BLOCK), 0);
    }
    blocks.extend_from_slice(ustar(item).as_bytes());
    blocks
}

/// Number of bytes from the end of a member's content to the next block.
pub(super) fn padding(size: u64) -> usize {
    // Less than a block.
    usize::try_from(size.next_multiple_of(BLOCK as u64) - size).unwrap_or(0)
}

/// The header alone. Values that do not fit are cut or zero: records say what they are.
fn ustar(item: &Item<'_>) -> Header {
    let mut header = Header::new_ustar();
    {
        let old = header.as_old_mut();
        let put = |field: &mut [u8; 100], value: &[u8]| {
            let length = value.len().min(field.len());
            field[..length].copy_from_slice(&value[..length]);
        };
        put(&mut old.name, item.name);
        put(&mut old.linkname, item.link);
    }
    header.set_entry_type(item.kind);
    header.set_mode(item.mode);
    header.set_uid(u64::from(if item.uid > MAX_ID { 0 } else { item.uid }));
    header.set_gid(u64::from(if item.gid > MAX_ID { 0 } else { item.gid }));
    header.set_size(if item.size > MAX_SIZE { 0 } else { item.size });
    header.set_mtime(u64::try_from(item.mtime.0).ok().filter(|time| *time <= MAX_SIZE).unwrap_or(0));
    if let Some(ustar) = header.as_ustar_mut() {
        ustar.set_device_major(item.device.0);
        ustar.set_device_minor(item.device.1);
    }
    header.set_cksum();
    header
}

/// The PAX records, in a fixed order.
fn records(item: &Item<'_>) -> Vec<u8> {
    let mut records = Vec::new();
    let fits = |text: &[u8]| text.len() <= 100 && text.is_ascii();
    if !fits(item.name) {
        record(&mut records, b"path", item.name);
    }
    if !fits(item.link) {
        record(&mut records, b"linkpath", item.link);
    }
    if item.size > MAX_SIZE {
        record(&mut records, b"size", item.size.to_string().as_bytes());
    }
    for (key, id) in [(b"uid", item.uid), (b"gid", item.gid)] {
        if id > MAX_ID {
            record(&mut records, key, id.to_string().as_bytes());
        }
    }
    let (seconds, nanoseconds) = item.mtime;
    let whole = u64::try_from(seconds).is_ok_and(|time| time <= MAX_SIZE);
    if !whole || nanoseconds != 0 {
        record(&mut records, b"mtime", time(seconds, nanoseconds).as_bytes());
    }
    for (name, value) in item.xattrs {
        record(&mut records, &[b"SCHILY.xattr.", &name[..]].concat(), value);
    }
    records
}

/// Adds `<length> <key>=<value>\n`. The length is that of the whole record, its own digits included.
fn record(records: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + 1;
    while rest + length.to_string().len() != length {
        length = rest + length.to_string().len();
    }
    records.extend_from_slice(format!("{length} ").as_bytes());
    records.extend_from_slice(key);
    records.push(b'=');
    records.extend_from_slice(value);
    records.push(b'\n');
}

/// A time as text, such as `-1.5`.
fn time(seconds: i64, nanoseconds: u32) -> String {
    let fraction = |nanoseconds: u32| {
        let text = format!("{nanoseconds:09}");
        format!(".{}", text.trim_end_matches('0'))
    };
    match (seconds, nanoseconds) {
        (_, 0) => seconds.to_string(),
        // Towards zero: -2 and half a second are -1.5.
        (..0, _) => format!("-{}{}", (seconds + 1).unsigned_abs(), fraction(1_000_000_000 - nanoseconds)),
        _ => format!("{seconds}{}", fraction(nanoseconds)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::unpack::{Kind, TarReader};
    use proptest::prelude::*;

    /// What our own reader finds in a member's blocks.
    fn read(item: &Item<'_>) -> crate::unpack::Entry {
        let mut blocks = encode(item);
        blocks.extend_from_slice(&[0; 1024]);
        TarReader::new(&blocks[..]).next().unwrap().unwrap()
    }

    proptest! {
        #[test]
        fn everything_is_read_back(
            name in "[a-zé]{1,120}(/[a-z]{1,200}){0,3}",
            (uid, gid) in (0..u32::MAX, 0..u32::MAX),
            mode in 0..0o10000u32,
            seconds in -5_000_000_000i64..100_000_000_000,
            nanoseconds in prop_oneof![Just(0), 0..1_000_000_000u32],
            target in "[a-z./]{1,150}",
            value in proptest::collection::vec(any::<u8>(), 0..300),
        ) {
            let xattrs = [(b"user.x".to_vec(), value)];
            let item = Item {
                kind: EntryType::Symlink,
                mode,
                uid,
                gid,
                mtime: (seconds, nanoseconds),
                link: target.as_bytes(),
                xattrs: &xattrs,
                ..Item::file(name.as_bytes(), 0)
            };
            let entry = read(&item);
            prop_assert_eq!(entry.path.components().join(&b'/'), name.as_bytes());
            prop_assert_eq!(entry.kind, Kind::Symlink(target.as_bytes().to_vec()));
            prop_assert_eq!((entry.uid, entry.gid, entry.mode, entry.mtime), (uid, gid, mode, item.mtime));
            prop_assert_eq!(&entry.xattrs[..], &xattrs[..]);
        }
    }

    #[test]
    fn large_files_and_devices() {
        assert_eq!(read(&Item::file(b"f", 1 << 40)).size, 1 << 40);
        let device = Item { kind: EntryType::Block, device: (259, 65536), ..Item::file(b"d", 0) };
        assert_eq!(read(&device).kind, Kind::BlockDevice(259, 65536));
        assert_eq!(encode(&Item::file(b"f", 5)).len(), BLOCK);
        assert_eq!((padding(0), padding(1), padding(512)), (0, 511, 0));
    }
}
