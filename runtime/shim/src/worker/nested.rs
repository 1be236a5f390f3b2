//! Volumes on Bidirectional volumes: a service account's token at /var/run/secrets where /run is the host's, for
//! example. A mount on such a volume appears on the host. So the volume is attached as a private copy first, the
//! other volumes are mounted on that, and only then the copy joins the peer group of the host's mount
//! (MOVE_MOUNT_SET_GROUP, Linux 5.15): the host sees what the container mounts from then on, and nothing of ours.
//!
//! The worker determines which volumes these are, because symlinks decide it: it opens the target of each volume, in the
//! plan's order. A volume whose target is below that of a Bidirectional one is staged for init.
//!
//! The copy does not receive mounts that the host makes on the volume before the copy has joined. The staged volume
//! receives them: if the two differ at the end, everything is repeated.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;
use sys::mount::{self, Pass};
use wire::Failure;

use super::scratch::Scratch;
use super::stage::{Step, internal, invalid};
use super::tree::{self, Root};

/// Times that it is done anew because the host has mounted something on the volume meanwhile, each well below a
/// millisecond.
pub(super) const ATTEMPTS: usize = 20;
const STAGE: &str = "volumes on a Bidirectional one";
/// Largest mount table of a container that is searched, in bytes.
const MAX_TABLE: u64 = 64 << 20;

/// A volume that lies on a Bidirectional one.
#[derive(Debug)]
pub(super) struct Nested {
    /// Its target in the plan.
    pub(super) target: String,
    /// Its index in the scratch root.
    pub(super) index: usize,
    /// The plan's target of the Bidirectional volume.
    pub(super) onto: String,
    /// The path in that volume, without symlinks when it was resolved.
    pub(super) below: PathBuf,
}

/// Places of the Bidirectional volumes that the plan lists before the mount in question: what comes earlier is
/// hidden by them, as with runc.
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

/// Attaches the staged Bidirectional volume `source` at `place`, and `nested` on it. In init. Copies of
/// earlier attempts stay in the scratch root, from number `spare` on, and are detached with it.
pub(super) fn attach(
    root: &Root,
    scratch: &Scratch,
    source: &OwnedFd,
    place: BorrowedFd<'_>,
    nested: &[&Nested],
    spare: usize,
) -> Step<()> {
    for attempt in 0..ATTEMPTS {
        let copy = mount::clone(source.as_fd(), true).map_err(internal(STAGE, "copy"))?;
        let begin = || {
            mount::set_propagation(copy.as_fd(), Pass::Private, false)?;
            mount::attach(copy.as_fd(), place)
        };
        begin().map_err(internal(STAGE, "attaching"))?;
        let mut on_it = Vec::with_capacity(nested.len());
        for volume in nested {
            on_it.push((volume.index, attach_one(scratch, &copy, volume)?));
        }
        mount::join_group(source.as_fd(), copy.as_fd())
            .map_err(internal(STAGE, "joining the host's mount, for which Linux 5.15 is needed"))?;
        if is_whole(root, source, &copy, &on_it).map_err(internal(STAGE, "the mount table"))? {
            // Otherwise detaching the scratch root would also unmount the submounts of its peers, including the host's.
            return mount::set_propagation(source.as_fd(), Pass::Private, true)
                .map_err(internal(STAGE, "staging"));
        }
        let undo = || {
            mount::set_propagation(copy.as_fd(), Pass::Private, true)?;
            for (index, tree) in &on_it {
                mount::attach(tree.as_fd(), scratch.staged(*index)?.as_fd())?;
            }
            let aside = scratch.stage(spare + attempt, tree::kind(copy.as_fd())?)?;
            mount::attach(copy.as_fd(), aside.as_fd())
        };
        undo().map_err(internal(STAGE, "repeating it"))?;
    }
    let what = format!("the host's mounts changed {ATTEMPTS} times while these were attached");
    Err(internal(STAGE, what)(io::ErrorKind::ResourceBusy.into()))
}

/// Moves a staged volume to its place on the copy.
fn attach_one(scratch: &Scratch, copy: &OwnedFd, volume: &Nested) -> Step<OwnedFd> {
    let stage = format!("mount {}", volume.target);
    let below = volume.below.to_str().map(|below| format!("/{below}"));
    let below = below.ok_or_else(|| invalid(&stage, "its place has no name in UTF-8"))?;
    let open = || -> io::Result<_> {
        let tree = scratch.staged(volume.index)?;
        // libcontainer's rootfsPropagation has made it shared, with a group of its own: see `Scratch::unshare`.
        mount::set_propagation(tree.as_fd(), Pass::Slave, true)?;
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

/// Whether the same mounts are below the copy as below its source, except those of `on_it`.
fn is_whole(root: &Root, source: &OwnedFd, copy: &OwnedFd, on_it: &[(usize, OwnedFd)]) -> io::Result<bool> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let table = mount::open_in_root(root.as_fd(), Path::new("/proc/self/mountinfo"), flags, 0)?;
    let mut text = String::new();
    File::from(table).take(MAX_TABLE).read_to_string(&mut text)?;
    let table = Table::parse(&text);
    let ours =
        on_it.iter().map(|(_, tree)| mount::mount_id(tree.as_fd())).collect::<io::Result<BTreeSet<_>>>()?;
    let below = |top: &OwnedFd| Ok::<_, io::Error>(table.below(mount::mount_id(top.as_fd())?, &ours));
    Ok(below(source)? == below(copy)?)
}

/// A mount table: mounts by the id of their parent.
#[derive(Debug, Default)]
struct Table<'t> {
    on: BTreeMap<u64, Vec<Entry<'t>>>,
    places: BTreeMap<u64, &'t str>,
}

#[derive(Debug, Clone, Copy)]
struct Entry<'t> {
    id: u64,
    place: &'t str,
    /// Device and root.
    what: [&'t str; 2],
}

impl<'t> Table<'t> {
    /// Parses the text of mountinfo (proc_pid_mountinfo(5)).
    fn parse(text: &'t str) -> Self {
        let mut table = Self::default();
        for line in text.lines() {
            let mut words = line.split(' ');
            let (Some(id), Some(parent)) = (words.next(), words.next()) else { continue };
            let (Ok(id), Ok(parent)) = (id.parse(), parent.parse()) else { continue };
            let (Some(device), Some(root), Some(place)) = (words.next(), words.next(), words.next()) else {
                continue;
            };
            table.on.entry(parent).or_default().push(Entry { id, place, what: [device, root] });
            table.places.insert(id, place);
        }
        table
    }

    /// The mounts below `top`, with their paths in it, except those in `but` and the mounts below those.
    fn below(&self, top: u64, but: &BTreeSet<u64>) -> BTreeSet<(String, [&'t str; 2])> {
        let start = self.places.get(&top).copied().unwrap_or_default();
        let (mut found, mut pending) = (BTreeSet::new(), vec![top]);
        while let Some(id) = pending.pop() {
            for entry in self.on.get(&id).into_iter().flatten().filter(|entry| !but.contains(&entry.id)) {
                let place = entry.place.strip_prefix(start).unwrap_or(entry.place);
                // This ends, because no mount is below itself.
                found.insert((place.to_owned(), entry.what));
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
