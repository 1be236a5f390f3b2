//! Limits the number of layers that are transferred at once, per registry and on the whole node, and that of archives.
//!
//! A transfer uses two threads and a decoder's memory from its first byte to its last, so the number of transfers is
//! limited. A stalled registry can only use up its own share. If a transfer waits because all places are taken, the
//! transfer in one of these places that has made no progress for longest is cancelled. If none waits, a slow transfer
//! may take as long as it needs, as long as it makes some progress within a longer limit: kubelet may pull one image at a
//! time, and have others wait.
//!
//! A transfer that has to wait for memory can give its place back and go on without one ([`Place`]). The number of these is
//! limited too. Who has memory that others wait for is cancelled in the same way, with or without a place.

use crate::error::{Error, Result};
use crate::unpack::Sharer;
use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, sleep_until, timeout};

/// A transfer makes progress when this many bytes have arrived.
const PROGRESS_BYTES: u64 = 64 << 10;
/// Maximum number of transfers that go on without a place: they use threads and memory beside the others.
const MAX_WITHOUT_PLACE: usize = 16;
/// Maximum number of these from one registry.
const MAX_WITHOUT_PLACE_OF_ONE: usize = 4;

/// The running transfers of a node.
#[derive(Debug)]
pub(crate) struct Transfers {
    per_registry: usize,
    /// The places of the whole node.
    all: Arc<Semaphore>,
    /// The places of each registry that has transfers.
    registries: Mutex<HashMap<String, Weak<Semaphore>>>,
    running: Mutex<Vec<Arc<Running>>>,
    /// A transfer that has made no progress for this long is cancelled if another one waits.
    idle_limit: Duration,
    /// A transfer that has made no progress for this long is cancelled in any case.
    stall_limit: Duration,
}

/// A running transfer of one layer.
#[derive(Debug)]
struct Running {
    registry: String,
    progress: Mutex<Progress>,
    cancel: Notify,
    /// Its places at the registry and on the node; `None` once they were given back.
    permits: Mutex<Option<[OwnedSemaphorePermit; 2]>>,
    /// Whether it has memory that others may wait for.
    has_memory: AtomicBool,
}

impl Running {
    fn has_place(&self) -> bool {
        lock(&self.permits).is_some()
    }
}

#[derive(Debug)]
struct Progress {
    /// Start of the idle time: when the transfer last made progress, plus the time that it has spent since then on
    /// anything but waiting for the network, such as writing to disk.
    at: Instant,
    /// Bytes received since then.
    bytes: u64,
    /// Whether the transfer waits for the network now.
    waits: bool,
    /// Whether it was cancelled. It may take a while to end.
    is_cancelled: bool,
    /// When it last stopped to wait for the network.
    stopped_waiting: Instant,
}

/// Locks. Poison is ignored: no code panics while it leaves one of the values half-changed.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Transfers {
    /// Allows `per_registry` transfers per registry and twice as many in all.
    pub(crate) fn new(per_registry: usize, idle_limit: Duration, stall_limit: Duration) -> Self {
        Self {
            per_registry,
            all: Arc::new(Semaphore::new(per_registry * 2)),
            registries: Mutex::default(),
            running: Mutex::default(),
            idle_limit,
            stall_limit,
        }
    }

    /// Waits for a place for a transfer from `registry`.
    pub(crate) async fn enter(self: &Arc<Self>, registry: &str) -> Result<Transfer> {
        let per_registry = self.registry(registry);
        // The registry's place first, so that a transfer that waits for it takes no place of the node.
        let of_registry = self.permit(&per_registry, |running| running.registry == registry).await?;
        let of_node = self.permit(&self.all, |_| true).await?;
        let now = Instant::now();
        let running = Arc::new(Running {
            registry: registry.to_owned(),
            progress: Mutex::new(Progress {
                at: now,
                bytes: 0,
                waits: false,
                is_cancelled: false,
                stopped_waiting: now,
            }),
            cancel: Notify::new(),
            permits: Mutex::new(Some([of_registry, of_node])),
            has_memory: AtomicBool::new(false),
        });
        lock(&self.running).push(running.clone());
        Ok(Transfer { place: Place { transfers: self.clone(), running } })
    }

    /// The places of a registry.
    fn registry(&self, name: &str) -> Arc<Semaphore> {
        let mut registries = lock(&self.registries);
        registries.retain(|_, semaphore| semaphore.strong_count() > 0);
        if let Some(semaphore) = registries.get(name).and_then(Weak::upgrade) {
            return semaphore;
        }
        let semaphore = Arc::new(Semaphore::new(self.per_registry));
        registries.insert(name.to_owned(), Arc::downgrade(&semaphore));
        semaphore
    }

    /// Waits for a place. Meanwhile idle transfers that have one are cancelled: those with a place for which `has_place` is
    /// true.
    async fn permit(
        &self,
        semaphore: &Arc<Semaphore>,
        has_place: impl Fn(&Running) -> bool,
    ) -> Result<OwnedSemaphorePermit> {
        // One future for the whole wait, so that waiters are served in order.
        let mut permit = std::pin::pin!(semaphore.clone().acquire_owned());
        loop {
            if let Ok(permit) = timeout(self.idle_limit / 10, &mut permit).await {
                return permit.map_err(|_| Error::Cancelled);
            }
            self.cancel_idlest(|running| running.has_place() && has_place(running));
        }
    }

    /// Of the transfers for which `has_it` is true, cancels the one that has been idle for longest, if that has reached the
    /// limit.
    fn cancel_idlest(&self, has_it: impl Fn(&Running) -> bool) {
        let running = lock(&self.running);
        let idle = |one: &Running| {
            let progress = lock(&one.progress);
            let may = progress.waits && !progress.is_cancelled;
            may.then(|| progress.at.elapsed()).filter(|idle| *idle >= self.idle_limit)
        };
        let all = running.iter().filter(|one| has_it(one));
        let longest = all.filter_map(|one| Some((idle(one)?, one))).max_by_key(|(idle, _)| *idle);
        if let Some((_, one)) = longest {
            lock(&one.progress).is_cancelled = true;
            one.cancel.notify_one();
        }
    }
}

/// The place of a transfer, which can be given back before the transfer ends.
#[derive(Debug, Clone)]
pub(crate) struct Place {
    transfers: Arc<Transfers>,
    running: Arc<Running>,
}

/// A transfer that has left its place is not cancelled because others wait for a place: they would gain nothing. It is
/// cancelled if others wait for its memory, and at the longer limit (`stall_limit`).
impl Sharer for Place {
    fn leave_place(&self) {
        let running = lock(&self.transfers.running);
        let without = || running.iter().filter(|one| !one.has_place());
        let of_registry = without().filter(|one| one.registry == self.running.registry).count();
        if of_registry < MAX_WITHOUT_PLACE_OF_ONE && without().count() < MAX_WITHOUT_PLACE {
            drop(lock(&self.running.permits).take());
        }
    }

    fn set_has_memory(&self, has: bool) {
        self.running.has_memory.store(has, Ordering::Relaxed);
    }

    fn cancel_idlest_with_memory(&self) {
        self.transfers.cancel_idlest(|running| running.has_memory.load(Ordering::Relaxed));
    }
}

/// A running transfer. Its place is given back on drop at the latest.
#[derive(Debug)]
pub(crate) struct Transfer {
    place: Place,
}

impl Transfer {
    /// Its place.
    pub(crate) fn place(&self) -> &Place {
        &self.place
    }

    /// Waits for `next`, the next bytes from the network; `length` tells their number.
    ///
    /// # Errors
    /// Its own, and [`Error::Unavailable`] if the transfer has been idle for too long.
    pub(crate) async fn next<T>(
        &self,
        next: impl Future<Output = Result<T>>,
        length: impl FnOnce(&T) -> usize,
    ) -> Result<T> {
        let length = |result: &Result<T>| result.as_ref().map_or(0, length);
        self.watch(next, length).await.unwrap_or_else(|stalled| {
            let reference = self.place.running.registry.clone();
            Err(Error::Unavailable { reference, detail: stalled.to_string() })
        })
    }

    /// Waits until the other end has sent or taken the next bytes; `length` tells their number. Fails if the transfer has
    /// been idle for too long.
    pub(crate) async fn watch<T>(
        &self,
        next: impl Future<Output = T>,
        length: impl FnOnce(&T) -> usize,
    ) -> Result<T, Stalled> {
        let Place { transfers, running } = &self.place;
        let stalled_at = {
            let mut progress = lock(&running.progress);
            progress.waits = true;
            let not_waited = progress.stopped_waiting.elapsed();
            progress.at += not_waited;
            progress.at + transfers.stall_limit
        };
        let result = tokio::select! {
            biased;
            result = next => result,
            () = running.cancel.notified() => {
                return Err(Stalled { limit: transfers.idle_limit, others_wait: true });
            }
            () = sleep_until(stalled_at) => {
                return Err(Stalled { limit: transfers.stall_limit, others_wait: false });
            }
        };
        let mut progress = lock(&running.progress);
        (progress.waits, progress.stopped_waiting) = (false, Instant::now());
        progress.bytes += length(&result) as u64;
        if progress.bytes >= PROGRESS_BYTES {
            (progress.at, progress.bytes) = (Instant::now(), 0);
        }
        drop(progress);
        Ok(result)
    }
}

/// A transfer was given up, because it made no progress.
#[derive(Debug)]
pub(crate) struct Stalled {
    /// For how long.
    limit: Duration,
    others_wait: bool,
}

impl fmt::Display for Stalled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "less than {} KiB in {} s", PROGRESS_BYTES >> 10, self.limit.as_secs_f32())?;
        f.write_str(if self.others_wait { " while others wait for its place or memory" } else { "" })
    }
}

impl Drop for Transfer {
    fn drop(&mut self) {
        let Place { transfers, running } = &self.place;
        lock(&transfers.running).retain(|one| !Arc::ptr_eq(one, running));
        drop(lock(&running.permits).take());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const IDLE_LIMIT: Duration = Duration::from_millis(200);
    const FOREVER: Duration = Duration::from_secs(1_000_000);

    /// With a paused clock, which jumps to the next timer when all tasks wait: the load of the machine does not matter.
    fn runtime() -> tokio::runtime::Runtime {
        tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap()
    }

    async fn stalled(transfer: Transfer) -> Result<()> {
        transfer.next(std::future::pending(), |()| 0).await
    }

    #[test]
    fn a_registry_uses_up_only_its_own_share() {
        runtime().block_on(async {
            let transfers = Arc::new(Transfers::new(2, Duration::from_secs(3600), FOREVER));
            let _held = [transfers.enter("a").await.unwrap(), transfers.enter("a").await.unwrap()];
            assert!(timeout(IDLE_LIMIT, transfers.enter("a")).await.is_err(), "a third transfer started");
            timeout(Duration::from_secs(20), transfers.enter("b"))
                .await
                .expect("registry b waits for registry a")
                .unwrap();
        });
    }

    #[test]
    fn an_idle_transfer_is_cancelled_if_another_waits() {
        runtime().block_on(async {
            let transfers = Arc::new(Transfers::new(2, IDLE_LIMIT, FOREVER));
            let (one, two) = (transfers.enter("a").await.unwrap(), transfers.enter("a").await.unwrap());
            let stalled = tokio::spawn(stalled(one));
            // The other one makes progress.
            let moving = tokio::spawn(async move {
                for _ in 0..100 {
                    let step = async {
                        tokio::time::sleep(IDLE_LIMIT / 20).await;
                        Ok(())
                    };
                    two.next(step, |()| 1 << 20).await?;
                }
                Ok::<_, Error>(two)
            });
            let third = timeout(Duration::from_secs(20), transfers.enter("a"))
                .await
                .expect("no transfer was cancelled");
            third.unwrap();
            assert!(matches!(stalled.await.unwrap(), Err(Error::Unavailable { .. })));
            moving.await.unwrap().unwrap();
        });
    }

    #[test]
    fn a_transfer_goes_on_without_its_place() {
        runtime().block_on(async {
            let transfers = Arc::new(Transfers::new(1, IDLE_LIMIT, FOREVER));
            let one = transfers.enter("a").await.unwrap();
            assert!(timeout(IDLE_LIMIT, transfers.enter("a")).await.is_err(), "there is one place");
            let place = one.place().clone();
            place.leave_place();
            let two = transfers.enter("a").await.unwrap();
            // A third one waits, for the place of the second: the first is not cancelled, although it is idle for longer.
            let first = tokio::spawn(async move {
                let wait = async {
                    tokio::time::sleep(IDLE_LIMIT * 100).await;
                    Ok(())
                };
                one.next(wait, |()| 1).await
            });
            let second = tokio::spawn(stalled(two));
            let third = transfers.enter("a").await.unwrap();
            assert!(second.await.unwrap().is_err());
            first.await.unwrap().unwrap();
            // The end of the first one, and a repeated call, give back nothing more.
            place.leave_place();
            assert!(timeout(IDLE_LIMIT, transfers.enter("a")).await.is_err(), "there are two places");
            drop(third);
            transfers.enter("a").await.unwrap();
        });
    }

    #[test]
    fn who_waits_for_memory_cancels_who_has_it_and_is_idle() {
        runtime().block_on(async {
            let transfers = Arc::new(Transfers::new(3, IDLE_LIMIT, FOREVER));
            let (one, two) = (transfers.enter("a").await.unwrap(), transfers.enter("a").await.unwrap());
            let waits = transfers.enter("b").await.unwrap();
            // One has neither a place nor the memory, the other one, later, the memory alone.
            let places = [one.place().clone(), two.place().clone()];
            places.iter().for_each(Sharer::leave_place);
            let (first, second) = (tokio::spawn(stalled(one)), tokio::spawn(stalled(two)));
            tokio::time::sleep(2 * IDLE_LIMIT).await;
            waits.place().cancel_idlest_with_memory();
            places[1].set_has_memory(true);
            tokio::time::sleep(IDLE_LIMIT).await;
            assert!(!first.is_finished() && !second.is_finished());
            waits.place().cancel_idlest_with_memory();
            assert!(second.await.unwrap().unwrap_err().to_string().contains("while others wait"));
            waits.place().cancel_idlest_with_memory();
            tokio::time::sleep(IDLE_LIMIT).await;
            assert!(!first.is_finished());
        });
    }

    #[test]
    fn few_leave_their_places_and_fewer_of_one_registry() {
        runtime().block_on(async {
            let transfers = Arc::new(Transfers::new(32, IDLE_LIMIT, FOREVER));
            let mut all = Vec::new();
            for registry in ["a", "b", "c", "d", "e"] {
                for _ in 0..=MAX_WITHOUT_PLACE_OF_ONE {
                    let transfer = transfers.enter(registry).await.unwrap();
                    transfer.place().leave_place();
                    all.push(transfer);
                }
            }
            let kept = |all: &[Transfer]| all.iter().filter(|one| one.place.running.has_place()).count();
            assert_eq!(kept(&all), all.len() - MAX_WITHOUT_PLACE);
            assert_eq!(kept(&all[..5]), 1, "of the first registry");
            // The end of one lets another one do so.
            drop(all.swap_remove(0));
            all.iter().for_each(|one| one.place().leave_place());
            assert_eq!(kept(&all), all.len() - MAX_WITHOUT_PLACE);
        });
    }

    #[test]
    fn an_idle_transfer_goes_on_if_none_waits() {
        runtime().block_on(async {
            let transfers = Arc::new(Transfers::new(2, IDLE_LIMIT / 10, FOREVER));
            let one = transfers.enter("a").await.unwrap();
            let ended = timeout(IDLE_LIMIT, stalled(one)).await;
            assert!(ended.is_err(), "{ended:?}");
        });
    }

    #[test]
    fn a_transfer_that_makes_no_progress_ends() {
        runtime().block_on(async {
            let limit = Duration::from_secs(300);
            let transfers = Arc::new(Transfers::new(2, IDLE_LIMIT, limit));
            let begun = Instant::now();
            // Bytes that come one by one are no progress.
            let one = transfers.enter("a").await.unwrap();
            let step = |transfer: Transfer, length: usize| async move {
                let wait = async {
                    tokio::time::sleep(Duration::from_secs(50)).await;
                    Ok(())
                };
                transfer.next(wait, |()| length).await.map(|()| transfer)
            };
            let mut transfer = Ok(one);
            while let Ok(one) = transfer {
                transfer = step(one, 1).await;
            }
            assert!(matches!(transfer, Err(Error::Unavailable { .. })));
            assert!((limit..limit + Duration::from_secs(1)).contains(&begun.elapsed()));
            // Slow progress is some.
            let mut transfer = transfers.enter("a").await.unwrap();
            for _ in 0..100 {
                transfer = step(transfer, 16 << 10).await.unwrap();
            }
            // Time that is spent on anything else does not count.
            tokio::time::sleep(2 * limit).await;
            step(transfer, 1).await.unwrap();
        });
    }
}
