//! Files of cgroups as kernels have written them (`recorded`): v1 by Linux 6.18 on a host without swap, huge pages and
//! pressure, v2 by Linux 6.12 on one with them.

use super::super::group::{DeviceIo, HugePages, Throttling};
use super::super::*;
use crate::stats::{Psi, PsiData};
use std::path::Path;

fn group(version: Version) -> Group {
    let name = match version {
        Version::V1 => "v1",
        Version::V2 => "v2",
    };
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/stats/recorded").join(name);
    read(version, true, &|_| Folder(Some(folder.clone()))).unwrap()
}

#[test]
fn v1_files_are_read() {
    let cpu = Cpu {
        usage: 67_107_997,
        user: Some(30_000_000),
        system: Some(20_000_000),
        shares: Some(1000),
        period: Some(50_000),
        quota: Some(20_000),
        throttling: Throttling { periods: Some(10), throttled: Some(0), nanoseconds: Some(0) },
    };
    let memory = Memory {
        usage: 53_972_992,
        working_set: 50_823_168,
        max_usage: Some(54_001_664),
        failures: Some(0),
        kernel: Some(208_896),
        cache: Some(3_284_992),
        rss: Some(50_339_840),
        mapped_file: Some(0),
        swap: Some(0),
        faults: [Some(13_060); 2],
        major_faults: [Some(0); 2],
        limit: Some(64 << 20),
        swap_limit: Some(96 << 20),
        soft_limit: Some(32 << 20),
        oom_kills: Some(0),
    };
    let expected = Group {
        cpu,
        memory,
        io: Vec::new(),
        huge_pages: Vec::new(),
        tasks: Some(1),
        task_limit: Some(77),
        pressure: Pressure::default(),
    };
    assert_eq!(group(Version::V1), expected);
}

#[test]
#[expect(clippy::too_many_lines, reason = "a table")]
fn v2_files_are_read() {
    let mut found = group(Version::V2);
    for io in &mut found.io {
        // The name is that of a device of this host.
        io.device.clear();
    }
    let psi = |avg10, avg60, avg300, total| {
        let line = PsiData { total, avg10, avg60, avg300 };
        Some(Psi { some: line, full: line })
    };
    let cpu = Cpu {
        usage: 951_316_000,
        user: Some(369_956_000),
        system: Some(581_360_000),
        shares: Some(998),
        period: Some(50_000),
        quota: Some(20_000),
        throttling: Throttling { periods: Some(51), throttled: Some(46), nanoseconds: Some(1_316_147_000) },
    };
    let memory = Memory {
        usage: 33_329_152,
        working_set: 30_871_552,
        max_usage: Some(33_554_432),
        failures: Some(36),
        kernel: Some(196_608),
        cache: Some(2_457_600),
        rss: Some(30_322_688),
        mapped_file: Some(0),
        swap: Some(20_013_056),
        faults: [Some(4914); 2],
        major_faults: [Some(0); 2],
        limit: Some(32 << 20),
        swap_limit: Some(64 << 20),
        soft_limit: Some(4 << 20),
        oom_kills: Some(0),
    };
    // Of three reserved pages one is in use.
    let huge = |size: &str, usage| HugePages { size: size.to_owned(), usage, max_usage: None };
    let expected = Group {
        cpu,
        memory,
        io: vec![DeviceIo {
            device: String::new(),
            number: (254, 0),
            bytes: vec![("Read", 0), ("Write", 23_085_056)],
            requests: vec![("Read", 0), ("Write", 4873)],
        }],
        huge_pages: vec![huge("1GB", 0), huge("2MB", 6 << 20)],
        tasks: Some(1),
        task_limit: Some(77),
        pressure: Pressure {
            cpu: psi(4.73, 1.14, 0.25, 779_149_000),
            memory: psi(1.33, 0.33, 0.07, 256_166_000),
            io: psi(0.0, 0.0, 0.0, 3_635_000),
        },
    };
    assert_eq!(found, expected);
}

/// No required file, no reading; without a quota none is shown.
#[test]
fn files_of_v2_that_are_missing() {
    let temp = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| std::fs::write(temp.path().join(name), text).unwrap();
    let read = || read(Version::V2, false, &|_| Folder(Some(temp.path().to_owned())));
    write("cpu.stat", "usage_usec 7\n");
    write("cpu.max", "max 100000\n");
    write("memory.stat", "");
    assert!(read().is_err(), "memory.current");
    write("memory.current", "9\n");
    let group = read().unwrap();
    assert_eq!((group.cpu.usage, group.cpu.quota, group.cpu.period), (7000, None, Some(100_000)));
    let absent = [group.memory.kernel, group.memory.swap, group.memory.max_usage, group.memory.limit];
    assert_eq!((absent, group.tasks, group.pressure), ([None; 4], None, Pressure::default()));
    write("cpu.stat", "user_usec 7\n");
    let error = read().unwrap_err().to_string();
    assert!(error.contains("cpu.stat"), "{error}");
}
