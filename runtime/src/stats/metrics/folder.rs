//! The folder of a cgroup, and what both versions have in it.

use super::device;
use super::group::{DeviceIo, HugePages, Pressure};
use crate::stats::parse;
use std::fs::{self, File};
use std::io;
use std::path::PathBuf;

/// Maximum size of a file in bytes. memory.stat has 2 KB; a file of I/O has about 120 bytes for each device.
const MAX_FILE: u64 = 64 << 10;
/// Maximum number of devices of one cgroup. A node has few; each makes ten samples.
pub(super) const MAX_DEVICES: usize = 64;
/// Maximum number of sizes of huge pages. arm64 has four.
const MAX_PAGE_SIZES: usize = 16;

/// One folder of a cgroup; without the hierarchy it has no files.
#[derive(Debug)]
pub(super) struct Folder(pub(super) Option<PathBuf>);

impl Folder {
    /// A file that the kernel always has.
    pub(super) fn text(&self, name: &str) -> io::Result<String> {
        let folder = self.0.as_deref().ok_or(io::ErrorKind::NotFound)?;
        let bytes = sys::file::read_capped(File::open(folder.join(name))?, MAX_FILE)?;
        String::from_utf8(bytes).map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "not UTF-8"))
    }

    /// What `parse` finds in a file that the kernel always has.
    pub(super) fn required(&self, name: &str, parse: impl FnOnce(&str) -> Option<u64>) -> io::Result<u64> {
        parse(&self.text(name)?).ok_or_else(|| without_number(name))
    }

    pub(super) fn number(&self, name: &str) -> Option<u64> {
        parse::number(&self.text(name).ok()?)
    }

    /// A limit of memory; `None` also if there is none.
    pub(super) fn limit(&self, name: &str) -> Option<u64> {
        parse::limit(parse::number_or_max(&self.text(name).ok()?)?)
    }

    /// The text of a file, empty if there is none.
    pub(super) fn optional(&self, name: &str) -> String {
        self.text(name).unwrap_or_default()
    }

    /// The pressure files.
    pub(super) fn pressure(&self) -> Pressure {
        let read = |name| parse::psi(&self.text(name).ok()?);
        Pressure { cpu: read("cpu.pressure"), memory: read("memory.pressure"), io: read("io.pressure") }
    }

    /// The huge pages of each size. `usage` and `max_usage` are the last parts of the names of these files.
    pub(super) fn huge_pages(&self, usage: &str, max_usage: Option<&str>) -> Vec<HugePages> {
        let Some(entries) = self.0.as_deref().and_then(|folder| fs::read_dir(folder).ok()) else {
            return Vec::new();
        };
        let names = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
        let mut sizes: Vec<HugePages> = names
            .filter_map(|name| {
                let size = parse::page_size(&name, usage)?;
                let value = |last: &str| {
                    let reserved = self.number(&format!("hugetlb.{size}.rsvd.{last}"));
                    reserved.or_else(|| self.number(&format!("hugetlb.{size}.{last}")))
                };
                let (usage, max_usage) = (value(usage)?, max_usage.and_then(value));
                Some(HugePages { size: size.to_owned(), usage, max_usage })
            })
            .take(MAX_PAGE_SIZES)
            .collect();
        sizes.sort_by(|a, b| a.size.cmp(&b.size));
        sizes
    }
}

/// The error of a file in which a number is missing that the kernel always writes.
pub(super) fn without_number(name: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("{name} lacks a number"))
}

/// I/O of the devices, with their names.
pub(super) fn devices(found: impl Iterator<Item = (parse::Number, [parse::Operations; 2])>) -> Vec<DeviceIo> {
    found
        .map(|(number, [bytes, requests])| DeviceIo {
            device: device::block(number.0, number.1).unwrap_or_default(),
            number,
            bytes,
            requests,
        })
        .collect()
}
