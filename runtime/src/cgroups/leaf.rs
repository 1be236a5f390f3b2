//! Leaf cgroups: creating, limiting, opening.

use super::files::{of_write, put, refused};
use super::{Error, Hierarchy, v1, v2};
use spec::devices::DeviceRule;
use spec::resources::{Version, Write};
use std::fs::{self, File};
use std::os::fd::{AsFd as _, OwnedFd};
use wire::{CgroupMember, CgroupPlan};

/// The limits of a leaf.
#[derive(Debug, Clone, Default)]
pub(crate) struct Limits {
    /// Values from [`spec::resources::writes`].
    pub writes: Vec<Write>,
    /// Device rules from [`spec::devices::rules`]; none if devices are not limited.
    pub devices: Vec<DeviceRule>,
}

/// An existing leaf with its limits set and no process in it.
#[derive(Debug)]
pub(crate) struct Leaf {
    /// The folders to join, for plans.
    pub plan: CgroupPlan,
    /// One open folder per hierarchy, in the plan's order, close-on-exec.
    pub folders: Vec<OwnedFd>,
    /// Skipped limits that this host has no file for; for the log.
    pub skipped: Vec<String>,
}

/// The folders that a process of this cgroup joins.
fn plan(version: Version, hierarchies: &[Hierarchy], path: &str) -> CgroupPlan {
    let member = |hierarchy: &Hierarchy| CgroupMember {
        hierarchy: hierarchy.name().to_owned(),
        path: hierarchy.folder(path).to_string_lossy().into_owned(),
    };
    CgroupPlan { unified: version == Version::V2, members: hierarchies.iter().map(member).collect() }
}

/// Opens the folders of an existing leaf.
pub(super) fn open(version: Version, hierarchies: &[Hierarchy], path: &str) -> Result<Leaf, Error> {
    let folder = |hierarchy: &Hierarchy| {
        let folder = hierarchy.folder(path);
        File::open(&folder).map(OwnedFd::from).map_err(|source| Error::io("open", folder, source))
    };
    let folders = hierarchies.iter().map(folder).collect::<Result<_, _>>()?;
    Ok(Leaf { plan: plan(version, hierarchies, path), folders, skipped: Vec::new() })
}

/// Creates a leaf and writes its limits. On an error nothing of it is left.
pub(super) fn create(
    version: Version,
    hierarchies: &[Hierarchy],
    path: &str,
    limits: &Limits,
) -> Result<Leaf, Error> {
    let mut made = Vec::with_capacity(hierarchies.len());
    let outcome = (|| {
        let parent = path.rsplit_once('/').map_or("", |(parent, _)| parent);
        for hierarchy in hierarchies {
            let folder = match version {
                Version::V1 => v1::make(hierarchy, parent, path)?,
                Version::V2 => v2::make(hierarchy, parent, path, &limits.writes)?,
            };
            made.push(folder.clone());
            if version == Version::V1 {
                v1::prepare(hierarchy, &folder)?;
            }
        }
        let mut skipped = Vec::new();
        for write in &limits.writes {
            let Some(file) = of_write(version, hierarchies, path, write)? else {
                skipped.push(format!("{}={}", write.file, write.value));
                continue;
            };
            put(&file, &write.value).map_err(|source| refused(write, &file, &source))?;
        }
        let leaf = Leaf { skipped, ..open(version, hierarchies, path)? };
        match (version, made.first().zip(leaf.folders.first())) {
            _ if limits.devices.is_empty() => {}
            (Version::V2, Some((folder, fd))) => v2::devices(fd.as_fd(), folder, &limits.devices)?,
            _ => v1::devices(hierarchies, path, &limits.devices)?,
        }
        Ok(leaf)
    })();
    if outcome.is_err() {
        for folder in made.iter().rev() {
            // The leaf is new and empty. The first error is reported.
            drop(fs::remove_dir(folder));
        }
    }
    outcome
}
