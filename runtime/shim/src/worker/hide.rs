//! Masked and read-only paths. They confine the container, so a path that cannot be hidden for certain is an error: a
//! path in /proc or /sys is looked up from the descriptor of the file system that was attached there, which must be the
//! one that the container sees.

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};

use sys::mount::{self, Attributes, Identity};
use wire::{Failure, MountKind};

use super::scratch::Scratch;
use super::stage::{Step, internal, invalid};
use super::tree::{self, Root};

const MASKED: &str = "masked paths";
const READ_ONLY: &str = "read-only paths";
const BOTH: &str = "masked and read-only paths";

/// The proc and sysfs file systems that were attached, by their targets.
#[derive(Debug, Default)]
pub(super) struct KernelTrees(Vec<(String, OwnedFd)>);

impl KernelTrees {
    /// Keeps the file system attached at `target`, if it is one of these.
    pub(super) fn add(&mut self, target: &str, kind: &MountKind, tree: OwnedFd) {
        if matches!(kind, MountKind::Proc | MountKind::Sysfs) {
            self.0.push((target.to_owned(), tree));
        }
    }

    /// Fails if something else is mounted over one of them: the container would see that, with no path hidden in it.
    pub(super) fn check(&self, root: &Root) -> Step<()> {
        for (target, tree) in &self.0 {
            let stage = format!("mount {target}");
            let seen = root.existing(target).map_err(internal(&stage, "opening it"))?;
            let same = match &seen {
                None => false,
                Some(seen) => {
                    let identity =
                        |fd: &OwnedFd| mount::identity(fd.as_fd()).map_err(internal(&stage, "identity"));
                    identity(seen)? == identity(tree)?
                }
            };
            if !same {
                return Err(invalid(
                    &stage,
                    "something else is mounted over it, so its paths cannot be masked or made read-only",
                ));
            }
        }
        Ok(())
    }

    /// Opens `path`; `None` if it does not exist.
    fn find(&self, root: &Root, path: &str) -> io::Result<Option<OwnedFd>> {
        let holder = self.0.iter().find(|(target, _)| tree::is_at_or_below(path, target));
        match holder {
            Some((target, tree)) => {
                let below = path.strip_prefix(target.as_str()).unwrap_or_default();
                tree::beneath(tree.as_fd(), below.trim_start_matches('/'))
            }
            None => match root.existing(path)? {
                Some(found) if root.is(found.as_fd())? => {
                    Err(io::Error::new(io::ErrorKind::InvalidInput, "it leads to the container's root"))
                }
                found => Ok(found),
            },
        }
    }
}

/// Masks paths: a file with the null device, a folder with an empty read-only one. A path that does not exist is
/// skipped (OCI, `maskedPaths`).
pub(super) fn mask(root: &Root, trees: &KernelTrees, scratch: &mut Scratch, paths: &[String]) -> Step<()> {
    for path in paths {
        let mut hide = || -> io::Result<()> {
            let Some(target) = trees.find(root, path)? else { return Ok(()) };
            let over = scratch.mask(tree::kind(target.as_fd())?)?;
            mount::attach(over.as_fd(), target.as_fd())
        };
        hide().map_err(internal(MASKED, path))?;
    }
    Ok(())
}

/// Makes paths read-only. A path that does not exist is skipped.
pub(super) fn protect(root: &Root, trees: &KernelTrees, paths: &[String]) -> Step<()> {
    for path in paths {
        let protect = || -> io::Result<()> {
            let Some(target) = trees.find(root, path)? else { return Ok(()) };
            let over = mount::clone(target.as_fd(), true)?;
            mount::add_attributes(over.as_fd(), Attributes { readonly: true, ..Attributes::default() })?;
            mount::attach(over.as_fd(), target.as_fd())
        };
        protect().map_err(internal(READ_ONLY, path))?;
    }
    Ok(())
}

/// What is at /proc and /sys and at the masked and read-only paths now.
pub(super) fn places(
    root: &Root,
    trees: &KernelTrees,
    paths: [&Vec<String>; 2],
) -> Step<Vec<Option<Identity>>> {
    let identity = |found: Option<OwnedFd>| found.map(|fd| mount::identity(fd.as_fd())).transpose();
    let seen = trees.0.iter().map(|(target, _)| (target, root.existing(target).and_then(identity)));
    let hidden = paths.into_iter().flatten().map(|path| (path, trees.find(root, path).and_then(identity)));
    let all = seen.chain(hidden);
    all.map(|(path, place)| place.map_err(internal(BOTH, path))).collect()
}

/// The failure if [`places`] differs after the Bidirectional volumes were attached.
pub(super) fn on_the_host() -> Failure {
    invalid(
        BOTH,
        "one of them lies on a Bidirectional volume, and would be hidden or read-only on the host as well",
    )
}
