//! Samples for the table ([`super::table`]): each phase, and each kind of each input, with names that tell those of
//! one variant apart.

use wire::{ErrorKind, ExitFacts, Failure, Reply};

use super::super::checks::{UntilEmpty, UntilExecve, UntilReaped};
use super::super::exec::{Kill, Phase as ExecPhase};
use super::super::id::{Requester, Serial};
use super::super::input::{
    CgroupState, ContainerInput, ExecInput, InitState, PauseInput, Stopped, WorkerInput,
};
use super::super::pause::Pause;
use super::super::phase::{Ending, Execve, Init, Phase, Undoing, Unstarted};
use super::super::worker::{Process, Worker};
use super::user;
use crate::failure::refusal;

pub(super) const SERIAL: Serial = Serial(1);
const PID: u32 = 10;
const WORKER: u32 = 9;
/// The time of all inputs; all deadlines in the samples have passed then.
pub(super) const NOW: u64 = 100_000;
const REQUESTER: Requester = Requester { generation: 1, id: 1 };

fn failure() -> Failure {
    refusal(ErrorKind::Internal, "step", "it failed")
}

const OTHER: Requester = Requester { generation: 1, id: 2 };

pub(super) fn worker_inputs() -> Vec<(&'static str, WorkerInput)> {
    vec![
        ("", WorkerInput::Forked(Ok(WORKER))),
        ("failed", WorkerInput::Forked(Err(failure()))),
        ("", WorkerInput::Warning("it is so".to_owned())),
        ("", WorkerInput::Failed(failure())),
        ("", WorkerInput::Closed),
        ("", WorkerInput::PacketsRead),
        ("", WorkerInput::Reaped(1)),
    ]
}

pub(super) fn pause_inputs() -> Vec<(&'static str, PauseInput)> {
    let own = [
        ("", PauseInput::Made { pid: PID, ended: None }),
        ("has ended", PauseInput::Made { pid: PID, ended: Some(3) }),
        ("", PauseInput::Reaped(3)),
        ("", PauseInput::Adopted(Ok(()))),
        ("failed", PauseInput::Adopted(Err(failure()))),
        ("lives", PauseInput::Checked(None)),
        ("over", PauseInput::Checked(Some(137))),
        ("", PauseInput::Due),
        ("", PauseInput::Stop),
    ];
    worker_inputs().into_iter().map(|(kind, input)| (kind, PauseInput::Worker(input))).chain(own).collect()
}

pub(super) fn container_inputs() -> Vec<(&'static str, ContainerInput)> {
    let checked =
        |code, executed, stopped| ContainerInput::InitChecked(Some(InitState { code, executed, stopped }));
    let reply = Reply::Created { pid: PID, user: user(), home: "/".to_owned() };
    let kill = |signal, all| ContainerInput::Kill { requester: OTHER, signal, all };
    let cgroup = |empty, strays| {
        ContainerInput::CgroupChecked(CgroupState { empty, strays, ..CgroupState::default() })
    };
    let error = Some("no such program".to_owned());
    let own = [
        ("", ContainerInput::StreamsReceived(Ok(()))),
        ("failed", ContainerInput::StreamsReceived(Err(failure()))),
        ("", ContainerInput::Created { reply: reply.clone(), pid: PID, ended: None }),
        ("has ended", ContainerInput::Created { reply, pid: PID, ended: Some(3) }),
        ("before execve", ContainerInput::Reaped { code: 3, executed: Some(false) }),
        ("after execve", ContainerInput::Reaped { code: 3, executed: Some(true) }),
        ("not known", ContainerInput::Reaped { code: 3, executed: None }),
        ("", ContainerInput::Adopted(Ok(()))),
        ("failed", ContainerInput::Adopted(Err(failure()))),
        ("", ContainerInput::StartSent(Ok(()))),
        ("failed", ContainerInput::StartSent(Err(failure()))),
        ("closed", ContainerInput::StartPipe { error: None, closed: true }),
        ("open", ContainerInput::StartPipe { error: None, closed: false }),
        ("a failure", ContainerInput::StartPipe { error, closed: true }),
        ("not now", ContainerInput::InitChecked(None)),
        ("waits", checked(None, false, Stopped::No)),
        ("has called execve", checked(None, true, Stopped::No)),
        ("stopped", checked(None, false, Stopped::BySignal)),
        ("traced", checked(None, false, Stopped::ByTracer)),
        ("over", checked(Some(137), false, Stopped::ByTracer)),
        ("empty", cgroup(true, false)),
        ("not empty", cgroup(false, false)),
        ("strays", cgroup(true, true)),
        ("", ContainerInput::Recorded(Ok(()))),
        ("failed", ContainerInput::Recorded(Err("disk".to_owned()))),
        ("", ContainerInput::Due),
        ("", ContainerInput::Stop),
        ("", ContainerInput::Start(OTHER)),
        ("SIGTERM", kill(15, false)),
        ("SIGKILL", kill(9, false)),
        ("all", kill(9, true)),
        ("", ContainerInput::ReopenLog(OTHER)),
        ("", ContainerInput::Attach { requester: OTHER, stdout: true, stderr: true, tell_loss: true }),
        ("", ContainerInput::CloseStdin(OTHER)),
        ("", ContainerInput::Forget(OTHER)),
    ];
    worker_inputs()
        .into_iter()
        .map(|(kind, input)| (kind, ContainerInput::Worker(input)))
        .chain(own)
        .collect()
}

pub(super) fn exec_inputs() -> Vec<(&'static str, ExecInput)> {
    let own = [
        ("", ExecInput::Made { pid: PID, ended: None }),
        ("has ended", ExecInput::Made { pid: PID, ended: Some(3) }),
        ("", ExecInput::Reaped(3)),
        ("lives", ExecInput::Checked(None)),
        ("over", ExecInput::Checked(Some(137))),
        ("none left", ExecInput::SessionKilled { count: 0, leader: None }),
        ("some left", ExecInput::SessionKilled { count: 2, leader: None }),
        ("", ExecInput::OomChecked(true)),
        ("", ExecInput::Due),
        ("", ExecInput::Stop),
        ("", ExecInput::ContainerEnded),
        ("", ExecInput::KillSession(OTHER)),
    ];
    worker_inputs().into_iter().map(|(kind, input)| (kind, ExecInput::Worker(input))).chain(own).collect()
}

fn worker(reaped: bool, failed: bool) -> Worker {
    let mut worker = Worker::new(REQUESTER, NOW);
    (worker.pid, worker.reaped) = if reaped { (None, Some(1)) } else { (Some(WORKER), None) };
    worker.failure = failed.then(failure);
    worker
}

#[expect(clippy::too_many_lines, reason = "a list of all phases")]
pub(super) fn containers() -> Vec<(&'static str, Phase)> {
    let init = Init { pid: PID, ending: None };
    let killed = Init { pid: PID, ending: Some(ended_once()) };
    let starting = |init, checks, execve| Phase::Starting { init, requester: REQUESTER, checks, execve };
    let first = UntilExecve::new(NOW - 1000);
    let mut unchecked = first;
    while !unchecked.was_unchecked() {}
    let facts = ExitFacts { code: 3, finished_at: 5, ..ExitFacts::default() };
    let ending =
        |start| Phase::Ending(Ending { pid: PID, facts: facts.clone(), start, checks: UntilEmpty::new(NOW) });
    let undoing = |worker, init| {
        let (requester, failure) = (REQUESTER, failure());
        Phase::Undoing(Undoing { requester, failure, worker, init, checks: UntilEmpty::new(NOW) })
    };
    let reply = Reply::Created { pid: PID, user: user(), home: "/".to_owned() };
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
        ("", starting(init, first, Execve::Pending)),
        ("pipe closed", starting(init, first, Execve::Unclear)),
        ("pipe closed, not checked for long", starting(init, unchecked, Execve::Unclear)),
        ("pipe closed before execve", starting(init, first, Execve::NotCalled)),
        ("failed", starting(init, first, Execve::Failed("no such program".to_owned()))),
        ("killed", starting(killed, first, Execve::Pending)),
        ("", Phase::Running { init, started_at: 4 }),
        ("killed", Phase::Running { init: killed, started_at: 4 }),
        ("", ending(None)),
        ("not started", ending(Some(Unstarted { requester: REQUESTER, executed: None, error: None }))),
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

fn ended_once() -> UntilReaped {
    let mut checks = UntilReaped::new(NOW - 200);
    checks.has_ended();
    checks
}

pub(super) fn pauses() -> Vec<(&'static str, Pause)> {
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

pub(super) fn execs() -> Vec<(&'static str, ExecPhase, Kill)> {
    let process = Process::new(PID, None);
    let starting = |reaped, failed, process| ExecPhase::Starting { worker: worker(reaped, failed), process };
    let late = || {
        let mut late = worker(false, true);
        late.kills = 9;
        ExecPhase::Starting { worker: late, process: None }
    };
    let going = |until| Kill::Active { requester: Some(REQUESTER), checks: UntilEmpty::new(NOW), until };
    let wanted = Kill::Deferred { requester: Some(REQUESTER) };
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
