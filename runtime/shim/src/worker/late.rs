//! The part of a create that init does itself, in its namespaces and with the container's root as its root,
//! but still with every capability and before it says that it is ready.

use std::fs::File;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;

use sys::mount::{self, Attributes};
use wire::{ContainerPlan, MountKind};

use super::mounts::{self, Prepared};
use super::stage::{Step, internal};
use super::{dev, tree};

/// All it needs.
pub(crate) struct Late {
    pub(super) plan: ContainerPlan,
    pub(super) mounts: Vec<Prepared>,
    /// Where the terminal's master is sent.
    pub(super) console: Option<OwnedFd>,
}

impl Late {
    /// Does it. Returns the container's side of its terminal, if it has one.
    ///
    /// # Errors
    /// The step that failed.
    pub(crate) fn finish(mut self) -> Step<Option<OwnedFd>> {
        // What libcontainer put into /dev went into a tmpfs above the real one.
        mount::detach(Path::new("/dev")).map_err(internal("dev", "/dev"))?;
        let root = tree::root_at("/").map_err(internal("rootfs", "/"))?;
        let root = root.as_fd();
        let mut own_dev = false;
        for prepared in &mut self.mounts {
            drop(mounts::attach(root, prepared)?);
            if prepared.plan.target == "/dev" && matches!(prepared.plan.kind, MountKind::Tmpfs { .. }) {
                own_dev = true;
                dev::populate(root, &self.plan.devices)?;
            }
        }
        let console = match self.console.take() {
            None => None,
            Some(socket) => {
                let (master, peer) = dev::console(root, own_dev)?;
                sys::scm::send_with_fds(socket.as_fd(), b"\n", &[master.as_fd()])
                    .map_err(internal("console", "sending it"))?;
                Some(peer)
            }
        };
        mounts::mask(root, &self.plan.masked_paths)?;
        mounts::protect(root, &self.plan.readonly_paths)?;
        let cwd = if self.plan.process.cwd.is_empty() { "/" } else { self.plan.process.cwd.as_str() };
        tree::make(root, cwd, tree::Kind::Directory).map_err(internal("working directory", cwd))?;
        for folder in &self.plan.rootfs.folders {
            tree::make(root, folder, tree::Kind::Directory).map_err(internal("image volume", folder))?;
        }
        if self.plan.rootfs.readonly {
            let readonly = Attributes { readonly: true, ..Attributes::default() };
            mount::add_attributes(root, readonly).map_err(internal("rootfs", "read-only"))?;
        }
        Ok(console)
    }
}

/// What init wrote before it gave up; `None` when it wrote nothing.
pub(super) fn told(pipe: OwnedFd) -> Option<wire::Failure> {
    use std::io::Read as _;
    let mut text = String::new();
    // The writer is gone or has written: it tells libcontainer only afterwards.
    rustix::io::ioctl_fionbio(&pipe, true).ok()?;
    let read = File::from(pipe).take(64 << 10).read_to_string(&mut text);
    match (text.lines().next(), read) {
        (Some(line), _) => serde_json::from_str(line).ok(),
        (None, _) => None,
    }
}
