use super::*;
use std::io::Read as _;
use std::path::Path;

fn strings(list: &[&str]) -> Vec<CString> {
    list.iter().map(|s| CString::new(*s).unwrap()).collect()
}

fn reap(child: &Child) -> Option<i32> {
    let id = rustix::process::WaitId::PidFd(child.pidfd.as_fd());
    rustix::process::waitid(id, rustix::process::WaitIdOptions::EXITED).unwrap().unwrap().exit_status()
}

#[test]
fn places_descriptors_and_closes_the_rest() {
    let (mut read, write) = std::io::pipe().unwrap();
    // A descriptor without close-on-exec, which the program must not get.
    let stray = std::fs::File::open("/proc/self/status").unwrap();
    rustix::io::fcntl_setfd(&stray, rustix::io::FdFlags::empty()).unwrap();
    let script = "ls /proc/self/fd | tr '\\n' ' ' >&3; pwd >&3; echo $A >&3; \
                  grep -E 'SigBlk|SigIgn' /proc/self/status >&3; exit 7";
    let busybox = crate::seal::sealed_binary(Path::new("/bin/busybox")).unwrap();
    let child = spawn(&Program {
        binary: Binary::Fd(busybox.as_fd()),
        args: &strings(&["sh", "-c", script]),
        env: &strings(&["A=b", "PATH=/bin:/usr/bin"]),
        stdio: [None; 3],
        fds: &[write.as_fd(), write.as_fd()],
        cgroup: None,
    })
    .unwrap();
    drop(write);
    let mut text = String::new();
    read.read_to_string(&mut text).unwrap();
    assert_eq!(reap(&child), Some(7));
    // ls opens the folder itself as one more.
    let lines: Vec<_> = text.lines().collect();
    assert_eq!(lines[0], "0 1 2 3 4 5 /");
    assert_eq!(lines[1], "b");
    assert_eq!(lines[2], "SigBlk:\t0000000000000000");
    assert_eq!(lines[3], "SigIgn:\t0000000000000000");
}

/// A script cannot be executed by descriptor.
#[test]
fn scripts_are_executed_by_path() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("script");
    std::fs::write(&path, "#!/bin/sh\ncat; echo to stderr >&2; ls /proc/self/fd | tr '\\n' ' '\n").unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(&path, mode).unwrap();
    let (given, mut give) = std::io::pipe().unwrap();
    let (mut out, stdout) = std::io::pipe().unwrap();
    let (mut err, stderr) = std::io::pipe().unwrap();
    let path = CString::new(path.into_os_string().into_encoded_bytes()).unwrap();
    let child = spawn(&Program {
        binary: Binary::Path(&path),
        args: std::slice::from_ref(&path),
        env: &strings(&["PATH=/bin:/usr/bin"]),
        stdio: [Some(given.as_fd()), Some(stdout.as_fd()), Some(stderr.as_fd())],
        fds: &[],
        cgroup: None,
    })
    .unwrap();
    drop((given, stdout, stderr));
    std::io::Write::write_all(&mut give, b"in\n").unwrap();
    drop(give);
    let (mut said, mut told) = (String::new(), String::new());
    out.read_to_string(&mut said).unwrap();
    err.read_to_string(&mut told).unwrap();
    assert_eq!(reap(&child), Some(0));
    assert_eq!((said.as_str(), told.as_str()), ("in\n0 1 2 3 ", "to stderr\n"));
}

#[test]
fn a_failed_execve_is_reported_and_leaves_no_child() {
    let text = std::fs::File::open("/etc/passwd").unwrap();
    let of =
        |binary| spawn(&Program { binary, args: &[], env: &[], stdio: [None; 3], fds: &[], cgroup: None });
    let error = of(Binary::Fd(text.as_fd())).unwrap_err();
    assert!(matches!(error.raw_os_error(), Some(libc::EACCES | libc::ENOEXEC)), "{error}");
    let error = of(Binary::Path(c"/nowhere/at/all")).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::NotFound);
}

#[test]
fn many_threads_at_once() {
    let threads: Vec<_> = (0..8)
        .map(|_| {
            std::thread::spawn(|| {
                for _ in 0..20 {
                    let binary = crate::seal::sealed_binary(Path::new("/bin/busybox")).unwrap();
                    let args = strings(&["true"]);
                    let binary = Binary::Fd(binary.as_fd());
                    let program =
                        Program { binary, args: &args, env: &[], stdio: [None; 3], fds: &[], cgroup: None };
                    assert_eq!(reap(&spawn(&program).unwrap()), Some(0));
                }
            })
        })
        .collect();
    threads.into_iter().for_each(|t| t.join().unwrap());
}

/// Needs root and a mounted cgroup2, as hybrid hosts have too.
#[test]
fn privileged_a_program_starts_in_a_cgroup() {
    let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let unified = crate::mountinfo::mounts(&table).find(|mount| mount.kind == "cgroup2").unwrap().point();
    let name = format!("copepod-test-spawn-{}", std::process::id());
    let path = unified.join(&name);
    std::fs::create_dir(&path).unwrap();
    let folder = std::fs::File::open(&path).unwrap();
    let run = |binary, args: &[&str]| {
        let (mut read, write) = std::io::pipe().unwrap();
        let args = strings(args);
        let env = strings(&["PATH=/bin:/usr/bin"]);
        let (stdio, cgroup) = ([None, Some(write.as_fd()), None], Some(folder.as_fd()));
        let child = spawn(&Program { binary, args: &args, env: &env, stdio, fds: &[], cgroup });
        drop(write);
        let mut text = String::new();
        read.read_to_string(&mut text).unwrap();
        (child.map(|child| reap(&child)), text)
    };
    let (code, text) = run(Binary::Path(c"/bin/sh"), &["sh", "-c", "cat /proc/self/cgroup; exit 5"]);
    let missing = run(Binary::Path(c"/no/such/program"), &["x"]).0;
    assert!(crate::cgroup::is_unified(folder.as_fd()));
    std::fs::remove_dir(&path).unwrap();
    assert_eq!(code.unwrap(), Some(5));
    assert!(text.lines().any(|line| line.starts_with("0::") && line.ends_with(&name)), "{text}");
    assert_eq!(missing.unwrap_err().kind(), std::io::ErrorKind::NotFound);
}
