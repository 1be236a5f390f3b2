use super::*;
use std::io::Read as _;
use std::os::fd::AsFd as _;
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
    // Left open on purpose, without close-on-exec.
    let stray = std::fs::File::open("/proc/self/status").unwrap();
    rustix::io::fcntl_setfd(&stray, rustix::io::FdFlags::empty()).unwrap();
    let script = "ls /proc/self/fd | tr '\\n' ' ' >&3; pwd >&3; echo $A >&3; \
                  grep -E 'SigBlk|SigIgn' /proc/self/status >&3; exit 7";
    let busybox = crate::seal::sealed_binary(Path::new("/bin/busybox")).unwrap();
    let child = spawn(&Program {
        binary: busybox.as_fd(),
        args: &strings(&["sh", "-c", script]),
        env: &strings(&["A=b", "PATH=/bin:/usr/bin"]),
        fds: &[write.as_fd(), write.as_fd()],
        stderr: None,
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

#[test]
fn says_why_and_leaves_no_child() {
    let text = std::fs::File::open("/etc/passwd").unwrap();
    let error =
        spawn(&Program { binary: text.as_fd(), args: &[], env: &[], fds: &[], stderr: None }).unwrap_err();
    assert!(matches!(error.raw_os_error(), Some(libc::EACCES | libc::ENOEXEC)), "{error}");
}

#[test]
fn many_threads_at_once() {
    let threads: Vec<_> = (0..8)
        .map(|_| {
            std::thread::spawn(|| {
                for _ in 0..20 {
                    let binary = crate::seal::sealed_binary(Path::new("/bin/busybox")).unwrap();
                    let args = strings(&["true"]);
                    let program =
                        Program { binary: binary.as_fd(), args: &args, env: &[], fds: &[], stderr: None };
                    assert_eq!(reap(&spawn(&program).unwrap()), Some(0));
                }
            })
        })
        .collect();
    threads.into_iter().for_each(|t| t.join().unwrap());
}
