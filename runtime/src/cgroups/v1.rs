//! Folders and files of v1: one folder in each hierarchy.

use super::files::{put, read};
use super::{Error, Hierarchy, levels};
use spec::devices::DeviceRule;
use std::fs;
use std::path::{Path, PathBuf};

/// Creates the folder of a leaf. Normally kubelet or the pod's first leaf has made the levels above it, so these are
/// created only if creating the folder fails. In the cpuset hierarchy they are always checked: their cpuset may be empty.
pub(super) fn make(hierarchy: &Hierarchy, parent: &str, path: &str) -> Result<PathBuf, Error> {
    let folder = hierarchy.folder(path);
    let is_cpuset = hierarchy.has("cpuset");
    if is_cpuset || fs::create_dir(&folder).is_err() {
        if !parent.is_empty() {
            ensure(hierarchy, parent)?;
        }
        fs::create_dir(&folder).map_err(|source| Error::io("make cgroup", &folder, source))?;
    }
    Ok(folder)
}

/// What a new folder needs before a process can join it.
pub(super) fn prepare(hierarchy: &Hierarchy, folder: &Path) -> Result<(), Error> {
    if hierarchy.has("cpuset") { inherit_cpuset(folder) } else { Ok(()) }
}

/// Creates a cgroup and its missing parents.
pub(super) fn ensure(hierarchy: &Hierarchy, path: &str) -> Result<PathBuf, Error> {
    // Also for existing levels: their creator may have left the cpuset empty, and then no process can join.
    levels::ensure(hierarchy, path, |folder| prepare(hierarchy, folder))
}

/// A new cpuset is empty, and joining an empty one fails with ENOSPC, so copy the parent's.
fn inherit_cpuset(folder: &Path) -> Result<(), Error> {
    for name in ["cpuset.cpus", "cpuset.mems"] {
        let file = folder.join(name);
        if !read(&file)?.is_empty() {
            continue;
        }
        let Some(above) = folder.parent().map(|parent| parent.join(name)) else { continue };
        put(&file, &read(&above)?).map_err(|source| Error::io("write", file, source))?;
    }
    Ok(())
}

/// Writes the rules of a new leaf in their order.
pub(super) fn devices(hierarchies: &[Hierarchy], path: &str, rules: &[DeviceRule]) -> Result<(), Error> {
    let Some(hierarchy) = hierarchies.iter().find(|hierarchy| hierarchy.has("devices")) else {
        return Err(Error::Host { missing: "the v1 controller devices".to_owned() });
    };
    for rule in rules {
        let name = if rule.allow { "devices.allow" } else { "devices.deny" };
        let file = hierarchy.folder(path).join(name);
        put(&file, &rule.to_string()).map_err(|source| Error::io("write device rule to", file, source))?;
    }
    Ok(())
}
