//! The functions that libcontainer calls in init. `validate` runs after pivot_root and before init is
//! reported ready: it completes the root file system and drops all privileges that the container's process
//! must not have. `exec` runs when the container is started, perhaps much later: it becomes the process.

use std::cell::RefCell;
use std::collections::HashMap;
use std::fs::File;
use std::os::fd::{AsFd as _, OwnedFd};
use std::rc::Rc;

use libcontainer::workload::{Executor, ExecutorError, ExecutorSetEnvsError, ExecutorValidationError};
use model::User;
use oci_spec::runtime::Spec;
use pathrs::procfs::ProcfsHandle;
use sys::host_proc::HostProc;
use wire::{ErrorKind, ProcessPlan};

use super::late::Late;
use super::stage;
use crate::process::{self, ProcessKind, Ready};
use crate::worker_only::WorkerOnly;

/// The name of a waiting init in `ps`, in a shared PID namespace.
pub(crate) const TITLE: &std::ffi::CStr = c"copepod-init";

/// The data of init. `validate` takes it.
pub(crate) struct InitData {
    /// The rest of the create.
    pub(crate) late: Late,
    /// The write end of the create pipe: init writes there why it could not be created, and the worker reads it.
    pub(crate) create_pipe: OwnedFd,
    /// The process plan.
    pub(crate) process: ProcessPlan,
    /// The host's /proc, if the process gets an AppArmor profile or an SELinux label.
    pub(crate) host_proc: Option<HostProc>,
    /// The user.
    pub(crate) user: User,
    /// The write end of the start pipe: execve closes it, or init writes there why its start failed; the shim reads it.
    pub(crate) start_pipe: OwnedFd,
    /// libcontainer's procfs ([`libcontainer_procfs`]).
    pub(crate) procfs: ProcfsHandle,
    /// What only the worker needs. Init drops its copies; the worker takes its own back ([`Init::take_back`]).
    pub(crate) worker: WorkerOnly,
}

/// libcontainer clones executors; all clones share this.
#[derive(Clone)]
pub(crate) struct Init {
    data: Rc<RefCell<Option<InitData>>>,
    ready: Rc<RefCell<Option<(Ready, OwnedFd)>>>,
}

impl Init {
    /// An executor with the data of init.
    pub(crate) fn new(data: InitData) -> Self {
        Self { data: Rc::new(RefCell::new(Some(data))), ready: Rc::default() }
    }

    /// Returns what the worker needs after libcontainer has created init, which has its own copy, and drops the rest.
    pub(crate) fn take_back(self) -> Option<WorkerOnly> {
        self.data.take().map(|data| data.worker)
    }
}

impl Executor for Init {
    fn validate(&self, _spec: &Spec) -> Result<(), ExecutorValidationError> {
        let Some(data) = self.data.take() else {
            return Err(ExecutorValidationError::ArgValidationError("init was prepared twice".to_owned()));
        };
        let InitData { late, create_pipe, process, host_proc, user, start_pipe, procfs, worker } = data;
        // libcontainer has given it another name.
        let _ = rustix::thread::set_name(TITLE);
        let prepare = || {
            let replaced = sys::fds::replace(procfs.as_fd(), start_pipe.as_fd());
            replaced.map_err(stage::internal("process", "procfs of libcontainer"))?;
            send_pidfd(&worker).map_err(stage::internal("process", "pidfd of init"))?;
            let console = late.finish()?;
            drop(worker);
            if let Some(terminal) = console {
                take_terminal(&terminal).map_err(stage::internal("console", "taking the terminal"))?;
            }
            process::prepare(&process, &user, ProcessKind::Init, host_proc, ErrorKind::Internal)
        };
        let done = prepare();
        match done {
            Ok(ready) => {
                drop(create_pipe);
                self.ready.replace(Some((ready, start_pipe)));
                Ok(())
            }
            Err(failure) => {
                process::write_failure(&mut File::from(create_pipe), &failure);
                Err(ExecutorValidationError::ArgValidationError(failure.message))
            }
        }
    }

    fn setup_envs(&self, _envs: HashMap<String, String>) -> Result<(), ExecutorSetEnvsError> {
        // The environment is passed to execve; this process does not need it.
        Ok(())
    }

    fn exec(&self, _spec: &Spec) -> Result<(), ExecutorError> {
        let Some((ready, start_pipe)) = self.ready.take() else {
            return Err(ExecutorError::Other("init was not prepared".to_owned()));
        };
        ready.become_process(start_pipe)
    }
}

/// Init, not the worker, opens its pidfd: it cannot be another process with a reused pid.
fn send_pidfd(worker: &WorkerOnly) -> std::io::Result<()> {
    let own = sys::pidfd::open(std::process::id())?;
    worker.receiver.init(own.as_fd())
}

/// The procfs that libcontainer reads, for the worker to open. The crate pathrs opens it once and keeps it, so init has a copy
/// of it, which shows the processes of the host. init replaces its copy by a pipe that execve closes: execve closes
/// descriptors only after it has resolved the program's path, which may be `/proc/self/fd/N/PID/root/...`, and a process
/// that may trace a waiting init can open its descriptors. pathrs notices that it was replaced.
///
/// # Errors
/// Those of pathrs: /proc is not there, or is no procfs.
pub(crate) fn libcontainer_procfs() -> std::io::Result<ProcfsHandle> {
    ProcfsHandle::new().map_err(std::io::Error::other)
}

/// Makes the terminal the caller's controlling terminal and stdio. The caller is a session leader.
fn take_terminal(terminal: &OwnedFd) -> std::io::Result<()> {
    rustix::process::ioctl_tiocsctty(terminal)?;
    sys::fds::set_stdio(terminal.as_fd(), terminal.as_fd(), terminal.as_fd())
}
