//! The mounts that the worker attaches, in its copy of the pod's mount namespace.

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::time::Instant;

use sys::mount::{self, PropagationType};
use wire::{MountKind, MountPlan};

use super::images::Images;
use super::mounts::{self, Mount};
use super::nested::{self, Nested};
use super::placement::{Place, is_shared, takes_volumes};
use super::scratch::Scratch;
use super::stage::{Step, internal, invalid, show_volume};
use super::tree::{self, Root};
use super::users::Users;
use super::volumes::{self, PATIENCE};

/// The two mount namespaces between which the worker switches, and the container's user namespace.
pub(super) struct Namespaces<'a> {
    /// Kubelet's, in which the sources of volumes are.
    pub(super) kubelet: BorrowedFd<'a>,
    /// The worker's copy of the pod's.
    pub(super) own: BorrowedFd<'a>,
    /// For id-mapped volumes.
    pub(super) users: Option<Users<'a>>,
}

/// Clones the sources of the worker's mounts, in kubelet's mount namespace.
pub(super) fn clone(worker: &[(Place, MountPlan)], users: Option<Users<'_>>) -> Step<Vec<Mount>> {
    let clone_one = |(place, plan): &(Place, MountPlan)| {
        let mut mount = Mount::new(plan.clone(), *place);
        mount.tree = volumes::clone(plan, users)?;
        Ok(mount)
    };
    worker.iter().map(clone_one).collect()
}

fn detach(attached: Vec<OwnedFd>) -> Step<()> {
    for tree in attached.iter().rev() {
        // Make it private first: detaching a shared tree unmounts the submounts of its peers, including the host's.
        mount::set_propagation(tree.as_fd(), PropagationType::Private, true)
            .map_err(internal("volumes", "making private"))?;
        mount::detach_fd(tree.as_fd()).map_err(internal("volumes", "detaching"))?;
    }
    Ok(())
}

/// Attaches the worker's mounts. If any of them receives mounts from the host, and the host's mount table changed
/// meanwhile, all of it is repeated.
pub(super) fn attach(
    root: &Root,
    scratch: &Scratch,
    worker: &[(Place, MountPlan)],
    mut mounts: Vec<Mount>,
    images: &Images,
    table: &volumes::HostMounts,
    namespaces: &Namespaces<'_>,
) -> Step<Vec<Nested>> {
    let staged = worker.iter().filter(|(place, _)| matches!(place, Place::Staged(_))).count();
    let propagating: Vec<&str> =
        worker.iter().filter(|(_, p)| volumes::propagates(p)).map(|(_, p)| p.target.as_str()).collect();
    let begun = Instant::now();
    let mut attempts: u32 = 0;
    while attempts == 0 || begun.elapsed() < PATIENCE {
        attempts += 1;
        mounts::clone_here(&mut mounts, images)?;
        let mut attached = Vec::with_capacity(mounts.len());
        let mut shared = nested::Shared::default();
        let mut nested: Vec<Nested> = Vec::new();
        // The target of one may be on another.
        for mount in mounts.iter_mut().inspect(|mount| show_volume(&mount.plan.target)) {
            attached.push(match mount.place {
                Place::Staged(index) => {
                    // `split` has refused volumes on the Bidirectional volumes for which this is false.
                    if is_shared(&mount.plan)
                        && takes_volumes(&mount.plan.target)
                        && let Some(place) = resolved(root, mount)?
                    {
                        shared.add(&mount.plan.target, place)?;
                    }
                    attach_staged(scratch, mount, index)?
                }
                Place::Early | Place::Late => match below_shared(&shared, root, mount)? {
                    None => mounts::attach(root, scratch, mount)?,
                    Some((onto, below)) => {
                        let index = staged + nested.len() + 1;
                        let tree = attach_staged(scratch, mount, index)?;
                        nested.push(Nested { target: mount.plan.target.clone(), index, onto, below });
                        tree
                    }
                },
            });
        }
        if propagating.is_empty() || !table.changed()? {
            return Ok(nested);
        }
        detach(attached)?;
        sys::namespace::enter_mount(namespaces.kubelet)
            .map_err(internal("volumes", "kubelet's mount namespace"))?;
        let again = clone(worker, namespaces.users);
        sys::namespace::enter_mount(namespaces.own).map_err(internal("volumes", "own mount namespace"))?;
        mounts = again?;
    }
    Err(internal(
        "volumes",
        format!(
            "the host's mounts changed in each of {attempts} attempts, for {PATIENCE:?}, while these were attached: {}",
            propagating.join(", ")
        ),
    )(std::io::ErrorKind::ResourceBusy.into()))
}

/// The path in the root to which a volume's target resolves now.
fn resolved(root: &Root, mount: &Mount) -> Step<Option<PathBuf>> {
    let Some(tree) = &mount.tree else { return Ok(None) };
    let place = mounts::target(root, tree, &mount.plan)?;
    let stage = format!("mount {}", mount.plan.target);
    nested::resolved(root, place.as_fd()).map_err(internal(&stage, "its place"))
}

/// The Bidirectional volume that contains the target of a volume, and the path in it. `None` also for our own files
/// below /etc: such a volume hides them.
fn below_shared(shared: &nested::Shared, root: &Root, mount: &Mount) -> Step<Option<(String, PathBuf)>> {
    if shared.is_empty() || !matches!(mount.plan.kind, MountKind::Bind { .. } | MountKind::Image { .. }) {
        return Ok(None);
    }
    Ok(resolved(root, mount)?.and_then(|place| shared.below(&place)))
}

/// Attaches a volume in the scratch root, where it receives the host's mounts until init moves it.
fn attach_staged(scratch: &Scratch, mount: &mut Mount, index: usize) -> Step<OwnedFd> {
    let stage = format!("mount {}", mount.plan.target);
    let tree = mount.tree.take().ok_or_else(|| invalid(&stage, "a staged mount without a source"))?;
    let attach = || {
        let target = scratch.stage(index, tree::kind(tree.as_fd())?)?;
        mount::attach(tree.as_fd(), target.as_fd())
    };
    attach().map_err(internal(&stage, "staging"))?;
    Ok(tree)
}
