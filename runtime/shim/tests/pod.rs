//! The shim as the daemon drives it: real namespaces, cgroups and processes. Root.

mod common;

use std::fs;

use common::{Pod, container_id};
use wire::{ErrorKind, Event, Reply, Request, Snapshot};

fn status(pid: u32, key: &str) -> String {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = text.lines().find(|line| line.starts_with(key)).unwrap();
    line.split_once(':').unwrap().1.trim().to_owned()
}

#[test]
fn pause_is_locked_up() {
    let mut pod = Pod::started("pause");
    let pid = pod.pause;
    assert_eq!(status(pid, "Name"), "pause");
    assert_eq!(status(pid, "NSpid").split_whitespace().last(), Some("1"));
    for key in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        assert_eq!(status(pid, key), "0000000000000000", "{key}");
    }
    assert_eq!(status(pid, "NoNewPrivs"), "1");
    assert_eq!(status(pid, "Uid").split_whitespace().next(), Some("65535"));
    assert_eq!(fs::read_dir(format!("/proc/{pid}/root")).unwrap().count(), 0);
    assert_eq!(fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count(), 3);
    assert_eq!(fs::read_to_string(format!("/proc/{pid}/mountinfo")).unwrap().lines().count(), 1);
    assert_eq!(pod.cgroups.pids("pause"), [pid]);
    assert_eq!(pod.cgroups.pids("shim"), [pod.shim.pid]);
    let netns = pod.netns.as_ref().unwrap();
    use std::os::fd::AsRawFd as _;
    let given = fs::read_link(format!("/proc/self/fd/{}", netns.as_raw_fd())).unwrap();
    assert_eq!(given, fs::read_link(format!("/proc/{pid}/ns/net")).unwrap());
    // A second one is refused, a request without a plan ends the connection, the pod lives on.
    pod.reconnect();
    assert_eq!(pod.snapshots, [Snapshot::Pause { pid, exited: None }]);
    assert!(matches!(pod.ask(Request::Shutdown), Reply::Failed(f) if f.kind == ErrorKind::Busy));
    pod.end();
}

#[test]
fn pause_that_dies_is_told_of() {
    let mut pod = Pod::started("dies");
    let fd = sys::pidfd::open(pod.pause).unwrap();
    sys::pidfd::send_signal(std::os::fd::AsFd::as_fd(&fd), 9).unwrap();
    assert_eq!(pod.event(), Event::PauseExited { code: 137 });
    pod.reconnect();
    assert_eq!(pod.snapshots, [Snapshot::Pause { pid: pod.pause, exited: Some(137) }]);
    pod.end();
}

#[test]
fn what_cannot_be_is_refused() {
    let mut pod = Pod::started("refuse");
    let unknown = || container_id(0xee);
    for request in [
        Request::Start { container: unknown() },
        Request::Kill { container: unknown(), signal: 15, all: false },
        Request::ReopenLog { container: unknown() },
    ] {
        let reply = pod.ask(request);
        assert!(matches!(&reply, Reply::Failed(f) if f.kind == ErrorKind::NotFound), "{reply:?}");
    }
    assert!(matches!(pod.ask(Request::Unknown), Reply::Failed(f) if f.kind == ErrorKind::Unsupported));
    // Gone already is no error.
    assert_eq!(pod.ask(Request::Forget { container: unknown() }), Reply::Done);
    assert_eq!(pod.ask(Request::KillExec { exec: model::ExecId(4) }), Reply::Done);
    pod.end();
}

#[test]
fn the_shim_leaves_with_the_daemon_once_the_pod_is_stopped() {
    let mut pod = Pod::started("leaves");
    assert_eq!(pod.ask(Request::StopPod), Reply::Done);
    pod.hang_up();
    pod.gone();
}
