//! Random sequences of events, and planted bugs that must be found. `COPEPOD_MODEL_CASES` sets the number of
//! sequences (`make model`).

use proptest::prelude::*;
use proptest::test_runner::{Config, TestError, TestRunner};
use wire::{Reply, Request};

use super::super::phase::Phase;
use super::super::worker::KILL_AGAIN_MS;
use super::op::{Op, Sabotage};
use super::world::World;
use super::{Checked, Violation};

/// Default number of sequences.
const CASES: u32 = 2000;
/// Number of pids, few enough to be reused within one sequence.
const PIDS: u32 = 60;
/// Number of steps until everything is at rest; the most frequent checks are 100 ms apart.
const MAX_ROUNDS: u64 = HORIZON / 50;
/// Upper limit of everything that has a limit, in simulated milliseconds.
const HORIZON: u64 = 31_000 + 10 * KILL_AGAIN_MS;

fn op() -> impl Strategy<Value = Op> {
    let n = any::<u8>;
    prop_oneof![
        2 => Just(Op::Connect),
        1 => Just(Op::Disconnect),
        2 => Just(Op::StartPause),
        6 => n().prop_map(Op::Create),
        6 => n().prop_map(Op::Start),
        2 => (n(), any::<bool>(), any::<bool>()).prop_map(|(which, lethal, all)| Op::Kill(which, lethal, all)),
        6 => (n(), proptest::option::of(0u16..5000)).prop_map(|(which, deadline)| Op::Exec(which, deadline)),
        3 => n().prop_map(Op::KillExec),
        1 => n().prop_map(Op::ReopenLog),
        1 => prop_oneof![n().prop_map(Op::Attach), n().prop_map(Op::CloseStdin)],
        2 => n().prop_map(Op::Forget),
        1 => prop_oneof![Just(Op::StopPod), Just(Op::Shutdown), Just(Op::Terminate), Just(Op::Unknown)],
        20 => (n(), n()).prop_map(|(which, how)| Op::Work(which, how)),
        10 => n().prop_map(Op::Read),
        8 => (n(), prop::bool::weighted(0.8)).prop_map(|(which, works)| Op::Execve(which, works)),
        6 => n().prop_map(Op::Pipe),
        4 => (n(), n()).prop_map(|(which, code)| Op::Die(which, code)),
        8 => (1u8..4, any::<bool>()).prop_map(|(max, orderly)| Op::Reap(max, orderly)),
        1 => n().prop_map(Op::Trace),
        1 => n().prop_map(Op::Freeze),
        2 => n().prop_map(Op::Fork),
        2 => Just(Op::Bystander),
        2 => any::<bool>().prop_map(Op::Descriptors),
        1 => any::<bool>().prop_map(Op::DiskFull),
        6 => prop_oneof![0u16..300, 0u16..40_000].prop_map(Op::Pass),
    ]
}

/// Most sequences have a running pod: a daemon, pause, and a container.
fn sequence() -> impl Strategy<Value = Vec<Op>> {
    let ops = proptest::collection::vec(op(), 1..90);
    (prop::bool::weighted(0.9), ops).prop_map(|(ready, ops)| {
        let mut all = if ready { running_pod() } else { Vec::new() };
        all.extend(ops);
        all
    })
}

/// A daemon, pause, and container 0.
pub(super) fn running_pod() -> Vec<Op> {
    let mut ops = vec![Op::Connect, Op::StartPause];
    let made = |ops: &mut Vec<Op>| ops.extend((0..4).flat_map(|_| [Op::Work(0, 11), Op::Read(0)]));
    made(&mut ops);
    ops.extend([Op::Execve(0, true), Op::Reap(9, true), Op::Create(0)]);
    ops.extend((0..4).flat_map(|_| [Op::Work(0, 11), Op::Read(1)]));
    ops.extend([Op::Start(0), Op::Execve(0, true), Op::Pipe(0), Op::Reap(9, true)]);
    ops
}

/// Continues until everything is at rest: descriptors are free, workers work, processes call execve, timers expire.
pub(super) fn rest(world: &mut World) -> Checked {
    world.step(&Op::Descriptors(true))?;
    let until = world.now + HORIZON;
    for _ in 0..MAX_ROUNDS {
        for _ in 0..4 {
            for place in world.at_work() {
                world.work(place, 11);
            }
        }
        for _ in 0..world.waiting().len() {
            world.step(&Op::Execve(0, true))?;
        }
        for serial in world.readable() {
            world.read(serial)?;
        }
        for which in 0..world.open_pipes() {
            world.step(&Op::Pipe(which))?;
        }
        let reaped = !world.kernel.zombies().is_empty();
        world.reap(usize::MAX, true)?;
        if world.ended {
            return Ok(());
        }
        match world.life.timer() {
            Some(at) if at <= until => {
                world.now = world.now.max(at);
                world.step(&Op::Pass(0))?;
            }
            _ if !reaped => return Ok(()),
            _ => {}
        }
    }
    world.check_slots()?;
    Err(Violation::Restless(format!("{:?}", world.life)))
}

/// Everything comes to rest; then a new daemon stops the pod, and nothing must be left.
pub(super) fn finish(world: &mut World) -> Checked {
    rest(world)?;
    if world.ended {
        return Ok(());
    }
    world.check_slots()?;
    world.check.all_answered(world.connection)?;
    world.check_told()?;
    world.step(&Op::Connect)?;
    world.step(&Op::StopPod)?;
    rest(world)?;
    if world.ended {
        return Ok(());
    }
    world.check_slots()?;
    world.check.all_answered(world.connection)?;
    world.check_told()?;
    if let Some(left) = world.life.containers.iter().find(|c| !matches!(c.phase, Phase::Exited { .. })) {
        return Err(Violation::Slot(format!("the pod is stopped: {left:?}")));
    }
    for number in 0..6 {
        world.step(&Op::Forget(number))?;
    }
    if !world.life.containers.is_empty() || !world.life.execs.is_empty() {
        return Err(Violation::Slot(format!("all was forgotten: {:?}", world.life)));
    }
    world.ask(Request::Shutdown, 0)?;
    match world.replies.last() {
        Some((_, Reply::Done)) if world.ended => Ok(()),
        other => Err(Violation::LostReply(format!("Shutdown: {other:?}"))),
    }
}

fn run(sabotage: Sabotage, ops: &[Op]) -> Checked {
    let mut world = World::new(sabotage, PIDS);
    for op in ops {
        world.step(op)?;
    }
    finish(&mut world)
}

fn runner(cases: u32) -> TestRunner {
    TestRunner::new(Config {
        cases,
        failure_persistence: None,
        max_shrink_iters: 20_000,
        ..Config::default()
    })
}

#[test]
fn model_sequences() {
    let cases = std::env::var("COPEPOD_MODEL_CASES").ok().map(|text| text.parse().unwrap());
    let outcome = runner(cases.unwrap_or(CASES)).run(&sequence(), |ops| {
        run(Sabotage::None, &ops).map_err(|violation| TestCaseError::fail(format!("{violation:?}")))
    });
    if let Err(error) = outcome {
        panic!("{error}");
    }
}

/// Number of sequences in which a planted bug must be found.
const ENOUGH: u32 = 500;

/// The violations by which a planted bug may be found.
fn found(sabotage: Sabotage) -> Violation {
    let found = std::cell::RefCell::new(None);
    let outcome = runner(ENOUGH).run(&sequence(), |ops| {
        run(sabotage, &ops).map_err(|violation| {
            let text = format!("{violation:?}");
            // The last one is that of the shortest sequence.
            found.replace(Some(violation));
            TestCaseError::fail(text)
        })
    });
    match outcome {
        Err(TestError::Fail(..)) => found.take().unwrap(),
        other => panic!("{sabotage:?} was not found: {other:?}"),
    }
}

#[test]
fn model_finds_a_lost_reply() {
    assert!(matches!(found(Sabotage::LostReply), Violation::LostReply(_)));
}

#[test]
fn model_finds_an_exit_reported_twice() {
    assert!(matches!(found(Sabotage::DoubleExit), Violation::Exit(_)));
}

#[test]
fn model_finds_a_stuck_name() {
    assert!(matches!(found(Sabotage::StuckName), Violation::Slot(_)));
}

#[test]
fn model_finds_an_early_kill() {
    assert!(matches!(found(Sabotage::EarlyKill), Violation::EarlyKill(_)));
}

#[test]
fn model_finds_an_incomplete_listing() {
    assert!(matches!(found(Sabotage::HalfMade), Violation::Listing(_)));
}

#[test]
fn model_finds_a_signal_to_a_reused_pid() {
    assert!(matches!(found(Sabotage::LateKill), Violation::WrongKill(_)));
}

#[test]
fn model_finds_an_exit_reported_before_it_is_recorded() {
    assert!(matches!(found(Sabotage::Unrecorded), Violation::Unrecorded(_)));
}
