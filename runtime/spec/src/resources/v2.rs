//! The files of cgroup v2 that resources are written to (Documentation/admin-guide/cgroup-v2.rst).

use super::{DEFAULT_PERIOD, Mode, Resources, Write};

/// `max`: no limit.
pub(super) const MAX: &str = "max";
/// Largest `cpu.weight`, which stands for the largest v1 share.
const MAX_WEIGHT: i64 = 10_000;
/// What a file has in a new cgroup, as the kernel shows it. Files of other names are restored from the request only.
const DEFAULTS: [(&str, &str); 10] = [
    ("cpu.weight", "100"),
    ("cpu.max", "max 100000"),
    ("memory.max", MAX),
    ("memory.high", MAX),
    ("memory.min", "0"),
    ("memory.low", "0"),
    ("memory.swap.max", MAX),
    ("memory.swap.high", MAX),
    ("memory.oom.group", "0"),
    ("pids.max", MAX),
];

/// The files of cgroup v2, each once, in the order of writing. `old` is what the cgroup has before: the kernel has one
/// file for quota and period, and counts swap without memory, so a request for one of two values needs the other.
///
/// `unified` comes last, and replaces what other fields give for the same file (CRI, `LinuxContainerResources`).
pub fn v2(old: &Resources, resources: &Resources, mode: Mode) -> Vec<Write> {
    let mut writes = super::cpuset(resources, mode);
    writes.retain(|write| !resources.unified.contains_key(&write.file));
    let mut put = |controller: &str, file: &str, value: String, field: &str, optional| {
        if !resources.unified.contains_key(file) {
            writes.push(mode.write(controller, file, value, field, optional));
        }
    };
    if resources.cpu_shares > 0 {
        put("cpu", "cpu.weight", weight(resources.cpu_shares).to_string(), "cpu_shares", false);
    }
    if resources.cpu_quota != 0 || resources.cpu_period > 0 {
        let field = if resources.cpu_quota == 0 { "cpu_period" } else { "cpu_quota" };
        put("cpu", "cpu.max", cpu_max(old, resources), field, false);
    }
    let (memory, both) = (resources.memory_limit, resources.memory_swap_limit);
    if memory != 0 {
        put("memory", "memory.max", limit(memory), "memory_limit_in_bytes", false);
    }
    // Without a limit of its own, swap is part of the memory limit, as on v1. But then a value that `unified` has given
    // before stays.
    let keeps = both == 0 && old.unified.contains_key("memory.swap.max");
    if !keeps && let Some(swap) = swap(old, memory, both) {
        put("memory", "memory.swap.max", swap, "memory_swap_limit_in_bytes", true);
    }
    for huge in &resources.hugepage_limits {
        for kind in ["max", "rsvd.max"] {
            let file = format!("hugetlb.{}.{kind}", huge.page_size);
            // Kernels before 5.7 do not count reservations.
            let optional = huge.limit == 0 || kind != "max";
            put("hugetlb", &file, huge.limit.to_string(), "hugepage_limits", optional);
        }
    }
    for (file, value) in &resources.unified {
        let controller = file.split('.').next().unwrap_or_default();
        // Kernels without swap have no file for it, and no swap.
        let optional = file == "memory.swap.max" && value == "0";
        writes.push(mode.write(controller, file, value.clone(), &format!("unified[{file}]"), optional));
    }
    writes
}

/// `cpu.weight` for shares of v1 ([2, 262144] to [1, 10000]): kubelet's conversion, with which it sets the weights of
/// the levels above.
fn weight(shares: i64) -> i64 {
    1 + (shares.clamp(2, super::MAX_SHARES) - 2) * (MAX_WEIGHT - 1) / (super::MAX_SHARES - 2)
}

/// `cpu.max`: quota and period.
fn cpu_max(old: &Resources, new: &Resources) -> String {
    let first = |new: i64, old: i64| if new == 0 { old } else { new };
    let quota = first(new.cpu_quota, old.cpu_quota);
    let period = first(new.cpu_period, old.cpu_period);
    let period = if period > 0 { period } else { DEFAULT_PERIOD };
    if quota > 0 { format!("{quota} {period}") } else { format!("{MAX} {period}") }
}

/// `memory.swap.max`: v1's limit of memory and swap together, without the memory. `None` if neither is in the request.
fn swap(old: &Resources, memory: i64, both: i64) -> Option<String> {
    match (memory, both) {
        (0, 0) => None,
        // All of the limit may be memory.
        (memory, 0) if memory > 0 => Some("0".to_owned()),
        (_, both) if both <= 0 => Some(MAX.to_owned()),
        (0, both) => Some((both - old.memory_limit.clamp(0, both)).to_string()),
        (memory, both) => Some((both - memory.clamp(0, both)).to_string()),
    }
}

fn limit(bytes: i64) -> String {
    if bytes < 0 { MAX.to_owned() } else { bytes.to_string() }
}

/// The value of the file of `write` before an update; `None` if that is not known: the request did not have it, and the
/// kernel's default depends on the file.
pub(super) fn value_before(old: &Resources, write: &Write) -> Option<String> {
    let created = v2(&Resources::default(), old, Mode::Create);
    if let Some(known) = created.into_iter().find(|created| created.file == write.file) {
        return Some(known.value);
    }
    if write.controller == "hugetlb" {
        return Some(MAX.to_owned());
    }
    // A new cpuset is empty, which stands for that of the cgroup above.
    if write.file.starts_with("cpuset.") {
        return Some(String::new());
    }
    let default = DEFAULTS.into_iter().find(|(file, _)| *file == write.file);
    default.map(|(_, value)| value.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::HugepageLimit;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn pairs(writes: &[Write]) -> Vec<(&str, &str)> {
        writes.iter().map(|write| (write.file.as_str(), write.value.as_str())).collect()
    }

    fn create(resources: &Resources) -> Vec<Write> {
        v2(&Resources::default(), resources, Mode::Create)
    }

    #[test]
    fn files_in_order() {
        let resources = Resources {
            cpu_period: 100_000,
            cpu_quota: 50_000,
            cpu_shares: 512,
            memory_limit: 64 << 20,
            memory_swap_limit: 96 << 20,
            cpuset_cpus: "0-1".into(),
            cpuset_mems: "0".into(),
            hugepage_limits: vec![HugepageLimit { page_size: "2MB".into(), limit: 2 << 20 }],
            unified: [("memory.high".to_owned(), "5".to_owned()), ("memory.max".to_owned(), "6".to_owned())]
                .into(),
            ..Resources::default()
        };
        let writes = create(&resources);
        let wanted = [
            ("cpuset.cpus", "0-1"),
            ("cpuset.mems", "0"),
            ("cpu.weight", "20"),
            ("cpu.max", "50000 100000"),
            ("memory.swap.max", "33554432"),
            ("hugetlb.2MB.max", "2097152"),
            ("hugetlb.2MB.rsvd.max", "2097152"),
            ("memory.high", "5"),
            ("memory.max", "6"),
        ];
        assert_eq!(pairs(&writes), wanted);
        assert_eq!(writes[8].field, "config.linux.resources.unified[memory.max]");
        assert_eq!(writes[8].controller, "memory");
    }

    #[test]
    fn weights_are_kubelets() {
        let of = |shares| weight(shares);
        assert_eq!([2, 102, 512, 1024, 2048, 262_144].map(of), [1, 4, 20, 39, 79, 10_000]);
        assert_eq!([0, 1, i64::MAX].map(of), [1, 1, 10_000]);
    }

    #[test]
    fn one_of_two_values_keeps_the_other() {
        let old = Resources {
            cpu_quota: 20_000,
            cpu_period: 50_000,
            memory_limit: 5 << 20,
            ..Resources::default()
        };
        let update = |update: Resources| {
            let writes = v2(&old, &update, Mode::Update);
            writes.iter().map(|write| format!("{}={}", write.file, write.value)).collect::<Vec<_>>()
        };
        let none = Resources::default();
        assert_eq!(update(Resources { cpu_quota: 30_000, ..none.clone() }), ["cpu.max=30000 50000"]);
        assert_eq!(update(Resources { cpu_period: 10_000, ..none.clone() }), ["cpu.max=20000 10000"]);
        assert_eq!(update(Resources { cpu_quota: -1, ..none.clone() }), ["cpu.max=max 50000"]);
        assert_eq!(
            update(Resources { memory_swap_limit: 7 << 20, ..none.clone() }),
            ["memory.swap.max=2097152"]
        );
        let memory = Resources { memory_limit: 6 << 20, ..none.clone() };
        assert_eq!(update(memory.clone()), ["memory.max=6291456", "memory.swap.max=0"]);
        let lifted = ["memory.max=max", "memory.swap.max=max"];
        assert_eq!(update(Resources { memory_limit: -1, ..none.clone() }), lifted);
        assert!(update(none).is_empty());
        let unified = [("memory.swap.max".to_owned(), "9".to_owned())];
        let old = Resources { unified: unified.into(), ..old.clone() };
        assert_eq!(pairs(&v2(&old, &memory, Mode::Update)), [("memory.max", "6291456")]);
    }

    fn resources() -> impl Strategy<Value = Resources> {
        let limit = || prop_oneof![Just(0), Just(-1), 1..9_i64];
        let unified = proptest::option::of(prop_oneof![
            Just(("memory.high", "9")),
            Just(("memory.max", "3")),
            Just(("memory.swap.max", "0")),
            Just(("io.weight", "50")),
        ]);
        (limit(), limit(), 0..4_i64, 0..4_i64, limit(), unified).prop_map(
            |(memory, swap, shares, period, quota, unified)| Resources {
                memory_limit: memory << 20,
                memory_swap_limit: if super::super::is_swap_limit(memory, swap) { swap << 20 } else { 0 },
                cpu_shares: shares * 500,
                cpu_period: period * 10_000,
                cpu_quota: quota * 5_000,
                unified: unified.map(|(k, v)| (k.to_owned(), v.to_owned())).into_iter().collect(),
                ..Resources::default()
            },
        )
    }

    proptest! {
        #[test]
        fn each_file_is_written_once(old in resources(), update in resources()) {
            let writes = v2(&old, &update, Mode::Update);
            let files: BTreeSet<&str> = writes.iter().map(|write| write.file.as_str()).collect();
            prop_assert_eq!(files.len(), writes.len());
        }

        /// Undoing an update restores what a create writes, or else the kernel's default.
        #[test]
        fn the_values_before_an_update_are_those_of_the_create(old in resources(), update in resources()) {
            for write in v2(&old, &update, Mode::Update) {
                let created = create(&old).into_iter().find(|created| created.file == write.file);
                let before = value_before(&old, &write);
                match created {
                    Some(created) => prop_assert_eq!(before, Some(created.value)),
                    None if write.file == "io.weight" => prop_assert_eq!(before, None),
                    None => prop_assert!(before.is_some_and(|value| value.contains("max") || value == "100"
                        || value == "0"), "{:?}", write),
                }
            }
        }
    }
}
