//! The pod's files that its containers see below /etc. Blocking.

use crate::error::Error;
use model::{Dns, NamespaceMode, PodRecord, SelinuxLabels};
use spec::PodFiles;
use state::{Layout, file};
use std::io::Read as _;
use std::path::Path;

/// Maximum number of bytes that are copied of a host file.
const MAX_BYTES: u64 = 1 << 20;

/// Writes hostname, resolv.conf and hosts of a pod, with the label of the pod's files. Not synced: the pod does not survive
/// a power loss either.
pub(crate) fn write(layout: &Layout, pod: &PodRecord, node_name: &str) -> Result<(), Error> {
    let name = hostname(pod, node_name);
    file::replace(&layout.pod_hostname(&pod.id), format!("{name}\n").as_bytes(), 0o644, false)?;
    file::replace(&layout.pod_resolv_conf(&pod.id), &resolv_conf(pod)?, 0o644, false)?;
    file::replace(&layout.pod_hosts(&pod.id), &hosts(pod, name)?, 0o644, false)?;
    let Some(SelinuxLabels { file: label, .. }) = &pod.selinux else { return Ok(()) };
    for path in [layout.pod_hostname(&pod.id), layout.pod_resolv_conf(&pod.id), layout.pod_hosts(&pod.id)] {
        // On a file system without labels the policy chooses them.
        let set = sys::selinux::set_path(&path, label);
        set.map_err(|error| Error::of(format!("SELinux label {label} of {}", path.display()), error))?;
    }
    Ok(())
}

/// Paths of the files that [`write`] creates. kubelet mounts its own hosts over ours.
pub(crate) fn of(layout: &Layout, pod: &PodRecord) -> PodFiles {
    let text = |path: std::path::PathBuf| path.to_string_lossy().into_owned();
    PodFiles {
        resolv_conf: text(layout.pod_resolv_conf(&pod.id)),
        hostname: text(layout.pod_hostname(&pod.id)),
        hosts: Some(text(layout.pod_hosts(&pod.id))),
    }
}

fn hostname<'a>(pod: &'a PodRecord, node_name: &'a str) -> &'a str {
    if pod.config.hostname.is_empty() { node_name } else { &pod.config.hostname }
}

/// From the request if it sets anything, otherwise a copy of the host's.
fn resolv_conf(pod: &PodRecord) -> Result<Vec<u8>, Error> {
    let asked = pod.config.dns.as_ref().filter(|dns| **dns != Dns::default());
    let Some(dns) = asked else { return copy(Path::new("/etc/resolv.conf")) };
    let mut text = String::new();
    if !dns.searches.is_empty() {
        text.push_str(&format!("search {}\n", dns.searches.join(" ")));
    }
    for server in &dns.servers {
        text.push_str(&format!("nameserver {server}\n"));
    }
    if !dns.options.is_empty() {
        text.push_str(&format!("options {}\n", dns.options.join(" ")));
    }
    Ok(text.into_bytes())
}

/// With the host network a copy of the host's; otherwise one that resolves the pod's own name.
fn hosts(pod: &PodRecord, name: &str) -> Result<Vec<u8>, Error> {
    if pod.config.security.namespaces.network == NamespaceMode::Node {
        return copy(Path::new("/etc/hosts"));
    }
    let mut text = String::from("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n");
    for ip in &pod.ips {
        text.push_str(&format!("{ip}\t{name}\n"));
    }
    Ok(text.into_bytes())
}

/// Reads a host file; a missing one counts as empty.
fn copy(path: &Path) -> Result<Vec<u8>, Error> {
    let mut bytes = Vec::new();
    let read = std::fs::File::open(path).and_then(|file| file.take(MAX_BYTES).read_to_end(&mut bytes));
    match read {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(Error::of(format!("copy {}", path.display()), error))
        }
        _ => Ok(bytes),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::{Dns, PodConfig, PodId, PodPhase};

    #[test]
    fn files_have_the_requested_content() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::new(dir.path().join("root"), dir.path().join("run")).unwrap();
        layout.create().unwrap();
        let dns = Dns {
            servers: vec!["10.0.0.10".into(), "10.0.0.11".into()],
            searches: vec!["a.local".into(), "b.local".into()],
            options: vec!["ndots:5".into()],
        };
        let pod = PodRecord {
            phase: PodPhase::Ready,
            ips: vec!["10.1.0.7".parse().unwrap()],
            ..PodRecord::new(
                PodId::from_random([1; 32]),
                PodConfig { dns: Some(dns), hostname: "web-0".into(), ..PodConfig::default() },
                1,
            )
        };
        file::create_dir(&layout.pod_dir(&pod.id)).unwrap();
        write(&layout, &pod, "node").unwrap();
        let read = |path| std::fs::read_to_string(path).unwrap();
        let files = of(&layout, &pod);
        assert_eq!(read(files.hostname), "web-0\n");
        assert_eq!(
            read(files.resolv_conf),
            "search a.local b.local\nnameserver 10.0.0.10\nnameserver 10.0.0.11\noptions ndots:5\n"
        );
        let hosts = read(files.hosts.unwrap());
        assert!(hosts.contains("127.0.0.1\tlocalhost\n") && hosts.contains("10.1.0.7\tweb-0\n"), "{hosts}");
    }
}
