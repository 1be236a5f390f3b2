//! The trait through which a pod's driver gets work done: jobs, and connecting to shims. The driver reaches the node only
//! through it, so that the driver's tests need no root: they use an implementation in memory (`fakes`).

use super::life::{DialResult, Job, Outcome};
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
/// A running attempt to connect to a shim: its result, and the connection if there is one.
pub(super) type Dial = BoxFuture<'static, (DialResult, Option<Box<Connection>>)>;

/// Performs jobs and connects to shims.
pub(super) trait Supervisor: Debug + Send + Sync {
    /// The paths of the records.
    fn layout(&self) -> &Layout;

    /// The work of a job. It begins when the future is polled.
    fn work(&self, job: Job, tools: Tools) -> Work;

    /// Connects to a pod's shim, and waits at most `limit` for its hello. `pid` is the shim's in the pod's record.
    fn dial(&self, pod: PodId, pid: u32, limit: Duration) -> Dial;
}

/// What the driver gives to a job.
#[derive(Debug)]
pub(super) struct Tools {
    /// The pod.
    pub(super) pod: PodId,
    /// The connection to the shim, if there is one when the job starts.
    pub(super) client: Option<Client>,
    /// Writes the pod's record.
    pub(super) recorder: Arc<Recorder<PodRecord>>,
    /// Writes the record of [`Job::container`]; `None` for other jobs.
    pub(super) container: Option<Arc<Recorder<ContainerRecord>>>,
    /// What the driver tells the job while it runs, if it is a stop.
    pub(super) stop: Option<StopWatch>,
}

/// What the driver tells a running stop.
#[derive(Debug, Clone)]
pub(super) struct StopWatch {
    /// The end of the grace period. It may become earlier.
    pub(super) deadline: watch::Receiver<Instant>,
    /// Becomes true when the exit is recorded.
    pub(super) exited: watch::Receiver<bool>,
}

/// The driver's end of a [`StopWatch`].
#[derive(Debug)]
pub(super) struct StopHandle {
    /// The end of the grace period.
    pub(super) deadline: watch::Sender<Instant>,
    /// Set to true when the exit is recorded.
    pub(super) exited: watch::Sender<bool>,
}

impl StopHandle {
    /// For a stop whose grace period ends at `deadline`.
    pub(super) fn new(deadline: Instant) -> Self {
        Self { deadline: watch::Sender::new(deadline), exited: watch::Sender::new(false) }
    }

    /// The other end.
    pub(super) fn watch(&self) -> StopWatch {
        StopWatch { deadline: self.deadline.subscribe(), exited: self.exited.subscribe() }
    }
}
