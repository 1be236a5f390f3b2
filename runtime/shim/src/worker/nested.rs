//! Volumes on Bidirectional volumes, for example a service account's token at /var/run/secrets if /run is a
//! Bidirectional volume. A mount on such a volume appears on the host. So init attaches a private copy of the
//! Bidirectional volume, mounts the other volumes on the copy, and only then lets the copy join the peer group of the
//! host's mount (MOVE_MOUNT_SET_GROUP, Linux 5.15). From then on the host sees what the container mounts, but none of
//! the earlier mounts.
//!
//! The worker finds out which volumes these are: it opens the target of each volume in the plan's order, because
//! symlinks may lead onto a Bidirectional volume. A volume whose target is below one is staged for init.
//!
//! Until it joins, the copy does not receive mounts that the host makes on the volume; the staged Bidirectional volume
//! does. If the two differ at the end, the copy is discarded and everything is repeated.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Instant;

use rustix::fs::OFlags;
use sys::mount::{self, PropagationType};
use wire::Failure;

use super::scratch::Scratch;
use super::stage::{Step, internal, invalid};
use super::tree::{self, Root};
use super::volumes::PATIENCE;

const STAGE: &str = "volumes on a Bidirectional one";

/// A volume that lies on a Bidirectional one.
#[derive(Debug)]
pub(super) struct Nested {
    /// Its target in the plan.
    pub(super) target: String,
    /// Its index in the scratch root.
    pub(super) index: usize,
    /// The plan's target of the Bidirectional volume.
    pub(super) onto: String,
    /// The path in that volume. It had no symlinks when it was resolved.
    pub(super) below: PathBuf,
}

/// The places of the Bidirectional volumes that come before the current mount in the plan. An earlier mount below such
/// a volume is hidden by it, as with runc.
#[derive(Debug, Default)]
pub(super) struct Shared(Vec<(PathBuf, String)>);

impl Shared {
    /// Adds the place of a Bidirectional volume.
    pub(super) fn add(&mut self, target: &str, place: PathBuf) -> Step<()> {
        let above = self.0.iter().find(|(above, _)| place.starts_with(above) && place != *above);
        if let Some((_, above)) = above {
            return Err(on_shared(&format!("mount {target}"), above));
        }
        self.0.push((place, target.to_owned()));
        Ok(())
    }

    /// Whether there is none.
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The target of the volume that contains `place`, and the path in it.
    pub(super) fn below(&self, place: &Path) -> Option<(String, PathBuf)> {
        self.0.iter().find_map(|(above, target)| {
            let below = place.strip_prefix(above).ok()?;
            Some((target.clone(), below.to_owned()))
        })
    }
}

/// The failure of a mount on a Bidirectional volume that cannot be kept from the host.
pub(super) fn on_shared(stage: &str, above: &str) -> Failure {
    invalid(stage, format!("it lies on the Bidirectional volume {above} and would appear on the host"))
}

/// The path in the root of an opened object, without symlinks. It only decides who attaches a volume; the mount point
/// is opened again when it is attached.
pub(super) fn resolved(root: &Root, place: BorrowedFd<'_>) -> io::Result<Option<PathBuf>> {
    let path = |fd: BorrowedFd<'_>| std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd()));
    let (top, place) = (path(root.as_fd())?, path(place)?);
    Ok(place.strip_prefix(top).ok().map(Path::to_owned))
}

/// Attaches the staged Bidirectional volume `source` at `place`, and `nested` on it. In init.
pub(super) fn attach(
    root: &Root,
    scratch: &Scratch,
    source: &OwnedFd,
    place: BorrowedFd<'_>,
    nested: &[&Nested],
) -> Step<()> {
    let begun = Instant::now();
    let mut attempts: u32 = 0;
    while attempts == 0 || begun.elapsed() < PATIENCE {
        attempts += 1;
        let copy = mount::clone(source.as_fd(), true).map_err(internal(STAGE, "copy"))?;
        let begin = || {
            mount::set_propagation(copy.as_fd(), PropagationType::Private, false)?;
            mount::attach(copy.as_fd(), place)
        };
        begin().map_err(internal(STAGE, "attaching"))?;
        let mut on_it = Vec::with_capacity(nested.len());
        for volume in nested {
            on_it.push((volume.index, attach_one(scratch, &copy, volume)?));
        }
        mount::join_group(source.as_fd(), copy.as_fd())
            .map_err(internal(STAGE, "joining the host's mount, for which Linux 5.15 is needed"))?;
        if has_same_mounts(root, source, &copy, &on_it).map_err(internal(STAGE, "the mount table"))? {
            // Otherwise detaching the scratch root would also unmount the submounts of its peers, including the host's.
            return mount::set_propagation(source.as_fd(), PropagationType::Private, true)
                .map_err(internal(STAGE, "making the staged volume private"));
        }
        discard(scratch, &copy, &on_it).map_err(internal(STAGE, "discarding the copy"))?;
    }
    let what = format!(
        "the host's mounts changed in each of {attempts} attempts, for {PATIENCE:?}, while these were attached"
    );
    Err(internal(STAGE, what)(io::ErrorKind::ResourceBusy.into()))
}

/// Moves the volumes on a copy back to where they were staged, and detaches the copy.
fn discard(scratch: &Scratch, copy: &OwnedFd, on_it: &[(usize, OwnedFd)]) -> io::Result<()> {
    // First of all: detaching a shared mount would also unmount the submounts of its peers, including the host's.
    mount::set_propagation(copy.as_fd(), PropagationType::Private, true)?;
    for (index, tree) in on_it {
        mount::attach(tree.as_fd(), scratch.staged(*index)?.as_fd())?;
    }
    mount::detach_folder(copy.as_fd())
}

/// Moves a staged volume to its place on the copy.
fn attach_one(scratch: &Scratch, copy: &OwnedFd, volume: &Nested) -> Step<OwnedFd> {
    let stage = format!("mount {}", volume.target);
    let below = volume.below.to_str().map(|below| format!("/{below}"));
    let below = below.ok_or_else(|| invalid(&stage, "the path of its target is not UTF-8"))?;
    let open = || -> io::Result<_> {
        let tree = scratch.staged(volume.index)?;
        // libcontainer's rootfsPropagation has made it shared, in a peer group of its own: see `Scratch::unshare`.
        mount::set_propagation(tree.as_fd(), PropagationType::Slave, true)?;
        let place = tree::make(copy.as_fd(), &below, tree::kind(tree.as_fd())?)?;
        let private = mount::mount_id(place.as_fd())? == mount::mount_id(copy.as_fd())?;
        Ok((tree, place, private))
    };
    let (tree, place, private) = open().map_err(internal(&stage, "mount point"))?;
    if !private {
        // Only the top mount of the copy is private.
        return Err(invalid(
            &stage,
            format!(
                "it lies on a mount below the Bidirectional volume {} and would appear on the host",
                volume.onto
            ),
        ));
    }
    mount::attach(tree.as_fd(), place.as_fd()).map_err(internal(&stage, "attaching"))?;
    Ok(tree)
}

/// Whether the copy has the same mounts below it as its source, not counting those of `on_it`.
fn has_same_mounts(
    root: &Root,
    source: &OwnedFd,
    copy: &OwnedFd,
    on_it: &[(usize, OwnedFd)],
) -> io::Result<bool> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let table = mount::open_in_root(root.as_fd(), Path::new("/proc/self/mountinfo"), flags, 0)?;
    let text = sys::mountinfo::read(File::from(table))?;
    let table = Table::parse(&text);
    let ours =
        on_it.iter().map(|(_, tree)| mount::mount_id(tree.as_fd())).collect::<io::Result<BTreeSet<_>>>()?;
    let below = |top: &OwnedFd| Ok::<_, io::Error>(table.below(mount::mount_id(top.as_fd())?, &ours));
    Ok(below(source)? == below(copy)?)
}

/// A mount table.
#[derive(Debug, Default)]
struct Table<'t> {
    /// The mounts on each mount, by its id.
    children: BTreeMap<u64, Vec<Entry<'t>>>,
    /// Mount points by the mount's id.
    points: BTreeMap<u64, &'t str>,
}

#[derive(Debug, Clone, Copy)]
struct Entry<'t> {
    id: u64,
    point: &'t str,
    /// What is mounted: the device, and the root within its file system.
    what: [&'t str; 2],
}

impl<'t> Table<'t> {
    fn parse(text: &'t str) -> Self {
        let mut table = Self::default();
        for mount in sys::mountinfo::mounts(text) {
            let (id, point) = (mount.id, mount.raw_point());
            let entry = Entry { id, point, what: [mount.device, mount.root] };
            table.children.entry(mount.parent).or_default().push(entry);
            table.points.insert(id, point);
        }
        table
    }

    /// The mounts below `top`, with their paths in it, except those in `except` and the mounts below those.
    fn below(&self, top: u64, except: &BTreeSet<u64>) -> BTreeSet<(String, [&'t str; 2])> {
        let start = self.points.get(&top).copied().unwrap_or_default();
        let (mut found, mut pending) = (BTreeSet::new(), vec![top]);
        // This ends, because no mount is below itself.
        while let Some(id) = pending.pop() {
            let children = self.children.get(&id).into_iter().flatten();
            for entry in children.filter(|entry| !except.contains(&entry.id)) {
                let path = entry.point.strip_prefix(start).unwrap_or(entry.point);
                found.insert((path.to_owned(), entry.what));
                pending.push(entry.id);
            }
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_below_one_are_compared_by_place_and_content() {
        let text = "10 1 0:1 / / rw - tmpfs x rw\n\
                    20 10 8:1 /run /stage/1 rw shared:5 - ext4 x rw\n\
                    21 20 0:7 / /stage/1/user rw shared:6 - tmpfs x rw\n\
                    22 21 0:8 / /stage/1/user/0 rw - tmpfs x rw\n\
                    30 10 8:1 /run /root/run rw shared:5 - ext4 x rw\n\
                    31 30 0:7 / /root/run/user rw shared:6 - tmpfs x rw\n\
                    32 31 0:8 / /root/run/user/0 rw - tmpfs x rw\n\
                    33 30 8:1 /token /root/run/secrets rw - ext4 x rw\n\
                    34 33 0:9 / /root/run/secrets/deeper rw - ext4 x rw\nnonsense\n";
        let (table, ours) = (Table::parse(text), BTreeSet::from([33]));
        let expected =
            BTreeSet::from([("/user".to_owned(), ["0:7", "/"]), ("/user/0".to_owned(), ["0:8", "/"])]);
        assert_eq!((table.below(20, &ours), table.below(30, &ours)), (expected.clone(), expected));
        assert_ne!(table.below(20, &BTreeSet::new()), table.below(30, &BTreeSet::new()));
    }
}
