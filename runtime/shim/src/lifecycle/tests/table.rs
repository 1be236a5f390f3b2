//! The table of all phases and inputs: docs/shim-states.md. The test generates it and fails if the committed
//! file differs, or if a phase or an input has no sample here. `UPDATE_DOCS=1` updates the file.

use std::fmt::Write as _;

use model::ContainerId;
use wire::{ErrorKind, ExitFacts, Failure, Reply};

use super::super::action::Action;
use super::super::container::Container;
use super::super::context::{Context, Time};
use super::super::exec::{Exec, Kill, Phase as ExecPhase};
use super::super::id::{Requester, Serial};
use super::super::input::{CgroupState, Happened, Held, InitState};
use super::super::look::Look;
use super::super::pause::Pause;
use super::super::phase::{Ending, Init, Phase, Undoing, Unstarted};
use super::super::worker::{Process, Worker};
use crate::failure::refusal;

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

names!(
    input,
    INPUTS,
    Happened,
    Forked,
    Made,
    Created,
    Prepared,
    Warning,
    Failed,
    Closed,
    PacketsRead,
    WorkerReaped,
    Reaped,
    Adopted,
    StartSent,
    ErrorPipe,
    InitSeen,
    ProcessSeen,
    CgroupSeen,
    SessionSeen,
    MemorySeen,
    Recorded,
    Due,
    Stop,
    ContainerEnded,
    Start,
    Kill,
    ReopenLog,
    Forget,
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
    ReadErrorPipe,
    DropErrorPipe,
    LookAtInit,
    LookAtProcess,
    KillCgroup,
    LookAtCgroup,
    KillSessions,
    LookForOom,
    FinishOutputs,
    RemoveFiles,
    WriteRecord,
    RemoveRecord,
    ReopenLog,
    Release,
    End,
);

const SERIAL: Serial = Serial(1);
const PID: u32 = 10;
const WORKER: u32 = 9;
/// The time of all inputs; all deadlines in the samples have passed then.
const NOW: u64 = 100_000;
const REQUESTER: Requester = Requester { generation: 1, id: 1 };

fn failure() -> Failure {
    refusal(ErrorKind::Internal, "step", "it failed")
}

/// Each kind of each input, with its name.
#[expect(clippy::too_many_lines, reason = "a list of all inputs")]
fn inputs() -> Vec<(&'static str, Happened)> {
    let other = Requester { generation: 1, id: 2 };
    let seen = |over, executed, held| Happened::InitSeen(Some(InitState { over, executed, held }));
    let reply = Reply::Created { pid: PID, user: super::user(), home: "/".to_owned() };
    let kill = |signal, all| Happened::Kill { requester: other, signal, all };
    vec![
        ("", Happened::Forked(Ok(WORKER))),
        ("failed", Happened::Forked(Err(failure()))),
        ("", Happened::Made { pid: PID, ended: None }),
        ("has ended", Happened::Made { pid: PID, ended: Some(3) }),
        ("", Happened::Created { reply: reply.clone(), pid: PID, ended: None }),
        ("has ended", Happened::Created { reply, pid: PID, ended: Some(3) }),
        ("", Happened::Prepared(Ok(()))),
        ("failed", Happened::Prepared(Err(failure()))),
        ("", Happened::Warning("it is so".to_owned())),
        ("", Happened::Failed(failure())),
        ("", Happened::Closed),
        ("", Happened::PacketsRead),
        ("", Happened::WorkerReaped(1)),
        ("before execve", Happened::Reaped { code: 3, executed: Some(false) }),
        ("after execve", Happened::Reaped { code: 3, executed: Some(true) }),
        ("not known", Happened::Reaped { code: 3, executed: None }),
        ("", Happened::Adopted(Ok(()))),
        ("failed", Happened::Adopted(Err(failure()))),
        ("", Happened::StartSent(Ok(()))),
        ("failed", Happened::StartSent(Err(failure()))),
        ("closed", Happened::ErrorPipe { said: None, closed: true }),
        ("open", Happened::ErrorPipe { said: None, closed: false }),
        ("a failure", Happened::ErrorPipe { said: Some("no such program".to_owned()), closed: true }),
        ("not now", Happened::InitSeen(None)),
        ("waits", seen(None, false, Held::No)),
        ("has called execve", seen(None, true, Held::No)),
        ("stopped", seen(None, false, Held::Stopped)),
        ("traced", seen(None, false, Held::Traced)),
        ("over", seen(Some(137), false, Held::Traced)),
        ("lives", Happened::ProcessSeen(None)),
        ("over", Happened::ProcessSeen(Some(137))),
        ("empty", Happened::CgroupSeen(CgroupState { empty: true, ..CgroupState::default() })),
        ("not empty", Happened::CgroupSeen(CgroupState::default())),
        ("strays", Happened::CgroupSeen(CgroupState { empty: true, strays: true, ..CgroupState::default() })),
        ("none left", Happened::SessionSeen { count: 0, over: None }),
        ("some left", Happened::SessionSeen { count: 2, over: None }),
        ("memory", Happened::MemorySeen(true)),
        ("", Happened::Recorded(Ok(()))),
        ("failed", Happened::Recorded(Err("disk".to_owned()))),
        ("", Happened::Due),
        ("", Happened::Stop),
        ("", Happened::ContainerEnded),
        ("", Happened::Start(other)),
        ("SIGTERM", kill(15, false)),
        ("SIGKILL", kill(9, false)),
        ("all", kill(9, true)),
        ("", Happened::ReopenLog(other)),
        ("", Happened::Forget(other)),
        ("", Happened::KillSession(other)),
    ]
}

fn worker(reaped: bool, failed: bool) -> Worker {
    let mut worker = Worker::new(REQUESTER, NOW);
    (worker.pid, worker.reaped) = if reaped { (None, Some(1)) } else { (Some(WORKER), None) };
    worker.failure = failed.then(failure);
    worker
}

#[expect(clippy::too_many_lines, reason = "a list of all phases")]
fn containers() -> Vec<(&'static str, Phase)> {
    let init = Init { pid: PID, ending: None };
    let killed = Init { pid: PID, ending: Some(over_once()) };
    let starting = |init, pipe_closed| Phase::Starting {
        init,
        requester: REQUESTER,
        look: Look::at(NOW),
        said: None,
        pipe_closed,
    };
    let facts = ExitFacts { code: 3, finished_at: 5, ..ExitFacts::default() };
    let ending = |start| Phase::Ending(Ending { pid: PID, facts: facts.clone(), start, look: Look::at(NOW) });
    let undoing = |worker, init| {
        let (requester, failure) = (REQUESTER, failure());
        Phase::Undoing(Undoing { requester, failure, worker, init, look: Look::at(NOW) })
    };
    let reply = Reply::Created { pid: PID, user: super::user(), home: "/".to_owned() };
    vec![
        ("", Phase::Creating(worker(false, false))),
        ("worker reaped", Phase::Creating(worker(true, false))),
        ("given up", Phase::Creating(worker(false, true))),
        (
            "",
            Phase::Adopting {
                requester: REQUESTER,
                worker: Some(WORKER),
                process: Process::new(PID, None),
                reply: reply.clone(),
            },
        ),
        (
            "init has ended",
            Phase::Adopting {
                requester: REQUESTER,
                worker: None,
                process: Process::new(PID, Some(3)),
                reply,
            },
        ),
        ("", Phase::Created(init)),
        ("killed", Phase::Created(killed)),
        ("", starting(init, false)),
        ("pipe closed", starting(init, true)),
        ("killed", starting(killed, false)),
        ("", Phase::Running { init, started_at: 4 }),
        ("killed", Phase::Running { init: killed, started_at: 4 }),
        ("", ending(None)),
        ("not started", ending(Some(Unstarted { requester: REQUESTER, executed: None, said: None }))),
        ("", undoing(None, None)),
        ("worker and init live", undoing(Some(WORKER), Some(PID))),
        ("", Phase::Recording { pid: PID, facts: facts.clone(), failed: None }),
        (
            "not started",
            Phase::Recording { pid: PID, facts: facts.clone(), failed: Some((REQUESTER, failure())) },
        ),
        ("", Phase::Exited { pid: PID, facts }),
        ("", Phase::Gone),
    ]
}

fn over_once() -> Look {
    let mut look = Look::at_killed(NOW - 200);
    look.was_over();
    look
}

fn pauses() -> Vec<(&'static str, Pause)> {
    let process = Process::new(PID, None);
    let starting =
        |reaped, failed, process| Pause::Starting { serial: SERIAL, worker: worker(reaped, failed), process };
    vec![
        ("", Pause::None),
        ("", starting(false, false, None)),
        ("worker reaped", starting(true, false, None)),
        ("made", starting(true, false, Some(process))),
        ("made, given up", starting(false, true, Some(process))),
        ("", Pause::Adopting { serial: SERIAL, requester: REQUESTER, process }),
        (
            "has ended",
            Pause::Adopting { serial: SERIAL, requester: REQUESTER, process: Process::new(PID, Some(3)) },
        ),
        ("", Pause::Running { serial: SERIAL, pid: PID }),
        ("", Pause::Exited { serial: SERIAL, pid: PID, code: 3 }),
        (
            "",
            Pause::Undoing {
                serial: SERIAL,
                requester: REQUESTER,
                failure: failure(),
                worker: Some(WORKER),
                process: None,
                kill_at: NOW,
            },
        ),
        (
            "only the process is left",
            Pause::Undoing {
                serial: SERIAL,
                requester: REQUESTER,
                failure: failure(),
                worker: None,
                process: Some(PID),
                kill_at: NOW,
            },
        ),
    ]
}

fn execs() -> Vec<(&'static str, ExecPhase, Kill)> {
    let process = Process::new(PID, None);
    let starting = |reaped, failed, process| ExecPhase::Starting { worker: worker(reaped, failed), process };
    let late = || {
        let mut late = worker(false, true);
        late.kills = 9;
        ExecPhase::Starting { worker: late, process: None }
    };
    let going = |until| Kill::Going { requester: Some(REQUESTER), look: Look::at(NOW), until };
    let wanted = Kill::Wanted { requester: Some(REQUESTER) };
    let ended = ExecPhase::Ended(Process::new(PID, Some(3)), 3);
    let left = |worker, process| ExecPhase::Leftover { worker, process, kill_at: NOW };
    vec![
        ("", starting(false, false, None), Kill::No),
        ("worker reaped", starting(true, false, None), Kill::No),
        ("made", starting(false, false, Some(process)), Kill::No),
        ("made, given up", starting(false, true, Some(process)), Kill::No),
        ("late, not to be killed", late(), Kill::No),
        ("kill wanted", starting(false, false, None), wanted),
        ("", ExecPhase::Running(process), Kill::No),
        ("being killed", ExecPhase::Running(process), going(NOW + 1)),
        ("being killed in vain", ExecPhase::Running(process), going(NOW)),
        ("", ended, going(NOW + 1)),
        ("", left(Some(WORKER), Some(PID)), Kill::No),
        ("only the process is left", left(None, Some(PID)), Kill::No),
        ("", ExecPhase::Gone, Kill::No),
    ]
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
fn section<T>(
    text: &mut String,
    title: &str,
    phases: &[(&str, &str, T)],
    on: impl Fn(&T, Happened) -> String,
) {
    write!(text, "## {title}\n\n|").unwrap();
    for (name, detail, _) in phases {
        let detail = if detail.is_empty() { String::new() } else { format!(", {detail}") };
        write!(text, " | {name}{detail}").unwrap();
    }
    writeln!(text, " |\n|---{}|", "|---".repeat(phases.len())).unwrap();
    let mut without = Vec::new();
    for (kind, happened) in inputs() {
        let input = input(&happened);
        let shown = if kind.is_empty() { input.to_owned() } else { format!("{input}: {kind}") };
        let cells: Vec<String> = phases.iter().map(|(_, _, of)| on(of, happened.clone())).collect();
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
    let phases: Vec<_> = pauses().into_iter().map(|(detail, of)| (pause(&of), detail, of)).collect();
    section(&mut text, "Pause", &phases, |sample, happened| {
        let (mut of, mut cx) = (sample.clone(), context());
        of.on(happened, &mut cx);
        outcome(of != *sample, pause(&of), pause(sample), &cx)
    });
    let phases: Vec<_> = containers().into_iter().map(|(detail, of)| (phase(&of), detail, of)).collect();
    section(&mut text, "Containers", &phases, |sample, happened| {
        let id = ContainerId::from_random([1; 32]);
        let (mut of, mut cx) = (Container { id, serial: SERIAL, phase: sample.clone() }, context());
        of.on(happened, &mut cx);
        outcome(of.phase != *sample, phase(&of.phase), phase(sample), &cx)
    });
    let phases: Vec<_> =
        execs().into_iter().map(|(detail, of, kill)| (exec_phase(&of), detail, (of, kill))).collect();
    section(&mut text, "Execs", &phases, |(sample, kill), happened| {
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
        of.on(happened, true, &mut cx);
        outcome(of != before, exec_phase(&of.phase), exec_phase(sample), &cx)
    });
    text.truncate(text.trim_end().len());
    text.push('\n');
    text
}

#[test]
fn table_has_every_pair_and_is_the_committed_one() {
    let sampled = |list: &[&str], names: Vec<&str>| {
        let missing: Vec<_> = list.iter().filter(|name| !names.contains(name)).collect();
        assert!(missing.is_empty(), "no sample: {missing:?}");
    };
    sampled(INPUTS, inputs().iter().map(|(_, happened)| input(happened)).collect());
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
