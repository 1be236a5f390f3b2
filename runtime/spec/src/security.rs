//! Capabilities: names, masks, and the sets of a container.

use crate::Error;
use model::{Capabilities, ContainerSecurity};
use wire::CapSets;

/// Names by bit, without `CAP_` (linux/capability.h).
const NAMES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

/// The default set, the same as Docker's and containerd's: what Kubernetes' Baseline policy allows, and NET_RAW.
pub const DEFAULT: u64 = mask_of(&[
    "CHOWN",
    "DAC_OVERRIDE",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "NET_BIND_SERVICE",
    "NET_RAW",
    "SYS_CHROOT",
    "MKNOD",
    "AUDIT_WRITE",
    "SETFCAP",
]);

/// All capabilities in this table.
pub(crate) const ALL: u64 = (1 << NAMES.len()) - 1;

/// Mask of names that are known at compile time; an unknown name does not compile.
pub const fn mask_of(names: &[&str]) -> u64 {
    let mut mask = 0;
    let mut at = 0;
    while at < names.len() {
        let mut bit = 0;
        while !same(NAMES[bit], names[at]) {
            bit += 1;
        }
        mask |= 1 << bit;
        at += 1;
    }
    mask
}

const fn same(a: &str, b: &str) -> bool {
    let (a, b) = (a.as_bytes(), b.as_bytes());
    if a.len() != b.len() {
        return false;
    }
    let mut at = 0;
    while at < a.len() {
        if a[at] != b[at] {
            return false;
        }
        at += 1;
    }
    true
}

/// The name of a capability as in the kernel's header, without `CAP_`. It may be given with or without `CAP_`, in
/// upper or lower case.
pub fn canonical(name: &str) -> Option<&'static str> {
    find(name).map(|(_, known)| known)
}

/// The names of the capabilities in a mask, without `CAP_`, ascending by number. Those that this table does not know are
/// left out.
pub fn names(mask: u64) -> impl Iterator<Item = &'static str> {
    NAMES.into_iter().zip(0_u32..).filter(move |(_, bit)| mask >> bit & 1 == 1).map(|(name, _)| name)
}

/// Mask of one name, spelt as for [`canonical`].
pub(crate) fn bit(name: &str) -> Option<u64> {
    find(name).map(|(bit, _)| 1 << bit)
}

fn find(name: &str) -> Option<(usize, &'static str)> {
    let upper = name.to_ascii_uppercase();
    let bare = upper.strip_prefix("CAP_").unwrap_or(&upper);
    NAMES.into_iter().enumerate().find(|(_, known)| *known == bare)
}

/// Whether a name in a request stands for all capabilities.
pub fn is_all(name: &str) -> bool {
    name.eq_ignore_ascii_case("ALL") || name.eq_ignore_ascii_case("CAP_ALL")
}

/// Refuses a privileged container in a sandbox that is not privileged. `sandbox`: the field
/// `LinuxSandboxSecurityContext.privileged`.
///
/// # Errors
/// [`Error::Invalid`] with the container's field.
pub fn privileged(security: &ContainerSecurity, sandbox: bool) -> Result<(), Error> {
    if security.privileged && !sandbox {
        let field = "config.linux.security_context.privileged";
        return Err(Error::invalid(field, "true", "must be false unless the sandbox is privileged too"));
    }
    Ok(())
}

/// Computes the capability sets of a container. `host` is the daemon's bounding set, which limits all of
/// them.
///
/// It starts with the default set. `ALL` in add is applied first, then `ALL` in drop, then single additions, then single
/// removals. Ambient capabilities are additions that are in the ambient and inheritable sets too, so that they survive the
/// execve of a user other than root. A capability that is dropped by name is in no set. A privileged container has all
/// capabilities of the host, whatever is added or dropped, and the ambient ones that were asked for. A capability that is
/// requested by name and missing on the host is an error; `ALL` and privileged mode mean all that the host has.
pub fn caps(security: &ContainerSecurity, host: u64) -> Result<CapSets, Error> {
    let field = "config.linux.security_context.capabilities";
    let Capabilities { add, drop, ambient } = &security.capabilities;
    let (_, ambient) = parse(&format!("{field}.add_ambient_capabilities"), ambient, Some(host))?;
    if security.privileged {
        let all = host & ALL;
        return Ok(CapSets { bounding: all, permitted: all, inheritable: ambient, ambient });
    }
    let (add_all, add) = parse(&format!("{field}.add_capabilities"), add, Some(host))?;
    let (drop_all, drop) = parse(&format!("{field}.drop_capabilities"), drop, None)?;
    let mut set = DEFAULT & host;
    if add_all {
        set = host & ALL;
    }
    if drop_all {
        set = 0;
    }
    set |= add | ambient;
    set &= !drop;
    let ambient = ambient & set;
    Ok(CapSets { bounding: set, permitted: set, inheritable: ambient, ambient })
}

/// Whether `ALL` is among the names, and the mask of the other names. With `host` given, each must be in it.
fn parse(field: &str, names: &[String], host: Option<u64>) -> Result<(bool, u64), Error> {
    let mut all = false;
    let mut mask = 0;
    for name in names {
        if is_all(name) {
            all = true;
            continue;
        }
        match bit(name).filter(|bit| host.is_none_or(|host| host & bit != 0)) {
            Some(bit) => mask |= bit,
            None => {
                let want = "the bounding set of the daemon does not include it";
                return Err(Error::unsupported(field, name, want));
            }
        }
    }
    Ok((all, mask))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn with(add: &[&str], drop: &[&str], ambient: &[&str]) -> ContainerSecurity {
        let list = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        let capabilities = Capabilities { add: list(add), drop: list(drop), ambient: list(ambient) };
        ContainerSecurity { capabilities, ..ContainerSecurity::default() }
    }

    #[test]
    fn default_set_equals_dockers() {
        assert_eq!(DEFAULT, 0x0000_0000_a804_25fb);
        assert_eq!(caps(&with(&[], &[], &[]), ALL).unwrap().bounding, DEFAULT);
    }

    #[test]
    fn spellings() {
        for name in ["NET_ADMIN", "CAP_NET_ADMIN", "net_admin", "cap_net_admin"] {
            assert_eq!(canonical(name), Some("NET_ADMIN"), "{name}");
        }
        for name in ["NET_ADMN", "ALL", "", "CAP_"] {
            assert_eq!(canonical(name), None, "{name}");
        }
        assert!(is_all("all") && is_all("CAP_ALL") && !is_all("CHOWN"));
    }

    #[test]
    fn adds_and_drops() {
        let sets = caps(&with(&["CAP_NET_ADMIN"], &["net_raw"], &[]), ALL).unwrap();
        assert_eq!(sets.permitted, (DEFAULT | mask_of(&["NET_ADMIN"])) & !mask_of(&["NET_RAW"]));
        assert_eq!((sets.inheritable, sets.ambient), (0, 0));
        let only = caps(&with(&["CHOWN"], &["ALL"], &[]), ALL).unwrap();
        assert_eq!(only.bounding, mask_of(&["CHOWN"]));
        let but = caps(&with(&["ALL"], &["SYS_ADMIN"], &[]), ALL).unwrap();
        assert_eq!(but.bounding, ALL & !mask_of(&["SYS_ADMIN"]));
        let raised = caps(&with(&[], &["ALL"], &["NET_BIND_SERVICE"]), ALL).unwrap();
        let want = mask_of(&["NET_BIND_SERVICE"]);
        assert_eq!(raised, CapSets { bounding: want, permitted: want, inheritable: want, ambient: want });
        // CRI: a dropped capability is in no set.
        let dropped = caps(&with(&[], &["CAP_KILL"], &["KILL", "CHOWN"]), ALL).unwrap();
        assert_eq!((dropped.ambient, dropped.inheritable), (mask_of(&["CHOWN"]), mask_of(&["CHOWN"])));
        assert_eq!(dropped.bounding & mask_of(&["KILL"]), 0);
        let privileged = ContainerSecurity { privileged: true, ..with(&[], &[], &["NET_RAW"]) };
        let ambient = mask_of(&["NET_RAW"]);
        let all = CapSets { bounding: ALL, permitted: ALL, inheritable: ambient, ambient };
        assert_eq!(caps(&privileged, ALL).unwrap(), all);
    }

    #[test]
    fn host_limits() {
        let host = ALL & !mask_of(&["SYS_RESOURCE"]);
        assert!(caps(&with(&["SYS_RESOURCE"], &[], &[]), host).is_err());
        assert_eq!(caps(&with(&["ALL"], &[], &[]), host).unwrap().bounding, host);
        let privileged = ContainerSecurity { privileged: true, ..with(&["nonsense"], &["ALL"], &[]) };
        assert_eq!(caps(&privileged, host).unwrap().bounding, host);
        assert!(caps(&with(&["FLY"], &[], &[]), ALL).is_err());
    }

    proptest! {
        #[test]
        fn sets_never_exceed_the_host(host in any::<u64>(), add in 0usize..41, drop in 0usize..41) {
            let security = with(&[NAMES[add]], &[NAMES[drop]], &[]);
            if let Ok(sets) = caps(&security, host) {
                prop_assert_eq!(sets.bounding & !host, 0);
                prop_assert_eq!(sets.permitted & !sets.bounding, 0);
                prop_assert_eq!(sets.bounding & mask_of_one(drop), 0);
            }
        }
    }

    fn mask_of_one(bit: usize) -> u64 {
        1 << bit
    }
}
