//! Computes the plan of pause, which holds a sandbox's namespaces.

use crate::Error;
use crate::resources::{Version, Write};
use crate::sysctl::{self, Namespace};
use model::{NamespaceMode, PodConfig, PodRecord, PodSecurity, User, UserMapping};
use wire::{CgroupPlan, PausePlan, SeccompProgram};

/// Size of a pod's /dev/shm in bytes, the same as with other runtimes.
const SHM_SIZE: u64 = 64 << 20;
/// A pod must outlive its containers: the kernel kills pause last, except for the shim.
const PAUSE_OOM_SCORE_ADJ: i32 = -998;
/// The kernel kills the shim after pause, because the shim holds the logs and the exit codes.
pub const SHIM_OOM_SCORE_ADJ: i32 = -999;
/// User of pause if the request names none: the one of Kubernetes' own pause image. Pause has no capabilities
/// with any user.
const PAUSE_ID: u32 = 65535;
/// Defaults for a pod with its own network namespace, unless the request sets them, as with containerd: a
/// server without capabilities may use port 80, and ping needs no CAP_NET_RAW. The namespace belongs to the
/// pod alone. On a kernel without one of them (no IPv4, too old), pods start without it.
const NETWORK_DEFAULTS: [(&str, &str); 2] =
    [("net/ipv4/ip_unprivileged_port_start", "0"), (PING_GROUPS, "0 2147483647")];
/// The only sysctl of a namespace whose values are ids: the first and the last group whose members may ping.
const PING_GROUPS: &str = "net/ipv4/ping_group_range";
/// Memory limit of pause in bytes. It uses some 50 KiB; the rest is for what the kernel charges at its start.
const PAUSE_MEMORY: u64 = 8 << 20;

/// The input of [`pause`].
#[derive(Debug, Clone)]
pub struct PauseInput<'a> {
    /// The sandbox's record.
    pub pod: &'a PodRecord,
    /// The cgroup of pause.
    pub cgroup: CgroupPlan,
    /// The seccomp filter; ignored if the sandbox is privileged.
    pub seccomp: Option<SeccompProgram>,
    /// Name of the AppArmor profile; empty for none.
    pub apparmor: String,
}

/// Computes pause's plan; the error names the field that is refused.
pub fn pause(input: PauseInput<'_>) -> Result<PausePlan, Error> {
    let PauseInput { pod, cgroup, seccomp, apparmor } = input;
    let selinux = pod.selinux.clone().unwrap_or_default();
    let config = &pod.config;
    let asked = &config.security;
    // A sandbox has its own namespaces, except those for which NODE is requested.
    let own = |mode: NamespaceMode| mode != NamespaceMode::Node;
    let network = own(asked.namespaces.network);
    let mapping = asked.namespaces.mapping();
    Ok(PausePlan {
        mapping,
        network,
        ipc: own(asked.namespaces.ipc),
        uts: network,
        pid: own(asked.namespaces.pid),
        // An empty name leaves the new namespace with the node's name, as with other runtimes.
        hostname: if network { config.hostname.clone() } else { String::new() },
        // Network sysctls in the request are set once the interfaces exist: [`network_sysctls`].
        sysctls: sysctls(config, false)?,
        default_sysctls: {
            let defaults = NETWORK_DEFAULTS.into_iter().filter(|_| network);
            defaults.map(|(name, value)| (name.to_owned(), default(name, value, mapping))).collect()
        },
        user: user(asked, mapping)?,
        seccomp: if asked.privileged { None } else { seccomp },
        apparmor,
        selinux: if asked.privileged { String::new() } else { selinux.process },
        file_label: selinux.file,
        oom_score_adj: PAUSE_OOM_SCORE_ADJ,
        cgroup,
        shm_size: SHM_SIZE,
    })
}

/// The user of pause. Each id must be mapped if the pod has a user namespace.
fn user(asked: &PodSecurity, mapping: Option<UserMapping>) -> Result<User, Error> {
    let own = PAUSE_ID.min(mapping.map_or(PAUSE_ID, |mapping| mapping.length.saturating_sub(1)));
    let (uid, gid) = match asked.run_as_user {
        Some(uid) => (uid, asked.run_as_group.unwrap_or(0)),
        None => (own, own),
    };
    let groups = asked.supplemental_groups.clone();
    let ids = [("run_as_user", uid), ("run_as_group", gid)];
    for (name, id) in ids.into_iter().chain(groups.iter().map(|gid| ("supplemental_groups", *gid))) {
        if let Some(mapping) = mapping.filter(|mapping| id >= mapping.length) {
            let field = format!("config.linux.security_context.{name}");
            return Err(Error::invalid(field, id.to_string(), unmapped(mapping)));
        }
    }
    Ok(User { uid, gid, groups })
}

/// What an id of a pod with this mapping must be.
fn unmapped(mapping: UserMapping) -> String {
    let last = mapping.length.saturating_sub(1);
    format!("must be at most {last}, the last id that the pod's user namespace maps")
}

/// A default sysctl: pause writes it, inside the pod's user namespace.
fn default(name: &str, value: &str, mapping: Option<UserMapping>) -> String {
    match mapping {
        Some(mapping) if name == PING_GROUPS => format!("0 {}", mapping.length.saturating_sub(1)),
        _ => value.to_owned(),
    }
}

/// Limits of pause's own cgroup: one process of some KiB, so that nothing else can run there.
pub fn pause_limits(version: Version) -> Vec<Write> {
    let write = |controller: &str, file: &str, value: u64| Write {
        controller: controller.to_owned(),
        file: file.to_owned(),
        value: value.to_string(),
        field: "limit of the sandbox's own process (pause)".to_owned(),
        optional: true,
    };
    let memory = match version {
        Version::V1 => "memory.limit_in_bytes",
        Version::V2 => "memory.max",
    };
    vec![write("pids", "pids.max", 1), write("memory", memory, PAUSE_MEMORY)]
}

/// The sysctls of a pod's network namespace as `(path below /proc/sys, value)`, to be set once its interfaces exist. The
/// daemon writes them, so their ids are the host's.
pub fn network_sysctls(config: &PodConfig) -> Result<Vec<(String, String)>, Error> {
    let mut all = sysctls(config, true)?;
    if let Some(mapping) = config.security.namespaces.mapping() {
        for (_, value) in all.iter_mut().filter(|(path, _)| path == PING_GROUPS) {
            *value = host_groups(value, mapping)?;
        }
    }
    Ok(all)
}

/// The range of groups `value` of a pod with this mapping, as the host's groups. A range whose last group is below its
/// first allows nobody to ping.
fn host_groups(value: &str, mapping: UserMapping) -> Result<String, Error> {
    let ids: Option<Vec<u32>> = value.split_ascii_whitespace().map(|id| id.parse().ok()).collect();
    let on_host = match ids.as_deref() {
        Some([first, last]) => mapping.host_gid(*first).zip(mapping.host_gid(*last)),
        _ => None,
    };
    let (first, last) = on_host.ok_or_else(|| {
        let want = format!("its two groups {}", unmapped(mapping));
        Error::invalid("config.linux.sysctls", format!("net.ipv4.ping_group_range={value}"), want)
    })?;
    Ok(format!("{first} {last}"))
}

/// The sysctls of the network namespace, or those of the others.
fn sysctls(config: &PodConfig, of_network: bool) -> Result<Vec<(String, String)>, Error> {
    let mut paths = Vec::new();
    for (name, value) in &config.sysctls {
        let sysctl = sysctl::parse(name).map_err(Error::about("config.linux.sysctls", name))?;
        if (sysctl.namespace == Namespace::Network) == of_network {
            paths.push((sysctl.path, value.clone()));
        }
    }
    Ok(paths)
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::PodId;

    fn plan(config: PodConfig) -> Result<PausePlan, Error> {
        let pod = PodRecord::new(PodId::from_random([3; 32]), config, 1);
        let seccomp = Some(SeccompProgram { instructions: vec![1] });
        pause(PauseInput { pod: &pod, cgroup: CgroupPlan::default(), seccomp, apparmor: String::new() })
    }

    fn named() -> PodConfig {
        PodConfig { hostname: "web-0".into(), ..PodConfig::default() }
    }

    fn with_sysctl(name: &str, value: &str) -> PodConfig {
        PodConfig { sysctls: [(name.to_owned(), value.to_owned())].into(), ..named() }
    }

    #[test]
    fn namespaces_and_user() {
        let made = plan(named()).unwrap();
        assert!(made.network && made.ipc && made.uts && made.pid && made.seccomp.is_some());
        assert_eq!((made.user.uid, made.user.gid, made.shm_size), (65535, 65535, 64 << 20));
        // The defaults; the request's values come later and win.
        assert_eq!((made.sysctls.len(), made.default_sysctls.len()), (0, 2));
        let asked = with_sysctl("net.ipv4.ip_unprivileged_port_start", "80");
        assert_eq!(
            network_sysctls(&asked).unwrap(),
            [("net/ipv4/ip_unprivileged_port_start".into(), "80".into())]
        );
        let defaults = made.default_sysctls;
        let made = plan(asked).unwrap();
        assert_eq!((made.sysctls.len(), &made.default_sysctls), (0, &defaults));
        // A requested sysctl does not change the defaults.
        let made = plan(with_sysctl("kernel.shm_rmid_forced", "1")).unwrap();
        assert_eq!((made.sysctls.len(), &made.default_sysctls), (1, &defaults));
        let mut host = PodConfig::default();
        host.security.namespaces.network = NamespaceMode::Node;
        host.security.namespaces.pid = NamespaceMode::Node;
        host.security.privileged = true;
        let made = plan(host).unwrap();
        assert!(
            !made.network && !made.uts && !made.pid && made.hostname.is_empty() && made.seccomp.is_none()
        );
        assert!(made.default_sysctls.is_empty(), "the host's");
        let mut grouped = named();
        grouped.security.run_as_group = Some(4);
        grouped.security.run_as_user = Some(3);
        assert_eq!(plan(grouped).unwrap().user, User { uid: 3, gid: 4, groups: vec![] });
        let mut container = named();
        container.security.namespaces.pid = NamespaceMode::Container;
        assert!(plan(container).unwrap().pid);
    }

    fn mapped(length: u32) -> PodConfig {
        let id = |host_id| model::IdMapping { host_id, container_id: 0, length };
        let mut config = named();
        config.security.namespaces.user = Some(model::UserNamespace {
            mode: NamespaceMode::Pod,
            uids: vec![id(100_000)],
            gids: vec![id(300_000)],
        });
        config
    }

    #[test]
    fn pause_of_a_pod_with_a_user_namespace() {
        let made = plan(mapped(65_536)).unwrap();
        assert_eq!(made.mapping, Some(UserMapping { uid: 100_000, gid: 300_000, length: 65_536 }));
        assert_eq!((made.user.uid, made.user.gid), (65_535, 65_535));
        let ping = made.default_sysctls.iter().find(|(name, _)| name == PING_GROUPS).unwrap();
        assert_eq!(ping.1, "0 65535", "the kernel refuses groups that are not mapped");
        let small = plan(mapped(10)).unwrap();
        assert_eq!((small.user.uid, small.user.gid), (9, 9));
        for change in [
            |s: &mut PodSecurity| s.run_as_user = Some(10),
            |s: &mut PodSecurity| (s.run_as_user, s.run_as_group) = (Some(9), Some(10)),
            |s: &mut PodSecurity| s.supplemental_groups = vec![9, 10],
        ] {
            let mut config = mapped(10);
            change(&mut config.security);
            let refused = plan(config).unwrap_err().to_string();
            assert!(refused.contains("must be at most 9"), "{refused}");
        }
    }

    #[test]
    fn groups_that_may_ping_are_those_of_the_host() {
        let with = |value: &str| {
            let sysctls = [("net.ipv4.ping_group_range".to_owned(), value.to_owned())].into();
            network_sysctls(&PodConfig { sysctls, ..mapped(65_536) })
        };
        let values = |value: &str| with(value).unwrap().remove(0).1;
        assert_eq!((values("0 0").as_str(), values("1\t65535").as_str()), ("300000 300000", "300001 365535"));
        assert_eq!(values("1 0"), "300001 300000");
        for wrong in ["0 65536", "0 2147483647", "0", "0 1 2", "a b", ""] {
            assert_eq!(with(wrong).unwrap_err().field(), "config.linux.sysctls", "{wrong}");
        }
        let sysctls = [("net.ipv4.ping_group_range".to_owned(), "0 2147483647".to_owned())].into();
        let host = network_sysctls(&PodConfig { sysctls, ..named() }).unwrap();
        assert_eq!(host[0].1, "0 2147483647");
    }

    #[test]
    fn sysctls_of_the_network_come_later() {
        let mut config = named();
        for name in ["kernel.domainname", "kernel.sem", "net.ipv4.conf.eth0/100.rp_filter"] {
            config.sysctls.insert(name.to_owned(), "1".to_owned());
        }
        let later = ("net/ipv4/conf/eth0.100/rp_filter".to_owned(), "1".to_owned());
        assert_eq!(network_sysctls(&config).unwrap(), [later]);
        let early: Vec<String> = plan(config).unwrap().sysctls.into_iter().map(|(path, _)| path).collect();
        assert_eq!(early, ["kernel/domainname", "kernel/sem"]);
        let unknown = plan(with_sysctl("vm.swappiness", "1")).unwrap_err();
        assert_eq!(unknown.field(), "config.linux.sysctls");
    }

    #[test]
    fn without_a_name_the_pod_has_the_nodes() {
        assert_eq!(plan(PodConfig::default()).unwrap().hostname, "");
    }
}
