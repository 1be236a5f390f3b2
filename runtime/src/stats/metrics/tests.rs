mod recorded;

use super::*;
use crate::cgroups::Limits;
use model::PodId;
use std::os::unix::net::UnixStream;

/// Removes the cgroup of a test at its end.
struct Room(Cgroups, String);

impl Drop for Room {
    fn drop(&mut self) {
        let Self(cgroups, root) = self;
        drop(cgroups.kill_all(root));
        drop(cgroups.remove(root));
    }
}

fn room(cgroups: &Cgroups, name: &str) -> (Room, String) {
    let root = format!("/copepod-test-{}-{name}", std::process::id());
    (Room(cgroups.clone(), root.clone()), root)
}

/// A cgroup without processes.
#[test]
fn privileged_a_cgroup_is_read() {
    let cgroups = Cgroups::detect().unwrap();
    let (_room, root) = room(&cgroups, "group");
    let path = format!("{root}/{}", PodId::from_random([0x5e; 32]));
    let resources = model::Resources {
        cpu_period: 50_000,
        cpu_quota: 10_000,
        cpu_shares: 512,
        memory_limit: 64 << 20,
        ..model::Resources::default()
    };
    let mut limits = cgroups.limits(&path, &resources, Vec::new()).unwrap();
    limits.writes.push(spec::resources::Write {
        controller: "pids".to_owned(),
        file: "pids.max".to_owned(),
        value: "99".to_owned(),
        field: String::new(),
        optional: false,
    });
    cgroups.create_leaf(&path, &limits).unwrap();
    let reader = Reader::new(cgroups.clone());
    let group = reader.group(&path).unwrap();
    // 512 shares are a weight of 20, which stands for 500 to 513 of them.
    let shares = if reader.version == Version::V1 { 512 } else { 500 };
    assert_eq!(
        (group.cpu.period, group.cpu.quota, group.cpu.shares),
        (Some(50_000), Some(10_000), Some(shares))
    );
    assert_eq!((group.cpu.usage, group.cpu.user, group.cpu.system), (0, Some(0), Some(0)));
    assert_eq!(group.cpu.throttling.throttled, Some(0));
    assert_eq!((group.memory.limit, group.memory.oom_kills), (Some(64 << 20), Some(0)));
    assert_eq!(group.memory.soft_limit.unwrap_or(0), 0);
    assert!(group.memory.usage >= group.memory.working_set);
    for value in [group.memory.rss, group.memory.cache, group.memory.kernel, group.memory.faults[1]] {
        assert!(value.is_some(), "{:?}", group.memory);
    }
    assert_eq!((group.tasks, group.task_limit), (Some(0), Some(99)));
    assert_eq!(group.pressure.cpu.is_some(), reader.has_pressure());
    assert_eq!(group.huge_pages.is_empty(), !reader.has_huge_pages());
    let none = Processes { count: 0, descriptors: Some(0), sockets: Some(0), open_files: None };
    assert_eq!(reader.processes(&path, 1, &mut Budget::default()).unwrap(), none);
    cgroups.remove(&root).unwrap();
    assert!(reader.group(&path).is_err());
    assert!(reader.processes(&path, 1, &mut Budget::default()).is_err());
}

/// The processes of the cgroup of a child that has three sockets.
#[test]
fn privileged_processes_are_read_within_the_budget() {
    let cgroups = Cgroups::detect().unwrap();
    let (_room, root) = room(&cgroups, "processes");
    let path = format!("{root}/{}", PodId::from_random([0x5f; 32]));
    cgroups.create_leaf(&path, &Limits::default()).unwrap();
    let reader = Reader::new(cgroups.clone());
    let (socket, _other) = UnixStream::pair().unwrap();
    let copy = || std::process::Stdio::from(std::os::fd::OwnedFd::from(socket.try_clone().unwrap()));
    let mut command = std::process::Command::new("/bin/sleep");
    let mut child = command.arg("60").stdin(copy()).stdout(copy()).stderr(copy()).spawn().unwrap();
    let folder = cgroups.folder("cpu", &path).unwrap();
    std::fs::write(folder.join("cgroup.procs"), child.id().to_string()).unwrap();

    let read = |budget: &mut Budget| reader.processes(&path, child.id(), budget).unwrap();
    let seen = read(&mut Budget::default());
    assert_eq!((seen.count, seen.sockets), (1, Some(3)));
    assert!(seen.descriptors >= Some(3) && seen.open_files > Some(0), "{seen:?}");
    // Two links are not enough for three sockets.
    let mut few = Budget { links: 2, ..Budget::default() };
    let seen = read(&mut few);
    assert_eq!((seen.count, seen.sockets, few.links), (1, None, 0));
    let seen = read(&mut Budget { processes: 0, ..Budget::default() });
    assert_eq!((seen.count, seen.descriptors, seen.sockets), (1, None, None));

    child.kill().unwrap();
    child.wait().unwrap();
}
