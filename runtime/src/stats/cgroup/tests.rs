//! Files of cgroups as kernels have written them (`recorded`): v1 by Linux 6.18 on a host without swap and pressure, v2 by
//! Linux 6.12 on one with both.

use super::*;
use crate::stats::reading::{Memory, Psi, PsiData, Swap};
use std::path::{Path, PathBuf};

fn recorded(version: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src/stats/recorded").join(version)
}

fn open(folder: &Path, version: Version) -> CgroupFiles {
    CgroupFiles::opened_by(|_, name| OpenFile::open(folder.join(name)), version, true).unwrap()
}

fn psi(avg10: f64, avg60: f64, avg300: f64, total: u64) -> Psi {
    let line = PsiData { total, avg10, avg60, avg300 };
    // A cgroup with one process: all tasks wait if one does.
    Psi { some: line, full: line }
}

#[test]
fn recorded_files_are_read() {
    let found = open(&recorded("v1"), Version::V1).read(&Mutex::default()).unwrap();
    let timestamp = found.cpu.timestamp;
    let memory = Memory {
        timestamp,
        working_set_bytes: 50_823_168,
        available_bytes: Some(16_285_696),
        usage_bytes: 53_972_992,
        rss_bytes: 50_339_840,
        page_faults: 13_060,
        major_page_faults: 0,
        psi: None,
    };
    let cpu = Cpu { timestamp, usage_core_nano_seconds: 67_107_997, usage_nano_cores: None, psi: None };
    let swap = Swap { timestamp, swap_available_bytes: Some(32 << 20), swap_usage_bytes: 0 };
    assert_eq!(found, PodUsage { cpu, memory, swap: Some(swap), io: None, pids: Some(1) });

    let found = open(&recorded("v2"), Version::V2).read(&Mutex::default()).unwrap();
    let timestamp = found.cpu.timestamp;
    let memory = Memory {
        timestamp,
        working_set_bytes: 30_871_552,
        available_bytes: Some(2_682_880),
        usage_bytes: 33_329_152,
        rss_bytes: 30_322_688,
        page_faults: 4914,
        major_page_faults: 0,
        psi: Some(psi(1.33, 0.33, 0.07, 256_166_000)),
    };
    let cpu = Cpu {
        timestamp,
        usage_core_nano_seconds: 951_316_000,
        usage_nano_cores: None,
        psi: Some(psi(4.73, 1.14, 0.25, 779_149_000)),
    };
    let swap = Swap { timestamp, swap_available_bytes: Some(47_095_808), swap_usage_bytes: 20_013_056 };
    let io = Io { timestamp, psi: psi(0.0, 0.0, 0.0, 3_635_000) };
    assert_eq!(found, PodUsage { cpu, memory, swap: Some(swap), io: Some(io), pids: Some(1) });
}

/// A folder with copies of the recorded files of v2.
fn copy() -> tempfile::TempDir {
    let temp = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(recorded("v2")).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, temp.path().join(path.file_name().unwrap())).unwrap();
    }
    temp
}

/// The files stay open, and are read anew each time.
#[test]
fn what_is_not_limited_has_no_limit() {
    let folder = copy();
    let files = open(folder.path(), Version::V2);
    assert!(files.read(&Mutex::default()).unwrap().memory.available_bytes.is_some());
    for name in ["memory.max", "memory.swap.max"] {
        std::fs::write(folder.path().join(name), "max\n").unwrap();
    }
    std::fs::write(folder.path().join("memory.current"), "1\n").unwrap();
    let found = files.read(&Mutex::default()).unwrap();
    let swap = found.swap.unwrap();
    assert_eq!((found.memory.available_bytes, swap.swap_available_bytes), (None, None));
    assert_eq!((found.memory.usage_bytes, found.memory.working_set_bytes), (1, 0));
    assert_eq!(swap.swap_usage_bytes, 20_013_056);
}

#[test]
fn what_a_host_does_not_have_is_none() {
    let folder = copy();
    let remove = |names: &[&str]| {
        for name in names {
            std::fs::remove_file(folder.path().join(name)).unwrap();
        }
    };
    // A kernel without accounting of swap; a cgroup whose pressure is turned off.
    remove(&["memory.swap.current", "memory.swap.max", "pids.current", "memory.pressure", "io.pressure"]);
    let found = open(folder.path(), Version::V2).read(&Mutex::default()).unwrap();
    assert_eq!((found.swap, found.pids, found.memory.psi, found.io), (None, None, None, None));
    assert!(found.cpu.psi.is_some());
    remove(&["memory.current"]);
    let opened =
        CgroupFiles::opened_by(|_, name| OpenFile::open(folder.path().join(name)), Version::V2, true);
    assert_eq!(opened.unwrap_err().file, folder.path().join("memory.current"));
}
