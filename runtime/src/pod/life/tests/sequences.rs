//! Random sequences of calls, retries, lost connections, late replies, failing steps and restarts, checked
//! against the invariants in `world`.

use super::super::Call;
use super::world::{Luck, Sabotage, Violation, World, an_update, choose};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use std::time::Duration;

/// Default number of sequences.
const CASES: u32 = 2000;
/// Environment variable with another number.
const VARIABLE: &str = "COPEPOD_MODEL_CASES";

/// One event of a sequence.
#[derive(Debug, Clone, Copy)]
pub(super) enum Step {
    RunPod,
    StopPod,
    RemovePod,
    Create(u8, bool),
    Start(u8),
    Stop(u8, u8),
    Remove(u8),
    Exec(u8),
    ReopenLog(u8),
    Update(u8, u8),
    UpdatePod,
    Exit(u8, i32),
    PauseExits,
    Deliver,
    Finish(u8, Luck, bool),
    Dialled,
    Fire(u8),
    Disconnect(bool),
    Mute(bool),
    KillShim,
    Restart(bool, u8),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let pick = any::<u8>;
    let luck = prop_oneof![6 => Just(Luck::Good), 1 => Just(Luck::Fails), 1 => Just(Luck::Lost)];
    let step = prop_oneof![
        1 => Just(Step::RunPod),
        2 => Just(Step::StopPod),
        1 => Just(Step::RemovePod),
        6 => (pick(), prop::bool::weighted(0.1)).prop_map(|(name, other)| Step::Create(name, other)),
        5 => pick().prop_map(Step::Start),
        3 => (pick(), pick()).prop_map(|(id, grace)| Step::Stop(id, grace)),
        3 => pick().prop_map(Step::Remove),
        1 => pick().prop_map(Step::Exec),
        1 => pick().prop_map(Step::ReopenLog),
        3 => (pick(), pick()).prop_map(|(id, update)| Step::Update(id, update)),
        1 => Just(Step::UpdatePod),
        3 => (pick(), 0..3_i32).prop_map(|(id, code)| Step::Exit(id, code)),
        1 => Just(Step::PauseExits),
        6 => Just(Step::Deliver),
        20 => (pick(), luck, any::<bool>()).prop_map(|(at, luck, late)| Step::Finish(at, luck, late)),
        3 => Just(Step::Dialled),
        2 => pick().prop_map(Step::Fire),
        2 => any::<bool>().prop_map(Step::Disconnect),
        1 => any::<bool>().prop_map(Step::Mute),
        1 => Just(Step::KillShim),
        1 => (prop::bool::weighted(0.2), pick()).prop_map(|(reboot, lucks)| Step::Restart(reboot, lucks)),
    ];
    prop::collection::vec(step, 1..80)
}

fn step(world: &mut World, step: Step) -> Result<(), Violation> {
    let known = world.known.clone();
    let on =
        |world: &mut World, pick: u8, call: &dyn Fn(model::ContainerId) -> Call| match choose(&known, pick) {
            Some(id) => world.call(call(id.clone())).map(drop),
            None => Ok(()),
        };
    match step {
        Step::RunPod => world.run_pod(),
        // Calls need a listed pod.
        Step::StopPod | Step::RemovePod | Step::UpdatePod if world.shown_pod.is_none() => Ok(()),
        Step::UpdatePod => world.call(Call::UpdatePod(Box::default())).map(drop),
        Step::StopPod => world.call(Call::StopPod).map(drop),
        Step::RemovePod => world.call(Call::RemovePod).map(drop),
        Step::Create(..) if world.shown_pod.is_none() => Ok(()),
        Step::Create(name, other) => world.create(name, other).map(drop),
        Step::Start(pick) => on(world, pick, &Call::Start),
        Step::Stop(pick, grace) => on(world, pick, &|id| Call::Stop(id, Duration::from_secs(grace.into()))),
        Step::Remove(pick) => on(world, pick, &Call::Remove),
        Step::Exec(pick) => on(world, pick, &Call::Exec),
        Step::ReopenLog(pick) => on(world, pick, &Call::ReopenLog),
        Step::Update(pick, number) => on(world, pick, &|id| Call::Update(id, Box::new(an_update(number)))),
        Step::Exit(pick, code) => {
            world.exits(pick, code);
            Ok(())
        }
        Step::PauseExits => {
            world.pause_exits();
            Ok(())
        }
        Step::Deliver => world.deliver(),
        Step::Finish(pick, luck, late) => world.finish(pick, luck, late),
        Step::Dialled => world.dialled(),
        Step::Fire(pick) => world.fire(pick),
        Step::Disconnect(torn) => {
            world.disconnect(torn);
            Ok(())
        }
        Step::Mute(mute) => {
            world.set_mute(mute);
            Ok(())
        }
        Step::KillShim => {
            world.kill_shim();
            Ok(())
        }
        Step::Restart(reboot, lucks) => world.restart(reboot, lucks),
    }
}

fn run(steps: &[Step], sabotage: Option<Sabotage>, log: bool) -> Result<(), (Violation, Vec<String>)> {
    let mut world = World::new(sabotage);
    world.log = log.then(Vec::new);
    let ended = (|| {
        world.run_pod()?;
        for at in steps {
            step(&mut world, *at)?;
        }
        world.end_all()
    })();
    ended.map_err(|violation| (violation, world.log.take().unwrap_or_default()))
}

/// The number of sequences.
///
/// # Panics
/// The variable is set and is not a number: with the default instead, a long search would silently be a short one.
fn cases() -> u32 {
    let Some(given) = std::env::var_os(VARIABLE) else { return CASES };
    let number = given.to_str().and_then(|given| given.parse().ok());
    number.unwrap_or_else(|| panic!("{VARIABLE} must be a number of sequences, and is {given:?}"))
}

/// The first violation in a number of sequences.
pub(super) fn search(cases: u32, sabotage: Option<Sabotage>) -> Result<(), Violation> {
    let found = std::cell::RefCell::new(None);
    let last = std::cell::RefCell::new(Vec::new());
    let config = Config { cases, failure_persistence: None, max_shrink_iters: 2000, ..Config::default() };
    let outcome = TestRunner::new(config).run(&steps(), |steps| {
        run(&steps, sabotage, false).map_err(|(violation, _)| {
            found.replace(Some(violation));
            last.replace(steps);
            TestCaseError::fail("violated")
        })
    });
    match (outcome, found.into_inner()) {
        (Ok(()), _) => Ok(()),
        (Err(error), None) => panic!("{error}"),
        (Err(error), Some(violation)) => {
            if sabotage.is_none() {
                // The last failing sequence is the smallest.
                let log = run(&last.into_inner(), None, true).err().map(|(_, log)| log).unwrap_or_default();
                eprintln!("{error}\n{}", log.join("\n"));
            }
            Err(violation)
        }
    }
}

#[test]
fn random_sequences_keep_the_invariants() {
    if let Err(violation) = search(cases(), None) {
        panic!("{violation:?}");
    }
}
