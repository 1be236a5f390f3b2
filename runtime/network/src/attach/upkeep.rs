//! What is done beside the pods' ADD and DEL: CHECK, GC, and DELs that have failed.

use std::ffi::OsString;
use std::future::Future;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use causes::with_causes;
use model::PodId;
use tokio::time::{Instant, sleep_until, timeout};

use super::{Cni, Target, existing_netns, plugin_error, slots};
use crate::error::{Error, Verb};
use crate::input::{gc_input, plugin_input};
use crate::lease::{GC, Leases};
use crate::plugin::Call;

/// Time limit of CHECK for one pod. A DEL that begins meanwhile waits for it, and waits a little longer than this.
const CHECK_LIMIT: Duration = Duration::from_secs(8);
/// How long GC waits until no ADD, DEL or CHECK runs; new ones wait meanwhile.
const GC_WAIT: Duration = Duration::from_secs(5);
/// Time limit of GC for all plugins; ADD and DEL wait meanwhile. Also how long one of an earlier daemon is waited for.
const GC_LIMIT: Duration = Duration::from_secs(20);

/// When upkeep is done. The times count from its start.
#[derive(Debug, Clone, Copy)]
pub struct Pace {
    /// Until CHECK of all pods, and the first GC: agents that plugins ask may be starting too.
    pub first: Duration,
    /// From one GC to the next.
    pub gc: Duration,
    /// Until the next GC if other plugins were running.
    pub busy: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self { first: Duration::from_secs(30), gc: Duration::from_secs(3600), busy: Duration::from_secs(60) }
    }
}

impl Cni {
    /// Repeats DELs that are due, and removes the pins of their namespaces by `unpin`; asks once whether the pods' networks
    /// are as ADD left them, which a change of the host's rules while no daemon ran may have spoilt; and tells the plugins
    /// from time to time which pods are attached. Runs until it is dropped.
    pub async fn upkeep<F: Future<Output = ()>>(&self, pace: Pace, unpin: impl Fn(PathBuf) -> F) {
        if let Err(error) = self.blocking(Leases::sweep).await {
            tracing::warn!(error = with_causes(&error), "cannot remove damaged CNI leases");
        }
        let mut gc_at = Instant::now() + pace.first;
        let mut check_at = Some(gc_at);
        loop {
            for pin in self.0.pending.pins() {
                unpin(pin).await;
            }
            self.retry_due();
            let now = Instant::now();
            if check_at.take_if(|at| *at <= now).is_some() {
                let cni = self.clone();
                tokio::spawn(async move { cni.check_all().await });
            }
            if gc_at <= now {
                let pause = match self.gc().await {
                    Ok(true) => pace.gc,
                    Ok(false) => pace.busy,
                    Err(error) => {
                        let error = with_causes(&error);
                        tracing::warn!(error, "a CNI plugin could not release what belongs to no pod (GC)");
                        pace.gc
                    }
                };
                gc_at = Instant::now() + pause;
            }
            let next = self.0.pending.next().into_iter().chain(check_at).fold(gc_at, Instant::min);
            tokio::select! {
                () = sleep_until(next) => {}
                () = self.0.pending.changed.notified() => {}
            }
        }
    }

    /// Tells every plugin of the loaded network which pods are attached, so that it releases what belongs to others (GC).
    /// No ADD, DEL or CHECK runs meanwhile; STATUS takes no slot and may. Nothing is done before CNI 1.1.0 and with `disableGC`. Returns false, and
    /// nothing was done, if other chains were running.
    ///
    /// # Errors
    /// All failures; every plugin was told.
    pub async fn gc(&self) -> Result<bool, Error> {
        let Ok(network) = self.network() else { return Ok(true) };
        if !network.version.has_status_and_gc() || network.disable_gc {
            return Ok(true);
        }
        // Plugins inherit it. The last daemon's may still run.
        let lock = self.lock_for(GC, GC_LIMIT).await;
        self.0.earlier_gc_ended.store(true, Ordering::Relaxed);
        let all = u32::try_from(slots(&self.0.config)).unwrap_or(u32::MAX);
        // A chain takes its place before it writes its lease, so no pod is missing below.
        let Ok(Ok(_all)) = timeout(GC_WAIT, self.0.slots.acquire_many(all)).await else {
            return Ok(false);
        };
        // Also those whose DEL is due: their addresses stay taken until every plugin has undone what it made for them.
        let valid = self.leases().await?;
        let deadline = Instant::now() + self.timeout().min(GC_LIMIT);
        let mut errors = Vec::new();
        for plugin in &network.plugins {
            let stdin = gc_input(&network, plugin, &valid);
            let call = self.call_for_none(Verb::Gc, plugin, &stdin, deadline);
            if let Err(failure) = self.run_with_lock(GC, Call { lock: lock.clone(), ..call }).await {
                let (plugin, network) = (plugin.kind().to_owned(), network.name.clone());
                let failure = Box::new(failure);
                errors.push(Error::Plugin { pod: None, verb: Verb::Gc, plugin, network, failure });
            }
        }
        Error::from_all(errors).map(|()| true)
    }

    /// Waits, before the first ADD of this daemon, until a GC that an earlier one has left running has ended: it would release
    /// what the plugins of this ADD allocate. Not longer than that GC may take.
    pub(super) async fn wait_for_earlier_gc(&self) {
        if self.0.earlier_gc_ended.load(Ordering::Relaxed) {
            return;
        }
        if self.blocking(|leases| Ok(leases.had_gc())).await.unwrap_or_default() {
            drop(self.lock_for(GC, GC_LIMIT).await);
        }
        self.0.earlier_gc_ended.store(true, Ordering::Relaxed);
    }

    async fn check_all(&self) {
        let pods = match self.leases().await {
            Ok(pods) => pods,
            Err(error) => {
                tracing::warn!(error = with_causes(&error), "cannot list CNI leases for CHECK");
                return;
            }
        };
        // One after the other: nobody waits for it.
        for pod in pods {
            if let Err(error) = self.check(&pod).await {
                let error = with_causes(&error);
                tracing::warn!(%pod, error, "a CNI plugin finds a fault in a pod's network (CHECK), which is not changed; a new pod would get a new one");
            }
        }
    }

    /// Asks the pod's plugins whether its network is as ADD left it (CHECK). Returns false if that cannot be asked: there is
    /// no result of ADD, its CNI is older than 0.4.0, `disableCheck` is set, another plugin of the pod runs, or the pod's
    /// namespace is gone.
    ///
    /// # Errors
    /// The failure of the first plugin that fails.
    pub async fn check(&self, pod: &PodId) -> Result<bool, Error> {
        let id = pod.clone();
        if self.0.pending.has(pod) {
            return Ok(false);
        }
        let Some((lease, Some(result))) = self.blocking(move |leases| leases.get(&id)).await? else {
            return Ok(false);
        };
        if lease.network.disable_check || !lease.network.version.has_check() {
            return Ok(false);
        }
        let netns = existing_netns(&self.0.lane, Some(&lease.netns)).await;
        if netns == OsString::new() {
            return Ok(false);
        }
        let _slot = self.slot(pod, Verb::Check).await?;
        // A DEL waits until this is unlocked.
        let lock = self.lock_at_once(pod.as_str()).await?.map(Arc::new);
        // A process that a plugin has left may have the lock for ever.
        if lock.is_none() && self.0.unfinished.any(pod.as_str()) {
            return Ok(false);
        }
        let target = Target { lease: &lease, lock, netns };
        let deadline = Instant::now() + self.timeout().min(CHECK_LIMIT);
        for plugin in &lease.network.plugins {
            let stdin = plugin_input(&lease.network, plugin, Some(&lease.capabilities), Some(&result));
            self.call(Verb::Check, plugin, &stdin, &target, deadline)
                .await
                .map_err(|failure| plugin_error(Verb::Check, &lease, plugin, failure))?;
        }
        Ok(true)
    }
}
