//! Which records are used, which objects are kept, and what is removed. No root, no shim.

use super::*;
use model::{ContainerConfig, ContainerMeta, ContainerPhase, PodConfig, PodMeta, PodPhase};
use std::fs;

const BOOT: &str = "this boot";

fn pod(byte: u8) -> PodRecord {
    let meta = PodMeta { name: format!("pod{byte}"), ..PodMeta::default() };
    let config = PodConfig { meta, ..PodConfig::default() };
    PodRecord { phase: PodPhase::Ready, ..PodRecord::new(PodId::from_random([byte; 32]), config, 1) }
}

fn container(byte: u8, pod: &PodRecord) -> ContainerRecord {
    let meta = ContainerMeta { name: format!("c{byte}"), attempt: 0 };
    let config = ContainerConfig { meta, ..ContainerConfig::default() };
    ContainerRecord {
        phase: ContainerPhase::Running,
        ..ContainerRecord::new(ContainerId::from_random([byte; 32]), pod.id.clone(), config, 1)
    }
}

/// The folders of a node.
struct Disk {
    layout: Layout,
    _dir: tempfile::TempDir,
}

impl Disk {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::new(dir.path().join("root"), dir.path().join("run")).unwrap();
        layout.create().unwrap();
        Self { layout, _dir: dir }
    }

    fn pod(&self, record: &PodRecord, boot: &str) {
        fs::create_dir(self.layout.pod_dir(&record.id)).unwrap();
        state::file::write(&self.layout.pod_record(&record.id), state::kind::POD, boot, record, false)
            .unwrap();
    }

    fn container(&self, record: &ContainerRecord) {
        fs::create_dir(self.layout.container_dir(&record.id)).unwrap();
        let path = self.layout.container_record(&record.id);
        state::file::write(&path, state::kind::CONTAINER, BOOT, record, false).unwrap();
    }

    fn read(&self) -> Records {
        read(&self.layout, BOOT).unwrap()
    }
}

#[test]
fn pods_are_restored_with_their_containers_and_their_boot() {
    let disk = Disk::new();
    let (now, before) = (pod(1), pod(2));
    disk.pod(&now, BOOT);
    disk.pod(&before, "an earlier boot");
    let containers = [container(3, &now), container(4, &now)];
    containers.iter().for_each(|record| disk.container(record));
    let mut records = disk.read();
    records.pods.sort_by_key(|(record, _)| record.id.clone());
    assert_eq!(records.pods, [(now.clone(), true), (before, false)]);
    let mut restored = records.containers.remove(&now.id).unwrap();
    restored.sort_by_key(|record| record.id.clone());
    assert_eq!(restored, containers);
    assert!(records.kept_pods.is_empty() && records.kept_containers.is_empty());
}

/// A record that cannot be read may be that of a running pod. It costs this pod its management, and no other anything.
#[test]
fn one_unusable_record_costs_one_object() {
    let disk = Disk::new();
    let (good, large, newer) = (pod(1), pod(2), pod(3));
    for record in [&good, &large, &newer] {
        disk.pod(record, BOOT);
    }
    // A file that this build cannot read, and one with a phase of a later version.
    fs::File::create(disk.layout.pod_record(&large.id)).unwrap().set_len(64 << 20).unwrap();
    let data =
        serde_json::json!({"id": newer.id, "config": newer.config, "created_at": 1, "phase": "Paused"});
    state::file::write(&disk.layout.pod_record(&newer.id), state::kind::POD, BOOT, &data, false).unwrap();
    let (of_good, of_newer, unreadable) = (container(4, &good), container(5, &newer), container(6, &good));
    for record in [&of_good, &of_newer, &unreadable] {
        disk.container(record);
    }
    let path = disk.layout.container_record(&unreadable.id);
    fs::File::create(&path).unwrap().set_len(64 << 20).unwrap();
    // The shims of both pods may have processes.
    for record in [&large, &newer] {
        fs::create_dir(disk.layout.shim_dir(&record.id)).unwrap();
    }
    let records = disk.read();
    assert_eq!(records.pods, [(good.clone(), true)]);
    assert_eq!(records.containers[&good.id], [of_good]);
    assert!(records.kept_pods.keys().eq([&large.id, &newer.id]), "{:?}", records.kept_pods);
    let kept: BTreeSet<_> = records.kept_containers.iter().map(|kept| &kept.record.id).collect();
    assert_eq!(kept, BTreeSet::from([&of_newer.id, &unreadable.id]));
    let Strays { shims, containers, pod_dirs, container_dirs } = records.strays;
    assert!(shims.is_empty() && containers.is_empty() && pod_dirs.is_empty() && container_dirs.is_empty());
    assert!(path.exists() && disk.layout.pod_record(&large.id).exists(), "nothing of them is changed");
}

#[test]
fn a_damaged_record_is_set_aside_and_its_object_removed() {
    let disk = Disk::new();
    let (damaged, orphan) = (pod(1), container(2, &pod(1)));
    disk.pod(&damaged, BOOT);
    disk.container(&orphan);
    fs::write(disk.layout.pod_record(&damaged.id), "{\"magic\":").unwrap();
    // Folders that a crash left before their records were written.
    let (empty_pod, empty_container) = (PodId::from_random([3; 32]), ContainerId::from_random([4; 32]));
    fs::create_dir(disk.layout.pod_dir(&empty_pod)).unwrap();
    fs::create_dir(disk.layout.container_dir(&empty_container)).unwrap();
    fs::create_dir(disk.layout.shim_dir(&damaged.id)).unwrap();
    let records = disk.read();
    assert!(records.pods.is_empty() && records.kept_pods.is_empty(), "{records:?}");
    let Strays { shims, containers, pod_dirs, container_dirs } = records.strays;
    assert_eq!(shims, std::slice::from_ref(&damaged.id));
    assert_eq!(containers, [orphan]);
    assert_eq!(BTreeSet::from_iter(pod_dirs), BTreeSet::from([damaged.id.clone(), empty_pod]));
    assert_eq!(container_dirs, [empty_container]);
    assert!(!disk.layout.pod_record(&damaged.id).exists());
    assert_eq!(fs::read_dir(disk.layout.aside_dir()).unwrap().count(), 1);
}

/// Its processes may be running on the image's layers until it is removed, however long that takes.
#[test]
fn a_container_that_is_still_to_be_removed_keeps_its_lease() {
    let disk = Disk::new();
    let (good, lost) = (pod(1), pod(2));
    disk.pod(&good, BOOT);
    let (of_good, of_lost, torn) = (container(3, &good), container(4, &lost), container(5, &good));
    for record in [&of_good, &of_lost, &torn] {
        disk.container(record);
    }
    fs::write(disk.layout.container_record(&torn.id), "{\"magic\":").unwrap();
    let records = disk.read();
    assert_eq!(records.strays.container_dirs, std::slice::from_ref(&torn.id));
    assert_eq!(Known::of(&records).containers, BTreeSet::from([of_good.id, of_lost.id, torn.id]));
}

/// DEL may have failed while such a pod was stopped. Nothing tears it down again, and one being removed soon has no record.
#[test]
fn a_network_may_be_due_of_every_pod_that_is_torn_down() {
    let disk = Disk::new();
    let phases = [PodPhase::Ready, PodPhase::Stopping, PodPhase::Stopped, PodPhase::Removing];
    let pods: Vec<PodRecord> =
        phases.into_iter().zip(1..).map(|(phase, byte)| PodRecord { phase, ..pod(byte) }).collect();
    pods.iter().for_each(|record| disk.pod(record, BOOT));
    let known = Known::of(&disk.read());
    assert_eq!(known.pods.len(), 4);
    assert_eq!(known.torn_down, BTreeSet::from([pods[2].id.clone(), pods[3].id.clone()]));
}
