//! Creates real containers with libcontainer, as root. The code under test needs a process with one thread,
//! which no test harness provides: this program has its own harness and re-executes itself as a small shim
//! for each test. `cargo test -p shim --test create -- NAME` runs the tests whose names contain NAME.

// These are the sources of the binary, with another crate root: not everything is used here.
#![allow(dead_code, unused_imports, missing_docs)]

#[path = "../src/bundle.rs"]
mod bundle;
#[path = "create/pod.rs"]
mod pod;
#[path = "../src/podns.rs"]
mod podns;
#[path = "../src/process.rs"]
mod process;
#[path = "create/shim_side.rs"]
mod shim_side;
#[path = "../src/user.rs"]
mod user;
#[path = "../src/worker/mod.rs"]
mod worker;
#[path = "../src/worker_only.rs"]
mod worker_only;

use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::Path;

use model::{Propagation, Text, UserRequest};
use pod::{Pod, bind};
use shim_side::{Outcome, shim_side};
use wire::{
    CapSets, CgroupMember, CgroupPlan, ErrorKind, MountKind, MountPlan, NamespaceSource, Reply,
    SeccompProgram,
};

const SCENARIO: &str = "COPEPOD_TEST_SCENARIO";
const ALL_CAPABILITIES: u64 = (1 << 41) - 1;

/// Every test, by name.
const TESTS: &[(&str, fn())] = &[
    ("privileged_runs_and_ends_with_its_code", runs_and_ends_with_its_code),
    ("privileged_a_missing_program_is_reported", a_missing_program_is_reported),
    ("privileged_credentials_and_filter_are_as_planned", credentials_and_filter_are_as_planned),
    ("privileged_mounts_are_as_planned", mounts_are_as_planned),
    ("privileged_init_has_no_descriptors_of_the_worker", init_has_no_descriptors_of_the_worker),
    ("privileged_cgroups_are_joined_and_shown", cgroups_are_joined_and_shown),
    (
        "privileged_init_stays_in_its_cgroups_whatever_volumes_show",
        init_stays_in_its_cgroups_whatever_volumes_show,
    ),
    ("privileged_a_unified_plan_shows_cgroup2", a_unified_plan_shows_cgroup2),
    ("privileged_a_terminal_is_the_containers_own", a_terminal_is_the_containers_own),
    ("privileged_a_failure_names_its_step_and_leaves_nothing", a_failure_names_its_step_and_leaves_nothing),
    ("privileged_propagation_is_as_planned", propagation_is_as_planned),
    ("privileged_mounts_made_meanwhile_are_not_lost", mounts_made_meanwhile_are_not_lost),
    ("privileged_a_hostile_image_stays_inside", a_hostile_image_stays_inside),
    ("privileged_the_hosts_dev_is_not_written", the_hosts_dev_is_not_written),
];

fn main() -> std::process::ExitCode {
    if let Some(path) = std::env::var_os(SCENARIO) {
        shim_side(Path::new(&path));
        return std::process::ExitCode::SUCCESS;
    }
    let args: Vec<String> = std::env::args().skip(1).collect();
    let filters: Vec<&String> = args.iter().filter(|a| !a.starts_with('-')).collect();
    let chosen =
        TESTS.iter().filter(|(name, _)| filters.is_empty() || filters.iter().any(|f| name.contains(*f)));
    if args.iter().any(|a| a == "--list") {
        chosen.for_each(|(name, _)| println!("{name}: test"));
        return std::process::ExitCode::SUCCESS;
    }
    let (mut passed, mut failed) = (0, Vec::new());
    for (name, test) in chosen {
        match std::panic::catch_unwind(test) {
            Ok(()) => passed += 1,
            Err(_) => failed.push(name),
        }
        println!("test {name} ... {}", if failed.last() == Some(&name) { "FAILED" } else { "ok" });
    }
    println!("{passed} passed; {} failed {failed:?}", failed.len());
    if failed.is_empty() { std::process::ExitCode::SUCCESS } else { std::process::ExitCode::FAILURE }
}

fn runs_and_ends_with_its_code() {
    let pod = Pod::new();
    let outcome = pod.run_with(pod.plan("cat; echo $$ $HOME $(id -u); exit 3"), "in\n", false);
    assert_eq!(
        (outcome.output.as_str(), outcome.code, outcome.report.as_str()),
        ("in\n1 /root 0\n", 3, ""),
        "{outcome:?}"
    );
    assert!(matches!(outcome.reply, Reply::Created { ref home, .. } if home == "/root"), "{outcome:?}");
}

#[track_caller]
fn failed(outcome: &Outcome) -> &wire::Failure {
    match &outcome.reply {
        Reply::Failed(failure) => failure,
        other => panic!("no failure: {other:?}"),
    }
}

fn a_missing_program_is_reported() {
    let pod = Pod::new();
    for (args, errno, code, stage) in [
        (["absent", "x"], 2, 127, "execve"),
        (["/bin/absent", "x"], 2, 127, "execve"),
        (["/etc/passwd", "x"], 13, 126, "execve"),
        (["/tmp", "x"], 13, 126, "execve"),
    ] {
        let mut plan = pod.plan("");
        plan.process.args = args.map(|a| Text::new(a).unwrap()).to_vec();
        let outcome = pod.run(plan);
        let failure: wire::Failure = serde_json::from_str(outcome.report.trim()).unwrap();
        assert_eq!(
            (failure.errno, outcome.code, failure.stage.as_str()),
            (errno, code, stage),
            "{outcome:?}"
        );
        assert!(failure.message.contains(args[0]), "{failure:?}");
    }
    // The working directory is created; a file with its name is an error.
    let mut plan = pod.plan("readlink /proc/self/cwd");
    plan.process.cwd = "/made/here".into();
    assert_eq!(pod.run(plan).output, "/made/here\n");
    let mut plan = pod.plan("");
    plan.process.cwd = "/etc/passwd".into();
    assert_eq!(failed(&pod.run(plan)).stage, "working directory");
}

/// Allows everything except mkdir(2) and mkdirat(2), which fail with EPERM (x86-64).
fn no_mkdir() -> SeccompProgram {
    let instruction = |code: u64, jt: u64, jf: u64, k: u64| code | jt << 16 | jf << 24 | k << 32;
    SeccompProgram {
        instructions: vec![
            instruction(0x20, 0, 0, 0),
            instruction(0x15, 1, 0, 83),
            instruction(0x15, 0, 1, 258),
            instruction(0x06, 0, 0, 0x0005_0001),
            instruction(0x06, 0, 0, 0x7fff_0000),
        ],
    }
}

fn credentials_and_filter_are_as_planned() {
    let pod = Pod::new();
    let script = "id; grep -E '^(Cap|NoNew|Seccomp:|Sig(Ign|Blk)|Groups)' /proc/self/status; cat /proc/self/oom_score_adj; mkdir /tmp/x; umask; ls /proc/self/fd; cat /proc/self/limits | grep 'open files'";
    for (no_new_privs, filter) in [(false, false), (false, true), (true, true), (true, false)] {
        let mut plan = pod.plan(script);
        plan.user.request = UserRequest::Image("web".into());
        plan.user.supplemental = vec![500];
        plan.process.no_new_privs = no_new_privs;
        plan.process.seccomp = filter.then(no_mkdir);
        plan.process.oom_score_adj = Some(900);
        plan.process.umask = 0o027;
        plan.process.rlimits = vec![wire::Rlimit { resource: 7, soft: 123, hard: 456 }];
        let out = pod.run(plan);
        let has = |text: &str| assert!(out.output.contains(text), "{text:?} not in {}", out.output);
        has("uid=33(web) gid=34 groups=34,77(extra),500");
        has(
            "CapInh:\t0000000000000000\nCapPrm:\t0000000000000000\nCapEff:\t0000000000000000\nCapBnd:\t00000000a80425fb\nCapAmb:\t0000000000000000",
        );
        has("SigBlk:\t0000000000000000\nSigIgn:\t0000000000000000");
        has(&format!("NoNewPrivs:\t{}\nSeccomp:\t{}", u8::from(no_new_privs), if filter { 2 } else { 0 }));
        has("\n900\n");
        has("\n0027\n");
        has("\n0\n1\n2\n3\n");
        assert!(!out.output.contains("\n4\n"), "{}", out.output);
        assert!(
            out.output.split_whitespace().any(|w| w == "123")
                && out.output.split_whitespace().any(|w| w == "456")
        );
        assert_eq!(filter, out.output.contains("Operation not permitted"), "{}", out.output);
    }
    // Root keeps exactly the bounding set; other users keep ambient capabilities.
    let mut plan = pod.plan("grep Cap /proc/self/status");
    plan.process.seccomp = Some(no_mkdir());
    let out = pod.run(plan).output;
    assert!(out.contains("CapPrm:\t00000000a80425fb\nCapEff:\t00000000a80425fb"), "{out}");
    let mut plan = pod.plan("grep Cap /proc/self/status");
    plan.user.request = UserRequest::Uid(4242);
    plan.process.caps = CapSets { bounding: 0x400, permitted: 0x400, inheritable: 0x400, ambient: 0x400 };
    plan.process.seccomp = Some(no_mkdir());
    let out = pod.run(plan).output;
    for set in ["Inh", "Prm", "Eff", "Bnd", "Amb"] {
        assert!(out.contains(&format!("Cap{set}:\t0000000000000400")), "{out}");
    }
}

fn mounts_are_as_planned() {
    let pod = Pod::new();
    fs::create_dir_all(pod.path("vol")).unwrap();
    fs::write(pod.path("vol/data"), "data\n").unwrap();
    fs::write(pod.path("resolv"), "nameserver\n").unwrap();
    fs::write(pod.path("log"), "").unwrap();
    let script = "cat /vol/data /etc/resolv.conf; echo t > /dev/termination-log; echo w > /vol/w; echo r > /ro/x; \
        echo m > /made/m; stat -c '%a %n' /dev/null /dev/shm /dev/tty /proc/kcore /dev/odd /data/deep; ls -A /proc/acpi | wc -l; \
        echo 1 > /proc/sys/vm/swappiness; ls /dev/pts /dev/mqueue >&-; readlink /dev/ptmx; readlink /dev/fd; touch /new; \
        cat /proc/kcore | wc -c; grep -c . /proc/self/mountinfo; grep ' / / ' /proc/self/mountinfo; mount | grep mqueue; ls /sys/class/net";
    let mut plan = pod.plan(script);
    let mut readonly = bind(&pod.path("vol"), "/ro", Propagation::Private);
    readonly.readonly = true;
    plan.mounts.extend([
        bind(&pod.path("log"), "/dev/termination-log", Propagation::Private),
        MountPlan::new("/etc/resolv.conf", MountKind::File { source: pod.path("resolv") }),
        bind(&pod.path("made/on/demand"), "/made", Propagation::Private),
        readonly,
        bind(&pod.path("vol"), "/vol", Propagation::Private),
    ]);
    plan.devices = vec![wire::DeviceNode {
        path: "/dev/odd".into(),
        kind: 'c',
        major: 1,
        minor: 7,
        mode: 0o606,
        uid: 5,
        gid: 6,
    }];
    plan.rootfs.readonly = true;
    plan.rootfs.folders = vec!["/data/deep".into()];
    // wc and other applets have no links: the shell finds applets by name anyway.
    let out = pod.run(plan);
    let has = |text: &str| assert!(out.output.contains(text), "{text:?} not in {}", out.output);
    has("data\nnameserver\n");
    has("666 /dev/null\n1777 /dev/shm\n666 /dev/tty\n");
    has("606 /dev/odd\n755 /data/deep\n");
    has("pts/ptmx\n/proc/self/fd\n");
    has("/ro/x: Read-only file system");
    has("/proc/sys/vm/swappiness: Read-only file system");
    has("/new: Read-only file system");
    has("mqueue on /dev/mqueue");
    assert_eq!(fs::read_to_string(pod.path("log")).unwrap(), "t\n");
    assert_eq!(fs::read_to_string(pod.path("vol/w")).unwrap(), "w\n");
    assert_eq!(fs::read_to_string(pod.path("made/on/demand/m")).unwrap(), "m\n");
    let mode =
        std::os::unix::fs::PermissionsExt::mode(&fs::metadata(pod.path("made/on")).unwrap().permissions());
    assert_eq!(mode & 0o7777, 0o755);
}

fn init_has_no_descriptors_of_the_worker() {
    let pod = Pod::new();
    let mut out = pod.run(pod.plan("true"));
    // libcontainer's sockets.
    out.descriptors.retain(|what| !what.starts_with("socket:"));
    // Stdin, stdout and stderr, and the start pipe, twice: also in the place of a procfs of the host's PID namespace.
    assert_eq!(out.descriptors.len(), 5, "{:?}", out.descriptors);
    assert!(out.descriptors.iter().all(|what| what.starts_with("pipe:")), "{:?}", out.descriptors);
}

fn cgroups_are_joined_and_shown() {
    let pod = Pod::new();
    let name = format!("copepod-test-{}", std::process::id());
    let hierarchies = ["memory", "pids", "systemd", "freezer"];
    let members: Vec<CgroupMember> = hierarchies
        .map(|h| CgroupMember { hierarchy: h.into(), path: format!("/sys/fs/cgroup/{h}/{name}") })
        .to_vec();
    for member in &members {
        fs::create_dir(&member.path).unwrap();
    }
    let mut plan = pod.plan("cat /proc/self/cgroup; ls /sys/fs/cgroup; cat /sys/fs/cgroup/pids/cgroup.procs; mkdir /sys/fs/cgroup/pids/x; mkdir /sys/fs/cgroup/x");
    plan.cgroup.members = members.clone();
    let mut shown = MountPlan::new("/sys/fs/cgroup", MountKind::Cgroup);
    shown.readonly = true;
    plan.mounts.push(shown);
    let out = pod.run(plan);
    for member in &members {
        fs::remove_dir(&member.path).unwrap();
    }
    let has = |text: &str| assert!(out.output.contains(text), "{text:?} not in {}", out.output);
    for h in ["memory", "pids", "name=systemd", "freezer"] {
        has(&format!(":{h}:/{name}\n"));
    }
    has("freezer\nmemory\npids\nsystemd\n1\n");
    assert_eq!(out.output.matches("Read-only file system").count(), 2, "{}", out.output);
}

/// libcontainer would make cgroups of its own in hierarchies that it finds mounted.
fn init_stays_in_its_cgroups_whatever_volumes_show() {
    let pod = Pod::new();
    // The plan has no cgroups, so these are the worker's.
    let own = fs::read_to_string("/proc/self/cgroup").unwrap();
    for propagation in [Propagation::Private, Propagation::HostToContainer, Propagation::Bidirectional] {
        let mut plan = pod.plan("cat /proc/self/cgroup");
        let mut volume = bind("/sys/fs/cgroup", "/host", propagation);
        volume.readonly = propagation == Propagation::Private;
        volume.recursive = volume.readonly;
        plan.mounts.push(volume);
        assert_eq!(pod.run(plan).output, own, "{propagation:?}");
    }
}

/// On a v2 host, or on the v2 hierarchy that a hybrid one has beside the others.
fn a_unified_plan_shows_cgroup2() {
    let v2 = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"]
        .into_iter()
        .find(|root| Path::new(root).join("cgroup.controllers").exists());
    let Some(v2) = v2 else {
        println!("skipped: this host has no cgroup2 mounted below /sys/fs/cgroup");
        return;
    };
    let pod = Pod::new();
    let path = format!("{v2}/copepod-test-v2-{}", std::process::id());
    fs::create_dir(&path).unwrap();
    let mut plan = pod.plan(
        "grep ^0: /proc/self/cgroup; grep ' /sys/fs/cgroup ' /proc/self/mountinfo; \
         cat /sys/fs/cgroup/cgroup.procs; mkdir /sys/fs/cgroup/x",
    );
    plan.cgroup = CgroupPlan {
        unified: true,
        members: vec![CgroupMember { hierarchy: String::new(), path: path.clone() }],
    };
    plan.namespaces.cgroup = true;
    let mut shown = MountPlan::new("/sys/fs/cgroup", MountKind::Cgroup);
    shown.readonly = true;
    plan.mounts.push(shown);
    let out = pod.run(plan);
    fs::remove_dir(&path).unwrap();
    let has = |text: &str| assert!(out.output.contains(text), "{text:?} not in {}", out.output);
    has("0::/\n");
    has(" / /sys/fs/cgroup ");
    has(" - cgroup2 cgroup ");
    // Init, and what it runs.
    has("\n1\n");
    has("Read-only file system");
}

fn a_terminal_is_the_containers_own() {
    let pod = Pod::new();
    let mut plan = pod.plan("tty; stat -c %u /dev/pts/0; echo hi > /dev/console; exit 4");
    plan.user.request = UserRequest::Uid(33);
    plan.process.terminal = true;
    let out = pod.run_with(plan, "", true);
    assert_eq!((out.output.as_str(), out.code), ("/dev/pts/0\r\n33\r\nhi\r\n", 4), "{out:?}");
}

fn a_failure_names_its_step_and_leaves_nothing() {
    let pod = Pod::new();
    let mut plan = pod.plan("");
    plan.mounts.push(MountPlan::new("/etc/hosts", MountKind::File { source: pod.path("absent") }));
    let out = pod.run(plan);
    let failure = failed(&out);
    assert_eq!((failure.stage.as_str(), failure.errno), ("volume /etc/hosts", 2), "{failure:?}");
    assert!(failure.message.contains(&pod.path("absent")), "{failure:?}");

    // In init, after libcontainer's part.
    let mut plan = pod.plan("");
    plan.mounts.push(MountPlan::new("/proc/no/such", MountKind::Tmpfs { mode: 0o755, size: 0 }));
    let failure_stage = failed(&pod.run(plan)).stage.clone();
    assert_eq!(failure_stage, "mount /proc/no/such");

    let mut plan = pod.plan("");
    plan.user.request = UserRequest::Name("nobody".into());
    let out = pod.run(plan);
    assert_eq!((failed(&out).kind, failed(&out).stage.as_str()), (ErrorKind::Invalid, "user"), "{out:?}");

    let mut plan = pod.plan("");
    plan.rootfs.layers = vec!["absent".to_owned().into()];
    assert_eq!(failed(&pod.run(plan)).stage, "rootfs");
    let mut plan = pod.plan("");
    plan.namespaces.ipc = NamespaceSource::Container(plan.id.clone());
    assert_eq!(failed(&pod.run(plan)).stage, "namespaces");
    // An image without layers is an empty folder: the container is created, but the program is missing.
    let mut plan = pod.plan("");
    plan.rootfs.layers = Vec::new();
    assert!(pod.run(plan).report.contains("execve"));
}

fn propagation_is_as_planned() {
    let pod = Pod::new();
    fs::create_dir_all(pod.path("vol/sub")).unwrap();
    let script =
        "grep -E ' /(p|s|b) ' /proc/self/mountinfo | while read a b c d e f g rest; do echo \"$e $g\"; done";
    let mut plan = pod.plan(script);
    plan.mounts.extend([
        bind(&pod.path("vol"), "/p", Propagation::Private),
        bind(&pod.path("vol"), "/s", Propagation::HostToContainer),
    ]);
    let out = pod.run(plan).output;
    assert!(out.contains("/p -\n") && out.contains("/s master:"), "{out}");
    let mut plan = pod.plan(script);
    plan.mounts.push(bind(&pod.path("vol"), "/b", Propagation::Bidirectional));
    let out = pod.run(plan).output;
    assert!(out.contains("/b shared:"), "{out}");
}

fn mounts_made_meanwhile_are_not_lost() {
    let pod = Pod::new();
    for _ in 0..5 {
        let below: Vec<String> = (0..6).map(|n| pod.path(&format!("vol/{n}"))).collect();
        below.iter().for_each(|path| fs::create_dir_all(path).unwrap());
        // Late mounts (below /dev) are in the scratch root meanwhile.
        let mut plan = pod.plan(
            "i=0; until [ $(grep -c ' /s/' /proc/self/mountinfo) = 6 ] || [ $i = 1000 ]; do i=$((i+1)); sleep 0.02; done; \
             grep -c ' /s/' /proc/self/mountinfo; mount | grep -c ' /b/'; mount | grep -c ' /dev/s/'; mount | grep -c ' /dev/b/'",
        );
        plan.mounts.push(bind(&pod.path("vol"), "/dev/b", Propagation::Bidirectional));
        plan.mounts.push(bind(&pod.path("vol"), "/dev/s", Propagation::HostToContainer));
        plan.mounts.push(bind(&pod.path("vol"), "/b", Propagation::Bidirectional));
        plan.mounts.push(bind(&pod.path("vol"), "/s", Propagation::HostToContainer));
        let out = pod.run_all(plan, "", false, below);
        assert_eq!(out.output, "6\n6\n6\n6\n", "{out:?}");
    }
}

fn a_hostile_image_stays_inside() {
    // Confining file systems are mounted on ordinary folders only.
    for name in ["dev", "proc", "sys"] {
        for target in ["/etc", "/", ".", "bin/..", "/absent"] {
            let pod = Pod::new();
            symlink(target, Path::new(&pod.path("layers/one")).join(name)).unwrap();
            let out = pod.run(pod.plan(""));
            let expected = (ErrorKind::Invalid, format!("mount /{name}"));
            assert_eq!((failed(&out).kind, failed(&out).stage.clone()), expected, "{out:?}");
        }
    }

    // Symlinks on the path of a volume, of passwd and of a masked path are resolved within the root.
    let pod = Pod::new();
    let outside = tempfile::tempdir().unwrap();
    fs::create_dir(pod.path("vol")).unwrap();
    fs::write(pod.path("vol/mark"), "").unwrap();
    symlink("../../../../../../tmp", pod.path("layers/one/up")).unwrap();
    symlink(outside.path(), pod.path("layers/one/abs")).unwrap();
    let mut plan = pod.plan("ls /tmp/a");
    plan.mounts.push(bind(&pod.path("vol"), "/up/a", Propagation::Private));
    assert_eq!(pod.run(plan).output, "mark\n");
    let mut plan = pod.plan("ls /abs/a");
    plan.mounts.push(bind(&pod.path("vol"), "/abs/a", Propagation::Private));
    assert_eq!(pod.run(plan).output, "mark\n");
    assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 0);
    fs::remove_file(pod.path("layers/one/etc/passwd")).unwrap();
    rustix::fs::mknodat(
        rustix::fs::CWD,
        pod.path("layers/one/etc/passwd"),
        rustix::fs::FileType::Fifo,
        0o644.into(),
        0,
    )
    .unwrap();
    assert_eq!(failed(&pod.run(pod.plan(""))).stage, "user");
}

fn the_hosts_dev_is_not_written() {
    let pod = Pod::new();
    let before: Vec<_> = listing("/dev");
    let mut plan = pod.plan("ls -d /dev/null /dev/loop-control /dev/fd; echo x > /dev/null");
    plan.mounts = vec![bind("/dev", "/dev", Propagation::Private), MountPlan::new("/proc", MountKind::Proc)];
    let out = pod.run(plan);
    assert!(out.output.contains("/dev/null\n"), "{}", out.output);
    assert_eq!(out.code, 0);
    assert_eq!(before, listing("/dev"));
}

fn listing(path: &str) -> Vec<(std::ffi::OsString, u64)> {
    let entry = |e: io::Result<fs::DirEntry>| {
        let e = e.unwrap();
        (e.file_name(), std::os::unix::fs::DirEntryExt::ino(&e))
    };
    let mut all: Vec<_> = fs::read_dir(path).unwrap().map(entry).collect();
    all.sort();
    all
}
