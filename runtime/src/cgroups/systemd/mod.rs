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
use std::path::Path;
use std::time::{Duration, Instant};
use std::{fs, io};

/// How long [`create`] waits for systemd. kubelet gives RunPodSandbox four minutes.
const LIMIT: Duration = Duration::from_secs(30);
/// How long [`find`] waits for a place in the queue of systemd's socket.
const FIND_LIMIT: Duration = Duration::from_secs(5);
/// Folder that systemd creates if it is the system's service manager (sd_booted(3)).
const BOOTED: &str = "/run/systemd/system";

/// Finds out whether process 1 is systemd and has this process's PID namespace, whose numbers it is given.
///
/// # Errors
/// Why systemd cannot be asked for scopes.
pub(super) fn find() -> Result<(), String> {
    if !Path::new(BOOTED).is_dir() {
        return Err(format!("systemd is not this host's service manager ({BOOTED} is missing)"));
    }
    let path = bus::PRIVATE;
    let connected = bus::connect(path, Instant::now() + FIND_LIMIT);
    let stream = connected.map_err(|error| format!("systemd's socket {path} cannot be reached: {error}"))?;
    match sys::peer::pid(stream.as_fd()) {
        Ok(Some(1)) => Ok(()),
        Ok(_) => {
            Err("systemd has another PID namespace than this daemon: it would move other processes"
                .to_owned())
        }
        Err(error) => Err(format!("peer of {path}: {error}")),
    }
}

/// Makes the scope at `path` with the process `pid`, which is a child of this process, and moves it to
/// [`names::STARTING`] below. `pod` is the pod's name, for the unit's description. After an error the scope ends with the process.
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
