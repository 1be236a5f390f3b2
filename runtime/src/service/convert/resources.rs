//! Converts `LinuxContainerResources`.

use super::{Field, Result};
use cri_api::v1 as cri;
use model::{HugepageLimit, PodResources, Resources, Update};
use spec::resources as kernel;
use std::collections::HashMap;

/// Maximum number of entries of `unified` and of `hugepage_limits`; a kernel has fewer files.
const MAX_FILES: usize = 128;
/// Maximum length of a value of `unified` in bytes.
const MAX_VALUE: usize = 4096;

/// Maximum size of the annotations of an update in bytes. No key is known; the record has them twice for a moment, and
/// an exit must still fit into it (`state::file::MAX_NEW_BYTES`).
const MAX_ANNOTATIONS: usize = 32 * 1024;

/// Container id and request of UpdateContainerResources.
pub(crate) fn update_container(given: cri::UpdateContainerResourcesRequest) -> Result<(String, Update)> {
    let cri::UpdateContainerResourcesRequest {
        container_id,
        linux,
        // Other operating systems only.
        windows: _,
        annotations,
    } = given;
    let field = Field::root("annotations");
    let annotations = super::map_within(MAX_ANNOTATIONS, &field, annotations)?;
    let update = |resources| (container_id.clone(), Update { resources, annotations });
    let checked = of_update(&Field::root("linux"), linux).map(update);
    checked.map_err(|refusal| refusal.about(format_args!("container {container_id:?}")))
}

/// Pod id and request of UpdatePodSandboxResources. An absent message means "unchanged".
pub(crate) fn update_pod(given: cri::UpdatePodSandboxResourcesRequest) -> Result<(String, PodResources)> {
    let cri::UpdatePodSandboxResourcesRequest { pod_sandbox_id, overhead, resources: of_pod } = given;
    let new = PodResources {
        overhead: resources(&Field::root("overhead"), overhead)?,
        resources: resources(&Field::root("resources"), of_pod)?,
    };
    Ok((pod_sandbox_id, new))
}

/// The new limits of a container. Whether the limit of swap fits that of memory also depends on the limits that it has
/// (`spec::resources::updated`).
fn of_update(field: &Field<'_>, given: Option<cri::LinuxContainerResources>) -> Result<Resources> {
    let swap = given.as_ref().map_or(0, |given| given.memory_swap_limit_in_bytes);
    let alone = given.as_ref().is_some_and(|given| given.memory_limit_in_bytes == 0) && swap > 0;
    let given = given.map(|given| cri::LinuxContainerResources {
        memory_swap_limit_in_bytes: if alone { 0 } else { swap },
        ..given
    });
    let resources = of_container(field, given)?;
    Ok(if alone { Resources { memory_swap_limit: swap, ..resources } } else { resources })
}

/// The limits of a container. Absent means none.
pub(super) fn of_container(
    field: &Field<'_>,
    given: Option<cri::LinuxContainerResources>,
) -> Result<Resources> {
    let resources = resources(field, given)?.unwrap_or_default();
    if (1..kernel::MIN_MEMORY).contains(&resources.memory_limit) {
        let want = format!("must be at least {}, or 0: no process can start with less", kernel::MIN_MEMORY);
        return Err(field.at("memory_limit_in_bytes").invalid(resources.memory_limit, want));
    }
    Ok(resources)
}

/// Resources of a container, or the sums of a pod.
#[expect(clippy::too_many_lines, reason = "one check for each field of the message")]
pub(super) fn resources(
    field: &Field<'_>,
    given: Option<cri::LinuxContainerResources>,
) -> Result<Option<Resources>> {
    let Some(given) = given else {
        return Ok(None);
    };
    let cri::LinuxContainerResources {
        cpu_period,
        cpu_quota,
        cpu_shares,
        memory_limit_in_bytes: memory,
        oom_score_adj,
        cpuset_cpus,
        cpuset_mems,
        hugepage_limits,
        unified,
        memory_swap_limit_in_bytes: swap,
    } = given;
    if cpu_period != 0 && !kernel::CPU_PERIODS.contains(&cpu_period) {
        let (min, max) = (*kernel::CPU_PERIODS.start(), *kernel::CPU_PERIODS.end());
        let want = format!("must be 0 (the kernel's default) or {min} to {max} µs");
        return Err(field.at("cpu_period").invalid(cpu_period, want));
    }
    if (1..kernel::MIN_CPU_QUOTA).contains(&cpu_quota) {
        let want = format!("must be at least {} µs, or at most 0 for no limit", kernel::MIN_CPU_QUOTA);
        return Err(field.at("cpu_quota").invalid(cpu_quota, want));
    }
    if cpu_shares < 0 {
        return Err(field.at("cpu_shares").invalid(cpu_shares, "must not be negative"));
    }
    if memory < -1 {
        return Err(field.at("memory_limit_in_bytes").invalid(memory, "must be -1 or 0 (no limit), or more"));
    }
    if swap < -1 || !kernel::is_swap_limit(memory, swap) {
        let want = format!(
            "counts memory and swap: must be -1 (no limit), 0 (same as memory), or at least \
             memory_limit_in_bytes ({memory}), which must be set too"
        );
        return Err(field.at("memory_swap_limit_in_bytes").invalid(swap, want));
    }
    if !kernel::OOM_SCORE_ADJS.contains(&oom_score_adj) {
        let (min, max) = (*kernel::OOM_SCORE_ADJS.start(), *kernel::OOM_SCORE_ADJS.end());
        return Err(field.at("oom_score_adj").invalid(oom_score_adj, format!("must be {min} to {max}")));
    }
    super::at_most(&field.at("hugepage_limits"), hugepage_limits.len(), MAX_FILES)?;
    check_unified(&field.at("unified"), &unified)?;
    Ok(Some(Resources {
        cpu_period,
        cpu_quota,
        cpu_shares,
        memory_limit: memory,
        memory_swap_limit: swap,
        oom_score_adj,
        cpuset_cpus: cpuset_list(&field.at("cpuset_cpus"), cpuset_cpus)?,
        cpuset_mems: cpuset_list(&field.at("cpuset_mems"), cpuset_mems)?,
        hugepage_limits: super::each(field, "hugepage_limits", hugepage_limits, hugepage_limit)?,
        unified: super::map(&field.at("unified"), unified)?,
    }))
}

fn hugepage_limit(field: &Field<'_>, limit: cri::HugepageLimit) -> Result<HugepageLimit> {
    let cri::HugepageLimit { page_size, limit } = limit;
    if !kernel::is_page_size(&page_size) {
        let want = "must be a size as the kernel names it, for example 2MB";
        return Err(field.at("page_size").invalid(page_size, want));
    }
    Ok(HugepageLimit { page_size, limit })
}

/// Names of cgroup v2 files and their values. On v1 `cgroups` refuses them for a container.
fn check_unified(field: &Field<'_>, unified: &HashMap<String, String>) -> Result<()> {
    super::at_most(field, unified.len(), MAX_FILES)?;
    for (file, value) in unified {
        if !kernel::is_limit_file(file) {
            let want = "must be the name of a controller's cgroup v2 file, for example memory.high";
            return Err(field.invalid(file, want));
        }
        if value.contains(['\0', '\n']) || value.len() > MAX_VALUE {
            let want = format!("the value must be one line of at most {MAX_VALUE} bytes");
            return Err(field.invalid((file, value), want));
        }
    }
    Ok(())
}

fn cpuset_list(field: &Field<'_>, list: String) -> Result<String> {
    if list.is_empty() || kernel::is_cpuset_list(&list) {
        Ok(list)
    } else {
        Err(field.invalid(list, "must be a list of numbers and ranges, for example 0-3,8"))
    }
}

/// The resources as requested.
pub(super) fn resources_out(resources: &Resources) -> cri::LinuxContainerResources {
    let Resources {
        cpu_period,
        cpu_quota,
        cpu_shares,
        memory_limit,
        memory_swap_limit,
        oom_score_adj,
        cpuset_cpus,
        cpuset_mems,
        hugepage_limits,
        unified,
    } = resources;
    let hugepage = |limit: &HugepageLimit| {
        let HugepageLimit { page_size, limit } = limit;
        cri::HugepageLimit { page_size: page_size.clone(), limit: *limit }
    };
    cri::LinuxContainerResources {
        cpu_period: *cpu_period,
        cpu_quota: *cpu_quota,
        cpu_shares: *cpu_shares,
        memory_limit_in_bytes: *memory_limit,
        oom_score_adj: *oom_score_adj,
        cpuset_cpus: cpuset_cpus.clone(),
        cpuset_mems: cpuset_mems.clone(),
        hugepage_limits: hugepage_limits.iter().map(hugepage).collect(),
        unified: super::unmap(unified),
        memory_swap_limit_in_bytes: *memory_swap_limit,
    }
}
