//! The gRPC server on its unix socket.

use super::Backend;
use super::archives::Archives;
use super::connection::Connection;
use super::convert::Host;
use super::image::Images;
use super::runtime::Runtime;
use crate::lanes;
use crate::shutdown::{self, Shutdown};
use api::v1::images_server::ImagesServer;
use cri_api::v1::image_service_server::ImageServiceServer;
use cri_api::v1::runtime_service_server::RuntimeServiceServer;
use futures_util::Stream;
use std::fs;
use std::os::fd::AsFd as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::net::UnixListener;

/// Maximum size of a message in both directions: the limit of kubelet and crictl.
const MAX_MESSAGE: usize = 16 * 1024 * 1024;
/// Maximum number of concurrent calls of one connection. kubelet uses one connection, on which StopContainer and
/// PullImage may wait for minutes; with the library's default of 200 they could block List.
const MAX_CALLS: u32 = 2048;

/// Pause after a failed accept.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Why the socket could not be created, or serving ended.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The socket's path cannot be used.
    #[error("cannot {doing} {}", .path.display())]
    Socket {
        /// The failed step.
        doing: &'static str,
        /// The path.
        path: PathBuf,
        /// The error of the system call.
        source: std::io::Error,
    },
    /// Another process serves this socket.
    #[error(
        "{} is served by {}: configure another socket for this daemon, or stop the other one first",
        .path.display(),
        .pid.map_or_else(|| "a process of another PID namespace".to_owned(), |pid| format!("process {pid}"))
    )]
    Served {
        /// The socket.
        path: PathBuf,
        /// Pid of the listener in this PID namespace.
        pid: Option<u32>,
    },
    /// The path is taken by something else.
    #[error("{} exists and is not a socket; it is not replaced", .0.display())]
    NotASocket(PathBuf),
    /// An error of the gRPC library.
    #[error("the gRPC server failed")]
    Serve(#[from] tonic::transport::Error),
}

/// A listening socket; its path is removed on drop.
#[derive(Debug)]
pub(crate) struct Socket {
    listener: std::os::unix::net::UnixListener,
    path: SocketPath,
}

#[derive(Debug)]
struct SocketPath {
    path: PathBuf,
    /// Device and inode number of the bound socket.
    inode: (u64, u64),
}

impl Drop for SocketPath {
    /// Another daemon may have bound its socket there meanwhile.
    fn drop(&mut self) {
        match fs::symlink_metadata(&self.path) {
            Ok(found) if (found.dev(), found.ino()) == self.inode => {
                if let Err(error) = fs::remove_file(&self.path) {
                    tracing::warn!(path = %self.path.display(), %error, "cannot remove the socket");
                }
            }
            Ok(_) => {
                tracing::warn!(path = %self.path.display(), "another process has replaced the socket; it is not removed")
            }
            Err(error) => {
                tracing::debug!(path = %self.path.display(), %error, "the socket was already removed");
            }
        }
    }
}

/// The running process that listens on the socket at `path`. A child that hangs before execve can keep a
/// socket listening after its daemon has ended, so the kernel's listener pid is checked, not whether a
/// connection is queued.
fn listener(path: &Path) -> std::io::Result<Option<Listener>> {
    use rustix::io::Errno;
    use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};
    let socket = socket_with(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
        None,
    )?;
    match connect(&socket, &SocketAddrUnix::new(path)?) {
        Ok(()) => {}
        Err(Errno::CONNREFUSED | Errno::NOENT) => return Ok(None),
        // The queue is full: the listener is hung or overloaded. It is treated as in use.
        Err(error) => return Err(error.into()),
    }
    let pid = sys::peer::pid(socket.as_fd())?;
    let lives = pid.is_none_or(|pid| Path::new(&format!("/proc/{pid}")).exists());
    Ok(lives.then_some(Listener { pid }))
}

/// The running process that listens on a socket.
struct Listener {
    /// Its pid; `None` if it is in another PID namespace.
    pid: Option<u32>,
}

impl Socket {
    /// Binds `path` and replaces a socket that a killed daemon left. `_lock` proves that no other daemon uses the
    /// state folders; a daemon with other folders may still be configured with this socket. Blocking.
    pub(crate) fn bind(path: &Path, _lock: &state::lock::Lock) -> Result<Self, Error> {
        let at = |doing, source| Error::Socket { doing, path: path.to_owned(), source };
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).map_err(|error| at("create the folder of", error))?;
        }
        match fs::symlink_metadata(path) {
            Ok(found) if found.file_type().is_socket() => {
                if let Some(Listener { pid }) = listener(path).map_err(|error| at("connect to", error))? {
                    return Err(Error::Served { path: path.to_owned(), pid });
                }
                fs::remove_file(path).map_err(|error| at("remove the stale", error))?;
            }
            Ok(_) => return Err(Error::NotASocket(path.to_owned())),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(at("stat", error)),
        }
        let listener = listen(path).map_err(|error| at("bind", error.into()))?;
        let bound = fs::symlink_metadata(path).map_err(|error| at("stat", error))?;
        let path_guard = SocketPath { path: path.to_owned(), inode: (bound.dev(), bound.ino()) };
        // The umask takes the group's permission to write.
        fs::set_permissions(path, fs::Permissions::from_mode(0o660))
            .map_err(|error| at("set the mode of", error))?;
        listener.set_nonblocking(true).map_err(|error| at("make non-blocking", error))?;
        Ok(Self { listener, path: path_guard })
    }
}

/// Connections that wait to be accepted; the kernel allows `net.core.somaxconn` at most.
const BACKLOG: i32 = 1024;

/// A listening socket at this path, to which others can never connect, whatever the umask is: unix(7) gives the path the
/// mode of the socket.
fn listen(path: &Path) -> rustix::io::Result<std::os::unix::net::UnixListener> {
    use rustix::net;
    let (family, kind) = (net::AddressFamily::UNIX, net::SocketType::STREAM);
    let socket = net::socket_with(family, kind, net::SocketFlags::CLOEXEC, None)?;
    rustix::fs::fchmod(&socket, rustix::fs::Mode::from_raw_mode(0o660))?;
    net::bind(&socket, &net::SocketAddrUnix::new(path)?)?;
    net::listen(&socket, BACKLOG)?;
    Ok(socket.into())
}

/// Incoming connections. A failed accept (most likely no descriptor is free) is retried after a pause; the
/// library would retry at once, for ever.
fn connections(listener: UnixListener) -> impl Stream<Item = std::io::Result<Connection>> {
    futures_util::stream::unfold(listener, |listener| async move {
        loop {
            match listener.accept().await {
                Ok((stream, _)) => return Some((Ok(Connection::new(stream)), listener)),
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    })
}

/// Serves until `stopping`, then waits up to [`shutdown::DRAIN`] for running calls.
pub(crate) async fn serve(socket: Socket, backend: Backend, stopping: Shutdown) -> Result<(), Error> {
    let Socket { listener, path } = socket;
    let listener = UnixListener::from_std(listener).map_err(|source| Error::Socket {
        doing: "listen on",
        path: path.path.clone(),
        source,
    })?;
    // Without a free thread it is read here, as no client is served yet: it is read once, and a host that is not known
    // would refuse recursively read-only volumes, and say so in Status, until the next start.
    let apparmor = backend.apparmor.support();
    let detect = move || Host::detect(apparmor);
    let host = lanes::stats().run(detect).await.unwrap_or_else(|_| detect());
    host.warn();
    let node = backend.node.clone();
    let stop = stopping.clone();
    // Streams of events do not end by themselves, so they would delay the stop until the time limit.
    let stopped = async move {
        stop.wait().await;
        node.end_events();
    };
    let runtime = RuntimeServiceServer::new(Runtime::new(backend.clone(), host))
        .max_decoding_message_size(MAX_MESSAGE)
        .max_encoding_message_size(MAX_MESSAGE);
    let archives = ImagesServer::new(Archives(backend.clone()))
        .max_decoding_message_size(api::MAX_MESSAGE)
        .max_encoding_message_size(api::MAX_MESSAGE);
    let images = ImageServiceServer::new(Images(backend))
        .max_decoding_message_size(MAX_MESSAGE)
        .max_encoding_message_size(MAX_MESSAGE);
    let serving = tonic::transport::Server::builder()
        .max_concurrent_streams(MAX_CALLS)
        .add_service(runtime)
        .add_service(images)
        .add_service(archives)
        .serve_with_incoming_shutdown(connections(listener), stopped);
    match shutdown::bounded(serving, stopping, shutdown::DRAIN).await {
        Some(result) => result?,
        None => tracing::warn!(after = ?shutdown::DRAIN, "running calls were cancelled"),
    }
    drop(path);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lock(folder: &Path) -> state::lock::Lock {
        let layout = state::Layout::new(folder.join("root"), folder.join("run")).unwrap();
        state::lock::acquire(&layout).unwrap()
    }

    #[test]
    fn replaces_a_stale_socket_and_cleans_up() {
        let folder = tempfile::tempdir().unwrap();
        let (lock, path) = (lock(folder.path()), folder.path().join("deep/er/copepod.sock"));
        let first = Socket::bind(&path, &lock).unwrap();
        // A killed daemon leaves the path without a listener.
        std::mem::forget(first.path);
        drop(first.listener);
        assert!(std::os::unix::net::UnixStream::connect(&path).is_err());
        let second = Socket::bind(&path, &lock).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o660);
        assert!(std::os::unix::net::UnixStream::connect(&path).is_ok());
        drop(second);
        assert!(!path.exists());
    }

    #[test]
    fn a_served_socket_is_not_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let (lock, path) = (lock(folder.path()), folder.path().join("copepod.sock"));
        let first = Socket::bind(&path, &lock).unwrap();
        let refused = Socket::bind(&path, &lock).unwrap_err();
        assert!(
            matches!(refused, Error::Served { pid: Some(pid), .. } if pid == std::process::id()),
            "{refused}"
        );
        assert!(std::os::unix::net::UnixStream::connect(&path).is_ok());
        // A socket that has replaced ours is not removed with it.
        fs::remove_file(&path).unwrap();
        let other = std::os::unix::net::UnixListener::bind(&path).unwrap();
        drop(first);
        assert!(std::os::unix::net::UnixStream::connect(&path).is_ok());
        drop(other);
    }

    #[test]
    fn other_files_are_not_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let (lock, path) = (lock(folder.path()), folder.path().join("file"));
        fs::write(&path, "precious").unwrap();
        let error = Socket::bind(&path, &lock).unwrap_err();
        assert!(matches!(error, Error::NotASocket(_)), "{error}");
        assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
        // Symlinks are not followed either.
        let link = folder.path().join("link");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        assert!(matches!(Socket::bind(&link, &lock), Err(Error::NotASocket(_))));
    }
}
