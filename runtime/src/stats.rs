//! Stats of containers. The daemon reads the cgroup files itself, without the shims. Blocking, but only for reads of
//! kernel files: writable layers are walked separately ([`StatsReader::refresh_stale`]).
//!
//! Files stay open while a container exists and are read with pread(2), six calls per container (seven if memory.stat has
//! 4 KiB or more).

use crate::cgroups::Cgroups;
use crate::clock::now;
use model::ContainerId;
use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

pub(crate) mod metrics;
mod parse;
mod reading;

pub(crate) use reading::{
    ContainerStats, Cpu, Interface, Io, Memory, Network, PodStats, PodUsage, Processes, Psi, PsiData, Swap,
    Traffic, WritableLayer,
};

/// Minimum time between the two samples of a CPU rate. kubelet requests stats every ten seconds; other clients may do so
/// more often.
const SAMPLE: Duration = Duration::from_secs(1);
/// Age at which a writable layer is walked again: half of kubelet's ten seconds between two requests.
const USAGE_AGE: Duration = Duration::from_secs(5);
/// After a walk, a layer is not walked again for this many times the walk's duration, so that the walks of one layer use
/// at most a hundredth of one core.
const WALK_PAUSE: u32 = 100;
/// Time limit for the walk of one layer. If it is reached, the values are a lower bound.
const MAX_WALK: Duration = Duration::from_secs(30);
/// Maximum number of attached containers: a guard against leaks, far above the size of any node.
const MAX_CONTAINERS: usize = 16_384;
/// Maximum size in bytes of a cgroup file that is read. memory.stat has 2 KB.
const MAX_FILE: usize = 16 << 10;

/// Why there are no stats.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// The container is not attached.
    #[error("container {container} has no statistics: it is not running")]
    Unknown {
        /// The container.
        container: ContainerId,
    },
    /// A cgroup file could not be read.
    #[error("statistics of container {container}: {file}: {source}")]
    Read {
        /// The container.
        container: ContainerId,
        /// The file.
        file: PathBuf,
        /// The error.
        #[source]
        source: io::Error,
    },
    /// Too many containers are attached.
    #[error("statistics of {MAX_CONTAINERS} containers are open already, which is the limit")]
    Full,
}

/// Reads stats.
#[derive(Debug)]
pub(crate) struct StatsReader {
    cgroups: Cgroups,
    entries: Mutex<HashMap<ContainerId, Arc<Entry>>>,
    /// Notified after each walk. The mutex holds no data: a condition variable needs one.
    walked: (Mutex<()>, Condvar),
}

/// An attached container.
#[derive(Debug)]
struct Entry {
    container: ContainerId,
    cpu: OpenFile,
    memory_usage: OpenFile,
    memory_stat: OpenFile,
    memory_limit: OpenFile,
    swap_limit: Option<OpenFile>,
    pids: Option<OpenFile>,
    upper: PathBuf,
    sample: Mutex<Sample>,
    layer: Mutex<Layer>,
}

/// An open cgroup file, with its path for errors.
#[derive(Debug)]
struct OpenFile {
    path: PathBuf,
    file: File,
}

/// CPU time at the last sample, and the rate between the last two.
#[derive(Debug, Default)]
struct Sample {
    last: Option<(Instant, u64)>,
    rate: Option<u64>,
}

/// The last walk of a writable layer.
#[derive(Debug, Default)]
struct Layer {
    /// When the last walk ended.
    walked: Option<Instant>,
    /// How long it took.
    took: Duration,
    value: Option<WritableLayer>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A poisoned lock is fine: no panic can leave these values half-changed.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl StatsReader {
    /// Creates a reader for these hierarchies.
    pub(crate) fn new(cgroups: Cgroups) -> Self {
        Self { cgroups, entries: Mutex::default(), walked: Default::default() }
    }

    /// Opens the files of a container's cgroup; `upper` is its writable folder. A repeated call replaces the
    /// open files.
    pub(crate) fn attach(&self, container: &ContainerId, cgroup: &str, upper: PathBuf) -> Result<(), Error> {
        let open = |controller: &str, name: &str| {
            let path = self.cgroups.folder(controller, cgroup).unwrap_or_default().join(name);
            match File::open(&path) {
                Ok(file) => Ok(OpenFile { path, file }),
                Err(source) => Err(Error::Read { container: container.clone(), file: path, source }),
            }
        };
        let entry = Entry {
            container: container.clone(),
            cpu: open("cpuacct", "cpuacct.usage")?,
            memory_usage: open("memory", "memory.usage_in_bytes")?,
            memory_stat: open("memory", "memory.stat")?,
            memory_limit: open("memory", "memory.limit_in_bytes")?,
            swap_limit: open("memory", "memory.memsw.limit_in_bytes").ok(),
            pids: open("pids", "pids.current").ok(),
            upper,
            sample: Mutex::default(),
            layer: Mutex::default(),
        };
        let mut entries = lock(&self.entries);
        if entries.len() >= MAX_CONTAINERS && !entries.contains_key(container) {
            return Err(Error::Full);
        }
        entries.insert(container.clone(), Arc::new(entry));
        Ok(())
    }

    /// Closes a container's files.
    pub(crate) fn detach(&self, container: &ContainerId) {
        lock(&self.entries).remove(container);
    }

    /// Current stats. The writable layer's are those of its last walk (see [`StatsReader::refresh_stale`]).
    pub(crate) fn read(&self, container: &ContainerId) -> Result<ContainerStats, Error> {
        let entry = lock(&self.entries).get(container).cloned();
        entry.ok_or_else(|| Error::Unknown { container: container.clone() })?.read()
    }

    /// The latest disk usage of a writable layer; also for an attached container that is not running.
    pub(crate) fn writable_layer(&self, container: &ContainerId) -> Option<WritableLayer> {
        let entry = lock(&self.entries).get(container).cloned();
        entry.and_then(|entry| lock(&entry.layer).value)
    }

    /// Waits until the writable layers of `containers` were each walked once, at most for `limit`.
    pub(crate) fn wait_for_walks(&self, containers: &[ContainerId], limit: Duration) {
        let end = Instant::now() + limit;
        let mut guard = lock(&self.walked.0);
        loop {
            let missing = |id: &ContainerId| {
                let entry = lock(&self.entries).get(id).cloned();
                entry.is_some_and(|entry| lock(&entry.layer).walked.is_none())
            };
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() || !containers.iter().any(missing) {
                return;
            }
            guard = self.walked.1.wait_timeout(guard, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Whether a writable layer is outdated ([`StatsReader::refresh_stale`]).
    pub(crate) fn is_stale(&self) -> bool {
        let at = Instant::now();
        lock(&self.entries).values().any(|entry| lock(&entry.layer).is_stale(at))
    }

    /// Walks the outdated writable layers, oldest first, until `limit` has passed and the current walk has ended. A layer
    /// is outdated five seconds after its last walk, or later if that walk was long: after a hundred times its duration.
    /// Returns true if none is left. Slow: call it in the background, one call at a time.
    pub(crate) fn refresh_stale(&self, limit: Duration) -> bool {
        let start = Instant::now();
        let mut stale: Vec<(Option<Instant>, Arc<Entry>)> = lock(&self.entries)
            .values()
            .filter_map(|entry| {
                let layer = lock(&entry.layer);
                layer.is_stale(start).then(|| (layer.walked, Arc::clone(entry)))
            })
            .collect();
        stale.sort_by_key(|(walked, _)| *walked);
        for (_, entry) in stale {
            if start.elapsed() >= limit {
                return false;
            }
            entry.walk();
            // A waiter holds this while it checks, so it is either waiting now or will see the walk.
            drop(lock(&self.walked.0));
            self.walked.1.notify_all();
        }
        true
    }
}

impl Entry {
    fn read(&self) -> Result<ContainerStats, Error> {
        let timestamp = now();
        let usage = self.number(&self.cpu)?;
        let memory_usage = self.number(&self.memory_usage)?;
        let stat = parse::memory_stat(&self.text(&self.memory_stat)?);
        let limit = parse::limit(self.number(&self.memory_limit)?);
        let swap_limit = self.swap_limit.as_ref().map(|open| self.number(open)).transpose()?;
        let memory = parse::memory(timestamp, memory_usage, limit, &stat);
        let swap = stat.swap.map(|used| {
            let total = swap_limit.and_then(parse::limit);
            let room = total.zip(limit).map(|(total, limit)| total.saturating_sub(limit));
            Swap {
                timestamp,
                swap_available_bytes: room.map(|room| room.saturating_sub(used)),
                swap_usage_bytes: used,
            }
        });
        Ok(ContainerStats {
            cpu: Cpu {
                timestamp,
                usage_core_nano_seconds: usage,
                usage_nano_cores: lock(&self.sample).rate(Instant::now(), usage),
                psi: None,
            },
            memory,
            swap,
            io: None,
            writable_layer: lock(&self.layer).value,
            pids: self.pids.as_ref().map(|open| self.number(open)).transpose()?,
        })
    }

    fn text(&self, open: &OpenFile) -> Result<String, Error> {
        read_whole(&open.file).map_err(|source| self.failed(&open.path, source))
    }

    fn number(&self, open: &OpenFile) -> Result<u64, Error> {
        let text = self.text(open)?;
        text.trim().parse().map_err(|_| {
            let source = io::Error::new(io::ErrorKind::InvalidData, format!("{:.40} is not a number", text));
            self.failed(&open.path, source)
        })
    }

    fn failed(&self, file: &Path, source: io::Error) -> Error {
        Error::Read { container: self.container.clone(), file: file.to_owned(), source }
    }

    fn walk(&self) {
        let (timestamp, start) = (now(), Instant::now());
        let walked = sys::tree::usage_path(&self.upper, start + MAX_WALK);
        let mut layer = lock(&self.layer);
        layer.walked = Some(Instant::now());
        layer.took = start.elapsed();
        // A layer that could not be walked keeps its old values.
        match walked {
            Ok(usage) => {
                let (used_bytes, inodes_used) = (usage.bytes, usage.inodes);
                layer.value = Some(WritableLayer { timestamp, used_bytes, inodes_used });
            }
            Err(error) => {
                tracing::debug!(container = %self.container, %error, "cannot walk a writable layer")
            }
        }
    }
}

impl Layer {
    fn is_stale(&self, at: Instant) -> bool {
        let age = USAGE_AGE.max(self.took.saturating_mul(WALK_PAUSE));
        self.walked.is_none_or(|walked| at.saturating_duration_since(walked) >= age)
    }
}

impl Sample {
    /// The rate between the last two samples; takes a new sample if the last one is old enough.
    fn rate(&mut self, at: Instant, usage: u64) -> Option<u64> {
        let Some((before, used)) = self.last else {
            self.last = Some((at, usage));
            return None;
        };
        let passed = at.saturating_duration_since(before);
        if passed >= SAMPLE {
            let rate = u128::from(usage.saturating_sub(used)) * 1_000_000_000 / passed.as_nanos().max(1);
            self.rate = Some(u64::try_from(rate).unwrap_or(u64::MAX));
            self.last = Some((at, usage));
        }
        self.rate
    }
}

/// Reads a kernel file from its beginning, even if it was read before. A cgroup file is one record of a seq_file, so a
/// read that returns less than the buffer's size returned all of it. A second read, to find the end, would make the
/// kernel format the whole text again.
fn read_whole(file: &File) -> io::Result<String> {
    let mut bytes = vec![0; 4096];
    loop {
        let length = file.read_at(&mut bytes, 0)?;
        if length < bytes.len() {
            bytes.truncate(length);
            break;
        }
        if length >= MAX_FILE {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "larger than 16 KiB"));
        }
        bytes.resize(MAX_FILE, 0);
    }
    String::from_utf8(bytes).map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "not UTF-8"))
}

#[cfg(test)]
mod tests;
