//! The connections to systemd: each makes one scope, and is closed. Blocking, for a bounded time.

use super::exchange::{Exchange, Failed, Next, Peer, Scope};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, sockopt};
use std::io::{self, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};
use std::{fmt, thread};

/// The message bus, which systemd's interface is documented for.
const BUS: &str = "/run/dbus/system_bus_socket";
/// systemd's own socket, which systemctl(1) uses: for hosts without the message bus, and while that is down.
pub(super) const PRIVATE: &str = "/run/systemd/private";
/// After this long without a message it is checked whether the scope exists: a signal may have been lost.
const QUIET: Duration = Duration::from_millis(500);
/// Pause between two rounds of attempts, and between two checks of a scope that an earlier connection has requested.
const PAUSE: Duration = Duration::from_millis(50);
/// For this long after a call without an answer, the bus is tried second.
const DISTRUST: Duration = Duration::from_secs(60);
/// Bytes of one read.
const READ: usize = 16 * 1024;

/// Why there is no scope.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    /// systemd could not be asked, or has not answered.
    #[error("{0}")]
    Unreachable(String),
    /// systemd has answered.
    #[error("{0}")]
    Refused(Failed),
}

/// Why one connection has not made the scope.
#[derive(Debug, thiserror::Error)]
enum Ended {
    #[error("it cannot be reached: {0}")]
    Io(#[from] io::Error),
    #[error("it closed the connection")]
    Closed,
    #[error("no answer")]
    Late,
    #[error(transparent)]
    Failed(#[from] Failed),
}

impl Ended {
    /// Whether the whole time has passed: without an answer, or while the peer took no connection or no bytes.
    fn is_silence(&self) -> bool {
        match self {
            Self::Late => true,
            Self::Io(error) => error.kind() == io::ErrorKind::WouldBlock,
            _ => false,
        }
    }
}

/// When the bus last gave no answer within a call's time, as one that hangs. For a while systemd's own socket is tried first
/// then, so that not every pod waits for the bus.
#[derive(Debug, Default)]
struct Silence(Mutex<Option<Instant>>);

static SILENCE: Silence = Silence(Mutex::new(None));

impl Silence {
    fn begin(&self, now: Instant) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(now);
    }

    fn lasts(&self, now: Instant) -> bool {
        let begun = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        begun.is_some_and(|begun| now.saturating_duration_since(begun) < DISTRUST)
    }
}

/// Makes a scope. `exists` tells whether its process is in it, which decides where an answer is lost.
pub(super) fn make(scope: &Scope, limit: Duration, exists: &dyn Fn() -> bool) -> Result<(), Error> {
    make_by(scope, limit, exists, [(Peer::Bus, BUS), (Peer::Systemd, PRIVATE)], &SILENCE)
}

fn make_by(
    scope: &Scope,
    limit: Duration,
    exists: &dyn Fn() -> bool,
    mut ways: [(Peer, &str); 2],
    silence: &Silence,
) -> Result<(), Error> {
    let begun = Instant::now();
    if silence.lasts(begun) {
        ways.reverse();
    }
    let mut asked = false;
    let tried = loop {
        let mut tried = Vec::new();
        for ((peer, path), until) in ways.into_iter().zip([begun + limit / 2, begun + limit]) {
            match attempt(peer, path, scope, until, exists) {
                Ok(()) => return Ok(()),
                Err(_) if exists() => return Ok(()),
                // An earlier connection has asked for it, and was lost.
                Err(Ended::Failed(failed)) if failed.is_existing() && asked => {
                    return wait_for(until, exists).ok_or(Error::Refused(failed));
                }
                Err(Ended::Failed(failed)) if failed.is_systemds() => return Err(Error::Refused(failed)),
                Err(ended) => {
                    if peer == Peer::Bus && ended.is_silence() {
                        silence.begin(Instant::now());
                    }
                    tried.push(format!("{path}: {ended}"));
                }
            }
            asked = true;
        }
        // systemd is not there while it executes itself again.
        if begun.elapsed() >= limit / 3 {
            break tried;
        }
        thread::sleep(PAUSE);
    };
    Err(Error::Unreachable(Tried(&tried, begun.elapsed()).to_string()))
}

/// What was tried, and for how long.
struct Tried<'a>(&'a [String], Duration);

impl fmt::Display for Tried<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (in {:.1?})", self.0.join("; "), self.1)
    }
}

fn wait_for(until: Instant, exists: &dyn Fn() -> bool) -> Option<()> {
    while !exists() {
        if Instant::now() >= until {
            return None;
        }
        thread::sleep(PAUSE);
    }
    Some(())
}

/// One connection.
fn attempt(
    peer: Peer,
    path: &str,
    scope: &Scope,
    until: Instant,
    exists: &dyn Fn() -> bool,
) -> Result<(), Ended> {
    let uid = rustix::process::geteuid().as_raw();
    let (mut exchange, first) = Exchange::new(peer, scope.clone(), uid);
    let mut stream = connect(path, until)?;
    stream.write_all(&first)?;
    let mut buffer = vec![0; READ];
    loop {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(Ended::Late);
        }
        stream.set_read_timeout(Some(left.min(QUIET)))?;
        let read = match stream.read(&mut buffer) {
            Ok(0) => return Err(Ended::Closed),
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                if exists() {
                    return Ok(());
                }
                continue;
            }
            Err(error) => return Err(error.into()),
        };
        match exchange.receive(buffer.get(..read).unwrap_or_default())? {
            Next::Read => {}
            Next::Write(bytes) => stream.write_all(&bytes)?,
            Next::Done => return Ok(()),
        }
    }
}

/// Connects; connecting and writing wait until `until` at most.
pub(super) fn connect(path: &str, until: Instant) -> io::Result<UnixStream> {
    let socket =
        rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    // 0 would be no limit.
    let left = until.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
    sockopt::set_socket_timeout(&socket, sockopt::Timeout::Send, Some(left))?;
    rustix::io::retry_on_intr(|| rustix::net::connect(&socket, &SocketAddrUnix::new(path)?))?;
    Ok(socket.into())
}

#[cfg(test)]
mod tests;
