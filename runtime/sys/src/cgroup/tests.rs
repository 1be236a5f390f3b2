//! With plain files in place of the kernel's, which take the same writes.

use super::*;
use std::fs::{create_dir_all, read_to_string, write};
use std::path::Path;

fn cgroup(at: &Path, name: &str, procs: &str) {
    create_dir_all(at.join(name)).unwrap();
    write(at.join(name).join("cgroup.procs"), procs).unwrap();
}

fn folder(at: &Path) -> File {
    File::open(at).unwrap()
}

#[test]
fn the_cgroup_of_the_preferred_process_is_joined() {
    let temp = tempfile::tempdir().unwrap();
    for (name, procs) in [("", ""), ("empty", ""), ("service", "7\n"), ("init.scope", "9\n8\n")] {
        cgroup(temp.path(), name, procs);
    }
    join_below(folder(temp.path()).as_fd(), 8).unwrap();
    let procs = |name: &str| read_to_string(temp.path().join(name).join("cgroup.procs")).unwrap();
    // What is written is "0": the writer.
    assert_eq!((procs("init.scope").as_str(), procs("service").as_str()), ("0\n8\n", "7\n"));
}

#[test]
fn without_the_preferred_process_any_cgroup_with_processes_is_joined() {
    let temp = tempfile::tempdir().unwrap();
    for (name, procs) in [("", ""), ("a", ""), ("a/deeper", "7\n"), ("b", "")] {
        cgroup(temp.path(), name, procs);
    }
    join_below(folder(temp.path()).as_fd(), 8).unwrap();
    let procs = |name: &str| read_to_string(temp.path().join(name).join("cgroup.procs")).unwrap();
    assert_eq!(procs("a/deeper"), "0\n");
    assert_eq!([procs(""), procs("a"), procs("b")], ["", "", ""]);
    cgroup(temp.path(), "a/deeper", "");
    let refused = join_below(folder(temp.path()).as_fd(), 8).unwrap_err();
    assert_eq!(refused.kind(), io::ErrorKind::ResourceBusy);
}

#[test]
fn the_threads_of_a_process_count_once() {
    let temp = tempfile::tempdir().unwrap();
    let (send, wait) = std::sync::mpsc::channel::<()>();
    let thread = std::thread::spawn(move || wait.recv());
    let mut threads = String::from("0\n4194304\n");
    for entry in std::fs::read_dir("/proc/self/task").unwrap() {
        threads.push_str(&format!("{}\n", entry.unwrap().file_name().to_str().unwrap()));
    }
    assert!(threads.lines().count() >= 4, "{threads}");
    write(temp.path().join("cgroup.threads"), threads).unwrap();
    let mut pids = Vec::new();
    processes_of_threads(folder(temp.path()).as_fd(), |pid| pids.push(pid)).unwrap();
    drop(send);
    thread.join().unwrap().unwrap_err();
    assert_eq!(pids, [0, std::process::id()]);
}

#[test]
fn a_pid_that_is_cut_is_not_listed() {
    let temp = tempfile::tempdir().unwrap();
    let lines = usize::try_from(MAX_LIST).unwrap() / 8;
    // The limit is after a newline, within a number, and between a number and its newline.
    for (first, listed) in [("1234567", lines), ("123456", lines), ("12345678", lines - 1)] {
        write(temp.path().join("cgroup.procs"), format!("{first}\n{}", "7654321\n".repeat(lines))).unwrap();
        let mut pids = Vec::new();
        processes(folder(temp.path()).as_fd(), |pid| pids.push(pid)).unwrap();
        let (head, tail) = pids.split_first().unwrap();
        assert_eq!((head.to_string().as_str(), pids.len()), (first, listed));
        assert!(tail.iter().all(|pid| *pid == 7_654_321), "{:?}", pids.last());
    }
}

#[test]
fn processes_of_all_levels_are_listed() {
    let temp = tempfile::tempdir().unwrap();
    for (name, procs) in [("", "1\n"), ("a", ""), ("a/b", "2\n3\n")] {
        cgroup(temp.path(), name, procs);
    }
    let mut pids = Vec::new();
    processes_below(folder(temp.path()).as_fd(), |pid| pids.push(pid)).unwrap();
    assert_eq!(pids, [1, 2, 3]);
    assert_eq!(count_below(folder(temp.path()).as_fd(), 3).unwrap(), 3);
    assert!(is_too_many(&count_below(folder(temp.path()).as_fd(), 2).unwrap_err()));
}
