use super::*;
use std::process::Command;

#[test]
fn long_walks_are_rare() {
    let start = Instant::now();
    let layer = |millis| Layer { walked: Some(start), took: Duration::from_millis(millis), value: None };
    assert!(Layer::default().is_stale(start), "was never walked");
    assert!(!layer(1).is_stale(start + Duration::from_secs(4)));
    assert!(layer(1).is_stale(start + Duration::from_secs(5)));
    assert!(!layer(1000).is_stale(start + Duration::from_secs(99)), "a walk of a second");
    assert!(layer(1000).is_stale(start + Duration::from_secs(100)));
}

/// Removes the test's cgroup in any case.
struct TestCgroup(Cgroups, String);

impl Drop for TestCgroup {
    fn drop(&mut self) {
        drop(self.0.kill_all(&self.1).and_then(|()| self.0.remove(&self.1)));
    }
}

/// A line of a shell that makes it join a cgroup.
fn joins(leaf: &crate::cgroups::Leaf) -> String {
    let file = if leaf.plan.unified { "cgroup.procs" } else { "tasks" };
    leaf.plan.members.iter().map(|member| format!("echo 0 > '{}/{file}' && ", member.path)).collect()
}

/// Needs root; fails without.
#[test]
#[expect(clippy::too_many_lines, reason = "the life of one cgroup, read in the order in which it happens")]
fn privileged_reads_a_running_leaf() {
    let cgroups = Cgroups::detect().unwrap();
    let mut bytes = [7; 32];
    bytes[..4].copy_from_slice(&std::process::id().to_le_bytes());
    let id = ContainerId::from_random(bytes);
    let root = format!("/copepod-test-{}-stats", std::process::id());
    let path = format!("{root}/{id}");
    let _room = TestCgroup(cgroups.clone(), root.clone());
    let resources = model::Resources { memory_limit: 64 << 20, ..model::Resources::default() };
    let limits = cgroups.limits(&path, &resources, Vec::new()).unwrap();
    let leaf = cgroups.create_leaf(&path, &limits).unwrap();
    let upper = tempfile::tempdir().unwrap();
    std::fs::write(upper.path().join("file"), vec![1; 50_000]).unwrap();

    let reader = StatsReader::new(cgroups.clone());
    assert!(matches!(reader.read(&id), Err(Error::Unknown { .. })));
    reader.attach(&id, &path, upper.path().to_owned()).unwrap();
    // The parent is the cgroup of the pod: its values include those of the leaf.
    let pod = PodId::from_random(bytes);
    assert!(matches!(reader.read_pod(&pod), Err(Error::Unknown { .. })));
    reader.attach_pod(&pod, &root).unwrap();
    let joins = joins(&leaf);
    let spin = "i=0; while [ $i -lt 100000 ]; do i=$((i+1)); done; dd if=/dev/zero of=/dev/null bs=20M count=1 status=none";
    assert!(Command::new("sh").args(["-ec", &format!("{joins} {spin}")]).status().unwrap().success());

    // The kernel updates memory.stat every two seconds at the latest. With huge pages, the buffer of dd needs few faults.
    let faults = || reader.read(&id).unwrap().memory.page_faults;
    let deadline = Instant::now() + Duration::from_secs(30);
    while faults() < 200 {
        assert!(Instant::now() < deadline, "{} page faults are counted", faults());
        std::thread::sleep(Duration::from_millis(20));
    }
    let stats = reader.read(&id).unwrap();
    assert!(stats.cpu.usage_core_nano_seconds > 1_000_000 && stats.cpu.timestamp > 0);
    assert!(stats.memory.page_faults > 0 && stats.memory.timestamp > 0);
    assert!(stats.memory.working_set_bytes <= stats.memory.usage_bytes);
    assert!(stats.memory.available_bytes.unwrap() > 32 << 20);
    assert_eq!((stats.pids, stats.writable_layer), (Some(0), None));
    let swap = stats.swap.expect("swap is accounted");
    assert_eq!((swap.swap_usage_bytes, swap.swap_available_bytes), (0, Some(0)));
    let pod_usage = reader.read_pod(&pod).unwrap();
    assert_eq!(pod_usage.cpu.usage_core_nano_seconds, stats.cpu.usage_core_nano_seconds);
    assert!(pod_usage.memory.page_faults > 0 && pod_usage.memory.usage_bytes > 0, "{pod_usage:?}");
    assert_eq!((pod_usage.memory.available_bytes, pod_usage.pids), (None, Some(0)));
    let pressure = [stats.cpu.psi.is_some(), stats.memory.psi.is_some(), stats.io.is_some()];
    assert_eq!(pressure, [cgroup::measures_pressure(&cgroups); 3]);
    assert!(reader.refresh_stale(Duration::from_secs(5)));
    let layer = reader.read(&id).unwrap().writable_layer.unwrap();
    assert!(layer.inodes_used == 2 && layer.used_bytes >= 50_000, "{layer:?}");
    std::fs::write(upper.path().join("more"), "x").unwrap();
    assert!(reader.refresh_stale(Duration::from_secs(5)));
    assert_eq!(reader.writable_layer(&id), Some(layer), "it was walked recently");

    let start = Instant::now();
    for _ in 0..100 {
        reader.read(&id).unwrap();
    }
    println!("a read takes {:?}", start.elapsed() / 100);
    let start = Instant::now();
    for _ in 0..100 {
        reader.sample();
    }
    println!("a sample of two cgroups takes {:?}", start.elapsed() / 100);
    let members = |paths: &[&str]| reader.processes(paths.iter().copied()).unwrap().count;
    assert_eq!(members(&[&path]), 0);
    let mut sleeper = Command::new("sh").args(["-ec", &format!("{joins} exec sleep 60")]).spawn().unwrap();
    while members(&[&path]) == 0 {
        assert!(
            Instant::now() < deadline && sleeper.try_wait().unwrap().is_none(),
            "the process is not counted"
        );
        std::thread::sleep(Duration::from_millis(5));
    }
    assert_eq!((members(&[&path, &path]), members(&[])), (2, 0));
    sleeper.kill().unwrap();
    sleeper.wait().unwrap();
    cgroups.remove(&root).unwrap();
    // What is gone has no values, and disturbs nothing else.
    reader.sample();
    assert_eq!(members(&[&path]), 0);
    assert!(matches!(reader.read_pod(&pod), Err(Error::Read { .. })), "the pod's cgroup is gone");
    reader.retain_pods(|_| false);
    assert!(!reader.is_pod_attached(&pod) && reader.is_attached(&id));
    assert!(matches!(reader.read(&id), Err(Error::Read { .. })), "the cgroup is gone");
    reader.retain(|_| false);
    assert!(matches!(reader.read(&id), Err(Error::Unknown { .. })));
}
