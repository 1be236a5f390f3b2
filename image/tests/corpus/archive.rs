//! Writes archives in the dialects of the libraries that builders use.

use super::model::{Item, What};
use super::tree::Kind;
use tar::{EntryType, Header};

/// How a library writes an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dialect {
    /// Go's archive/tar without a format: ustar, with PAX records for what does not fit, and whole seconds.
    Go,
    /// The same with `FormatPAX`, as containerd's and Docker's differs set it: with fractions of seconds.
    GoPax,
    /// Apache Commons Compress with POSIX long names: the mode has the file type, and the names of PAX headers differ.
    Commons,
}

/// An archive with its end.
pub fn archive(dialect: Dialect, items: &[Item]) -> Vec<u8> {
    let mut bytes: Vec<u8> = items.iter().flat_map(|item| entry(dialect, item)).collect();
    bytes.resize(bytes.len() + 1024, 0);
    bytes
}

/// One entry, with its extensions, content and padding.
pub fn entry(dialect: Dialect, item: &Item) -> Vec<u8> {
    let (kind, target, content) = match &item.what {
        What::Link(target) => (EntryType::Link, target.as_str(), &[][..]),
        What::Is(Kind::File(content)) => (EntryType::Regular, "", content.as_slice()),
        What::Is(Kind::Folder) => (EntryType::Directory, "", &[][..]),
        What::Is(Kind::Symlink(target)) => (EntryType::Symlink, target.as_str(), &[][..]),
        What::Is(Kind::Fifo) => (EntryType::Fifo, "", &[][..]),
        What::Is(Kind::Character(..)) => (EntryType::Char, "", &[][..]),
    };
    let fits = split(&item.name);
    let records = records(dialect, item, target, fits.is_none());
    let mut bytes = Vec::new();
    if !records.is_empty() {
        let content: Vec<u8> = records.iter().flat_map(|(key, value)| record(key, value)).collect();
        let base = item.name.trim_end_matches('/').rsplit('/').next().unwrap_or_default();
        let place = if dialect == Dialect::Commons { "./PaxHeaders.X" } else { "PaxHeaders.0" };
        let name: String = format!("{place}/{base}").chars().filter(char::is_ascii).take(100).collect();
        bytes.extend(block(("", &name), EntryType::XHeader, "", (0, (0, 0), 0), content.len()).as_bytes());
        padded(&mut bytes, &content);
    }
    let cut: String = item.name.chars().filter(char::is_ascii).take(100).collect();
    let small = |id: u32| if id > 0o7_777_777 { 0 } else { id };
    let kind_bits = match (dialect, kind) {
        (Dialect::Commons, EntryType::Directory) => 0o40_000,
        (Dialect::Commons, _) => 0o100_000,
        _ => 0,
    };
    let attributes = (item.mode | kind_bits, (small(item.owner.0), small(item.owner.1)), item.mtime.0);
    let cut_target: String = target.chars().filter(char::is_ascii).take(100).collect();
    let mut header = block(fits.unwrap_or(("", &cut)), kind, &cut_target, attributes, content.len());
    if let What::Is(Kind::Character(major, minor)) = &item.what {
        header.set_device_major(*major).unwrap();
        header.set_device_minor(*minor).unwrap();
        header.set_cksum();
    }
    bytes.extend(header.as_bytes());
    padded(&mut bytes, content);
    bytes
}

/// The PAX records of an entry.
fn records(dialect: Dialect, item: &Item, target: &str, is_long: bool) -> Vec<(String, Vec<u8>)> {
    let mut records = Vec::new();
    if is_long {
        records.push(("path".to_owned(), item.name.clone().into_bytes()));
    }
    if target.len() > 100 || !target.is_ascii() {
        records.push(("linkpath".to_owned(), target.as_bytes().to_vec()));
    }
    for (key, id) in [("uid", item.owner.0), ("gid", item.owner.1)] {
        if id > 0o7_777_777 {
            records.push((key.to_owned(), id.to_string().into_bytes()));
        }
    }
    if dialect == Dialect::GoPax && item.mtime.1 != 0 {
        let text = format!("{}.{:09}", item.mtime.0, item.mtime.1);
        records.push(("mtime".to_owned(), text.trim_end_matches('0').as_bytes().to_vec()));
    }
    for (name, value) in &item.xattrs {
        records.push((format!("SCHILY.xattr.{name}"), value.to_vec()));
    }
    records.sort();
    records
}

/// The prefix and the name in a ustar header; `None` if it does not fit.
fn split(name: &str) -> Option<(&str, &str)> {
    if !name.is_ascii() {
        return None;
    }
    if name.len() <= 100 {
        return Some(("", name));
    }
    let mut slashes = name.match_indices('/').map(|(at, _)| at);
    let fitting = slashes.rfind(|at| (1..=155).contains(at) && (1..=100).contains(&(name.len() - at - 1)))?;
    Some((&name[..fitting], &name[fitting + 1..]))
}

fn record(key: &str, value: &[u8]) -> Vec<u8> {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + rest.to_string().len();
    if length.to_string().len() != rest.to_string().len() {
        length = rest + length.to_string().len();
    }
    [format!("{length} {key}=").as_bytes(), value, b"\n"].concat()
}

/// A ustar header: prefix and name, type, target, and (mode, owner, time).
fn block(
    (prefix, name): (&str, &str),
    kind: EntryType,
    target: &str,
    (mode, (uid, gid), mtime): (u32, (u32, u32), i64),
    size: usize,
) -> Header {
    let mut header = Header::new_ustar();
    let bytes = header.as_mut_bytes();
    bytes[..name.len()].copy_from_slice(name.as_bytes());
    bytes[157..157 + target.len()].copy_from_slice(target.as_bytes());
    bytes[345..345 + prefix.len()].copy_from_slice(prefix.as_bytes());
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_uid(uid.into());
    header.set_gid(gid.into());
    header.set_mtime(u64::try_from(mtime).unwrap());
    header.set_size(size as u64);
    header.set_device_major(0).unwrap();
    header.set_device_minor(0).unwrap();
    header.set_cksum();
    header
}

fn padded(bytes: &mut Vec<u8>, content: &[u8]) {
    bytes.extend_from_slice(content);
    bytes.resize(bytes.len().next_multiple_of(512), 0);
}
