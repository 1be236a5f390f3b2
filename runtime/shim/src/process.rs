//! Becoming a container's process: the last steps before execve, shared by init and exec.
//!
//! It has two parts. [`prepare`] does everything that needs privileges, and then drops them: AppArmor, SELinux, signals,
//! keyring, limits, owner of stdio, working directory, credentials, the working directory again if only the
//! user may enter it, and the filter. So a process that the container's processes can see (a waiting init, or an exec
//! after its second fork) has no more privileges than the container.
//! [`Ready::become_process`] calls execve, which closes descriptors. If that fails, it writes one line of JSON
//! to the report descriptor, which execve closes: end of file without a line means that execve has succeeded, or that the
//! process was killed before (for init, `lifecycle::phase::Execve` tells these apart).
//!
//! The filter is loaded in the first part if it allows what the second part needs. Otherwise it is loaded at
//! the end, and without no_new_privs CAP_SYS_ADMIN is kept until then.

use std::ffi::CString;
use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use model::User;
use rustix::fs::{FileType, Mode, OFlags};
use sys::creds::Credentials;
use sys::execute::{self, Arguments};
use sys::host_proc::HostProc;
use sys::mount::Attributes;
use sys::seccomp::Filter;
use wire::{ErrorKind, Failure, ProcessPlan};

/// The search path if the environment has no PATH.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Exit codes of shells: found but not executable, not found.
const CANNOT_EXECUTE: i32 = 126;
const NOT_FOUND: i32 = 127;

/// Number of characters of a program's name in an error. The name may have 128 KiB, but the shim reads only 8 KiB of
/// init's error.
const MAX_SHOWN: usize = 256;

/// Which step failed, and why.
struct StepError {
    stage: &'static str,
    message: String,
    errno: i32,
}

fn failed_at(stage: &'static str, what: impl Into<String>) -> impl FnOnce(io::Error) -> StepError {
    let what = what.into();
    move |e| StepError { stage, message: format!("{what}: {e}"), errno: sys::mount::errno(&e) }
}

impl StepError {
    fn failure(self, kind: ErrorKind) -> Failure {
        Failure { kind, stage: self.stage.to_owned(), message: self.message, errno: self.errno }
    }
}

/// What [`before_namespaces`] has found.
pub(crate) struct OfHost {
    /// What the host did not allow.
    pub(crate) warning: Option<String>,
    /// The host's /proc for [`prepare`], if the plan has an AppArmor profile or an SELinux label: the container's may be made
    /// by an attacker.
    pub(crate) proc: Option<HostProc>,
}

/// Makes the settings that need the host's /proc, before the container's namespaces are entered.
///
/// # Errors
/// The errors of writing to /proc.
pub(crate) fn before_namespaces(plan: &ProcessPlan) -> io::Result<OfHost> {
    execute::reset_scheduling();
    let wanted = plan.oom_score_adj.unwrap_or(0);
    let set = sys::proc::set_oom_score_adj(wanted)?;
    let warning = (set != wanted).then(|| format!("oom_score_adj {wanted} is not allowed here, it is {set}"));
    let confined = !plan.apparmor.is_empty() || !plan.selinux.is_empty();
    let proc = confined.then(HostProc::open).transpose()?;
    Ok(OfHost { warning, proc })
}

/// Which process it is. That decides the system calls between [`prepare`] and execve.
#[derive(Debug, Clone, Copy)]
pub(crate) enum ProcessKind {
    /// Init: libcontainer reports it, and it waits on a socket for the start request.
    Init,
    /// Exec: a sibling is cloned, which becomes a session leader.
    Exec,
}

impl ProcessKind {
    /// The system calls between [`prepare`] and execve.
    fn calls(self) -> Vec<sys::seccomp::Call> {
        let (own, first) = match self {
            Self::Init => (sys::execute::calls::INIT, None),
            Self::Exec => (sys::execute::calls::EXEC, Some(sys::clone::SIBLING)),
        };
        let any = |number: &i64| sys::seccomp::Call { number: *number, first: None };
        let mut calls: Vec<_> = sys::execute::calls::LAST.iter().chain(own).map(any).collect();
        calls.extend(first.map(|(number, flags)| sys::seccomp::Call { number, first: Some(flags) }));
        calls
    }
}

/// A process that has no more privileges than the container, except CAP_SYS_ADMIN if `filter` needs it.
pub(crate) struct Ready {
    arguments: Arguments,
    candidates: Vec<CString>,
    /// The program's name for errors.
    shown: String,
    /// It is looked up in PATH.
    looked_up: bool,
    /// The filter, if it must be loaded right before execve.
    filter: Option<Filter>,
}

/// Applies the plan. Descriptors 0, 1 and 2 are its stdio already. After this it may keep descriptors, but no more
/// privileges than the container (except CAP_SYS_ADMIN for a filter that is loaded last). Memory that is needed later is
/// allocated here, before a filter can forbid it. `host_proc`: of [`before_namespaces`].
///
/// # Errors
/// The failed step, of this kind of error.
pub(crate) fn prepare(
    plan: &ProcessPlan,
    user: &User,
    process: ProcessKind,
    host_proc: Option<HostProc>,
    error_kind: ErrorKind,
) -> Result<Ready, Failure> {
    confine(plan, host_proc)
        .and_then(|()| attempt(plan, user, process))
        .map_err(|error| error.failure(error_kind))
}

/// Sets the AppArmor profile or the SELinux label for execve, and the label of the session keyring. Before the credentials
/// are dropped and no_new_privs and the filter are set, which could forbid it. A sibling that is cloned later inherits it.
fn confine(plan: &ProcessPlan, host_proc: Option<HostProc>) -> Result<(), StepError> {
    // Without it the process would not be confined.
    let proc = || host_proc.as_ref().ok_or_else(|| io::Error::other("the host's /proc was not opened"));
    if !plan.apparmor.is_empty() {
        let set = proc().and_then(|proc| sys::apparmor::set_on_exec(proc, &plan.apparmor));
        let what =
            || format!("profile {:?}, which must be loaded on the node", shown(plan.apparmor.as_bytes()));
        set.map_err(|error| failed_at("apparmor", what())(error))?;
    }
    if !plan.selinux.is_empty() {
        let label = &plan.selinux;
        let set = proc().and_then(|proc| {
            sys::selinux::set_on_exec(proc, label)?;
            sys::selinux::set_on_keys(proc, label)
        });
        let what = || {
            let label = shown(label.as_bytes());
            format!("label {label:?}, which the node's policy must know and allow copepod to give")
        };
        set.map_err(|error| failed_at("selinux", what())(error))?;
    }
    Ok(())
}

impl Ready {
    /// Calls execve, which closes all descriptors except 0, 1 and 2.
    pub(crate) fn become_process(self, report: OwnedFd) -> ! {
        let error = self.finish();
        let status =
            if error.errno == rustix::io::Errno::NOENT.raw_os_error() { NOT_FOUND } else { CANNOT_EXECUTE };
        write_failure(&mut File::from(report), &error.failure(ErrorKind::StartFailed));
        sys::fork::exit_now(status)
    }

    fn finish(self) -> StepError {
        let Self { arguments, candidates, shown, looked_up, filter } = self;
        if let Err(error) = sys::fds::cloexec_from(3) {
            return failed_at("descriptors", "close-on-exec")(error);
        }
        if let Some(Err(error)) = filter.map(Filter::load) {
            return failed_at("seccomp", "loading the filter")(error);
        }
        execute_first(&arguments, &candidates, &shown, looked_up)
    }
}

/// Writes a failure as one line of JSON; errors are ignored, because the reader may have gone.
pub(crate) fn write_failure(into: &mut File, failure: &Failure) {
    let mut line = serde_json::to_vec(failure).unwrap_or_else(|_| b"{}".to_vec());
    line.push(b'\n');
    drop(into.write_all(&line));
}

#[expect(clippy::too_many_lines, reason = "the order of the steps matters, and it is read here")]
fn attempt(plan: &ProcessPlan, user: &User, process: ProcessKind) -> Result<Ready, StepError> {
    sys::signal::reset();
    sys::keyring::join_session(&plan.keyring).map_err(failed_at("keyring", "session keyring"))?;
    rustix::process::umask(Mode::from_raw_mode(plan.umask & 0o777));
    sys::rlimit::restore_open_files().map_err(failed_at("rlimit", "open files"))?;
    for limit in &plan.rlimits {
        sys::rlimit::set(limit.resource, limit.soft, limit.hard)
            .map_err(failed_at("rlimit", format!("limit {}", limit.resource)))?;
    }
    own_null().map_err(failed_at("stdio", "/dev/null"))?;
    give_stdio(user).map_err(failed_at("stdio", "owner of stdin, stdout and stderr"))?;
    // Root may not be allowed to enter a folder that the user may (a home on NFS), so this is tried again as
    // the user.
    let cwd = if plan.cwd.is_empty() { "/" } else { plan.cwd.as_str() };
    let again = match rustix::process::chdir(cwd) {
        Ok(()) => false,
        Err(rustix::io::Errno::ACCESS | rustix::io::Errno::PERM) => true,
        Err(e) => return Err(failed_at("chdir", cwd)(e.into())),
    };

    let name = plan.args.first().map(model::Text::as_bytes).unwrap_or_default();
    let (shown, looked_up) = (shown(name), !name.contains(&b'/'));
    let candidates = candidates(name, plan).map_err(failed_at("execve", shown.clone()))?;
    let arguments = Arguments::new(
        plan.args.iter().map(model::Text::as_bytes),
        plan.env.iter().map(model::Text::as_bytes),
    )
    .map_err(failed_at("execve", shown.clone()))?;
    let program = plan.seccomp.as_ref().map(|s| s.instructions.as_slice()).filter(|i| !i.is_empty());
    let filter = program.map(|program| Filter::new(program, plan.seccomp_flags)).transpose();
    let filter = filter.map_err(failed_at("seccomp", "the filter"))?;
    let calls = process.calls();
    let (early, late) = match filter {
        Some(filter) if filter.allows(&calls) => (Some(filter), None),
        filter => (None, filter),
    };
    // With no_new_privs loading needs no privileges, and without a filter no capability is kept.
    let credentials = Credentials {
        uid: user.uid,
        gid: user.gid,
        groups: user.groups.clone(),
        bounding: plan.caps.bounding,
        permitted: plan.caps.permitted,
        inheritable: plan.caps.inheritable,
        ambient: plan.caps.ambient,
        no_new_privs: plan.no_new_privs,
        filter: early.is_some() || late.is_some(),
    };
    let refused = |(step, e)| failed_at("credentials", step)(e);
    let for_filter = sys::creds::assume(&credentials).map_err(refused)?;
    // Its memory is a copy of the shim's and its descriptors are not the container's, so no process of the
    // same user may access it until execve, which resets this.
    sys::proc::set_dumpable(false).map_err(failed_at("credentials", "dumpable"))?;
    if again {
        rustix::process::chdir(cwd).map_err(|e| failed_at("chdir", cwd)(e.into()))?;
    }
    // A folder outside the root (reached through a leaked descriptor) is shown as "(unreachable)".
    let here = rustix::process::getcwd(Vec::new()).map_err(|e| failed_at("chdir", cwd)(e.into()))?;
    if here.to_bytes().first() != Some(&b'/') {
        let message = format!("{cwd} is outside the container");
        return Err(StepError { stage: "chdir", message, errno: rustix::io::Errno::PERM.raw_os_error() });
    }
    let ready = Ready { arguments, candidates, shown, looked_up, filter: late };
    let Some(filter) = early else { return Ok(ready) };
    filter.load().map_err(failed_at("seccomp", "loading the filter"))?;
    for_filter.drop_capability().map_err(failed_at("credentials", "capset"))?;
    Ok(ready)
}

/// Tries the candidates in order: the next one only if a program does not exist or is not executable.
fn execute_first(arguments: &Arguments, candidates: &[CString], shown: &str, looked_up: bool) -> StepError {
    let mut refused = None;
    for path in candidates {
        let error = arguments.execute(path);
        match rustix::io::Errno::from_io_error(&error) {
            Some(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR) => {}
            Some(rustix::io::Errno::ACCESS) => refused = Some(error),
            _ => return failed_at("execve", format!("exec {shown:?}"))(error),
        }
    }
    let found = if looked_up { " (looked up in PATH)" } else { "" };
    let error =
        refused.unwrap_or_else(|| io::Error::from_raw_os_error(rustix::io::Errno::NOENT.raw_os_error()));
    failed_at("execve", format!("exec {shown:?}{found}"))(error)
}

/// The name of a program for errors; a long one is cut.
fn shown(name: &[u8]) -> String {
    let text = String::from_utf8_lossy(name);
    let mut cut: String = text.chars().take(MAX_SHOWN).collect();
    if cut.len() < text.len() {
        cut.push('…');
    }
    cut
}

fn candidates(name: &[u8], plan: &ProcessPlan) -> io::Result<Vec<CString>> {
    if name.is_empty() {
        return Err(io::Error::from_raw_os_error(rustix::io::Errno::NOENT.raw_os_error()));
    }
    if name.contains(&b'/') {
        return Ok(vec![CString::new(name)?]);
    }
    let set = plan.env.iter().rev().find_map(|entry| entry.as_bytes().strip_prefix(b"PATH="));
    let path = set.unwrap_or(DEFAULT_PATH.as_bytes());
    let mut found = Vec::new();
    for folder in path.split(|byte| *byte == b':') {
        // An empty entry is the working directory, as in execvp(3).
        let folder = if folder.is_empty() { b"." } else { folder };
        found.push(CString::new([folder, b"/", name].concat())?);
    }
    Ok(found)
}

fn is_null(fd: BorrowedFd<'_>) -> io::Result<bool> {
    let stat = rustix::fs::fstat(fd)?;
    let device = FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice;
    Ok(device && stat.st_rdev == rustix::fs::makedev(1, 3))
}

/// The null device of the container. If that is missing or something else, a private one, whose file system
/// is not attached anywhere.
fn null_of_container() -> io::Result<OwnedFd> {
    let flags = OFlags::RDWR | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NOCTTY | OFlags::NONBLOCK;
    let own =
        match rustix::fs::open("/dev/null", OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())
        {
            // Checked to be the null device before it is opened, because opening another device may have an
            // effect.
            Ok(seen) if is_null(seen.as_fd())? => rustix::fs::open("/dev/null", flags, Mode::empty()).ok(),
            _ => None,
        };
    let own = match own {
        Some(own) if is_null(own.as_fd())? => own,
        _ => {
            let attributes = Attributes { nosuid: true, noexec: true, ..Attributes::default() };
            let private = sys::mount::tmpfs(0o755, 4096, attributes)?;
            let mode = Mode::from_raw_mode(0o666);
            rustix::fs::mknodat(
                &private,
                "null",
                FileType::CharacterDevice,
                mode,
                rustix::fs::makedev(1, 3),
            )?;
            rustix::fs::chmodat(&private, "null", mode, rustix::fs::AtFlags::empty())?;
            rustix::fs::openat(&private, "null", flags, Mode::empty())?
        }
    };
    rustix::fs::fcntl_setfl(&own, OFlags::empty())?;
    Ok(own)
}

/// Standard streams on a null device are replaced by the container's own, as runc does: the original is in
/// another mount namespace, and a process that opens /proc/self/fd/0 would reach it.
fn own_null() -> io::Result<()> {
    if is_null(io::stdin().as_fd())? {
        rustix::stdio::dup2_stdin(null_of_container()?)?;
    }
    if is_null(io::stdout().as_fd())? {
        rustix::stdio::dup2_stdout(null_of_container()?)?;
    }
    if is_null(io::stderr().as_fd())? {
        rustix::stdio::dup2_stderr(null_of_container()?)?;
    }
    Ok(())
}

/// Gives pipes to a user by its uid on the host. Before the process enters a user namespace: inside, the pipes belong to
/// nobody.
///
/// # Errors
/// fchown(2).
pub(crate) fn give_pipes(streams: &[BorrowedFd<'_>], host_uid: u32) -> io::Result<()> {
    for stream in streams {
        if FileType::from_raw_mode(rustix::fs::fstat(stream)?.st_mode) == FileType::Fifo {
            rustix::fs::fchown(stream, Some(rustix::fs::Uid::from_raw(host_uid)), None)?;
        }
    }
    Ok(())
}

/// The user becomes the owner of pipes and terminals of stdio; otherwise it could not open /dev/stdout. Files
/// and /dev/null are not changed.
fn give_stdio(user: &User) -> io::Result<()> {
    let (stdin, stdout, stderr) = (io::stdin(), io::stdout(), io::stderr());
    let all: [BorrowedFd<'_>; 3] = [stdin.as_fd(), stdout.as_fd(), stderr.as_fd()];
    for fd in all {
        let stat = rustix::fs::fstat(fd)?;
        let kind = FileType::from_raw_mode(stat.st_mode);
        let ours =
            kind == FileType::Fifo || (kind == FileType::CharacterDevice && rustix::termios::isatty(fd));
        if !ours || stat.st_uid == user.uid {
            continue;
        }
        match rustix::fs::fchown(fd, Some(rustix::fs::Uid::from_raw(user.uid)), None) {
            // A pipe in a user namespace without that user, or a read-only devpts.
            Ok(()) | Err(rustix::io::Errno::INVAL | rustix::io::Errno::PERM | rustix::io::Errno::ROFS) => {}
            Err(e) => return Err(e.into()),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(env: &[&str]) -> ProcessPlan {
        let text = |s: &&str| model::Text::new(s.as_bytes()).unwrap();
        ProcessPlan { env: env.iter().map(text).collect(), ..ProcessPlan::default() }
    }

    #[test]
    fn programs_are_looked_up_as_execvp_does() {
        let found = |name: &str, env: &[&str]| -> Vec<String> {
            let all = candidates(name.as_bytes(), &plan(env)).unwrap();
            all.iter().map(|c| c.to_string_lossy().into_owned()).collect()
        };
        assert_eq!(found("sh", &["PATH=/bin::/x"]), ["/bin/sh", "./sh", "/x/sh"]);
        assert_eq!(found("./sh", &["PATH=/bin"]), ["./sh"]);
        assert_eq!(found("sh", &[]).last().unwrap(), "/bin/sh");
        assert!(candidates(b"", &plan(&[])).is_err());
    }

    #[test]
    fn an_error_with_a_long_name_is_short() {
        assert_eq!(shown(b"sh"), "sh");
        for long in ["\\", "\"", "\u{1}", "\u{10ffff}"] {
            let error = failed_at("execve", format!("exec {:?}", shown(long.repeat(30_000).as_bytes())));
            let failure = error(io::ErrorKind::NotFound.into()).failure(ErrorKind::StartFailed);
            let json = serde_json::to_vec(&failure).unwrap();
            assert!(json.len() < 8192, "{} bytes for {long:?}", json.len());
        }
    }
}
