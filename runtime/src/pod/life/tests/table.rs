//! Generates the table of every input in every stage from the state machine, and compares it with
//! docs/pod-states.md.

use super::super::stage::{Link, PodStage};
use super::super::{Action, Input, Job, Life};
use super::samples::{
    CONTAINER_STAGES, NOW, POD_STAGES, container_inputs, container_snapshots, container_stage_name,
    container_stages, pod_inputs, pod_stage_name, pod_stages, update_inputs, updated_stages,
};
use std::collections::BTreeSet;
use std::fmt::Write as _;

const PATH: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/pod-states.md");
/// If this variable is set, the file is updated.
const VARIABLE: &str = "UPDATE_DOCS";

const HEAD: &str = "\
# States of a pod and its containers

A test (`runtime/src/pod/life/tests/table.rs`) generates this file from the state machine, with every input in every
stage. `UPDATE_DOCS=1 cargo test -p runtime pod::life` updates it. A cell has the next stage, if it changes, and the
actions, with jobs in capitals; `wait`: the call waits for running work; an empty cell means that nothing is done.
";

/// In a cell: the tables of `model::transition` refuse what the state machine does.
const BUG: &str = "BUG";

/// A cell: the reaction of a state machine.
fn cell(before: &str, after: &str, actions: &[Action]) -> String {
    let mut parts = Vec::new();
    if before != after {
        parts.push(format!("**{after}**"));
    }
    let mut done: Vec<String> = actions.iter().filter_map(word).collect();
    done.dedup();
    if !done.is_empty() {
        parts.push(done.join(", "));
    }
    parts.join(": ")
}

fn word(action: &Action) -> Option<String> {
    Some(match action {
        Action::Answer(_, Ok(_)) => "answer".into(),
        Action::Answer(_, Err(error)) => format!("answer {:?}", error.kind),
        Action::ReplyToRun(Ok(_)) => "reply to RunPodSandbox".into(),
        Action::ReplyToRun(Err(_)) => "reply to RunPodSandbox with the error".into(),
        Action::ReleaseName => "release the name".into(),
        Action::PublishPod(..) | Action::PublishContainer(_) => "publish".into(),
        Action::UnpublishPod | Action::UnpublishContainer(_) => "unpublish".into(),
        Action::Connect => "connect".into(),
        Action::Disconnect => "disconnect".into(),
        Action::Dial { .. } => "dial".into(),
        Action::ShortenGrace(..) => "shorten the grace period".into(),
        Action::FinishStop(_) => "end the running stop".into(),
        Action::Begin(job) => job_word(job).into(),
        Action::StartTimer(..) => "retry later".into(),
        Action::ReportBug(_) => BUG.into(),
        Action::Finish => "end".into(),
        // Part of the next write, which has its own entry.
        Action::SetPodRecord(_) | Action::SetContainerRecord(_) => return None,
    })
}

fn job_word(job: &Job) -> &'static str {
    match job {
        Job::Launch(_) => "LAUNCH",
        Job::Create(..) => "CREATE",
        Job::Start(_) => "START",
        Job::Stop { .. } => "STOP",
        Job::RecordExit(_) => "RECORD THE EXIT",
        Job::RemoveContainer(_) => "REMOVE",
        Job::UndoCreate(_) => "UNDO",
        Job::KillOrphan(_) => "KILL THE ORPHAN",
        Job::RemoveCgroup(_) => "REMOVE THE CGROUP",
        Job::ReopenLog(..) => "REOPEN THE LOG",
        Job::Update(_) => "UPDATE",
        Job::SettleUpdate(_) => "SETTLE THE UPDATE",
        Job::RecordUpdate(_) => "RECORD THE UPDATE",
        Job::RecordPodUpdate(_) => "RECORD",
        Job::KillExecs(_) => "KILL EXECS",
        Job::TearDownPod(..) => "TEAR DOWN",
        Job::KillRemains(..) => "KILL WHAT IS LEFT",
        Job::RecordPod => "RECORD",
        Job::RecordStop => "RECORD THE STOP",
        Job::RemoveShimFolder => "REMOVE THE SHIM'S FOLDER",
        Job::RemovePod(..) => "REMOVE THE POD",
    }
}

type Inputs = Vec<(&'static str, Input)>;

/// One table: a row per input, a column per stage.
fn table(text: &mut String, stages: fn() -> Vec<Life>, name: fn(&Life) -> String, inputs: fn() -> Inputs) {
    let names: Vec<String> = stages().iter().map(name).collect();
    let _ = writeln!(text, "| | {} |", names.join(" | "));
    let _ = writeln!(text, "|---|{}", "---|".repeat(names.len()));
    for (at, (label, _)) in inputs().iter().enumerate() {
        let mut cells = Vec::new();
        for mut life in stages() {
            let before = name(&life);
            let (_, input) = inputs().swap_remove(at);
            let is_call = matches!(input, Input::Call(..));
            let actions = life.handle(NOW, input);
            let cell = cell(&before, &name(&life), &actions);
            cells.push(if is_call && cell.is_empty() { "wait".into() } else { cell });
        }
        let _ = writeln!(text, "| {label} | {} |", cells.join(" | "));
    }
}

/// The containers of a pod whose shim is being connected.
fn silent_container_stages() -> Vec<Life> {
    let mut lives = container_stages();
    lives.iter_mut().for_each(|life| life.link = Link::down(1, "lost"));
    lives
}

fn written() -> String {
    let mut text = HEAD.to_owned();
    text.push_str("\n## Pods\n\n");
    table(&mut text, pod_stages, pod_stage_name, pod_inputs);
    text.push_str("\n## Containers of a pod that is up\n\n");
    table(&mut text, container_stages, container_stage_name, container_inputs);
    text.push_str("\n## Containers, by their state in the shim when the daemon has reconnected\n\n");
    table(&mut text, silent_container_stages, container_stage_name, container_snapshots);
    text.push_str("\n## Containers whose resources are being updated\n\n");
    table(&mut text, updated_stages, container_stage_name, update_inputs);
    text
}

#[test]
fn every_stage_and_every_input_has_its_row_and_column() {
    let names: BTreeSet<String> = pod_stages().iter().map(pod_stage_name).collect();
    let plain = names.iter().filter(|name| !name.contains(',')).count();
    assert_eq!(plain, POD_STAGES, "{names:?}");
    let names: BTreeSet<String> = container_stages().iter().map(container_stage_name).collect();
    assert_eq!(names.len(), CONTAINER_STAGES, "{names:?}");
    let inputs: BTreeSet<String> = [pod_inputs(), container_inputs(), container_snapshots(), update_inputs()]
        .into_iter()
        .flatten()
        .map(|(_, input)| input_name(&input).to_owned())
        .collect();
    assert_eq!(inputs.len(), INPUTS, "{inputs:?}");
}

/// Number of names in `input_name`.
const INPUTS: usize = 32;

/// A new input breaks the build until it is added here, and the test until it is in the table.
fn input_name(input: &Input) -> &'static str {
    use super::super::{Call, Outcome, ShimEvent, Timer};
    match input {
        Input::Call(_, Call::StopPod) => "stop pod",
        Input::Call(_, Call::RemovePod) => "remove pod",
        Input::Call(_, Call::Create { .. }) => "create",
        Input::Call(_, Call::Start(_)) => "start",
        Input::Call(_, Call::Stop(..)) => "stop",
        Input::Call(_, Call::Remove(_)) => "remove",
        Input::Call(_, Call::ReopenLog(_)) => "reopen log",
        Input::Call(_, Call::Exec(_)) => "exec",
        Input::Call(_, Call::Update(..)) => "update",
        Input::Call(_, Call::UpdatePod(_)) => "update pod",
        Input::Shim(ShimEvent::Exited(..)) => "exited",
        Input::Shim(ShimEvent::Started(..)) => "started",
        Input::Shim(ShimEvent::PauseExited { .. }) => "pause exited",
        Input::LinkLost => "link lost",
        Input::Dialled(_) => "dialled",
        Input::Done(Outcome::Launched(_)) => "launch done",
        Input::Done(Outcome::Created(..)) => "create done",
        Input::Done(Outcome::Started(..)) => "start done",
        Input::Done(Outcome::StopEnded(..)) => "stop done",
        Input::Done(Outcome::ExitRecorded(..)) => "exit recorded",
        Input::Done(Outcome::ContainerRemoved(..)) => "remove done",
        // Concerns only the caller, which gets a reply.
        Input::Done(Outcome::LogReopened(..)) => "log reopened",
        Input::Done(Outcome::Updated(..)) => "update done",
        Input::Done(Outcome::UpdateRecorded(_)) => "update recorded",
        Input::Done(Outcome::PodUpdateRecorded(_)) => "pod's update recorded",
        Input::Done(Outcome::PodTornDown(_)) => "torn down",
        Input::Done(Outcome::RemainsKilled(_)) => "remains killed",
        Input::Done(Outcome::StopRecorded) => "stop recorded",
        Input::Done(Outcome::ShimFolderRemoved(_)) => "shim's folder removed",
        Input::Done(Outcome::PodRemoved(_)) => "pod removed",
        Input::Due(Timer::Pod) => "pod's timer",
        Input::Due(Timer::Container(_)) => "container's timer",
    }
}

#[test]
fn table_in_docs_is_up_to_date() {
    let text = written();
    if std::env::var_os(VARIABLE).is_some() {
        std::fs::write(PATH, &text).expect("docs can be written");
    }
    let kept = std::fs::read_to_string(PATH).unwrap_or_default();
    assert!(kept == text, "docs/pod-states.md differs from the state machine; {VARIABLE}=1 updates it");
}

#[test]
fn no_input_is_refused_in_any_stage() {
    assert!(!written().contains(BUG), "{}", written());
}

#[test]
fn removed_objects_ignore_inputs() {
    for (label, input) in pod_inputs() {
        let mut life = pod_stages().pop().expect("stages");
        assert!(matches!(life.stage, PodStage::Removed));
        let actions = life.handle(NOW, input);
        let all_answers = actions.iter().all(|action| matches!(action, Action::Answer(_, Err(_))));
        assert!(all_answers, "{label}: {actions:?}");
    }
}
