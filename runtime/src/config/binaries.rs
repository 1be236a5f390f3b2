//! Finds the programs that the daemon starts.

use super::Binaries;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

/// A program that the daemon starts was not found.
#[derive(Debug, thiserror::Error)]
#[error("no executable {name} at {}", .looked.iter().map(|p| p.display().to_string()).collect::<Vec<_>>().join(", "))]
pub struct MissingBinary {
    name: &'static str,
    looked: Vec<PathBuf>,
}

impl Binaries {
    /// Folder searched after the daemon's own.
    const LIBEXEC: &str = "/usr/libexec/copepod";

    /// Path of the shim: as configured, else beside `own` (the daemon's binary), else in libexec. Blocking.
    pub(crate) fn shim(&self, own: &Path) -> Result<PathBuf, MissingBinary> {
        Self::find("copepod-shim", self.shim.as_deref(), own)
    }

    /// Path of pause, found the same way. Blocking.
    pub(crate) fn pause(&self, own: &Path) -> Result<PathBuf, MissingBinary> {
        Self::find("pause", self.pause.as_deref(), own)
    }

    fn find(name: &'static str, configured: Option<&Path>, own: &Path) -> Result<PathBuf, MissingBinary> {
        let looked: Vec<PathBuf> = match configured {
            Some(path) => vec![path.to_owned()],
            None => {
                own.parent().into_iter().chain([Path::new(Self::LIBEXEC)]).map(|dir| dir.join(name)).collect()
            }
        };
        let executable = |path: &&PathBuf| {
            std::fs::metadata(path)
                .is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
        };
        match looked.iter().find(executable) {
            Some(found) => Ok(found.clone()),
            None => Err(MissingBinary { name, looked }),
        }
    }
}
