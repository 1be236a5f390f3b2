//! Earlier faults of the daemon's pods, one test each.

use super::super::stage::{Fate, Link, PodStage, Stage, Start};
use super::super::{
    Action, Answer, Call, DialResult, Input, Job, Life, Outcome, ShimEvent, StartError, Timer, TornDown,
    Waiter,
};
use super::samples::{NOW, id, pod_record, record};
use crate::error::{Error, ErrorKind};
use model::reconcile::{InShim, Shim};
use model::{
    ContainerConfig, ContainerId, ContainerPhase, ContainerRecord, EnvVar, ExecId, Exit, PodPhase, Text,
};
use std::collections::BTreeMap;
use std::time::Duration;

/// A pod with one container, as left by an earlier daemon.
fn restored(pod: PodPhase, container: ContainerPhase, leaving: bool) -> Life {
    Life::restore(pod_record(pod), vec![record(container)], leaving, NOW).0
}

fn dialled(shim: Shim) -> Input {
    Input::Dialled(Box::new(DialResult { pid: 5, ..DialResult::of(shim) }))
}

fn answered(held: InShim) -> Input {
    dialled(Shim::Answered { pause: true, containers: BTreeMap::from([(id(), held)]) })
}

/// A ready pod with a running container.
fn running() -> Life {
    let mut life = restored(PodPhase::Ready, ContainerPhase::Running, false);
    life.handle(NOW, answered(InShim::Running { pid: 7, started_at: 4 }));
    life
}

/// A ready pod with a created container.
fn created() -> Life {
    let mut life = restored(PodPhase::Ready, ContainerPhase::Created, false);
    life.handle(NOW, answered(InShim::Created { pid: 7 }));
    life
}

fn jobs(actions: &[Action]) -> Vec<&Job> {
    let jobs = actions.iter().filter_map(|action| match action {
        Action::Begin(job) => Some(job),
        _ => None,
    });
    jobs.collect()
}

fn stage(life: &Life) -> &Stage {
    &life.containers.get(&id()).expect("the container").stage
}

fn phase_shown(actions: &[Action]) -> Option<ContainerPhase> {
    actions.iter().rev().find_map(|action| match action {
        Action::PublishContainer(record) => Some(record.phase),
        _ => None,
    })
}

fn answer_of(actions: &[Action], waiter: Waiter) -> Option<Result<Answer, Error>> {
    actions.iter().find_map(|action| match action {
        Action::Answer(to, answer) if *to == waiter => Some(answer.clone()),
        _ => None,
    })
}

#[test]
fn a_silent_shim_is_dialled_for_ever_and_its_pod_continues() {
    let mut life = running();
    life.handle(NOW, Input::LinkLost);
    for _ in 0..200 {
        let actions = life.handle(NOW, dialled(Shim::Silent));
        assert!(jobs(&actions).is_empty(), "{actions:?}");
        assert!(actions.iter().any(|action| matches!(action, Action::Dial { .. })), "{actions:?}");
    }
    assert!(matches!(life.stage, PodStage::Ready));
    assert!(life.link.silent_since() > 0);
}

#[test]
fn a_container_is_stopped_with_its_grace_while_the_shim_is_silent() {
    let mut life = running();
    life.handle(NOW, Input::LinkLost);
    let grace = Duration::from_secs(30);
    let actions = life.handle(NOW, Input::Call(Waiter(1), Call::Stop(id(), grace)));
    let [Job::Stop { deadline, .. }] = jobs(&actions)[..] else { panic!("{actions:?}") };
    assert_eq!(*deadline, NOW.monotonic + grace);
    // A second stop with a shorter grace period shortens the first.
    let actions = life.handle(NOW, Input::Call(Waiter(2), Call::Stop(id(), Duration::ZERO)));
    assert!(
        matches!(&actions[..], [Action::ShortenGrace(_, deadline)] if *deadline == NOW.monotonic),
        "{actions:?}"
    );
}

#[test]
fn after_a_power_loss_a_pod_whose_containers_ran_is_listed() {
    let containers = [record(ContainerPhase::Running)];
    let pod = pod_record(PodPhase::Launching);
    let leaving = model::reconcile::is_leaving(false, &pod, &containers);
    let (mut life, actions) = Life::restore(pod, containers.to_vec(), leaving, NOW);
    assert!(actions.iter().any(|action| matches!(action, Action::PublishPod(..))), "{actions:?}");
    let actions = life.handle(NOW, Input::Dialled(Box::new(DialResult::of_another_boot())));
    assert!(
        matches!(jobs(&actions)[..], [Job::RecordExit(_), Job::RecordPod, Job::TearDownPod(..)]),
        "{actions:?}"
    );
    // Its exit is published, and it stays until it is removed.
    let actions = life.handle(NOW, Input::Done(Outcome::ExitRecorded(id(), true)));
    assert_eq!(phase_shown(&actions), Some(ContainerPhase::Exited));
    assert_eq!(life.fate, Fate::Stays);
}

#[test]
fn a_failed_rollback_is_reported_listed_and_retried() {
    let (mut life, actions) = Life::restore(pod_record(PodPhase::Launching), Vec::new(), true, NOW);
    assert!(actions.is_empty(), "{actions:?}");
    life.handle(NOW, dialled(Shim::Gone));
    for outcome in [
        Outcome::PodTornDown(TornDown::default()),
        Outcome::StopRecorded,
        Outcome::ShimFolderRemoved(Vec::new()),
    ] {
        life.handle(NOW, Input::Done(outcome));
    }
    let failed = Outcome::PodRemoved(vec![Error::internal("the disk")]);
    let actions = life.handle(NOW, Input::Done(failed));
    assert!(actions.iter().any(|action| matches!(action, Action::ReplyToRun(Err(_)))), "{actions:?}");
    assert!(actions.iter().any(|action| matches!(action, Action::PublishPod(..))), "{actions:?}");
    assert!(actions.iter().any(|action| matches!(action, Action::StartTimer(Timer::Pod, _))), "{actions:?}");
    let actions = life.handle(NOW, Input::Due(Timer::Pod));
    assert!(matches!(jobs(&actions)[..], [Job::RemovePod(..)]), "{actions:?}");
}

#[test]
fn a_failed_removal_without_a_caller_is_retried() {
    let mut life = restored(PodPhase::Ready, ContainerPhase::Removing, false);
    let actions = life.handle(NOW, dialled(Shim::Answered { pause: true, containers: BTreeMap::new() }));
    assert!(matches!(jobs(&actions)[..], [Job::RemoveContainer(_)]), "{actions:?}");
    let failed = Outcome::ContainerRemoved(id(), vec![Error::internal("the disk")]);
    let actions = life.handle(NOW, Input::Done(failed));
    assert!(matches!(&actions[..], [Action::StartTimer(Timer::Container(_), _)]), "{actions:?}");
    let actions = life.handle(NOW, Input::Due(Timer::Container(id())));
    assert!(matches!(jobs(&actions)[..], [Job::RemoveContainer(_)]), "{actions:?}");
}

#[test]
fn execs_of_an_earlier_daemon_are_killed() {
    let mut life = restored(PodPhase::Ready, ContainerPhase::Running, false);
    let containers = BTreeMap::from([(id(), InShim::Running { pid: 7, started_at: 4 })]);
    let shim = Shim::Answered { pause: true, containers };
    let result = DialResult { pid: 5, execs: vec![ExecId(3)], ..DialResult::of(shim) };
    let actions = life.handle(NOW, Input::Dialled(Box::new(result)));
    assert!(matches!(jobs(&actions)[..], [Job::KillExecs(execs)] if *execs == [ExecId(3)]), "{actions:?}");
}

#[test]
fn exits_are_durable_before_the_shims_folder_is_removed() {
    let mut life = running();
    life.handle(NOW, Input::Call(Waiter(1), Call::StopPod));
    let exits = BTreeMap::from([(id(), (Exit { code: 3, ..Exit::default() }, 4))]);
    let torn_down = TornDown { exits, ..TornDown::default() };
    let actions = life.handle(NOW, Input::Done(Outcome::PodTornDown(torn_down)));
    assert!(matches!(jobs(&actions)[..], [Job::RecordExit(_), Job::RecordStop]), "{actions:?}");
    assert!(jobs(&life.handle(NOW, Input::Done(Outcome::StopRecorded))).is_empty());
    let actions = life.handle(NOW, Input::Done(Outcome::ExitRecorded(id(), true)));
    assert!(matches!(jobs(&actions)[..], [Job::RemoveShimFolder]), "{actions:?}");
    assert!(answer_of(&actions, Waiter(1)).is_none());
    let actions = life.handle(NOW, Input::Done(Outcome::ShimFolderRemoved(Vec::new())));
    assert_eq!(answer_of(&actions, Waiter(1)), Some(Ok(Answer::Done)));
}

#[test]
fn an_exit_that_cannot_be_recorded_keeps_the_shims_folder() {
    let mut life = running();
    life.handle(NOW, Input::Call(Waiter(1), Call::StopPod));
    life.handle(NOW, Input::Done(Outcome::PodTornDown(TornDown::default())));
    life.handle(NOW, Input::Done(Outcome::StopRecorded));
    let actions = life.handle(NOW, Input::Done(Outcome::ExitRecorded(id(), false)));
    assert!(jobs(&actions).is_empty(), "{actions:?}");
    assert_eq!(answer_of(&actions, Waiter(1)), Some(Ok(Answer::Done)));
}

#[test]
fn a_late_start_is_published() {
    let mut life = created();
    life.handle(NOW, Input::Call(Waiter(1), Call::Start(id())));
    let lost = StartError::Other(Error::internal("no answer within 60s"));
    let actions = life.handle(NOW, Input::Done(Outcome::Started(id(), Err(lost))));
    assert!(matches!(answer_of(&actions, Waiter(1)), Some(Err(_))));
    assert!(matches!(stage(&life), Stage::Created { start: Start::Unconfirmed, .. }));
    let actions = life.handle(NOW, Input::Shim(ShimEvent::Started(id(), 44)));
    assert_eq!(phase_shown(&actions), Some(ContainerPhase::Running));
}

#[test]
fn a_start_without_a_reply_may_be_running_and_is_stopped() {
    let mut life = created();
    let actions = life.handle(NOW, Input::Call(Waiter(1), Call::Stop(id(), Duration::ZERO)));
    assert!(jobs(&actions).is_empty(), "one that was never started has nothing to stop");
    life.handle(NOW, Input::Call(Waiter(2), Call::Start(id())));
    let lost = StartError::Other(Error::internal("no answer"));
    life.handle(NOW, Input::Done(Outcome::Started(id(), Err(lost))));
    let actions = life.handle(NOW, Input::Call(Waiter(3), Call::Stop(id(), Duration::ZERO)));
    assert!(matches!(jobs(&actions)[..], [Job::Stop { .. }]), "{actions:?}");
}

#[test]
fn a_failed_stop_is_retried_with_growing_pauses() {
    let mut life = running();
    let mut pauses = Vec::new();
    life.handle(NOW, Input::Call(Waiter(1), Call::StopPod));
    for _ in 0..10 {
        let failed = TornDown { errors: vec![Error::internal("CNI DEL")], ..TornDown::default() };
        let mut actions = life.handle(NOW, Input::Done(Outcome::PodTornDown(failed)));
        actions.extend(life.handle(NOW, Input::Done(Outcome::ExitRecorded(id(), true))));
        pauses.extend(actions.iter().find_map(|action| match action {
            Action::StartTimer(Timer::Pod, pause) => Some(*pause),
            _ => None,
        }));
        assert!(matches!(jobs(&life.handle(NOW, Input::Due(Timer::Pod)))[..], [Job::TearDownPod(..)]));
    }
    assert!(pauses.len() == 10 && pauses.is_sorted() && pauses.first() < pauses.last(), "{pauses:?}");
}

#[test]
fn a_create_is_not_undone_by_a_reconnect() {
    let mut life = created();
    let other = ContainerId::from_random([8; 32]);
    let config = Box::new(super::world::container_config(1, false));
    life.handle(NOW, Input::Call(Waiter(1), Call::Create { id: other.clone(), config }));
    life.handle(NOW, Input::LinkLost);
    let containers = BTreeMap::from([(id(), InShim::Created { pid: 7 }), (other.clone(), InShim::Creating)]);
    let actions = life.handle(NOW, dialled(Shim::Answered { pause: true, containers }));
    assert!(jobs(&actions).is_empty(), "{actions:?}");
    assert!(life.containers.contains_key(&other));
}

#[test]
fn an_exit_during_the_create_is_recorded_after_it() {
    let mut life = created();
    let other = ContainerId::from_random([8; 32]);
    let config = Box::new(super::world::container_config(1, false));
    life.handle(NOW, Input::Call(Waiter(1), Call::Create { id: other.clone(), config }));
    for code in [137, 255] {
        let exit = Exit { code, ..Exit::default() };
        let actions = life.handle(NOW, Input::Shim(ShimEvent::Exited(other.clone(), (exit, 0))));
        assert!(actions.is_empty(), "{actions:?}");
    }
    let made = ContainerRecord { id: other.clone(), ..record(ContainerPhase::Created) };
    life.handle(NOW, Input::Done(Outcome::Created(other.clone(), Ok(Box::new(made)))));
    let ended = life.containers.get(&other).expect("it was created");
    assert_eq!(ended.record.exit.as_ref().map(|exit| exit.code), Some(137));
    assert_eq!((ended.record.phase, ended.record.pid), (ContainerPhase::Exited, 0));
}

#[test]
fn a_container_that_survives_the_kill_has_not_exited() {
    for kill_remains in [false, true] {
        let mut life = running();
        life.handle(NOW, Input::LinkLost);
        let torn_down = TornDown {
            alive: [id()].into(),
            errors: vec![Error::internal("in D state")],
            ..TornDown::default()
        };
        if kill_remains {
            life.handle(NOW, dialled(Shim::Gone));
            life.handle(NOW, Input::Done(Outcome::RemainsKilled(torn_down)));
        } else {
            life.handle(NOW, Input::Call(Waiter(1), Call::StopPod));
            life.handle(NOW, Input::Done(Outcome::PodTornDown(torn_down)));
        }
        assert!(matches!(stage(&life), Stage::Running { .. }), "{:?}", stage(&life));
    }
}

#[test]
fn a_stop_waits_for_running_creates() {
    let mut life = created();
    let other = ContainerId::from_random([8; 32]);
    let config = Box::new(super::world::container_config(1, false));
    life.handle(NOW, Input::Call(Waiter(1), Call::Create { id: other.clone(), config }));
    life.handle(NOW, Input::Call(Waiter(2), Call::StopPod));
    for outcome in
        [Outcome::PodTornDown(TornDown::default()), Outcome::StopRecorded, Outcome::ExitRecorded(id(), true)]
    {
        let actions = life.handle(NOW, Input::Done(outcome));
        assert!(
            !actions.iter().any(|action| matches!(action, Action::Begin(Job::RemoveShimFolder))),
            "{actions:?}"
        );
    }
    let failed = Outcome::Created(other, Err(Error::internal("killed")));
    let actions = life.handle(NOW, Input::Done(failed));
    assert!(matches!(jobs(&actions)[..], [Job::RemoveShimFolder]), "{actions:?}");
    // The error names the stop of the pod, not the error of the killed process.
    let Some(Err(error)) = answer_of(&actions, Waiter(1)) else { panic!("{actions:?}") };
    assert!(error.text().contains("being stopped"), "{}", error.text());
}

#[test]
fn a_pod_is_removed_after_the_removals_of_its_containers() {
    let mut life = restored(PodPhase::Stopped, ContainerPhase::Exited, false);
    life.link = Link::None;
    life.handle(NOW, Input::Call(Waiter(1), Call::Remove(id())));
    assert!(life.handle(NOW, Input::Call(Waiter(2), Call::RemovePod)).is_empty());
    let actions = life.handle(NOW, Input::Done(Outcome::ContainerRemoved(id(), Vec::new())));
    assert!(matches!(jobs(&actions)[..], [Job::RemovePod(..)]), "{actions:?}");
    assert_eq!(answer_of(&actions, Waiter(1)), Some(Ok(Answer::Done)));
}

#[test]
fn a_retried_create_with_an_environment_finds_its_container() {
    let config = || {
        let envs = [("A", "1"), ("B", "2"), ("A", "3")];
        let envs = envs.map(|(key, value)| EnvVar { key: key.into(), value: Text::new(value).unwrap() });
        ContainerConfig { envs: envs.to_vec(), ..super::world::container_config(1, false) }
    };
    let mut life = created();
    let other = ContainerId::from_random([8; 32]);
    let call = |id: u8| Call::Create { id: ContainerId::from_random([id; 32]), config: Box::new(config()) };
    life.handle(NOW, Input::Call(Waiter(1), call(8)));
    let env = ["A=3", "B=2"].map(|entry| Text::new(entry).unwrap()).to_vec();
    let mut made = life.containers.get(&other).expect("it is being created").record.as_ref().clone();
    made.phase = ContainerPhase::Created;
    spec::exec::keep(&mut made, &wire::ProcessPlan { env, ..Default::default() }).unwrap();
    life.handle(NOW, Input::Done(Outcome::Created(other.clone(), Ok(Box::new(made)))));
    let actions = life.handle(NOW, Input::Call(Waiter(2), call(9)));
    assert_eq!(answer_of(&actions, Waiter(2)), Some(Ok(Answer::Created(other))));
}

/// kubelet takes the newest container of a name for the current one.
#[test]
fn a_container_is_newer_than_those_from_before_the_clock_was_set_back() {
    let mut life = created();
    let before = life.containers.get(&id()).expect("it exists").record.created_at;
    let set_back = super::super::Moment { wall: before - 1000, ..NOW };
    let other = ContainerId::from_random([8; 32]);
    let config = Box::new(super::world::container_config(1, false));
    life.handle(set_back, Input::Call(Waiter(1), Call::Create { id: other.clone(), config }));
    let made = life.containers.get(&other).expect("it is being created").record.created_at;
    assert!(made > before, "{made} after {before}");
}

/// When the removal of a pod has failed halfway, the record of its container may be gone already.
#[test]
fn a_create_in_a_pod_that_is_removed_does_not_find_its_container() {
    let mut life = restored(PodPhase::Removing, ContainerPhase::Created, true);
    life.handle(NOW, dialled(Shim::Gone));
    let config = Box::new(record(ContainerPhase::Created).config);
    let again = ContainerId::from_random([9; 32]);
    let actions = life.handle(NOW, Input::Call(Waiter(1), Call::Create { id: again, config }));
    assert!(answer_of(&actions, Waiter(1)).expect("an answer").is_err());
    assert!(jobs(&actions).iter().all(|job| !matches!(job, Job::Create(..))));
}

#[test]
fn a_shim_that_is_silent_at_the_daemons_start_keeps_its_pod() {
    let mut life = restored(PodPhase::Ready, ContainerPhase::Running, false);
    for _ in 0..200 {
        let actions = life.handle(NOW, dialled(Shim::Silent));
        assert!(jobs(&actions).is_empty(), "{actions:?}");
        assert!(actions.iter().any(|action| matches!(action, Action::Dial { .. })), "{actions:?}");
    }
    assert!(matches!((&life.stage, stage(&life)), (PodStage::Ready, Stage::Running { .. })));
    // What needs the shim fails at once, and does not wait for it.
    let actions = life.handle(NOW, Input::Call(Waiter(1), Call::Exec(id())));
    let Some(Err(error)) = answer_of(&actions, Waiter(1)) else { panic!("{actions:?}") };
    assert_eq!(error.kind, ErrorKind::Unavailable);
}

#[test]
fn the_processes_of_a_dead_shim_are_killed_before_their_exits_are_recorded() {
    let mut life = running();
    life.handle(NOW, Input::LinkLost);
    let actions = life.handle(NOW, dialled(Shim::Gone));
    assert!(matches!(jobs(&actions)[..], [Job::RecordPod, Job::KillRemains(..)]), "{actions:?}");
    let actions = life.handle(NOW, Input::Done(Outcome::RemainsKilled(TornDown::default())));
    assert!(matches!(jobs(&actions)[..], [Job::RecordExit(_), Job::TearDownPod(..)]), "{actions:?}");
}

#[test]
fn a_failed_teardown_after_a_dead_shim_is_retried_without_a_call() {
    let mut life = running();
    life.handle(NOW, Input::LinkLost);
    life.handle(NOW, dialled(Shim::Gone));
    life.handle(NOW, Input::Done(Outcome::RemainsKilled(TornDown::default())));
    life.handle(NOW, Input::Done(Outcome::ExitRecorded(id(), true)));
    let failed = TornDown { errors: vec![Error::internal("CNI DEL")], ..TornDown::default() };
    let actions = life.handle(NOW, Input::Done(Outcome::PodTornDown(failed)));
    assert!(actions.iter().any(|action| matches!(action, Action::StartTimer(Timer::Pod, _))), "{actions:?}");
    let actions = life.handle(NOW, Input::Due(Timer::Pod));
    assert!(matches!(jobs(&actions)[..], [Job::TearDownPod(..)]), "{actions:?}");
}

#[test]
fn a_removal_beside_that_of_its_pod_waits_for_it() {
    for errors in [Vec::new(), vec![Error::internal("the disk")]] {
        let mut life = restored(PodPhase::Stopped, ContainerPhase::Exited, false);
        life.link = Link::None;
        let actions = life.handle(NOW, Input::Call(Waiter(1), Call::RemovePod));
        assert!(matches!(jobs(&actions)[..], [Job::RemovePod(..)]), "{actions:?}");
        assert!(life.handle(NOW, Input::Call(Waiter(2), Call::Remove(id()))).is_empty());
        let removed = errors.is_empty();
        let actions = life.handle(NOW, Input::Done(Outcome::PodRemoved(errors)));
        for waiter in [Waiter(1), Waiter(2)] {
            assert_eq!(
                answer_of(&actions, waiter).map(|answer| answer.is_ok()),
                Some(removed),
                "{actions:?}"
            );
        }
    }
}

#[test]
fn a_pod_has_no_more_containers_than_its_shim_can_hold() {
    let records = (0..wire::MAX_CONTAINERS).map(|number| {
        let mut bytes = [0; 32];
        bytes[..8].copy_from_slice(&number.to_le_bytes());
        let mut record =
            ContainerRecord { id: ContainerId::from_random(bytes), ..record(ContainerPhase::Exited) };
        record.config.meta.name = format!("one of many: {number}");
        record
    });
    let mut life = Life::restore(pod_record(PodPhase::Ready), records.collect(), false, NOW).0;
    life.handle(NOW, dialled(Shim::Answered { pause: true, containers: BTreeMap::new() }));
    let config = Box::new(super::world::container_config(1, true));
    let actions = life.handle(NOW, Input::Call(Waiter(1), Call::Create { id: id(), config }));
    let Some(Err(error)) = answer_of(&actions, Waiter(1)) else { panic!("{actions:?}") };
    assert_eq!(error.kind, ErrorKind::ResourceExhausted);
    assert!(jobs(&actions).is_empty(), "{actions:?}");
}
