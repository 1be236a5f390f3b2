//! What runs in init, after libcontainer and before the container's own program.
//!
//! `validate` runs at the end of create, inside the container's root and with all power: late mounts, masked
//! and read-only paths, the terminal. `exec` runs at start and becomes the process.

use std::cell::RefCell;
use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;
use std::rc::Rc;

use libcontainer::workload::{Executor as Workload, ExecutorError, ExecutorSetEnvsError, ExecutorValidationError};
use model::User;
use oci_spec::runtime::Spec;
use rustix::fs::{FileType, Mode, OFlags};
use sys::mount::{self, Attributes};
use wire::{ErrorKind, Failure, ProcessPlan};

use crate::process;

/// A mount that cannot be made before libcontainer's own: what is at or below a mount that libcontainer makes,
/// or at /dev, which it fills first.
#[derive(Debug)]
pub(crate) struct Late {
    /// Clean absolute path in the container; made when absent.
    pub(crate) target: String,
    /// Detached tree.
    pub(crate) tree: OwnedFd,
}

/// All that init needs to know.
#[derive(Debug)]
pub(crate) struct Setup {
    /// What to become.
    pub(crate) process: ProcessPlan,
    /// As whom.
    pub(crate) user: User,
    /// Mounts still to be attached, in order.
    pub(crate) late: Vec<Late>,
    /// See [`wire::ContainerPlan::masked_paths`].
    pub(crate) masked: Vec<String>,
    /// See [`wire::ContainerPlan::readonly_paths`].
    pub(crate) readonly: Vec<String>,
    /// Where the pty's master is sent, for a terminal.
    pub(crate) console: Option<OwnedFd>,
    /// The error pipe of start.
    pub(crate) report: OwnedFd,
}

/// The executor given to libcontainer; copies share one setup, of which init uses its own after the fork.
#[derive(Debug, Clone)]
pub(crate) struct Executor {
    setup: Rc<RefCell<Option<Setup>>>,
    tell: Rc<OwnedFd>,
}

impl Executor {
    /// `tell` is where a failed [`Workload::validate`] says why, as JSON.
    pub(crate) fn new(setup: Setup, tell: OwnedFd) -> Self {
        Self { setup: Rc::new(RefCell::new(Some(setup))), tell: Rc::new(tell) }
    }
}

impl Workload for Executor {
    fn exec(&self, _: &Spec) -> Result<(), ExecutorError> {
        match self.setup.borrow_mut().take() {
            Some(Setup { process, user, report, .. }) => process::become_process(&process, &user, report),
            None => Err(ExecutorError::InvalidArg),
        }
    }

    fn validate(&self, _: &Spec) -> Result<(), ExecutorValidationError> {
        let mut setup = self.setup.borrow_mut();
        let Some(setup) = setup.as_mut() else {
            return Err(ExecutorValidationError::ArgValidationError("nothing to execute".to_owned()));
        };
        prepare(setup).map_err(|(stage, what, error)| {
            let message = format!("{what}: {error}");
            let failure =
                Failure { kind: ErrorKind::Invalid, stage: stage.to_owned(), message: message.clone(), errno: mount::errno(&error) };
            if let Ok(tell) = self.tell.try_clone() {
                process::tell(&mut File::from(tell), &failure);
            }
            ExecutorValidationError::ArgValidationError(message)
        })
    }

    fn setup_envs(&self, _: HashMap<String, String>) -> Result<(), ExecutorSetEnvsError> {
        // The environment goes to execve as it is: through a map it would lose order and duplicates.
        Ok(())
    }
}

type Stopped = (&'static str, String, io::Error);

fn prepare(setup: &mut Setup) -> Result<(), Stopped> {
    for Late { target, tree } in setup.late.drain(..) {
        attach(&target, &tree).map_err(|e| ("mount", target, e))?;
    }
    for path in &setup.readonly {
        make_readonly(path).map_err(|e| ("readonly path", path.clone(), e))?;
    }
    mask(&setup.masked)?;
    if let Some(console) = setup.console.take() {
        terminal(&console, &setup.user).map_err(|e| ("terminal", "/dev/pts".to_owned(), e))?;
    }
    Ok(())
}

fn attach(target: &str, tree: &OwnedFd) -> io::Result<()> {
    let path = Path::new(target);
    let directory = FileType::from_raw_mode(rustix::fs::fstat(tree)?.st_mode) == FileType::Directory;
    if !path.exists() {
        if directory {
            std::fs::create_dir_all(path)?;
        } else {
            if let Some(parent) = path.parent() {
                std::fs::create_dir_all(parent)?;
            }
            File::create_new(path)?;
        }
    }
    mount::attach(tree.as_fd(), mount::open_path(path)?.as_fd())
}

/// By descriptor from one look to the mount: what the name means cannot change in between.
fn make_readonly(path: &str) -> io::Result<()> {
    let Some(place) = open_if_there(path)? else { return Ok(()) };
    let copy = mount::clone(place.as_fd(), true)?;
    mount::add_attributes(copy.as_fd(), Attributes { readonly: true, nosuid: true, nodev: true, noexec: true })?;
    mount::attach(copy.as_fd(), place.as_fd())
}

fn open_if_there(path: &str) -> io::Result<Option<OwnedFd>> {
    match mount::open_path(Path::new(path)) {
        Ok(place) => Ok(Some(place)),
        Err(e) if matches!(e.raw_os_error(), Some(2 | 20)) => Ok(None),
        Err(e) => Err(e),
    }
}

fn mask(paths: &[String]) -> Result<(), Stopped> {
    if paths.is_empty() {
        return Ok(());
    }
    let null = null().map_err(|e| ("masked path", "/dev/null".to_owned(), e))?;
    for path in paths {
        mask_one(path, &null).map_err(|e| ("masked path", path.clone(), e))?;
    }
    Ok(())
}

/// The real null device, whatever the image put at its name (CVE-2025-31133).
fn null() -> io::Result<OwnedFd> {
    let null = rustix::fs::open("/dev/null", OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
    let stat = rustix::fs::fstat(&null)?;
    let device = FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice;
    if device && stat.st_rdev == rustix::fs::makedev(1, 3) {
        return Ok(null);
    }
    Err(io::Error::new(io::ErrorKind::InvalidData, "it is not the null device"))
}

fn mask_one(path: &str, null: &OwnedFd) -> io::Result<()> {
    let Some(place) = open_if_there(path)? else { return Ok(()) };
    let directory = FileType::from_raw_mode(rustix::fs::fstat(&place)?.st_mode) == FileType::Directory;
    let cover = if directory {
        let all = Attributes { readonly: true, nosuid: true, nodev: true, noexec: true };
        mount::tmpfs(0o755, 4096, all)?
    } else {
        mount::clone(null.as_fd(), false)?
    };
    mount::attach(cover.as_fd(), place.as_fd())
}

/// Opens a pty of the container's own devpts, sends the master to the shim, makes the slave the controlling
/// terminal and 0, 1 and 2 of this process, which leads its session already, and shows it as /dev/console.
fn terminal(console: &OwnedFd, user: &User) -> io::Result<()> {
    let pty = sys::pty::open(Path::new("/dev/pts/ptmx"))?;
    sys::scm::send_with_fds(console.as_fd(), b"m", &[pty.master.as_fd()])?;
    rustix::fs::fchown(&pty.slave, Some(rustix::fs::Uid::from_raw(user.uid)), None)?;
    sys::pty::make_controlling(pty.slave.as_fd())?;
    rustix::stdio::dup2_stdin(&pty.slave)?;
    rustix::stdio::dup2_stdout(&pty.slave)?;
    rustix::stdio::dup2_stderr(&pty.slave)?;
    let slave = mount::clone(pty.slave.as_fd(), false)?;
    attach("/dev/console", &slave)
}
