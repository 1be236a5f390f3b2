//! Names of devices by their numbers.

use std::path::Path;

/// Path of a block device, such as `/dev/sda`.
pub(super) fn block(major: u32, minor: u32) -> Option<String> {
    let target = std::fs::read_link(format!("/sys/dev/block/{major}:{minor}")).ok()?;
    named(&target)
}

/// The last part of a link in /sys/dev/block is the device's name; there `!` stands for a slash.
fn named(target: &Path) -> Option<String> {
    let name = target.file_name()?.to_str()?;
    Some(format!("/dev/{}", name.replace('!', "/")))
}

/// What a file system is mounted from: its block device, or else the source in the mount table, such as `tmpfs` or the
/// name of a pool. Empty if neither is known.
pub(super) fn of_filesystem(device: u64) -> String {
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    block(major, minor).or_else(|| mounted(&format!("{major}:{minor}"))).unwrap_or_default()
}

fn mounted(device: &str) -> Option<String> {
    let table = std::fs::read_to_string("/proc/self/mountinfo").ok()?;
    let source = sys::mountinfo::mounts(&table).find(|mount| mount.device == device)?.source;
    Some(source.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        assert_eq!(named(Path::new("../../devices/virtual/block/vda")).as_deref(), Some("/dev/vda"));
        assert_eq!(
            named(Path::new("../block/cciss!c0d0/cciss!c0d0p1")).as_deref(),
            Some("/dev/cciss/c0d0p1")
        );
        assert_eq!(named(Path::new("/")), None);
        assert_eq!(block(0, 0), None);
        let proc =
            std::fs::metadata("/proc").map(|facts| std::os::unix::fs::MetadataExt::dev(&facts)).unwrap();
        assert_eq!(of_filesystem(proc), "proc");
    }
}
