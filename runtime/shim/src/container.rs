//! libcontainer's part of a create, and nothing it must not touch: it makes namespaces, /proc and devices and
//! waits for start. Mounts were made before (`worker`), and what decides about power comes after (`executor`).
//!
//! Everything here but [`start`] and [`forget`] runs in a forked worker: libcontainer changes its caller's
//! oom score, dumpable flag and folder, and leaves descriptors open when it fails.

use std::fs;
use std::io::{self, Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use libcontainer::container::builder::ContainerBuilder;
use libcontainer::syscall::syscall::SyscallType;
use model::ContainerId;
use serde_json::{Value, json};
use wire::{ContainerPlan, ErrorKind, Failure, MountKind, NamespaceSource};

use crate::executor::{Executor, Setup};
use crate::podns::{BUNDLES, STATE};

/// Largest message that init sends when it cannot go on.
const MESSAGE: u64 = 16 * 1024;

/// A rootfs that is ready, and who is to run in it.
#[derive(Debug)]
pub(crate) struct Build<'a> {
    /// The plan, its process completed (HOME).
    pub(crate) plan: &'a ContainerPlan,
    /// Where the worker assembled the root file system.
    pub(crate) rootfs: &'a Path,
    /// What the executor does in the end.
    pub(crate) setup: Setup,
    /// Standard streams; none with a terminal.
    pub(crate) stdio: Option<[OwnedFd; 3]>,
    /// Some volume is Bidirectional.
    pub(crate) shared: bool,
    /// Whose namespaces are joined.
    pub(crate) pause_pid: Option<u32>,
    /// Of the container whose PID namespace is joined.
    pub(crate) target_pid: Option<u32>,
}

fn failure(stage: &str, message: String, errno: i32) -> Failure {
    Failure { kind: ErrorKind::Internal, stage: stage.to_owned(), message, errno }
}

/// Creates the container; its init, a child of the caller's parent, waits for [`start`]. Returns its pid.
pub(crate) fn build(build: Build<'_>) -> Result<u32, Failure> {
    let id = build.plan.id.as_str();
    let bundle = bundle(&build.plan.id);
    let io_error = |what: &str, e: io::Error| failure("bundle", format!("{what}: {e}"), e.raw_os_error().unwrap_or(0));
    let spec = spec(&build)?;
    fs::create_dir_all(&bundle).map_err(|e| io_error("making it", e))?;
    fs::write(bundle.join("config.json"), spec.to_string()).map_err(|e| io_error("config.json", e))?;
    // What init has to say goes here: libcontainer passes errors on as flat strings and loses their causes.
    let (mut told, tell) = io::pipe().map_err(|e| io_error("pipe", e))?;
    let executor = Executor::new(build.setup, tell.into());
    let mut builder = ContainerBuilder::new(id.to_owned(), SyscallType::default())
        .with_root_path(STATE)
        .map_err(|e| failure("libcontainer", e.to_string(), 0))?
        .with_executor(executor);
    if let Some([stdin, stdout, stderr]) = build.stdio {
        builder = builder.with_stdin(stdin).with_stdout(stdout).with_stderr(stderr);
    }
    let built = builder.as_init(&bundle).with_systemd(false).with_detach(true).as_sibling(true).build();
    match built {
        Ok(container) => match container.pid().map(|pid| u32::try_from(pid.as_raw())) {
            Some(Ok(pid)) => Ok(pid),
            _ => Err(failure("libcontainer", "init has no pid".to_owned(), 0)),
        },
        Err(error) => {
            let mut detail = String::new();
            // Our end was moved into the executor, which is gone; init is dead.
            let _ = (&mut told).take(MESSAGE).read_to_string(&mut detail);
            forget(&build.plan.id);
            match serde_json::from_str::<Failure>(detail.trim()) {
                Ok(known) => Err(known),
                Err(_) => Err(failure("libcontainer", chain(&error), 0)),
            }
        }
    }
}

/// An error with its causes.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}

/// Lets init go on to execve. Whether that succeeds is told by its error pipe.
///
/// # Errors
/// No such container, or it was started already (its socket is gone).
pub(crate) fn start(id: &ContainerId) -> io::Result<()> {
    let socket = Path::new(STATE).join(id.as_str()).join("notify.sock");
    UnixStream::connect(socket)?.write_all(b"start container")
}

/// Removes what libcontainer and [`build`] left in the pod's own tmpfs. Nothing there is no error.
pub(crate) fn forget(id: &ContainerId) {
    // Failing costs some KiB of a tmpfs that goes with the pod.
    let _ = fs::remove_dir_all(Path::new(STATE).join(id.as_str()));
    let _ = fs::remove_dir_all(bundle(id));
}

fn bundle(id: &ContainerId) -> PathBuf {
    Path::new(BUNDLES).join(id.as_str())
}

/// The least that libcontainer needs. Left out, because ours: cgroups and resources, capabilities, user,
/// seccomp, no_new_privs, masked and read-only paths, oom_score_adj, limits, terminal, every mount but /proc.
fn spec(build: &Build<'_>) -> Result<Value, Failure> {
    let plan = build.plan;
    let mut namespaces = vec![json!({ "type": "mount" })];
    let of = |kind: &str, source: &NamespaceSource| -> Result<Option<Value>, Failure> {
        let (pid, file) = match source {
            NamespaceSource::Host => return Ok(None),
            NamespaceSource::New => return Ok(Some(json!({ "type": kind }))),
            NamespaceSource::Pause => (build.pause_pid, kind),
            NamespaceSource::Container(_) => (build.target_pid, kind),
        };
        let file = if file == "network" { "net" } else { file };
        let pid = pid.ok_or_else(|| failure("namespaces", format!("the process that holds the {kind} namespace is gone"), 0))?;
        Ok(Some(json!({ "type": kind, "path": format!("/proc/{pid}/ns/{file}") })))
    };
    let wanted = &plan.namespaces;
    for (kind, source) in [("network", &wanted.network), ("ipc", &wanted.ipc), ("uts", &wanted.uts), ("pid", &wanted.pid)] {
        namespaces.extend(of(kind, source)?);
    }
    if wanted.cgroup {
        namespaces.push(json!({ "type": "cgroup" }));
    }
    let mounts: Vec<Value> = plan
        .mounts
        .iter()
        .filter(|m| m.kind == MountKind::Proc)
        .map(|m| {
            let flags = [(m.nosuid, "nosuid"), (m.nodev, "nodev"), (m.noexec, "noexec"), (m.readonly, "ro")];
            let options: Vec<&str> = flags.into_iter().filter(|(set, _)| *set).map(|(_, name)| name).collect();
            json!({ "destination": m.target, "type": "proc", "source": "proc", "options": options })
        })
        .collect();
    Ok(json!({
        "ociVersion": "1.0.2",
        "process": { "terminal": false, "user": { "uid": 0, "gid": 0 }, "args": ["init"], "env": ["PATH=/"], "cwd": "/" },
        "root": { "path": build.rootfs, "readonly": plan.rootfs.readonly },
        "mounts": mounts,
        "linux": {
            // Applied to all mounts that were made before: slave ones stay what they are, shared ones too.
            "rootfsPropagation": if build.shared { "shared" } else { "slave" },
            "namespaces": namespaces,
        },
    }))
}
