//! Becoming a container's process: the one road to execve, shared by init and exec.
//!
//! Order (each step needs what a later one takes away): signals, keyring, limits, stdio's owner, folder,
//! descriptors, credentials, folder again where only the user may enter it, filter, execve. Whatever fails is
//! told as one line of JSON on the report descriptor, which execve closes: end of file means it has exec'd.

use std::ffi::CString;
use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};

use model::User;
use rustix::fs::{FileType, Mode, OFlags};
use sys::creds::Credentials;
use sys::execute::{self, Image};
use wire::{ErrorKind, Failure, ProcessPlan};

/// Where programs are looked up when the environment names no PATH.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Exit codes of shells: found but not executable, not found.
const CANNOT_EXECUTE: i32 = 126;
const NOT_FOUND: i32 = 127;

/// A step that failed.
struct Stop {
    stage: &'static str,
    message: String,
    errno: i32,
}

fn stop(stage: &'static str, what: impl Into<String>) -> impl FnOnce(io::Error) -> Stop {
    let what = what.into();
    move |e| Stop { stage, message: format!("{what}: {e}"), errno: sys::mount::errno(&e) }
}

/// What must be set where the host's /proc is still in sight, before the container's namespaces are entered.
/// False when the host did not allow the wanted oom_score_adj.
///
/// # Errors
/// Those of writing to /proc.
pub(crate) fn before_namespaces(plan: &ProcessPlan) -> io::Result<bool> {
    execute::reset_scheduling();
    sys::proc::set_oom_score_adj(plan.oom_score_adj.unwrap_or(0))
}

/// Turns this process into what the plan says. 0, 1 and 2 are its stdio already; it leads its session where
/// it has a terminal. `report` must be close-on-exec.
pub(crate) fn become_process(plan: &ProcessPlan, user: &User, report: OwnedFd) -> ! {
    let Stop { stage, message, errno } = match attempt(plan, user, &report) {
        Ok(never) => match never {},
        Err(stop) => stop,
    };
    let failure = Failure { kind: ErrorKind::StartFailed, stage: stage.to_owned(), message, errno };
    tell(&mut File::from(report), &failure);
    sys::fork::exit_now(if errno == libc_enoent() { NOT_FOUND } else { CANNOT_EXECUTE })
}

/// One line of JSON. A reader that is gone needs none.
pub(crate) fn tell(into: &mut File, failure: &Failure) {
    let mut line = serde_json::to_vec(failure).unwrap_or_else(|_| b"{}".to_vec());
    line.push(b'\n');
    drop(into.write_all(&line));
}

fn libc_enoent() -> i32 {
    rustix::io::Errno::NOENT.raw_os_error()
}

enum Never {}

fn attempt(plan: &ProcessPlan, user: &User, report: &OwnedFd) -> Result<Never, Stop> {
    execute::reset_signals();
    execute::join_session_keyring(&plan.keyring).map_err(stop("keyring", "session keyring"))?;
    rustix::process::umask(Mode::from_raw_mode(plan.umask & 0o777));
    for limit in &plan.rlimits {
        sys::rlimit::set(limit.resource, limit.soft, limit.hard)
            .map_err(stop("rlimit", format!("limit {}", limit.resource)))?;
    }
    own_null().map_err(stop("stdio", "/dev/null"))?;
    give_stdio(user).map_err(stop("stdio", "owner of stdin, stdout and stderr"))?;
    // Root may be kept out where the user is not (a home on NFS): then it is tried once more as the user.
    let cwd = if plan.cwd.is_empty() { "/" } else { plan.cwd.as_str() };
    let again = match rustix::process::chdir(cwd) {
        Ok(()) => false,
        Err(rustix::io::Errno::ACCESS | rustix::io::Errno::PERM) => true,
        Err(e) => return Err(stop("chdir", cwd)(e.into())),
    };
    let keep = u32::try_from(report.as_raw_fd()).unwrap_or(u32::MAX);
    execute::close_from(3, keep).map_err(stop("descriptors", "closing"))?;

    let filter = plan.seccomp.as_ref().map(|s| s.instructions.as_slice()).filter(|i| !i.is_empty());
    sys::creds::assume(&Credentials {
        uid: user.uid,
        gid: user.gid,
        groups: user.groups.clone(),
        bounding: plan.caps.bounding,
        permitted: plan.caps.permitted,
        inheritable: plan.caps.inheritable,
        ambient: plan.caps.ambient,
        no_new_privs: plan.no_new_privs,
        filter: filter.is_some(),
    })
    .map_err(|(step, e)| stop("credentials", step)(e))?;
    if again {
        rustix::process::chdir(cwd).map_err(|e| stop("chdir", cwd)(e.into()))?;
    }
    // A folder outside the root (reached through a leaked descriptor) shows as "(unreachable)".
    let here = rustix::process::getcwd(Vec::new()).map_err(|e| stop("chdir", cwd)(e.into()))?;
    if here.to_bytes().first() != Some(&b'/') {
        let message = format!("{cwd} is outside the container");
        return Err(Stop { stage: "chdir", message, errno: rustix::io::Errno::PERM.raw_os_error() });
    }

    let name = plan.args.first().map(model::Text::as_bytes).unwrap_or_default();
    let shown = String::from_utf8_lossy(name).into_owned();
    let candidates = candidates(name, plan).map_err(stop("execve", shown.clone()))?;
    let image =
        Image::new(plan.args.iter().map(model::Text::as_bytes), plan.env.iter().map(model::Text::as_bytes))
            .map_err(stop("execve", shown.clone()))?;
    if let Some(instructions) = filter {
        sys::seccomp::load(instructions).map_err(stop("seccomp", "loading the filter"))?;
    }
    Err(execute_first(&image, &candidates, &shown))
}

/// Tries each; only what is not there or may not be executed lets the next one have its turn.
fn execute_first(image: &Image, candidates: &[CString], shown: &str) -> Stop {
    let mut refused = None;
    for path in candidates {
        let error = image.execute(path);
        match rustix::io::Errno::from_io_error(&error) {
            Some(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR) => {}
            Some(rustix::io::Errno::ACCESS) => refused = Some(error),
            _ => return stop("execve", format!("exec {shown:?}"))(error),
        }
    }
    let found = if shown.contains('/') { "" } else { " (looked up in PATH)" };
    let error = refused.unwrap_or_else(|| io::Error::from_raw_os_error(libc_enoent()));
    stop("execve", format!("exec {shown:?}{found}"))(error)
}

fn candidates(name: &[u8], plan: &ProcessPlan) -> io::Result<Vec<CString>> {
    if name.is_empty() {
        return Err(io::Error::from_raw_os_error(libc_enoent()));
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

/// Standard streams on a null device are opened anew as the container's own, as runc does: the one they came
/// from lies in another mount namespace, and a process that opens /proc/self/fd/0 would reach into it.
fn own_null() -> io::Result<()> {
    let is_null = |fd: BorrowedFd<'_>| -> io::Result<bool> {
        let stat = rustix::fs::fstat(fd)?;
        let device = FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice;
        Ok(device && stat.st_rdev == rustix::fs::makedev(1, 3))
    };
    let (stdin, stdout, stderr) = (io::stdin(), io::stdout(), io::stderr());
    for (number, fd) in [(0, stdin.as_fd()), (1, stdout.as_fd()), (2, stderr.as_fd())] {
        if !is_null(fd)? {
            continue;
        }
        let flags = OFlags::RDWR | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NOCTTY | OFlags::NONBLOCK;
        // An image may have put something else at this name: then what there is stays.
        let Ok(own) = rustix::fs::open("/dev/null", flags, Mode::empty()) else { continue };
        if is_null(own.as_fd())? {
            rustix::fs::fcntl_setfl(&own, OFlags::empty())?;
            sys::proc::place(own.as_fd(), number)?;
        }
    }
    Ok(())
}

/// Pipes and terminals of stdio become the user's, or /dev/stdout could not be opened anew. Files and
/// /dev/null stay as they are.
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
            // A pipe of a user namespace without that user, or a read-only devpts.
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
}
