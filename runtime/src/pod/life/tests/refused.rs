//! A transition that the tables refuse is a bug. It must fail the call that needed it, with the object's id, and be
//! logged; nothing may be done as if it had happened. Each test puts a record into a phase that does not fit its stage.

use super::super::stage::{Container, Fate, Link, PodCallers, PodStage, RunningStop, Stage, Start};
use super::super::{Action, Answer, Call, Input, Job, Life, Outcome, Timer, TornDown, Waiter};
use super::samples::{NOW, id, pod_record, record};
use crate::error::{Error, ErrorKind};
use model::{ContainerPhase, Exit, PodPhase};
use std::sync::Arc;
use std::time::Duration;

fn pod(stage: PodStage, phase: PodPhase) -> Life {
    Life::new(pod_record(phase), stage, Fate::Stays, Link::Up, NOW)
}

/// A ready pod with one container.
fn container(stage: Stage, phase: ContainerPhase) -> Life {
    let mut life = pod(PodStage::Ready, PodPhase::Ready);
    life.containers.insert(id(), Container::new(Arc::new(record(phase)), stage));
    life
}

/// Checks that the bug is logged, and that the caller gets an error with the object's id.
fn check(actions: &[Action], waiter: Waiter, id: &str) {
    let logged = actions.iter().any(|action| matches!(action, Action::ReportBug(_)));
    assert!(logged, "{actions:?}");
    let error = answers(actions).find(|(to, _)| *to == waiter).map(|(_, answer)| answer.clone());
    let Some(Err(error)) = error else { panic!("{actions:?}") };
    assert_eq!(error.kind, ErrorKind::Internal);
    assert!(error.text().contains(id), "{error}");
}

fn answers(actions: &[Action]) -> impl Iterator<Item = (Waiter, &Result<Answer, Error>)> {
    actions.iter().filter_map(|action| match action {
        Action::Answer(waiter, answer) => Some((*waiter, answer)),
        _ => None,
    })
}

fn has_job(actions: &[Action]) -> bool {
    actions.iter().any(|action| matches!(action, Action::Begin(_)))
}

#[test]
fn a_start() {
    let stage = Stage::Created { start: Start::NotRequested, stop: None };
    let mut life = container(stage, ContainerPhase::Exited);
    let actions = life.handle(NOW, Input::Call(Waiter(1), Call::Start(id())));
    check(&actions, Waiter(1), id().as_str());
    assert!(!has_job(&actions), "{actions:?}");
}

#[test]
fn the_end_of_a_start() {
    let stage = Stage::Created { start: Start::Requested(vec![Waiter(1)]), stop: None };
    let mut life = container(stage, ContainerPhase::Creating);
    let actions = life.handle(NOW, Input::Done(Outcome::Started(id(), Ok(4))));
    check(&actions, Waiter(1), id().as_str());
}

#[test]
fn an_exit() {
    let stop = RunningStop { deadline: Duration::ZERO, stoppers: vec![Waiter(1)], removers: vec![Waiter(2)] };
    let stage = Stage::Running { start: None, stop: Some(stop) };
    let mut life = container(stage, ContainerPhase::Creating);
    let outcome = Outcome::StopEnded(id(), Ok(Some(Exit { code: 3, ..Exit::default() })));
    let actions = life.handle(NOW, Input::Done(outcome));
    check(&actions, Waiter(1), id().as_str());
    check(&actions, Waiter(2), id().as_str());
    assert!(!has_job(&actions), "{actions:?}");
}

#[test]
fn a_removal() {
    let stage = Stage::Exited { durable: true, start: Some(vec![Waiter(2)]) };
    let mut life = container(stage, ContainerPhase::Running);
    let actions = life.handle(NOW, Input::Call(Waiter(1), Call::Remove(id())));
    check(&actions, Waiter(1), id().as_str());
    check(&actions, Waiter(2), id().as_str());
    assert!(!has_job(&actions), "{actions:?}");
}

#[test]
fn the_end_of_a_stop_of_a_pod() {
    let callers = PodCallers { stoppers: vec![Waiter(1)], removers: vec![Waiter(2)] };
    let mut life = pod(PodStage::TearingDown(callers), PodPhase::Launching);
    let actions = life.handle(NOW, Input::Done(Outcome::PodTornDown(TornDown::default())));
    check(&actions, Waiter(1), pod_record(PodPhase::Launching).id.as_str());
    check(&actions, Waiter(2), pod_record(PodPhase::Launching).id.as_str());
    let recorded = actions.iter().any(|action| matches!(action, Action::Begin(Job::RecordStop)));
    assert!(!recorded, "{actions:?}");
    // The pod is not given up.
    assert!(actions.iter().any(|action| matches!(action, Action::StartTimer(Timer::Pod, _))), "{actions:?}");
}

#[test]
fn a_removal_of_a_pod() {
    let mut life = pod(PodStage::Stopped { removers: Vec::new(), folder_left: false }, PodPhase::Ready);
    let actions = life.handle(NOW, Input::Call(Waiter(1), Call::RemovePod));
    check(&actions, Waiter(1), pod_record(PodPhase::Ready).id.as_str());
    assert!(!has_job(&actions), "{actions:?}");
}

#[test]
fn an_event_without_a_caller() {
    let stage = Stage::Created { start: Start::NotRequested, stop: None };
    let mut life = container(stage, ContainerPhase::Creating);
    let event = super::super::ShimEvent::Exited(id(), (Exit::default(), 4));
    let actions = life.handle(NOW, Input::Shim(event));
    assert!(matches!(&actions[..], [Action::ReportBug(_)]), "{actions:?}");
}
