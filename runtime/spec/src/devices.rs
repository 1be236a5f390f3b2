//! Device nodes of a container, and the rules of its device cgroup: written one by one on v1 ([`DeviceRule`] is displayed
//! as such a line), as one program on v2 ([`program()`]).

mod program;
mod v1;

pub use program::{MAX_INSTRUCTIONS, Program, program};

use crate::{Error, path};
use model::Device;
use std::collections::BTreeSet;
use std::fmt;
use wire::DeviceNode;

/// A device node on the host, at or below a path in the request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostDevice {
    /// Path as reached through the request's `host_path`. The caller has followed symlinks to read the facts.
    pub path: String,
    /// Type: 'c' or 'b'.
    pub kind: char,
    /// Major number.
    pub major: u32,
    /// Minor number.
    pub minor: u32,
    /// Permission bits of the mode.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
}

/// One rule of the device controller, displayed in the format of v1's `devices.allow` and `devices.deny`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceRule {
    /// Allows if true, otherwise denies.
    pub allow: bool,
    /// Type: 'a' (all), 'c' or 'b'.
    pub kind: char,
    /// Major number; `None` means any.
    pub major: Option<u32>,
    /// Minor number; `None` means any.
    pub minor: Option<u32>,
    /// Any of `r`, `w` and `m`.
    pub access: String,
}

impl fmt::Display for DeviceRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let number = |n: Option<u32>| n.map_or_else(|| "*".to_owned(), |n| n.to_string());
        match self.kind {
            'a' => f.write_str("a"),
            kind => write!(f, "{kind} {}:{} {}", number(self.major), number(self.minor), self.access),
        }
    }
}

/// Character devices that every container may use: null, zero, full, random, urandom, tty, ptmx, all ptys, and
/// /dev/net/tun. The last has no node in a container: a pod has it as a volume of the host, because Kubernetes has no field
/// for devices. CAP_NET_ADMIN decides what can be done with it. runc and crun allow it too.
const STANDARD: [(u32, Option<u32>); 9] = [
    (1, Some(3)),
    (1, Some(5)),
    (1, Some(7)),
    (1, Some(8)),
    (1, Some(9)),
    (5, Some(0)),
    (5, Some(2)),
    (136, None),
    (10, Some(200)),
];
/// Paths that the container's own /dev provides: a privileged container does not get the host's nodes there. Devices in the
/// request are not checked against these.
const OWN: [&str; 16] = [
    "/dev/null",
    "/dev/zero",
    "/dev/full",
    "/dev/random",
    "/dev/urandom",
    "/dev/tty",
    "/dev/ptmx",
    "/dev/console",
    "/dev/pts",
    "/dev/shm",
    "/dev/mqueue",
    "/dev/fd",
    "/dev/stdin",
    "/dev/stdout",
    "/dev/stderr",
    "/dev/core",
];
/// Maximum number of nodes of a container: with more, the request probably names the wrong folder. A host has some
/// hundreds, one with a storage network some thousands, because each path to each disk is a node. A plan with this
/// many nodes has 2 MiB; the limit for plans is 4 MiB.
pub const MAX_NODES: usize = 16_384;

/// The rules of a container's cgroup in the order of writing: first everything is denied, then devices are
/// allowed. Creating nodes is always allowed (CAP_MKNOD decides), using them is not. A privileged container
/// may use every device.
pub fn rules(devices: &[Device], privileged: bool, found: &[HostDevice]) -> Result<Vec<DeviceRule>, Error> {
    let all = |allow| DeviceRule { allow, kind: 'a', major: None, minor: None, access: "rwm".to_owned() };
    if privileged {
        return Ok(vec![all(true)]);
    }
    let allow = |kind, major, minor, access: &str| DeviceRule {
        allow: true,
        kind,
        major,
        minor,
        access: access.to_owned(),
    };
    let mut rules = vec![all(false), allow('c', None, None, "m"), allow('b', None, None, "m")];
    rules.extend(STANDARD.map(|(major, minor)| allow('c', Some(major), minor, "rwm")));
    for (device, _, node) in requested(devices, found)? {
        rules.push(allow(node.kind, Some(node.major), Some(node.minor), &device.permissions));
    }
    Ok(rules)
}

/// The nodes to create in addition to the standard ones: those in the request, and for a privileged container
/// all of the host's.
pub(crate) fn nodes(
    devices: &[Device],
    privileged: bool,
    found: &[HostDevice],
) -> Result<Vec<DeviceNode>, Error> {
    let mut nodes: Vec<DeviceNode> = Vec::new();
    let mut add = |path: String, host: &HostDevice| {
        let HostDevice { path: _, kind, major, minor, mode, uid, gid } = *host;
        nodes.push(DeviceNode { path, kind, major, minor, mode, uid, gid });
    };
    if privileged {
        let own = |path: &str| OWN.iter().any(|own| path::is_at_or_below(path, own));
        for host in found.iter().filter(|host| path::is_at_or_below(&host.path, "/dev") && !own(&host.path)) {
            add(host.path.clone(), host);
        }
    }
    for (_, path, host) in requested(devices, found)? {
        add(path, host);
    }
    // Of several nodes with the same path the last is used: those in the request come after the host's.
    let mut taken = BTreeSet::new();
    nodes.reverse();
    nodes.retain(|node| taken.insert(node.path.clone()));
    nodes.reverse();
    if nodes.len() > MAX_NODES {
        let want = format!("must be at most {MAX_NODES} nodes");
        return Err(Error::invalid("config.devices", nodes.len().to_string(), want));
    }
    Ok(nodes)
}

/// Whether this is what the device controller can allow: some of `r` (read), `w` (write) and `m` (mknod).
pub fn is_access(permissions: &str) -> bool {
    !permissions.is_empty() && permissions.len() <= 3 && permissions.chars().all(|c| "rwm".contains(c))
}

/// Each requested device with its path in the container and the node found for it.
fn requested<'a>(
    devices: &'a [Device],
    found: &'a [HostDevice],
) -> Result<Vec<(&'a Device, String, &'a HostDevice)>, Error> {
    let mut nodes = Vec::new();
    for (index, device) in devices.iter().enumerate() {
        let field = format!("config.devices[{index}].host_path");
        let host = path::clean(&device.host_path).map_err(Error::about(&field, &device.host_path))?;
        let inside =
            if device.container_path.is_empty() { &device.host_path } else { &device.container_path };
        let inside = path::clean(inside)
            .map_err(Error::about(format!("config.devices[{index}].container_path"), inside))?;
        let before = nodes.len();
        for node in found {
            let Some(rest) = node.path.strip_prefix(host.as_str()) else { continue };
            if rest.is_empty() || rest.starts_with('/') {
                nodes.push((device, format!("{inside}{rest}"), node));
            }
        }
        if nodes.len() == before {
            let want = "must be a device node on the host, or a folder that contains one";
            return Err(Error::invalid(field, &device.host_path, want));
        }
    }
    Ok(nodes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(path: &str, kind: char, major: u32, minor: u32) -> HostDevice {
        HostDevice { path: path.into(), kind, major, minor, mode: 0o660, uid: 0, gid: 6 }
    }

    fn device(host_path: &str, container_path: &str, permissions: &str) -> Device {
        Device {
            host_path: host_path.into(),
            container_path: container_path.into(),
            permissions: permissions.into(),
        }
    }

    #[test]
    fn default_rules_deny_first() {
        let lines: Vec<_> =
            rules(&[], false, &[]).unwrap().iter().map(|r| (r.allow, r.to_string())).collect();
        assert_eq!(lines[0], (false, "a".to_owned()));
        assert_eq!(lines[1], (true, "c *:* m".to_owned()));
        assert!(lines.contains(&(true, "c 136:* rwm".to_owned())));
        assert!(lines.contains(&(true, "c 1:3 rwm".to_owned())));
        assert!(lines.contains(&(true, "c 10:200 rwm".to_owned())));
        assert!(!lines.iter().any(|(_, line)| line.contains("10:229") || line.contains("1:1 ")));
        assert_eq!(rules(&[], true, &[]).unwrap()[0].to_string(), "a");
        assert!(rules(&[], true, &[]).unwrap()[0].allow);
    }

    #[test]
    fn requested_file_and_folder() {
        let found = [
            host("/dev/fuse", 'c', 10, 229),
            host("/dev/snd/a/b", 'c', 116, 2),
            host("/dev/sndx", 'c', 1, 2),
        ];
        // Without a path in the container, it is that on the host.
        let devices = [device("/dev/fuse", "", "rw"), device("/dev/snd", "/audio", "rwm")];
        let made = nodes(&devices, false, &found).unwrap();
        let paths: Vec<_> = made.iter().map(|node| node.path.as_str()).collect();
        assert_eq!(paths, ["/dev/fuse", "/audio/a/b"]);
        let rules = rules(&devices, false, &found).unwrap();
        assert_eq!(rules[rules.len() - 2].to_string(), "c 10:229 rw");
    }

    #[test]
    fn privileged_gets_the_hosts_nodes_except_its_own_paths() {
        let found =
            [host("/dev/null", 'c', 1, 3), host("/dev/vda", 'b', 254, 0), host("/dev/pts/0", 'c', 136, 0)];
        let made = nodes(&[], true, &found).unwrap();
        assert_eq!(made.len(), 1);
        assert_eq!((made[0].path.as_str(), made[0].kind), ("/dev/vda", 'b'));
        assert!(nodes(&[], false, &found).unwrap().is_empty());
    }

    #[test]
    fn refuses() {
        assert!(["r", "rwm", "mrw"].into_iter().all(is_access));
        assert!(!["", "x", "rwx", "rwmr"].into_iter().any(is_access));
        for wrong in [
            device("/dev/none", "/dev/none", "rwm"),
            device("dev/null", "/dev/null", "r"),
            device("/dev/null", "/../null", "r"),
        ] {
            assert!(
                rules(std::slice::from_ref(&wrong), false, &[host("/dev/null", 'c', 1, 3)]).is_err(),
                "{wrong:?}"
            );
        }
    }
}
