//! What a shim does over its pod's life beside the ordinary: other versions of the daemon, full tables, tracers. Root.

mod common;

use std::os::fd::AsFd as _;

use common::{Pod, container_id, memfd, process};
use wire::{ErrorKind, Event, Message, Reply, Request};

#[test]
fn what_a_later_daemon_asks_for_is_refused_and_never_trimmed() {
    let mut pod = Pod::started("later");
    let id = container_id(1);
    let mntns = std::fs::File::open("/proc/self/ns/mnt").unwrap();
    let mut plan = serde_json::to_value(pod.plan(&id, &["sleep", "1000"])).unwrap();
    plan["process"]["apparmor"] = "confined".into();
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
        matches!(&reply, Reply::Failed(f) if f.kind == ErrorKind::Unsupported && f.message.contains("apparmor")),
        "{reply:?}"
    );

    pod.run(2, "sleep 1000");
    let running = container_id(2);
    let mut exec =
        serde_json::to_value(wire::ExecPlan { process: process(&["true"]), user: model::User::default() })
            .unwrap();
    exec["cgroup"] = "other".into();
    let exec = memfd(&exec);
    let null = std::fs::File::open("/dev/null").unwrap();
    let fds = [exec.as_fd(), null.as_fd(), null.as_fd(), null.as_fd()];
    let (reply, _) = pod.ask_with(Request::Exec { exec: model::ExecId(1), container: running.clone() }, &fds);
    assert!(matches!(&reply, Reply::Failed(f) if f.kind == ErrorKind::Unsupported), "{reply:?}");

    // One descriptor more, or less, than this version takes: refused, and the connection is kept.
    let five = [null.as_fd(); 5];
    for (request, fds) in [
        (Request::Exec { exec: model::ExecId(2), container: running }, five.as_slice()),
        (Request::StopPod, &five[..1]),
        (request(), &[]),
    ] {
        let (reply, _) = pod.ask_with(request, fds);
        assert!(matches!(&reply, Reply::Failed(f) if f.kind == ErrorKind::Unsupported), "{reply:?}");
    }
    pod.end();
}

#[test]
fn a_start_is_told_to_the_daemon_that_is_there_when_it_happens() {
    let mut pod = Pod::started("started");
    let id = container_id(1);
    let plan = pod.plan(&id, &["sleep", "1000"]);
    let reply = pod.create(plan, false);
    let Reply::Created { pid, .. } = reply else { panic!("{reply:?}") };
    // Its init is held, so that the start is still on its way when the daemon is replaced.
    let init = sys::pidfd::open(pid).unwrap();
    sys::pidfd::send_signal(init.as_fd(), 19).unwrap();
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
