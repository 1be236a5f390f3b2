//! Earlier faults, each as one sequence: of creates, execs, requests and tables here, of starts, of pids, and of a shim
//! without a free descriptor in the submodules.

mod descriptors;
mod pids;
mod start;

use wire::{ContainerState, ErrorKind, Event, MAX_CONTAINERS, Reply, Request, Snapshot};

use super::model::{finish, rest, running_pod};
use super::op::{Op, Sabotage};
use super::world::{World, id};
use crate::lifecycle::action::Action;
use crate::lifecycle::context::Time;
use crate::lifecycle::id::Requester;
use crate::lifecycle::input::{ExecInput, Input, WorkerInput};
use crate::lifecycle::pod::{Lifecycle, MAX_EXECS, MAX_LEFTOVERS};

fn world(ops: &[Op]) -> World {
    let mut world = World::new(Sabotage::None, 5000);
    for op in running_pod().iter().chain(ops) {
        world.step(op).unwrap();
    }
    world
}

/// The last reply.
fn last(world: &World) -> &Reply {
    &world.replies.last().unwrap().1
}

fn failed(world: &World) -> (ErrorKind, &str) {
    match last(world) {
        Reply::Failed(failure) => (failure.kind, failure.message.as_str()),
        other => panic!("{other:?}"),
    }
}

fn state(world: &World, number: u8) -> ContainerState {
    let found = world.life.snapshot().find_map(|entry| match entry {
        Snapshot::Container { container, state, .. } if container == id(number) => Some(state),
        _ => None,
    });
    found.unwrap()
}

/// Creates container 1, with a waiting init.
fn created(world: &mut World) {
    world.step(&Op::Create(1)).unwrap();
    for _ in 0..4 {
        world.step(&Op::Work(0, 11)).unwrap();
    }
    world.step(&Op::Reap(9, true)).unwrap();
    assert!(matches!(last(world), Reply::Created { .. }), "{:?}", world.replies);
}

#[test]
fn a_create_during_a_kill_fails_because_of_the_kill() {
    // The init may have been created and reported, or not; a kill is SIGKILL to init or to all processes.
    for (steps, all) in [(1, true), (2, true), (3, true), (1, false), (3, false)] {
        let mut world = world(&[Op::Create(1)]);
        for _ in 0..steps {
            world.step(&Op::Work(0, 11)).unwrap();
        }
        world.step(&Op::Kill(1, true, all)).unwrap();
        assert_eq!(*last(&world), Reply::Done);
        rest(&mut world).unwrap();
        let (kind, message) = failed(&world);
        assert_eq!(kind, ErrorKind::WrongState, "{message}");
        assert!(message.contains("was killed while it was created"), "{message}");
        // The name is free.
        created(&mut world);
        finish(&mut world).unwrap();
    }
}

#[test]
fn sigterm_ends_a_shim_without_processes() {
    let mut world = World::new(Sabotage::None, 100);
    world.step(&Op::Terminate).unwrap();
    assert!(world.ended);
}

#[test]
fn an_exec_in_a_frozen_container_ends_at_its_deadline() {
    let mut world = world(&[Op::Exec(0, None)]);
    world.step(&Op::Work(0, 11)).unwrap();
    world.step(&Op::Freeze(0)).unwrap();
    rest(&mut world).unwrap();
    assert_eq!(failed(&world).0, ErrorKind::Timeout);
    assert!(!world.life.snapshot().any(|entry| matches!(entry, Snapshot::Exec { .. })));
    finish(&mut world).unwrap();
}

#[test]
fn an_exec_that_a_containers_end_overtakes_makes_nothing() {
    // Its worker has not joined the cgroup yet, so that is found empty.
    let mut world = world(&[Op::Exec(0, None)]);
    let init = world.kernel.made(world.serial_of(&id(0))).unwrap();
    world.kernel.end(init, 3);
    world.step(&Op::Reap(1, false)).unwrap();
    assert!(matches!(state(&world, 0), ContainerState::Exited(_)));
    assert!(world.at_work().is_empty());
    rest(&mut world).unwrap();
    let (kind, message) = failed(&world);
    assert_eq!(kind, ErrorKind::WrongState, "{message}");
    assert!(message.contains("has ended"), "{message}");
    finish(&mut world).unwrap();
}

#[test]
fn execs_that_cannot_be_killed_are_bounded() {
    let mut world = world(&[Op::Freeze(0)]);
    for number in 0..MAX_LEFTOVERS {
        world.step(&Op::Exec(0, None)).unwrap();
        world.step(&Op::Work(u8::try_from(number).unwrap(), 11)).unwrap();
    }
    rest(&mut world).unwrap();
    world.step(&Op::Exec(0, None)).unwrap();
    assert_eq!(failed(&world).0, ErrorKind::Exhausted);
    finish(&mut world).unwrap();
}

#[test]
fn full_tables_refuse_and_recover() {
    let mut world = world(&[]);
    for _ in 0..MAX_EXECS {
        world.step(&Op::Exec(0, None)).unwrap();
    }
    let running = world.replies.len();
    world.step(&Op::Exec(0, None)).unwrap();
    assert_eq!(failed(&world).0, ErrorKind::Exhausted);
    assert_eq!(world.replies.len(), running + 1);
    rest(&mut world).unwrap();
    assert!(matches!(last(&world), Reply::ExecStarted { .. }));
    // The snapshot has all of them, and all can be killed.
    world.step(&Op::Connect).unwrap();
    assert_eq!(world.life.snapshot().count(), 2 + MAX_EXECS);
    finish(&mut world).unwrap();
}

#[test]
fn a_full_table_of_containers_is_reported() {
    let mut life = Lifecycle::default();
    let ask = |life: &mut Lifecycle, number: u64, request| {
        let requester = Requester { generation: 1, id: number };
        life.input(Time::default(), Input::Request { requester, request, fds: 2 });
        std::iter::from_fn(|| life.next_action()).collect::<Vec<_>>()
    };
    life.input(Time::default(), Input::Connected(1));
    let actions = ask(&mut life, 1, Request::StartPause);
    let Some(Action::Fork(pause, _)) = actions.last() else { panic!("{actions:?}") };
    for input in [
        Input::Worker(*pause, WorkerInput::Forked(Ok(5))),
        Input::Made { serial: *pause, pid: 6, unreaped: true },
        Input::Worker(*pause, WorkerInput::Closed),
        Input::Adopted(*pause, Ok(())),
    ] {
        life.input(Time::default(), input);
    }
    while life.next_action().is_some() {}
    for number in 0..=u16::try_from(MAX_CONTAINERS).unwrap() {
        let mut bytes = [0; 32];
        bytes[..2].copy_from_slice(&number.to_le_bytes());
        let (container, deadline_ms) = (model::ContainerId::from_random(bytes), 1);
        let request = Request::Create { container, deadline_ms, log: None, terminal: false, stdin: false };
        let actions = ask(&mut life, 2, request);
        let full = usize::from(number) == MAX_CONTAINERS;
        match actions.as_slice() {
            [Action::Fork(..)] if !full => {}
            [Action::Reply { reply: Reply::Failed(failure), .. }] if full => {
                assert_eq!(failure.kind, ErrorKind::Exhausted);
            }
            other => panic!("{number}: {other:?}"),
        }
    }
}

#[test]
fn an_oom_killed_worker_is_reported_as_such() {
    // Serial 4: the simulated kernel reports an OOM kill for even serials.
    let mut world = world(&[Op::Exec(0, None), Op::Exec(0, None)]);
    for which in 0..2 {
        world.step(&Op::Work(which, 1)).unwrap();
        world.step(&Op::Work(0, 1)).unwrap();
    }
    rest(&mut world).unwrap();
    let told = world.replies.iter().any(|(_, reply)| {
        matches!(reply, Reply::Failed(failure) if failure.message.contains("killed the worker for memory"))
    });
    assert!(told, "{:?}", world.replies);
    finish(&mut world).unwrap();
}

#[test]
fn a_late_kill_reports_the_exit_code_of_a_process_that_has_ended() {
    let mut world = world(&[Op::Exec(0, Some(10))]);
    for op in [Op::Work(0, 11), Op::Work(0, 11), Op::Work(0, 11), Op::Execve(0, true)] {
        world.step(&op).unwrap();
    }
    let serial = world.open_sockets().last().copied().unwrap();
    world.read(serial).unwrap();
    let pid = world.kernel.made(serial).unwrap();
    world.kernel.end(pid, 3);
    world.kernel.processes.get_mut(&pid).unwrap().traced = true;
    world.step(&Op::Pass(10)).unwrap();
    // The shim was stopped meanwhile, so that its next check is after the time limit.
    world.step(&Op::Pass(11_000)).unwrap();
    let codes = world.events.iter().filter_map(|event| match event {
        Event::ExecExited { code, .. } => Some(*code),
        _ => None,
    });
    assert_eq!(codes.collect::<Vec<_>>(), [3]);
}

#[test]
fn a_second_stop_replaces_the_first() {
    let mut world = world(&[Op::StopPod, Op::StopPod]);
    assert_eq!(failed(&world).0, ErrorKind::Busy);
    rest(&mut world).unwrap();
    assert_eq!(*last(&world), Reply::Done);
    finish(&mut world).unwrap();
}

#[test]
fn a_shim_that_exits_starts_nothing() {
    // A request that arrived together with SIGTERM.
    let mut world = World::new(Sabotage::None, 100);
    world.step(&Op::Connect).unwrap();
    world.step(&Op::Terminate).unwrap();
    assert!(world.ended);
    world.ask(Request::StartPause, 1).unwrap();
    assert!(world.workers.is_empty());
}

#[test]
fn a_tracer_does_not_prevent_exits() {
    let mut world = world(&[Op::Exec(0, None)]);
    rest(&mut world).unwrap();
    for which in 0..3 {
        world.step(&Op::Trace(which)).unwrap();
    }
    world.step(&Op::KillExec(0)).unwrap();
    world.step(&Op::Kill(0, true, true)).unwrap();
    rest(&mut world).unwrap();
    assert!(matches!(state(&world, 0), ContainerState::Exited(_)));
    finish(&mut world).unwrap();
}

#[test]
fn a_create_that_runs_out_of_memory_says_so() {
    // Serial 5: the simulated kernel reports an OOM kill for multiples of 5.
    let mut world = world(&[Op::Exec(0, None), Op::Exec(0, None), Op::Create(1)]);
    assert_eq!(world.serial_of(&id(1)).0, 5);
    let worker = world.workers.last().unwrap().pid;
    world.kernel.end(worker, 137);
    rest(&mut world).unwrap();
    let told = world.replies.iter().any(|(_, reply)| {
        matches!(reply, Reply::Failed(failure)
            if failure.kind == ErrorKind::Invalid && failure.stage == "memory_limit_in_bytes")
    });
    assert!(told, "{:?}", world.replies);
    finish(&mut world).unwrap();
}

#[test]
fn a_terminated_shim_exits_with_its_last_process() {
    let mut world = world(&[Op::Terminate]);
    assert!(!world.ended);
    let init = world.kernel.made(world.serial_of(&id(0))).unwrap();
    world.kernel.end(init, 0);
    rest(&mut world).unwrap();
    assert!(!world.ended, "pause lives");
    let pause = world.kernel.made(world.life.pause.serial().unwrap()).unwrap();
    world.kernel.end(pause, 0);
    rest(&mut world).unwrap();
    assert!(world.ended);
}

#[test]
fn sessions_of_a_container_are_killed_by_one_listing_and_checks_become_rare() {
    let mut world = world(&[]);
    for _ in 0..20 {
        world.step(&Op::Exec(0, Some(60_000))).unwrap();
    }
    rest(&mut world).unwrap();
    // The container has frozen itself, so that they do not end.
    world.step(&Op::Freeze(0)).unwrap();
    let mut listings = 0;
    let end = world.now + 80_000;
    while let Some(at) = world.life.timer().filter(|at| *at <= end) {
        world.now = at;
        world.life.input(Time { ms: at, wall: 1 }, Input::TimerDue);
        while let Some(action) = world.life.next_action() {
            if let Action::KillSessions { sessions, .. } = &action {
                assert_eq!(sessions.len(), 20);
                listings += 1;
                for session in sessions {
                    let seen = ExecInput::SessionKilled { count: 1, leader: None };
                    world.life.input(Time { ms: at, wall: 1 }, Input::Exec(session.exec, seen));
                }
            }
        }
    }
    // In 10 s: some at first, then four in a second.
    assert!((10..60).contains(&listings), "{listings}");
}

#[test]
fn an_exec_starts_only_in_the_namespaces_of_a_running_container() {
    // They are opened when init exists, before it is started, and closed when it ends.
    let mut world = world(&[]);
    created(&mut world);
    world.step(&Op::Exec(1, None)).unwrap();
    assert_eq!(failed(&world).0, ErrorKind::WrongState);
    let init = world.kernel.made(world.serial_of(&id(0))).unwrap();
    world.kernel.end(init, 0);
    world.step(&Op::Reap(9, true)).unwrap();
    world.step(&Op::Exec(0, None)).unwrap();
    assert_eq!(failed(&world).0, ErrorKind::WrongState);
    assert!(world.at_work().is_empty());
    finish(&mut world).unwrap();
}
