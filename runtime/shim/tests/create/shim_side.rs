//! The shim's part in these tests: it enters a pod's mount namespace, forks a worker, starts init, reads its output and
//! reaps it.

use std::fs::{self, File};
use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use wire::{ContainerPlan, Reply};

use crate::worker::{CreateInput, Stdio, create};
use crate::worker_only::{Holders, Receiver};
use crate::{bundle, podns};

#[derive(Serialize, Deserialize)]
pub(crate) struct Scenario {
    pub(crate) plan: ContainerPlan,
    pub(crate) stdin: String,
    pub(crate) terminal: bool,
    /// Folders on which something is mounted, one per millisecond, while the container is created.
    pub(crate) churn: Vec<String>,
    pub(crate) result: PathBuf,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Outcome {
    pub(crate) reply: Reply,
    /// The data on init's start pipe; empty if execve succeeded.
    pub(crate) report: String,
    pub(crate) output: String,
    /// Exit code, or 128 + signal number.
    pub(crate) code: i32,
    /// Descriptors that init had while it waited.
    pub(crate) descriptors: Vec<String>,
}

/// Runs the scenario in the file at `path`.
pub(crate) fn shim_side(path: &Path) {
    let scenario: Scenario = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    // Opened here, because it is not visible in the pod's namespace.
    let mut result = File::create(&scenario.result).unwrap();
    let kubelet_mntns = sys::namespace::own_mount().unwrap();
    let cgroups = scenario.plan.cgroup.members.iter().map(|m| File::open(&m.path).unwrap().into()).collect();
    let churn = scenario.churn.clone();
    let churning = sys::fork::worker(&[], move |_| {
        for path in &churn {
            let tmpfs = sys::mount::tmpfs(0o755, 4096, sys::mount::Attributes::default()).unwrap();
            sys::mount::attach_at(tmpfs.as_fd(), Path::new(path)).unwrap();
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        0
    })
    .unwrap();
    podns::enter().unwrap();
    podns::attach_shm(1 << 20, "").unwrap();
    let outcome = run(&scenario, kubelet_mntns, cgroups);
    assert_eq!(wait(churning), 0);
    result.write_all(&serde_json::to_vec(&outcome).unwrap()).unwrap();
}

#[expect(clippy::too_many_lines, reason = "the steps of a shim in their order")]
fn run(scenario: &Scenario, kubelet_mntns: OwnedFd, cgroups: Vec<OwnedFd>) -> Outcome {
    let (stdin, mut to_stdin) = io::pipe().unwrap();
    let (mut from_stdout, stdout) = io::pipe().unwrap();
    let (report_read, report) = io::pipe().unwrap();
    let (answer_read, answer) = io::pipe().unwrap();
    let (console_here, console_there) = std::os::unix::net::UnixStream::pair().unwrap();
    let terminal = scenario.terminal;
    let mut given: Vec<OwnedFd> = if terminal {
        vec![console_there.into()]
    } else {
        vec![stdin.into(), stdout.try_clone().unwrap().into(), stdout.into()]
    };
    given.extend([kubelet_mntns, report.into(), answer.into()]);
    given.extend(cgroups);
    let keep: Vec<_> = given.iter().map(|fd| fd.as_fd()).collect();
    let plan = scenario.plan.clone();
    let worker = sys::fork::worker(&keep, move |fds| {
        let mut fds = fds.into_iter();
        let mut next = || fds.next().unwrap();
        let stdio = if terminal {
            Stdio::Console { sock: next() }
        } else {
            Stdio::Pipes { stdin: next(), stdout: next(), stderr: next() }
        };
        let (kubelet_mntns, start_pipe) = (next(), next());
        let answer = Box::new(File::from(next()));
        // Pause shares all namespaces with the shim.
        let pause = Some(sys::namespace::Namespaces::default());
        let holders = Holders { pause, target: None };
        let cgroups = fds.collect();
        create(CreateInput { plan, kubelet_mntns, cgroups, stdio, start_pipe, holders }, answer)
    })
    .unwrap();
    drop(given);
    let mut line = String::new();
    BufReader::new(answer_read).read_line(&mut line).unwrap();
    assert_eq!(wait(worker), 0, "the worker ended badly: {line}");
    let reply: Reply = serde_json::from_str(&line).unwrap();
    let Reply::Created { pid, .. } = &reply else {
        return Outcome {
            reply,
            report: String::new(),
            output: String::new(),
            code: 0,
            descriptors: Vec::new(),
        };
    };
    let pid = *pid;
    let descriptors = fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
    let descriptors = descriptors.map(|e| described(&e.unwrap().path())).collect();
    bundle::start(&scenario.plan.id).unwrap();
    let mut report = String::new();
    File::from(OwnedFd::from(report_read)).read_to_string(&mut report).unwrap();
    let mut output = String::new();
    if scenario.terminal {
        let mut fds = Vec::new();
        sys::scm::recv_with_fds(console_here.as_fd(), &mut [0; 8], |fd| fds.push(fd)).unwrap();
        let mut master = File::from(fds.pop().unwrap());
        let mut buffer = [0; 4096];
        // EIO: no process has the terminal open any more.
        while let Ok(length @ 1..) = master.read(&mut buffer) {
            output.push_str(&String::from_utf8_lossy(&buffer[..length]));
        }
    } else {
        to_stdin.write_all(scenario.stdin.as_bytes()).unwrap();
        drop(to_stdin);
        from_stdout.read_to_string(&mut output).unwrap();
    }
    let code = wait(pid);
    bundle::remove(&scenario.plan.id);
    assert_eq!(fs::read_dir(podns::STATE).unwrap().count(), 0);
    assert_eq!(fs::read_dir(podns::BUNDLES).unwrap().count(), 0);
    Outcome { reply, report, output, code, descriptors }
}

impl Receiver for File {
    fn warn(&self, _: &str) {}

    fn init(&self, _: BorrowedFd<'_>) -> io::Result<()> {
        Ok(())
    }

    fn reply(&self, reply: &Reply) -> io::Result<()> {
        let mut line = serde_json::to_vec(reply)?;
        line.push(b'\n');
        let mut this = self;
        this.write_all(&line)
    }
}

/// Describes a descriptor; files outside of our mounts include their file system.
fn described(path: &Path) -> String {
    let name = fs::read_link(path).unwrap().display().to_string();
    let kind = rustix::fs::statfs(path).map_or(0, |s| s.f_type);
    if name == "/" { format!("/ in {kind:#x}") } else { name }
}

fn wait(pid: u32) -> i32 {
    use rustix::process::{Pid, WaitOptions, waitpid};
    let pid = Pid::from_raw(i32::try_from(pid).unwrap());
    let (_, status) = waitpid(pid, WaitOptions::empty()).unwrap().unwrap();
    status.exit_status().or(status.terminating_signal().map(|s| 128 + s)).unwrap()
}
