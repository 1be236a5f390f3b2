//! Cgroups of a test.

use std::fs;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use wire::{CgroupMember, CgroupPlan};

/// A test's cgroups in every v1 hierarchy, removed at the end.
pub(crate) struct Cgroups {
    name: String,
}

impl Cgroups {
    fn hierarchies() -> Vec<String> {
        let text = fs::read_to_string("/proc/self/cgroup").unwrap();
        let names = text.lines().filter_map(|line| line.split(':').nth(1)).filter(|name| !name.is_empty());
        names.map(|name| name.trim_start_matches("name=").to_owned()).collect()
    }

    pub(crate) fn new(name: &str) -> Self {
        Self { name: format!("copepod-test-{}-{name}", std::process::id()) }
    }

    pub(super) fn path(&self, hierarchy: &str, leaf: &str) -> PathBuf {
        Path::new("/sys/fs/cgroup").join(hierarchy).join(&self.name).join(leaf)
    }

    /// Makes a leaf; returns its plan and open folders.
    pub(crate) fn leaf(&self, leaf: &str) -> (CgroupPlan, Vec<OwnedFd>) {
        let mut plan = CgroupPlan::default();
        let mut folders = Vec::new();
        for hierarchy in Self::hierarchies() {
            let path = self.path(&hierarchy, leaf);
            let parent = path.parent().unwrap();
            for folder in [parent, &path] {
                fs::create_dir_all(folder).unwrap();
                if hierarchy == "cpuset" {
                    for file in ["cpuset.cpus", "cpuset.mems"] {
                        let above = fs::read_to_string(folder.parent().unwrap().join(file)).unwrap();
                        fs::OpenOptions::new()
                            .write(true)
                            .open(folder.join(file))
                            .map(|mut f| {
                                use std::io::Write as _;
                                f.write_all(above.trim().as_bytes()).unwrap();
                            })
                            .unwrap();
                    }
                }
            }
            folders.push(fs::File::open(&path).unwrap().into());
            plan.members.push(CgroupMember { hierarchy, path: path.to_str().unwrap().to_owned() });
        }
        (plan, folders)
    }

    pub(crate) fn pids(&self, leaf: &str) -> Vec<u32> {
        let text = fs::read_to_string(self.path("pids", leaf).join("cgroup.procs")).unwrap_or_default();
        text.lines().filter_map(|line| line.parse().ok()).collect()
    }
}

impl Drop for Cgroups {
    fn drop(&mut self) {
        for hierarchy in Self::hierarchies() {
            let top = self.path(&hierarchy, "");
            for entry in fs::read_dir(&top).into_iter().flatten().flatten() {
                if entry.file_type().is_ok_and(|t| t.is_dir()) {
                    drop(fs::remove_dir(entry.path()));
                }
            }
            drop(fs::remove_dir(top));
        }
    }
}
