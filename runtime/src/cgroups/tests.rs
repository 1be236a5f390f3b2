//! Tests with the host's real hierarchies. They need root and cgroup v1, and fail without them.

mod update;

use super::*;
use std::process::{Child, Command};

/// A cgroup of this test, removed in any case.
struct TestCgroup {
    cgroups: Cgroups,
    root: String,
}

impl TestCgroup {
    fn new(name: &str) -> Self {
        let cgroups = Cgroups::detect().expect("cgroup v1 with devices, freezer, memory, cpu, cpuacct");
        Self { cgroups, root: format!("/copepod-test-{}-{name}", std::process::id()) }
    }

    fn leaf(&self, name: &str) -> String {
        format!("{}/pod1/{name}", self.root)
    }

    fn value(&self, controller: &str, path: &str, file: &str) -> String {
        let file = self.cgroups.folder(controller, path).unwrap().join(file);
        std::fs::read_to_string(file).unwrap().trim().to_owned()
    }

    fn pids(&self, path: &str) -> std::collections::BTreeSet<i32> {
        kill::pids(&self.cgroups.hierarchies, path).unwrap()
    }
}

impl Drop for TestCgroup {
    fn drop(&mut self) {
        let ended = self.cgroups.kill_all(&self.root).and_then(|()| self.cgroups.remove(&self.root));
        if !std::thread::panicking() {
            ended.unwrap();
            for hierarchy in &self.cgroups.hierarchies {
                assert!(!hierarchy.folder(&self.root).exists());
            }
        }
    }
}

/// A process that joins every hierarchy, as init does, and forks two more.
fn sleepers(leaf: &Leaf) -> Child {
    let joins: String =
        leaf.plan.members.iter().map(|member| format!("echo 0 > '{}/tasks' && ", member.path)).collect();
    let script = format!("{joins} {{ sleep 300 & setsid sleep 300 & exec sleep 300; }}");
    Command::new("sh").args(["-ec", &script]).spawn().unwrap()
}

fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let end = std::time::Instant::now() + Duration::from_secs(20);
    while !holds() {
        assert!(std::time::Instant::now() < end, "not within 20 s: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn limits(resources: &Resources) -> Limits {
    let devices = spec::devices::rules(&[], false, &[]).unwrap();
    Limits { writes: spec::resources::v1(resources, Mode::Create), devices }
}

#[test]
fn privileged_leaf_limits_kill_and_remove() {
    let cgroup = TestCgroup::new("leaf");
    let path = cgroup.leaf("c1");
    let resources = Resources {
        cpu_shares: 256,
        cpu_period: 50_000,
        cpu_quota: 25_000,
        memory_limit: 32 << 20,
        hugepage_limits: vec![model::HugepageLimit { page_size: "2MB".into(), limit: 0 }],
        ..Resources::default()
    };
    let leaf = cgroup.cgroups.create_leaf(&path, &limits(&resources)).unwrap();
    assert_eq!(leaf.folders.len(), leaf.plan.members.len());
    assert_eq!(leaf.plan.members.len(), cgroup.cgroups.hierarchies.len());
    assert_eq!(cgroup.value("cpu", &path, "cpu.shares"), "256");
    assert_eq!(cgroup.value("cpu", &path, "cpu.cfs_period_us"), "50000");
    assert_eq!(cgroup.value("cpu", &path, "cpu.cfs_quota_us"), "25000");
    assert_eq!(cgroup.value("memory", &path, "memory.limit_in_bytes"), (32 << 20).to_string());
    assert_eq!(cgroup.value("memory", &path, "memory.memsw.limit_in_bytes"), (32 << 20).to_string());
    let devices = cgroup.value("devices", &path, "devices.list");
    assert!(devices.contains("c 1:3 rwm") && !devices.contains("a *:* rwm"), "{devices}");
    if cgroup.cgroups.hierarchies.iter().any(|hierarchy| hierarchy.has("cpuset")) {
        assert!(!cgroup.value("cpuset", &path, "cpuset.cpus").is_empty());
        assert!(!cgroup.value("cpuset", &path, "cpuset.mems").is_empty());
    }
    assert!(cgroup.pids(&path).is_empty());
    assert!(
        cgroup.cgroups.create_leaf(&path, &limits(&resources)).is_err(),
        "an existing leaf was created again"
    );
    assert_eq!(
        cgroup.value("cpu", &path, "cpu.shares"),
        "256",
        "the refused create changed the existing leaf"
    );

    let mut child = sleepers(&leaf);
    wait_until("three processes", || cgroup.pids(&path).len() == 3);
    let error = cgroup.cgroups.remove(&path).unwrap_err();
    assert!(error.to_string().contains("remove cgroup"), "{error}");
    let killed = std::thread::spawn(move || child.wait().unwrap());
    cgroup.cgroups.kill_all(&path).unwrap();
    assert_eq!(std::os::unix::process::ExitStatusExt::signal(&killed.join().unwrap()), Some(9));
    assert!(cgroup.pids(&path).is_empty());
    assert_eq!(cgroup.cgroups.oom_kills(&path).unwrap(), 0);
    cgroup.cgroups.remove(&path).unwrap();
    cgroup.cgroups.remove(&path).unwrap();
    cgroup.cgroups.kill_all(&path).unwrap();
    assert!(leaf::open(Version::V1, &cgroup.cgroups.hierarchies, &path).is_err());
}

#[test]
fn privileged_failed_create_leaves_nothing() {
    let cgroup = TestCgroup::new("fail");
    let path = cgroup.leaf("c1");
    let wrong = Resources { cpuset_cpus: "4095".into(), ..Resources::default() };
    let error = cgroup.cgroups.create_leaf(&path, &limits(&wrong)).unwrap_err();
    assert!(error.to_string().contains("cpuset_cpus"), "{error}");
    for hierarchy in &cgroup.cgroups.hierarchies {
        assert!(!hierarchy.folder(&path).exists());
    }
    let huge = model::HugepageLimit { page_size: "2MB".into(), limit: 2 << 20 };
    let asked = Resources { hugepage_limits: vec![huge], ..Resources::default() };
    let outcome = cgroup.cgroups.create_leaf(&path, &limits(&asked));
    if !cgroup.cgroups.hierarchies.iter().any(|hierarchy| hierarchy.has("hugetlb")) {
        let error = outcome.unwrap_err().to_string();
        assert!(error.contains("hugetlb"), "{error}");
    }
}

#[test]
fn privileged_kills_descendants_and_self_frozen_processes() {
    let cgroup = TestCgroup::new("kill");
    let path = cgroup.leaf("c1");
    let _leaf = cgroup.cgroups.create_leaf(&path, &Limits::default()).unwrap();
    let below = cgroup.cgroups.create_leaf(&format!("{path}/sub"), &Limits::default()).unwrap();
    let mut child = sleepers(&below);
    wait_until("three processes", || cgroup.pids(&path).len() == 3);
    let freezer = cgroup.cgroups.folder("freezer", &format!("{path}/sub")).unwrap();
    std::fs::write(freezer.join("freezer.state"), "FROZEN").unwrap();
    let reaper = std::thread::spawn(move || child.wait().unwrap());
    cgroup.cgroups.kill_all(&path).unwrap();
    let _ = reaper.join().unwrap();
    cgroup.cgroups.remove(&path).unwrap();
}

/// The processes of a container that hang in the kernel keep its cgroup. Each removal must not wait for its own time
/// limit then.
#[test]
fn privileged_removals_share_one_time_limit() {
    let cgroup = TestCgroup::new("limit");
    let paths: Vec<String> = (1..=3).map(|number| cgroup.leaf(&format!("c{number}"))).collect();
    let children: Vec<Child> = paths
        .iter()
        .map(|path| sleepers(&cgroup.cgroups.create_leaf(path, &Limits::default()).unwrap()))
        .collect();
    wait_until("nine processes", || paths.iter().map(|path| cgroup.pids(path).len()).sum::<usize>() == 9);
    let start = Instant::now();
    let errors = cgroup.cgroups.remove_all(paths.clone());
    assert_eq!(errors.len(), paths.len(), "{errors:?}");
    assert!(start.elapsed() < REMOVE_LIMIT * 2, "{:?}", start.elapsed());
    let reapers = children.into_iter().map(|mut child| std::thread::spawn(move || child.wait().unwrap()));
    let reapers: Vec<_> = reapers.collect();
    paths.iter().for_each(|path| cgroup.cgroups.kill_all(path).unwrap());
    for reaper in reapers {
        assert!(!reaper.join().unwrap().success());
    }
    assert!(cgroup.cgroups.remove_all(paths).is_empty());
}

#[test]
fn privileged_shims_have_their_own_cgroups() {
    let cgroups = Cgroups::detect().unwrap();
    let mut bytes = [0; 32];
    bytes[..4].copy_from_slice(&std::process::id().to_le_bytes());
    let pod = PodId::from_random(bytes);
    let folders = cgroups.create_shim(&pod).unwrap().join;
    assert!(folders.len() >= 2 && folders.iter().all(|folder| folder.join("tasks").exists()), "{folders:?}");
    assert_eq!(cgroups.create_shim(&pod).unwrap().join, folders);
    cgroups.remove_pod(&PodRecord::new(pod, model::PodConfig::default(), 1)).unwrap();
    assert!(!folders.iter().any(|folder| folder.exists()));
}

#[test]
fn privileged_container_may_use_every_device() {
    let cgroup = TestCgroup::new("devices");
    let path = cgroup.leaf("c1");
    let devices = spec::devices::rules(&[], true, &[]).unwrap();
    cgroup.cgroups.create_leaf(&path, &Limits { writes: Vec::new(), devices }).unwrap();
    assert_eq!(cgroup.value("devices", &path, "devices.list"), "a *:* rwm");
}

#[test]
fn privileged_leaves_are_cheap_and_parallel() {
    let cgroup = TestCgroup::new("many");
    let resources = Resources { memory_limit: 32 << 20, cpu_shares: 100, ..Default::default() };
    let limits = limits(&resources);
    let start = std::time::Instant::now();
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let (cgroup, limits) = (&cgroup, &limits);
            scope.spawn(move || {
                for number in 0..10 {
                    let path = format!("{}/pod{thread}/{number}", cgroup.root);
                    cgroup.cgroups.create_leaf(&path, limits).unwrap();
                    assert_eq!(
                        cgroup.value("memory", &path, "memory.limit_in_bytes"),
                        (32 << 20).to_string()
                    );
                }
            });
        }
    });
    let took = start.elapsed() / 40;
    println!("a leaf takes {took:?}");
    // It is a few milliseconds. The bound allows for a busy machine, but not for a kernel that waits at each file.
    assert!(took < Duration::from_secs(1), "{took:?}");
}

#[test]
fn privileged_pause_has_a_cgroup_only_where_it_serves() {
    let cgroup = TestCgroup::new("pause");
    let path = cgroup.leaf("pause");
    let leaf = cgroup.cgroups.create_pause_leaf(&path).unwrap();
    assert_eq!(leaf.folders.len(), leaf.plan.members.len());
    for hierarchy in &cgroup.cgroups.hierarchies {
        let serves =
            hierarchy.is_named() || PAUSE_CONTROLLERS.iter().any(|controller| hierarchy.has(controller));
        assert_eq!(hierarchy.folder(&path).exists(), serves, "{hierarchy:?}");
        let joined = leaf.plan.members.iter().any(|member| member.hierarchy == hierarchy.name());
        assert_eq!(joined, serves, "{hierarchy:?}");
    }
    assert!(
        !cgroup.cgroups.folder("devices", &path).unwrap().exists(),
        "the devices hierarchy has a leaf of pause"
    );
    cgroup.cgroups.remove(&path).unwrap();
    assert!(!cgroup.cgroups.folder("memory", &path).unwrap().exists());
}

#[test]
fn privileged_kills_below_very_deep_cgroups() {
    let cgroup = TestCgroup::new("deep");
    let path = cgroup.leaf("c1");
    let _leaf = cgroup.cgroups.create_leaf(&path, &Limits::default()).unwrap();
    let mut at = path.clone();
    for _ in 0..60 {
        at.push_str("/d");
    }
    let deep = cgroup.cgroups.create_leaf(&at, &Limits::default()).unwrap();
    let mut child = sleepers(&deep);
    wait_until("three processes", || cgroup.pids(&path).len() == 3);
    // Frozen at the top and at the bottom.
    for folder in [&path, &at] {
        let freezer = cgroup.cgroups.folder("freezer", folder).unwrap();
        std::fs::write(freezer.join("freezer.state"), "FROZEN").unwrap();
    }
    let reaper = std::thread::spawn(move || child.wait().unwrap());
    cgroup.cgroups.kill_all(&path).unwrap();
    let _ = reaper.join().unwrap();
    cgroup.cgroups.remove(&path).unwrap();
    for hierarchy in &cgroup.cgroups.hierarchies {
        assert!(!hierarchy.folder(&path).exists());
    }
}
