//! Unusual events in a shim's life: other versions of the daemon, full tables, tracers. Needs root.

mod common;

use std::os::fd::{AsFd as _, OwnedFd};

use common::{Pod, container_id, memfd, process};
use model::ContainerId;
use wire::{ErrorKind, Event, Message, Reply, Request};

/// A created container whose init was sent SIGSTOP: id, pid and descriptor.
fn stopped_init(pod: &mut Pod, byte: u8) -> (ContainerId, u32, OwnedFd) {
    let id = container_id(byte);
    let plan = pod.plan(&id, &["sleep", "1000"]);
    let reply = pod.create(plan, false);
    let Reply::Created { pid, .. } = reply else { panic!("{reply:?}") };
    let init = sys::pidfd::open(pid).unwrap();
    sys::pidfd::send_signal(init.as_fd(), 19).unwrap();
    (id, pid, init)
}

#[test]
fn plans_of_a_later_daemon_are_refused_as_a_whole() {
    let mut pod = Pod::started("later");
    let id = container_id(1);
    let mntns = std::fs::File::open("/proc/self/ns/mnt").unwrap();
    let mut plan = serde_json::to_value(pod.plan(&id, &["sleep", "1000"])).unwrap();
    plan["process"]["landlock"] = "confined".into();
    let plan = memfd(&plan);
    let request = || Request::Create {
        container: id.clone(),
        deadline_ms: 15_000,
        log: None,
        terminal: false,
        stdin: false,
    };
    let (reply, _) = pod.ask_with(request(), &[plan.as_fd(), mntns.as_fd()]);
    assert!(
        matches!(&reply, Reply::Failed(f) if f.kind == ErrorKind::Unsupported && f.message.contains("landlock")),
        "{reply:?}"
    );

    pod.run(2, "sleep 1000");
    let running = container_id(2);
    let mut exec = serde_json::to_value(wire::ExecPlan {
        process: process(&["true"]),
        user: model::User::default(),
        mapping: None,
        size: None,
    })
    .unwrap();
    exec["cgroup"] = "other".into();
    let exec = memfd(&exec);
    let null = std::fs::File::open("/dev/null").unwrap();
    let fds = [exec.as_fd(), null.as_fd(), null.as_fd(), null.as_fd()];
    let (reply, _) = pod.ask_with(
        Request::Exec { exec: model::ExecId(1), container: running.clone(), deadline_ms: None },
        &fds,
    );
    assert!(matches!(&reply, Reply::Failed(f) if f.kind == ErrorKind::Unsupported), "{reply:?}");

    // One descriptor more or less than this version expects: refused, and the connection is kept.
    let five = [null.as_fd(); 5];
    for (request, fds) in [
        (Request::Exec { exec: model::ExecId(2), container: running, deadline_ms: None }, five.as_slice()),
        (Request::StopPod, &five[..1]),
        (request(), &[]),
    ] {
        let (reply, _) = pod.ask_with(request, fds);
        assert!(matches!(&reply, Reply::Failed(f) if f.kind == ErrorKind::Unsupported), "{reply:?}");
    }
    pod.end();
}

#[test]
fn a_start_is_reported_to_the_connected_daemon() {
    let mut pod = Pod::started("started");
    // Its init is stopped, so that the start is still running when the daemon is replaced.
    let (id, _, init) = stopped_init(&mut pod, 1);
    pod.send(Request::Start { container: id.clone() }, &[]);
    pod.reconnect();
    sys::pidfd::send_signal(init.as_fd(), 18).unwrap();
    loop {
        match pod.frame().0.message {
            Message::Event(Event::Started { container, started_at }) => {
                assert_eq!(container, id);
                assert!(started_at > 0);
                break;
            }
            Message::Event(Event::Warning { .. }) => {}
            other => panic!("{other:?}"),
        }
    }
    pod.reconnect();
    let running = pod.snapshots.iter().any(|entry| {
        matches!(entry, wire::Snapshot::Container { container, state: wire::ContainerState::Running { .. }, .. } if *container == id)
    });
    assert!(running, "{:?}", pod.snapshots);
    pod.end();
}

#[test]
fn an_init_that_is_killed_before_execve_was_never_started() {
    let mut pod = Pod::started("never");
    let mut checked = 0;
    for byte in 1..=10 {
        // Stopped first, so that it does not call execve before it is killed.
        let (id, pid, init) = stopped_init(&mut pod, byte);
        while sys::proc::stat(pid).unwrap().state != 'T' {
            std::thread::yield_now();
        }
        pod.send(Request::Start { container: id.clone() }, &[]);
        sys::pidfd::send_signal(init.as_fd(), 9).unwrap();
        let failure = loop {
            match pod.frame().0.message {
                Message::Reply(Reply::Failed(failure)) => break failure,
                Message::Event(Event::Warning { .. }) => {}
                other => panic!("{other:?}"),
            }
        };
        let Event::Exited { facts, .. } = pod.event() else { panic!("no end") };
        assert_eq!(facts.started_at, 0);
        // The kill may come before the request: then init does not listen for the start any more.
        if failure.errno == 111 {
            continue;
        }
        checked += 1;
        assert_eq!(failure.kind, ErrorKind::StartFailed, "{failure:?}");
        assert!(failure.message.contains("before execve"), "{failure:?}");
        assert_eq!(facts.code, 128);
    }
    assert!(checked > 0, "every kill overtook its start");
    pod.end();
}

#[test]
fn a_stopped_init_is_continued() {
    let mut pod = Pod::started("stopped");
    let (id, ..) = stopped_init(&mut pod, 1);
    assert!(matches!(pod.ask(Request::Start { container: id }), Reply::Started { .. }));
    pod.end();
}

#[test]
fn a_terminated_shim_exits_with_its_last_process() {
    let mut pod = Pod::started("terminated");
    let id = pod.run(1, "trap 'exit 0' TERM; while :; do sleep 0.05; done");
    sys::pidfd::send_signal(pod.shim.pidfd.as_fd(), 15).unwrap();
    // It stays as long as processes are running, and still handles requests.
    assert_eq!(pod.exec(1, &id, &["true"]).unwrap().0, 0);
    assert_eq!(pod.ask(Request::Kill { container: id, signal: 9, all: true }), Reply::Done);
    assert!(matches!(pod.event(), Event::Exited { .. }));
    let pause = sys::pidfd::open(pod.pause).unwrap();
    sys::pidfd::send_signal(pause.as_fd(), 15).unwrap();
    pod.gone();
}

/// A process of the host is the tracer, as one of the pod with the right capability could be.
#[test]
fn a_tracer_cannot_keep_a_container_or_exec_from_ending() {
    const SEIZE: i64 = 0x4206;
    const TRACE_EXIT: i64 = 0x40;
    let mut pod = Pod::started("traced");
    for (byte, options) in [(1, 0), (2, TRACE_EXIT)] {
        let id = container_id(byte);
        let plan = pod.plan(&id, &["sleep", "1000"]);
        pod.run_plan(plan, false);
        let (exec, _out) = pod.start_exec(u64::from(byte), &id, &["sleep", "1001"]);
        let init = pod.init(&id);
        let tracer = common::tracer::Tracer::of(&[init, exec], SEIZE, options);
        let start = std::time::Instant::now();
        assert_eq!(pod.ask(Request::KillExec { exec: model::ExecId(u64::from(byte)) }), Reply::Done);
        assert_eq!(pod.event(), Event::ExecExited { exec: model::ExecId(u64::from(byte)), code: 137 });
        assert_eq!(pod.ask(Request::Kill { container: id.clone(), signal: 9, all: true }), Reply::Done);
        let Event::Exited { container, facts } = pod.event() else { panic!("no end") };
        assert_eq!((container, facts.code), (id, 137));
        assert!(start.elapsed() < std::time::Duration::from_secs(5), "{:?}", start.elapsed());
        drop(tracer);
    }
    // The same for the whole pod.
    let id = pod.run(3, "sleep 1000");
    let init = pod.init(&id);
    let tracer = common::tracer::Tracer::of(&[init, pod.pause], SEIZE, 0);
    assert_eq!(pod.ask(Request::StopPod), Reply::Done);
    drop(tracer);
    pod.hang_up();
    pod.gone();
}

#[test]
fn a_full_table_of_execs_is_reported_and_recovers() {
    const MAX_EXECS: u64 = 1024;
    let mut pod = Pod::started("full");
    let id = pod.run(1, "sleep 1000");
    let plan = memfd(&wire::ExecPlan {
        process: process(&["sleep", "1001"]),
        user: model::User::default(),
        mapping: None,
        size: None,
    });
    let null = std::fs::File::open("/dev/null").unwrap();
    let fds = [plan.as_fd(), null.as_fd(), null.as_fd(), null.as_fd()];
    for number in 0..MAX_EXECS {
        let request = Request::Exec { exec: model::ExecId(number), container: id.clone(), deadline_ms: None };
        let (reply, _) = pod.ask_with(request, &fds);
        assert!(matches!(reply, Reply::ExecStarted { .. }), "{number}: {reply:?}");
    }
    let one_more =
        || Request::Exec { exec: model::ExecId(MAX_EXECS), container: id.clone(), deadline_ms: None };
    let (reply, _) = pod.ask_with(one_more(), &fds);
    assert!(matches!(&reply, Reply::Failed(f) if f.kind == ErrorKind::Exhausted), "{reply:?}");
    // A new daemon gets all of them in the snapshot.
    pod.reconnect();
    assert!(pod.snapshots.len() > 1024, "{}", pod.snapshots.len());
    // All are killed at once: each listing of the container's processes serves all sessions.
    for number in 0..MAX_EXECS {
        pod.send(Request::KillExec { exec: model::ExecId(number) }, &[]);
    }
    let (mut done, mut ended) = (0, 0);
    while done < MAX_EXECS || ended < MAX_EXECS {
        match pod.frame().0.message {
            Message::Reply(Reply::Done) => done += 1,
            Message::Event(Event::ExecExited { code, .. }) => {
                assert_eq!(code, 137);
                ended += 1;
            }
            other => panic!("{other:?}"),
        }
    }
    let (reply, _) = pod.ask_with(one_more(), &fds);
    assert!(matches!(reply, Reply::ExecStarted { .. }), "{reply:?}");
    pod.end();
}
