//! The driver on the in-memory supervisor: it performs what the state machine decides, answers every caller once, and
//! keeps the order of events, outcomes and the daemon's end. What is decided is tested in `life::tests`.

mod restored;

use super::*;
use crate::error::{Error, ErrorKind};
use crate::pod::command::Reply;
use crate::pod::fakes::{self, Fake, Order, Running};
use crate::pod::life::{LaunchFailed, Outcome, StartError, TornDown};
use crate::pod::registry::Reservation;
use model::reconcile::{InShim, Shim};
use model::{ContainerConfig, ContainerMeta, ContainerPhase, Exit, PodId, PodMeta, PodPhase};
use tokio::task::JoinHandle;
use wire::ExitFacts;

/// Time limit for what must happen at once. Time stands still in these tests while anything can run.
const SOON: Duration = Duration::from_secs(60);

/// A driver and its surroundings.
struct Rig {
    registry: Arc<Registry>,
    orders: mpsc::Receiver<Order>,
    supervisor: Arc<Fake>,
}

/// A call, and its reply.
type Call<T> = JoinHandle<Result<T, Error>>;

fn config() -> PodConfig {
    let meta = PodMeta { name: "pod".into(), namespace: "ns".into(), uid: "u".into(), attempt: 0 };
    PodConfig { meta, ..PodConfig::default() }
}

fn pod_id() -> PodId {
    PodId::from_random([1; 32])
}

fn broken() -> Error {
    Error::internal("broken")
}

impl Rig {
    fn new() -> Self {
        let (supervisor, orders) = Fake::new();
        Self { registry: Arc::new(Registry::new()), orders, supervisor }
    }

    /// Reserves the pod's name; starts a driver if it was free.
    fn reserve(&self, id: PodId) -> watch::Receiver<RunReply> {
        match self.registry.reserve(id, &Arc::new(config())).expect("the name") {
            Reservation::Join(_, reply) => reply,
            Reservation::New(channels, reply) => {
                let supervisor = Arc::clone(&self.supervisor);
                launch(supervisor, Arc::clone(&self.registry), channels, config(), Granted::default());
                reply
            }
        }
    }

    async fn order(&mut self) -> Order {
        let order = tokio::time::timeout(SOON, self.orders.recv()).await;
        order.expect("an order in time").expect("a supervisor")
    }

    /// The next job.
    async fn job(&mut self) -> Running {
        match self.order().await {
            Order::Work(running) => *running,
            Order::Dial(_) => panic!("a dial instead of a job"),
        }
    }

    /// The next attempt to connect.
    async fn dial(&mut self) -> tokio::sync::oneshot::Sender<(DialResult, Option<Box<Connection>>)> {
        match self.order().await {
            Order::Dial(dialling) => dialling,
            Order::Work(running) => panic!("{:?} instead of a dial", running.job),
        }
    }

    /// A pod that is up, with the sender of its shim's events.
    async fn up() -> (Self, mpsc::Sender<Event>) {
        let mut rig = Self::new();
        let run = rig.reserve(pod_id());
        let running = rig.job().await;
        let events = end_launch(running);
        assert_eq!(ended(run).await, Ok(pod_id()));
        (rig, events)
    }

    /// Sends a command.
    fn call<T: Send + 'static>(&self, command: impl FnOnce(Reply<T>) -> Command + Send + 'static) -> Call<T> {
        let registry = Arc::clone(&self.registry);
        tokio::spawn(async move { registry.call(&pod_id(), command).await })
    }

    /// A created container.
    async fn created(&mut self) -> ContainerId {
        let meta = ContainerMeta { name: "main".into(), attempt: 0 };
        let config = Box::new(ContainerConfig { meta, ..ContainerConfig::default() });
        let created = self.call(|reply| Command::Create { config, reply });
        let running = self.job().await;
        let Job::Create(_, record) = &running.job else { panic!("{:?}", running.job) };
        let mut record = Box::new(ContainerRecord::clone(record));
        (record.phase, record.pid) = (ContainerPhase::Created, 7);
        running.end(Outcome::Created(record.id.clone(), Ok(record)));
        reply(created).await.expect("a container")
    }

    /// A container that runs.
    async fn running(&mut self) -> ContainerId {
        let id = self.created().await;
        let asked = id.clone();
        let started = self.call(|reply| Command::Start { id: asked, reply });
        let running = self.job().await;
        assert!(matches!(&running.job, Job::Start(started) if *started == id));
        assert!(running.tools.container.is_some(), "a start writes the record");
        running.end(Outcome::Started(id.clone(), Ok(3)));
        reply(started).await.expect("a start");
        id
    }

    fn phase(&self, id: &ContainerId) -> ContainerPhase {
        self.registry.published().container(id.as_str()).expect("listed").record.phase
    }
}

/// Ends a launch that has brought the pod up; returns the sender of its shim's events.
fn end_launch(running: Running) -> mpsc::Sender<Event> {
    let Job::Launch(record) = &running.job else { panic!("{:?}", running.job) };
    let record = PodRecord { phase: PodPhase::Ready, shim_pid: 5, pause_pid: 6, ..PodRecord::clone(record) };
    let (connection, events) = fakes::connection();
    running.end_with(Outcome::Launched(Ok(Box::new(record))), Some(connection));
    events
}

async fn ended(mut reply: watch::Receiver<RunReply>) -> Result<PodId, Error> {
    let outcome = tokio::time::timeout(SOON, reply.wait_for(Option::is_some)).await;
    outcome.expect("in time").expect("a driver").clone().expect("an outcome")
}

async fn reply<T>(call: Call<T>) -> Result<T, Error> {
    tokio::time::timeout(SOON, call).await.expect("a reply in time").expect("no panic")
}

fn exited(id: &ContainerId, code: i32) -> Event {
    let facts = ExitFacts { code, started_at: 3, finished_at: 4, ..ExitFacts::default() };
    Event::Exited { container: id.clone(), facts }
}

#[tokio::test(start_paused = true)]
async fn equal_requests_share_one_launch() {
    let mut rig = Rig::new();
    let first = rig.reserve(pod_id());
    let second = rig.reserve(PodId::from_random([2; 32]));
    let running = rig.job().await;
    let _events = end_launch(running);
    assert_eq!(ended(first).await, Ok(pod_id()));
    assert_eq!(ended(second).await, Ok(pod_id()));
    assert!(rig.registry.published().pod(pod_id().as_str()).expect("listed").is_ready());
    assert!(rig.orders.try_recv().is_err(), "one launch");
}

#[tokio::test(start_paused = true)]
async fn a_failed_launch_frees_the_name_before_it_is_told() {
    let mut rig = Rig::new();
    let run = rig.reserve(pod_id());
    rig.job().await.end(Outcome::Launched(Err(LaunchFailed { error: broken(), left: Vec::new() })));
    assert_eq!(ended(run).await, Err(broken()));
    assert!(rig.registry.published().pod(pod_id().as_str()).is_err(), "never listed");
    let again = PodId::from_random([2; 32]);
    rig.reserve(again.clone());
    assert!(matches!(&rig.job().await.job, Job::Launch(record) if record.id == again));
}

#[tokio::test(start_paused = true)]
async fn starts_of_one_container_share_one_job() {
    let (mut rig, _events) = Rig::up().await;
    let id = rig.created().await;
    let calls: Vec<_> = (0..3)
        .map(|_| {
            let id = id.clone();
            rig.call(|reply| Command::Start { id, reply })
        })
        .collect();
    let running = rig.job().await;
    // All three are in before the job ends.
    tokio::time::sleep(Duration::from_millis(1)).await;
    running.end(Outcome::Started(id, Err(StartError::Other(broken()))));
    for call in calls {
        let error = reply(call).await.expect_err("the job failed");
        assert!(error.kind == ErrorKind::Internal && error.text().ends_with("broken"), "{error}");
    }
    assert!(rig.orders.try_recv().is_err(), "one job");
}

/// An event that the shim sent before a job's reply is processed before the job's outcome, whichever the driver's task
/// sees first.
#[tokio::test(start_paused = true)]
async fn events_are_processed_before_later_outcomes() {
    for _ in 0..64 {
        let (mut rig, events) = Rig::up().await;
        let id = rig.running().await;
        let asked = id.clone();
        let stopped = rig.call(|reply| Command::Stop { id: asked, grace: Duration::from_secs(30), reply });
        let stop = rig.job().await;
        // The stop saw that no process is left, and knows no more than that it killed.
        let guess = Exit {
            code: 137,
            finished_at: 4,
            oom_killed: false,
            reason: "Error".to_owned(),
            message: String::new(),
        };
        stop.end(Outcome::StopEnded(id.clone(), Ok(Some(guess))));
        // In this order the job's task runs before the driver's, which then has both in front of it.
        events.try_send(exited(&id, 9)).expect("room");
        let record = rig.job().await;
        assert!(matches!(record.job, Job::RecordExit(_)), "{:?}", record.job);
        record.end(Outcome::ExitRecorded(id.clone(), true));
        assert_eq!(reply(stopped).await, Ok(()));
        let view = rig.registry.published().container(id.as_str()).expect("listed");
        assert_eq!(view.record.exit.as_ref().map(|exit| exit.code), Some(9));
        assert!(matches!(rig.job().await.job, Job::RemoveCgroup(_)));
        assert!(rig.orders.try_recv().is_err(), "the exit is recorded once");
    }
}

#[tokio::test(start_paused = true)]
async fn a_shorter_grace_hastens_the_running_stop() {
    let (mut rig, events) = Rig::up().await;
    let id = rig.running().await;
    let stop = |grace| {
        let id = id.clone();
        rig.call(move |reply| Command::Stop { id, grace: Duration::from_secs(grace), reply })
    };
    let first = stop(30);
    tokio::time::sleep(Duration::from_millis(1)).await;
    let second = stop(2);
    let running = rig.job().await;
    let mut watch = running.tools.stop.clone().expect("a stop is steered");
    let before = *watch.deadline.borrow_and_update();
    let hastened = tokio::time::timeout(SOON, watch.deadline.changed()).await;
    hastened.expect("in time").expect("a driver");
    let after = *watch.deadline.borrow();
    assert!(before - after >= Duration::from_secs(27), "{before:?} {after:?}");
    // The stop ends when the exit is durable.
    events.send(exited(&id, 0)).await.expect("a driver");
    let record = rig.job().await;
    assert!(!*watch.exited.borrow(), "not recorded yet");
    record.end(Outcome::ExitRecorded(id.clone(), true));
    assert!(*watch.exited.wait_for(|exited| *exited).await.expect("told before the handle goes"));
    running.end(Outcome::StopEnded(id.clone(), Ok(None)));
    assert_eq!((reply(first).await, reply(second).await), (Ok(()), Ok(())));
    assert_eq!(rig.phase(&id), ContainerPhase::Exited);
}

#[tokio::test(start_paused = true)]
async fn an_exec_gets_the_connection_or_is_told_that_there_is_none() {
    let (mut rig, events) = Rig::up().await;
    let id = rig.running().await;
    let exec = || {
        let id = id.clone();
        rig.call(|reply| Command::Exec { id, reply })
    };
    let ticket = reply(exec()).await.expect("a ticket");
    assert_eq!((ticket.record.id.clone(), ticket.client.pid()), (id.clone(), std::process::id()));
    drop(events);
    // The loss of the connection is seen before the next call.
    tokio::time::sleep(Duration::from_millis(1)).await;
    let refused = reply(exec()).await.expect_err("no connection");
    assert_eq!(refused.kind, ErrorKind::Unavailable);
    drop(rig.dial().await);
}

#[tokio::test(start_paused = true)]
async fn a_lost_connection_is_dialled_again_and_the_silence_is_listed() {
    let (mut rig, events) = Rig::up().await;
    let id = rig.running().await;
    let silent =
        |rig: &Rig| rig.registry.published().pod(pod_id().as_str()).expect("listed").silent_since != 0;
    drop(events);
    let dialling = rig.dial().await;
    assert!(!silent(&rig), "a connection may end without reason: the shim is asked first");
    let before = Instant::now();
    drop(dialling.send((DialResult::of(Shim::Silent), None)));
    let dialling = rig.dial().await;
    assert!(before.elapsed() >= Duration::from_millis(200), "a pause grows between attempts");
    assert!(silent(&rig));
    let (connection, events) = fakes::connection();
    let containers = BTreeMap::from([(id.clone(), InShim::Running { pid: 7, started_at: 3 })]);
    let dialled = DialResult { pid: 5, ..DialResult::of(Shim::Answered { pause: true, containers }) };
    drop(dialling.send((dialled, Some(connection))));
    // The new connection is used: its events arrive.
    events.send(exited(&id, 4)).await.expect("a driver");
    assert!(matches!(rig.job().await.job, Job::RecordExit(_)));
    assert!(!silent(&rig));
}

#[tokio::test(start_paused = true)]
async fn a_failed_stop_answers_and_is_tried_again_after_a_pause() {
    let (mut rig, _events) = Rig::up().await;
    let failed = |running: Running| {
        assert!(matches!(running.job, Job::TearDownPod(..)), "{:?}", running.job);
        running.end(Outcome::PodTornDown(TornDown { errors: vec![broken()], ..TornDown::default() }));
    };
    let stopped = rig.call(Command::StopPod);
    // The pod's Stopping state is written meanwhile.
    let mut jobs = [rig.job().await, rig.job().await];
    jobs.sort_by_key(|running| matches!(running.job, Job::RecordPod));
    let [end, record] = jobs;
    drop(record);
    failed(end);
    assert_eq!(reply(stopped).await.map_err(|error| error.kind), Err(ErrorKind::Internal));
    let before = Instant::now();
    let again = rig.job().await;
    assert!(before.elapsed() > Duration::ZERO, "not at once");
    failed(again);
    // A call during the pause is not made to wait for it.
    tokio::time::sleep(Duration::from_millis(1)).await;
    let before = Instant::now();
    let stopped = rig.call(Command::StopPod);
    let end = rig.job().await;
    assert_eq!(before.elapsed(), Duration::ZERO);
    end.end(Outcome::PodTornDown(TornDown::default()));
    let record = rig.job().await;
    assert!(matches!(record.job, Job::RecordStop), "{:?}", record.job);
    record.end(Outcome::StopRecorded);
    let forget = rig.job().await;
    assert!(matches!(forget.job, Job::RemoveShimFolder), "{:?}", forget.job);
    forget.end(Outcome::ShimFolderRemoved(Vec::new()));
    assert_eq!(reply(stopped).await, Ok(()));
}

#[tokio::test(start_paused = true)]
async fn a_removed_pod_answers_all_and_frees_its_name() {
    let (mut rig, _events) = Rig::up().await;
    let removed = [rig.call(Command::RemovePod), rig.call(Command::RemovePod)];
    let last = loop {
        let running = rig.job().await;
        let outcome = match &running.job {
            Job::TearDownPod(..) => Outcome::PodTornDown(TornDown::default()),
            Job::RecordStop => Outcome::StopRecorded,
            Job::RemoveShimFolder => Outcome::ShimFolderRemoved(Vec::new()),
            Job::RecordPod => continue,
            Job::RemovePod(..) => break running,
            job => panic!("{job:?}"),
        };
        running.end(outcome);
    };
    // Sent before the pod is gone, received after: the driver answers it, or its end does.
    let late = rig.call(Command::StopPod);
    last.end(Outcome::PodRemoved(Vec::new()));
    for call in removed {
        assert_eq!(reply(call).await, Ok(()));
    }
    assert!(matches!(reply(late).await, Ok(()) | Err(Error { kind: ErrorKind::NotFound, .. })));
    assert!(rig.registry.published().pod(pod_id().as_str()).is_err(), "not listed");
    rig.reserve(PodId::from_random([2; 32]));
    assert!(matches!(rig.job().await.job, Job::Launch(_)), "the name is free");
}

#[tokio::test(start_paused = true)]
async fn a_daemon_that_stops_waits_for_records_and_begins_nothing() {
    let (mut rig, events) = Rig::up().await;
    let id = rig.running().await;
    events.send(exited(&id, 0)).await.expect("a driver");
    let record = rig.job().await;
    let registry = Arc::clone(&rig.registry);
    let closed = tokio::spawn(async move {
        let began = Instant::now();
        registry.close().await;
        began.elapsed()
    });
    tokio::time::sleep(Duration::from_millis(1)).await;
    assert!(!closed.is_finished(), "a record is still being written");
    record.end(Outcome::ExitRecorded(id.clone(), true));
    let took = closed.await.expect("no panic");
    assert!(took < Duration::from_secs(1), "{took:?}: it was waited for to the limit");
    assert_eq!(rig.phase(&id), ContainerPhase::Exited);
    assert!(rig.orders.try_recv().is_err(), "no job begins while the daemon stops");
    let late = reply(rig.call(Command::StopPod)).await.expect_err("no driver");
    assert_eq!(late.kind, ErrorKind::Aborted, "the pod is not gone");
}

#[tokio::test(start_paused = true)]
async fn callers_of_a_stopping_daemon_are_told_so() {
    let (mut rig, _events) = Rig::up().await;
    let stopped = rig.call(Command::StopPod);
    let jobs = [rig.job().await, rig.job().await];
    let registry = Arc::clone(&rig.registry);
    let closed = tokio::spawn(async move { registry.close().await });
    tokio::time::sleep(Duration::from_millis(1)).await;
    for running in jobs {
        if matches!(running.job, Job::TearDownPod(..)) {
            running.end(Outcome::PodTornDown(TornDown::default()));
        }
    }
    // The next step, which records the stop, belongs to the next start of the daemon.
    assert_eq!(reply(stopped).await.map_err(|error| error.kind), Err(ErrorKind::Aborted));
    closed.await.expect("no panic");
    assert!(rig.orders.try_recv().is_err());
}
