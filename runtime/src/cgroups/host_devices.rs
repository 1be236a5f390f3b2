//! Finds device nodes of the host, as facts for `spec`. Blocking.

use super::Error;
use model::ContainerConfig;
use spec::devices::{HostDevice, MAX_NODES};
use std::fs;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::Path;

/// How many folders deep a requested folder is searched.
const MAX_DEPTH: usize = 8;
/// Skipped in every folder that is searched: other file systems, nodes of other containers, and old udev's database.
const SKIPPED: [&str; 8] = ["pts", "shm", "mqueue", "fd", "hugepages", ".lxc", ".lxd-mounts", ".udev"];

/// The nodes at and below the `host_path`s of a container's devices, and below /dev if it is privileged, sorted by path. A
/// `host_path` without a node is no error here: `spec` reports the field. At most [`MAX_NODES`] are returned. If there are
/// more, a warning is logged; requested ones come first, so those of a privileged container are left out.
pub(crate) fn find(config: &ContainerConfig) -> Result<Vec<HostDevice>, Error> {
    let mut found = Vec::new();
    for (index, device) in config.devices.iter().enumerate() {
        let field = format!("config.devices[{index}].host_path");
        let path =
            spec::path::clean(&device.host_path).map_err(spec::Error::about(field, &device.host_path))?;
        walk(Path::new(&path), 0, &mut found)?;
    }
    if config.security.privileged {
        walk(Path::new("/dev"), 0, &mut found)?;
    }
    if found.len() == MAX_NODES {
        tracing::warn!(
            container = config.meta.name,
            max = MAX_NODES,
            "the host has more device nodes than a container can have; the rest is left out"
        );
    }
    found.sort_by(|a, b| a.path.cmp(&b.path));
    found.dedup();
    Ok(found)
}

fn walk(path: &Path, depth: usize, found: &mut Vec<HostDevice>) -> Result<(), Error> {
    if found.len() == MAX_NODES {
        return Ok(());
    }
    // The requested path may be a symlink (/dev/disk/by-id); symlinks below it are not followed.
    let facts = if depth == 0 { fs::metadata(path) } else { fs::symlink_metadata(path) };
    let Ok(facts) = facts else { return Ok(()) };
    let kind = facts.file_type();
    if kind.is_dir() {
        if depth == MAX_DEPTH {
            return Ok(());
        }
        let entries = fs::read_dir(path).map_err(|source| Error::io("list", path, source))?;
        for entry in entries.filter_map(Result::ok) {
            if !SKIPPED.iter().any(|skipped| entry.file_name() == *skipped) {
                walk(&entry.path(), depth + 1, found)?;
            }
        }
        return Ok(());
    }
    let kind = match (kind.is_char_device(), kind.is_block_device()) {
        (true, _) => 'c',
        (_, true) => 'b',
        _ => return Ok(()),
    };
    let rdev = facts.rdev();
    found.push(HostDevice {
        path: path.to_string_lossy().into_owned(),
        kind,
        major: rustix::fs::major(rdev),
        minor: rustix::fs::minor(rdev),
        mode: facts.mode() & 0o7777,
        uid: facts.uid(),
        gid: facts.gid(),
    });
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::Device;

    #[test]
    fn finds_null_and_the_hosts_nodes() {
        let null = Device { host_path: "/dev/null".into(), ..Device::default() };
        let mut config = ContainerConfig { devices: vec![null], ..ContainerConfig::default() };
        let found = find(&config).unwrap();
        assert_eq!(found.len(), 1);
        assert_eq!((found[0].kind, found[0].major, found[0].minor), ('c', 1, 3));
        config.security.privileged = true;
        let all = find(&config).unwrap();
        assert!(all.iter().any(|node| node.path == "/dev/zero") && all.len() > 4);
        assert!(!all.iter().any(|node| node.path.starts_with("/dev/pts/")));
        config = ContainerConfig::default();
        config.devices.push(Device { host_path: "/dev/no-such-node".into(), ..Device::default() });
        assert!(find(&config).unwrap().is_empty());
    }
}
