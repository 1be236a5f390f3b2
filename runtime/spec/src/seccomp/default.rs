//! RuntimeDefault: our own table of system calls.
//!
//! A call that is not listed fails with ENOSYS, as on a kernel without it, so that libraries use what they
//! used before. A call that is listed as refused fails with EPERM, as for a process without the capability. A
//! test compares the table with that of containers-common and gives the reason of each difference.

use super::{Action, Arch, ArgTest, Op, Profile, Rule};
use crate::security::mask_of;

const EPERM: Action = Action::Errno(1);
const ENOSYS: Action = Action::Errno(38);
const EAFNOSUPPORT: Action = Action::Errno(97);
/// The kernel's crypto interface. Containers do not need it, and it has made kernel bugs exploitable.
const AF_ALG: u64 = 38;
/// Reaches the hypervisor and so bypasses network policies.
const AF_VSOCK: u64 = 40;
/// Every CLONE_NEW* flag that clone(2) takes: mount, cgroup, UTS, IPC, user, PID, network.
const NAMESPACE_FLAGS: [u64; 7] =
    [0x0002_0000, 0x0200_0000, 0x0400_0000, 0x0800_0000, 0x1000_0000, 0x2000_0000, 0x4000_0000];
/// PER_LINUX, PER_LINUX32, both of them with UNAME26, and the value that only queries.
const PERSONALITIES: [u64; 5] = [0, 8, 0x2_0000, 0x2_0008, 0xffff_ffff];

/// Allowed without capabilities: these calls need no privilege, or the kernel's own capability checks and
/// namespaces are sufficient.
const ALLOWED: &[&[&str]] =
    &[FILES, ATTRIBUTES, MEMORY, PROCESSES, SIGNALS, TIME, EVENTS, SOCKETS, IPC, IDENTITY, SYSTEM];

const FILES: &[&str] = &[
    "_llseek",
    "access",
    "cachestat",
    "chdir",
    "chmod",
    "chown",
    "chown32",
    "close",
    "close_range",
    "copy_file_range",
    "creat",
    "dup",
    "dup2",
    "dup3",
    "faccessat",
    "faccessat2",
    "fadvise64",
    "fadvise64_64",
    "fallocate",
    "fchdir",
    "fchmod",
    "fchmodat",
    "fchmodat2",
    "fchown",
    "fchown32",
    "fchownat",
    "fcntl",
    "fcntl64",
    "fdatasync",
    "flock",
    "fstat",
    "fstat64",
    "fstatat64",
    "fstatfs",
    "fstatfs64",
    "fsync",
    "ftruncate",
    "ftruncate64",
    "futimesat",
    "getcwd",
    "getdents",
    "getdents64",
    "io_cancel",
    "io_destroy",
    "io_getevents",
    "io_pgetevents",
    "io_pgetevents_time64",
    "io_setup",
    "io_submit",
    "ioctl",
    "lchown",
    "lchown32",
    "link",
    "linkat",
    "lseek",
    "lstat",
    "lstat64",
    "mkdir",
    "mkdirat",
    "mknod",
    "mknodat",
    "name_to_handle_at",
    "newfstatat",
    "open",
    "openat",
    "openat2",
    "pipe",
    "pipe2",
    "pread64",
    "preadv",
    "preadv2",
    "pwrite64",
    "pwritev",
    "pwritev2",
    "read",
    "readahead",
    "readdir",
    "readlink",
    "readlinkat",
    "readv",
    "rename",
    "renameat",
    "renameat2",
    "rmdir",
    "sendfile",
    "sendfile64",
    "splice",
    "stat",
    "stat64",
    "statfs",
    "statfs64",
    "statx",
    "symlink",
    "symlinkat",
    "sync",
    "sync_file_range",
    "syncfs",
    "tee",
    "truncate",
    "truncate64",
    "umask",
    "unlink",
    "unlinkat",
    "utime",
    "utimensat",
    "utimensat_time64",
    "utimes",
    "write",
    "writev",
];
const ATTRIBUTES: &[&str] = &[
    "fgetxattr",
    "flistxattr",
    "fremovexattr",
    "fsetxattr",
    "getxattr",
    "getxattrat",
    "landlock_add_rule",
    "landlock_create_ruleset",
    "landlock_restrict_self",
    "lgetxattr",
    "listxattr",
    "listxattrat",
    "llistxattr",
    "lremovexattr",
    "lsetxattr",
    "removexattr",
    "removexattrat",
    "setxattr",
    "setxattrat",
];
const MEMORY: &[&str] = &[
    "brk",
    "get_mempolicy",
    "madvise",
    "map_shadow_stack",
    "mbind",
    "membarrier",
    "memfd_create",
    "memfd_secret",
    "mincore",
    "mlock",
    "mlock2",
    "mlockall",
    "mmap",
    "mmap2",
    "mprotect",
    "mremap",
    "mseal",
    "msync",
    "munlock",
    "munlockall",
    "munmap",
    "pkey_alloc",
    "pkey_free",
    "pkey_mprotect",
    "remap_file_pages",
    "set_mempolicy",
    "set_mempolicy_home_node",
];
const PROCESSES: &[&str] = &[
    "execve",
    "execveat",
    "exit",
    "exit_group",
    "fork",
    "futex",
    "futex_requeue",
    "futex_time64",
    "futex_wait",
    "futex_waitv",
    "futex_wake",
    "get_robust_list",
    "get_thread_area",
    "getcpu",
    "getpgid",
    "getpgrp",
    "getpid",
    "getppid",
    "getpriority",
    "getrlimit",
    "getrusage",
    "getsid",
    "gettid",
    "ioprio_get",
    "ioprio_set",
    "pidfd_open",
    "prctl",
    "prlimit64",
    "process_mrelease",
    "ptrace",
    "restart_syscall",
    "rseq",
    "sched_get_priority_max",
    "sched_get_priority_min",
    "sched_getaffinity",
    "sched_getattr",
    "sched_getparam",
    "sched_getscheduler",
    "sched_rr_get_interval",
    "sched_rr_get_interval_time64",
    "sched_setaffinity",
    "sched_setattr",
    "sched_setparam",
    "sched_setscheduler",
    "sched_yield",
    "seccomp",
    "set_robust_list",
    "set_thread_area",
    "set_tid_address",
    "setpgid",
    "setpriority",
    "setrlimit",
    "setsid",
    "times",
    "ugetrlimit",
    "vfork",
    "wait4",
    "waitid",
    "waitpid",
];
const SIGNALS: &[&str] = &[
    "kill",
    "pause",
    "pidfd_send_signal",
    "rt_sigaction",
    "rt_sigpending",
    "rt_sigprocmask",
    "rt_sigqueueinfo",
    "rt_sigreturn",
    "rt_sigsuspend",
    "rt_sigtimedwait",
    "rt_sigtimedwait_time64",
    "rt_tgsigqueueinfo",
    "sigaction",
    "sigaltstack",
    "signal",
    "signalfd",
    "signalfd4",
    "sigpending",
    "sigprocmask",
    "sigreturn",
    "sigsuspend",
    "tgkill",
    "tkill",
];
const TIME: &[&str] = &[
    "adjtimex",
    "alarm",
    "clock_adjtime",
    "clock_adjtime64",
    "clock_getres",
    "clock_getres_time64",
    "clock_gettime",
    "clock_gettime64",
    "clock_nanosleep",
    "clock_nanosleep_time64",
    "getitimer",
    "gettimeofday",
    "nanosleep",
    "setitimer",
    "time",
    "timer_create",
    "timer_delete",
    "timer_getoverrun",
    "timer_gettime",
    "timer_gettime64",
    "timer_settime",
    "timer_settime64",
    "timerfd_create",
    "timerfd_gettime",
    "timerfd_gettime64",
    "timerfd_settime",
    "timerfd_settime64",
];
const EVENTS: &[&str] = &[
    "_newselect",
    "epoll_create",
    "epoll_create1",
    "epoll_ctl",
    "epoll_ctl_old",
    "epoll_pwait",
    "epoll_pwait2",
    "epoll_wait",
    "epoll_wait_old",
    "eventfd",
    "eventfd2",
    "fanotify_mark",
    "inotify_add_watch",
    "inotify_init",
    "inotify_init1",
    "inotify_rm_watch",
    "poll",
    "ppoll",
    "ppoll_time64",
    "pselect6",
    "pselect6_time64",
    "select",
];
const SOCKETS: &[&str] = &[
    "accept",
    "accept4",
    "bind",
    "connect",
    "getpeername",
    "getsockname",
    "getsockopt",
    "listen",
    "recv",
    "recvfrom",
    "recvmmsg",
    "recvmmsg_time64",
    "recvmsg",
    "send",
    "sendmmsg",
    "sendmsg",
    "sendto",
    "setsockopt",
    "shutdown",
    "socketcall",
    "socketpair",
];
const IPC: &[&str] = &[
    "ipc",
    "mq_getsetattr",
    "mq_notify",
    "mq_open",
    "mq_timedreceive",
    "mq_timedreceive_time64",
    "mq_timedsend",
    "mq_timedsend_time64",
    "mq_unlink",
    "msgctl",
    "msgget",
    "msgrcv",
    "msgsnd",
    "semctl",
    "semget",
    "semop",
    "semtimedop",
    "semtimedop_time64",
    "shmat",
    "shmctl",
    "shmdt",
    "shmget",
];
const IDENTITY: &[&str] = &[
    "capget",
    "capset",
    "getegid",
    "getegid32",
    "geteuid",
    "geteuid32",
    "getgid",
    "getgid32",
    "getgroups",
    "getgroups32",
    "getresgid",
    "getresgid32",
    "getresuid",
    "getresuid32",
    "getuid",
    "getuid32",
    "setfsgid",
    "setfsgid32",
    "setfsuid",
    "setfsuid32",
    "setgid",
    "setgid32",
    "setgroups",
    "setgroups32",
    "setregid",
    "setregid32",
    "setresgid",
    "setresgid32",
    "setresuid",
    "setresuid32",
    "setreuid",
    "setreuid32",
    "setuid",
    "setuid32",
];
const SYSTEM: &[&str] =
    &["getrandom", "lsm_get_self_attr", "lsm_list_modules", "lsm_set_self_attr", "sysinfo", "uname"];

/// The kernel inserts calls of `uprobe` and `uretprobe` into traced programs, which die if the call fails.
const X86_ONLY: &[&str] = &["arch_prctl", "modify_ldt", "uprobe", "uretprobe"];
const ARM_ONLY: &[&str] =
    &["arm_fadvise64_64", "arm_sync_file_range", "breakpoint", "cacheflush", "set_tls", "sync_file_range2"];

/// Allowed with any of these capabilities; otherwise they fail with EPERM.
const BY_CAPABILITY: &[(u64, &[&str])] = &[
    (
        mask_of(&["SYS_ADMIN"]),
        &[
            "fanotify_init",
            "fsconfig",
            "fsmount",
            "fsopen",
            "fspick",
            "listmount",
            "lookup_dcookie",
            "mount",
            "mount_setattr",
            "move_mount",
            "open_tree",
            "open_tree_attr",
            "pivot_root",
            "quotactl",
            "quotactl_fd",
            "setdomainname",
            "sethostname",
            "setns",
            "statmount",
            "umount",
            "umount2",
            "unshare",
        ],
    ),
    (mask_of(&["SYS_ADMIN", "BPF"]), &["bpf"]),
    (mask_of(&["SYS_ADMIN", "PERFMON"]), &["perf_event_open"]),
    (mask_of(&["SYS_ADMIN", "SYSLOG"]), &["syslog"]),
    (mask_of(&["DAC_READ_SEARCH"]), &["open_by_handle_at"]),
    (mask_of(&["SYS_BOOT"]), &["reboot"]),
    (mask_of(&["SYS_CHROOT"]), &["chroot"]),
    (mask_of(&["SYS_MODULE"]), &["delete_module", "finit_module", "init_module", "query_module"]),
    (mask_of(&["SYS_PACCT"]), &["acct"]),
    (
        mask_of(&["SYS_PTRACE"]),
        &["kcmp", "pidfd_getfd", "process_madvise", "process_vm_readv", "process_vm_writev"],
    ),
    (mask_of(&["SYS_RAWIO"]), &["ioperm", "iopl"]),
    (mask_of(&["SYS_TIME"]), &["clock_settime", "clock_settime64", "settimeofday", "stime"]),
    (mask_of(&["SYS_TTY_CONFIG"]), &["vhangup"]),
];

/// Refused with any capabilities: keyrings have no namespace, and the others are for the node only, expose
/// much of the kernel, or are obsolete.
const REFUSED: &[&str] = &[
    "add_key",
    "bdflush",
    "kexec_file_load",
    "kexec_load",
    "keyctl",
    "migrate_pages",
    "move_pages",
    "nfsservctl",
    "nice",
    "oldfstat",
    "oldlstat",
    "oldolduname",
    "oldstat",
    "olduname",
    "pciconfig_iobase",
    "pciconfig_read",
    "pciconfig_write",
    "request_key",
    "sgetmask",
    "ssetmask",
    "swapcontext",
    "swapoff",
    "swapon",
    "sysfs",
    "uselib",
    "userfaultfd",
    "ustat",
    "vm86",
    "vm86old",
    "vmsplice",
];

/// The capabilities that change the table. Profiles that differ in others only are equal.
pub const RELEVANT_CAPS: u64 = {
    let mut mask = 0;
    let mut at = 0;
    while at < BY_CAPABILITY.len() {
        mask |= BY_CAPABILITY[at].0;
        at += 1;
    }
    mask
};

/// The filter for a process with these capabilities (bounding set), for an architecture and those whose
/// programs its kernel also runs.
pub fn runtime_default(arch: Arch, caps: u64) -> Profile {
    let owned = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
    let rule = |names: &[&str], action| Rule { names: owned(names), action, args: Vec::new() };
    let test = |name: &str, action, index, op, value| Rule {
        names: vec![name.to_owned()],
        action,
        args: vec![ArgTest { index, op, value }],
    };
    let mut rules: Vec<Rule> = ALLOWED.iter().map(|names| rule(names, Action::Allow)).collect();
    let own = match arch {
        Arch::X86_64 | Arch::X86 | Arch::X32 => X86_ONLY,
        Arch::Aarch64 | Arch::Arm => ARM_ONLY,
    };
    rules.push(rule(own, Action::Allow));
    for (any_of, names) in BY_CAPABILITY {
        rules.push(rule(names, if caps & any_of != 0 { Action::Allow } else { EPERM }));
    }
    rules.push(rule(REFUSED, EPERM));
    rules.extend(PERSONALITIES.map(|value| test("personality", Action::Allow, 0, Op::Eq, value)));
    // Written as ranges: two "not equal" rules would each allow what the other refuses.
    rules.push(test("socket", Action::Allow, 0, Op::Lt, AF_ALG));
    rules.push(test("socket", Action::Allow, 0, Op::Eq, AF_ALG + 1));
    rules.push(test("socket", Action::Allow, 0, Op::Gt, AF_VSOCK));
    rules.extend([AF_ALG, AF_VSOCK].map(|family| test("socket", EAFNOSUPPORT, 0, Op::Eq, family)));
    if caps & mask_of(&["SYS_ADMIN"]) != 0 {
        rules.push(rule(&["clone", "clone3"], Action::Allow));
    } else {
        let all = NAMESPACE_FLAGS.iter().fold(0, |all, flag| all | flag);
        rules.push(test("clone", Action::Allow, 0, Op::Masked(all), 0));
        rules.extend(NAMESPACE_FLAGS.map(|flag| test("clone", EPERM, 0, Op::Masked(flag), flag)));
        // A filter cannot read its flags, which are in memory; after ENOSYS the C library uses clone.
        rules.push(rule(&["clone3"], ENOSYS));
    }
    Profile { default: ENOSYS, arches: arch.family().to_vec(), rules, flags: 0 }
}

#[cfg(test)]
#[path = "default_tests.rs"]
mod tests;
