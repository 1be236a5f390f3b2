use super::*;
use crate::cgroups::{Cgroups, Limits};
use model::{ContainerConfig, PodConfig, PodPhase};

/// Removes the test's cgroup in any case.
struct TestCgroup(Cgroups, String);

impl Drop for TestCgroup {
    fn drop(&mut self) {
        drop(self.0.kill_all(&self.1).and_then(|()| self.0.remove(&self.1)));
    }
}

fn ready_pod(byte: u8, cgroup_parent: &str) -> Arc<PodView> {
    let config = PodConfig { cgroup_parent: cgroup_parent.into(), ..PodConfig::default() };
    let id = PodId::from_random([byte; 32]);
    let mut record = PodRecord::new(id, config, 1);
    record.phase = PodPhase::Ready;
    record.netns = "/run/netns/copepod-test-no-such-namespace".into();
    Arc::new(PodView { record: Arc::new(record), silent_since: 0 })
}

fn running_container(pod: &PodView, parent: &str) -> Arc<ContainerView> {
    let id = ContainerId::from_random([9; 32]);
    let mut record = ContainerRecord::new(id.clone(), pod.record.id.clone(), ContainerConfig::default(), 1);
    record.phase = ContainerPhase::Running;
    record.cgroup = format!("{parent}/{id}");
    Arc::new(ContainerView { record: Arc::new(record) })
}

/// Needs root and cgroup v1; fails without them.
#[test]
fn privileged_what_is_gone_has_no_values_and_disturbs_nothing_else() {
    let cgroups = Cgroups::detect().unwrap();
    let parent = format!("/copepod-test-{}-cache", std::process::id());
    let _room = TestCgroup(cgroups.clone(), parent.clone());
    let folder = tempfile::tempdir().unwrap();
    let layout = Layout::new(folder.path().join("root"), folder.path().join("run")).unwrap();
    let stats = Arc::new(StatsCache::new(StatsReader::new(cgroups.clone()), layout));
    let (pod, in_root) = (ready_pod(1, &parent), ready_pod(2, "/"));
    let container = running_container(&pod, &parent);
    let leaf = container.record.cgroup.as_str();
    let pods = [Arc::clone(&pod), Arc::clone(&in_root)];
    let wanted = [
        PodAndContainers { pod, containers: vec![Arc::clone(&container)] },
        PodAndContainers { pod: in_root, containers: Vec::new() },
    ];
    // Whether there are: usage of the pod, its network, its processes; the container; usage of the pod in the root.
    let read = || {
        let [one, root] = <[PodReading; 2]>::try_from(stats.collect_pods(&wanted, &pods)).unwrap();
        let PodStats { usage, network, processes } = one.pod;
        let processes = processes.map(|processes| processes.count);
        (usage.is_some(), network.is_some(), processes, one.containers[0].is_some(), root.pod.usage.is_some())
    };
    let create = || cgroups.create_leaf(leaf, &Limits::default()).unwrap();

    create();
    assert_eq!(read(), (true, false, Some(0), true, false), "the namespace does not exist");
    // Another call, whose list of containers is older, closes the files between two steps of this one.
    stats.reader.retain(|_| false);
    stats.reader.retain_pods(|_| false);
    assert!(stats.read(&container.record).is_some() && stats.read_pod(&pods[0].record).is_some());
    // The container has ended, and the daemon does not know it yet.
    cgroups.remove(leaf).unwrap();
    assert_eq!(read(), (true, false, Some(0), false, false));
    // A cgroup with the same name is another one.
    create();
    assert_eq!(read(), (true, false, Some(0), true, false));
    cgroups.remove(&parent).unwrap();
    assert_eq!(read(), (false, false, Some(0), false, false));
    stats.sample(&pods, &[Arc::clone(&container)]);
    create();
    stats.sample(&pods, &[container]);
    assert_eq!(read(), (true, false, Some(0), true, false));
    stats.sample(&[], &[]);
    assert!(!stats.reader.has_attached(), "what does not exist any more is closed");
}
