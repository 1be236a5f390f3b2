//! The pod of these tests: an image, a writable folder, and plans for containers.

use std::fs::{self, File};
use std::io::Read as _;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

use model::{ContainerId, Propagation, Text, UserRequest};
use wire::{
    CapSets, CgroupPlan, ContainerPlan, MountKind, MountPlan, NamespacePlan, NamespaceSource, ProcessPlan,
    RootfsPlan, UserPlan,
};

use crate::SCENARIO;
use crate::shim_side::{Outcome, Scenario};

/// A folder with a busybox layer and a writable folder.
pub(crate) struct Pod {
    pub(crate) dir: tempfile::TempDir,
}

impl Pod {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let layer = dir.path().join("layers/one");
        for folder in ["bin", "etc", "tmp", "root"] {
            fs::create_dir_all(layer.join(folder)).unwrap();
        }
        fs::copy("/bin/busybox", layer.join("bin/busybox")).expect("busybox-static is installed");
        for name in [
            "sh", "cat", "id", "ls", "true", "mount", "sleep", "touch", "stat", "tty", "grep", "readlink",
            "umask", "mkdir",
        ] {
            symlink("busybox", layer.join("bin").join(name)).unwrap();
        }
        fs::write(layer.join("etc/passwd"), "root:x:0:0::/root:/bin/sh\nweb:x:33:34::/srv:/bin/sh\n")
            .unwrap();
        fs::write(layer.join("etc/group"), "root:x:0:\nextra:x:77:web\n").unwrap();
        Self { dir }
    }

    pub(crate) fn path(&self, below: &str) -> String {
        self.dir.path().join(below).to_str().unwrap().to_owned()
    }

    pub(crate) fn plan(&self, script: &str) -> ContainerPlan {
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
                user: None,
            },
            rootfs: RootfsPlan {
                store: self.path("layers"),
                layers: vec!["one".to_owned().into()],
                folders: Vec::new(),
                rw: self.path("rw"),
                readonly: false,
                volatile: true,
            },
            mounts: vec![
                MountPlan::new("/dev", MountKind::Tmpfs { mode: 0o755, size: 65536 }),
                MountPlan::new("/proc", MountKind::Proc),
                MountPlan::new("/sys", MountKind::Sysfs),
                MountPlan::new("/dev/mqueue", MountKind::Mqueue),
                MountPlan::new("/dev/pts", MountKind::Devpts),
                MountPlan::new("/dev/shm", MountKind::PodShm),
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
            privileged: false,
            file_label: String::new(),
        }
    }

    pub(crate) fn run(&self, plan: ContainerPlan) -> Outcome {
        self.run_with(plan, "", false)
    }

    pub(crate) fn run_with(&self, plan: ContainerPlan, stdin: &str, terminal: bool) -> Outcome {
        self.run_all(plan, stdin, terminal, Vec::new())
    }

    pub(crate) fn run_all(
        &self,
        plan: ContainerPlan,
        stdin: &str,
        terminal: bool,
        churn: Vec<String>,
    ) -> Outcome {
        // A volatile upper folder can be mounted only once.
        sys::tree::remove_path(Path::new(&self.path("rw"))).unwrap();
        for folder in ["rw/upper", "rw/work"] {
            fs::create_dir_all(self.path(folder)).unwrap();
        }
        let (file, result) = (self.dir.path().join("scenario"), self.dir.path().join("result"));
        let scenario = Scenario { plan, stdin: stdin.to_owned(), terminal, churn, result: result.clone() };
        fs::write(&file, serde_json::to_vec(&scenario).unwrap()).unwrap();
        // A private namespace with a shared root, like a host with systemd.
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

pub(crate) fn random() -> [u8; 32] {
    let mut bytes = [0; 32];
    File::open("/dev/urandom").unwrap().read_exact(&mut bytes).unwrap();
    bytes
}

pub(crate) fn bind(source: &str, target: &str, propagation: Propagation) -> MountPlan {
    MountPlan::new(target, MountKind::Bind { source: source.to_owned(), propagation })
}
