//! An in-memory supervisor for tests of drivers. It passes jobs to the test, which decides how they end. It needs no
//! root, no disk and no shim.

use super::life::{DialResult, Job, Outcome};
use super::supervisor::{Dial, JobEnd, Supervisor, Tools, Work};
use crate::shims::{Client, Connection};
use model::PodId;
use state::Layout;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};
use wire::Event;

/// Maximum number of orders that wait to be taken by a test; no test leaves that many.
const ORDERS: usize = 1024;

/// What the supervisor was asked to do.
#[derive(Debug)]
pub(super) enum Order {
    /// A job. Dropping it ends the job without an outcome.
    Work(Box<Running>),
    /// An attempt to connect to the shim.
    Dial(oneshot::Sender<(DialResult, Option<Box<Connection>>)>),
}

/// A running job.
#[derive(Debug)]
pub(super) struct Running {
    /// The job.
    pub(super) job: Job,
    /// What the driver gave to it.
    pub(super) tools: Tools,
    done: oneshot::Sender<JobEnd>,
}

impl Running {
    /// Ends the job.
    pub(super) fn end(self, outcome: Outcome) {
        self.end_with(outcome, None);
    }

    /// Ends a launch with its connection.
    pub(super) fn end_with(self, outcome: Outcome, connection: Option<Box<Connection>>) {
        // The driver may have ended.
        drop(self.done.send((Some(outcome), connection)));
    }
}

/// The supervisor.
#[derive(Debug)]
pub(super) struct Fake {
    layout: Layout,
    orders: mpsc::Sender<Order>,
}

impl Fake {
    /// A supervisor, and what it is asked to do, in order.
    pub(super) fn new() -> (Arc<Self>, mpsc::Receiver<Order>) {
        let (orders, receiver) = mpsc::channel(ORDERS);
        let layout = Layout::new("/nonexistent/root", "/nonexistent/run").expect("a layout");
        (Arc::new(Self { layout, orders }), receiver)
    }
}

impl Supervisor for Fake {
    fn layout(&self) -> &Layout {
        &self.layout
    }

    fn work(&self, job: Job, tools: Tools) -> Work {
        let (done, ended) = oneshot::channel();
        self.orders
            .try_send(Order::Work(Box::new(Running { job, tools, done })))
            .expect("a test that takes its orders");
        Box::pin(async { ended.await.unwrap_or((None, None)) })
    }

    fn dial(&self, _: PodId, _: u32, _: Duration) -> Dial {
        let (dialling, answer) = oneshot::channel();
        self.orders.try_send(Order::Dial(dialling)).expect("a test that takes its orders");
        // If the test drops the sender, the shim never answers.
        Box::pin(async {
            match answer.await {
                Ok(answer) => answer,
                Err(_) => std::future::pending().await,
            }
        })
    }
}

/// A connection to a shim that answers no request, and the sender of its events; dropping that ends the connection.
pub(super) fn connection() -> (Box<Connection>, mpsc::Sender<Event>) {
    let (sender, events) = mpsc::channel(16);
    let client = Client::unconnected().expect("a pidfd of this process");
    (Box::new(Connection { client, snapshot: Vec::new(), events }), sender)
}
