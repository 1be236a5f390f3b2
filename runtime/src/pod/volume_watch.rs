//! Watches the worker of a create that takes long. A volume's file system can hang, and only the worker accesses it. Before
//! each volume the worker gives itself a name, `v:` and the end of the volume's path (`worker/stage.rs` of the shim), which
//! is read here without waiting for the worker, and without the shim, which may hang as well. `ps` shows it too.

use crate::lanes;
use progress::Entered;
use std::pin::pin;
use std::time::Duration;
use tokio::time::{Instant, timeout};

/// How long a create must have taken before its worker is looked at.
const FIRST: Duration = Duration::from_secs(1);
/// Pause between two looks.
const AGAIN: Duration = Duration::from_secs(2);
/// Number of bytes of a volume's path in a worker's name: the kernel keeps 15 bytes.
const END: usize = 13;
/// What an operator can do about a volume that takes too long.
const ADVICE: &str = "the volume's file system may hang: look for its mount, its server and the kernel's log";

/// A volume of the container that is created.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Volume {
    /// Where it is mounted, as the worker got it.
    pub(super) target: String,
    /// Its path on the host.
    pub(super) source: String,
}

/// The volume in which the worker was when it was looked at last, and for how long.
#[derive(Debug)]
pub(super) struct Hanging {
    volume: Volume,
    since: Instant,
}

impl Hanging {
    #[cfg(test)]
    pub(super) fn since_now(volume: Volume) -> Self {
        Self { volume, since: Instant::now() }
    }

    /// For the error of a create that has taken too long.
    pub(super) fn text(&self) -> String {
        let Volume { target, source } = &self.volume;
        format!(
            "volume {target} from {source} was not mounted within {:.1?} ({ADVICE})",
            self.since.elapsed()
        )
    }
}

/// Waits for `request`, the create request to the shim with this pid. If that takes long, the volume in which the worker is
/// becomes a step of the current operation.
pub(super) async fn watched<T>(
    shim: u32,
    volumes: &[Volume],
    request: impl Future<Output = T>,
) -> (T, Option<Hanging>) {
    let mut request = pin!(request);
    let (mut hanging, mut _step): (Option<Hanging>, Option<Entered>) = (None, None);
    let begun = Instant::now();
    let mut pause = FIRST;
    loop {
        if let Ok(done) = timeout(pause, request.as_mut()).await {
            return (done, hanging);
        }
        pause = AGAIN;
        // A look that fails says nothing about the create.
        let names = lanes::stats().run(move || sys::proc::names_of_children(shim).unwrap_or_default());
        let names = names.await.unwrap_or_default();
        let found = volumes.iter().find(|volume| names.iter().any(|name| is_at(name, &volume.target)));
        if found == hanging.as_ref().map(|hanging| &hanging.volume) {
            continue;
        }
        // After a look that saw no volume, and at the first one, the time counts from the begin of the create: an upper bound.
        let since = if hanging.is_none() { begun } else { Instant::now() };
        _step = found.map(|volume| {
            progress::enter(format!("volume {} from {}", volume.target, volume.source), ADVICE)
        });
        hanging = found.map(|volume| Hanging { volume: volume.clone(), since });
    }
}

/// Whether a worker with this name is in the volume with this target.
fn is_at(name: &[u8], target: &str) -> bool {
    let Some(end) = name.strip_prefix(b"v:") else { return false };
    match target.len() <= END {
        true => end == target.as_bytes(),
        false => end.len() == END && target.as_bytes().ends_with(end),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_volume_is_found_by_the_end_of_its_path() {
        assert!(is_at(b"v:/data", "/data"));
        assert!(is_at(b"v:rviceaccount/", "/var/run/secrets/kubernetes.io/serviceaccount/"));
        assert!(!is_at(b"v:/data", "/more/data"), "a short path is complete");
        assert!(!is_at(b"v:data", "/data") && !is_at(b"copepod-init", "/data") && !is_at(b"", "/data"));
    }

    #[tokio::test]
    async fn a_create_that_does_not_take_long_is_not_looked_at() {
        let (done, hanging) = watched(std::process::id(), &[], async { 7 }).await;
        assert!(done == 7 && hanging.is_none());
    }

    /// This process stands for the shim, and a shell with a name of its own for the worker.
    #[tokio::test]
    async fn the_volume_of_a_slow_create_is_named() {
        let path = "/var/lib/a-volume";
        let line = "printf v:%s \"${0#????}\" > /proc/$$/comm; read line";
        let mut worker = std::process::Command::new("/bin/sh")
            .args(["-c", line, path])
            .stdin(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let volumes = [
            Volume { target: "/other".to_owned(), source: "/mnt/other".to_owned() },
            Volume { target: path.to_owned(), source: "/mnt/nfs".to_owned() },
        ];
        let place = progress::Progress::default();
        let seen = place.clone();
        // Children are listed by the thread that has started them; the test's threads are one.
        let request = async {
            loop {
                if let Some(place) = seen.place() {
                    return place;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        let (place, hanging) = place.scope(watched(std::process::id(), &volumes, request)).await;
        assert_eq!(place.steps, "volume /var/lib/a-volume from /mnt/nfs");
        assert!(
            hanging.unwrap().text().starts_with("volume /var/lib/a-volume from /mnt/nfs was not mounted")
        );
        drop(worker.stdin.take());
        worker.wait().unwrap();
    }
}
