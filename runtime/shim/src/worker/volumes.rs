//! Sources of mounts: cloned in kubelet's mount namespace and attached in the worker's.
//!
//! A clone does not receive mounts that the host makes before it is attached. So the host's mount table is watched from
//! before the first clone until after the last is attached, and if it changed, everything is repeated.

use std::fs::{DirBuilder, File};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::Path;
use std::time::Duration;

use model::Propagation;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use sys::mount::{self, Attributes, PropagationType};
use wire::{MountKind, MountPlan};

use super::relabel;
use super::stage::{Step, internal, invalid, show_volume};
use super::tree;
use super::users::Users;

/// How long volumes are attached again because the host's mounts changed meanwhile. An attempt takes about a
/// millisecond, on a busy node longer, and a node that starts many pods at once may change its mounts during each. The
/// limit is a time, because a fast node would make any number of attempts within one burst of changes.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);

/// The host's mount table, watched for changes.
pub(super) struct HostMounts(File);

impl HostMounts {
    /// Opens the mount table of the caller's namespace.
    pub(super) fn open() -> Step<Self> {
        File::open("/proc/self/mountinfo").map(Self).map_err(internal("volumes", "/proc/self/mountinfo"))
    }

    /// Whether it has changed since the last call, or since it was opened.
    pub(super) fn changed(&self) -> Step<bool> {
        let mut fds = [PollFd::new(&self.0, PollFlags::PRI)];
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        let ready =
            poll(&mut fds, Some(&now)).map_err(|e| internal("volumes", "watching mounts")(e.into()))?;
        Ok(ready > 0)
    }
}

/// Whether the mount that contains `source` is shared, and whether it is a slave, by the current mount table.
fn propagation_of(source: BorrowedFd<'_>, stage: &str) -> Step<(bool, bool)> {
    let id = mount::mount_id(source).map_err(internal(stage, "mount id"))?;
    let text = File::open("/proc/self/mountinfo").and_then(sys::mountinfo::read);
    let text = text.map_err(internal(stage, "/proc/self/mountinfo"))?;
    let found = sys::mountinfo::mounts(&text).find(|mount| mount.id == id);
    let found =
        found.ok_or_else(|| invalid(stage, format!("its mount (id {id}) is not in /proc/self/mountinfo")))?;
    Ok((found.has_tag("shared:"), found.has_tag("master:")))
}

/// The source of a bind mount, and how to clone it.
struct Source<'p> {
    path: &'p str,
    propagation: Propagation,
    /// Created as a folder if missing.
    make: bool,
}

fn source(kind: &MountKind) -> Option<Source<'_>> {
    match kind {
        MountKind::Bind { source, propagation } => {
            Some(Source { path: source, propagation: *propagation, make: true })
        }
        MountKind::File { source } => {
            Some(Source { path: source, propagation: Propagation::Private, make: false })
        }
        _ => None,
    }
}

/// Whether the mount receives mounts from the host (HostToContainer, Bidirectional).
pub(super) fn propagates(plan: &MountPlan) -> bool {
    source(&plan.kind).is_some_and(|s| s.propagation != Propagation::Private)
}

/// The mount attributes of a plan.
pub(super) fn attributes(plan: &MountPlan) -> Attributes {
    Attributes { readonly: plan.readonly, nosuid: plan.nosuid, nodev: plan.nodev, noexec: plan.noexec }
}

/// Fails if the mount that contains the source does not propagate as the plan asks for.
fn check_propagation(source: &Source<'_>, opened: BorrowedFd<'_>, stage: &str) -> Step<()> {
    match source.propagation {
        Propagation::Private => {}
        Propagation::HostToContainer if propagation_of(opened, stage)? == (false, false) => {
            return Err(invalid(
                stage,
                format!(
                    "{} is on a private mount: HostToContainer needs a shared or slave one (mount --make-rshared / on the host)",
                    source.path
                ),
            ));
        }
        Propagation::Bidirectional if !propagation_of(opened, stage)?.0 => {
            return Err(invalid(
                stage,
                format!(
                    "{} is not on a shared mount, which Bidirectional needs (mount --make-rshared / on the host)",
                    source.path
                ),
            ));
        }
        Propagation::HostToContainer | Propagation::Bidirectional => {}
    }
    Ok(())
}

/// Clones the source of a bind mount in the caller's namespace, and id-maps it if the plan says so; `None` for other
/// kinds.
pub(super) fn clone(plan: &MountPlan, users: Option<Users<'_>>) -> Step<Option<OwnedFd>> {
    let Some(source) = source(&plan.kind) else { return Ok(None) };
    show_volume(&plan.target);
    let stage = format!("volume {}", plan.target);
    let path = Path::new(source.path);
    if !path.is_absolute() {
        return Err(invalid(&stage, format!("source {} is not absolute", source.path)));
    }
    let opened = match mount::open_path(path) {
        Err(e) if source.make && e.kind() == std::io::ErrorKind::NotFound => {
            DirBuilder::new().recursive(true).mode(0o755).create(path).and_then(|()| mount::open_path(path))
        }
        other => other,
    };
    let opened = opened.map_err(internal(&stage, source.path))?;
    check_propagation(&source, opened.as_fd(), &stage)?;
    relabel::apply(opened.as_fd(), plan, &stage)?;
    let kind = tree::kind(opened.as_fd()).map_err(internal(&stage, source.path))?;
    let tree =
        mount::clone(opened.as_fd(), kind == tree::Kind::Directory).map_err(internal(&stage, source.path))?;
    let to = match source.propagation {
        Propagation::Private => Some(PropagationType::Private),
        Propagation::HostToContainer => Some(PropagationType::Slave),
        Propagation::Bidirectional => None,
    };
    if let Some(to) = to {
        mount::set_propagation(tree.as_fd(), to, true).map_err(internal(&stage, "propagation"))?;
    }
    if plan.idmap {
        let users =
            users.ok_or_else(|| invalid(&stage, "it cannot be id-mapped without a user namespace"))?;
        users.idmap(tree.as_fd(), opened.as_fd(), source.path, &stage)?;
    }
    mount::add_attributes(tree.as_fd(), attributes(plan)).map_err(internal(&stage, "mount flags"))?;
    make_read_only_below(&tree, plan, source.propagation, &stage)?;
    Ok(Some(tree))
}

/// Makes the mounts below a volume read-only too, if the plan says so.
fn make_read_only_below(tree: &OwnedFd, plan: &MountPlan, propagation: Propagation, stage: &str) -> Step<()> {
    if !plan.recursive {
        return Ok(());
    }
    if propagation != Propagation::Private || !plan.readonly {
        // A mount that the host makes later would be writable.
        return Err(invalid(stage, "only a private read-only volume can be read-only recursively"));
    }
    let readonly = Attributes { readonly: true, ..Attributes::default() };
    mount::add_attributes_below(tree.as_fd(), readonly).map_err(internal(stage, "read-only recursively"))
}
