//! Connects to a pod's shim by its socket. If the socket does not respond, the shim's process decides.
//!
//! A shim that does not respond is silent, not dead: it may be stopped, or hang on the disk of its logs. It is dead when
//! its process has ended.

use super::client::{self, ClientError, Connection};
use super::{spawn, watched};
use crate::cgroups::shim_path;
use crate::error::Error;
use crate::lanes;
use model::PodId;
use state::Layout;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::time::Duration;
use tokio::io::Interest;

/// The result of connecting.
#[derive(Debug)]
pub(crate) enum Dialled {
    /// It sent its hello.
    Connected(Box<Connection>),
    /// Its process does not exist.
    Gone,
    /// Its process exists, or may exist. Why connecting failed, for users.
    Silent(String),
}

/// Connects to the shim of a pod and receives its hello, within `limit`. `pid` is the shim's in the pod's record, 0 if it
/// is not known.
pub(crate) async fn dial(layout: &Layout, pod: &PodId, pid: u32, limit: Duration) -> Dialled {
    let (socket, id) = (layout.shim_socket(pod), pod.clone());
    let found = lanes::run(lanes::kill(), pod.as_str(), "find the shim", move || {
        let process =
            process(&id, pid).map_err(|error| Error::of(format!("look for shim process {pid}"), error))?;
        let exists = socket
            .try_exists()
            .map_err(|error| Error::of(format!("look for {}", socket.display()), error))?;
        Ok((process, if exists { Some(spawn::short_path(&socket)?) } else { None }))
    });
    let (process, socket) = match found.await {
        Ok(found) => found,
        // An error of the daemon itself (no descriptors, no memory) says nothing about the shim.
        Err(error) => return Dialled::Silent(error.text()),
    };
    let lives = process.is_some();
    let without_socket = || match lives {
        true => Dialled::Silent(format!("nothing listens on its socket, though process {pid} lives")),
        false => Dialled::Gone,
    };
    let Some(socket) = socket else { return without_socket() };
    // If the process ends meanwhile, the time limit is not waited for.
    let ended = async {
        match process.map(|process| watched(process, Interest::READABLE)) {
            Some(Ok(process)) => drop(process.readable().await),
            Some(Err(_)) | None => std::future::pending().await,
        }
    };
    tokio::select! {
        dialled = client::dial(&socket.path, pod, limit) => match dialled {
            Ok(connection) => Dialled::Connected(Box::new(connection)),
            // Refused: no process listens on the socket any more.
            Err(ClientError::Socket { source, .. })
                if matches!(source.kind(), io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound) =>
            {
                without_socket()
            }
            Err(error) => Dialled::Silent(error.to_string()),
        },
        () = ended => Dialled::Gone,
    }
}

/// The process of a shim, unless it has ended. The pid may have been reused, so its process must be in the shim's
/// own cgroup. Blocking.
fn process(pod: &PodId, pid: u32) -> io::Result<Option<OwnedFd>> {
    if pid == 0 {
        return Ok(None);
    }
    let Some(process) = sys::pidfd::find(pid)? else { return Ok(None) };
    let Some(cgroups) = sys::proc::unless_gone(sys::proc::cgroups(pid))? else { return Ok(None) };
    if sys::pidfd::has_ended(process.as_fd())? {
        return Ok(None);
    }
    let own = shim_path(pod);
    let cgroups = String::from_utf8_lossy(&cgroups);
    let is_own = sys::proc::cgroup_paths(&cgroups).any(|path| path.ends_with(&own));
    Ok(is_own.then_some(process))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_silent_shim_is_not_dead() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::new(dir.path(), dir.path()).unwrap();
        let pod = PodId::from_random([3; 32]);
        let short = Duration::from_millis(50);
        assert!(matches!(dial(&layout, &pod, 0, short).await, Dialled::Gone));
        std::fs::create_dir_all(layout.shim_dir(&pod)).unwrap();
        let listener = std::os::unix::net::UnixListener::bind(
            &spawn::short_path(&layout.shim_socket(&pod)).unwrap().path,
        )
        .unwrap();
        // The socket accepts connections, but no hello arrives.
        assert!(matches!(dial(&layout, &pod, 0, short).await, Dialled::Silent(_)));
        drop(listener);
        assert!(matches!(dial(&layout, &pod, 0, short).await, Dialled::Gone));
    }

    /// Such as having no descriptors left. Here the path of the socket leads through a file.
    #[tokio::test]
    async fn an_error_of_the_daemon_itself_does_not_mean_that_the_shim_is_dead() {
        let dir = tempfile::tempdir().unwrap();
        let run = dir.path().join("run");
        std::fs::write(&run, "").unwrap();
        let layout = Layout::new(dir.path(), run).unwrap();
        let dialled = dial(&layout, &PodId::from_random([3; 32]), 0, Duration::from_secs(9)).await;
        assert!(matches!(dialled, Dialled::Silent(_)), "{dialled:?}");
    }

    #[test]
    fn a_reused_pid_is_not_a_shim() {
        let pod = PodId::from_random([3; 32]);
        assert!(process(&pod, 0).unwrap().is_none());
        // This process lives, but is in no shim's cgroup.
        assert!(process(&pod, std::process::id()).unwrap().is_none());
        // More than the kernel's largest pid.
        assert!(process(&pod, 4_194_305).unwrap().is_none());
    }
}
