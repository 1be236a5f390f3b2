//! A blocking client that acts as the daemon, with cgroups and a busybox image.
#![allow(dead_code, reason = "each test binary uses its part")]

mod cgroups;
pub(crate) mod tracer;

use std::collections::VecDeque;
use std::ffi::CString;
use std::fs;
use std::io::Read as _;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use model::{ContainerId, ExecId, PodId, Text, User, UserRequest};
use wire::codec::{Decoder, Frame, encode};
use wire::{
    CapSets, CgroupPlan, ContainerPlan, Event, ExecPlan, LogPlan, Message, MountKind, MountPlan,
    NamespacePlan, NamespaceSource, PROTOCOL, PausePlan, ProcessPlan, Reply, Request, RootfsPlan, ShimInit,
    Snapshot, UserPlan,
};

use cgroups::Cgroups;

/// Time limit of a reply, even on a loaded machine.
const PATIENCE: Duration = Duration::from_secs(20);

fn pause_binary() -> PathBuf {
    let target = Path::new(env!("CARGO_BIN_EXE_copepod-shim")).parent().unwrap().parent().unwrap();
    let pause = target.join("tiny/pause");
    if !pause.exists() {
        let built = Command::new(env!("CARGO"))
            .args(["build", "--quiet", "--profile", "tiny", "-p", "pause", "--target-dir"])
            .arg(target)
            .status()
            .unwrap();
        assert!(built.success(), "pause cannot be built");
    }
    pause
}

/// An image layer with busybox in `/bin`.
pub(crate) fn layer(store: &Path) {
    let root = store.join("busybox");
    for folder in ["bin", "etc", "tmp", "root"] {
        fs::create_dir_all(root.join(folder)).unwrap();
    }
    fs::copy("/bin/busybox", root.join("bin/busybox")).unwrap();
    let list = Command::new("/bin/busybox").arg("--list").output().unwrap().stdout;
    for applet in String::from_utf8(list).unwrap().lines().filter(|applet| *applet != "busybox") {
        std::os::unix::fs::symlink("busybox", root.join("bin").join(applet)).unwrap();
    }
    fs::write(root.join("etc/passwd"), "root:x:0:0:root:/root:/bin/sh\nweb:x:1000:1000::/home/web:/bin/sh\n")
        .unwrap();
    fs::write(root.join("etc/group"), "root:x:0:\nweb:x:1000:\nextra:x:2000:web\n").unwrap();
}

pub(crate) fn container_id(byte: u8) -> ContainerId {
    ContainerId::from_random([byte; 32])
}

pub(crate) fn text(s: &str) -> Text {
    Text::new(s).unwrap()
}

/// A shim and the connection to it.
pub(crate) struct Pod {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) cgroups: Cgroups,
    pub(crate) shim: sys::spawn::Child,
    stream: UnixStream,
    decoder: Decoder,
    fds: VecDeque<OwnedFd>,
    requests: u64,
    /// Events that arrived while something else was awaited.
    pub(crate) events: VecDeque<Event>,
    pub(crate) snapshots: Vec<Snapshot>,
    pub(crate) pause: u32,
    pub(crate) netns: Option<OwnedFd>,
    /// The user of the last container, used for execs.
    user: User,
}

fn dial(socket: &Path) -> UnixStream {
    let stream = UnixStream::connect(socket).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

impl Pod {
    /// Starts a shim; pause is not started yet.
    pub(crate) fn new(name: &str) -> Self {
        let dir = tempfile::Builder::new().prefix("copepod-shim-").tempdir_in("/run").unwrap();
        for folder in ["exits", "logs", "store", "rw"] {
            fs::create_dir(dir.path().join(folder)).unwrap();
        }
        layer(&dir.path().join("store"));
        let cgroups = Cgroups::new(name);
        let (own, _) = cgroups.leaf("shim");
        let socket = dir.path().join("sock");
        let listener = UnixListener::bind(&socket).unwrap();
        let exits = fs::File::open(dir.path().join("exits")).unwrap();
        let init = ShimInit {
            protocol: PROTOCOL,
            pod: PodId::from_random([9; 32]),
            log_directory: dir.path().join("logs/pod").to_str().unwrap().to_owned(),
            cgroups: own.members.into_iter().map(|member| member.path).collect(),
            oom_score_adj: -999,
        };
        let init = sys::memfd::create_sealed("init", &serde_json::to_vec(&init).unwrap()).unwrap();
        let pause = sys::seal::sealed_binary(&pause_binary()).unwrap();
        let binary =
            std::env::var("COPEPOD_SHIM").unwrap_or_else(|_| env!("CARGO_BIN_EXE_copepod-shim").to_owned());
        let binary = sys::seal::sealed_binary(Path::new(&binary)).unwrap();
        let shim = sys::spawn::spawn(&sys::spawn::Program {
            binary: sys::spawn::Binary::Fd(binary.as_fd()),
            args: &[CString::new("copepod-shim").unwrap()],
            env: &[],
            stdio: [None, None, Some(std::io::stderr().as_fd())],
            fds: &[listener.as_fd(), exits.as_fd(), init.as_fd(), pause.as_fd()],
            cgroup: None,
        })
        .unwrap();
        let mut pod = Self {
            stream: dial(&socket),
            dir,
            cgroups,
            shim,
            decoder: Decoder::new(),
            fds: VecDeque::new(),
            requests: 0,
            events: VecDeque::new(),
            snapshots: Vec::new(),
            pause: 0,
            netns: None,
            user: User::default(),
        };
        pod.greeted();
        pod
    }

    /// Starts a shim and pause, which has its own namespaces.
    pub(crate) fn started(name: &str) -> Self {
        let mut pod = Self::new(name);
        let plan = PausePlan {
            network: true,
            ipc: true,
            uts: true,
            pid: true,
            hostname: "web-0".into(),
            sysctls: vec![("net.ipv4.ip_unprivileged_port_start".into(), "80".into())],
            user: User { uid: 65535, gid: 65535, groups: vec![] },
            oom_score_adj: -998,
            shm_size: 1 << 20,
            ..PausePlan::default()
        };
        pod.start_pause(plan);
        pod
    }

    pub(crate) fn start_pause(&mut self, mut plan: PausePlan) {
        let (cgroup, folders) = self.cgroups.leaf("pause");
        plan.cgroup = cgroup;
        let plan = memfd(&plan);
        let fds: Vec<_> = [plan.as_fd()].into_iter().chain(folders.iter().map(|fd| fd.as_fd())).collect();
        let (reply, mut fds) = self.ask_with(Request::StartPause, &fds);
        let Reply::PauseStarted { pid } = reply else { panic!("{reply:?}") };
        self.pause = pid;
        self.netns = fds.pop();
    }

    /// Connects again, as another daemon.
    pub(crate) fn reconnect(&mut self) {
        self.stream = dial(&self.dir.path().join("sock"));
        self.decoder = Decoder::new();
        self.fds.clear();
        self.events.clear();
        self.greeted();
    }

    fn greeted(&mut self) {
        let (hello, _) = self.frame();
        let Message::Hello(hello) = hello.message else { panic!("{hello:?}") };
        assert_eq!((hello.pid, hello.protocol), (self.shim.pid, PROTOCOL));
        self.snapshots.clear();
        loop {
            match self.frame().0.message {
                Message::Snapshot(entry) => self.snapshots.push(entry),
                Message::SnapshotEnd => return,
                other => panic!("{other:?}"),
            }
        }
    }

    pub(crate) fn frame(&mut self) -> (Frame, Vec<OwnedFd>) {
        loop {
            if let Some(frame) = self.decoder.next().unwrap() {
                let fds = self.fds.drain(..usize::from(frame.nfds)).collect();
                return (frame, fds);
            }
            let mut buffer = [0; 4096];
            let fds = &mut self.fds;
            let got = match sys::scm::recv_with_fds(self.stream.as_fd(), &mut buffer, |fd| fds.push_back(fd))
            {
                // The kernel restarts no call that has a time limit.
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                got => got.unwrap(),
            };
            assert!(got > 0, "the shim has closed the connection");
            self.decoder.feed(&buffer[..got]);
        }
    }

    pub(crate) fn ask_with(&mut self, request: Request, fds: &[BorrowedFd<'_>]) -> (Reply, Vec<OwnedFd>) {
        let id = self.send(request, fds);
        loop {
            let (frame, fds) = self.frame();
            match frame.message {
                Message::Reply(reply) => {
                    assert_eq!(frame.id, id);
                    return (reply, fds);
                }
                Message::Event(event) => self.events.push_back(event),
                other => panic!("{other:?}"),
            }
        }
    }

    /// Sends a request and does not wait.
    pub(crate) fn send(&mut self, request: Request, fds: &[BorrowedFd<'_>]) -> u64 {
        self.requests += 1;
        let mut bytes = Vec::new();
        encode(self.requests, u8::try_from(fds.len()).unwrap(), &Message::Request(request), &mut bytes)
            .unwrap();
        assert_eq!(sys::scm::send_with_fds(self.stream.as_fd(), &bytes, fds).unwrap(), bytes.len());
        self.requests
    }

    pub(crate) fn ask(&mut self, request: Request) -> Reply {
        self.ask_with(request, &[]).0
    }

    /// The next event, except warnings of the shim's start and reports of started containers.
    pub(crate) fn event(&mut self) -> Event {
        loop {
            let event = match self.events.pop_front() {
                Some(event) => event,
                None => match self.frame().0.message {
                    Message::Event(event) => event,
                    other => panic!("{other:?}"),
                },
            };
            match &event {
                Event::Warning { message, .. } if message.contains("oom_score_adj") => {}
                Event::Started { .. } => {}
                _ => return event,
            }
        }
    }

    pub(crate) fn plan(&self, id: &ContainerId, args: &[&str]) -> ContainerPlan {
        let rw = self.dir.path().join("rw").join(id.as_str());
        for folder in ["upper", "work"] {
            fs::create_dir_all(rw.join(folder)).unwrap();
        }
        let mount = |target: &str, kind| MountPlan { nosuid: true, ..MountPlan::new(target, kind) };
        ContainerPlan {
            id: id.clone(),
            pod: PodId::from_random([9; 32]),
            namespaces: NamespacePlan {
                network: NamespaceSource::Pause,
                ipc: NamespaceSource::Pause,
                uts: NamespaceSource::Pause,
                pid: NamespaceSource::New,
                cgroup: false,
                user: None,
            },
            rootfs: RootfsPlan {
                store: self.dir.path().join("store").to_str().unwrap().into(),
                layers: vec!["busybox".to_owned().into()],
                folders: Vec::new(),
                rw: rw.to_str().unwrap().into(),
                readonly: false,
                volatile: true,
            },
            mounts: vec![
                mount("/proc", MountKind::Proc),
                mount("/dev", MountKind::Tmpfs { mode: 0o755, size: 65536 }),
                mount("/dev/pts", MountKind::Devpts),
                mount("/dev/mqueue", MountKind::Mqueue),
                mount("/dev/shm", MountKind::PodShm),
                mount("/sys", MountKind::Sysfs),
            ],
            devices: vec![],
            masked_paths: vec!["/proc/kcore".into(), "/proc/keys".into(), "/sys/firmware".into()],
            readonly_paths: vec!["/proc/sys".into()],
            user: UserPlan { request: UserRequest::Root, ..UserPlan::default() },
            process: process(args),
            cgroup: CgroupPlan::default(),
            privileged: false,
            file_label: String::new(),
        }
    }

    pub(crate) fn create(&mut self, mut plan: ContainerPlan, stdin: bool) -> Reply {
        let id = plan.id.clone();
        let (cgroup, folders) = self.cgroups.leaf(id.as_str());
        plan.cgroup = cgroup;
        let terminal = plan.process.terminal;
        let plan = memfd(&plan);
        let mntns = fs::File::open("/proc/self/ns/mnt").unwrap();
        let fds: Vec<_> =
            [plan.as_fd(), mntns.as_fd()].into_iter().chain(folders.iter().map(|fd| fd.as_fd())).collect();
        let log = Some(LogPlan { path: format!("c{}/0.log", &id.as_str()[..2]) });
        let request = Request::Create { container: id, deadline_ms: 15_000, log, terminal, stdin };
        let (reply, _) = self.ask_with(request, &fds);
        if let Reply::Created { user, .. } = &reply {
            self.user = user.clone();
        }
        reply
    }

    /// Creates and starts one.
    pub(crate) fn run(&mut self, byte: u8, script: &str) -> ContainerId {
        let id = container_id(byte);
        let plan = self.plan(&id, &["sh", "-c", script]);
        self.run_plan(plan, false);
        id
    }

    pub(crate) fn run_plan(&mut self, plan: ContainerPlan, stdin: bool) {
        let id = plan.id.clone();
        let reply = self.create(plan, stdin);
        assert!(matches!(reply, Reply::Created { .. }), "{reply:?}");
        let reply = self.ask(Request::Start { container: id });
        assert!(matches!(reply, Reply::Started { .. }), "{reply:?}");
    }

    /// Pid of a container's init.
    pub(crate) fn init(&mut self, id: &ContainerId) -> u32 {
        self.reconnect();
        let found = self.snapshots.iter().find_map(|entry| match entry {
            Snapshot::Container { container, pid, .. } if container == id => Some(*pid),
            _ => None,
        });
        found.expect("the container is known")
    }

    pub(crate) fn log_path(&self, id: &ContainerId) -> PathBuf {
        self.dir.path().join("logs/pod").join(format!("c{}/0.log", &id.as_str()[..2]))
    }

    /// `stream tag content` of each line.
    pub(crate) fn log(&self, id: &ContainerId) -> Vec<String> {
        let text = fs::read_to_string(self.log_path(id)).unwrap();
        text.lines().map(|line| line.split_once(' ').unwrap().1.to_owned()).collect()
    }

    /// Runs a command in a container; returns `(code, stdout, stderr)` or the failure.
    pub(crate) fn exec(
        &mut self,
        number: u64,
        id: &ContainerId,
        args: &[&str],
    ) -> Result<(i32, String, String), wire::Failure> {
        let plan = ExecPlan { process: process(args), user: self.user.clone(), mapping: None, size: None };
        let (mut out, stdout) = std::io::pipe().unwrap();
        let (mut err, stderr) = std::io::pipe().unwrap();
        let null = fs::File::open("/dev/null").unwrap();
        let memfd = memfd(&plan);
        let request = Request::Exec { exec: ExecId(number), container: id.clone(), deadline_ms: None };
        let fds = [memfd.as_fd(), null.as_fd(), stdout.as_fd(), stderr.as_fd()];
        let (reply, _) = self.ask_with(request, &fds);
        drop((stdout, stderr));
        match reply {
            Reply::ExecStarted { .. } => {}
            Reply::Failed(failure) => return Err(failure),
            other => panic!("{other:?}"),
        }
        let (mut o, mut e) = (String::new(), String::new());
        out.read_to_string(&mut o).unwrap();
        err.read_to_string(&mut e).unwrap();
        match self.event() {
            Event::ExecExited { exec, code } if exec == ExecId(number) => Ok((code, o, e)),
            other => panic!("{other:?}"),
        }
    }

    /// Starts a command without waiting; returns its pid and the read end of its output.
    pub(crate) fn start_exec(
        &mut self,
        number: u64,
        id: &ContainerId,
        args: &[&str],
    ) -> (u32, std::io::PipeReader) {
        let plan =
            memfd(&ExecPlan { process: process(args), user: self.user.clone(), mapping: None, size: None });
        let (out, end) = std::io::pipe().unwrap();
        let null = fs::File::open("/dev/null").unwrap();
        let request = Request::Exec { exec: ExecId(number), container: id.clone(), deadline_ms: None };
        let (reply, _) = self.ask_with(request, &[plan.as_fd(), null.as_fd(), end.as_fd(), end.as_fd()]);
        let Reply::ExecStarted { pid } = reply else { panic!("{reply:?}") };
        (pid, out)
    }

    /// Closes the connection.
    pub(crate) fn hang_up(&mut self) {
        self.stream.shutdown(std::net::Shutdown::Both).unwrap();
    }

    /// Stops the pod, shuts the shim down, and checks for leftovers.
    pub(crate) fn end(mut self) {
        assert_eq!(self.ask(Request::StopPod), Reply::Done);
        assert_eq!(self.ask(Request::Shutdown), Reply::Done);
        self.gone();
    }

    pub(crate) fn gone(self) {
        let start = Instant::now();
        while !sys::pidfd::has_ended(self.shim.pidfd.as_fd()).unwrap() {
            assert!(start.elapsed() < PATIENCE, "the shim does not leave");
            std::thread::sleep(Duration::from_millis(5));
        }
        for leaf in fs::read_dir(self.cgroups.path("pids", "")).unwrap().flatten() {
            if leaf.file_type().unwrap().is_dir() {
                let name = leaf.file_name().into_string().unwrap();
                let left = self.cgroups.pids(&name);
                assert!(left.iter().all(|pid| *pid == self.shim.pid), "left in {name}: {left:?}");
            }
        }
        let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let dir = self.dir.path().to_str().unwrap();
        assert!(!table.contains(dir), "mounts are left");
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        // Cleans up after a failure; after success the shim has exited already.
        drop(sys::pidfd::send_signal(self.shim.pidfd.as_fd(), 9));
        for leaf in fs::read_dir(self.cgroups.path("pids", "")).into_iter().flatten().flatten() {
            for pid in self.cgroups.pids(&leaf.file_name().into_string().unwrap()) {
                if let Ok(fd) = sys::pidfd::open(pid) {
                    drop(sys::pidfd::send_signal(fd.as_fd(), 9));
                }
            }
        }
        let shim = rustix::process::WaitId::PidFd(self.shim.pidfd.as_fd());
        let _ = rustix::process::waitid(shim, rustix::process::WaitIdOptions::EXITED);
    }
}

pub(crate) fn process(args: &[&str]) -> ProcessPlan {
    // The default set of CRI runtimes.
    let caps = 0xa804_25fb;
    ProcessPlan {
        args: args.iter().map(|arg| text(arg)).collect(),
        env: vec![text("PATH=/bin:/usr/bin"), text("A=b")],
        cwd: "/tmp".into(),
        caps: CapSets { bounding: caps, permitted: caps, inheritable: 0, ambient: 0 },
        umask: 0o022,
        oom_score_adj: Some(500),
        ..ProcessPlan::default()
    }
}

pub(crate) fn memfd<T: serde::Serialize>(plan: &T) -> OwnedFd {
    sys::memfd::create_sealed("plan", &serde_json::to_vec(plan).unwrap()).unwrap()
}
