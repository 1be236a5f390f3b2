//! What libcontainer calls in init. `validate` runs after pivot_root and before init is reported ready: it
//! finishes the root file system. `exec` runs when the container is started: it becomes the process.

use std::cell::RefCell;
use std::collections::HashMap;
use std::fs::File;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::rc::Rc;

use libcontainer::workload::{Executor, ExecutorError, ExecutorSetEnvsError, ExecutorValidationError};
use model::User;
use oci_spec::runtime::Spec;
use wire::{ErrorKind, Failure, ProcessPlan};

use crate::process;
use crate::worker::late::Late;

/// What init needs, moved out as it is used.
pub(crate) struct Parts {
    /// The rest of the create.
    pub(crate) late: Late,
    /// Where a failure of that is told.
    pub(crate) failed: OwnedFd,
    /// What to become.
    pub(crate) process: ProcessPlan,
    /// As whom.
    pub(crate) user: User,
    /// Where a failure of that is told; closed by execve.
    pub(crate) report: OwnedFd,
    /// Descriptors that are the worker's, not init's.
    pub(crate) foreign: Vec<u32>,
}

struct Ready {
    process: ProcessPlan,
    user: User,
    report: OwnedFd,
    console: Option<OwnedFd>,
}

/// libcontainer clones executors; all clones are one.
#[derive(Clone)]
pub(crate) struct Init {
    parts: Rc<RefCell<Option<Parts>>>,
    ready: Rc<RefCell<Option<Ready>>>,
}

impl Init {
    /// From what it needs.
    pub(crate) fn new(parts: Parts) -> Self {
        Self { parts: Rc::new(RefCell::new(Some(parts))), ready: Rc::default() }
    }
}

/// As the kernel counts it.
pub(crate) fn number(fd: &OwnedFd) -> u32 {
    fd.as_raw_fd().unsigned_abs()
}

impl Executor for Init {
    fn validate(&self, _spec: &Spec) -> Result<(), ExecutorValidationError> {
        let Some(parts) = self.parts.take() else {
            return Err(ExecutorValidationError::ArgValidationError("init was prepared twice".to_owned()));
        };
        let Parts { late, failed, process, user, report, foreign } = parts;
        match late.finish() {
            Ok(console) => {
                drop(failed);
                // Numbers of what was closed since may have been given out again: to the console.
                let kept = console.as_ref().map(number);
                let not_kept = |fd: &u32| kept != Some(*fd);
                let foreign: Vec<u32> = foreign.into_iter().filter(not_kept).collect();
                sys::execute::close_numbers(&foreign);
                self.ready.replace(Some(Ready { process, user, report, console }));
                Ok(())
            }
            Err(failure) => {
                process::tell(&mut File::from(failed), &failure);
                Err(ExecutorValidationError::ArgValidationError(failure.message))
            }
        }
    }

    fn setup_envs(&self, _envs: HashMap<String, String>) -> Result<(), ExecutorSetEnvsError> {
        // The environment is given to execve; this process needs none.
        Ok(())
    }

    fn exec(&self, _spec: &Spec) -> Result<(), ExecutorError> {
        let Some(Ready { process, user, report, console }) = self.ready.take() else {
            return Err(ExecutorError::Other("init was not prepared".to_owned()));
        };
        if let Some(terminal) = console {
            let taken = rustix::process::ioctl_tiocsctty(&terminal)
                .map_err(std::io::Error::from)
                .and_then(|()| (0..3).try_for_each(|number| sys::proc::place(terminal.as_fd(), number)));
            if let Err(e) = taken {
                let failure = Failure {
                    kind: ErrorKind::StartFailed,
                    stage: "console".to_owned(),
                    message: format!("taking the terminal: {e}"),
                    errno: e.raw_os_error().unwrap_or(0),
                };
                process::tell(&mut File::from(report), &failure);
                return Err(ExecutorError::Other(failure.message));
            }
        }
        process::become_process(&process, &user, report)
    }
}
