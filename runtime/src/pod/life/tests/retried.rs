//! What could not be done is tried again, and no call reports it as done.

use super::super::stage::{Link, PodStage};
use super::super::{
    Action, Answer, Call, DialResult, Input, Job, Life, Outcome, ShimEvent, Timer, TornDown, Waiter,
};
use super::samples::{NOW, id, pod_record, record};
use crate::error::Error;
use model::reconcile::{InShim, Shim};
use model::{ContainerPhase, ContainerRecord, Exit, PodPhase};
use std::collections::BTreeMap;
use std::time::Duration;

/// A ready pod with a running container, restored with this result of connecting to its shim.
fn restored(shim: Shim) -> Life {
    let containers = vec![record(ContainerPhase::Running)];
    let (mut life, _) = Life::restore(pod_record(PodPhase::Ready), containers, false, NOW);
    life.handle(NOW, dialled(shim));
    life
}

fn running() -> Shim {
    let containers = BTreeMap::from([(id(), InShim::Running { pid: 7, started_at: 4 })]);
    Shim::Answered { pause: true, containers }
}

fn dialled(shim: Shim) -> Input {
    Input::Dialled(Box::new(DialResult { pid: 5, ..DialResult::of(shim) }))
}

fn call(life: &mut Life, waiter: u64, call: Call) -> Vec<Action> {
    life.handle(NOW, Input::Call(Waiter(waiter), call))
}

fn done(life: &mut Life, outcome: Outcome) -> Vec<Action> {
    life.handle(NOW, Input::Done(outcome))
}

/// The jobs that begin.
fn jobs(actions: &[Action]) -> Vec<&Job> {
    let jobs = actions.iter().filter_map(|action| match action {
        Action::Begin(job) => Some(job),
        _ => None,
    });
    jobs.collect()
}

/// Whether the call was answered Ok; `None` if it still waits.
fn is_done(actions: &[Action], waiter: u64) -> Option<bool> {
    actions.iter().find_map(|action| match action {
        Action::Answer(to, answer) if *to == Waiter(waiter) => Some(*answer == Ok(Answer::Done)),
        _ => None,
    })
}

fn pause(actions: &[Action]) -> Option<Duration> {
    actions.iter().find_map(|action| match action {
        Action::StartTimer(Timer::Pod, pause) => Some(*pause),
        _ => None,
    })
}

fn folder_error() -> Outcome {
    Outcome::ShimFolderRemoved(vec![Error::internal("remove /run/copepod/shims/1")])
}

/// A pod that is stopped and recorded, whose shim's folder could not be removed. StopPodSandbox is waiter 1.
fn with_the_folder_left() -> Life {
    let mut life = restored(running());
    call(&mut life, 1, Call::StopPod);
    done(&mut life, Outcome::PodTornDown(TornDown::default()));
    done(&mut life, Outcome::ExitRecorded(id(), true));
    done(&mut life, Outcome::StopRecorded);
    let actions = done(&mut life, folder_error());
    assert_eq!(is_done(&actions, 1), Some(false), "{actions:?}");
    assert!(pause(&actions).is_some(), "{actions:?}");
    life
}

#[test]
fn a_timer_removes_the_shims_folder_with_growing_pauses() {
    let mut life = with_the_folder_left();
    let mut pauses = Vec::new();
    for _ in 0..5 {
        let actions = life.handle(NOW, Input::Due(Timer::Pod));
        assert!(matches!(jobs(&actions)[..], [Job::RemoveShimFolder]), "{actions:?}");
        pauses.extend(pause(&done(&mut life, folder_error())));
    }
    assert!(pauses.len() == 5 && pauses.is_sorted() && pauses.first() < pauses.last(), "{pauses:?}");
    life.handle(NOW, Input::Due(Timer::Pod));
    let actions = done(&mut life, Outcome::ShimFolderRemoved(Vec::new()));
    assert!(pause(&actions).is_none(), "{actions:?}");
    assert!(jobs(&life.handle(NOW, Input::Due(Timer::Pod))).is_empty(), "nothing is left");
}

#[test]
fn a_repeated_stop_removes_the_shims_folder_and_reports_whether_it_is_left() {
    let mut life = with_the_folder_left();
    let actions = call(&mut life, 2, Call::StopPod);
    assert!(matches!(jobs(&actions)[..], [Job::RemoveShimFolder]), "{actions:?}");
    assert_eq!(is_done(&actions, 2), None);
    assert_eq!(is_done(&done(&mut life, folder_error()), 2), Some(false));
    call(&mut life, 3, Call::StopPod);
    assert_eq!(is_done(&done(&mut life, Outcome::ShimFolderRemoved(Vec::new())), 3), Some(true));
    let actions = call(&mut life, 4, Call::StopPod);
    assert!(is_done(&actions, 4) == Some(true) && jobs(&actions).is_empty(), "{actions:?}");
}

/// The removal includes the folder.
#[test]
fn a_pod_is_not_reported_as_removed_while_its_shims_folder_is_left() {
    let mut life = with_the_folder_left();
    let actions = call(&mut life, 2, Call::RemovePod);
    assert!(matches!(jobs(&actions)[..], [Job::RemovePod(..)]), "{actions:?}");
    // The timer of the failed stop expires meanwhile, and must not be the last one.
    assert!(life.handle(NOW, Input::Due(Timer::Pod)).is_empty());
    let actions = done(&mut life, Outcome::PodRemoved(vec![Error::internal("remove the shim's folder")]));
    assert_eq!(is_done(&actions, 2), Some(false), "{actions:?}");
    assert!(pause(&actions).is_some(), "{actions:?}");
    assert!(matches!(jobs(&life.handle(NOW, Input::Due(Timer::Pod)))[..], [Job::RemoveShimFolder]));
}

/// A disk that hangs counts as one that cannot be written (`pod::recorder`).
#[test]
fn an_exit_that_cannot_be_recorded_is_published_and_ends_the_stop() {
    let mut life = restored(running());
    call(&mut life, 1, Call::Stop(id(), Duration::from_secs(30)));
    let exited = ShimEvent::Exited(id(), (Exit { code: 3, ..Exit::default() }, 4));
    let actions = life.handle(NOW, Input::Shim(exited));
    assert!(matches!(jobs(&actions)[..], [Job::RecordExit(_)]), "{actions:?}");
    assert_eq!(is_done(&actions, 1), None);
    let actions = done(&mut life, Outcome::ExitRecorded(id(), false));
    assert_eq!(is_done(&actions, 1), Some(true));
    let has_exited = |record: &ContainerRecord| record.phase == ContainerPhase::Exited;
    let shown = actions.iter().any(|action| matches!(action, Action::PublishContainer(it) if has_exited(it)));
    assert!(shown, "{actions:?}");
}

#[test]
fn a_shim_is_silent_only_when_an_attempt_to_connect_has_failed() {
    let mut life = restored(running());
    life.handle(NOW, Input::LinkLost);
    assert!(matches!(life.link, Link::Down { .. }));
    assert_eq!(life.link.silent_since(), 0, "the first attempt has not ended");
    life.handle(NOW, dialled(Shim::Silent));
    assert_eq!(life.link.silent_since(), NOW.wall);
    life.handle(NOW, dialled(running()));
    assert_eq!(life.link, Link::Up);
    assert!(matches!(life.stage, PodStage::Ready));
}

/// The pauses grow from the first attempt on, which the driver begins after a restart of the daemon.
#[test]
fn attempts_to_connect_get_slower_and_wait_longer() {
    let dial = |actions: &[Action]| {
        actions.iter().find_map(|action| match action {
            Action::Dial { pause, limit } => Some((*pause, *limit)),
            _ => None,
        })
    };
    let (mut life, _) = Life::restore(pod_record(PodPhase::Ready), Vec::new(), false, NOW);
    let dials: Vec<_> = (0..8).filter_map(|_| dial(&life.handle(NOW, dialled(Shim::Silent)))).collect();
    assert!(dials.len() == 8 && dials.is_sorted() && dials.first() < dials.last(), "{dials:?}");
    assert!(dials.iter().all(|(_, limit)| *limit > super::super::GREETING), "{dials:?}");
}
