//! Starts pause: clone3 into the pod's namespaces, then a restricted environment and execve by descriptor.

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use sys::clone::Flags;
use sys::creds::Credentials;
use sys::seccomp::Filter;
use wire::{ErrorKind, PausePlan};

use crate::failure::failure;
use crate::packet::{Reporter, read_plan};
use crate::podns;

/// Runs in the worker. `fds`: the plan, then the cgroup folders.
pub(crate) fn work(reporter: &Reporter, mut fds: Vec<OwnedFd>, binary: BorrowedFd<'_>) -> i32 {
    let folders = fds.split_off(fds.len().min(1));
    let Some(plan) = fds.pop() else { return 1 };
    let plan: PausePlan = match read_plan(plan.as_fd()) {
        Ok(plan) => plan,
        Err(failure) => {
            reporter.failed(&failure);
            return 1;
        }
    };
    if plan.ipc {
        // The worker shares the shim's mount namespace, so later workers have the mount too.
        if let Err(error) = podns::attach_shm(plan.shm_size) {
            return fail(reporter, "/dev/shm of the pod", &error);
        }
    }
    let mut wanted = Flags::PARENT.and(Flags::NEWNS);
    for (asked, flag) in [
        (plan.network, Flags::NEWNET),
        (plan.ipc, Flags::NEWIPC),
        (plan.uts, Flags::NEWUTS),
        (plan.pid, Flags::NEWPID),
    ] {
        if asked {
            wanted = wanted.and(flag);
        }
    }
    let into = folders.first().filter(|_| plan.cgroup.unified).map(|fd| fd.as_fd());
    let child = sys::clone::clone3_pidfd(wanted, into, || {
        let (stage, error) = become_pause(&plan, &folders, binary);
        fail(reporter, &stage, &error)
    });
    let child = match child {
        Ok(child) => child,
        Err(error) => return fail(reporter, "clone3", &error),
    };
    let network = if plan.network {
        match sys::pidfd::network_namespace(child.pidfd.as_fd(), child.pid) {
            Ok(fd) => Some(fd),
            Err(error) => {
                // The shim kills processes that were reported to it.
                drop(reporter.made(&child, None));
                return fail(reporter, "network namespace", &error);
            }
        }
    } else {
        None
    };
    match reporter.made(&child, network.as_ref().map(|fd| fd.as_fd())) {
        Ok(()) => 0,
        Err(_) => 1,
    }
}

fn fail(reporter: &Reporter, stage: &str, error: &io::Error) -> i32 {
    reporter.failed(&failure(ErrorKind::Internal, stage, error));
    1
}

/// Runs in the child. Returns only on an error.
fn become_pause(plan: &PausePlan, folders: &[OwnedFd], binary: BorrowedFd<'_>) -> (String, io::Error) {
    let at = |stage: &str| {
        let stage = stage.to_owned();
        move |error: io::Error| (stage, error)
    };
    let steps = || -> Result<(), (String, io::Error)> {
        sys::proc::set_dumpable(false).map_err(at("dumpable"))?;
        if !plan.cgroup.unified {
            for (folder, member) in folders.iter().zip(&plan.cgroup.members) {
                sys::cgroup::join(folder.as_fd(), false)
                    .map_err(at(&format!("cgroup {} {}", member.hierarchy, member.path)))?;
            }
        }
        // Must be done while /proc is available. If the host does not allow the value, the lowest allowed one is set,
        // without a warning: the shim has sent one for its own value.
        sys::proc::set_oom_score_adj(plan.oom_score_adj).map_err(at("oom_score_adj"))?;
        if plan.uts && !plan.hostname.is_empty() {
            sys::jail::set_hostname(&plan.hostname).map_err(at("hostname"))?;
        }
        if plan.network {
            sys::netns::loopback_up().map_err(at("loopback"))?;
        }
        for (name, value) in &plan.default_sysctls {
            // The kernel may have no such sysctl or refuse the value. It is a default, so that is no error.
            drop(sys::proc::write_sysctl(name, value));
        }
        for (name, value) in &plan.sysctls {
            sys::proc::write_sysctl(name, value).map_err(at(&format!("sysctl {name}={value}")))?;
        }
        sys::jail::empty_root().map_err(at("empty root"))?;
        sys::proc::new_session();
        // Closes everything at execve, including stdio, the binary and the socket for failures, because a
        // container may run as pause's user in pause's PID namespace.
        sys::fds::cloexec_from(0).map_err(at("descriptors"))?;
        let asked = plan.seccomp.as_ref().map(|filter| Filter::new(&filter.instructions, 0)).transpose();
        let asked = asked.map_err(at("seccomp"))?;
        // No capabilities in any set, and no way to gain some.
        let wanted = Credentials {
            uid: plan.user.uid,
            gid: plan.user.gid,
            groups: plan.user.groups.clone(),
            no_new_privs: true,
            ..Credentials::default()
        };
        sys::creds::assume(&wanted).map_err(|(step, error)| at(&format!("credentials, {step}"))(error))?;
        let own = sys::jail::pause_filter().and_then(Filter::load);
        own.map_err(at("seccomp"))?;
        if let Some(filter) = asked {
            filter.load().map_err(at("seccomp"))?;
        }
        Ok(())
    };
    match steps() {
        Err(failed) => failed,
        Ok(()) => ("execve of pause".to_owned(), sys::jail::exec_fd(binary, c"pause")),
    }
}
