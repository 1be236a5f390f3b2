//! Names of cgroups. kubelet treats every folder directly below a QoS level (`kubepods`, `burstable`,
//! `besteffort`) whose name contains "pod" as a pod: it kills the processes in it and removes it. "copepod"
//! contains "pod", so nothing of ours may be created there.

use super::{Driver, Error};
use model::{PodConfig, PodId, PodRecord};
use spec::slice;

/// Parent of shims' cgroups: `/copepod/<pod id>`.
pub(crate) const SHIM_ROOT: &str = "/copepod";
/// Parent of pods without a `cgroup_parent`: `/copepod-pods/<pod id>`. Separate from the shims, so that limits
/// of a pod do not apply to its shim.
pub(crate) const DEFAULT_PARENT: &str = "/copepod-pods";

/// The slice of pods without a `cgroup_parent`, with the driver systemd.
const DEFAULT_SLICE: &str = "/copepod.slice";
/// In a scope, the cgroup of the process that it begins with.
pub(super) const STARTING: &str = "starting";

/// CRI name of the field that a pod's parent comes from.
pub(super) const CGROUP_PARENT: &str = "config.linux.cgroup_parent";

/// Levels below which kubelet looks for pods.
const QOS: [&str; 6] = [
    "kubepods",
    "burstable",
    "besteffort",
    "kubepods.slice",
    "kubepods-burstable.slice",
    "kubepods-besteffort.slice",
];

/// Path of a shim's cgroup.
pub(crate) fn shim_path(pod: &PodId) -> String {
    format!("{SHIM_ROOT}/{pod}")
}

pub(super) fn default_parent(pod: &PodId) -> String {
    format!("{DEFAULT_PARENT}/{pod}")
}

/// The scope of a new pod; empty with the driver cgroupfs.
///
/// # Errors
/// InvalidArgument for a `cgroup_parent` of the other driver's kind, or one that is no cgroup.
pub(super) fn scope(driver: Driver, config: &PodConfig, pod: &PodId) -> Result<String, Error> {
    let given = &config.cgroup_parent;
    let refused = |want: String| Error::from(spec::Error::invalid(CGROUP_PARENT, given, want));
    if driver == Driver::Cgroupfs {
        return match slice::is_slice(given) {
            true => Err(refused(format!(
                "is a systemd slice, and the cgroup driver of copepod is cgroupfs; {ONE_DRIVER}"
            ))),
            false => Ok(String::new()),
        };
    }
    let slice = if given.is_empty() { DEFAULT_SLICE } else { given };
    if !slice::is_slice(slice) {
        return Err(refused(format!(
            "must be a slice, because the cgroup driver of copepod is systemd; {ONE_DRIVER}"
        )));
    }
    let parent = slice::path(slice::last(slice)).map_err(spec::Error::about(CGROUP_PARENT, given))?;
    // By its bare name, or by its path.
    let is_its_path = slice.starts_with('/') && spec::path::clean(slice).as_deref() == Ok(&*parent);
    if !is_its_path && slice.contains('/') {
        return Err(refused(format!("systemd has this slice at {parent}: give that path, or the bare name")));
    }
    let scope = format!("{parent}/copepod-{}.scope", pod.as_str().get(..16).unwrap_or_default());
    check(&scope)?;
    Ok(scope)
}

/// What to do if kubelet has another driver.
const ONE_DRIVER: &str = "kubelet must have the same one (its cgroupDriver, if it does not ask copepod), or change \
                          cgroup_driver in copepod's configuration";

/// Whether this is the path of a scope of ours, which only systemd makes and removes.
pub(super) fn is_scope(path: &str) -> bool {
    let name = slice::last(path);
    name.starts_with("copepod-") && name.ends_with(".scope")
}

/// The parent of a pod's leaf cgroups: its scope, kubelet's cgroup, or the default. Empty for the root, so that appending
/// `/<id>` always gives a leaf's path.
pub(crate) fn pod_parent(pod: &PodRecord) -> Result<String, Error> {
    if !pod.scope.is_empty() {
        return Ok(pod.scope.clone());
    }
    let given = &pod.config.cgroup_parent;
    if given.is_empty() {
        return Ok(default_parent(&pod.id));
    }
    let parent = spec::path::clean(given).map_err(spec::Error::about(CGROUP_PARENT, given))?;
    Ok(if parent == "/" { String::new() } else { parent })
}

/// The cgroup with everything of a pod: the one that kubelet made for it, or else the parent of its leaves. Empty for the
/// root.
pub(crate) fn pod_cgroup(pod: &PodRecord) -> Result<String, Error> {
    match pod.scope.rsplit_once('/') {
        Some((slice, _)) if !pod.config.cgroup_parent.is_empty() => Ok(slice.to_owned()),
        _ => pod_parent(pod),
    }
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
        let mut record = PodRecord::new(pod.clone(), PodConfig::default(), 1);
        assert_eq!(pod_parent(&record).unwrap(), format!("/copepod-pods/{pod}"));
        record.config.cgroup_parent = "/kubepods/burstable/pod123/".into();
        let parent = pod_parent(&record).unwrap();
        assert_eq!(pod_cgroup(&record).unwrap(), parent);
        assert_eq!(leaf_path(&parent, &id), format!("/kubepods/burstable/pod123/{id}"));
        for root in ["/", "//", "/./"] {
            record.config.cgroup_parent = root.into();
            let leaf = leaf_path(&pod_parent(&record).unwrap(), &id);
            assert_eq!(leaf, format!("/{id}"), "{root}");
            check(&leaf).unwrap();
        }
        for bad in ["kubepods", "/kubepods/../x", &format!("/{}", "k".repeat(256))] {
            record.config.cgroup_parent = bad.into();
            assert!(pod_parent(&record).is_err(), "{bad}");
        }
    }

    const SLICE: &str = "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod3d_1.slice";

    fn scope_of(driver: Driver, parent: &str) -> Result<String, String> {
        let pod = PodId::from_random([0xab; 32]);
        let config = PodConfig { cgroup_parent: parent.to_owned(), ..PodConfig::default() };
        scope(driver, &config, &pod).map_err(|error| error.to_string())
    }

    #[test]
    fn a_scope_is_in_the_pods_slice() {
        let ours = "copepod-abababababababab.scope";
        assert_eq!(scope_of(Driver::Systemd, SLICE), Ok(format!("{SLICE}/{ours}")));
        assert_eq!(scope_of(Driver::Systemd, &format!("{SLICE}/")), Ok(format!("{SLICE}/{ours}")));
        assert_eq!(scope_of(Driver::Systemd, ""), Ok(format!("/copepod.slice/{ours}")));
        assert_eq!(scope_of(Driver::Systemd, "system.slice"), Ok(format!("/system.slice/{ours}")));
        assert_eq!(scope_of(Driver::Systemd, "-.slice"), Ok(format!("/{ours}")));
        assert_eq!(
            scope_of(Driver::Systemd, "kubepods-burstable-pod3d_1.slice"),
            Ok(format!("{SLICE}/{ours}"))
        );
        assert!(is_scope(&format!("{SLICE}/{ours}")) && !is_scope(SLICE) && !is_scope("/copepod-pods/x"));
        for none in ["", "/kubepods/burstable/pod1", "/"] {
            assert_eq!(scope_of(Driver::Cgroupfs, none), Ok(String::new()), "{none}");
        }
    }

    #[test]
    fn the_other_drivers_kind_of_parent_is_refused() {
        let refused = |driver, parent: &str| scope_of(driver, parent).unwrap_err();
        for bad in [SLICE, "system.slice"] {
            let text = refused(Driver::Cgroupfs, bad);
            assert!(text.contains("is a systemd slice") && text.contains("cgroup_driver"), "{text}");
        }
        for bad in ["/kubepods/burstable/pod1", "/", "/a.slice/b"] {
            let text = refused(Driver::Systemd, bad);
            assert!(text.contains("must be a slice") && text.contains("cgroup_driver"), "{text}");
        }
        let text = refused(Driver::Systemd, "/x/a-b.slice");
        assert!(text.contains("/a.slice/a-b.slice"), "{text}");
        // kubelet would look for a pod there.
        assert!(refused(Driver::Systemd, "/kubepods.slice").contains("kubelet takes for a pod's"));
        assert!(refused(Driver::Systemd, "/a--b.slice").contains("single dashes"));
    }

    /// What a pod was created with decides, not the driver that is configured now.
    #[test]
    fn a_pod_stays_in_its_scope() {
        let pod = PodId::from_random([0xab; 32]);
        let config = PodConfig { cgroup_parent: SLICE.to_owned(), ..PodConfig::default() };
        let mut record = PodRecord { scope: format!("{SLICE}/x.scope"), ..PodRecord::new(pod, config, 1) };
        assert_eq!(pod_parent(&record).unwrap(), format!("{SLICE}/x.scope"));
        assert_eq!(pod_cgroup(&record).unwrap(), SLICE);
        record.config.cgroup_parent.clear();
        record.scope = "/copepod.slice/x.scope".to_owned();
        assert_eq!(pod_cgroup(&record).unwrap(), record.scope);
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
