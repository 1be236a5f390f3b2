//! Pods of an earlier daemon.

use super::*;
use tokio::sync::oneshot;

impl Rig {
    /// Starts the driver of a pod that an earlier daemon has left.
    fn adopt(&self, record: PodRecord, containers: Vec<ContainerRecord>, leaving: bool) {
        let supervisor = Arc::clone(&self.supervisor) as Arc<dyn Supervisor>;
        adopt(supervisor, &self.registry, record, containers, true, leaving, None);
    }

    /// Ends all jobs of a stop well, until the removal begins.
    async fn removal(&mut self) -> Running {
        loop {
            let running = self.job().await;
            let outcome = match &running.job {
                Job::TearDownPod(..) => Outcome::PodTornDown(TornDown::default()),
                Job::RecordStop => Outcome::StopRecorded,
                Job::RemoveShimFolder => Outcome::ShimFolderRemoved(Vec::new()),
                Job::RecordPod => continue,
                Job::RemovePod(..) => return running,
                job => panic!("{job:?}"),
            };
            running.end(outcome);
        }
    }
}

/// Ends an attempt to connect: the shim answers, and has no container.
fn connect(dialling: oneshot::Sender<(DialResult, Option<Box<Connection>>)>) -> mpsc::Sender<Event> {
    let (connection, events) = fakes::connection();
    let shim = Shim::Answered { pause: true, containers: BTreeMap::new() };
    drop(dialling.send((DialResult { pid: 5, ..DialResult::of(shim) }, Some(connection))));
    events
}

fn ready() -> PodRecord {
    PodRecord { phase: PodPhase::Ready, shim_pid: 5, pause_pid: 6, ..PodRecord::new(pod_id(), config(), 1) }
}

#[tokio::test(start_paused = true)]
async fn a_restored_pod_is_listed_before_its_shim_answers() {
    let mut rig = Rig::new();
    rig.adopt(ready(), Vec::new(), false);
    assert!(rig.registry.published().pod(pod_id().as_str()).expect("listed at once").is_ready());
    // A call waits for the shim's state.
    let stopped = rig.call(Command::StopPod);
    let dialling = rig.dial().await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(!stopped.is_finished() && rig.orders.try_recv().is_err());
    let _events = connect(dialling);
    let tear_down = loop {
        let running = rig.job().await;
        if matches!(running.job, Job::TearDownPod(..)) {
            break running;
        }
    };
    assert!(tear_down.tools.client.is_some(), "with the new connection");
}

/// The rollback of a launch that an earlier daemon had begun fails, and nobody can request the removal of a pod that is
/// not listed.
#[tokio::test(start_paused = true)]
async fn callers_of_a_leaving_pods_name_are_told_why_it_stays() {
    let mut rig = Rig::new();
    rig.adopt(PodRecord::new(pod_id(), config(), 1), Vec::new(), true);
    assert!(rig.registry.published().pod(pod_id().as_str()).is_err(), "not listed");
    let waiting = rig.reserve(PodId::from_random([2; 32]));
    drop(rig.dial().await.send((DialResult::of(Shim::Gone), None)));
    rig.removal().await.end(Outcome::PodRemoved(vec![broken()]));
    let error = ended(waiting).await.expect_err("the name is not free");
    assert!(error.text().ends_with("broken"), "{error}");
    assert!(rig.registry.published().pod(pod_id().as_str()).is_ok(), "its removal can be requested");
    // It is retried without a request.
    rig.removal().await.end(Outcome::PodRemoved(Vec::new()));
    tokio::time::sleep(Duration::from_millis(1)).await;
    rig.reserve(PodId::from_random([3; 32]));
    assert!(matches!(rig.job().await.job, Job::Launch(_)), "the name is free");
}

/// Each failed RemoveContainer call starts the timer again, and must not add another one.
#[tokio::test(start_paused = true)]
async fn a_timer_that_is_started_again_expires_once() {
    let id = ContainerId::from_random([7; 32]);
    let container = ContainerRecord {
        phase: ContainerPhase::Removing,
        ..ContainerRecord::new(id.clone(), pod_id(), ContainerConfig::default(), 1)
    };
    let fail = |running: Running| {
        let Job::RemoveContainer(record) = &running.job else { panic!("{:?}", running.job) };
        let id = record.id.clone();
        running.end(Outcome::ContainerRemoved(id, vec![broken()]));
    };
    let mut rig = Rig::new();
    rig.adopt(ready(), vec![container], false);
    let _events = connect(rig.dial().await);
    fail(rig.job().await);
    tokio::time::sleep(Duration::from_secs(30)).await;
    let removed = rig.call(|reply| Command::Remove { id, reply });
    fail(rig.job().await);
    reply(removed).await.expect_err("it was not removed");
    for _ in 0..3 {
        let before = Instant::now();
        tokio::time::sleep(Duration::from_secs(45)).await;
        assert!(rig.orders.try_recv().is_err(), "retried after {:?}", before.elapsed());
        fail(rig.job().await);
        assert!(before.elapsed() >= Duration::from_secs(59), "{:?}", before.elapsed());
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}
