//! The part of a create that init does, after libcontainer's part: init is in its namespaces, its root is the scratch
//! root, it has all capabilities, and it is not reported ready yet. At the end its root is the container's root.

use std::fs::File;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;

use sys::mount::{self, Attributes, PropagationType};
use wire::ContainerPlan;

use super::dev;
use super::hide::{self, KernelTrees};
use super::locked::Locked;
use super::mounts::{self, Mount};
use super::nested::Nested;
use super::placement;
use super::scratch::Scratch;
use super::stage::{Step, internal};
use super::tree::Root;

/// What this part needs.
pub(crate) struct Late {
    pub(super) plan: ContainerPlan,
    /// The mounts that init attaches, in order.
    pub(super) mounts: Vec<Mount>,
    /// Staged volumes that lie on Bidirectional ones.
    pub(super) nested: Vec<Nested>,
    /// The socket to which the terminal's master is sent.
    pub(super) console: Option<OwnedFd>,
    /// With a user namespace.
    pub(super) locked: Option<Locked>,
}

impl Late {
    /// Runs this part. Returns the terminal's slave, if there is one.
    ///
    /// # Errors
    /// The failed step.
    pub(crate) fn finish(mut self) -> Step<Option<OwnedFd>> {
        let mut scratch = Scratch::inherited()?;
        let users = self.plan.namespaces.user.is_some();
        if users {
            scratch.unlock_root()?;
        }
        let root = scratch.root()?;
        let shares = self.plan.mounts.iter().any(placement::is_shared);
        if shares {
            scratch.unshare(&root)?;
        }
        let (last, first): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.mounts).into_iter().partition(|m| placement::is_shared(&m.plan));
        let mut kernel_trees = KernelTrees::default();
        let mut own_dev = None;
        for mut mount in first {
            let tree = mounts::attach(&root, &scratch, &mut mount)?;
            if mounts::is_own_dev(&mount.plan) {
                // With a user namespace the worker has filled it.
                if !users {
                    dev::populate(&root, tree.as_fd(), &self.plan.devices, (0, 0))?;
                }
                own_dev = Some(tree);
            } else {
                kernel_trees.add(&mount.plan.target, &mount.plan.kind, tree);
            }
        }
        kernel_trees.check(&root)?;
        // Before Bidirectional volumes are attached: a mount on one of those would appear on the host too.
        hide::mask(&root, &kernel_trees, &mut scratch, &self.plan.masked_paths)?;
        hide::protect(&root, &kernel_trees, &self.plan.readonly_paths)?;
        let hidden = [&self.plan.masked_paths, &self.plan.readonly_paths];
        let places = if shares { hide::places(&root, &kernel_trees, hidden)? } else { Vec::new() };
        mounts::attach_shared(&root, &scratch, last, &self.nested)?;
        if shares && hide::places(&root, &kernel_trees, hidden)? != places {
            return Err(hide::on_the_host());
        }
        let console = self.terminal(&root, own_dev)?;
        self.complete(&root)?;
        scratch.leave(root.as_fd())?;
        if let Some(locked) = self.locked.take() {
            locked.enter()?;
            return console.map(|slave| again(&slave)).transpose();
        }
        if shares {
            // As with runc, mounts that the container makes outside its volumes are propagated as configured.
            mount::set_propagation(root.as_fd(), PropagationType::Shared, false)
                .map_err(internal("rootfs", "propagation"))?;
        }
        Ok(console)
    }

    /// The working directory, and a read-only root.
    fn complete(&self, root: &Root) -> Step<()> {
        let cwd = if self.plan.process.cwd.is_empty() { "/" } else { self.plan.process.cwd.as_str() };
        root.folder(cwd).map_err(internal("working directory", cwd))?;
        if self.plan.rootfs.readonly {
            let readonly = Attributes { readonly: true, ..Attributes::default() };
            mount::add_attributes(root.as_fd(), readonly).map_err(internal("rootfs", "read-only"))?;
        }
        Ok(())
    }

    fn terminal(&mut self, root: &Root, own_dev: Option<OwnedFd>) -> Step<Option<OwnedFd>> {
        let Some(socket) = self.console.take() else { return Ok(None) };
        let (master, peer) = dev::console(root, own_dev)?;
        sys::scm::send_with_fds(socket.as_fd(), b"\n", &[master.as_fd()])
            .map_err(internal("console", "sending it"))?;
        Ok(Some(peer))
    }
}

/// The terminal's slave, opened in the mount namespace that init has entered since.
fn again(slave: &OwnedFd) -> Step<OwnedFd> {
    let open = || -> std::io::Result<OwnedFd> {
        let root = Root::new(mount::open_path(Path::new("/"))?)?;
        let devpts = root.existing("/dev/pts")?.ok_or(std::io::ErrorKind::NotFound)?;
        sys::pty::reopen(slave.as_fd(), devpts.as_fd())
    };
    open().map_err(internal("console", "/dev/pts"))
}

/// The error that init wrote; `None` if there is none.
pub(super) fn read_failure(pipe: OwnedFd) -> Option<wire::Failure> {
    use std::io::Read as _;
    let mut text = String::new();
    // Init has ended or has written its error, because it reports to libcontainer after that.
    rustix::io::ioctl_fionbio(&pipe, true).ok()?;
    // If init still has its end open, this fails with WouldBlock after the line, which is kept.
    drop(File::from(pipe).take(64 << 10).read_to_string(&mut text));
    serde_json::from_str(text.lines().next()?).ok()
}
