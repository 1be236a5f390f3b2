//! The interfaces of pods, read inside their network namespaces.
//!
//! A namespace is entered by its pin, which belongs to the pod until DEL has run. So it is right also if pause is gone,
//! whose pid may by then be that of another process, in another namespace. Nothing of it stays open between two readings:
//! an open socket or /proc file would keep the namespace and its devices after the pod has ended.
//!
//! /proc/net/dev is read instead of asking by netlink (RTM_GETLINK), because a dump of links waits for the RTNL lock, which
//! the kernel holds while interfaces of any pod are created or removed. cAdvisor reads the same file.

use super::parse;
use super::reading::{Interface, Network};
use crate::clock::now;
use std::fs::File;
use std::io::{self, Read as _};
use std::path::Path;

/// The part of the file that is read: about 500 interfaces. A pod with CAP_NET_ADMIN decides how many there are, and the
/// reply to kubelet is limited; interfaces after that are not counted.
const MAX_TEXT: u64 = 64 << 10;

/// The networks of the namespaces pinned at `pins`, in order; `None` for one that has only `lo`. Blocking, in a thread
/// that this starts.
///
/// # Errors
/// The thread cannot be started. The inner errors are those of each namespace.
pub(super) fn read(pins: &[&Path]) -> io::Result<Vec<io::Result<Option<Network>>>> {
    if pins.is_empty() {
        return Ok(Vec::new());
    }
    sys::netns::inside_each(pins, || {
        let timestamp = now();
        let mut text = String::new();
        // The thread's own, not the process's (/proc/net), which is the network namespace of its first thread.
        File::open("/proc/thread-self/net/dev")?.take(MAX_TEXT).read_to_string(&mut text)?;
        Ok(network(timestamp, parse::net_dev(&text)))
    })
}

fn network(timestamp: i64, interfaces: Vec<Interface>) -> Option<Network> {
    if interfaces.is_empty() {
        return None;
    }
    let default = interfaces.iter().position(|it| it.name == ::network::IFNAME).unwrap_or(0);
    Some(Network { timestamp, interfaces, default })
}

#[cfg(test)]
mod tests {
    use super::super::Traffic;
    use super::*;

    fn named(names: &[&str]) -> Option<Network> {
        let none = Traffic::default();
        let interface = |name: &&str| Interface { name: (*name).to_owned(), rx: none, tx: none };
        network(7, names.iter().map(interface).collect())
    }

    #[test]
    fn the_default_interface_is_eth0_or_the_first() {
        let default = |names: &[&str]| named(names).map(|network| network.default);
        assert_eq!(default(&[]), None, "without an interface there is no network");
        assert_eq!(default(&["net1", "eth0", "net2"]), Some(1));
        assert_eq!(default(&["net1", "net2"]), Some(0));
    }

    /// A process in a network namespace of its own, with these interfaces; it ends when its input is closed.
    fn in_own_namespace(interfaces: &str) -> (std::process::Child, std::path::PathBuf) {
        let script = format!("for i in {interfaces}; do ip link add $i type veth; done; echo; read end");
        let mut child = std::process::Command::new("unshare")
            .args(["-n", "sh", "-c", &script])
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        child.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
        let path = format!("/proc/{}/ns/net", child.id());
        (child, path.into())
    }

    /// What is read is the namespace that was entered, not that of the process or the one entered before, and a namespace
    /// that cannot be entered does not hide the others.
    #[test]
    fn privileged_reads_each_namespace() {
        let ((mut one, first), (mut two, second)) = (in_own_namespace("eth0"), in_own_namespace("ethx"));
        let none = Path::new("/proc/self/ns/no-such-namespace");
        let other = Path::new("/proc/self/ns/uts");
        let read = read(&[first.as_path(), none, second.as_path(), other, first.as_path()]).unwrap();
        let names = |read: &io::Result<Option<Network>>| {
            let network = read.as_ref().ok()?.as_ref()?;
            Some(network.interfaces.iter().map(|it| it.name.clone()).collect::<Vec<_>>())
        };
        let names: Vec<_> = read.iter().map(names).collect();
        drop((one.stdin.take(), two.stdin.take()));
        one.wait().unwrap();
        two.wait().unwrap();
        let [eth0, absent, ethx, refused, again] = names.as_slice() else { panic!("{names:?}") };
        assert!(eth0.as_ref().is_some_and(|it| it.contains(&"eth0".to_owned())), "{eth0:?}");
        assert!(ethx.as_ref().is_some_and(|it| it.contains(&"ethx".to_owned()) && it.len() == 2), "{ethx:?}");
        assert_eq!((absent, refused, again), (&None, &None, eth0));
        assert!(matches!(&read[1], Err(error) if error.kind() == io::ErrorKind::NotFound), "{:?}", read[1]);
        assert!(read[3].is_err(), "not a network namespace: {:?}", read[3]);
    }
}
