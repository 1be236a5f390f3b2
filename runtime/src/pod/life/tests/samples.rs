//! A state machine in each stage, and one of each input, for the table.

use super::super::stage::{
    Container, Fate, Link, PodCallers, PodStage, RunningStop, RunningUpdate, Stage, Start, Updates,
};
use super::super::{
    Call, DialResult, Input, LaunchFailed, Life, Moment, Outcome, ShimEvent, StartError, Timer, TornDown,
    Waiter,
};
use super::world::{container_config, pod_config};
use crate::error::Error;
use crate::pod::intent;
use model::reconcile::{InShim, Shim};
use model::{
    ContainerId, ContainerPhase, ContainerRecord, Exit, PodId, PodPhase, PodRecord, Resources, Update,
};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

pub(super) const NOW: Moment = Moment { wall: 1_000_000, monotonic: Duration::from_secs(9) };

pub(super) fn pod_record(phase: PodPhase) -> PodRecord {
    PodRecord {
        phase,
        pause_pid: 6,
        shim_pid: 5,
        ..PodRecord::new(PodId::from_random([1; 32]), pod_config(), 1)
    }
}

pub(super) fn id() -> ContainerId {
    ContainerId::from_random([2; 32])
}

pub(super) fn record(phase: ContainerPhase) -> ContainerRecord {
    let made = intent::container(id(), &pod_record(PodPhase::Ready), container_config(0, false), 1);
    ContainerRecord { phase, pid: 7, ..made.expect("a record") }
}

fn error() -> Error {
    Error::internal("broken")
}

/// Every stage of a pod. A new stage breaks the build until [`pod_stage_name`] has it; [`POD_STAGES`] then counts it, and
/// a test fails until it is here.
pub(super) fn pod_stages() -> Vec<Life> {
    let callers = || PodCallers { stoppers: vec![Waiter(90)], removers: Vec::new() };
    let stages = [
        (PodStage::Launching, PodPhase::Launching, Link::None),
        (PodStage::Leftover, PodPhase::Launching, Link::down(1, "not asked")),
        (PodStage::Ready, PodPhase::Ready, Link::Up),
        (PodStage::Ready, PodPhase::Ready, Link::down(1, "lost")),
        (PodStage::NotReady, PodPhase::Stopping, Link::Up),
        (PodStage::NotReady, PodPhase::Stopping, Link::down(1, "lost")),
        (PodStage::Killing(callers()), PodPhase::Stopping, Link::None),
        (PodStage::TearingDown(callers()), PodPhase::Stopping, Link::Up),
        (PodStage::Recording(callers()), PodPhase::Stopped, Link::None),
        (PodStage::Settling(callers(), Vec::new()), PodPhase::Stopped, Link::None),
        (PodStage::RemovingShim(callers()), PodPhase::Stopped, Link::None),
        (PodStage::Stopped { removers: Vec::new(), folder_left: false }, PodPhase::Stopped, Link::None),
        (PodStage::Stopped { removers: Vec::new(), folder_left: true }, PodPhase::Stopped, Link::None),
        (
            PodStage::Removing { removers: vec![Waiter(90)], folder_left: false },
            PodPhase::Removing,
            Link::None,
        ),
        (PodStage::Removed, PodPhase::Removing, Link::None),
    ];
    stages.into_iter().map(|(stage, phase, link)| life(pod_record(phase), stage, link)).collect()
}

fn life(record: PodRecord, stage: PodStage, link: Link) -> Life {
    let fate = if matches!(stage, PodStage::Leftover) { Fate::Leaves } else { Fate::Stays };
    Life { fate, ..Life::new(record, stage, Fate::Stays, link, NOW) }
}

pub(super) fn pod_stage_name(life: &Life) -> String {
    let name = match life.stage {
        PodStage::Launching => "Launching",
        PodStage::Leftover => "Leftover",
        PodStage::Ready => "Ready",
        PodStage::NotReady => "NotReady",
        PodStage::Killing(_) => "Killing",
        PodStage::TearingDown(_) => "TearingDown",
        PodStage::Recording(_) => "Recording",
        PodStage::Settling(..) => "Settling",
        PodStage::RemovingShim(_) => "RemovingShim",
        PodStage::Stopped { folder_left: false, .. } => "Stopped",
        PodStage::Stopped { folder_left: true, .. } => "Stopped, folder left",
        PodStage::Removing { .. } => "Removing",
        PodStage::Removed => "Removed",
    };
    match (&life.stage, &life.link) {
        (PodStage::Ready | PodStage::NotReady, Link::Down { .. }) => format!("{name}, silent"),
        _ => name.to_owned(),
    }
}

/// Number of names in `pod_stage_name` without a comma.
pub(super) const POD_STAGES: usize = 12;

/// A pod with one container in each stage of containers.
pub(super) fn container_stages() -> Vec<Life> {
    let stop = || {
        Some(RunningStop {
            deadline: Duration::from_secs(60),
            stoppers: vec![Waiter(91)],
            removers: Vec::new(),
        })
    };
    let callers = || vec![Waiter(90)];
    let stages = [
        (Stage::Creating { callers: callers(), exit: None }, ContainerPhase::Creating),
        (Stage::CutOff, ContainerPhase::Creating),
        (Stage::Created { start: Start::NotRequested, stop: None }, ContainerPhase::Created),
        (Stage::Created { start: Start::Requested(callers()), stop: None }, ContainerPhase::Created),
        (Stage::Created { start: Start::Unconfirmed, stop: None }, ContainerPhase::Created),
        (Stage::Created { start: Start::Unconfirmed, stop: stop() }, ContainerPhase::Created),
        (Stage::Running { start: Some(callers()), stop: None }, ContainerPhase::Running),
        (Stage::Running { start: None, stop: None }, ContainerPhase::Running),
        (Stage::Running { start: None, stop: stop() }, ContainerPhase::Running),
        (
            Stage::Exiting {
                start: None,
                start_replies: Vec::new(),
                stoppers: callers(),
                removers: Vec::new(),
            },
            ContainerPhase::Exited,
        ),
        (Stage::Exited { durable: true, start: None }, ContainerPhase::Exited),
        (Stage::Removing { durable: true, job_running: true, callers: callers() }, ContainerPhase::Exited),
        (
            Stage::Removing { durable: true, job_running: false, callers: Vec::new() },
            ContainerPhase::Removing,
        ),
    ];
    let with = |(stage, phase)| {
        let mut life = life(pod_record(PodPhase::Ready), PodStage::Ready, Link::Up);
        life.awaiting.insert(Waiter(7));
        life.containers.insert(id(), Container::new(Arc::new(record(phase)), stage));
        life
    };
    stages.into_iter().map(with).collect()
}

/// Containers with an update that runs, or whose outcome is being recorded.
pub(super) fn updated_stages() -> Vec<Life> {
    let running = |running: fn() -> RunningUpdate| {
        let mut lives = container_stages();
        lives.retain_mut(|life| {
            let container = life.containers.get_mut(&id()).expect("a container");
            container.updates = Updates::of(running());
            container.change(|record| record.update = Some(Box::new(update())));
            let plain = container_stage_name_of(&container.stage);
            ["Created", "Running", "Exiting", "Exited"].contains(&plain)
        });
        lives
    };
    let mut lives = running(|| RunningUpdate::Applying(Some(Waiter(93))));
    lives.extend(running(|| RunningUpdate::Recording(Some(Waiter(93)), Ok(()))));
    lives
}

/// A request of UpdateContainerResources.
pub(super) fn update() -> Update {
    let resources = Resources { cpu_shares: 512, ..Resources::default() };
    Update { resources, ..Update::default() }
}

pub(super) fn container_stage_name(life: &Life) -> String {
    let Some(container) = life.containers.get(&id()) else { return "–".into() };
    let name = container_stage_name_of(&container.stage);
    match &container.updates.running {
        None => name.into(),
        Some(RunningUpdate::Applying(_)) => format!("{name}, updating"),
        Some(RunningUpdate::Recording(..)) => format!("{name}, update done"),
    }
}

fn container_stage_name_of(stage: &Stage) -> &'static str {
    match stage {
        Stage::Creating { .. } => "Creating",
        Stage::CutOff => "CutOff",
        Stage::Created { start: Start::NotRequested, stop: None } => "Created",
        Stage::Created { start: Start::Requested(_), stop: None } => "Created, starting",
        Stage::Created { start: Start::Unconfirmed, stop: None } => "Created, may run",
        Stage::Created { stop: Some(_), .. } => "Created, stopping",
        Stage::Running { start: Some(_), stop: None } => "Running, starting",
        Stage::Running { start: None, stop: None } => "Running",
        Stage::Running { stop: Some(_), .. } => "Running, stopping",
        Stage::Exiting { .. } => "Exiting",
        Stage::Exited { .. } => "Exited",
        Stage::Removing { job_running: true, .. } => "Removing",
        Stage::Removing { job_running: false, .. } => "Removing, paused",
    }
}

/// Number of names in `container_stage_name`.
pub(super) const CONTAINER_STAGES: usize = 13;

fn dialled(pause: bool, held: Option<InShim>) -> Input {
    let containers: BTreeMap<ContainerId, InShim> = held.map(|held| (id(), held)).into_iter().collect();
    Input::Dialled(Box::new(DialResult { pid: 5, ..DialResult::of(Shim::Answered { pause, containers }) }))
}

/// Every input that concerns a pod as a whole.
pub(super) fn pod_inputs() -> Vec<(&'static str, Input)> {
    let call = |call| Input::Call(Waiter(1), call);
    let done = Input::Done;
    let create = || Call::Create { id: id(), config: Box::new(container_config(1, false)) };
    let failed = |left: Vec<Error>| Outcome::Launched(Err(LaunchFailed { error: error(), left }));
    let torn_down = |errors: Vec<Error>| TornDown { errors, ..TornDown::default() };
    vec![
        ("StopPodSandbox", call(Call::StopPod)),
        ("RemovePodSandbox", call(Call::RemovePod)),
        ("CreateContainer", call(create())),
        ("UpdatePodSandboxResources", call(Call::UpdatePod(Box::default()))),
        ("pause exited", Input::Shim(ShimEvent::PauseExited { code: 0 })),
        ("link lost", Input::LinkLost),
        ("dialled: answers", dialled(true, None)),
        ("dialled: pause is gone", dialled(false, None)),
        ("dialled: silent", Input::Dialled(Box::new(DialResult::of(Shim::Silent)))),
        ("dialled: shim is gone", Input::Dialled(Box::new(DialResult::of(Shim::Gone)))),
        ("another boot", Input::Dialled(Box::new(DialResult::of_another_boot()))),
        ("launched", done(Outcome::Launched(Ok(Box::new(pod_record(PodPhase::Ready)))))),
        ("launch failed, undone", done(failed(Vec::new()))),
        ("launch failed, something left", done(failed(vec![error()]))),
        ("torn down", done(Outcome::PodTornDown(torn_down(Vec::new())))),
        ("not torn down", done(Outcome::PodTornDown(torn_down(vec![error()])))),
        ("remains killed", done(Outcome::RemainsKilled(torn_down(Vec::new())))),
        ("stop recorded", done(Outcome::StopRecorded)),
        ("shim's folder removed", done(Outcome::ShimFolderRemoved(Vec::new()))),
        ("shim's folder not removed", done(Outcome::ShimFolderRemoved(vec![error()]))),
        ("removed", done(Outcome::PodRemoved(Vec::new()))),
        ("not removed", done(Outcome::PodRemoved(vec![error()]))),
        ("retry is due", Input::Due(Timer::Pod)),
    ]
}

/// Every input that concerns one container.
pub(super) fn container_inputs() -> Vec<(&'static str, Input)> {
    let call = |call| Input::Call(Waiter(1), call);
    let create = |other| {
        call(Call::Create {
            id: ContainerId::from_random([3; 32]),
            config: Box::new(container_config(0, other)),
        })
    };
    let exit = || Exit { code: 3, finished_at: 5, ..Exit::default() };
    let done = Input::Done;
    let created = Box::new(record(ContainerPhase::Created));
    vec![
        ("CreateContainer, equal", create(false)),
        ("CreateContainer, other", create(true)),
        ("StartContainer", call(Call::Start(id()))),
        ("StopContainer", call(Call::Stop(id(), Duration::from_secs(30)))),
        ("RemoveContainer", call(Call::Remove(id()))),
        ("ReopenContainerLog", call(Call::ReopenLog(id()))),
        ("log reopened", done(Outcome::LogReopened(Waiter(7), Ok(())))),
        ("UpdateContainerResources", call(Call::Update(id(), Box::new(update())))),
        ("Exec", call(Call::Exec(id()))),
        ("shim: exited", Input::Shim(ShimEvent::Exited(id(), (exit(), 4)))),
        ("shim: started", Input::Shim(ShimEvent::Started(id(), 4))),
        ("created", done(Outcome::Created(id(), Ok(created)))),
        ("not created", done(Outcome::Created(id(), Err(error())))),
        ("started", done(Outcome::Started(id(), Ok(4)))),
        ("execve failed", done(Outcome::Started(id(), Err(StartError::Never("no such file".into()))))),
        ("start not answered", done(Outcome::Started(id(), Err(StartError::Other(error()))))),
        ("stopped, exit reported", done(Outcome::StopEnded(id(), Ok(None)))),
        ("stopped, exit seen", done(Outcome::StopEnded(id(), Ok(Some(exit()))))),
        ("not stopped", done(Outcome::StopEnded(id(), Err(error())))),
        ("exit recorded", done(Outcome::ExitRecorded(id(), true))),
        ("exit not recorded", done(Outcome::ExitRecorded(id(), false))),
        ("removed", done(Outcome::ContainerRemoved(id(), Vec::new()))),
        ("not removed", done(Outcome::ContainerRemoved(id(), vec![error()]))),
        ("retry is due", Input::Due(Timer::Container(id()))),
    ]
}

/// Every input that concerns an update that is running.
pub(super) fn update_inputs() -> Vec<(&'static str, Input)> {
    let call = |call| Input::Call(Waiter(1), call);
    vec![
        ("UpdateContainerResources", call(Call::Update(id(), Box::new(update())))),
        ("updated", Input::Done(Outcome::Updated(id(), Ok(())))),
        ("not updated", Input::Done(Outcome::Updated(id(), Err(error())))),
        ("update recorded", Input::Done(Outcome::UpdateRecorded(id()))),
        ("pod's update recorded", Input::Done(Outcome::PodUpdateRecorded(Waiter(7)))),
        ("RemoveContainer", call(Call::Remove(id()))),
        ("shim: exited", Input::Shim(ShimEvent::Exited(id(), (Exit::default(), 4)))),
    ]
}

/// The shim's snapshot with the container in each state, and without it.
pub(super) fn container_snapshots() -> Vec<(&'static str, Input)> {
    vec![
        ("dialled: creating", dialled(true, Some(InShim::Creating))),
        ("dialled: created", dialled(true, Some(InShim::Created { pid: 7 }))),
        ("dialled: running", dialled(true, Some(InShim::Running { pid: 7, started_at: 4 }))),
        (
            "dialled: exited",
            dialled(true, Some(InShim::Exited { exit: Exit { code: 3, ..Exit::default() }, started_at: 4 })),
        ),
        ("dialled: not held", dialled(true, None)),
    ]
}
