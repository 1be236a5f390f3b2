//! Figures of containers.

use crate::stats::{ContainerStats, Cpu, Memory, Swap, WritableLayer};
use cri_api::v1 as cri;
use model::ContainerRecord;
use std::path::Path;

fn value(value: u64) -> Option<cri::UInt64Value> {
    Some(cri::UInt64Value { value })
}

/// Attributes are always there: kubelet dereferences them without looking. Without figures (`None`, a
/// container that does not run) the rest is absent. `store` is a folder that never goes away: kubelet calls
/// stat on it, and one failure costs the whole summary.
pub(crate) fn container_stats(
    container: &ContainerRecord,
    figures: Option<&ContainerStats>,
    store: &Path,
) -> cri::ContainerStats {
    cri::ContainerStats {
        attributes: Some(super::container::attributes(container)),
        cpu: figures.map(|figures| cpu(&figures.cpu)),
        memory: figures.map(|figures| memory(&figures.memory)),
        writable_layer: figures.and_then(|figures| figures.writable_layer).map(|layer| {
            let WritableLayer { timestamp, used_bytes, inodes_used } = layer;
            cri::FilesystemUsage {
                timestamp,
                fs_id: Some(cri::FilesystemIdentifier { mountpoint: store.display().to_string() }),
                used_bytes: value(used_bytes),
                inodes_used: value(inodes_used),
            }
        }),
        swap: figures.and_then(|figures| figures.swap.as_ref()).map(swap),
        // Pressure is a figure of cgroup v2.
        io: None,
    }
}

fn cpu(figures: &Cpu) -> cri::CpuUsage {
    let Cpu { timestamp, usage_core_nano_seconds, usage_nano_cores } = *figures;
    cri::CpuUsage {
        timestamp,
        usage_core_nano_seconds: value(usage_core_nano_seconds),
        usage_nano_cores: usage_nano_cores.and_then(value),
        psi: None,
    }
}

fn memory(figures: &Memory) -> cri::MemoryUsage {
    let Memory {
        timestamp,
        working_set_bytes,
        available_bytes,
        usage_bytes,
        rss_bytes,
        page_faults,
        major_page_faults,
    } = *figures;
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

fn swap(figures: &Swap) -> cri::SwapUsage {
    let Swap { timestamp, swap_available_bytes, swap_usage_bytes } = *figures;
    cri::SwapUsage {
        timestamp,
        swap_available_bytes: swap_available_bytes.and_then(value),
        swap_usage_bytes: value(swap_usage_bytes),
    }
}
