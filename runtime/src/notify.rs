//! Messages to the service manager, by the protocol of sd_notify(3): datagrams to the socket that `NOTIFY_SOCKET` names.
//! Without the variable, messages go nowhere.
//!
//! A service manager that does not read its socket (it is executing itself again, or hangs) does not hold up the daemon:
//! a message that it does not take in time is dropped, with a warning.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::UnixDatagram;
use tokio::time::timeout;

/// Time limit for one message.
const SEND_LIMIT: Duration = Duration::from_secs(5);
/// Longest line of status in bytes: systemd reads messages of up to a page.
const MAX_STATUS: usize = 1000;

/// The service manager that started the daemon, if there is one. Clones share its address.
#[derive(Debug, Clone, Default)]
pub(crate) struct ServiceManager(Option<Arc<SocketAddr>>);

impl ServiceManager {
    /// The one that the environment names. An address of another kind (systemd in a virtual machine's host uses vsock) is
    /// refused with a warning: the daemon runs without a service manager then.
    pub(crate) fn from_environment() -> Self {
        Self::of(std::env::var_os("NOTIFY_SOCKET"))
    }

    pub(crate) fn of(socket: Option<OsString>) -> Self {
        let Some(socket) = socket.filter(|socket| !socket.is_empty()) else { return Self::default() };
        match address(&socket) {
            Ok(address) => Self(Some(Arc::new(address))),
            Err(error) => {
                tracing::warn!(?socket, %error, "cannot use NOTIFY_SOCKET: the service manager gets no messages");
                Self::default()
            }
        }
    }

    /// Clients can connect. Also ends [`Self::reloading`].
    pub(crate) async fn ready(&self, status: &str) {
        self.send(&format!("READY=1\nSTATUS={}", line(status))).await;
    }

    /// The configuration is being read again. [`Self::ready`] must follow, whatever the result.
    pub(crate) async fn reloading(&self) {
        // A unit of Type=notify-reload requires the time, by which systemd knows which of its requests is meant.
        let now = sys::clock::monotonic_us();
        self.send(&format!("RELOADING=1\nMONOTONIC_USEC={now}")).await;
    }

    /// The daemon is stopping.
    pub(crate) async fn stopping(&self) {
        self.send("STOPPING=1\nSTATUS=Stopping; pods keep running").await;
    }

    /// One line for people, shown by `systemctl status`.
    pub(crate) async fn status(&self, status: &str) {
        self.send(&format!("STATUS={}", line(status))).await;
    }

    /// The daemon works: the service manager need not restart it before its watchdog's next period is over.
    pub(crate) async fn alive(&self) {
        self.send("WATCHDOG=1").await;
    }

    async fn send(&self, message: &str) {
        let Some(address) = &self.0 else { return };
        let sent = match timeout(SEND_LIMIT, deliver(address, message.as_bytes())).await {
            Ok(sent) => sent,
            Err(_) => Err(io::ErrorKind::TimedOut.into()),
        };
        if let Err(error) = sent {
            tracing::warn!(message, %error, "cannot send a message to the service manager");
        }
    }
}

/// A new socket for each message, because the service manager may have replaced its own.
async fn deliver(address: &SocketAddr, message: &[u8]) -> io::Result<()> {
    let socket = std::os::unix::net::UnixDatagram::unbound()?;
    socket.set_nonblocking(true)?;
    socket.connect_addr(address)?;
    // A datagram is sent whole or not at all.
    UnixDatagram::from_std(socket)?.send(message).await.map(|_| ())
}

/// A path, or a name of the abstract namespace, which is written with `@` (sd_notify(3)).
fn address(socket: &OsStr) -> io::Result<SocketAddr> {
    match socket.as_bytes() {
        [b'/', ..] => SocketAddr::from_pathname(socket),
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name),
        _ => Err(io::Error::new(io::ErrorKind::Unsupported, "neither a path nor an abstract name")),
    }
}

/// The text as one line of bounded length: a line break would start another assignment.
fn line(text: &str) -> String {
    let mut line: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    line.truncate(line.floor_char_boundary(MAX_STATUS));
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A service manager's socket with this name, and the daemon's view of it.
    fn socket(name: OsString) -> (std::os::unix::net::UnixDatagram, ServiceManager) {
        let bound = std::os::unix::net::UnixDatagram::bind_addr(&address(&name).unwrap()).unwrap();
        bound.set_nonblocking(true).unwrap();
        (bound, ServiceManager::of(Some(name)))
    }

    fn received(socket: &std::os::unix::net::UnixDatagram) -> Option<String> {
        let mut buffer = [0; 4096];
        let length = socket.recv(&mut buffer).ok()?;
        Some(String::from_utf8_lossy(&buffer[..length]).into_owned())
    }

    #[tokio::test]
    async fn each_message_is_one_datagram() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notify").into_os_string();
        let named = format!("@copepod-test-{}", std::process::id());
        for name in [path, named.into()] {
            let (socket, manager) = socket(name);
            manager.ready("serving\n/run/x\0WATCHDOG=1").await;
            assert_eq!(received(&socket).unwrap(), "READY=1\nSTATUS=serving /run/x WATCHDOG=1");
            manager.alive().await;
            assert_eq!(received(&socket).unwrap(), "WATCHDOG=1");
            manager.reloading().await;
            let reloading = received(&socket).unwrap();
            let time = reloading.strip_prefix("RELOADING=1\nMONOTONIC_USEC=").unwrap();
            assert!(time.parse::<u64>().unwrap() > 0, "{reloading}");
            manager.stopping().await;
            assert!(received(&socket).unwrap().starts_with("STOPPING=1\nSTATUS="));
            manager.status(&"ä".repeat(MAX_STATUS)).await;
            let status = received(&socket).unwrap();
            assert!(status.len() <= MAX_STATUS + 7 && status.ends_with('ä'), "{status}");
            assert_eq!(received(&socket), None);
        }
    }

    #[tokio::test]
    async fn without_a_usable_address_messages_go_nowhere() {
        for name in ["", "vsock:2:1234", "relative"] {
            assert!(ServiceManager::of(Some(name.into())).0.is_none(), "{name}");
        }
        ServiceManager::default().ready("").await;
        // Nobody listens.
        ServiceManager::of(Some("/nonexistent/notify".into())).ready("").await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_service_manager_that_does_not_read_is_given_up() {
        let name = format!("@copepod-test-full-{}", std::process::id());
        let (socket, manager) = socket(name.into());
        // More than the kernel queues (net.unix.max_dgram_qlen); the paused clock skips the limit.
        let limit = std::fs::read_to_string("/proc/sys/net/unix/max_dgram_qlen").unwrap();
        let sent = limit.trim().parse::<usize>().unwrap() + 3;
        for _ in 0..sent {
            manager.alive().await;
        }
        let queued = std::iter::from_fn(|| received(&socket)).count();
        assert!(queued > 0 && queued < sent, "{queued} of {sent}");
    }
}
