//! Creates the levels above a leaf.

use super::names::CGROUP_PARENT;
use super::{Error, Hierarchy};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// Creates a cgroup and its missing parents. Calls `each` with the folder of every level below the root, from the top
/// down, also of existing ones.
pub(super) fn ensure(
    hierarchy: &Hierarchy,
    path: &str,
    mut each: impl FnMut(&Path) -> Result<(), Error>,
) -> Result<PathBuf, Error> {
    /// An empty root cgroup of ours may be removed while a level is created in it; then start again from the
    /// top.
    const TRIES: usize = 16;
    let mut tries = 1;
    loop {
        match levels(hierarchy, path, &mut each) {
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
fn levels(
    hierarchy: &Hierarchy,
    path: &str,
    each: &mut impl FnMut(&Path) -> Result<(), Error>,
) -> Result<PathBuf, Error> {
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
        each(&folder)?;
    }
    Ok(folder)
}
