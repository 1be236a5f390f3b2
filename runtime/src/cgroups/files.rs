//! Files of cgroups, of either version.

use super::{Error, Hierarchy};
use spec::resources::{Version, Write};
use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

/// The file of a write; `None` if the host has none and the write may be skipped.
pub(super) fn of_write(
    version: Version,
    hierarchies: &[Hierarchy],
    path: &str,
    write: &Write,
) -> Result<Option<PathBuf>, Error> {
    let hierarchy = hierarchies.iter().find(|hierarchy| hierarchy.has(&write.controller));
    let file = hierarchy.map(|hierarchy| hierarchy.folder(path).join(&write.file));
    let version = match version {
        Version::V1 => "v1",
        Version::V2 => "v2",
    };
    match file {
        Some(file) if file.exists() => Ok(Some(file)),
        _ if write.optional => Ok(None),
        file => Err(Error::Limit {
            field: write.field.clone(),
            value: write.value.clone(),
            reason: format!(
                "this host has no cgroup {version} controller {} with {}, or it is not enabled for this cgroup",
                write.controller, write.file
            ),
            path: file.unwrap_or_else(|| PathBuf::from(path)),
        }),
    }
}

/// The error of a write that the kernel refused.
pub(super) fn refused(write: &Write, file: &Path, source: &io::Error) -> Error {
    let reason = source.to_string();
    Error::Limit { field: write.field.clone(), value: write.value.clone(), path: file.to_owned(), reason }
}

/// Writes an existing cgroup file, which takes its value in one write(2). An empty value, as that of a cpuset of v2, is
/// written as an empty line: the kernel ignores a write of no bytes.
pub(super) fn put(file: &Path, value: &str) -> io::Result<()> {
    let value = if value.is_empty() { "\n" } else { value };
    OpenOptions::new().write(true).open(file)?.write_all(value.as_bytes())
}

/// The text of a cgroup file without its newline.
pub(super) fn read(file: &Path) -> Result<String, Error> {
    let text = fs::read_to_string(file).map_err(|source| Error::io("read", file, source))?;
    Ok(text.trim_end().to_owned())
}
