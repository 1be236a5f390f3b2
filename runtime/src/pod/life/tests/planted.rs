//! Tests of the checks: bugs that are planted in the state machine's decisions are found, each as the right
//! violation.

use super::sequences::search;
use super::world::{Kind, Sabotage};

/// Maximum number of sequences. The search ends at the first that shows the mistake, which is mostly among some hundreds.
const CASES: u32 = 5000;

fn finds(sabotage: Sabotage, kind: Kind) {
    let violation = search(CASES, Some(sabotage)).expect_err("a planted mistake is found");
    assert_eq!(violation.kind, kind, "{sabotage:?}: {}", violation.text);
}

#[test]
fn a_lost_waiter_is_found() {
    finds(Sabotage::LostWaiter, Kind::LostWaiter);
}

#[test]
fn a_second_report_of_an_exit_is_found() {
    finds(Sabotage::DoubleExit, Kind::DoubleExit);
}

#[test]
fn a_name_that_is_not_released_is_found() {
    finds(Sabotage::StuckName, Kind::StuckName);
}

#[test]
fn a_pod_that_is_killed_while_its_shim_is_alive_is_found() {
    finds(Sabotage::EarlyKill, Kind::EarlyKill);
}

#[test]
fn a_container_that_is_listed_before_it_is_created_is_found() {
    finds(Sabotage::HalfMade, Kind::HalfMade);
}

#[test]
fn an_update_that_is_not_shown_is_found() {
    finds(Sabotage::FalseLimits, Kind::FalseLimits);
}
