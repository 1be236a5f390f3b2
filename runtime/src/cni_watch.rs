//! Watches the CNI configuration folder, which decides NetworkReady.
//!
//! The folder may be missing, and may be created, removed or replaced later. The watch is on the folder or
//! its nearest existing ancestor and is renewed after every event. A watch can be lost without an event (a
//! file system mounted over the folder), so the folder is also read every [`POLL_INTERVAL`].

use crate::lanes;
use futures_util::StreamExt as _;
use inotify::{EventStream, Inotify, WatchMask};
use std::future::Future;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Maximum time until a change without an event is noticed.
const POLL_INTERVAL: Duration = Duration::from_secs(10);
/// A file is written in several steps, so a reload waits until there was no event for this long.
const SETTLE: Duration = Duration::from_millis(100);
/// Maximum of that wait, for a folder that changes all the time. Also the pause after an error of the watch.
const MAX_SETTLE: Duration = Duration::from_secs(1);
/// Size of the buffer for events in bytes; one event has at most 272.
const BUFFER: usize = 4096;

/// Runs until dropped: calls `reload` after every change in `conf_dir`, and every [`POLL_INTERVAL`].
pub(crate) async fn follow<F: Future<Output = ()>>(conf_dir: PathBuf, reload: impl Fn() -> F) {
    loop {
        match Watch::new(conf_dir.clone()).await {
            Ok(mut watch) => {
                // Read after the watch is set, so that no change is missed.
                reload().await;
                match tokio::time::timeout(POLL_INTERVAL, watch.changed()).await {
                    Ok(Ok(())) => settle(&mut watch).await,
                    Ok(Err(error)) => {
                        tracing::warn!(dir = %conf_dir.display(), %error, "lost the watch on the CNI folder");
                        tokio::time::sleep(MAX_SETTLE).await;
                    }
                    Err(_) => {}
                }
            }
            // No inotify watch or instance is left (fs.inotify.*): polling works, only slower.
            Err(error) => {
                tracing::debug!(dir = %conf_dir.display(), %error, "cannot watch the CNI folder, polling it");
                reload().await;
                tokio::time::sleep(POLL_INTERVAL).await;
            }
        }
    }
}

async fn settle(watch: &mut Watch) {
    let quiet = async { while let Ok(Ok(())) = tokio::time::timeout(SETTLE, watch.changed()).await {} };
    // If changes do not stop, the wait ends anyway.
    drop(tokio::time::timeout(MAX_SETTLE, quiet).await);
}

/// Only the fact that something changed matters, not what.
struct Watch(EventStream<[u8; BUFFER]>);

impl Watch {
    /// Resolves the path on a lane, because the folder may be on a hung disk.
    async fn new(conf_dir: PathBuf) -> io::Result<Self> {
        let inotify = lanes::foreign().run_for("CNI folder", move || Self::set(&conf_dir)).await??;
        Ok(Self(inotify.into_event_stream([0; BUFFER])?))
    }

    fn set(conf_dir: &Path) -> io::Result<Inotify> {
        let inotify = Inotify::init()?;
        let changes = WatchMask::CREATE
            | WatchMask::CLOSE_WRITE
            | WatchMask::DELETE
            | WatchMask::MOVED_FROM
            | WatchMask::MOVED_TO
            | WatchMask::ATTRIB
            | WatchMask::DELETE_SELF
            | WatchMask::MOVE_SELF
            | WatchMask::ONLYDIR;
        let appearance = WatchMask::CREATE
            | WatchMask::MOVED_TO
            | WatchMask::DELETE_SELF
            | WatchMask::MOVE_SELF
            | WatchMask::ONLYDIR;
        let mut result = inotify.watches().add(conf_dir, changes);
        for ancestor in conf_dir.ancestors().skip(1) {
            if result.is_ok() {
                break;
            }
            result = inotify.watches().add(ancestor, appearance);
        }
        result?;
        Ok(inotify)
    }

    /// Resolves when something has changed.
    async fn changed(&mut self) -> io::Result<()> {
        match self.0.next().await {
            Some(event) => event.map(drop),
            None => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use tokio::sync::mpsc;

    /// Waits, with a limit, until the folder was reported as `expected`.
    async fn reported(seen: &mut mpsc::Receiver<bool>, expected: bool) {
        let wait = async { while seen.recv().await != Some(expected) {} };
        tokio::time::timeout(Duration::from_secs(5), wait).await.expect("not seen within 5 s");
    }

    #[tokio::test]
    async fn sees_a_folder_that_is_created_filled_removed_and_created_again() {
        let base = tempfile::tempdir().unwrap();
        let dir = Arc::new(base.path().join("cni/net.d"));
        let (sender, mut seen) = mpsc::channel(64);
        let task = tokio::spawn(follow(dir.to_path_buf(), {
            let dir = Arc::clone(&dir);
            move || {
                let (sender, here) = (sender.clone(), dir.join("10-x.conflist").exists());
                async move { sender.send(here).await.unwrap() }
            }
        }));
        reported(&mut seen, false).await;
        for _ in 0..2 {
            std::fs::create_dir_all(dir.as_path()).unwrap();
            reported(&mut seen, false).await;
            std::fs::write(dir.join("10-x.conflist"), "{}").unwrap();
            reported(&mut seen, true).await;
            sys::tree::remove_path(&base.path().join("cni")).unwrap();
            reported(&mut seen, false).await;
        }
        task.abort();
    }
}
