//! Finds the host's hierarchies in mountinfo.

use super::Error;
use spec::resources::Version;
use std::path::{Path, PathBuf};

/// Controllers of v1 that are required: without them a container could not be confined or killed completely.
const NEEDED: [&str; 5] = ["devices", "freezer", "memory", "cpu", "cpuacct"];
/// Those of v2. Freezing and killing are part of its core, and devices are filtered by a program.
const NEEDED_UNIFIED: [&str; 3] = ["cpu", "memory", "pids"];
/// What v2 has in every cgroup, under the names of v1's controllers where there is one.
const CORE: [&str; 4] = ["cgroup", "cpuacct", "devices", "freezer"];

/// One v1 hierarchy: one or more controllers mounted together, or a named one without controllers. Or the hierarchy of v2.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Hierarchy {
    name: String,
    controllers: Vec<String>,
    mount: PathBuf,
}

impl Hierarchy {
    /// Last part of its mount point: `memory`, `cpu,cpuacct`, `systemd`. Empty for v2's.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Whether this controller is in it.
    pub(crate) fn has(&self, controller: &str) -> bool {
        self.controllers.iter().any(|own| own == controller)
    }

    /// Whether this is a controller in it that can be enabled, and not a part of v2's core.
    pub(crate) fn is_kernels(&self, controller: &str) -> bool {
        self.has(controller) && !CORE.contains(&controller)
    }

    /// Whether it is a named hierarchy without controllers.
    pub(crate) fn is_named(&self) -> bool {
        self.controllers.is_empty()
    }

    /// Where it is mounted.
    pub(crate) fn mount(&self) -> &Path {
        &self.mount
    }

    /// Folder of a cgroup, by clean absolute path.
    pub(crate) fn folder(&self, path: &str) -> PathBuf {
        self.mount.join(path.trim_start_matches('/'))
    }
}

/// The hierarchies in a mountinfo text that limit resources, by name. Those of v1 if it has all that are needed, which is
/// so on hybrid hosts, or else that of v2. Of several mounts of one hierarchy the first one whose root is `/` is used; bind
/// mounts of a part of it have another root. `controllers` reads the file cgroup.controllers in a folder.
pub(super) fn hierarchies(
    mountinfo: &str,
    controllers: impl FnOnce(&Path) -> Result<String, Error>,
) -> Result<(Version, Vec<Hierarchy>), Error> {
    let missing = match v1(mountinfo) {
        Ok(found) => return Ok((Version::V1, found)),
        Err(missing) => missing,
    };
    let mounts = sys::mountinfo::mounts(mountinfo);
    let Some(mount) = mounts.into_iter().find(|mount| mount.kind == "cgroup2" && mount.root == "/") else {
        let missing = format!(
            "the v1 controllers {missing} are not mounted, and neither is cgroup v2 (looked for in \
            /proc/self/mountinfo)"
        );
        return Err(Error::Host { missing });
    };
    let mount = mount.point();
    let listed = controllers(&mount)?;
    let listed = listed.split_ascii_whitespace();
    let unified = Hierarchy {
        name: String::new(),
        controllers: listed.chain(CORE).map(str::to_owned).collect(),
        mount,
    };
    let lacks: Vec<&str> = NEEDED_UNIFIED.into_iter().filter(|wanted| !unified.has(wanted)).collect();
    if lacks.is_empty() {
        return Ok((Version::V2, vec![unified]));
    }
    let lacks = lacks.join(", ");
    let missing = format!(
        "cgroup v2 at {} has no controllers {lacks} (cgroup.controllers): they are disabled on the kernel's command line \
         (cgroup_disable=), not delegated to this machine's root, or mounted as v1, of which {missing} are missing",
        unified.mount.display()
    );
    Err(Error::Host { missing })
}

/// The hierarchies of v1, or which controllers are missing.
fn v1(mountinfo: &str) -> Result<Vec<Hierarchy>, String> {
    /// Mount options of a v1 superblock that are not controllers.
    const OPTIONS: [&str; 7] = ["rw", "ro", "none", "xattr", "clone_children", "noprefix", "cpuset_v2_mode"];
    let mut found: Vec<Hierarchy> = Vec::new();
    // Values of the option `name` of the named hierarchies in `found`. The mount points may have other names.
    let mut names: Vec<&str> = Vec::new();
    for mount in sys::mountinfo::mounts(mountinfo) {
        if mount.kind != "cgroup" || mount.root != "/" {
            continue;
        }
        let options = mount.options;
        let mut controllers = Vec::new();
        for option in options.split(',') {
            let is_controller = !OPTIONS.contains(&option) && !option.contains('=');
            if is_controller && !option.is_empty() {
                controllers.push(option.to_owned());
            }
        }
        let mount = mount.point();
        let name = mount.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let named = options.split(',').find_map(|option| option.strip_prefix("name="));
        let is_known = match named {
            Some(named) => names.contains(&named),
            None => found.iter().any(|have| have.controllers == controllers),
        };
        if !is_known {
            names.extend(named);
            found.push(Hierarchy { name, controllers, mount });
        }
    }
    let missing: Vec<&str> =
        NEEDED.into_iter().filter(|wanted| !found.iter().any(|have| have.has(wanted))).collect();
    if !missing.is_empty() {
        return Err(missing.join(", "));
    }
    found.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID: &str = "\
22 27 0:21 / /proc rw,relatime - proc proc rw
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:9 - cgroup cgroup rw,cpu,cpuacct
34 31 0:31 / /sys/fs/cgroup/cpuset rw - cgroup cgroup rw,cpuset
35 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory
36 31 0:33 / /sys/fs/cgroup/devices rw - cgroup cgroup rw,devices
37 31 0:34 / /sys/fs/cgroup/freezer rw - cgroup cgroup rw,freezer
40 31 0:37 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,release_agent=/usr/lib/agent,name=systemd
41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw,nsdelegate
50 31 0:32 /kubepods /var/lib/x/memory rw - cgroup cgroup rw,memory
51 31 0:32 / /var/lib/my\\040place/memory rw - cgroup cgroup rw,memory
";

    #[test]
    fn hybrid_with_colocated_controllers() {
        let (version, found) = hierarchies(HYBRID, unread).unwrap();
        assert_eq!(version, Version::V1);
        let names: Vec<&str> = found.iter().map(Hierarchy::name).collect();
        assert_eq!(names, ["cpu,cpuacct", "cpuset", "devices", "freezer", "memory", "systemd"]);
        assert!(found[0].has("cpu") && found[0].has("cpuacct") && !found[0].is_named());
        assert!(found[5].is_named());
        assert_eq!(found[4].folder("/a/b"), PathBuf::from("/sys/fs/cgroup/memory/a/b"));
    }

    /// The mount point of a named hierarchy need not have its name.
    #[test]
    fn a_named_hierarchy_is_known_by_its_option() {
        let other = "\
60 31 0:40 / /sys/fs/cgroup/init rw - cgroup cgroup rw,xattr,name=openrc
61 31 0:40 / /mnt/init rw - cgroup cgroup rw,xattr,name=openrc
62 31 0:41 / /mnt/openrc rw - cgroup cgroup rw,xattr,name=init
";
        let (_, found) = hierarchies(&format!("{HYBRID}{other}"), unread).unwrap();
        let named = found.iter().filter(|hierarchy| hierarchy.is_named());
        let mounts: Vec<&Path> = named.map(Hierarchy::mount).collect();
        assert_eq!(mounts, ["/sys/fs/cgroup/init", "/mnt/openrc", "/sys/fs/cgroup/systemd"].map(Path::new));
    }

    const UNIFIED: &str = "30 23 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw,nsdelegate\n";

    #[test]
    fn unified() {
        let read = |folder: &Path| {
            assert_eq!(folder, Path::new("/sys/fs/cgroup"));
            Ok("cpuset cpu io memory pids".to_owned())
        };
        let (version, found) = hierarchies(UNIFIED, read).unwrap();
        let [only] = found.as_slice() else { panic!("{found:?}") };
        assert_eq!((version, only.name()), (Version::V2, ""));
        assert!(!only.is_named() && !only.has("hugetlb"));
        for controller in ["cpu", "io", "memory", "pids", "freezer", "devices"] {
            assert!(only.has(controller), "{controller}");
        }
        assert!(only.is_kernels("io") && !only.is_kernels("cgroup"));
    }

    #[test]
    fn errors_name_what_is_missing() {
        let read = |_: &Path| Ok("cpuset cpu pids".to_owned());
        let error = hierarchies(UNIFIED, read).unwrap_err().to_string();
        assert!(error.contains("no controllers memory") && error.contains("devices"), "{error}");
        let part = HYBRID.replace("rw,devices", "rw,blkio").replace("cgroup2", "other");
        let error = hierarchies(&part, unread).unwrap_err().to_string();
        assert!(error.contains("devices") && !error.contains("memory"), "{error}");
        assert!(hierarchies("", unread).is_err());
        assert!(hierarchies("nonsense\n - \n a b c - cgroup", unread).is_err());
    }

    fn unread(_: &Path) -> Result<String, Error> {
        panic!("v1 needs no list of controllers")
    }
}
