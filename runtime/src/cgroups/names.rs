//! Names of cgroups. kubelet treats every folder directly below a QoS level (`kubepods`, `burstable`,
//! `besteffort`) whose name contains "pod" as a pod: it kills the processes in it and removes it. "copepod"
//! contains "pod", so nothing of ours may be created there.

use super::Error;
use model::{PodConfig, PodId};

/// Parent of shims' cgroups: `/copepod/<pod id>`.
pub(crate) const SHIM_ROOT: &str = "/copepod";
/// Parent of pods without a `cgroup_parent`: `/copepod-pods/<pod id>`. Separate from the shims, so that limits
/// of a pod do not apply to its shim.
pub(crate) const DEFAULT_PARENT: &str = "/copepod-pods";

/// CRI name of the field that a pod's parent comes from.
pub(super) const CGROUP_PARENT: &str = "config.linux.cgroup_parent";

/// Levels below which kubelet looks for pods.
const QOS: [&str; 3] = ["kubepods", "burstable", "besteffort"];

/// Path of a shim's cgroup.
pub(crate) fn shim_path(pod: &PodId) -> String {
    format!("{SHIM_ROOT}/{pod}")
}

pub(super) fn default_parent(pod: &PodId) -> String {
    format!("{DEFAULT_PARENT}/{pod}")
}

/// The parent of a pod's leaf cgroups: kubelet's, or the default. Empty for the root, so that appending
/// `/<id>` always gives a leaf's path.
pub(crate) fn pod_parent(config: &PodConfig, pod: &PodId) -> Result<String, Error> {
    if config.cgroup_parent.is_empty() {
        return Ok(default_parent(pod));
    }
    let parent = spec::path::clean(&config.cgroup_parent)
        .map_err(spec::Error::about(CGROUP_PARENT, &config.cgroup_parent))?;
    Ok(if parent == "/" { String::new() } else { parent })
}

/// Path of a leaf: its parent and the container's id, or the sandbox's id for pause.
pub(crate) fn leaf_path(parent: &str, id: &impl std::fmt::Display) -> String {
    format!("{parent}/{id}")
}

/// Refuses paths that are not clean, the root, and folders with our name that kubelet would treat as a pod.
pub(super) fn check(path: &str) -> Result<(), Error> {
    if spec::path::clean(path).as_deref() != Ok(path) || path == "/" {
        return Err(
            spec::Error::invalid("cgroup", path, "must be a clean absolute path below the root").into()
        );
    }
    let mut parts = path.rsplit('/');
    let (last, above) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    if QOS.contains(&above) && last.contains("copepod") {
        return Err(spec::Error::invalid(
            "cgroup",
            path,
            "must not be a path that kubelet takes for a pod's and removes",
        )
        .into());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::ContainerId;

    #[test]
    fn paths() {
        let pod = PodId::from_random([0xab; 32]);
        let id = ContainerId::from_random([1; 32]);
        let mut config = PodConfig::default();
        assert_eq!(pod_parent(&config, &pod).unwrap(), format!("/copepod-pods/{pod}"));
        config.cgroup_parent = "/kubepods/burstable/pod123/".into();
        let parent = pod_parent(&config, &pod).unwrap();
        assert_eq!(leaf_path(&parent, &id), format!("/kubepods/burstable/pod123/{id}"));
        for root in ["/", "//", "/./"] {
            config.cgroup_parent = root.into();
            let leaf = leaf_path(&pod_parent(&config, &pod).unwrap(), &id);
            assert_eq!(leaf, format!("/{id}"), "{root}");
            check(&leaf).unwrap();
        }
        for bad in ["kubepods", "/kubepods/../x", &format!("/{}", "k".repeat(256))] {
            config.cgroup_parent = bad.into();
            assert!(pod_parent(&config, &pod).is_err(), "{bad}");
        }
    }

    #[test]
    fn paths_where_kubelet_looks_for_pods_are_refused() {
        let pod = PodId::from_random([0xab; 32]);
        for ours in [shim_path(&pod), default_parent(&pod)] {
            check(&ours).unwrap();
            assert!(!ours.split('/').any(|part| QOS.contains(&part)), "{ours}");
        }
        for bad in ["/kubepods/copepod", "/kubepods/burstable/copepod-x", "/", "/a/", "a", "/a/../b"] {
            assert!(check(bad).is_err(), "{bad}");
        }
    }
}
