//! Converts container stats.

use crate::stats::{ContainerStats, Cpu, Memory, Swap, WritableLayer};
use cri_api::v1 as cri;
use model::ContainerRecord;
use std::path::Path;

fn value(value: u64) -> Option<cri::UInt64Value> {
    Some(cri::UInt64Value { value })
}

/// Attributes are always set, because kubelet dereferences them without a check. Without values (`None`: the
/// container is not running) everything else is absent. `store` is a folder that always exists: kubelet calls
/// stat on it, and if that fails, kubelet has no summary of the whole node.
pub(crate) fn container_stats(
    container: &ContainerRecord,
    stats: Option<&ContainerStats>,
    store: &Path,
) -> cri::ContainerStats {
    cri::ContainerStats {
        attributes: Some(super::container::attributes(container)),
        cpu: stats.map(|stats| cpu(&stats.cpu)),
        memory: stats.map(|stats| memory(&stats.memory)),
        writable_layer: stats.and_then(|stats| stats.writable_layer).map(|layer| {
            let WritableLayer { timestamp, used_bytes, inodes_used } = layer;
            cri::FilesystemUsage {
                timestamp,
                fs_id: Some(cri::FilesystemIdentifier { mountpoint: store.display().to_string() }),
                used_bytes: value(used_bytes),
                inodes_used: value(inodes_used),
            }
        }),
        swap: stats.and_then(|stats| stats.swap.as_ref()).map(swap),
        // Pressure stall information exists only on cgroup v2.
        io: None,
    }
}

fn cpu(stats: &Cpu) -> cri::CpuUsage {
    let Cpu { timestamp, usage_core_nano_seconds, usage_nano_cores, psi: _ } = *stats;
    cri::CpuUsage {
        timestamp,
        usage_core_nano_seconds: value(usage_core_nano_seconds),
        usage_nano_cores: usage_nano_cores.and_then(value),
        psi: None,
    }
}

fn memory(stats: &Memory) -> cri::MemoryUsage {
    let Memory {
        timestamp,
        working_set_bytes,
        available_bytes,
        usage_bytes,
        rss_bytes,
        page_faults,
        major_page_faults,
        psi: _,
    } = *stats;
    cri::MemoryUsage {
        timestamp,
        working_set_bytes: value(working_set_bytes),
        available_bytes: available_bytes.and_then(value),
        usage_bytes: value(usage_bytes),
        rss_bytes: value(rss_bytes),
        page_faults: value(page_faults),
        major_page_faults: value(major_page_faults),
        psi: None,
    }
}

fn swap(stats: &Swap) -> cri::SwapUsage {
    let Swap { timestamp, swap_available_bytes, swap_usage_bytes } = *stats;
    cri::SwapUsage {
        timestamp,
        swap_available_bytes: swap_available_bytes.and_then(value),
        swap_usage_bytes: value(swap_usage_bytes),
    }
}
