//! A temporary folder with configurations, plugins and leases.
#![allow(dead_code)] // each test program uses only some of it

pub(crate) mod isolation;

use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use model::PodId;
use network::{Attachment, Cni, CniConfig};

pub(crate) struct Bench {
    dir: tempfile::TempDir,
}

pub(crate) fn pod(number: u8) -> PodId {
    PodId::from_random([number; 32])
}

impl Bench {
    pub(crate) fn new() -> Self {
        let bench = Self { dir: tempfile::tempdir().unwrap() };
        for name in ["conf", "bin"] {
            fs::create_dir(bench.path(name)).unwrap();
        }
        bench
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn conf(&self, name: &str, text: &str) {
        fs::write(self.path("conf").join(name), text).unwrap();
    }

    /// A shell script as a plugin. It is put in place by rename, because a running script cannot be
    /// overwritten.
    pub(crate) fn plugin(&self, name: &str, script: &str) {
        let (path, temp) = (self.path("bin").join(name), self.path("plugin.new"));
        let mut file =
            fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o755).open(&temp).unwrap();
        writeln!(file, "#!/bin/sh\n{script}").unwrap();
        drop(file);
        fs::rename(temp, path).unwrap();
    }

    pub(crate) fn config(&self) -> CniConfig {
        CniConfig {
            conf_dir: self.path("conf"),
            bin_dirs: vec![self.path("bin")],
            cache_dir: self.path("cache"),
            boot_id: "boot".to_owned(),
            max_parallel: 4,
            timeout: Duration::from_secs(20),
        }
    }

    pub(crate) fn cni(&self) -> Cni {
        Cni::new(self.config())
    }

    pub(crate) fn attachment(&self, pod: PodId) -> Attachment {
        Attachment {
            pod,
            name: "web".into(),
            namespace: "ns".into(),
            uid: "u-1".into(),
            netns: self.path("netns"),
            ports: Vec::new(),
            dns: None,
            cgroup_parent: String::new(),
            annotations: BTreeMap::new(),
        }
    }
}

/// Waits until a plugin has written a line to a file, and returns it.
pub(crate) async fn wait_text(path: PathBuf) -> String {
    for _ in 0..2400 {
        match fs::read_to_string(&path) {
            Ok(text) if text.ends_with('\n') => return text.trim().to_owned(),
            _ => tokio::time::sleep(Duration::from_millis(25)).await,
        }
    }
    panic!("nothing was written to {path:?}");
}

/// Waits until process `pid` is gone or a zombie.
pub(crate) async fn wait_gone(pid: &str) {
    assert!(pid.parse::<u32>().is_ok(), "{pid:?} is not a pid");
    // At least thirty seconds.
    for _ in 0..1200 {
        let alive = fs::read_to_string(Path::new("/proc").join(pid).join("stat"))
            .is_ok_and(|stat| !stat.rsplit(')').next().unwrap_or("").trim_start().starts_with('Z'));
        if !alive {
            return;
        }
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
    panic!("process {pid} is still alive");
}
