//! Computes pause's plan, and checks which kernel parameters a pod may set.

use crate::resources::Write;
use crate::{Error, refuse};
use model::{NamespaceMode, PodConfig, PodRecord, User};
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
/// pod alone. A kernel without such a parameter (no IPv4, too old) runs pods all the same.
const NETWORK_DEFAULTS: [(&str, &str); 2] =
    [("net/ipv4/ip_unprivileged_port_start", "0"), ("net/ipv4/ping_group_range", "0 2147483647")];
/// Memory limit of pause in bytes. It uses some 50 KiB; the rest is for what the kernel charges at its start.
const PAUSE_MEMORY: u64 = 8 << 20;
/// Linux's HOST_NAME_MAX.
const MAX_HOSTNAME: usize = 64;
/// Most kernel parameters of a pod, and the longest value: /proc/sys accepts one page.
const MAX_SYSCTLS: usize = 256;
const MAX_VALUE: usize = 4095;

/// The input of [`pause`].
#[derive(Debug, Clone)]
pub struct PauseInput<'a> {
    /// The sandbox's record.
    pub pod: &'a PodRecord,
    /// The cgroup of pause.
    pub cgroup: CgroupPlan,
    /// The seccomp filter; ignored if the sandbox is privileged.
    pub seccomp: Option<SeccompProgram>,
}

/// Computes pause's plan; the error names the field that is refused.
pub fn pause(input: PauseInput<'_>) -> Result<PausePlan, Error> {
    let PauseInput { pod, cgroup, seccomp } = input;
    let config = &pod.config;
    let asked = &config.security;
    refuse::pod(config)?;
    let own = |name: &str, mode: NamespaceMode| match mode {
        NamespaceMode::Pod => Ok(true),
        NamespaceMode::Node => Ok(false),
        other => {
            let field = format!("linux.security_context.namespace_options.{name}");
            Err(Error::invalid(field, format!("{other:?}"), "POD or NODE"))
        }
    };
    let network = own("network", asked.namespaces.network)?;
    let ipc = own("ipc", asked.namespaces.ipc)?;
    let pid = match asked.namespaces.pid {
        NamespaceMode::Pod | NamespaceMode::Container => true,
        NamespaceMode::Node => false,
        NamespaceMode::Target => {
            let field = "linux.security_context.namespace_options.pid";
            return Err(Error::invalid(field, "TARGET", "POD, CONTAINER or NODE for a sandbox"));
        }
    };
    let user = match (asked.run_as_user, asked.run_as_group) {
        (None, Some(group)) => {
            let field = "linux.security_context.run_as_group";
            return Err(Error::invalid(field, group.to_string(), "run_as_user must be set too"));
        }
        (None, None) => User { uid: PAUSE_ID, gid: PAUSE_ID, groups: asked.supplemental_groups.clone() },
        (Some(uid), group) => {
            User { uid, gid: group.unwrap_or(0), groups: asked.supplemental_groups.clone() }
        }
    };
    Ok(PausePlan {
        network,
        ipc,
        uts: network,
        pid,
        hostname: if network { hostname(config)? } else { String::new() },
        // Network sysctls in the request are set once the interfaces exist: [`network_sysctls`].
        sysctls: sysctls(config)?.into_iter().filter(|(name, _)| !of_network(name)).collect(),
        default_sysctls: {
            let defaults = NETWORK_DEFAULTS.into_iter().filter(|_| network);
            defaults.map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
        },
        user,
        seccomp: if asked.privileged { None } else { seccomp },
        oom_score_adj: PAUSE_OOM_SCORE_ADJ,
        cgroup,
        shm_size: SHM_SIZE,
    })
}

/// v1 limits of pause's own cgroup: one process of some KiB, so that nothing else can run there.
pub fn pause_limits() -> Vec<Write> {
    let write = |controller: &str, file: &str, value: u64| Write {
        controller: controller.to_owned(),
        file: file.to_owned(),
        value: value.to_string(),
        field: "the sandbox's own process",
        optional: true,
    };
    vec![write("pids", "pids.max", 1), write("memory", "memory.limit_in_bytes", PAUSE_MEMORY)]
}

fn hostname(config: &PodConfig) -> Result<String, Error> {
    let name = &config.hostname;
    let fits = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '.' || c == '_';
    if name.len() > MAX_HOSTNAME || !name.chars().all(fits) {
        let want = "at most 64 letters, digits, '-', '_' and '.'";
        return Err(Error::invalid("hostname", name, want));
    }
    // An empty name leaves the new namespace with the node's name, as with other runtimes.
    Ok(name.clone())
}

/// The validated sysctls of a pod's network namespace, to be set once its interfaces exist.
pub fn network_sysctls(config: &PodConfig) -> Result<Vec<(String, String)>, Error> {
    Ok(sysctls(config)?.into_iter().filter(|(name, _)| of_network(name)).collect())
}

fn of_network(path: &str) -> bool {
    path.starts_with("net/")
}

/// The pod's sysctls as `(path below /proc/sys, value)`. Allowed are those of namespaces that the pod does
/// not share with the host: `net.` with its own network, System V and POSIX queues with its own IPC,
/// `kernel.domainname` with its own UTS. All others would change the node.
fn sysctls(config: &PodConfig) -> Result<Vec<(String, String)>, Error> {
    let namespaces = &config.security.namespaces;
    let (network, ipc) = (namespaces.network == NamespaceMode::Pod, namespaces.ipc == NamespaceMode::Pod);
    if config.sysctls.len() > MAX_SYSCTLS {
        return Err(Error::invalid("linux.sysctls", config.sysctls.len().to_string(), "at most 256"));
    }
    let mut checked = Vec::with_capacity(config.sysctls.len());
    for (name, value) in &config.sysctls {
        let field = format!("linux.sysctls[{:.100}]", name);
        let parts = components(name).ok_or_else(|| {
            Error::invalid("linux.sysctls", name, "a name such as net.ipv4.ip_local_port_range")
        })?;
        let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
        let allowed = match parts.as_slice() {
            ["net", _, ..] => network,
            ["kernel", "sem" | "shmall" | "shmmax" | "shmmni" | "shm_rmid_forced"] => ipc,
            ["kernel", "msgmax" | "msgmnb" | "msgmni"] | ["fs", "mqueue", _] => ipc,
            ["kernel", "domainname"] => network,
            _ => {
                let want = "a namespaced one: net.*, kernel.shm*, kernel.msg*, kernel.sem, fs.mqueue.*";
                return Err(Error::invalid("linux.sysctls", name, want));
            }
        };
        if !allowed {
            let want = "a sysctl of a namespace that the pod does not share with the host";
            return Err(Error::invalid("linux.sysctls", name, want));
        }
        if value.len() > MAX_VALUE || value.contains(['\0', '\n']) {
            return Err(Error::invalid(field, value, "one line of at most 4095 bytes"));
        }
        checked.push((parts.join("/"), value.clone()));
    }
    Ok(checked)
}

/// Components of a sysctl's name, as in sysctl(8): whichever of '.' and '/' comes first is the separator, and
/// the other one is part of a component (`net/ipv4/conf/eth0.1/forwarding`,
/// `net.ipv4.conf.eth0/1.forwarding`).
fn components(name: &str) -> Option<Vec<String>> {
    if name.len() > 255 {
        return None;
    }
    let separator = name.chars().find(|c| matches!(c, '.' | '/'))?;
    let other = if separator == '.' { '/' } else { '.' };
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.' | ':' | '@');
    let mut parts = Vec::new();
    for part in name.split(separator) {
        // A '/' inside a component stands for a '.', and a '.' stays.
        let part = if other == '/' { part.replace('/', ".") } else { part.to_owned() };
        if part.is_empty() || part.chars().all(|c| c == '.') || !part.chars().all(fits) {
            return None;
        }
        parts.push(part);
    }
    Some(parts)
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::PodId;
    use proptest::prelude::*;

    fn plan(config: PodConfig) -> Result<PausePlan, Error> {
        let pod = PodRecord::new(PodId::from_random([3; 32]), config, 1);
        let seccomp = Some(SeccompProgram { instructions: vec![1] });
        pause(PauseInput { pod: &pod, cgroup: CgroupPlan::default(), seccomp })
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
        assert!(plan(grouped.clone()).unwrap_err().field().ends_with("run_as_group"));
        grouped.security.run_as_user = Some(3);
        assert_eq!(plan(grouped).unwrap().user, User { uid: 3, gid: 4, groups: vec![] });
        let mut wrong = named();
        wrong.security.namespaces.ipc = NamespaceMode::Container;
        assert!(plan(wrong).is_err());
    }

    #[test]
    fn hostnames() {
        assert_eq!(plan(PodConfig::default()).unwrap().hostname, "");
        for bad in ["a b", "a\n", &"x".repeat(65)] {
            assert_eq!(plan(PodConfig { hostname: bad.into(), ..named() }).unwrap_err().field(), "hostname");
        }
    }

    #[test]
    fn only_namespaced_sysctls() {
        let path = |name: &str| sysctls(&with_sysctl(name, "1")).map(|list| list[0].0.clone());
        assert_eq!(path("net.ipv4.ip_forward").unwrap(), "net/ipv4/ip_forward");
        assert_eq!(path("net/ipv4/conf/eth0.1/forwarding").unwrap(), "net/ipv4/conf/eth0.1/forwarding");
        assert_eq!(path("net.ipv4.conf.eth0/1.forwarding").unwrap(), "net/ipv4/conf/eth0.1/forwarding");
        assert_eq!(path("kernel.shm_rmid_forced").unwrap(), "kernel/shm_rmid_forced");
        assert_eq!(path("fs.mqueue.msg_max").unwrap(), "fs/mqueue/msg_max");
        for bad in [
            "kernel.core_pattern",
            "vm.swappiness",
            "kernel",
            "net",
            "net..x",
            "net.../../kernel.x",
            "net/../kernel/core_pattern",
            "kernel.shm_rmid_forced+x",
            "kernel.sem/../core_pattern",
            "fs.mqueue",
            "kernel.hostname",
            "",
        ] {
            assert!(path(bad).is_err(), "{bad}");
        }
        assert!(sysctls(&with_sysctl("net.ipv4.ip_forward", "1\nx")).is_err());
        let mut host = with_sysctl("net.ipv4.ip_forward", "1");
        host.security.namespaces.network = NamespaceMode::Node;
        assert!(sysctls(&host).is_err());
        let mut host = with_sysctl("kernel.sem", "1");
        host.security.namespaces.ipc = NamespaceMode::Node;
        assert!(sysctls(&host).is_err());
    }

    proptest! {
        #[test]
        fn paths_never_climb(name in "[a-z./]{0,30}") {
            for prefix in ["net.", "net/"] {
                if let Ok(list) = sysctls(&with_sysctl(&format!("{prefix}{name}"), "1")) {
                    prop_assert!(list[0].0.starts_with("net/"));
                    prop_assert!(!list[0].0.split('/').any(|part| part.is_empty() || part == ".." || part == "."));
                }
            }
        }
    }
}
