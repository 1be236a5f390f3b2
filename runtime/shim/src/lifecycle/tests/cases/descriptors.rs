//! A shim without a free descriptor, or whose exit files cannot be written.

use wire::{ContainerState, ErrorKind, Event, Reply};

use super::super::model::{finish, rest};
use super::super::op::Op;
use super::super::world::{World, id};
use super::{created, failed, last, state, world};

/// Container 1, which was told to start, in a shim without a free descriptor. Returns its init.
fn starting(world: &mut World) -> u32 {
    created(world);
    world.step(&Op::Start(1)).unwrap();
    world.step(&Op::Descriptors(false)).unwrap();
    world.kernel.made(world.serial_of(&id(1))).unwrap()
}

fn is_warned(world: &World) -> bool {
    world.events.iter().any(|event| matches!(event, Event::Warning { .. }))
}

#[test]
fn an_init_that_was_killed_before_execve_and_cannot_be_examined_was_not_started() {
    let mut world = world(&[]);
    let init = starting(&mut world);
    world.kernel.end(init, 137);
    // Its exit closes the pipe.
    world.step(&Op::Pipe(0)).unwrap();
    assert!(matches!(state(&world, 1), ContainerState::Created));
    world.step(&Op::Pass(300)).unwrap();
    assert!(matches!(state(&world, 1), ContainerState::Created));
    rest(&mut world).unwrap();
    assert_eq!(failed(&world).0, ErrorKind::StartFailed);
    finish(&mut world).unwrap();
}

#[test]
fn a_start_that_cannot_be_checked_is_checked_again() {
    let mut world = world(&[]);
    starting(&mut world);
    for op in [Op::Execve(0, true), Op::Pipe(0), Op::Descriptors(true), Op::Pass(300)] {
        world.step(&op).unwrap();
    }
    assert!(matches!(last(&world), Reply::Started { .. }), "{:?}", world.replies);
    assert!(!is_warned(&world));
    finish(&mut world).unwrap();
}

#[test]
fn a_start_that_can_never_be_checked_is_reported_with_a_warning() {
    let mut world = world(&[]);
    starting(&mut world);
    world.step(&Op::Execve(0, true)).unwrap();
    world.step(&Op::Pipe(0)).unwrap();
    let begun = world.now;
    while !matches!(last(&world), Reply::Started { .. }) {
        world.step(&Op::Pass(250)).unwrap();
        assert!(world.now < begun + 15_000);
    }
    assert!(world.now > begun + 9_000 && is_warned(&world));
    finish(&mut world).unwrap();
}

#[test]
fn a_container_that_ended_and_could_never_be_examined_has_its_own_exit_code() {
    let mut world = world(&[]);
    let init = starting(&mut world);
    world.step(&Op::Execve(0, true)).unwrap();
    world.step(&Op::Pipe(0)).unwrap();
    world.kernel.end(init, 3);
    world.step(&Op::Reap(9, true)).unwrap();
    assert!(matches!(last(&world), Reply::Started { .. }), "{:?}", world.replies);
    rest(&mut world).unwrap();
    let ContainerState::Exited(facts) = state(&world, 1) else { panic!() };
    assert_eq!((facts.code, facts.start_error), (3, None));
    finish(&mut world).unwrap();
}

#[test]
fn a_start_that_fails_can_be_repeated() {
    let mut world = world(&[]);
    created(&mut world);
    for op in [Op::Descriptors(false), Op::Start(1)] {
        world.step(&op).unwrap();
    }
    assert_eq!(failed(&world).0, ErrorKind::Internal);
    assert!(matches!(state(&world, 1), ContainerState::Created));
    for op in [Op::Descriptors(true), Op::Start(1), Op::Execve(0, true), Op::Pipe(0)] {
        world.step(&op).unwrap();
    }
    assert!(matches!(last(&world), Reply::Started { .. }), "{:?}", world.replies);
    finish(&mut world).unwrap();
}

#[test]
fn an_exit_whose_file_cannot_be_written_is_reported_with_a_warning() {
    let mut world = world(&[Op::DiskFull(true)]);
    let init = world.kernel.made(world.serial_of(&id(0))).unwrap();
    world.kernel.end(init, 3);
    world.step(&Op::Reap(9, true)).unwrap();
    let ContainerState::Exited(facts) = state(&world, 0) else { panic!() };
    assert_eq!(facts.code, 3);
    assert!(is_warned(&world));
    finish(&mut world).unwrap();
}

#[test]
fn a_create_whose_namespaces_cannot_be_opened_is_undone() {
    let mut world = world(&[Op::Create(1)]);
    let serial = world.serial_of(&id(1));
    for _ in 0..4 {
        world.step(&Op::Work(0, 11)).unwrap();
    }
    // The streams arrive, then descriptors run out.
    let packets: Vec<_> = world.workers.last().unwrap().packets.iter().cloned().collect();
    assert_eq!(packets.len(), 2, "{packets:?}");
    let later = world.workers.last_mut().unwrap().packets.split_off(1);
    world.read(serial).unwrap();
    world.workers.last_mut().unwrap().packets = later;
    world.step(&Op::Descriptors(false)).unwrap();
    world.read(serial).unwrap();
    rest(&mut world).unwrap();
    assert_eq!(failed(&world).0, ErrorKind::Internal);
    created(&mut world);
    finish(&mut world).unwrap();
}

#[test]
fn a_process_whose_packet_lost_its_descriptors_is_killed() {
    let mut world = world(&[Op::Exec(0, None), Op::Work(0, 11), Op::Work(0, 11), Op::Work(0, 11)]);
    let serial = world.open_sockets().last().copied().unwrap();
    let pid = world.kernel.made(serial).unwrap();
    world.step(&Op::Descriptors(false)).unwrap();
    world.step(&Op::Execve(0, true)).unwrap();
    world.read(serial).unwrap();
    assert!(!world.kernel.runs(pid));
    rest(&mut world).unwrap();
    assert_eq!(failed(&world).0, ErrorKind::Internal);
    finish(&mut world).unwrap();
}

#[test]
fn a_stop_kills_again_what_a_kill_did_not_reach() {
    // The container has frozen itself, and its cgroup cannot be thawed without a descriptor.
    let mut world = world(&[Op::Freeze(0), Op::Descriptors(false), Op::StopPod, Op::Pass(2_000)]);
    assert_ne!(*last(&world), Reply::Done);
    rest(&mut world).unwrap();
    assert_eq!(*last(&world), Reply::Done);
    finish(&mut world).unwrap();
}
