//! The table of all phases and inputs: docs/shim-states.md. The test generates it and fails if the committed
//! file differs, or if a phase or an input has no sample here. `UPDATE_DOCS=1` updates the file.

use std::fmt::Write as _;

use model::ContainerId;

use super::super::action::Action;
use super::super::container::Container;
use super::super::context::{Context, Time};
use super::super::exec::{Exec, Phase as ExecPhase};
use super::super::id::Serial;
use super::super::input::{ContainerInput, ExecInput, PauseInput, WorkerInput};
use super::super::pause::Pause;
use super::super::phase::Phase;
use super::samples::{
    NOW, SERIAL, container_inputs, containers, exec_inputs, execs, pause_inputs, pauses, worker_inputs,
};

/// A function that names the variants of an enum, and the list of these names: the build fails if a variant
/// is missing, and the test fails if a name has no sample.
macro_rules! names {
    ($function:ident, $list:ident, $kind:ident, $($variant:ident),+ $(,)?) => {
        fn $function(of: &$kind) -> &'static str {
            match of {
                $($kind::$variant { .. } => stringify!($variant),)+
            }
        }
        const $list: &[&str] = &[$(stringify!($variant)),+];
    };
}

names!(worker_input, WORKER_INPUTS, WorkerInput, Forked, Warning, Failed, Closed, PacketsRead, Reaped);
names!(pause_input, PAUSE_INPUTS, PauseInput, Worker, Made, Reaped, Adopted, Checked, Due, Stop);
names!(
    container_input,
    CONTAINER_INPUTS,
    ContainerInput,
    Worker,
    StreamsReceived,
    Created,
    Reaped,
    Adopted,
    StartSent,
    StartPipe,
    InitChecked,
    CgroupChecked,
    Recorded,
    Due,
    Stop,
    Start,
    Kill,
    ReopenLog,
    Attach,
    CloseStdin,
    Forget,
);
names!(
    exec_input,
    EXEC_INPUTS,
    ExecInput,
    Worker,
    Made,
    Reaped,
    Checked,
    SessionKilled,
    OomChecked,
    Due,
    Stop,
    ContainerEnded,
    KillSession,
);
names!(
    phase, PHASES, Phase, Creating, Adopting, Created, Starting, Running, Ending, Undoing, Recording, Exited,
    Gone,
);
names!(pause, PAUSES, Pause, None, Starting, Adopting, Running, Exited, Undoing);
names!(exec_phase, EXECS, ExecPhase, Starting, Running, Ended, Leftover, Gone);
names!(
    action,
    _ACTIONS,
    Action,
    Greet,
    Reply,
    Event,
    Fork,
    ReadPackets,
    DropWorker,
    Signal,
    SignalFor,
    Adopt,
    DropNamespaces,
    StartInit,
    WatchOutputs,
    ReadStartPipe,
    DropStartPipe,
    CheckInit,
    CheckProcess,
    KillCgroup,
    CheckCgroup,
    KillSessions,
    CheckOom,
    FinishOutputs,
    RemoveFiles,
    WriteRecord,
    RemoveRecord,
    ReopenLog,
    Attach,
    CloseStdin,
    Release,
    End,
);

/// An input with its sample's kind, as the table shows it.
fn label(name: &str, worker: Option<&WorkerInput>, kind: &str) -> String {
    let name = worker.map_or_else(|| name.to_owned(), |input| format!("worker {}", worker_input(input)));
    if kind.is_empty() { name } else { format!("{name}: {kind}") }
}

fn context() -> Context {
    Context { time: Time { ms: NOW, wall: 7 }, connection: Some(1), ..Context::default() }
}

/// The result of an input: the next phase, if it changes, then the actions.
fn outcome(changed: bool, to: &str, from: &str, cx: &Context) -> String {
    let actions: Vec<&str> = cx.actions.iter().map(action).collect();
    let next = match (to == from, changed) {
        (false, _) => format!("**{to}**: "),
        (true, true) => "note: ".to_owned(),
        (true, false) => String::new(),
    };
    format!("{next}{}", actions.join(", ")).trim_end_matches([' ', ':']).to_owned()
}

/// Prints the result of each input in each of these phases.
fn section<T, I: Clone>(
    text: &mut String,
    title: &str,
    phases: &[(&str, &str, T)],
    inputs: impl IntoIterator<Item = (String, I)>,
    on: impl Fn(&T, I) -> String,
) {
    write!(text, "## {title}\n\n|").unwrap();
    for (name, detail, _) in phases {
        let detail = if detail.is_empty() { String::new() } else { format!(", {detail}") };
        write!(text, " | {name}{detail}").unwrap();
    }
    writeln!(text, " |\n|---{}|", "|---".repeat(phases.len())).unwrap();
    let mut without = Vec::new();
    for (shown, input) in inputs {
        let cells: Vec<String> = phases.iter().map(|(_, _, of)| on(of, input.clone())).collect();
        if cells.iter().all(String::is_empty) {
            without.push(shown);
        } else {
            writeln!(text, "| {shown} | {} |", cells.join(" | ")).unwrap();
        }
    }
    writeln!(text, "\nIgnored in every phase: {}.\n", without.join("; ")).unwrap();
}

fn print() -> String {
    let mut text = String::from(
        "# States of a shim\n\nA test (`runtime/shim/src/lifecycle/tests/table.rs`) generates this file from the state \
         machine, with every input in every phase.\n`UPDATE_DOCS=1 cargo test -p shim table` updates it. A cell has \
         the next phase, if it changes, and the actions; `note`: only\nwhat the phase holds changes; an empty cell \
         means that nothing is done. `runtime/shim/src/lifecycle` explains phases, inputs and\nactions.\n\n",
    );
    print_pause(&mut text);
    print_containers(&mut text);
    print_execs(&mut text);
    text.truncate(text.trim_end().len());
    text.push('\n');
    text
}

fn print_pause(text: &mut String) {
    let phases: Vec<_> = pauses().into_iter().map(|(detail, of)| (pause(&of), detail, of)).collect();
    let inputs = pause_inputs().into_iter().map(|(kind, input)| {
        let worker = if let PauseInput::Worker(worker) = &input { Some(worker) } else { None };
        (label(pause_input(&input), worker, kind), input)
    });
    section(text, "Pause", &phases, inputs, |sample, input| {
        let (mut of, mut cx) = (sample.clone(), context());
        of.on(input, &mut cx);
        outcome(of != *sample, pause(&of), pause(sample), &cx)
    });
}

fn print_containers(text: &mut String) {
    let phases: Vec<_> = containers().into_iter().map(|(detail, of)| (phase(&of), detail, of)).collect();
    let inputs = container_inputs().into_iter().map(|(kind, input)| {
        let worker = if let ContainerInput::Worker(worker) = &input { Some(worker) } else { None };
        (label(container_input(&input), worker, kind), input)
    });
    section(text, "Containers", &phases, inputs, |sample, input| {
        let id = ContainerId::from_random([1; 32]);
        let (mut of, mut cx) = (Container { id, serial: SERIAL, phase: sample.clone() }, context());
        of.on(input, &mut cx);
        outcome(of.phase != *sample, phase(&of.phase), phase(sample), &cx)
    });
}

fn print_execs(text: &mut String) {
    let phases: Vec<_> =
        execs().into_iter().map(|(detail, of, kill)| (exec_phase(&of), detail, (of, kill))).collect();
    let inputs = exec_inputs().into_iter().map(|(kind, input)| {
        let worker = if let ExecInput::Worker(worker) = &input { Some(worker) } else { None };
        (label(exec_input(&input), worker, kind), input)
    });
    section(text, "Execs", &phases, inputs, |(sample, kill), input| {
        let before = Exec {
            id: model::ExecId(1),
            generation: 1,
            serial: SERIAL,
            container: Serial(2),
            container_id: ContainerId::from_random([1; 32]),
            deadline: None,
            kill: *kill,
            phase: sample.clone(),
        };
        let (mut of, mut cx) = (before.clone(), context());
        of.on(input, true, &mut cx);
        outcome(of != before, exec_phase(&of.phase), exec_phase(sample), &cx)
    });
}

#[test]
fn table_has_every_pair_and_is_the_committed_one() {
    let sampled = |list: &[&str], names: Vec<&str>| {
        let missing: Vec<_> = list.iter().filter(|name| !names.contains(name)).collect();
        assert!(missing.is_empty(), "no sample: {missing:?}");
    };
    sampled(WORKER_INPUTS, worker_inputs().iter().map(|(_, of)| worker_input(of)).collect());
    sampled(PAUSE_INPUTS, pause_inputs().iter().map(|(_, of)| pause_input(of)).collect());
    sampled(CONTAINER_INPUTS, container_inputs().iter().map(|(_, of)| container_input(of)).collect());
    sampled(EXEC_INPUTS, exec_inputs().iter().map(|(_, of)| exec_input(of)).collect());
    sampled(PHASES, containers().iter().map(|(_, of)| phase(of)).collect());
    sampled(PAUSES, pauses().iter().map(|(_, of)| pause(of)).collect());
    sampled(EXECS, execs().iter().map(|(_, of, _)| exec_phase(of)).collect());

    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/shim-states.md");
    let printed = print();
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(&path, &printed).unwrap();
    }
    let committed = std::fs::read_to_string(&path).unwrap_or_default();
    let differs = committed.lines().zip(printed.lines()).find(|(old, new)| old != new);
    assert!(committed == printed, "{} is not what is printed: {differs:?}", path.display());
}
