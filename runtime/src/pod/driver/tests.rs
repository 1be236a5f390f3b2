//! What the driver decides without a shim.

use super::*;
use model::{ContainerConfig, ImageOfContainer, PodId, User};

fn container(phase: ContainerPhase) -> Container {
    let record = ContainerRecord {
        id: ContainerId::from_random([7; 32]),
        pod: PodId::from_random([9; 32]),
        config: ContainerConfig::default(),
        image: ImageOfContainer::default(),
        created_at: 1,
        started_at: 0,
        phase,
        exit: None,
        pid: 5,
        user: User::default(),
        log_path: String::new(),
        stop_signal: 15,
        cgroup: String::new(),
        exec_template: None,
        asked_env: Vec::new(),
    };
    Container::with(Recorder::new("unused".into(), "container", record.clone()), record)
}

fn code(code: i32) -> Exit {
    Exit { code, ..Exit::default() }
}

#[test]
fn an_exit_during_the_create_waits_for_its_end() {
    let mut container = container(ContainerPhase::Creating);
    assert!(!container.end(code(137), 0));
    // A second word on it changes nothing.
    assert!(!container.end(code(255), 0));
    assert_eq!((container.record.phase, container.record.exit.clone()), (ContainerPhase::Creating, None));
    container.record.phase = ContainerPhase::Created;
    let (exit, started_at) = container.early_exit.take().unwrap();
    assert!(container.end(exit, started_at));
    assert_eq!((container.record.phase, container.record.pid), (ContainerPhase::Exited, 0));
    assert_eq!(container.record.exit.as_ref().map(|exit| exit.code), Some(137));
    assert!(!container.end(code(0), 0));
    assert_eq!(container.record.exit.map(|exit| exit.code), Some(137));
}

#[test]
fn pauses_grow_and_have_an_end() {
    let pauses: Vec<Duration> = (0..40).map(|times| later(FIRST_RETRY, times, LONGEST_RETRY)).collect();
    assert_eq!(pauses.first(), Some(&FIRST_RETRY));
    assert!(pauses.is_sorted() && pauses.iter().all(|pause| *pause <= LONGEST_RETRY));
    assert_eq!(pauses.last(), Some(&LONGEST_RETRY));
    assert_eq!(later(FIRST_RETRY, u32::MAX, LONGEST_RETRY), LONGEST_RETRY);
}

#[test]
fn a_link_is_silent_once_it_was_tried() {
    let mut link = Link::down("not asked yet");
    assert_eq!(link.silent_since(), 0);
    if let Link::Down { tries, .. } = &mut link {
        *tries = 1;
    }
    assert!(link.silent_since() > 0 && link.client().is_none());
    assert_eq!(Link::None.silent_since(), 0);
}

#[test]
fn only_what_cannot_run_is_left_alone_by_a_stop() {
    let mut container = container(ContainerPhase::Created);
    assert!(container.idle());
    container.may_run = true;
    assert!(!container.idle());
    container.may_run = false;
    container.record.phase = ContainerPhase::Running;
    assert!(!container.idle());
}

#[test]
fn a_pod_waits_for_creates_and_for_exits_that_are_being_recorded() {
    let mut creating = container(ContainerPhase::Creating);
    // Left by an earlier daemon: no job is at work.
    assert!(!creating.keeps_pod());
    let (reply, _answer) = tokio::sync::oneshot::channel();
    creating.creating.push(reply);
    assert!(creating.keeps_pod());
    let mut ended = container(ContainerPhase::Running);
    assert!(!ended.keeps_pod());
    assert!(ended.end(code(0), 3) && ended.keeps_pod());
    ended.settled = true;
    assert!(!ended.keeps_pod());
}
