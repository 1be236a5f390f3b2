//! Starts pause: clone3 into the pod's namespaces, then a restricted environment and execve by descriptor.

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use model::UserMapping;
use rustix::fs::{Mode, OFlags, openat};
use sys::clone::{Child, Flags};
use sys::creds::Credentials;
use sys::host_proc::HostProc;
use sys::mount::{self, Attributes};
use sys::seccomp::Filter;
use wire::{ErrorKind, PausePlan};

use crate::failure::failure;
use crate::packet::{Reporter, read_plan};
use crate::podns;

/// Maximum size of pause's binary in bytes; it has about one KiB.
const MAX_BINARY: u64 = 1 << 20;

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
    let child = match start(reporter, &plan, &folders, binary) {
        Ok(child) => child,
        Err((stage, error)) => return fail(reporter, &stage, &error),
    };
    match network(&plan, &child) {
        Ok(network) => match reporter.made(&child, network.as_ref().map(|fd| fd.as_fd())) {
            Ok(()) => 0,
            Err(_) => 1,
        },
        Err(error) => {
            // The shim kills processes that were reported to it.
            drop(reporter.made(&child, None));
            fail(reporter, "network namespace", &error)
        }
    }
}

/// Creates the namespaces and, in them, the process that becomes pause.
fn start(
    reporter: &Reporter,
    plan: &PausePlan,
    folders: &[OwnedFd],
    binary: BorrowedFd<'_>,
) -> Result<Child, Failed> {
    if plan.ipc {
        // The worker shares the shim's mount namespace, so later workers have the mount too.
        let attach = || podns::attach_shm(plan.shm_size, &plan.file_label);
        let attached = match plan.mapping {
            // It belongs to root of the pod.
            Some(UserMapping { uid, gid, .. }) => sys::userns::with_file_ids(uid, gid, attach).flatten(),
            None => attach(),
        };
        attached.map_err(at("/dev/shm of the pod"))?;
    }
    let labelled = labelled_binary(plan, binary).map_err(at("labelled copy of pause"))?;
    let binary = labelled.as_ref().map_or(binary, |copy| copy.as_fd());
    let gate = plan.mapping.map(|_| sys::scm::pipe()).transpose().map_err(at("pipe"))?;
    let (mut wait, mut go) = gate.unzip();
    let into = folders.first().filter(|_| plan.cgroup.unified).map(|fd| fd.as_fd());
    let child = sys::clone::clone3_pidfd(namespaces(plan), into, || {
        // The child's copy of the writing end: with that open, it would wait for ever if the worker ends.
        drop(go.take());
        let (stage, error) = become_pause(plan, folders, binary, wait.take());
        fail(reporter, &stage, &error)
    });
    let child = child.map_err(at("clone3"))?;
    if let Some((UserMapping { uid, gid, length }, go)) = plan.mapping.zip(go) {
        let mapped = sys::userns::write_mapping(child.pid, uid, gid, length);
        mapped.and_then(|()| File::from(go).write_all(b"\n")).map_err(|error| {
            // The shim kills processes that were reported to it.
            drop(reporter.made(&child, None));
            at("mapping of the user namespace")(error)
        })?;
    }
    Ok(child)
}

/// A copy of pause's binary with the label of the pod's files, if pause gets an SELinux label: a policy lets a container's
/// domain begin with such files only. It is on a file system that is attached nowhere and ends with pause.
fn labelled_binary(plan: &PausePlan, binary: BorrowedFd<'_>) -> io::Result<Option<OwnedFd>> {
    if plan.selinux.is_empty() {
        return Ok(None);
    }
    // The binary may have been opened for execve only.
    let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&binary));
    let mut content = Vec::new();
    File::open(path)?.take(MAX_BINARY).read_to_end(&mut content)?;
    let place = mount::labelled_tmpfs(0o755, MAX_BINARY, Attributes::default(), &plan.file_label)?;
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    File::from(openat(&place, "pause", flags, Mode::from_raw_mode(0o555))?).write_all(&content)?;
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(Some(openat(&place, "pause", flags, Mode::empty())?))
}

/// The namespaces that pause is created in.
fn namespaces(plan: &PausePlan) -> Flags {
    let all = [
        (plan.network, Flags::NEWNET),
        // With a user namespace, the IPC namespace must be created by root inside it: `set_up` does that.
        (plan.ipc && plan.mapping.is_none(), Flags::NEWIPC),
        (plan.uts, Flags::NEWUTS),
        (plan.pid, Flags::NEWPID),
        (plan.mapping.is_some(), Flags::NEWUSER),
    ];
    let asked = all.into_iter().filter(|(asked, _)| *asked);
    asked.fold(Flags::PARENT.and(Flags::NEWNS), |flags, (_, flag)| flags.and(flag))
}

/// The network namespace of the process, if it has its own.
fn network(plan: &PausePlan, child: &Child) -> io::Result<Option<OwnedFd>> {
    let own = || sys::pidfd::network_namespace(child.pidfd.as_fd(), child.pid);
    plan.network.then(own).transpose()
}

fn fail(reporter: &Reporter, stage: &str, error: &io::Error) -> i32 {
    reporter.failed(&failure(ErrorKind::Internal, stage, error));
    1
}

/// Waits until the worker has written the mapping of the user namespace. Fails if it could not, which it reports.
fn mapped(gate: OwnedFd) -> io::Result<()> {
    File::from(gate).read_exact(&mut [0])
}

type Failed = (String, io::Error);

fn at(stage: &str) -> impl FnOnce(io::Error) -> Failed {
    let stage = stage.to_owned();
    move |error| (stage, error)
}

/// Runs in the child. Returns only on an error. `gate`: with a user namespace, a pipe with one byte once it is mapped.
fn become_pause(
    plan: &PausePlan,
    folders: &[OwnedFd],
    binary: BorrowedFd<'_>,
    gate: Option<OwnedFd>,
) -> Failed {
    match set_up(plan, folders, gate).and_then(|()| restrict(plan)) {
        Err(failed) => failed,
        Ok(()) => ("execve of pause".to_owned(), sys::jail::exec_fd(binary, c"pause")),
    }
}

/// Joins the cgroups and sets up the namespaces. With a user namespace, the process has the ids of the host's root until it
/// becomes root inside: before that it writes files that belong to the host's root, and after that those of the new
/// namespaces.
fn set_up(plan: &PausePlan, folders: &[OwnedFd], gate: Option<OwnedFd>) -> Result<(), Failed> {
    sys::proc::set_dumpable(false).map_err(at("dumpable"))?;
    if !plan.cgroup.unified {
        for (folder, member) in folders.iter().zip(&plan.cgroup.members) {
            sys::cgroup::join(folder.as_fd(), false)
                .map_err(at(&format!("cgroup {} {}", member.hierarchy, member.path)))?;
        }
    }
    if !plan.apparmor.is_empty() {
        let set = HostProc::open().and_then(|proc| sys::apparmor::set_on_exec(&proc, &plan.apparmor));
        set.map_err(at(&format!("AppArmor profile {:?}, which must be loaded on the node", plan.apparmor)))?;
    }
    if !plan.selinux.is_empty() {
        let set = HostProc::open().and_then(|proc| sys::selinux::set_on_exec(&proc, &plan.selinux));
        set.map_err(at(&format!(
            "SELinux label {:?}, which the node's policy must know and allow copepod to give",
            plan.selinux
        )))?;
    }
    // Must be done while /proc is available. If the host does not allow the value, the lowest allowed one is set,
    // without a warning: the shim has sent one for its own value.
    sys::proc::set_oom_score_adj(plan.oom_score_adj).map_err(at("oom_score_adj"))?;
    let set = |(name, value): &(String, String)| {
        sys::proc::write_sysctl(name, value).map_err(at(&format!("sysctl {name}={value}")))
    };
    // The files of the UTS namespace's sysctls belong to the host's root, also if a user namespace owns the namespace.
    let (of_host, of_owner): (Vec<_>, Vec<_>) = plan.sysctls.iter().partition(|(name, _)| is_uts(name));
    of_host.into_iter().try_for_each(set)?;
    if let Some(gate) = gate {
        mapped(gate).map_err(at("mapping of the user namespace"))?;
        sys::userns::become_root().map_err(at("root of the user namespace"))?;
        if plan.ipc {
            sys::namespace::unshare_ipc().map_err(at("IPC namespace"))?;
        }
    }
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
    of_owner.into_iter().try_for_each(set)
}

/// Whether a sysctl is of the UTS namespace.
fn is_uts(name: &str) -> bool {
    matches!(name, "kernel/domainname" | "kernel/hostname")
}

/// Leaves the host's files and drops all privileges.
fn restrict(plan: &PausePlan) -> Result<(), Failed> {
    sys::jail::empty_root(&plan.file_label).map_err(at("empty root"))?;
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
}
