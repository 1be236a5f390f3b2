//! Processes that end, and pids that are reused, before a packet names them.

use wire::{ErrorKind, Event, Reply};

use super::super::kernel::Owner;
use super::super::model::{finish, rest};
use super::super::op::{Op, Sabotage};
use super::super::world::{World, id};
use super::{created, failed, last, world};
use crate::lifecycle::id::Serial;
use crate::lifecycle::input::Input;

#[test]
fn an_earlier_exit_with_a_reused_pid_is_ignored() {
    let mut world = world(&[Op::Exec(0, None)]);
    // An orphan ends while a worker is running; later the worker's process gets the same pid.
    let orphan = world.kernel.spawn(Owner::Descendant(Serial(99)), None);
    world.kernel.end(orphan.unwrap(), 0);
    world.step(&Op::Reap(9, false)).unwrap();
    let (serial, pid) = (world.open_sockets()[world.open_sockets().len() - 1], orphan.unwrap());
    world.input(Input::Made { serial, pid, unreaped: true }).unwrap();
    let exec = world.life.execs.iter().find(|exec| exec.serial == serial).unwrap();
    assert_eq!(exec.unreaped(), Some(pid));
}

#[test]
fn an_exit_before_the_reply_is_not_lost() {
    let mut world = world(&[Op::Exec(0, None), Op::Work(0, 11), Op::Work(0, 11)]);
    // The process calls execve, exits and is reaped before its worker's packet is read.
    world.step(&Op::Execve(0, true)).unwrap();
    let serial = world.open_sockets().last().copied().unwrap();
    let pid = world.kernel.made(serial).unwrap();
    world.kernel.end(pid, 4);
    world.step(&Op::Reap(9, false)).unwrap();
    rest(&mut world).unwrap();
    assert!(matches!(last(&world), Reply::ExecStarted { .. }), "{:?}", world.replies);
    assert!(world.life.execs.is_empty());
    finish(&mut world).unwrap();
}

#[test]
fn an_early_exit_of_pause_is_reported_once() {
    let mut world = World::new(Sabotage::None, 100);
    for op in [Op::Connect, Op::StartPause, Op::Work(0, 11), Op::Work(0, 11), Op::Work(0, 11)] {
        world.step(&op).unwrap();
    }
    let serial = world.open_sockets()[0];
    let pid = world.kernel.made(serial).unwrap();
    world.kernel.end(pid, 1);
    world.step(&Op::Reap(9, false)).unwrap();
    rest(&mut world).unwrap();
    assert!(matches!(last(&world), Reply::PauseStarted { .. }), "{:?}", world.replies);
    let told = world.events.iter().filter(|event| matches!(event, Event::PauseExited { code: 1 })).count();
    assert_eq!(told, 1);
}

#[test]
fn a_child_of_an_interrupted_worker_is_killed_before_the_create_fails() {
    let mut world = world(&[Op::Create(1)]);
    // It is not in the container's cgroup, and its worker ends without a report.
    let serial = world.serial_of(&id(1));
    let child = world.kernel.spawn(Owner::Made(serial), None).unwrap();
    let worker = world.workers.last().unwrap().pid;
    world.kernel.end(worker, 137);
    rest(&mut world).unwrap();
    assert!(!world.kernel.runs(child));
    assert_eq!(failed(&world).0, ErrorKind::Internal);
    created(&mut world);
    finish(&mut world).unwrap();
}

/// An exec of container 0 whose process has called execve, ended and was reaped before its packet was read. Returns its
/// pid.
fn early_exit(world: &mut World, code: i32) -> u32 {
    for op in [Op::Exec(0, None), Op::Work(0, 11), Op::Work(0, 11), Op::Execve(0, true)] {
        world.step(&op).unwrap();
    }
    let serial = world.open_sockets().last().copied().unwrap();
    let pid = world.kernel.made(serial).unwrap();
    world.kernel.end(pid, code);
    world.step(&Op::Reap(9, false)).unwrap();
    pid
}

fn exec_exits(world: &World) -> Vec<i32> {
    let code = |event: &Event| if let Event::ExecExited { code, .. } = event { Some(*code) } else { None };
    world.events.iter().filter_map(code).collect()
}

#[test]
fn another_child_with_the_pid_is_not_taken_for_the_process() {
    // Few pids, so that the next process gets the pid.
    let mut world = World::new(Sabotage::None, 6);
    for op in super::super::model::running_pod() {
        world.step(&op).unwrap();
    }
    let pid = early_exit(&mut world, 4);
    let orphan =
        std::iter::from_fn(|| world.kernel.spawn(Owner::Descendant(Serial(99)), None)).find(|of| *of == pid);
    assert_eq!(orphan, Some(pid));
    rest(&mut world).unwrap();
    assert_eq!(exec_exits(&world), [4]);
    assert!(world.kernel.runs(pid), "the orphan was killed");
    assert!(world.life.execs.is_empty());
}

#[test]
fn many_orphans_do_not_displace_an_early_exit() {
    let mut world = world(&[]);
    early_exit(&mut world, 4);
    for _ in 0..1000 {
        let orphan = world.kernel.spawn(Owner::Descendant(Serial(99)), None).unwrap();
        world.kernel.end(orphan, 0);
        world.step(&Op::Reap(9, false)).unwrap();
    }
    rest(&mut world).unwrap();
    assert_eq!(exec_exits(&world), [4]);
    finish(&mut world).unwrap();
}
