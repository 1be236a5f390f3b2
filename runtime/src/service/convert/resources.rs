//! Converts `LinuxContainerResources`.

use super::{Field, Result};
use cri_api::v1 as cri;
use model::{HugepageLimit, Resources};
use std::collections::HashMap;

/// Absent means no limits.
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
        memory_limit_in_bytes,
        oom_score_adj,
        cpuset_cpus,
        cpuset_mems,
        hugepage_limits,
        unified,
        memory_swap_limit_in_bytes,
    } = given;
    // The kernel's limits of cpu.cfs_period_us.
    if cpu_period != 0 && !(1_000..=1_000_000).contains(&cpu_period) {
        return Err(field
            .at("cpu_period")
            .invalid(cpu_period, "must be 0 (the kernel's default) or 1000 to 1000000 µs"));
    }
    if (1..1_000).contains(&cpu_quota) {
        return Err(field
            .at("cpu_quota")
            .invalid(cpu_quota, "must be at least 1000 µs, or at most 0 for no limit"));
    }
    if cpu_shares < 0 {
        return Err(field.at("cpu_shares").invalid(cpu_shares, "must not be negative"));
    }
    if memory_limit_in_bytes < 0 {
        return Err(field
            .at("memory_limit_in_bytes")
            .invalid(memory_limit_in_bytes, "must be 0 (no limit) or more"));
    }
    let swap = memory_swap_limit_in_bytes;
    if swap < -1 || (swap > 0 && swap < memory_limit_in_bytes) {
        let want = format!(
            "counts memory and swap: must be -1 (no limit), 0 (same as memory) or at least memory_limit_in_bytes ({memory_limit_in_bytes})"
        );
        return Err(field.at("memory_swap_limit_in_bytes").invalid(swap, want));
    }
    if !(-1000..=1000).contains(&oom_score_adj) {
        return Err(field.at("oom_score_adj").invalid(oom_score_adj, "must be -1000 to 1000"));
    }
    let hugepage_limits = super::each(field, "hugepage_limits", hugepage_limits, hugepage_limit)?;
    check_unified(field, &unified)?;
    Ok(Some(Resources {
        cpu_period,
        cpu_quota,
        cpu_shares,
        memory_limit: memory_limit_in_bytes,
        memory_swap_limit: memory_swap_limit_in_bytes,
        oom_score_adj,
        cpuset_cpus: cpu_list(&field.at("cpuset_cpus"), cpuset_cpus)?,
        cpuset_mems: cpu_list(&field.at("cpuset_mems"), cpuset_mems)?,
        hugepage_limits,
        unified: super::map(&field.at("unified"), unified)?,
    }))
}

fn hugepage_limit(field: &Field<'_>, limit: cri::HugepageLimit) -> Result<HugepageLimit> {
    let cri::HugepageLimit { page_size, limit } = limit;
    let digits = page_size.trim_end_matches(['K', 'M', 'G', 'B']);
    let unit = &page_size[digits.len()..];
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) || !["KB", "MB", "GB"].contains(&unit)
    {
        return Err(field
            .at("page_size")
            .invalid(page_size, "must be a size as the kernel names it, for example 2MB"));
    }
    Ok(HugepageLimit { page_size, limit })
}

/// Names of cgroup v2 files and their values; which of them exist is checked by the kernel.
fn check_unified(field: &Field<'_>, unified: &HashMap<String, String>) -> Result<()> {
    for (file, value) in unified {
        let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'.' | b'_' | b'-');
        if !file.contains('.') || file.starts_with('.') || !file.bytes().all(plain) {
            return Err(field
                .at("unified")
                .invalid(file, "must be the name of a cgroup v2 file, for example memory.high"));
        }
        if value.contains(['\0', '\n']) {
            return Err(field.at("unified").invalid((file, value), "must be one line"));
        }
    }
    Ok(())
}

/// The kernel's list format. Whether these processors exist is checked by the kernel.
fn cpu_list(field: &Field<'_>, list: String) -> Result<String> {
    let number = |text: &str| !text.is_empty() && text.len() < 6 && text.bytes().all(|b| b.is_ascii_digit());
    let range = |part: &str| match part.split_once('-') {
        Some((from, to)) => number(from) && number(to),
        None => number(part),
    };
    if list.is_empty() || (list.len() <= 4096 && list.split(',').all(range)) {
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
