//! Real containers, made by real libcontainer, as root. The code under test wants a process of one thread, which
//! no test harness has: this program is its own, and runs itself again as a small shim for each test.
//! `cargo test -p shim --test create -- NAME` runs those whose name holds NAME.

// The sources are the binary's, of which this is another root: not everything is used here.
#![allow(dead_code, unused_imports, missing_docs)]

#[path = "../src/container.rs"]
mod container;
#[path = "../src/executor.rs"]
mod executor;
#[path = "../src/podns.rs"]
mod podns;
#[path = "../src/process.rs"]
mod process;
#[path = "../src/user.rs"]
mod user;
#[path = "../src/worker/mod.rs"]
mod worker;

use std::fs::{self, File};
use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use model::{ContainerId, Propagation, Text, UserRequest};
use serde::{Deserialize, Serialize};
use wire::{
    CapSets, CgroupMember, CgroupPlan, ContainerPlan, ErrorKind, MountKind, MountPlan, NamespacePlan,
    NamespaceSource, ProcessPlan, Reply, RootfsPlan, SeccompProgram, UserPlan,
};
use worker::{CreateInput, Stdio, create};

const SCENARIO: &str = "COPEPOD_TEST_SCENARIO";
const ALL_CAPABILITIES: u64 = (1 << 41) - 1;

#[derive(Serialize, Deserialize)]
struct Scenario {
    plan: ContainerPlan,
    stdin: String,
    terminal: bool,
    result: PathBuf,
}

#[derive(Debug, Serialize, Deserialize)]
struct Outcome {
    reply: Reply,
    /// What init wrote on its report pipe, empty when it exec'd.
    report: String,
    output: String,
    /// Exit code, or 128 and the signal.
    code: i32,
    /// Descriptors that init held while it waited.
    held: Vec<String>,
}

/// The shim's part: enters a pod's namespace, forks a worker, starts init, reads and reaps it.
fn shim_side(path: &Path) {
    let scenario: Scenario = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    // Opened here: out of sight once the pod's namespace is entered.
    let mut result = File::create(&scenario.result).unwrap();
    let kubelet_mntns = sys::namespace::own_mount().unwrap();
    let cgroups = scenario.plan.cgroup.members.iter().map(|m| File::open(&m.path).unwrap().into()).collect();
    podns::enter().unwrap();
    podns::attach_shm(1 << 20).unwrap();
    let outcome = run(&scenario, kubelet_mntns, cgroups);
    result.write_all(&serde_json::to_vec(&outcome).unwrap()).unwrap();
}

fn run(scenario: &Scenario, kubelet_mntns: OwnedFd, cgroups: Vec<OwnedFd>) -> Outcome {
    let plan = sys::memfd::sealed("plan", &serde_json::to_vec(&scenario.plan).unwrap()).unwrap();
    let (stdin, mut to_stdin) = io::pipe().unwrap();
    let (mut from_stdout, stdout) = io::pipe().unwrap();
    let (report_read, report) = io::pipe().unwrap();
    let (answer_read, answer) = io::pipe().unwrap();
    let (console_here, console_there) = std::os::unix::net::UnixStream::pair().unwrap();
    let stdio = if scenario.terminal {
        Stdio::Console { sock: console_there.into() }
    } else {
        Stdio::Pipes {
            stdin: stdin.into(),
            stderr: stdout.try_clone().unwrap().into(),
            stdout: stdout.into(),
        }
    };
    let input = CreateInput {
        plan,
        kubelet_mntns,
        cgroups,
        stdio,
        exec_error: report.into(),
        pause_pid: Some(std::process::id()),
        target_pid: None,
    };
    let mut input = Some(input);
    let worker = sys::fork::worker(|| {
        let reply = create(input.take().unwrap());
        let mut line = serde_json::to_vec(&reply).unwrap();
        line.push(b'\n');
        i32::from(File::from(OwnedFd::from(answer.try_clone().unwrap())).write_all(&line).is_err())
    })
    .unwrap();
    drop((answer, input));
    let mut line = String::new();
    BufReader::new(answer_read).read_line(&mut line).unwrap();
    assert_eq!(wait(worker.pid), 0, "the worker ended badly: {line}");
    let reply: Reply = serde_json::from_str(&line).unwrap();
    let Reply::Created { pid, .. } = &reply else {
        return Outcome { reply, report: String::new(), output: String::new(), code: 0, held: Vec::new() };
    };
    let pid = *pid;
    let held = fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
    let held = held.map(|e| fs::read_link(e.unwrap().path()).unwrap().display().to_string()).collect();
    container::start(&scenario.plan.id).unwrap();
    let mut report = String::new();
    File::from(OwnedFd::from(report_read)).read_to_string(&mut report).unwrap();
    let mut output = String::new();
    if scenario.terminal {
        let mut fds = std::collections::VecDeque::new();
        sys::scm::receive(console_here.as_fd(), &mut [0; 8], &mut fds).unwrap();
        let mut master = File::from(fds.pop_front().unwrap());
        let mut buffer = [0; 4096];
        // EIO: the last one who had the terminal is gone.
        while let Ok(length @ 1..) = master.read(&mut buffer) {
            output.push_str(&String::from_utf8_lossy(&buffer[..length]));
        }
    } else {
        to_stdin.write_all(scenario.stdin.as_bytes()).unwrap();
        drop(to_stdin);
        from_stdout.read_to_string(&mut output).unwrap();
    }
    let code = wait(pid);
    container::forget(&scenario.plan.id);
    assert_eq!(fs::read_dir(podns::STATE).unwrap().count(), 0);
    assert_eq!(fs::read_dir(podns::BUNDLES).unwrap().count(), 0);
    Outcome { reply, report, output, code, held }
}

fn wait(pid: u32) -> i32 {
    use rustix::process::{Pid, WaitOptions, waitpid};
    let pid = Pid::from_raw(i32::try_from(pid).unwrap());
    let (_, status) = waitpid(pid, WaitOptions::empty()).unwrap().unwrap();
    status.exit_status().or(status.terminating_signal().map(|s| 128 + s)).unwrap()
}

/// A folder with a layer that is a busybox, and room for what a container writes.
struct Pod {
    dir: tempfile::TempDir,
}

impl Pod {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let layer = dir.path().join("layers/one");
        for folder in ["bin", "etc", "tmp", "root"] {
            fs::create_dir_all(layer.join(folder)).unwrap();
        }
        fs::copy("/bin/busybox", layer.join("bin/busybox")).expect("busybox-static is installed");
        for name in [
            "sh", "cat", "id", "ls", "true", "mount", "touch", "stat", "tty", "grep", "readlink", "umask",
            "mkdir",
        ] {
            symlink("busybox", layer.join("bin").join(name)).unwrap();
        }
        fs::write(layer.join("etc/passwd"), "root:x:0:0::/root:/bin/sh\nweb:x:33:34::/srv:/bin/sh\n")
            .unwrap();
        fs::write(layer.join("etc/group"), "root:x:0:\nextra:x:77:web\n").unwrap();
        for folder in ["rw/upper", "rw/work"] {
            fs::create_dir_all(dir.path().join(folder)).unwrap();
        }
        Self { dir }
    }

    fn path(&self, below: &str) -> String {
        self.dir.path().join(below).to_str().unwrap().to_owned()
    }

    fn plan(&self, script: &str) -> ContainerPlan {
        let text = |s: &str| Text::new(s).unwrap();
        ContainerPlan {
            id: ContainerId::from_random(random()),
            pod: model::PodId::from_random(random()),
            namespaces: NamespacePlan {
                network: NamespaceSource::Pause,
                ipc: NamespaceSource::New,
                uts: NamespaceSource::New,
                pid: NamespaceSource::New,
                cgroup: false,
            },
            rootfs: RootfsPlan {
                store: self.path("layers"),
                layers: vec!["one".into()],
                rw: self.path("rw"),
                readonly: false,
                volatile: true,
            },
            mounts: vec![
                mount("/dev", MountKind::Tmpfs { mode: 0o755, size: 65536 }),
                mount("/proc", MountKind::Proc),
                mount("/sys", MountKind::Sysfs),
                mount("/dev/mqueue", MountKind::Mqueue),
                mount("/dev/pts", MountKind::Devpts),
                mount("/dev/shm", MountKind::PodShm),
            ],
            devices: Vec::new(),
            masked_paths: vec!["/proc/kcore".into(), "/proc/acpi".into(), "/proc/absent".into()],
            readonly_paths: vec!["/proc/sys".into()],
            user: UserPlan { request: UserRequest::Root, merge_image_groups: true, ..UserPlan::default() },
            process: ProcessPlan {
                args: ["sh", "-c", script].map(text).to_vec(),
                env: vec![text("PATH=/bin")],
                cwd: "/".into(),
                caps: CapSets { bounding: 0xa804_25fb, permitted: 0xa804_25fb, inheritable: 0, ambient: 0 },
                umask: 0o022,
                ..ProcessPlan::default()
            },
            cgroup: CgroupPlan::default(),
            log: None,
            stdin: false,
            stdin_once: false,
            privileged: false,
        }
    }

    fn run(&self, plan: ContainerPlan) -> Outcome {
        self.run_with(plan, "", false)
    }

    fn run_with(&self, plan: ContainerPlan, stdin: &str, terminal: bool) -> Outcome {
        let (file, result) = (self.dir.path().join("scenario"), self.dir.path().join("result"));
        let scenario = Scenario { plan, stdin: stdin.to_owned(), terminal, result: result.clone() };
        fs::write(&file, serde_json::to_vec(&scenario).unwrap()).unwrap();
        // A namespace of its own, shared within itself: what a host with systemd looks like.
        let ran = Command::new("unshare")
            .args(["--mount", "--propagation", "shared", "timeout", "60"])
            .arg(std::env::current_exe().unwrap())
            .env(SCENARIO, &file)
            .output()
            .unwrap();
        let said =
            format!("{}{}", String::from_utf8_lossy(&ran.stdout), String::from_utf8_lossy(&ran.stderr));
        assert!(ran.status.success(), "{said}");
        serde_json::from_slice(&fs::read(&result).unwrap()).unwrap()
    }
}

fn random() -> [u8; 32] {
    let mut bytes = [0; 32];
    File::open("/dev/urandom").unwrap().read_exact(&mut bytes).unwrap();
    bytes
}

fn mount(target: &str, kind: MountKind) -> MountPlan {
    MountPlan { target: target.to_owned(), kind, readonly: false, nosuid: false, nodev: false, noexec: false }
}

fn bind(source: &str, target: &str, propagation: Propagation) -> MountPlan {
    mount(target, MountKind::Bind { source: source.to_owned(), propagation })
}

/// Every test, by name.
const TESTS: &[(&str, fn())] =
    &[("privileged_a_container_runs_and_ends_with_its_code", runs_and_ends_with_its_code)];

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
