//! Leaf cgroups of v1: creating, limiting, opening.

use super::names::CGROUP_PARENT;
use super::{Error, Hierarchy};
use spec::devices::DeviceRule;
use spec::resources::Write;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use wire::{CgroupMember, CgroupPlan};

/// The limits of a leaf.
#[derive(Debug, Clone, Default)]
pub(crate) struct Limits {
    /// Values from [`spec::resources::v1`].
    pub writes: Vec<Write>,
    /// Device rules from [`spec::devices::rules`].
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
pub(super) fn plan(hierarchies: &[Hierarchy], path: &str) -> CgroupPlan {
    let member = |hierarchy: &Hierarchy| CgroupMember {
        hierarchy: hierarchy.name().to_owned(),
        path: hierarchy.folder(path).to_string_lossy().into_owned(),
    };
    CgroupPlan { unified: false, members: hierarchies.iter().map(member).collect() }
}

/// Opens the folders of an existing leaf.
pub(super) fn open(hierarchies: &[Hierarchy], path: &str) -> Result<Leaf, Error> {
    let folder = |hierarchy: &Hierarchy| {
        let folder = hierarchy.folder(path);
        File::open(&folder).map(OwnedFd::from).map_err(|source| Error::io("open", folder, source))
    };
    let folders = hierarchies.iter().map(folder).collect::<Result<_, _>>()?;
    Ok(Leaf { plan: plan(hierarchies, path), folders, skipped: Vec::new() })
}

/// Creates a leaf and writes its limits. On an error nothing of it is left.
pub(super) fn create(hierarchies: &[Hierarchy], path: &str, limits: &Limits) -> Result<Leaf, Error> {
    let mut made = Vec::with_capacity(hierarchies.len());
    let outcome = (|| {
        let parent = path.rsplit_once('/').map_or("", |(parent, _)| parent);
        for hierarchy in hierarchies {
            let folder = make(hierarchy, parent, path)?;
            made.push(folder.clone());
            if hierarchy.has("cpuset") {
                inherit_cpuset(&folder)?;
            }
        }
        let mut skipped = Vec::new();
        for write in &limits.writes {
            let Some(file) = file(hierarchies, path, write)? else {
                skipped.push(format!("{}={}", write.file, write.value));
                continue;
            };
            put(&file, &write.value).map_err(|source| refused(write, &file, &source))?;
        }
        devices(hierarchies, path, &limits.devices)?;
        Ok(Leaf { skipped, ..open(hierarchies, path)? })
    })();
    if outcome.is_err() {
        for folder in made.iter().rev() {
            // The leaf is new and empty. The first error is reported.
            drop(fs::remove_dir(folder));
        }
    }
    outcome
}

/// Creates the folder of a leaf. Normally kubelet or the pod's first leaf has made the levels above it, so these are
/// created only if creating the folder fails. In the cpuset hierarchy they are always checked: their cpuset may be empty.
fn make(hierarchy: &Hierarchy, parent: &str, path: &str) -> Result<PathBuf, Error> {
    let folder = hierarchy.folder(path);
    if !hierarchy.has("cpuset") && fs::create_dir(&folder).is_ok() {
        return Ok(folder);
    }
    if !parent.is_empty() {
        ensure(hierarchy, parent)?;
    }
    fs::create_dir(&folder).map_err(|source| Error::io("make cgroup", &folder, source))?;
    Ok(folder)
}

/// Creates a cgroup and its missing parents.
pub(super) fn ensure(hierarchy: &Hierarchy, path: &str) -> Result<PathBuf, Error> {
    /// An empty root cgroup of ours may be removed while a level is created in it; then start again from the
    /// top.
    const TRIES: usize = 16;
    let mut tries = 1;
    loop {
        match levels(hierarchy, path) {
            Err(Error::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound && tries < TRIES => {
                tries += 1;
            }
            outcome => return outcome,
        }
    }
}

fn no_cgroup(path: &str, why: &str) -> Error {
    spec::Error::invalid(CGROUP_PARENT, path, format!("must be the path of a cgroup: {why}")).into()
}

/// One attempt of [`ensure`].
fn levels(hierarchy: &Hierarchy, path: &str) -> Result<PathBuf, Error> {
    let mut folder = hierarchy.mount().to_owned();
    for part in path.split('/').filter(|part| !part.is_empty()) {
        folder.push(part);
        match fs::create_dir(&folder) {
            Ok(()) => {}
            // The name is that of a cgroup, or of one of the kernel's control files.
            Err(source) if source.kind() == io::ErrorKind::AlreadyExists => {
                if fs::symlink_metadata(&folder).is_ok_and(|found| !found.is_dir()) {
                    return Err(no_cgroup(path, "it leads through one of the kernel's control files"));
                }
            }
            Err(source) if source.kind() == io::ErrorKind::InvalidFilename => {
                return Err(no_cgroup(path, "a name in it is longer than the kernel accepts"));
            }
            Err(source) if source.kind() == io::ErrorKind::InvalidInput => {
                return Err(no_cgroup(path, "a name in it is not valid for a cgroup"));
            }
            Err(source) => return Err(Error::io("make cgroup", folder, source)),
        }
        // Also for existing levels: their creator may have left the cpuset empty, and then no process can
        // join.
        if hierarchy.has("cpuset") {
            inherit_cpuset(&folder)?;
        }
    }
    Ok(folder)
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

fn devices(hierarchies: &[Hierarchy], path: &str, rules: &[DeviceRule]) -> Result<(), Error> {
    if rules.is_empty() {
        return Ok(());
    }
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

/// The file of a write; `None` if the host has none and the write may be skipped.
pub(super) fn file(hierarchies: &[Hierarchy], path: &str, write: &Write) -> Result<Option<PathBuf>, Error> {
    let hierarchy = hierarchies.iter().find(|hierarchy| hierarchy.has(&write.controller));
    let file = hierarchy.map(|hierarchy| hierarchy.folder(path).join(&write.file));
    match file {
        Some(file) if file.exists() => Ok(Some(file)),
        _ if write.optional => Ok(None),
        file => Err(Error::Limit {
            field: write.field.clone(),
            value: write.value.clone(),
            reason: format!("this host has no cgroup v1 controller {} with {}", write.controller, write.file),
            path: file.unwrap_or_else(|| PathBuf::from(path)),
        }),
    }
}

/// The error of a write that the kernel refused.
pub(super) fn refused(write: &Write, file: &Path, source: &io::Error) -> Error {
    let reason = source.to_string();
    Error::Limit { field: write.field.clone(), value: write.value.clone(), path: file.to_owned(), reason }
}

/// The count of `oom_kill` in memory.oom_control; 0 without the controller.
pub(super) fn oom_kills(hierarchies: &[Hierarchy], path: &str) -> Result<u64, Error> {
    let Some(hierarchy) = hierarchies.iter().find(|hierarchy| hierarchy.has("memory")) else {
        return Ok(0);
    };
    let text = read(&hierarchy.folder(path).join("memory.oom_control"))?;
    let count = text.lines().find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok());
    Ok(count.unwrap_or(0))
}

/// Writes an existing cgroup file, which takes its value in one write(2).
pub(super) fn put(file: &Path, value: &str) -> io::Result<()> {
    OpenOptions::new().write(true).open(file)?.write_all(value.as_bytes())
}

/// The text of a cgroup file without its newline.
pub(super) fn read(file: &Path) -> Result<String, Error> {
    let text = fs::read_to_string(file).map_err(|source| Error::io("read", file, source))?;
    Ok(text.trim_end().to_owned())
}
