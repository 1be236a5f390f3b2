//! Starts, and inits that are stopped, traced or killed meanwhile.

use wire::{ContainerState, ErrorKind, Event, Reply};

use super::super::model::{finish, rest};
use super::super::op::Op;
use super::super::world::id;
use super::{created, failed, last, state, world};

#[test]
fn a_start_without_its_daemon_is_reported_to_the_next() {
    let mut world = world(&[]);
    created(&mut world);
    for op in [Op::Start(1), Op::Disconnect, Op::Execve(0, true), Op::Pipe(0), Op::Connect] {
        world.step(&op).unwrap();
    }
    assert!(matches!(state(&world, 1), ContainerState::Running { .. }));
    finish(&mut world).unwrap();
}

#[test]
fn an_init_that_is_killed_before_execve_was_not_started() {
    let mut world = world(&[]);
    created(&mut world);
    world.step(&Op::Start(1)).unwrap();
    let init = world.kernel.made(world.serial_of(&id(1))).unwrap();
    world.kernel.end(init, 137);
    // Its exit closes the pipe, which may be read before init is reaped.
    world.step(&Op::Pipe(0)).unwrap();
    assert!(matches!(state(&world, 1), ContainerState::Created));
    rest(&mut world).unwrap();
    assert_eq!(failed(&world).0, ErrorKind::StartFailed);
    let ContainerState::Exited(facts) = state(&world, 1) else { panic!() };
    assert_eq!((facts.code, facts.started_at), (128, 0));
    finish(&mut world).unwrap();
}

#[test]
fn a_failed_start_is_reported_although_a_tracer_holds_the_zombie() {
    // What the simulated kernel shows of it depends on the pid: a zombie, or stopped at PTRACE_EVENT_EXIT.
    for pids_before in 0..3 {
        let mut world = world(&vec![Op::Bystander; pids_before]);
        created(&mut world);
        let init = world.kernel.made(world.serial_of(&id(1))).unwrap();
        world.step(&Op::Start(1)).unwrap();
        world.kernel.processes.get_mut(&init).unwrap().traced = true;
        world.kernel.end(init, 126);
        rest(&mut world).unwrap();
        assert_eq!(failed(&world).0, ErrorKind::StartFailed);
        assert!(matches!(state(&world, 1), ContainerState::Exited(_)));
        finish(&mut world).unwrap();
    }
}

#[test]
fn a_container_that_ends_at_once_was_started() {
    // Init calls execve, ends and is reaped before the shim has read its start pipe.
    let mut world = world(&[]);
    created(&mut world);
    let init = world.kernel.made(world.serial_of(&id(1))).unwrap();
    world.step(&Op::Start(1)).unwrap();
    world.step(&Op::Execve(0, true)).unwrap();
    world.kernel.end(init, 3);
    world.step(&Op::Reap(9, true)).unwrap();
    assert!(matches!(last(&world), Reply::Started { .. }), "{:?}", world.replies);
    let ContainerState::Exited(facts) = state(&world, 1) else { panic!() };
    assert_eq!((facts.code, facts.start_error), (3, None));
    finish(&mut world).unwrap();
}

#[test]
fn an_init_that_stays_stopped_or_traced_is_killed_and_the_start_fails() {
    // The pid decides whether the simulated kernel shows it as stopped or as traced.
    for pids_before in 0..3 {
        let mut world = world(&vec![Op::Bystander; pids_before]);
        created(&mut world);
        let init = world.kernel.made(world.serial_of(&id(1))).unwrap();
        world.kernel.processes.get_mut(&init).unwrap().traced = true;
        world.step(&Op::Start(1)).unwrap();
        let begun = world.now;
        while world.kernel.runs(init) {
            world.now = world.life.timer().unwrap();
            world.step(&Op::Pass(0)).unwrap();
            assert!(world.now < begun + 20_000);
        }
        assert!(world.now > begun + 9_000);
        assert!(matches!(state(&world, 1), ContainerState::Created));
        rest(&mut world).unwrap();
        let (kind, message) = failed(&world);
        assert_eq!(kind, ErrorKind::StartFailed);
        assert!(message.contains("stopped or traced"), "{message}");
        finish(&mut world).unwrap();
    }
}

#[test]
fn a_start_of_a_running_container_is_refused() {
    let mut world = world(&[Op::Start(0)]);
    assert_eq!(failed(&world).0, ErrorKind::WrongState);
    let told = world.events.iter().filter(|event| matches!(event, Event::Started { .. })).count();
    assert_eq!(told, 1);
    finish(&mut world).unwrap();
}
