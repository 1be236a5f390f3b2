//! The cgroup driver systemd: one delegated scope for each pod, in which the leaves are folders as with cgroupfs.
//!
//! `message` knows D-Bus's format, `exchange` what is said to systemd and what its answers mean, and `bus` has the sockets.
//! No crate: see "Decisions" in ARCHITECTURE.md.

mod bus;
mod exchange;
mod message;

use super::files::put;
use super::{Error, Hierarchy, names};
use exchange::Scope;
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};
use std::{fs, io, thread};

/// How long [`create`] waits for systemd. kubelet gives RunPodSandbox four minutes.
const LIMIT: Duration = Duration::from_secs(30);
/// How long [`find`] waits for systemd to take connections, and for how long between two attempts.
const FIND_LIMIT: Duration = Duration::from_secs(10);
const FIND_PAUSE: Duration = Duration::from_millis(20);
/// Folder that systemd creates if it is the system's service manager (sd_booted(3)).
const BOOTED: &str = "/run/systemd/system";

/// Why systemd cannot be asked for scopes.
#[derive(Debug)]
pub(super) enum Unusable {
    /// It is not the service manager here, or not that of our processes.
    Absent(String),
    /// It is, but it cannot be reached at the moment.
    Unreachable(String),
}

/// Finds out whether process 1 is systemd and has this process's PID namespace, whose numbers it is given. Blocking, for
/// a bounded time.
pub(super) fn find() -> Result<(), Unusable> {
    if !Path::new(BOOTED).is_dir() {
        let reason = format!("systemd is not this host's service manager ({BOOTED} is missing)");
        return Err(Unusable::Absent(reason));
    }
    let is_process_1 = || fs::read("/proc/1/comm").is_ok_and(|name| name.trim_ascii_end() == b"systemd");
    let path = bus::PRIVATE;
    let stream = reach(path, FIND_LIMIT, is_process_1)?;
    match sys::peer::pid(stream.as_fd()) {
        Ok(Some(1)) => Ok(()),
        Ok(_) => Err(Unusable::Absent(
            "systemd has another PID namespace than this daemon: it would move other processes".to_owned(),
        )),
        Err(error) => Err(Unusable::Absent(format!("peer of {path}: {error}"))),
    }
}

/// Connects to systemd's socket. While systemd executes itself again, nothing listens there. This waits for it, because the
/// result decides the driver for as long as the daemon runs.
fn reach(path: &str, limit: Duration, is_process_1: impl Fn() -> bool) -> Result<UnixStream, Unusable> {
    let until = Instant::now() + limit;
    loop {
        let error = match bus::connect(path, until) {
            Ok(stream) => return Ok(stream),
            Err(error) => error,
        };
        let reason = format!("systemd's socket {path} cannot be reached: {error}");
        if !is_process_1() {
            return Err(Unusable::Absent(reason));
        }
        if Instant::now() >= until {
            return Err(Unusable::Unreachable(reason));
        }
        thread::sleep(FIND_PAUSE);
    }
}

/// Makes the scope at `path` with the process `pid`, which is a child of this process, and moves it to
/// [`names::STARTING`] below. `pod` is the pod's name, for the unit's description. After an error the scope ends with the
/// process.
pub(super) fn create(hierarchy: &Hierarchy, path: &str, pod: &str, pid: u32) -> Result<(), Error> {
    let (above, unit) = path.rsplit_once('/').unwrap_or(("", path));
    let slice = match spec::slice::last(above) {
        "" => "-.slice",
        slice => slice,
    };
    let scope = Scope {
        unit: unit.to_owned(),
        slice: slice.to_owned(),
        description: format!("copepod: pod {pod}"),
        pid,
    };
    let failed = |reason: String| Error::Unit { unit: unit.to_owned(), reason };
    let exists = || is_in(pid, path).unwrap_or(false);
    bus::make(&scope, LIMIT, &exists).map_err(|error| match error {
        bus::Error::Unreachable(reason) => Error::Systemd { unit: unit.to_owned(), reason },
        bus::Error::Refused(refused) => failed(refused.to_string()),
    })?;
    if !is_in(pid, path).map_err(|source| Error::io("read the cgroup of the process in", path, source))? {
        return Err(failed(format!("its cgroup is not {path}: systemd's root cgroup is not this daemon's")));
    }
    let starting = hierarchy.folder(&format!("{path}/{}", names::STARTING));
    fs::create_dir(&starting).map_err(|source| Error::io("make cgroup", &starting, source))?;
    put(&starting.join("cgroup.procs"), &pid.to_string())
        .map_err(|source| Error::io("move the first process to", starting, source))
}

/// Whether a process is in this cgroup.
fn is_in(pid: u32, path: &str) -> io::Result<bool> {
    let text = sys::proc::cgroups(pid)?;
    let text = String::from_utf8_lossy(&text);
    Ok(sys::proc::cgroup_paths(&text).any(|found| found == path))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;

    const SHORT: Duration = Duration::from_millis(60);

    #[test]
    fn a_systemd_that_executes_itself_again_is_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("private");
        let text = path.to_str().unwrap();
        // Its socket is left, and nobody listens.
        drop(UnixListener::bind(&path).unwrap());
        let refused = reach(text, SHORT, || true).unwrap_err();
        assert!(
            matches!(&refused, Unusable::Unreachable(reason) if reason.contains("refused")),
            "{refused:?}"
        );
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| reach(text, Duration::from_secs(20), || true));
            fs::remove_file(&path).unwrap();
            let _listener = UnixListener::bind(&path).unwrap();
            waiting.join().unwrap().unwrap();
        });
    }

    #[test]
    fn another_process_1_is_not_waited_for() {
        let none = reach("/nonexistent/private", Duration::from_secs(3600), || false).unwrap_err();
        assert!(matches!(none, Unusable::Absent(_)), "{none:?}");
    }
}
