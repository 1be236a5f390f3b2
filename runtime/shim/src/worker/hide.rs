//! Masked and read-only paths. They are confinement, so they fail closed: a path in one of our file systems
//! is looked up from the descriptor of that file system, which must be what the container sees.

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

/// The attached file systems of the kernel, by their paths.
#[derive(Debug, Default)]
pub(super) struct Own(Vec<(String, OwnedFd)>);

impl Own {
    /// Keeps the file system attached at `target`, if paths in it are hidden.
    pub(super) fn add(&mut self, target: &str, kind: &MountKind, tree: OwnedFd) {
        if matches!(kind, MountKind::Proc | MountKind::Sysfs) {
            self.0.push((target.to_owned(), tree));
        }
    }

    /// Fails if one of them is not what the container will see at its path, because the hidden paths would
    /// not be hidden for the container.
    pub(super) fn check(&self, root: &Root) -> Step<()> {
        for (target, tree) in &self.0 {
            let stage = format!("mount {target}");
            let seen = root.existing(target).map_err(internal(&stage, "what is seen there"))?;
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
                    "something else is mounted over it, so nothing in it can be hidden",
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

/// Hides paths: a file with the null device, a folder with an empty read-only one. A missing path needs no
/// hiding (OCI, `maskedPaths`).
pub(super) fn mask(root: &Root, own: &Own, scratch: &mut Scratch, paths: &[String]) -> Step<()> {
    for path in paths {
        let mut hide = || -> io::Result<()> {
            let Some(target) = own.find(root, path)? else { return Ok(()) };
            let over = scratch.mask(tree::kind(target.as_fd())?)?;
            mount::attach(over.as_fd(), target.as_fd())
        };
        hide().map_err(internal(MASKED, path))?;
    }
    Ok(())
}

/// Makes paths read-only.
pub(super) fn protect(root: &Root, own: &Own, paths: &[String]) -> Step<()> {
    for path in paths {
        let protect = || -> io::Result<()> {
            let Some(target) = own.find(root, path)? else { return Ok(()) };
            let over = mount::clone(target.as_fd(), true)?;
            mount::add_attributes(over.as_fd(), Attributes { readonly: true, ..Attributes::default() })?;
            mount::attach(over.as_fd(), target.as_fd())
        };
        protect().map_err(internal(READ_ONLY, path))?;
    }
    Ok(())
}

/// The objects at /proc, /sys, and the masked and read-only paths.
pub(super) fn places(root: &Root, own: &Own, paths: [&Vec<String>; 2]) -> Step<Vec<Option<Identity>>> {
    let identity = |found: Option<OwnedFd>| found.map(|fd| mount::identity(fd.as_fd())).transpose();
    let seen = own.0.iter().map(|(target, _)| (target, root.existing(target).and_then(identity)));
    let hidden = paths.into_iter().flatten().map(|path| (path, own.find(root, path).and_then(identity)));
    let all = seen.chain(hidden);
    all.map(|(path, place)| place.map_err(internal(BOTH, path))).collect()
}

/// The failure if one of these has changed after the Bidirectional volumes were attached.
pub(super) fn on_the_host() -> Failure {
    invalid(
        BOTH,
        "one of them lies on a Bidirectional volume, and would be hidden or read-only on the host as well",
    )
}
