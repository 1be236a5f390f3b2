//! Updates of resources beside starts, exits, removals, each other, and the end of the daemon.

use super::super::stage::{Link, Stage};
use super::super::{Action, Answer, Call, Input, Job, Life, Outcome, ShimEvent, StartError, Waiter};
use super::samples::{NOW, id, pod_record, record, update};
use crate::error::{Error, ErrorKind};
use model::{ContainerPhase, ContainerRecord, Exit, PodPhase, Resources, Update};
use std::sync::Arc;

/// A ready pod with a container, as left by an earlier daemon.
fn restored(record: ContainerRecord) -> (Life, Vec<Action>) {
    let (mut life, actions) = Life::restore(pod_record(PodPhase::Ready), vec![record], false, NOW);
    life.link = Link::Up;
    (life, actions)
}

fn running() -> Life {
    restored(record(ContainerPhase::Running)).0
}

fn call(life: &mut Life, waiter: u64, shares: i64) -> Vec<Action> {
    let resources = Resources { cpu_shares: shares, ..Resources::default() };
    let update = Box::new(Update { resources, ..Update::default() });
    life.handle(NOW, Input::Call(Waiter(waiter), Call::Update(id(), update)))
}

fn done(life: &mut Life, outcome: Outcome) -> Vec<Action> {
    life.handle(NOW, Input::Done(outcome))
}

/// The replies, by caller.
fn answers(actions: &[Action]) -> Vec<(u64, Result<Answer, ErrorKind>)> {
    let answer = |action: &Action| match action {
        Action::Answer(waiter, answer) => Some((waiter.0, answer.clone().map_err(|error| error.kind))),
        _ => None,
    };
    actions.iter().filter_map(answer).collect()
}

/// The record that the update job writes first.
fn begun(actions: &[Action]) -> Option<&ContainerRecord> {
    let written = actions
        .iter()
        .position(|action| matches!(action, Action::SetContainerRecord(record) if record.update.is_some()));
    actions.iter().enumerate().find_map(|(at, action)| match action {
        Action::Begin(Job::Update(record)) => {
            assert!(written.is_some_and(|before| before < at), "it is not recorded before it begins");
            Some(&**record)
        }
        _ => None,
    })
}

fn shares(actions: &[Action]) -> Vec<i64> {
    let shown = |action: &Action| match action {
        Action::PublishContainer(record) => Some(record.config.resources.cpu_shares),
        _ => None,
    };
    actions.iter().filter_map(shown).collect()
}

#[test]
fn an_update_is_recorded_applied_shown_recorded_and_answered() {
    let mut life = running();
    let actions = call(&mut life, 1, 100);
    let record = begun(&actions).expect("a job");
    assert_eq!(record.config.resources.cpu_shares, 0, "the values before it");
    assert!(answers(&actions).is_empty() && shares(&actions).is_empty(), "{actions:?}");
    let actions = done(&mut life, Outcome::Updated(id(), Ok(())));
    assert_eq!(shares(&actions), [100]);
    assert!(
        actions
            .iter()
            .any(|action| matches!(action, Action::SetContainerRecord(record) if record.update.is_none()))
    );
    assert!(answers(&actions).is_empty(), "the record is not written yet");
    let actions = done(&mut life, Outcome::UpdateRecorded(id()));
    assert_eq!(answers(&actions), [(1, Ok(Answer::Done))]);
}

#[test]
fn updates_run_one_after_the_other() {
    let mut life = running();
    assert!(begun(&call(&mut life, 1, 100)).is_some());
    assert!(call(&mut life, 2, 200).is_empty());
    let actions = done(&mut life, Outcome::Updated(id(), Err(Error::internal("EBUSY"))));
    assert_eq!(shares(&actions), [0], "nothing has changed");
    let actions = done(&mut life, Outcome::UpdateRecorded(id()));
    assert_eq!(answers(&actions), [(1, Err(ErrorKind::Internal))]);
    assert_eq!(begun(&actions).expect("the next one").config.resources.cpu_shares, 0);
    done(&mut life, Outcome::Updated(id(), Ok(())));
    assert_eq!(answers(&done(&mut life, Outcome::UpdateRecorded(id()))), [(2, Ok(Answer::Done))]);
}

/// A daemon that reads a record without the start would take the container for one that does not run.
#[test]
fn an_update_beside_a_start_keeps_that_the_start_was_requested() {
    let (mut life, _) = restored(record(ContainerPhase::Created));
    let written = |actions: &[Action]| {
        let phases = actions.iter().filter_map(|action| match action {
            Action::SetContainerRecord(record) => Some(record.phase),
            _ => None,
        });
        phases.collect::<Vec<_>>()
    };
    assert_eq!(written(&call(&mut life, 1, 100)), [ContainerPhase::Created]);
    let actions = life.handle(NOW, Input::Call(Waiter(2), Call::Start(id())));
    assert_eq!(written(&actions), [ContainerPhase::Running]);
    let actions = done(&mut life, Outcome::Updated(id(), Ok(())));
    assert_eq!(written(&actions), [ContainerPhase::Running]);
    assert!(actions.iter().all(|action| match action {
        Action::PublishContainer(record) => record.phase == ContainerPhase::Created,
        _ => true,
    }));
    done(&mut life, Outcome::UpdateRecorded(id()));
    // The start may have succeeded.
    let lost = StartError::Other(Error::internal("lost"));
    assert_eq!(written(&done(&mut life, Outcome::Started(id(), Err(lost)))), [ContainerPhase::Running]);
    assert_eq!(written(&call(&mut life, 3, 200)), [ContainerPhase::Running]);
}

#[test]
fn callers_that_wait_are_bounded() {
    let mut life = running();
    let refused = (1..20).map(|waiter| answers(&call(&mut life, waiter, 100)).len()).sum::<usize>();
    assert_eq!(refused, 19 - 9, "one runs, and eight wait");
    assert_eq!(answers(&call(&mut life, 30, 100)), [(30, Err(ErrorKind::ResourceExhausted))]);
}

#[test]
fn an_exit_ends_the_updates_behind_it() {
    let mut life = running();
    call(&mut life, 1, 100);
    call(&mut life, 2, 200);
    life.handle(NOW, Input::Shim(ShimEvent::Exited(id(), (Exit::default(), 4))));
    let actions = done(&mut life, Outcome::Updated(id(), Err(Error::internal("no such file"))));
    assert!(shares(&actions).is_empty(), "the exit is not recorded, and must not be shown: {actions:?}");
    let actions = done(&mut life, Outcome::UpdateRecorded(id()));
    assert_eq!(
        answers(&actions),
        [(1, Err(ErrorKind::FailedPrecondition)), (2, Err(ErrorKind::FailedPrecondition))]
    );
    assert!(begun(&actions).is_none());
    assert_eq!(answers(&call(&mut life, 3, 1)), [(3, Err(ErrorKind::FailedPrecondition))]);
}

#[test]
fn a_removal_ends_all_updates_and_forgets_the_running_one() {
    let (mut life, _) = restored(record(ContainerPhase::Running));
    call(&mut life, 1, 100);
    call(&mut life, 2, 200);
    life.handle(NOW, Input::Shim(ShimEvent::Exited(id(), (Exit::default(), 4))));
    done(&mut life, Outcome::ExitRecorded(id(), true));
    let actions = life.handle(NOW, Input::Call(Waiter(3), Call::Remove(id())));
    assert_eq!(
        answers(&actions),
        [(1, Err(ErrorKind::FailedPrecondition)), (2, Err(ErrorKind::FailedPrecondition))]
    );
    let removal = actions.iter().find_map(|action| match action {
        Action::SetContainerRecord(record) => Some(Arc::clone(record)),
        _ => None,
    });
    assert!(removal.is_some_and(|record| record.update.is_none()));
    // Its late outcome changes no record, and nobody gets a second reply.
    assert!(done(&mut life, Outcome::Updated(id(), Ok(()))).is_empty());
    assert!(done(&mut life, Outcome::UpdateRecorded(id())).is_empty());
    assert_eq!(
        answers(&done(&mut life, Outcome::ContainerRemoved(id(), Vec::new()))),
        [(3, Ok(Answer::Done))]
    );
}

#[test]
fn an_update_of_an_earlier_daemon_is_settled_before_others_begin() {
    for (settled, shown) in [(Ok(()), 512), (Err(Error::internal("undone")), 0)] {
        let cut = ContainerRecord { update: Some(Box::new(update())), ..record(ContainerPhase::Running) };
        let (mut life, actions) = restored(cut);
        let settles = |action: &Action| matches!(action, Action::Begin(Job::SettleUpdate(_)));
        assert!(actions.iter().any(settles), "{actions:?}");
        assert!(call(&mut life, 1, 100).is_empty(), "it waits");
        let actions = done(&mut life, Outcome::Updated(id(), settled));
        assert_eq!(shares(&actions), [shown]);
        let actions = done(&mut life, Outcome::UpdateRecorded(id()));
        assert!(answers(&actions).is_empty(), "the earlier caller has gone");
        assert_eq!(begun(&actions).expect("the waiting one").config.resources.cpu_shares, shown);
    }
}

#[test]
fn a_container_that_has_exited_has_no_update_to_settle() {
    let cut = ContainerRecord { update: Some(Box::new(update())), ..record(ContainerPhase::Exited) };
    let (life, actions) = restored(cut);
    assert!(!actions.iter().any(|action| matches!(action, Action::Begin(_))), "{actions:?}");
    assert!(life.containers[&id()].record.update.is_none());
}

#[test]
fn a_repeated_create_is_compared_with_what_was_requested() {
    let (mut life, _) = restored(record(ContainerPhase::Created));
    call(&mut life, 1, 100);
    done(&mut life, Outcome::Updated(id(), Ok(())));
    done(&mut life, Outcome::UpdateRecorded(id()));
    assert!(matches!(life.containers[&id()].stage, Stage::Created { .. }));
    let config = Box::new(super::world::container_config(0, false));
    let create = Call::Create { id: model::ContainerId::from_random([8; 32]), config };
    let actions = life.handle(NOW, Input::Call(Waiter(2), create));
    assert_eq!(answers(&actions), [(2, Ok(Answer::Created(id())))]);
}

#[test]
fn a_pod_keeps_what_an_update_does_not_say() {
    let (mut life, _) = restored(record(ContainerPhase::Running));
    let of = |cpu_shares| Some(Resources { cpu_shares, ..Resources::default() });
    for (waiter, overhead, resources) in [(1, of(1), of(2)), (2, None, of(3))] {
        let new = Box::new(model::PodResources { overhead, resources });
        life.handle(NOW, Input::Call(Waiter(waiter), Call::UpdatePod(new)));
        let actions = done(&mut life, Outcome::PodUpdateRecorded(Waiter(waiter)));
        assert_eq!(answers(&actions), [(waiter, Ok(Answer::Done))]);
    }
    let updated = life.record().updated.as_deref().expect("an update");
    assert_eq!((&updated.overhead, &updated.resources), (&of(1), &of(3)));
    assert_eq!(life.record().config.resources, None, "the request is as it was");
}
