//! Drives the shim as the daemon does, with real namespaces, cgroups and processes. Needs root.

mod common;

use std::fs;
use std::os::fd::AsFd as _;

use common::{Pod, container_id, memfd, process};
use wire::{ErrorKind, Event, Message, PausePlan, Reply, Request, Snapshot};

fn status(pid: u32, key: &str) -> String {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = text.lines().find(|line| line.starts_with(key)).unwrap();
    line.split_once(':').unwrap().1.trim().to_owned()
}

#[test]
fn pause_is_restricted() {
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
    // No descriptors, not even stdio: a container may run as pause's user, and stdio would be the daemon's
    // log.
    assert_eq!(fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count(), 0);
    assert_eq!((status(pid, "Seccomp").as_str(), status(pid, "Seccomp_filters").as_str()), ("2", "1"));
    // /proc/PID is owned by root after pause's first system call: processes of the same user cannot trace it.
    use std::os::unix::fs::MetadataExt as _;
    let limit = std::time::Instant::now() + std::time::Duration::from_secs(10);
    while fs::metadata(format!("/proc/{pid}/mem")).unwrap().uid() != 0 {
        assert!(std::time::Instant::now() < limit, "pause can be traced");
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    assert_eq!(fs::read_to_string(format!("/proc/{pid}/mountinfo")).unwrap().lines().count(), 1);
    assert_eq!(pod.cgroups.pids("pause"), [pid]);
    assert_eq!(pod.cgroups.pids("shim"), [pod.shim.pid]);
    let netns = pod.netns.as_ref().unwrap();
    use std::os::fd::AsRawFd as _;
    let given = fs::read_link(format!("/proc/self/fd/{}", netns.as_raw_fd())).unwrap();
    assert_eq!(given, fs::read_link(format!("/proc/{pid}/ns/net")).unwrap());
    // It is in the snapshot, and the shim does not exit while it runs.
    pod.reconnect();
    assert_eq!(pod.snapshots, [Snapshot::Pause { pid, exited: None }]);
    assert!(matches!(pod.ask(Request::Shutdown), Reply::Failed(f) if f.kind == ErrorKind::Busy));
    pod.end();
}

/// A default that the kernel does not have is skipped. If a sysctl of the pod's configuration cannot be set, the pod
/// fails.
#[test]
fn sysctls_that_the_kernel_lacks() {
    const PORTS: &str = "net/ipv4/ip_unprivileged_port_start";
    let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    let absent = pair("net/ipv4/no_such_parameter", "1");
    let plan = |sysctls, default_sysctls| PausePlan {
        network: true,
        pid: true,
        sysctls,
        default_sysctls,
        shm_size: 1 << 20,
        ..PausePlan::default()
    };
    let mut pod = Pod::new("defaults");
    let wrong = pair("net/ipv4/ping_group_range", "no range");
    pod.start_pause(plan(vec![pair(PORTS, "80")], vec![absent.clone(), wrong, pair(PORTS, "0")]));
    let netns = pod.netns.as_ref().unwrap().as_fd();
    let set = sys::netns::inside(netns, || fs::read_to_string(format!("/proc/sys/{PORTS}"))).unwrap();
    assert_eq!(set, "80\n", "the pod's own value is set after the defaults");
    pod.end();
    let mut pod = Pod::new("asked");
    let (cgroup, folders) = pod.cgroups.leaf("pause");
    let plan = memfd(&PausePlan { cgroup, ..plan(vec![absent], Vec::new()) });
    let fds: Vec<_> = [plan.as_fd()].into_iter().chain(folders.iter().map(|fd| fd.as_fd())).collect();
    let (reply, _) = pod.ask_with(Request::StartPause, &fds);
    let told = |failure: &wire::Failure| failure.stage.contains("no_such_parameter");
    assert!(matches!(&reply, Reply::Failed(failure) if told(failure)), "{reply:?}");
    pod.end();
}

#[test]
fn death_of_pause_is_reported() {
    let mut pod = Pod::started("dies");
    let fd = sys::pidfd::open(pod.pause).unwrap();
    sys::pidfd::send_signal(std::os::fd::AsFd::as_fd(&fd), 9).unwrap();
    assert_eq!(pod.event(), Event::PauseExited { code: 137 });
    pod.reconnect();
    assert_eq!(pod.snapshots, [Snapshot::Pause { pid: pod.pause, exited: Some(137) }]);
    pod.end();
}

#[test]
fn impossible_requests_are_refused() {
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
    // An unknown container is not an error.
    assert_eq!(pod.ask(Request::Forget { container: unknown() }), Reply::Done);
    assert_eq!(pod.ask(Request::KillExec { exec: model::ExecId(4) }), Reply::Done);
    pod.end();
}

#[test]
fn shim_of_a_stopped_pod_exits_with_the_daemon() {
    let mut pod = Pod::started("leaves");
    assert_eq!(pod.ask(Request::StopPod), Reply::Done);
    pod.hang_up();
    pod.gone();
}

/// Waits for a change that is not reported by an event.
fn eventually(happened: impl Fn() -> bool) {
    within(20, happened, || "it does not happen".to_owned());
}

/// Waits at most this many seconds for a change. `otherwise` is the message if it does not happen.
fn within(seconds: u64, happened: impl Fn() -> bool, otherwise: impl Fn() -> String) {
    let start = std::time::Instant::now();
    while !happened() {
        assert!(start.elapsed() < std::time::Duration::from_secs(seconds), "{}", otherwise());
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
}

/// The only process of a container, once the worker, which was in the same cgroup, has exited.
fn alone(pod: &Pod, id: &model::ContainerId) -> Vec<u32> {
    eventually(|| pod.cgroups.pids(id.as_str()).len() == 1);
    pod.cgroups.pids(id.as_str())
}

fn exited(pod: &mut Pod, id: &model::ContainerId) -> wire::ExitFacts {
    match pod.event() {
        Event::Exited { container, facts } => {
            assert_eq!(container, *id);
            facts
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_container_from_create_to_remove() {
    let mut pod = Pod::started("life");
    let id = container_id(1);
    let script = "echo out; echo err >&2; printf tail; exit 3";
    let plan = pod.plan(&id, &["sh", "-c", script]);
    let reply = pod.create(plan, false);
    let Reply::Created { pid, user, home } = reply else { panic!("{reply:?}") };
    assert_eq!((user.uid, home.as_str()), (0, "/root"));
    // The worker exits after its report.
    eventually(|| pod.cgroups.pids(id.as_str()) == [pid]);
    assert!(
        matches!(pod.ask(Request::ReopenLog { container: id.clone() }), Reply::Failed(f) if f.kind == ErrorKind::WrongState)
    );
    let reply = pod.ask(Request::Start { container: id.clone() });
    let Reply::Started { started_at } = reply else { panic!("{reply:?}") };
    let facts = exited(&mut pod, &id);
    assert_eq!((facts.code, facts.started_at, facts.oom_killed), (3, started_at, false));
    assert!(facts.finished_at >= started_at);
    let mut lines = pod.log(&id);
    lines.sort();
    assert_eq!(lines, ["stderr F err", "stdout F out", "stdout P tail"]);
    let record = pod.dir.path().join("exits").join(id.as_str());
    let stored = state::file::read::<wire::ExitFacts>(&record, state::kind::EXIT).unwrap().unwrap();
    assert_eq!(stored.data, facts);
    pod.reconnect();
    let entry =
        Snapshot::Container { container: id.clone(), state: wire::ContainerState::Exited(facts), pid };
    assert!(pod.snapshots.contains(&entry), "{:?}", pod.snapshots);
    assert_eq!(pod.ask(Request::Forget { container: id.clone() }), Reply::Done);
    assert!(!record.exists());
    pod.end();
}

#[test]
fn exec_in_a_running_container() {
    let mut pod = Pod::started("exec");
    let id = container_id(1);
    // Not a shell, which would ignore some signals.
    let plan = pod.plan(&id, &["sleep", "1000"]);
    pod.run_plan(plan, false);
    let (code, out, err) =
        pod.exec(1, &id, &["sh", "-c", "echo $A; pwd; echo e >&2; hostname; exit 5"]).unwrap();
    assert_eq!((code, out.as_str(), err.as_str()), (5, "b\n/tmp\nweb-0\n", "e\n"));
    // It is like init: same namespaces, cgroup and credentials, and only stdio is open (listed without a
    // pipe, which would be open in the shell for a moment).
    let look = "for n in mnt pid net ipc uts cgroup user; do [ $(readlink /proc/1/ns/$n) = $(readlink /proc/self/ns/$n) ] \
                || echo $n; done; diff /proc/1/cgroup /proc/self/cgroup; \
                for f in CapEff CapPrm CapInh CapBnd CapAmb SigIgn SigBlk Groups Uid Gid Seccomp NoNewPrivs Umask; do \
                a=$(grep ^$f: /proc/1/status); b=$(grep ^$f: /proc/self/status); [ \"$a\" = \"$b\" ] || echo \"$a, $b\"; done; \
                diff /proc/1/limits /proc/self/limits; ls /proc/$$/fd; cat /proc/1/oom_score_adj";
    let (code, out, err) = pod.exec(2, &id, &["sh", "-c", look]).unwrap();
    assert_eq!((code, err.as_str()), (0, ""));
    assert_eq!(out, "0\n1\n2\n500\n");
    let failure = pod.exec(3, &id, &["/bin/nosuch"]).unwrap_err();
    assert_eq!((failure.kind, failure.errno), (ErrorKind::ExecFailed, 2), "{failure:?}");
    pod.end();
}

#[test]
fn an_exec_is_killed_with_its_whole_session() {
    let mut pod = Pod::started("session");
    let id = pod.run(1, "sleep 1000");
    let before = alone(&pod, &id).len();
    let (pid, _out) = pod.start_exec(7, &id, &["sh", "-c", "(sleep 900 & sleep 901) & sleep 902"]);
    // The shell executes the last sleep in its own process.
    eventually(|| pod.cgroups.pids(id.as_str()).len() == before + 3);
    assert_eq!(pod.ask(Request::KillExec { exec: model::ExecId(7) }), Reply::Done);
    assert_eq!(pod.event(), Event::ExecExited { exec: model::ExecId(7), code: 137 });
    assert_eq!(pod.cgroups.pids(id.as_str()).len(), before);
    assert!(sys::proc::stat(pid).is_err());
    pod.end();
}

#[test]
fn an_exec_that_is_starting_is_killed() {
    let mut pod = Pod::started("early");
    let id = container_id(1);
    let plan = pod.plan(&id, &["sleep", "1000"]);
    pod.run_plan(plan, false);
    let before = alone(&pod, &id);
    for number in 0..20 {
        let plan = memfd(&wire::ExecPlan {
            process: process(&["sleep", "900"]),
            user: model::User::default(),
            mapping: None,
            size: None,
        });
        let null = std::fs::File::open("/dev/null").unwrap();
        let (plan, null) = (plan.as_fd(), null.as_fd());
        let exec = model::ExecId(number);
        pod.send(Request::Exec { exec, container: id.clone(), deadline_ms: None }, &[plan, null, null, null]);
        pod.send(Request::KillExec { exec }, &[]);
        let (mut started, mut failed, mut killed, mut exited) = (false, false, false, false);
        while !(killed && (failed || started && exited)) {
            match pod.frame().0.message {
                Message::Reply(Reply::ExecStarted { .. }) => started = true,
                Message::Reply(Reply::Failed(_)) => failed = true,
                Message::Reply(Reply::Done) => killed = true,
                Message::Event(Event::ExecExited { code, .. }) => {
                    assert_eq!(code, 137);
                    exited = true;
                }
                other => panic!("{other:?}"),
            }
        }
        // The worker may take a moment to exit.
        eventually(|| pod.cgroups.pids(id.as_str()) == before);
    }
    pod.end();
}

#[test]
fn processes_that_outlive_init_are_killed() {
    let mut pod = Pod::started("orphans");
    let id = container_id(1);
    let mut plan = pod.plan(&id, &["sh", "-c", "sleep 1000 & (setsid sleep 1001 &) ; exit 4"]);
    // In pause's PID namespace other processes do not end with init.
    plan.namespaces.pid = wire::NamespaceSource::Pause;
    pod.run_plan(plan, false);
    assert_eq!(exited(&mut pod, &id).code, 4);
    assert_eq!(pod.cgroups.pids(id.as_str()), [0u32; 0]);
    pod.end();
}

#[test]
fn signals_and_start_failures() {
    let mut pod = Pod::started("signals");
    let id = pod.run(1, "trap 'exit 9' TERM; echo ready; while :; do sleep 0.05; done");
    // PID 1 without a handler would ignore the signal.
    eventually(|| !pod.log(&id).is_empty());
    assert_eq!(pod.ask(Request::Kill { container: id.clone(), signal: 15, all: false }), Reply::Done);
    assert_eq!(exited(&mut pod, &id).code, 9);
    assert_eq!(pod.ask(Request::Kill { container: id, signal: 15, all: false }), Reply::Done);

    let id = pod.run(2, "sleep 1000");
    assert_eq!(pod.ask(Request::Kill { container: id.clone(), signal: 0, all: true }), Reply::Done);
    assert_eq!(exited(&mut pod, &id).code, 137);

    let id = container_id(3);
    let plan = pod.plan(&id, &["/bin/nosuch"]);
    let reply = pod.create(plan, false);
    assert!(matches!(reply, Reply::Created { .. }), "{reply:?}");
    let reply = pod.ask(Request::Start { container: id.clone() });
    assert!(
        matches!(&reply, Reply::Failed(f) if f.kind == ErrorKind::StartFailed && f.message.contains("nosuch")),
        "{reply:?}"
    );
    let facts = exited(&mut pod, &id);
    assert_eq!((facts.code, facts.started_at), (128, 0));
    assert!(facts.start_error.unwrap().contains("nosuch"));

    // A failed creation leaves nothing.
    let id = container_id(4);
    let mut plan = pod.plan(&id, &["sh"]);
    plan.rootfs.layers = vec!["nosuch".to_owned().into()];
    let reply = pod.create(plan, false);
    assert!(matches!(reply, Reply::Failed(_)), "{reply:?}");
    assert_eq!(pod.cgroups.pids(id.as_str()), [0u32; 0]);
    pod.reconnect();
    assert!(
        !pod.snapshots.iter().any(|s| matches!(s, Snapshot::Container { container, .. } if *container == id))
    );
    pod.end();
}

#[test]
fn a_failed_create_does_not_kill_other_containers_orphans() {
    let mut pod = Pod::started("strays");
    let id = container_id(1);
    let mut plan = pod.plan(&id, &["sh", "-c", "(setsid sleep 1001 &); exec sleep 1000"]);
    // Orphans become children of the shim.
    plan.namespaces.pid = wire::NamespaceSource::Host;
    pod.run_plan(plan, false);
    let child_of_shim = |pid: &u32| {
        let sleeps =
            std::fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| line.starts_with(b"sleep"));
        sleeps && sys::proc::stat(*pid).is_ok_and(|stat| stat.parent == pod.shim.pid)
    };
    // Only the two sleeps: the worker and the intermediate shells exit a moment later.
    let settled = || {
        let pids = pod.cgroups.pids(id.as_str());
        pids.len() == 2 && pids.iter().all(child_of_shim)
    };
    eventually(settled);
    let before = pod.cgroups.pids(id.as_str());
    let failing = container_id(2);
    let mut plan = pod.plan(&failing, &["sh"]);
    plan.rootfs.layers = vec!["nosuch".to_owned().into()];
    let reply = pod.create(plan, false);
    assert!(matches!(reply, Reply::Failed(_)), "{reply:?}");
    assert_eq!(pod.cgroups.pids(id.as_str()), before);
    pod.end();
}

#[test]
fn logs_are_reopened_and_terminals_logged() {
    let mut pod = Pod::started("logs");
    let id =
        pod.run(1, "i=0; while [ $i -lt 200 ]; do echo line $i; i=$((i+1)); sleep 0.01; done; sleep 1000");
    let path = pod.log_path(&id);
    eventually(|| fs::read_to_string(&path).unwrap().contains("line 20"));
    let old = path.with_extension("old");
    fs::rename(&path, &old).unwrap();
    assert_eq!(pod.ask(Request::ReopenLog { container: id.clone() }), Reply::Done);
    assert!(path.exists());
    eventually(|| fs::read_to_string(&path).unwrap().contains("line 199"));
    let all = fs::read_to_string(&old).unwrap() + &fs::read_to_string(&path).unwrap();
    let got: Vec<_> = all.lines().map(|line| line.rsplit(' ').next().unwrap().to_owned()).collect();
    assert_eq!(got, (0..200).map(|i| i.to_string()).collect::<Vec<_>>());

    let id = container_id(2);
    let mut plan = pod.plan(&id, &["sh", "-c", "tty; echo err >&2; [ -t 0 ] && echo terminal"]);
    plan.process.terminal = true;
    pod.run_plan(plan, false);
    assert_eq!(exited(&mut pod, &id).code, 0);
    let lines = pod.log(&id);
    assert_eq!(lines[1..], ["stdout F err", "stdout F terminal"]);
    assert!(lines[0].starts_with("stdout F /dev/"), "{lines:?}");
    pod.end();
}

#[test]
fn exits_without_a_daemon_are_kept() {
    let mut pod = Pod::started("away");
    let id = pod.run(1, "sleep 0.2; echo late; exit 6");
    pod.hang_up();
    let record = pod.dir.path().join("exits").join(id.as_str());
    eventually(|| record.exists());
    pod.reconnect();
    let known = pod.snapshots.iter().any(|entry| {
        matches!(entry, Snapshot::Container { container, state: wire::ContainerState::Exited(f), .. }
            if *container == id && f.code == 6)
    });
    assert!(known, "{:?}", pod.snapshots);
    assert_eq!(pod.log(&id), ["stdout F late"]);
    pod.end();
}

/// KiB of one line of smaps_rollup.
fn rollup(pid: u32, key: &str) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap();
    let line = text.lines().find(|line| line.starts_with(key)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// Growth is checked with any build; the size is only meaningful with the release build (make shim), whose
/// path is in COPEPOD_SHIM.
#[test]
fn memory_does_not_grow_with_execs() {
    let mut pod = Pod::started("memory");
    let id = pod.run(1, "sleep 1000");
    let run = |pod: &mut Pod, numbers: std::ops::Range<u64>| {
        for number in numbers {
            assert_eq!(pod.exec(number, &id, &["true"]).unwrap().0, 0);
        }
    };
    let now = |pod: &Pod| rollup(pod.shim.pid, "Anonymous:");
    run(&mut pod, 1..20);
    // The shim returns memory a moment after a reply, so the smallest value counts.
    let early = (0..50).map(|_| {
        std::thread::sleep(std::time::Duration::from_millis(10));
        now(&pod)
    });
    let early = early.min().unwrap();
    let start = std::time::Instant::now();
    run(&mut pod, 20..220);
    let each = start.elapsed() / 200;
    // Leaked memory is never returned.
    within(20, || now(&pod) <= early + 16, || format!("{} KiB after 200 execs, {early} before", now(&pod)));
    println!("anonymous {early} -> {} KiB, {each:?} an exec", now(&pod));
    if std::env::var_os("COPEPOD_SHIM").is_some() {
        within(20, || now(&pod) <= 80, || format!("{} KiB of memory of its own", now(&pod)));
    }
    pod.end();
}

/// Prints the rate; asserts only that nothing is lost.
#[test]
fn a_flood_of_lines_is_all_logged() {
    let mut pod = Pod::started("flood");
    let line = "x".repeat(99);
    let start = std::time::Instant::now();
    let id = pod.run(1, &format!("yes {line} | head -n 2000000"));
    assert_eq!(exited(&mut pod, &id).code, 0);
    let taken = start.elapsed().as_secs_f64();
    let size = fs::metadata(pod.log_path(&id)).unwrap().len();
    let stat = fs::read_to_string(format!("/proc/{}/stat", pod.shim.pid)).unwrap();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    // utime and stime, in hundredths of a second.
    let (user, system): (f64, f64) = (fields[11].parse().unwrap(), fields[12].parse().unwrap());
    println!(
        "{:.0} MiB/s of 100-byte lines; the shim took {user} + {system} hundredths of a second of CPU",
        200e6 / f64::from(1 << 20) / taken
    );
    assert_eq!(size, 2_000_000 * (100 + 40));
    println!("anonymous at the end {} KiB", rollup(pod.shim.pid, "Anonymous:"));
    pod.end();
}
