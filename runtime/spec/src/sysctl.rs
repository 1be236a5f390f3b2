//! Kernel parameters that a pod may set: those of which a network, IPC or UTS namespace has its own value.

/// Longest name in bytes.
const MAX_NAME: usize = 255;

/// The namespace that has its own value of a parameter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Namespace {
    /// `net.*`.
    Network,
    /// System V IPC and POSIX message queues.
    Ipc,
    /// `kernel.domainname`. (`kernel.hostname` has a field of its own.)
    Uts,
}

/// A parameter of a namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sysctl {
    /// The name in sysctl(8)'s spelling with dots: `net.ipv4.conf.eth0/100.rp_filter`.
    pub name: String,
    /// Path below /proc/sys: `net/ipv4/conf/eth0.100/rp_filter`.
    pub path: String,
    /// The namespace.
    pub namespace: Namespace,
}

/// Parses a name in one of the two spellings of sysctl(8): whichever of '.' and '/' comes first is the separator, and
/// the other one stands for a '.' in a component (`net/ipv4/conf/eth0.1/forwarding`,
/// `net.ipv4.conf.eth0/1.forwarding`).
///
/// # Errors
/// What a valid name is. A parameter without a namespace is refused, because it would change the host.
pub fn parse(name: &str) -> Result<Sysctl, &'static str> {
    let parts =
        components(name).ok_or("must be the name of a kernel parameter, for example net.ipv4.tcp_rmem")?;
    let words: Vec<&str> = parts.iter().map(String::as_str).collect();
    let namespace = match words.as_slice() {
        ["net", _, ..] => Namespace::Network,
        ["fs", "mqueue", _]
        | ["kernel", "msgmax" | "msgmnb" | "msgmni" | "sem"]
        | ["kernel", "shmall" | "shmmax" | "shmmni" | "shm_rmid_forced"] => Namespace::Ipc,
        ["kernel", "domainname"] => Namespace::Uts,
        _ => {
            return Err("belongs to the host: only net.*, fs.mqueue.*, System V IPC parameters and \
                        kernel.domainname can be set per pod");
        }
    };
    let dotted: Vec<String> = parts.iter().map(|part| part.replace('.', "/")).collect();
    Ok(Sysctl { name: dotted.join("."), path: parts.join("/"), namespace })
}

/// The components of a name as they are in /proc/sys; `None` if one of them cannot be a file name there.
fn components(name: &str) -> Option<Vec<String>> {
    if name.len() > MAX_NAME {
        return None;
    }
    let separator = name.chars().find(|c| matches!(c, '.' | '/'))?;
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.' | ':' | '@');
    let mut parts = Vec::new();
    for part in name.split(separator) {
        let part = if separator == '.' { part.replace('/', ".") } else { part.to_owned() };
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
    use proptest::prelude::*;

    #[test]
    fn only_parameters_of_namespaces() {
        let path = |name: &str| parse(name).map(|sysctl| (sysctl.path, sysctl.namespace));
        for (name, path_of, namespace) in [
            ("net.ipv4.ip_forward", "net/ipv4/ip_forward", Namespace::Network),
            ("net/ipv4/conf/eth0.1/forwarding", "net/ipv4/conf/eth0.1/forwarding", Namespace::Network),
            ("net.ipv4.conf.eth0/1.forwarding", "net/ipv4/conf/eth0.1/forwarding", Namespace::Network),
            ("net.ipv4.conf.a//b.forwarding", "net/ipv4/conf/a..b/forwarding", Namespace::Network),
            ("kernel.shm_rmid_forced", "kernel/shm_rmid_forced", Namespace::Ipc),
            ("kernel/sem", "kernel/sem", Namespace::Ipc),
            ("fs.mqueue.msg_max", "fs/mqueue/msg_max", Namespace::Ipc),
            ("kernel.domainname", "kernel/domainname", Namespace::Uts),
        ] {
            assert_eq!(path(name), Ok((path_of.to_owned(), namespace)), "{name}");
        }
        for bad in [
            "kernel.core_pattern",
            "vm.swappiness",
            "kernel",
            "net",
            "net..x",
            "net.//.x",
            "net.a b",
            "net.../../kernel.x",
            "net/../kernel/core_pattern",
            "kernel.shm_rmid_forced+x",
            "kernel.sem/../core_pattern",
            "fs.mqueue",
            "kernel.hostname",
            "",
            &format!("net.{}", "x".repeat(MAX_NAME)),
        ] {
            assert!(path(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn both_spellings_have_one_name() {
        for spelling in ["net/ipv4/conf/eth0.100/rp_filter", "net.ipv4.conf.eth0/100.rp_filter"] {
            assert_eq!(parse(spelling).unwrap().name, "net.ipv4.conf.eth0/100.rp_filter");
        }
    }

    proptest! {
        #[test]
        fn paths_never_climb_and_names_are_stable(name in "[a-z./]{0,30}") {
            for prefix in ["net.", "net/"] {
                if let Ok(sysctl) = parse(&format!("{prefix}{name}")) {
                    prop_assert!(sysctl.path.starts_with("net/"));
                    prop_assert!(!sysctl.path.split('/').any(|part| part.is_empty() || part == ".." || part == "."));
                    prop_assert_eq!(parse(&sysctl.name).unwrap(), sysctl);
                }
            }
        }
    }
}
