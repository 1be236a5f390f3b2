//! What a pod's driver leaves to others: the work of jobs, and talking to a shim. The driver knows this trait alone, so
//! its tests run it without root on an in-memory one (`fakes`).

use super::life::{Heard, Job, Outcome};
use super::recorder::Recorder;
use crate::shims::{Client, Connection};
use futures_util::future::BoxFuture;
use model::{ContainerRecord, PodId, PodRecord};
use state::Layout;
use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;

/// The end of a job: its outcome, if it has one, and the connection of a launch.
pub(super) type JobEnd = (Option<Outcome>, Option<Box<Connection>>);
/// A running job.
pub(super) type Work = BoxFuture<'static, JobEnd>;
/// A running attempt to connect to a shim: what it said, and the connection if it answered.
pub(super) type Dial = BoxFuture<'static, (Heard, Option<Box<Connection>>)>;

/// Performs jobs and connects to shims.
pub(super) trait Supervisor: Debug + Send + Sync {
    /// The paths of records.
    fn layout(&self) -> &Layout;

    /// The work of a job. It has not begun when this returns.
    fn work(&self, job: Job, tools: Tools) -> Work;

    /// Connects to a pod's shim, whose pid is in the record, and waits at most `limit` for its hello.
    fn dial(&self, pod: PodId, pid: u32, limit: Duration) -> Dial;
}

/// What a job uses of its driver.
#[derive(Debug)]
pub(super) struct Tools {
    /// The pod.
    pub(super) pod: PodId,
    /// The connection to the shim, if there is one when the job starts.
    pub(super) client: Option<Client>,
    /// Writes the pod's record.
    pub(super) recorder: Arc<Recorder<PodRecord>>,
    /// Writes the record of the job's container, if it has one.
    pub(super) container: Option<Arc<Recorder<ContainerRecord>>>,
    /// Steers the job, if it is a stop.
    pub(super) stop: Option<StopWatch>,
}

/// Steers a running stop.
#[derive(Debug, Clone)]
pub(super) struct StopWatch {
    /// When to kill; it may become earlier.
    pub(super) deadline: watch::Receiver<Instant>,
    /// Becomes true when the exit is recorded.
    pub(super) exited: watch::Receiver<bool>,
}

/// The driver's end of a [`StopWatch`].
#[derive(Debug)]
pub(super) struct StopHandle {
    /// Sets when to kill.
    pub(super) deadline: watch::Sender<Instant>,
    /// Set to true when the exit is recorded.
    pub(super) exited: watch::Sender<bool>,
}

impl StopHandle {
    /// A stop that kills at `deadline`.
    pub(super) fn new(deadline: Instant) -> Self {
        Self { deadline: watch::Sender::new(deadline), exited: watch::Sender::new(false) }
    }

    /// The other end.
    pub(super) fn watch(&self) -> StopWatch {
        StopWatch { deadline: self.deadline.subscribe(), exited: self.exited.subscribe() }
    }
}
