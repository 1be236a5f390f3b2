//! What UpdateContainerResources makes of a container's resources.

use super::{DEFAULT_PERIOD, Version, Write, is_swap_limit, v2};
use crate::Error;
use model::{ContainerPhase, ContainerRecord, Resources, Update};

/// Shares of a new v1 cgroup.
const DEFAULT_SHARES: i64 = 1024;

/// The resources after an update: what is zero or empty in `update` stays as in `old`. If only the memory limit is updated,
/// that of memory and swap together becomes 0, "not set": as on create, the kernel then gets the memory limit for both.
///
/// # Errors
/// The updated limit of memory and swap is lower than the memory limit that then applies.
pub fn updated(old: &Resources, update: &Resources) -> Result<Resources, Error> {
    let number = |old: i64, new: i64| if new == 0 { old } else { new };
    let list = |old: &String, new: &String| if new.is_empty() { old.clone() } else { new.clone() };
    let memory_swap_limit = match (update.memory_limit, update.memory_swap_limit) {
        (0, 0) => old.memory_swap_limit,
        (_, both) => both,
    };
    let mut hugepage_limits = old.hugepage_limits.clone();
    for new in &update.hugepage_limits {
        match hugepage_limits.iter_mut().find(|known| known.page_size == new.page_size) {
            Some(known) => known.limit = new.limit,
            None => hugepage_limits.push(new.clone()),
        }
    }
    let new = Resources {
        cpu_period: number(old.cpu_period, update.cpu_period),
        cpu_quota: number(old.cpu_quota, update.cpu_quota),
        cpu_shares: number(old.cpu_shares, update.cpu_shares),
        memory_limit: number(old.memory_limit, update.memory_limit),
        memory_swap_limit,
        oom_score_adj: number(old.oom_score_adj, update.oom_score_adj),
        cpuset_cpus: list(&old.cpuset_cpus, &update.cpuset_cpus),
        cpuset_mems: list(&old.cpuset_mems, &update.cpuset_mems),
        hugepage_limits,
        unified: old.unified.iter().chain(&update.unified).map(|(k, v)| (k.clone(), v.clone())).collect(),
    };
    // A limit that was valid stays valid: memory alone changes both.
    if update.memory_swap_limit != 0 && !is_swap_limit(new.memory_limit, new.memory_swap_limit) {
        let want = format!(
            "counts memory and swap: must be at least the container's memory limit ({}), which must be set",
            new.memory_limit
        );
        let value = update.memory_swap_limit.to_string();
        return Err(Error::invalid("linux.memory_swap_limit_in_bytes", value, want));
    }
    Ok(new)
}

/// The values before an update of the files that it writes, for undoing it when its end was not seen. What `old` does
/// not set has the kernel's default; an empty value stands for that of the cgroup above (cpuset). A file that only
/// `unified` names, and `old` does not, is left out if its default is not known.
pub fn before(version: Version, old: &Resources, update: &[Write]) -> Vec<Write> {
    let with_value = |write: &Write| {
        let value = match version {
            Version::V1 => Some(value_before(old, write)),
            Version::V2 => v2::value_before(old, write),
        };
        Some(Write { value: value?, ..write.clone() })
    };
    update.iter().filter_map(with_value).collect()
}

fn value_before(old: &Resources, write: &Write) -> String {
    let or = |value: i64, default: i64| if value > 0 { value } else { default };
    let number = match write.file.as_str() {
        "cpuset.cpus" => return old.cpuset_cpus.clone(),
        "cpuset.mems" => return old.cpuset_mems.clone(),
        "cpu.shares" => or(old.cpu_shares, DEFAULT_SHARES).clamp(2, super::MAX_SHARES),
        "cpu.cfs_period_us" => or(old.cpu_period, DEFAULT_PERIOD),
        "cpu.cfs_quota_us" => or(old.cpu_quota, -1),
        "memory.limit_in_bytes" => or(old.memory_limit, -1),
        "memory.memsw.limit_in_bytes" if old.memory_swap_limit == 0 => or(old.memory_limit, -1),
        "memory.memsw.limit_in_bytes" => or(old.memory_swap_limit, -1),
        hugetlb => {
            let of = |page_size: &str| super::is_hugetlb_file(hugetlb, page_size);
            let known = old.hugepage_limits.iter().find(|limit| of(&limit.page_size));
            return known.map_or("-1".to_owned(), |limit| limit.limit.to_string());
        }
    };
    number.to_string()
}

/// Changes the record of a container whose cgroup has the values of `update`: its resources, and what later execs
/// inherit.
///
/// # Errors
/// Those of [`updated`].
pub fn applied(record: &mut ContainerRecord, update: Update) -> Result<(), Error> {
    let Update { resources, annotations } = update;
    let new = updated(&record.config.resources, &resources)?;
    let adj = super::oom_score_adj(&new);
    let old = std::mem::replace(&mut record.config.resources, new);
    // A container that has run is not created again, so its request is not needed any more.
    if record.phase == ContainerPhase::Created {
        record.requested_resources.get_or_insert_with(|| Box::new(old));
    }
    if resources.oom_score_adj != 0
        && let Some(template) = record.exec_template.as_mut().and_then(serde_json::Value::as_object_mut)
    {
        template.insert("oom_score_adj".to_owned(), adj.into());
    }
    if !annotations.is_empty() {
        record.update_annotations = annotations;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::{Mode, v1};
    use super::*;
    use model::{ContainerConfig, ContainerId, HugepageLimit, PodId};
    use proptest::prelude::*;
    use wire::ProcessPlan;

    fn full(k: i64) -> Resources {
        Resources {
            cpu_period: 10_000 * k,
            cpu_quota: 5_000 * k,
            cpu_shares: 512 * k,
            memory_limit: k << 20,
            memory_swap_limit: k << 21,
            oom_score_adj: 100 * k,
            cpuset_cpus: format!("0-{k}"),
            cpuset_mems: format!("{k}"),
            hugepage_limits: vec![HugepageLimit { page_size: "2MB".into(), limit: 1 << k }],
            unified: [("memory.high".to_owned(), k.to_string())].into(),
        }
    }

    #[test]
    fn every_field_is_replaced_or_left() {
        assert_eq!(updated(&full(1), &full(2)).unwrap(), full(2));
        assert_eq!(updated(&full(1), &Resources::default()).unwrap(), full(1));
        let size = HugepageLimit { page_size: "1GB".into(), limit: 5 };
        let more = Resources { hugepage_limits: vec![size.clone()], ..Resources::default() };
        let both = updated(&full(1), &more).unwrap().hugepage_limits;
        assert_eq!(both, [full(1).hugepage_limits, vec![size]].concat());
    }

    #[test]
    fn the_limit_of_swap_fits_that_of_memory() {
        let limits = |memory_limit, memory_swap_limit| Resources {
            memory_limit,
            memory_swap_limit,
            ..Resources::default()
        };
        let swap = |old: (i64, i64), new: (i64, i64)| {
            updated(&limits(old.0, old.1), &limits(new.0, new.1))
                .map(|it| (it.memory_limit, it.memory_swap_limit))
        };
        assert_eq!(swap((5, 9), (7, 0)), Ok((7, 0)), "swap is part of the new limit");
        assert_eq!(swap((5, 9), (0, 6)), Ok((5, 6)));
        assert_eq!(swap((5, 0), (0, -1)), Ok((5, -1)));
        assert_eq!(swap((0, 0), (0, -1)), Ok((0, -1)));
        for (old, new) in [((5, 9), (0, 4)), ((0, 0), (0, 4)), ((5, 9), (-1, 9))] {
            let error = swap(old, new).unwrap_err();
            assert_eq!(error.field(), "linux.memory_swap_limit_in_bytes", "{old:?} {new:?}");
        }
    }

    #[test]
    fn the_record_has_the_new_values_and_what_was_requested() {
        let config = ContainerConfig { resources: full(1), ..ContainerConfig::default() };
        let (id, pod) = (ContainerId::from_random([2; 32]), PodId::from_random([1; 32]));
        let mut record = ContainerRecord::new(id, pod, config, 1);
        record.phase = ContainerPhase::Created;
        let plan = ProcessPlan { oom_score_adj: Some(100), ..ProcessPlan::default() };
        crate::exec::keep(&mut record, &plan).unwrap();
        let annotations: std::collections::BTreeMap<_, _> = [("a".to_owned(), "b".to_owned())].into();
        for k in [2, 3] {
            let update = Update { resources: full(k), annotations: annotations.clone() };
            applied(&mut record, update).unwrap();
            assert_eq!(record.config.resources, full(k));
            assert_eq!(record.requested_resources.as_deref(), Some(&full(1)), "the first request");
        }
        let template: ProcessPlan = serde_json::from_value(record.exec_template.clone().unwrap()).unwrap();
        assert_eq!(template, ProcessPlan { oom_score_adj: Some(300), ..plan });
        applied(&mut record, Update::default()).unwrap();
        assert_eq!((&record.update_annotations, &record.config.resources), (&annotations, &full(3)));
    }

    fn resources() -> impl Strategy<Value = Resources> {
        let limit = || prop_oneof![Just(0), Just(-1), 1..9_i64];
        (limit(), limit(), 0..4_i64, 0..4_i64, limit(), 0..3_u64).prop_map(
            |(memory, swap, shares, period, quota, huge)| Resources {
                memory_limit: memory << 20,
                memory_swap_limit: if is_swap_limit(memory, swap) { swap << 20 } else { 0 },
                cpu_shares: shares * 500,
                cpu_period: period * 10_000,
                cpu_quota: quota * 5_000,
                hugepage_limits: vec![HugepageLimit { page_size: "2MB".into(), limit: huge << 21 }],
                ..Resources::default()
            },
        )
    }

    proptest! {
        /// Undoing an update restores every file that it has written, as a create writes it.
        #[test]
        fn the_values_before_an_update_are_those_of_the_create(old in resources(), update in resources()) {
            let writes = v1(&update, Mode::Update);
            let undo = before(Version::V1, &old, &writes);
            prop_assert_eq!(undo.len(), writes.len());
            let created = v1(&old, Mode::Create);
            for write in &undo {
                let unset = ["1024", "100000", "-1"];
                match created.iter().find(|created| created.file == write.file) {
                    Some(created) if created.value.starts_with('-') => prop_assert_eq!(&write.value, "-1"),
                    Some(created) => prop_assert_eq!(&created.value, &write.value),
                    None => prop_assert!(unset.contains(&write.value.as_str()), "{:?}", write),
                }
            }
        }

        /// What the record says after an update is what the cgroup has after the writes.
        #[test]
        fn the_merged_resources_say_what_was_written(old in resources(), update in resources()) {
            let Ok(new) = updated(&old, &update) else { return Ok(()) };
            for write in v1(&update, Mode::Update) {
                let merged = before(Version::V1, &new, std::slice::from_ref(&write));
                prop_assert_eq!(&merged[0].value, &write.value, "{}", write.file);
            }
        }
    }
}
