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
use wire::{ErrorKind, ProcessPlan};

use super::late::Late;
use super::stage;
use crate::held::WorkerOnly;
use crate::process::{self, ProcessKind, Ready};

/// The name of a waiting init in `ps`, in a shared PID namespace.
pub(crate) const TITLE: &std::ffi::CStr = c"copepod-init";

/// The data of init, taken out when it is used.
pub(crate) struct Parts {
    /// The rest of the create.
    pub(crate) late: Late,
    /// The descriptor for its errors.
    pub(crate) failed: OwnedFd,
    /// The process plan.
    pub(crate) process: ProcessPlan,
    /// The user.
    pub(crate) user: User,
    /// The descriptor for its errors; closed by execve.
    pub(crate) report: OwnedFd,
    /// What only the worker needs. Init drops its copies; the worker takes its own back ([`Init::take_back`]).
    pub(crate) worker: WorkerOnly,
}

/// libcontainer clones executors; all clones share this.
#[derive(Clone)]
pub(crate) struct Init {
    parts: Rc<RefCell<Option<Parts>>>,
    ready: Rc<RefCell<Option<(Ready, OwnedFd)>>>,
}

impl Init {
    /// From what it needs.
    pub(crate) fn new(parts: Parts) -> Self {
        Self { parts: Rc::new(RefCell::new(Some(parts))), ready: Rc::default() }
    }

    /// Returns what the worker needs after libcontainer has created init, which has its own copy, and drops the rest.
    pub(crate) fn take_back(self) -> Option<WorkerOnly> {
        self.parts.take().map(|parts| parts.worker)
    }
}

impl Executor for Init {
    fn validate(&self, _spec: &Spec) -> Result<(), ExecutorValidationError> {
        let Some(parts) = self.parts.take() else {
            return Err(ExecutorValidationError::ArgValidationError("init was prepared twice".to_owned()));
        };
        let Parts { late, failed, process, user, report, worker } = parts;
        // libcontainer has set another name.
        let _ = rustix::thread::set_name(TITLE);
        let done = late.finish().and_then(|console| {
            drop(worker);
            if let Some(terminal) = console {
                take_terminal(&terminal).map_err(stage::internal("console", "taking the terminal"))?;
            }
            process::prepare(&process, &user, ProcessKind::Init, ErrorKind::Internal)
        });
        match done {
            Ok(ready) => {
                drop(failed);
                self.ready.replace(Some((ready, report)));
                Ok(())
            }
            Err(failure) => {
                process::tell(&mut File::from(failed), &failure);
                Err(ExecutorValidationError::ArgValidationError(failure.message))
            }
        }
    }

    fn setup_envs(&self, _envs: HashMap<String, String>) -> Result<(), ExecutorSetEnvsError> {
        // The environment is passed to execve; this process does not need it.
        Ok(())
    }

    fn exec(&self, _spec: &Spec) -> Result<(), ExecutorError> {
        let Some((ready, report)) = self.ready.take() else {
            return Err(ExecutorError::Other("init was not prepared".to_owned()));
        };
        ready.become_process(report)
    }
}

/// Makes it the controlling terminal and the stdio of the caller, which is a session leader.
fn take_terminal(terminal: &OwnedFd) -> std::io::Result<()> {
    rustix::process::ioctl_tiocsctty(terminal)?;
    sys::fds::set_stdio(terminal.as_fd(), terminal.as_fd(), terminal.as_fd())
}
