use super::*;
use crate::{ContainerConfig, PodConfig, PodId};
use proptest::prelude::*;

fn pod_record(phase: PodPhase) -> PodRecord {
    PodRecord { phase, ..PodRecord::new(PodId::from_random([9; 32]), PodConfig::default(), 1) }
}

fn record(byte: u8, phase: ContainerPhase) -> ContainerRecord {
    ContainerRecord {
        phase,
        stop_signal: 15,
        ..ContainerRecord::new(
            ContainerId::from_random([byte; 32]),
            PodId::from_random([9; 32]),
            ContainerConfig::default(),
            1,
        )
    }
}

fn pod_phase() -> impl Strategy<Value = PodPhase> {
    use PodPhase::*;
    prop_oneof![Just(Launching), Just(Ready), Just(Stopping), Just(Stopped), Just(Removing)]
}

fn container_phase() -> impl Strategy<Value = ContainerPhase> {
    use ContainerPhase::*;
    prop_oneof![Just(Creating), Just(Created), Just(Running), Just(Exited), Just(Removing)]
}

fn held() -> impl Strategy<Value = InShim> {
    prop_oneof![
        Just(InShim::Creating),
        Just(InShim::Created { pid: 5 }),
        Just(InShim::Running { pid: 5, started_at: 7 }),
        Just(InShim::Exited { exit: Exit { code: 3, ..Exit::default() }, started_at: 7 }),
    ]
}

fn shim() -> impl Strategy<Value = Shim> {
    let containers = proptest::collection::btree_map(
        (0u8..6).prop_map(|byte| ContainerId::from_random([byte; 32])),
        held(),
        0..5,
    );
    prop_oneof![
        Just(Shim::Gone),
        Just(Shim::Silent),
        (any::<bool>(), containers).prop_map(|(pause, containers)| Shim::Answered { pause, containers }),
    ]
}

proptest! {
    #[test]
    fn every_known_object_gets_exactly_one_action(
        phase in pod_phase(),
        phases in proptest::collection::vec(container_phase(), 0..5),
        shim in shim(),
        same_boot: bool,
        left in proptest::collection::vec(0u8..6, 0..3),
    ) {
        let pod = pod_record(phase);
        let records: Vec<ContainerRecord> =
            phases.iter().zip(0u8..).map(|(phase, byte)| record(byte, *phase)).collect();
        let shim = if same_boot { shim } else { Shim::Gone };
        let exits = left
            .iter()
            .map(|byte| (ContainerId::from_random([*byte; 32]), (Exit { code: 4, ..Exit::default() }, 6)))
            .collect();
        let facts = Facts { same_boot, pod: &pod, containers: &records, shim: shim.clone(), exits };
        let plan = reconcile(&facts, 100);

        let held = match &shim {
            Shim::Answered { containers, .. } => containers.clone(),
            _ => BTreeMap::new(),
        };
        // Every known container has exactly one action, and no other container has one.
        for id in plan.containers.keys() {
            prop_assert!(held.contains_key(id) || records.iter().any(|record| record.id == *id));
        }
        prop_assert!(held.keys().chain(records.iter().map(|r| &r.id)).all(|id| plan.containers.contains_key(id)));
        // Only a silent shim is retried, and then nothing is decided about any of its containers.
        if plan.pod == PodAction::Retry {
            prop_assert_eq!(&shim, &Shim::Silent);
        }
        // While its shim is running, only a removal or an uncommitted launch ends a pod.
        if shim == Shim::Silent && matches!(phase, PodPhase::Ready | PodPhase::Stopping) {
            prop_assert_eq!(&plan.pod, &PodAction::Retry);
        }
        // Exactly the pods that are being removed are hidden: one that stays must be listed, or its removal
        // cannot be requested.
        let leaves = matches!(plan.pod, PodAction::RollBack | PodAction::Remove);
        prop_assert_eq!(is_leaving(same_boot, &pod, &records), leaves);
        // A pod is adopted only if it was ready in this boot and pause is running.
        if plan.pod == PodAction::Adopt {
            let pause_lives = matches!(shim, Shim::Answered { pause: true, .. });
            prop_assert!(same_boot && phase == PodPhase::Ready && pause_lives);
        }
        for record in &records {
            let action = &plan.containers[&record.id];
            let lives = matches!(
                held.get(&record.id),
                Some(InShim::Creating | InShim::Created { .. } | InShim::Running { .. })
            );
            match action {
                ContainerAction::Adopt { phase, .. } => {
                    prop_assert!(lives && matches!(phase, ContainerPhase::Created | ContainerPhase::Running));
                    prop_assert!(matches!(record.phase, ContainerPhase::Created | ContainerPhase::Running));
                }
                // A recorded exit is never replaced by an assumed one.
                ContainerAction::MarkExited { exit, .. } => {
                    prop_assert!(!lives && record.phase != ContainerPhase::Exited);
                    if matches!(held.get(&record.id), Some(InShim::Exited { .. })) {
                        prop_assert_eq!(exit.code, 3);
                    }
                }
                // A running container is never ignored.
                ContainerAction::Keep => prop_assert!(!lives),
                ContainerAction::Retry => prop_assert_eq!(&plan.pod, &PodAction::Retry),
                ContainerAction::RollBack | ContainerAction::Remove | ContainerAction::KillOrphan => {}
            }
        }
    }
}

fn plan(
    pod: PodPhase,
    container: ContainerPhase,
    shim: Shim,
    same_boot: bool,
) -> (PodAction, ContainerAction) {
    let (pod, record) = (pod_record(pod), [record(1, container)]);
    let facts = Facts { same_boot, pod: &pod, containers: &record, shim, exits: BTreeMap::new() };
    let mut plan = reconcile(&facts, 100);
    (plan.pod, plan.containers.remove(&record[0].id).unwrap())
}

#[test]
fn another_boot_means_exited_and_not_ready() {
    let (pod, container) = plan(PodPhase::Ready, ContainerPhase::Running, Shim::Gone, false);
    assert_eq!(pod, PodAction::NotReady { reason: "the node was restarted".into() });
    let ContainerAction::MarkExited { exit, .. } = container else { panic!("{container:?}") };
    assert_eq!((exit.code, exit.reason.as_str(), exit.finished_at), (255, "Unknown", 100));
    // The container ran, but its pod's commit was lost in a power failure: its exit must be reported.
    let (pod, _) = plan(PodPhase::Launching, ContainerPhase::Running, Shim::Gone, false);
    assert!(matches!(pod, PodAction::NotReady { .. }));
}

#[test]
fn a_dead_shim_ends_its_pod() {
    let (pod, container) = plan(PodPhase::Ready, ContainerPhase::Running, Shim::Gone, true);
    assert_eq!(pod, PodAction::NotReady { reason: "its shim is gone".into() });
    assert!(matches!(container, ContainerAction::MarkExited { .. }));
    assert_eq!(
        plan(PodPhase::Ready, ContainerPhase::Creating, Shim::Gone, true).1,
        ContainerAction::RollBack
    );
    assert_eq!(
        plan(PodPhase::Ready, ContainerPhase::Running, Shim::Silent, true),
        (PodAction::Retry, ContainerAction::Retry)
    );
}

/// The reason is shown to users, who look for the cause by it.
#[test]
fn an_unseen_exit_has_the_true_reason() {
    let answered = || Shim::Answered { pause: true, containers: BTreeMap::new() };
    for (phase, shim, same_boot, reason) in [
        (PodPhase::Ready, Shim::Gone, false, "the node was restarted"),
        (PodPhase::Ready, Shim::Gone, true, "its shim is gone"),
        (PodPhase::Ready, answered(), true, "its shim does not know it"),
        (PodPhase::Stopped, Shim::Silent, true, "the pod was stopped"),
    ] {
        let (_, container) = plan(phase, ContainerPhase::Running, shim, same_boot);
        let ContainerAction::MarkExited { exit, .. } = container else { panic!("{container:?}") };
        assert_eq!(exit.message, format!("its exit was not seen: {reason}"));
    }
}
