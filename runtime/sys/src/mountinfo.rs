//! The mount table as text (/proc/PID/mountinfo, proc_pid_mountinfo(5)).

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read as _};
use std::os::unix::ffi::OsStringExt as _;
use std::path::PathBuf;

/// Largest table in bytes that is read. A line has some 200 bytes, and a namespace has 100,000 mounts at most (fs.mount-max).
const MAX_TABLE: u64 = 64 << 20;

/// One line. The fields are not unescaped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mount<'t> {
    /// Id of the mount.
    pub id: u64,
    /// Id of the mount that it is mounted on.
    pub parent: u64,
    /// Device number of the file system, `major:minor`.
    pub device: &'t str,
    /// The folder of the file system that is mounted.
    pub root: &'t str,
    point: &'t str,
    optional: &'t str,
    /// File system type.
    pub kind: &'t str,
    /// What is mounted: the path of a device, or any word.
    pub source: &'t str,
    /// Superblock options.
    pub options: &'t str,
}

impl<'t> Mount<'t> {
    /// Where it is mounted, unescaped: space, tab, newline and backslash are written as three octal digits.
    pub fn point(&self) -> PathBuf {
        let mut bytes = Vec::with_capacity(self.point.len());
        let mut rest = self.point.as_bytes();
        while let Some((first, after)) = rest.split_first() {
            let digits = after.get(..3).and_then(|digits| std::str::from_utf8(digits).ok());
            let octal = digits.and_then(|digits| u8::from_str_radix(digits, 8).ok());
            let byte = octal.filter(|_| *first == b'\\');
            bytes.push(byte.unwrap_or(*first));
            rest = if byte.is_some() { after.get(3..).unwrap_or_default() } else { after };
        }
        PathBuf::from(OsString::from_vec(bytes))
    }

    /// Where it is mounted, as it is written: equal for equal mount points.
    pub fn raw_point(&self) -> &'t str {
        self.point
    }

    /// Whether it has an optional field with this prefix (`shared:`, `master:`).
    pub fn has_tag(&self, tag: &str) -> bool {
        self.optional.split(' ').any(|field| field.starts_with(tag))
    }

    fn parse(line: &'t str) -> Option<Self> {
        let (left, right) = line.split_once(" - ")?;
        let mut left = left.splitn(7, ' ');
        let (id, parent) = (left.next()?.parse().ok()?, left.next()?.parse().ok()?);
        let (device, root, point) = (left.next()?, left.next()?, left.next()?);
        let optional = left.nth(1).unwrap_or_default();
        let mut right = right.split(' ');
        let (kind, source, options) = (right.next()?, right.next()?, right.next()?);
        Some(Self { id, parent, device, root, point, optional, kind, source, options })
    }
}

/// The text of an open table, at most its first 64 MiB.
///
/// # Errors
/// It cannot be read, or is not UTF-8.
pub fn read(table: File) -> io::Result<String> {
    let mut text = String::new();
    table.take(MAX_TABLE).read_to_string(&mut text)?;
    Ok(text)
}

/// The mounts in the text of a table; lines in another format are skipped.
pub fn mounts(text: &str) -> impl Iterator<Item = Mount<'_>> {
    text.lines().filter_map(Mount::parse)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_found_and_unescaped() {
        let text = "36 35 98:0 /mnt1 /a\\040b\\134c rw,noatime shared:2 master:1 - ext3 /dev/root rw,errors=continue\n\
                    37 35 0:5 / /\\9x rw - proc proc rw\nnonsense\n1 2 - x\n";
        let all: Vec<_> = mounts(text).collect();
        assert_eq!(all.len(), 2);
        assert_eq!((all[0].id, all[0].parent, all[0].device), (36, 35, "98:0"));
        assert_eq!((all[0].root, all[0].kind, all[0].raw_point()), ("/mnt1", "ext3", "/a\\040b\\134c"));
        assert_eq!(all[0].source, "/dev/root");
        assert_eq!((all[0].point(), all[0].options), (PathBuf::from("/a b\\c"), "rw,errors=continue"));
        assert!(all[0].has_tag("shared:") && all[0].has_tag("master:") && !all[0].has_tag("unbindable"));
        assert_eq!(all[1].point(), PathBuf::from("/\\9x"));
    }

    #[test]
    fn the_own_table_is_understood() {
        let text = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert_eq!(mounts(&text).count(), text.lines().count());
    }
}
