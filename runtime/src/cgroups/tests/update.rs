//! Updates on the host's real hierarchies.

use super::*;

const MIB: i64 = 1 << 20;

/// On v1 an update does not depend on what was requested before.
fn none() -> Resources {
    Resources::default()
}

fn memory(memory_limit: i64, memory_swap_limit: i64) -> Resources {
    Resources { memory_limit, memory_swap_limit, ..Resources::default() }
}

/// Values of files, in the order of writing.
fn values(cgroup: &TestCgroup, path: &str) -> Vec<String> {
    let files = [
        ("cpu", "cpu.shares"),
        ("cpu", "cpu.cfs_period_us"),
        ("cpu", "cpu.cfs_quota_us"),
        ("memory", "memory.limit_in_bytes"),
        ("memory", "memory.memsw.limit_in_bytes"),
        ("devices", "devices.list"),
    ];
    files.into_iter().map(|(controller, file)| cgroup.value(controller, path, file)).collect()
}

/// A process of the cgroup that holds this many MiB of memory, which cannot be reclaimed without swap.
fn holder(leaf: &Leaf, mib: i64) -> Child {
    let joins: String =
        leaf.plan.members.iter().map(|member| format!("echo 0 > '{}/tasks' && ", member.path)).collect();
    let script = format!(
        "{joins} text=$(head -c {} /dev/zero | tr '\\0' x); : ${{#text}}; while :; do sleep 0.05; done",
        mib * MIB
    );
    Command::new("sh").args(["-ec", &script]).spawn().unwrap()
}

fn end(cgroup: &TestCgroup, path: &str, mut child: Child) {
    let reaper = std::thread::spawn(move || child.wait().unwrap());
    cgroup.cgroups.kill_all(path).unwrap();
    reaper.join().unwrap();
}

#[test]
fn privileged_limits_of_memory_and_swap_move_together() {
    let cgroup = TestCgroup::new("update");
    let path = cgroup.leaf("c1");
    let _leaf = cgroup.cgroups.create_leaf(&path, &limits(&memory(32 * MIB, 0))).unwrap();
    let limits = || {
        ["memory.limit_in_bytes", "memory.memsw.limit_in_bytes"]
            .map(|file| cgroup.value("memory", &path, file).parse::<i64>().unwrap() / MIB)
    };
    for (memory_limit, both, want) in [
        (64, 0, [64, 64]),
        (16, 0, [16, 16]),
        (16, 48, [16, 48]),
        (32, 40, [32, 40]),
        (8, 64, [8, 64]),
        (0, 128, [8, 128]),
        (128, 256, [128, 256]),
        (4, 8, [4, 8]),
    ] {
        cgroup.cgroups.update(&path, &none(), &memory(memory_limit * MIB, both * MIB)).unwrap();
        assert_eq!(limits(), want, "{memory_limit} {both}");
    }
    cgroup.cgroups.update(&path, &none(), &memory(-1, 0)).unwrap();
    assert!(limits().iter().all(|limit| *limit > 1 << 40), "{:?}", limits());
    cgroup.cgroups.update(&path, &none(), &memory(5 * MIB, -1)).unwrap();
    assert!(limits()[0] == 5 && limits()[1] > 1 << 40, "{:?}", limits());
}

#[test]
fn privileged_update_is_all_or_nothing() {
    let cgroup = TestCgroup::new("nothing");
    let path = cgroup.leaf("c1");
    let old = Resources {
        cpu_shares: 100,
        cpu_period: 50_000,
        cpu_quota: 25_000,
        cpuset_cpus: "0".into(),
        ..memory(32 * MIB, 0)
    };
    let _leaf = cgroup.cgroups.create_leaf(&path, &limits(&old)).unwrap();
    let before = values(&cgroup, &path);
    let new = Resources { cpu_shares: 200, cpu_period: 100_000, cpu_quota: 80_000, ..memory(64 * MIB, 0) };
    // The last write fails: huge pages are counted in units that this host does not have, or not at all.
    let huge = model::HugepageLimit { page_size: "4MB".into(), limit: 4 << 20 };
    let wrong = Resources { hugepage_limits: vec![huge], ..new.clone() };
    let error = cgroup.cgroups.update(&path, &none(), &wrong).unwrap_err().to_string();
    assert!(error.starts_with("linux.hugepage_limits: "), "{error}");
    assert_eq!(values(&cgroup, &path), before);
    // The kernel refuses a write in the middle.
    let wrong = Resources { cpuset_mems: "4095".into(), ..new.clone() };
    let error = cgroup.cgroups.update(&path, &none(), &wrong).unwrap_err().to_string();
    assert!(error.starts_with("linux.cpuset_mems: \"4095\" cannot be set"), "{error}");
    assert_eq!(values(&cgroup, &path), before);
    let unified: std::collections::BTreeMap<_, _> = [("memory.high".to_owned(), "1".to_owned())].into();
    let error = cgroup
        .cgroups
        .update(&path, &none(), &Resources { unified: unified.clone(), ..new.clone() })
        .unwrap_err()
        .to_string();
    assert!(error.contains("linux.unified") && error.contains("cgroup v1"), "{error}");
    let asked = Resources { unified, ..new.clone() };
    let error = cgroup.cgroups.limits(&path, &asked, Vec::new()).unwrap_err().to_string();
    assert!(error.starts_with("config.linux.resources.unified: \"memory.high=1\""), "{error}");
    cgroup.cgroups.limits(&path, &new, Vec::new()).unwrap();
    assert_eq!(values(&cgroup, &path), before);

    cgroup.cgroups.update(&path, &none(), &new).unwrap();
    let after = values(&cgroup, &path);
    assert_eq!(after[..3], ["200", "100000", "80000"]);
    assert_eq!(after[5], before[5], "device rules are not touched");
    let error = cgroup.cgroups.update(&cgroup.leaf("absent"), &none(), &new).unwrap_err();
    assert!(matches!(error, Error::Gone { .. }), "{error}");
}

/// A quota may not be above that of the cgroup above, nor below that of one below, on the way either.
#[test]
fn privileged_quota_and_period_change_between_other_limits() {
    let cgroup = TestCgroup::new("quota");
    let path = cgroup.leaf("c1");
    let cpu = |cpu_period, cpu_quota| Resources { cpu_period, cpu_quota, ..Resources::default() };
    let above = path.rsplit_once('/').unwrap().0.to_owned();
    cgroup.cgroups.create_leaf(&above, &limits(&cpu(100_000, 100_000))).unwrap();
    cgroup.cgroups.create_leaf(&path, &limits(&cpu(100_000, 90_000))).unwrap();
    cgroup.cgroups.create_leaf(&format!("{path}/below"), &limits(&cpu(10_000, 8_000))).unwrap();
    for (period, quota) in [(10_000, 9_500), (200_000, 170_000), (1_000_000, 999_000), (5_000, 4_100)] {
        cgroup.cgroups.update(&path, &none(), &cpu(period, quota)).unwrap();
        assert_eq!(cgroup.value("cpu", &path, "cpu.cfs_period_us"), period.to_string());
        assert_eq!(cgroup.value("cpu", &path, "cpu.cfs_quota_us"), quota.to_string());
    }
    for (period, quota) in [(100_000, 110_000), (100_000, 10_000)] {
        cgroup.cgroups.update(&path, &none(), &cpu(period, quota)).unwrap_err();
        assert_eq!(cgroup.value("cpu", &path, "cpu.cfs_period_us"), "5000");
        assert_eq!(cgroup.value("cpu", &path, "cpu.cfs_quota_us"), "4100");
    }
}

#[test]
fn privileged_limit_below_what_is_in_use_is_refused_with_the_number() {
    let cgroup = TestCgroup::new("usage");
    let path = cgroup.leaf("c1");
    let leaf = cgroup.cgroups.create_leaf(&path, &limits(&memory(64 * MIB, 0))).unwrap();
    let child = holder(&leaf, 16);
    let usage = || cgroup.value("memory", &path, "memory.usage_in_bytes").parse::<i64>().unwrap();
    wait_until("16 MiB in use", || usage() > 16 * MIB);
    let before = values(&cgroup, &path);
    let new = Resources { cpu_shares: 300, ..memory(8 * MIB, 0) };
    let error = cgroup.cgroups.update(&path, &none(), &new).unwrap_err();
    let Error::BelowUsage { field, value, usage: told, .. } = &error else { panic!("{error}") };
    assert_eq!((field.as_str(), value.as_str()), ("linux.memory_limit_in_bytes", "8388608"));
    assert!(told.parse::<i64>().unwrap() > 8 * MIB && error.to_string().contains(told), "{error}");
    assert_eq!(values(&cgroup, &path), before);
    cgroup.cgroups.update(&path, &none(), &memory(48 * MIB, 0)).unwrap();
    end(&cgroup, &path, child);
}

#[test]
fn privileged_update_that_was_cut_off_is_found_done_or_undone() {
    let cgroup = TestCgroup::new("settle");
    let path = cgroup.leaf("c1");
    let old = Resources { cpu_shares: 100, cpuset_cpus: "0".into(), ..memory(32 * MIB, 64 * MIB) };
    let _leaf = cgroup.cgroups.create_leaf(&path, &limits(&old)).unwrap();
    let before = values(&cgroup, &path);
    let new = Resources { cpu_shares: 200, cpu_period: 20_000, cpu_quota: 10_000, ..memory(64 * MIB + 1, 0) };
    // Nothing was done.
    assert!(!cgroup.cgroups.settle(&path, &old, &new).unwrap());
    assert_eq!(values(&cgroup, &path), before);
    // A part was done.
    let part = Resources { cpu_period: 20_000, ..memory(0, 128 * MIB) };
    cgroup.cgroups.update(&path, &none(), &part).unwrap();
    assert_ne!(values(&cgroup, &path), before);
    assert!(!cgroup.cgroups.settle(&path, &old, &new).unwrap());
    assert_eq!(values(&cgroup, &path), before);
    // All was done; the kernel rounds the limit down to whole pages.
    cgroup.cgroups.update(&path, &none(), &new).unwrap();
    let after = values(&cgroup, &path);
    assert!(cgroup.cgroups.settle(&path, &old, &new).unwrap());
    assert_eq!(values(&cgroup, &path), after);
    // A cpuset that was not requested before is that of the cgroup above again.
    let cpus = || cgroup.value("cpuset", &path, "cpuset.cpus");
    let above = cgroup.value("cpuset", path.rsplit_once('/').unwrap().0, "cpuset.cpus");
    let first = Resources { cpuset_cpus: "0".into(), cpu_shares: 5, ..Resources::default() };
    let unset = Resources { cpuset_cpus: String::new(), ..old };
    assert!(!cgroup.cgroups.settle(&path, &unset, &first).unwrap());
    assert_eq!(cpus(), above);
}

#[test]
fn privileged_oom_score_is_changed_for_those_that_inherited_it() {
    let cgroup = TestCgroup::new("oom");
    let path = cgroup.leaf("c1");
    let leaf = cgroup.cgroups.create_leaf(&path, &Limits::default()).unwrap();
    let mut child = sleepers(&leaf);
    wait_until("three processes", || cgroup.pids(&path).len() == 3);
    let score = |pid: u32| sys::proc::oom_score_adj(pid).unwrap();
    let init = child.id();
    let others: Vec<u32> = cgroup
        .pids(&path)
        .into_iter()
        .map(|pid| u32::try_from(pid).unwrap())
        .filter(|pid| *pid != init)
        .collect();
    let own = score(init);
    std::fs::write(format!("/proc/{}/oom_score_adj", others[0]), "901").unwrap();
    assert_eq!(cgroup.cgroups.set_oom_score_adj(&path, init, 700).unwrap(), Some(700));
    assert_eq!([score(init), score(others[0]), score(others[1])], [700, 901, 700]);
    assert_eq!(score(std::process::id()), own, "only the cgroup's processes");
    // What the host does not allow is raised. With CAP_SYS_RESOURCE it is allowed.
    let set = cgroup.cgroups.set_oom_score_adj(&path, init, -1000).unwrap().unwrap();
    assert!((-1000..700).contains(&set), "{set}");
    assert_eq!([score(init), score(others[1])], [set, set]);
    let reaper = std::thread::spawn(move || child.wait().unwrap());
    cgroup.cgroups.kill_all(&path).unwrap();
    reaper.join().unwrap();
    assert_eq!(cgroup.cgroups.set_oom_score_adj(&path, 0, 5).unwrap(), None);
}
