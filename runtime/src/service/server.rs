//! The gRPC server on its unix socket.

use super::Backend;
use super::convert::Host;
use super::image::Images;
use super::runtime::Runtime;
use crate::lanes;
use crate::shutdown::{self, Shutdown};
use cri_api::v1::image_service_server::ImageServiceServer;
use cri_api::v1::runtime_service_server::RuntimeServiceServer;
use futures_util::Stream;
use std::fs;
use std::os::fd::AsFd as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::net::{UnixListener, UnixStream};

/// Largest message either way: what kubelet and crictl accept.
const MAX_MESSAGE: usize = 16 * 1024 * 1024;
/// Calls of one connection at once. kubelet uses one connection, on which StopContainer and PullImage may
/// wait for minutes; the library's 200 would let them hold up List.
const MAX_CALLS: u32 = 2048;

/// Before an accept that failed is tried again.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Why there is no socket, or serving ended.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The socket's place.
    #[error("cannot {doing} {}", .path.display())]
    Socket {
        /// The failed step.
        doing: &'static str,
        /// Which path.
        path: PathBuf,
        /// The kernel's word.
        source: std::io::Error,
    },
    /// Somebody serves there already.
    #[error(
        "{} is served by {}: give this daemon a socket of its own, or end that one first",
        .path.display(),
        .pid.map_or_else(|| "a process of another PID namespace".to_owned(), |pid| format!("process {pid}"))
    )]
    Served {
        /// The socket.
        path: PathBuf,
        /// Who listens, as this PID namespace numbers it.
        pid: Option<u32>,
    },
    /// Something else is where the socket belongs.
    #[error("{} exists and is no socket: it is left alone", .0.display())]
    NotASocket(PathBuf),
    /// The server's own.
    #[error("the gRPC server failed")]
    Serve(#[from] tonic::transport::Error),
}

/// A listening socket; its path is removed when it is dropped.
#[derive(Debug)]
pub(crate) struct Socket {
    listener: std::os::unix::net::UnixListener,
    path: SocketPath,
}

#[derive(Debug)]
struct SocketPath {
    path: PathBuf,
    /// Device and number of the inode that was bound.
    inode: (u64, u64),
}

impl Drop for SocketPath {
    /// Another daemon's socket may lie there by now.
    fn drop(&mut self) {
        match fs::symlink_metadata(&self.path) {
            Ok(found) if (found.dev(), found.ino()) == self.inode => {
                if let Err(error) = fs::remove_file(&self.path) {
                    tracing::warn!(path = %self.path.display(), %error, "cannot remove the socket");
                }
            }
            Ok(_) => {
                tracing::warn!(path = %self.path.display(), "the socket was replaced by another: left alone")
            }
            Err(error) => {
                tracing::debug!(path = %self.path.display(), %error, "the socket was gone already");
            }
        }
    }
}

/// The living process that listens on the socket at `path`. A listening socket can outlive its daemon in a child
/// that hangs before execve: whom the kernel names as listener decides, not whether a connection is queued.
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
        // Its queue is full: nobody takes connections, or too many come. Not ours to decide.
        Err(error) => return Err(error.into()),
    }
    let pid = sys::peer::pid(socket.as_fd())?;
    let lives = pid.is_none_or(|pid| Path::new(&format!("/proc/{pid}")).exists());
    Ok(lives.then_some(Listener { pid }))
}

/// A process that lives.
struct Listener {
    pid: Option<u32>,
}

impl Socket {
    /// Binds `path`, over what a killed daemon has left there. `_proof` shows that no other daemon has this
    /// state; one with another may have been given the same socket. Blocking.
    pub(crate) fn bind(path: &Path, _proof: &state::lock::Lock) -> Result<Self, Error> {
        let at = |doing, source| Error::Socket { doing, path: path.to_owned(), source };
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).map_err(|error| at("make the folder of", error))?;
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
            Err(error) => return Err(at("look at", error)),
        }
        let listener = std::os::unix::net::UnixListener::bind(path).map_err(|error| at("bind", error))?;
        let bound = fs::symlink_metadata(path).map_err(|error| at("look at", error))?;
        let path_guard = SocketPath { path: path.to_owned(), inode: (bound.dev(), bound.ino()) };
        // Until here nobody but root could connect: that takes write permission, which umask took away.
        fs::set_permissions(path, fs::Permissions::from_mode(0o660))
            .map_err(|error| at("set the mode of", error))?;
        listener.set_nonblocking(true).map_err(|error| at("set up", error))?;
        Ok(Self { listener, path: path_guard })
    }
}

/// Connections as they come. An accept that fails (out of descriptors, most likely) is tried again after a
/// pause; the library would try again at once and for ever.
fn connections(listener: UnixListener) -> impl Stream<Item = std::io::Result<UnixStream>> {
    futures_util::stream::unfold(listener, |listener| async move {
        loop {
            match listener.accept().await {
                Ok((stream, _)) => return Some((Ok(stream), listener)),
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    })
}

/// Serves until `stopping`, then lets the calls in flight end within [`shutdown::DRAIN`].
pub(crate) async fn serve(socket: Socket, backend: Backend, stopping: Shutdown) -> Result<(), Error> {
    let Socket { listener, path } = socket;
    let listener = UnixListener::from_std(listener).map_err(|source| Error::Socket {
        doing: "listen on",
        path: path.path.clone(),
        source,
    })?;
    let host = lanes::stats().run(Host::detect).await.unwrap_or_default();
    let runtime = RuntimeServiceServer::new(Runtime::new(backend.clone(), host))
        .max_decoding_message_size(MAX_MESSAGE)
        .max_encoding_message_size(MAX_MESSAGE);
    let images = ImageServiceServer::new(Images(backend))
        .max_decoding_message_size(MAX_MESSAGE)
        .max_encoding_message_size(MAX_MESSAGE);
    let serving = tonic::transport::Server::builder()
        .max_concurrent_streams(MAX_CALLS)
        .add_service(runtime)
        .add_service(images)
        .serve_with_incoming_shutdown(connections(listener), stopping.clone().wait());
    match shutdown::bounded(serving, stopping, shutdown::DRAIN).await {
        Some(result) => result?,
        None => tracing::warn!(after = ?shutdown::DRAIN, "calls in flight were cut off"),
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
    fn binds_over_what_a_killed_daemon_left_and_cleans_up() {
        let folder = tempfile::tempdir().unwrap();
        let (lock, path) = (lock(folder.path()), folder.path().join("deep/er/copepod.sock"));
        let first = Socket::bind(&path, &lock).unwrap();
        // What kill -9 leaves: the path without a listener.
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
    fn a_socket_that_is_served_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let (lock, path) = (lock(folder.path()), folder.path().join("copepod.sock"));
        let first = Socket::bind(&path, &lock).unwrap();
        let refused = Socket::bind(&path, &lock).unwrap_err();
        assert!(
            matches!(refused, Error::Served { pid: Some(pid), .. } if pid == std::process::id()),
            "{refused}"
        );
        assert!(std::os::unix::net::UnixStream::connect(&path).is_ok());
        // One that has taken its place is not removed with it.
        fs::remove_file(&path).unwrap();
        let other = std::os::unix::net::UnixListener::bind(&path).unwrap();
        drop(first);
        assert!(std::os::unix::net::UnixStream::connect(&path).is_ok());
        drop(other);
    }

    #[test]
    fn leaves_other_files_alone() {
        let folder = tempfile::tempdir().unwrap();
        let (lock, path) = (lock(folder.path()), folder.path().join("file"));
        fs::write(&path, "precious").unwrap();
        let error = Socket::bind(&path, &lock).unwrap_err();
        assert!(matches!(error, Error::NotASocket(_)), "{error}");
        assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
        // Nor is a link followed.
        let link = folder.path().join("link");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        assert!(matches!(Socket::bind(&link, &lock), Err(Error::NotASocket(_))));
    }
}
