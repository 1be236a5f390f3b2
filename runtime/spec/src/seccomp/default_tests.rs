use super::*;
use crate::seccomp::parse_localhost;
use crate::security;
use std::collections::{BTreeMap, BTreeSet};

#[test]
fn no_name_has_two_unconditional_rules() {
    for caps in [0, u64::MAX] {
        let mut seen = BTreeSet::new();
        for rule in runtime_default(Arch::X86_64, caps).rules.iter().filter(|rule| rule.args.is_empty()) {
            for name in &rule.names {
                assert!(seen.insert(name.clone()), "{name} twice");
            }
        }
        for tested in ["socket", "personality"] {
            assert!(!seen.contains(tested));
        }
    }
}

#[test]
fn capabilities_open_calls() {
    let find = |caps, name: &str| {
        let profile = runtime_default(Arch::X86_64, caps);
        let rule = profile.rules.iter().find(|rule| rule.names.iter().any(|n| n == name)).unwrap();
        (rule.action, rule.args.len())
    };
    assert_eq!(find(0, "mount"), (EPERM, 0));
    assert_eq!(find(mask_of(&["SYS_ADMIN"]), "mount"), (Action::Allow, 0));
    assert_eq!(find(mask_of(&["BPF"]), "bpf"), (Action::Allow, 0));
    assert_eq!(find(0, "clone"), (Action::Allow, 1));
    assert_eq!(find(0, "clone3"), (ENOSYS, 0));
    assert_eq!(find(mask_of(&["SYS_ADMIN"]), "clone3"), (Action::Allow, 0));
    assert_eq!(RELEVANT_CAPS & mask_of(&["CHOWN"]), 0);
    let all = NAMESPACE_FLAGS.iter().fold(0, |all, flag| all | flag);
    assert_eq!(all, 0x7e02_0000);
}

/// The differences between our table and that of containers-common, with their reasons. Any other difference
/// fails the test.
const DIFFERENCES: &[(&str, &[&str])] = &[
    (
        "theirs allows nested containers: mounting, namespaces and related calls are open to all. In a \
         pod they are the kernel's largest surface, so they need CAP_SYS_ADMIN, as in Docker's profile",
        &[
            "clone",
            "fsconfig",
            "fsmount",
            "fsopen",
            "fspick",
            "mount",
            "mount_setattr",
            "move_mount",
            "open_tree",
            "pivot_root",
            "setns",
            "umount",
            "umount2",
            "unshare",
        ],
    ),
    ("a filter cannot read its flags, which are in memory: ENOSYS makes libraries use clone", &["clone3"]),
    (
        "other processes' memory and descriptors need CAP_SYS_PTRACE",
        &["pidfd_getfd", "process_vm_readv", "process_vm_writev"],
    ),
    (
        "reading the kernel's log and rebooting need their capability, also in the filter",
        &["reboot", "syslog"],
    ),
    ("keyrings have no namespace: refused", &["add_key", "keyctl", "request_key"]),
    (
        "AF_VSOCK reaches the hypervisor past every network policy, AF_ALG the kernel's crypto code, which \
         nothing in a container needs: refused, as containerd does. 32-bit programs reach both by socketcall, \
         whose arguments no filter sees; without it those programs have no network at all (Docker took it \
         away once and gave it back). Their rule about audit sockets is for sudo in a user namespace",
        &["socket"],
    ),
    ("the capability that was split from CAP_SYS_ADMIN is enough", &["bpf", "perf_event_open"]),
    ("a plain variant of io_getevents, used by databases", &["io_pgetevents", "io_pgetevents_time64"]),
    (
        "newer than their table; as harmless as the calls that they extend",
        &[
            "cachestat",
            "fchmodat2",
            "futex_requeue",
            "futex_wait",
            "futex_waitv",
            "futex_wake",
            "getxattrat",
            "listxattrat",
            "lsm_get_self_attr",
            "lsm_list_modules",
            "lsm_set_self_attr",
            "map_shadow_stack",
            "mseal",
            "removexattrat",
            "set_mempolicy_home_node",
            "setxattrat",
        ],
    ),
    (
        "called by code that the kernel inserts into a program with a return probe; the program dies if it fails",
        &["uprobe", "uretprobe"],
    ),
    (
        "newer than their table; need CAP_SYS_ADMIN like the calls that they extend",
        &["listmount", "open_tree_attr", "quotactl_fd", "statmount"],
    ),
    ("not system calls of our architectures", &["syscall", "timerfd"]),
];

/// The actions for each call with the number of their conditions, unordered.
fn verdicts(profile: &Profile) -> BTreeMap<String, BTreeSet<String>> {
    let mut verdicts: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for rule in &profile.rules {
        for name in &rule.names {
            let verdict = format!("{:?} {:?}", rule.action, rule.args);
            verdicts.entry(name.clone()).or_default().insert(verdict);
        }
    }
    verdicts
}

#[test]
fn differs_from_containers_common_only_as_listed() {
    let path = "/usr/share/containers/seccomp.json";
    let text = std::fs::read(path).expect("Debian package golang-github-containers-common");
    let mut different: BTreeSet<String> = BTreeSet::new();
    let split = security::DEFAULT | mask_of(&["BPF", "PERFMON", "SYSLOG"]);
    for caps in [security::DEFAULT, security::ALL, split, 0] {
        let ours = verdicts(&runtime_default(Arch::X86_64, caps));
        let theirs = verdicts(&parse_localhost(&text, Arch::X86_64, caps, (5, 14)).unwrap());
        for name in ours.keys().chain(theirs.keys()) {
            if ours.get(name) != theirs.get(name) {
                different.insert(name.clone());
            }
        }
    }
    let listed: BTreeSet<String> =
        DIFFERENCES.iter().flat_map(|(_, names)| *names).map(|name| (*name).to_owned()).collect();
    let unlisted: Vec<_> = different.difference(&listed).collect();
    let stale: Vec<_> = listed.difference(&different).collect();
    assert!(unlisted.is_empty() && stale.is_empty(), "not listed: {unlisted:?}; no difference: {stale:?}");
}
