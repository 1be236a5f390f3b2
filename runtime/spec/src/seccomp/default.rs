//! RuntimeDefault: our own table of system calls.
//!
//! A call that is not listed fails with ENOSYS, as on a kernel without it, so that libraries use what they
//! used before. A call that is listed as refused fails with EPERM, as for a process without the capability. A
//! test compares the table with that of containers-common and gives the reason of each difference.

use super::calls::{ALLOWED, ARM_ONLY, BY_CAPABILITY, REFUSED, X86_ONLY};
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
