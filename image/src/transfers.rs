//! How many layers are in transfer: at most so many from one registry, and on the whole node.
//!
//! Each holds two threads and a decoder's memory from its first byte to its last, so the number is bounded. A
//! registry that stalls uses up its own share and no other's. Where a share is used up, the transfer that has
//! brought next to nothing for longest gives way to the one that waits; without anybody waiting it may take its
//! time.

use crate::error::{Error, Result};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout};

/// Bytes that count as progress.
const PROGRESS: u64 = 64 << 10;

#[derive(Debug)]
pub(crate) struct Transfers {
    of_one: usize,
    all: Arc<Semaphore>,
    registries: Mutex<HashMap<String, Weak<Semaphore>>>,
    running: Mutex<Vec<Arc<Running>>>,
    /// Time without progress after which a transfer gives way.
    patience: Duration,
}

/// A layer on its way.
#[derive(Debug)]
struct Running {
    registry: String,
    moved: Mutex<Moved>,
    give_way: Notify,
}

#[derive(Debug)]
struct Moved {
    /// Of the last progress.
    at: Instant,
    /// Bytes since then.
    bytes: u64,
    /// It is the network that is waited for.
    waits: bool,
    /// When it was not, last. What the disk takes is not the network's.
    left: Instant,
}

/// No value here is ever left half-changed.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Transfers {
    /// `of_one` layers of one registry, twice as many in all.
    pub(crate) fn new(of_one: usize, patience: Duration) -> Self {
        Self {
            of_one,
            all: Arc::new(Semaphore::new(of_one * 2)),
            registries: Mutex::default(),
            running: Mutex::default(),
            patience,
        }
    }

    /// Waits for a place among the transfers from `registry`.
    pub(crate) async fn enter(self: &Arc<Self>, registry: &str) -> Result<Transfer> {
        let of_one = self.registry(registry);
        // In this order: who waits for a registry's share keeps nobody else from his.
        let share = self.permit(&of_one, |running| running.registry == registry).await?;
        let place = self.permit(&self.all, |_| true).await?;
        let now = Instant::now();
        let running = Arc::new(Running {
            registry: registry.to_owned(),
            moved: Mutex::new(Moved { at: now, bytes: 0, waits: false, left: now }),
            give_way: Notify::new(),
        });
        lock(&self.running).push(running.clone());
        Ok(Transfer { transfers: self.clone(), running, _permits: [share, place] })
    }

    fn registry(&self, name: &str) -> Arc<Semaphore> {
        let mut registries = lock(&self.registries);
        registries.retain(|_, semaphore| semaphore.strong_count() > 0);
        if let Some(semaphore) = registries.get(name).and_then(Weak::upgrade) {
            return semaphore;
        }
        let semaphore = Arc::new(Semaphore::new(self.of_one));
        registries.insert(name.to_owned(), Arc::downgrade(&semaphore));
        semaphore
    }

    async fn permit(
        &self,
        semaphore: &Arc<Semaphore>,
        rival: impl Fn(&Running) -> bool,
    ) -> Result<OwnedSemaphorePermit> {
        // One future for the whole wait: whoever waits longest comes first.
        let mut permit = std::pin::pin!(semaphore.clone().acquire_owned());
        loop {
            if let Ok(permit) = timeout(self.patience / 10, &mut permit).await {
                return permit.map_err(|_| Error::Cancelled);
            }
            self.push_out(&rival);
        }
    }

    /// Tells the rival that has brought nothing for longest to give way.
    fn push_out(&self, rival: impl Fn(&Running) -> bool) {
        let mut running = lock(&self.running);
        let idle = |one: &Running| {
            let moved = lock(&one.moved);
            moved.waits.then(|| moved.at.elapsed()).filter(|idle| *idle >= self.patience)
        };
        let all = running.iter().enumerate().filter(|(_, one)| rival(one));
        let longest = all.filter_map(|(at, one)| Some((idle(one)?, at))).max();
        if let Some((_, at)) = longest {
            // Out of the list: nobody is told twice.
            running.swap_remove(at).give_way.notify_one();
        }
    }
}

/// A place among the transfers, given back when dropped.
#[derive(Debug)]
pub(crate) struct Transfer {
    transfers: Arc<Transfers>,
    running: Arc<Running>,
    _permits: [OwnedSemaphorePermit; 2],
}

impl Transfer {
    /// Waits for the next bytes; `length` tells how many came. An error when the place is wanted by others and
    /// next to nothing has come for long.
    pub(crate) async fn next<T>(
        &self,
        next: impl Future<Output = Result<T>>,
        length: impl FnOnce(&T) -> usize,
    ) -> Result<T> {
        {
            let mut moved = lock(&self.running.moved);
            moved.waits = true;
            let elsewhere = moved.left.elapsed();
            moved.at += elsewhere;
        }
        let result = tokio::select! {
            biased;
            result = next => result,
            () = self.running.give_way.notified() => {
                let detail = format!(
                    "next to nothing has come for {} s, and other layers wait",
                    self.transfers.patience.as_secs_f32()
                );
                return Err(Error::Unavailable { reference: self.running.registry.clone(), detail });
            }
        };
        let mut moved = lock(&self.running.moved);
        (moved.waits, moved.left) = (false, Instant::now());
        moved.bytes += result.as_ref().map_or(0, |value| length(value) as u64);
        if moved.bytes >= PROGRESS {
            (moved.at, moved.bytes) = (Instant::now(), 0);
        }
        drop(moved);
        result
    }
}

impl Drop for Transfer {
    fn drop(&mut self) {
        lock(&self.transfers.running).retain(|one| !Arc::ptr_eq(one, &self.running));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Duration = Duration::from_millis(200);

    /// Its clock goes on when everybody waits: how busy the machine is changes nothing.
    fn runtime() -> tokio::runtime::Runtime {
        tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap()
    }

    async fn stalled(transfer: Transfer) -> Result<()> {
        transfer.next(std::future::pending(), |()| 0).await
    }

    #[test]
    fn a_registry_uses_up_its_own_share_alone() {
        runtime().block_on(async {
            let transfers = Arc::new(Transfers::new(2, Duration::from_secs(3600)));
            let _held = [transfers.enter("a").await.unwrap(), transfers.enter("a").await.unwrap()];
            assert!(timeout(PATIENCE, transfers.enter("a")).await.is_err(), "a third");
            timeout(Duration::from_secs(20), transfers.enter("b")).await.expect("waits for a's").unwrap();
        });
    }

    #[test]
    fn who_brings_nothing_gives_way_to_who_waits() {
        runtime().block_on(async {
            let transfers = Arc::new(Transfers::new(2, PATIENCE));
            let (one, two) = (transfers.enter("a").await.unwrap(), transfers.enter("a").await.unwrap());
            let stalled = tokio::spawn(stalled(one));
            // The other one moves.
            let moving = tokio::spawn(async move {
                for _ in 0..100 {
                    let step = async {
                        tokio::time::sleep(PATIENCE / 20).await;
                        Ok(())
                    };
                    two.next(step, |()| 1 << 20).await?;
                }
                Ok::<_, Error>(two)
            });
            let third =
                timeout(Duration::from_secs(20), transfers.enter("a")).await.expect("nobody gave way");
            third.unwrap();
            assert!(matches!(stalled.await.unwrap(), Err(Error::Unavailable { .. })));
            moving.await.unwrap().unwrap();
        });
    }

    #[test]
    fn nobody_is_pushed_out_while_nobody_waits() {
        runtime().block_on(async {
            let transfers = Arc::new(Transfers::new(2, PATIENCE / 10));
            let one = transfers.enter("a").await.unwrap();
            let ended = timeout(PATIENCE, stalled(one)).await;
            assert!(ended.is_err(), "{ended:?}");
        });
    }
}
