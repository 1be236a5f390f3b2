//! Converts stats of containers and pods.

use crate::stats::{
    ContainerStats, Cpu, Interface, Io, Memory, Network, PodStats, Processes, Psi, PsiData, Swap,
    WritableLayer,
};
use cri_api::v1 as cri;
use model::{ContainerRecord, PodRecord};
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
        io: stats.and_then(|stats| stats.io.as_ref()).map(io),
    }
}

/// Attributes and `linux` are always set, because kubelet dereferences them without a check; without values, they are
/// all that is set.
pub(crate) fn pod_stats(
    pod: &PodRecord,
    stats: PodStats,
    containers: Vec<cri::ContainerStats>,
) -> cri::PodSandboxStats {
    let PodStats { usage, network: interfaces, processes } = stats;
    let usage = usage.as_ref();
    cri::PodSandboxStats {
        attributes: Some(super::pod::attributes(pod)),
        linux: Some(cri::LinuxPodSandboxStats {
            cpu: usage.map(|usage| cpu(&usage.cpu)),
            memory: usage.map(|usage| memory(&usage.memory)),
            network: interfaces.map(network),
            process: processes.map(|Processes { timestamp, count }| cri::ProcessUsage {
                timestamp,
                process_count: value(count),
            }),
            containers,
            io: usage.and_then(|usage| usage.io.as_ref()).map(io),
        }),
        windows: None,
    }
}

/// The default interface is one of `interfaces` too, as in kubelet's summary. It is always set: kubelet dereferences it
/// without a check.
fn network(network: Network) -> cri::NetworkUsage {
    let Network { timestamp, interfaces, default } = network;
    let interfaces: Vec<_> = interfaces.into_iter().map(interface).collect();
    cri::NetworkUsage { timestamp, default_interface: interfaces.get(default).cloned(), interfaces }
}

fn interface(interface: Interface) -> cri::NetworkInterfaceUsage {
    let Interface { name, rx, tx } = interface;
    cri::NetworkInterfaceUsage {
        name,
        rx_bytes: value(rx.bytes),
        rx_errors: value(rx.errors),
        tx_bytes: value(tx.bytes),
        tx_errors: value(tx.errors),
    }
}

fn io(stats: &Io) -> cri::IoUsage {
    let Io { timestamp, psi: pressure } = *stats;
    cri::IoUsage { timestamp, psi: Some(psi(pressure)) }
}

fn psi(psi: Psi) -> cri::PsiStats {
    let line = |PsiData { total, avg10, avg60, avg300 }| Some(cri::PsiData { total, avg10, avg60, avg300 });
    cri::PsiStats { full: line(psi.full), some: line(psi.some) }
}

fn cpu(stats: &Cpu) -> cri::CpuUsage {
    let Cpu { timestamp, usage_core_nano_seconds, usage_nano_cores, psi: pressure } = *stats;
    cri::CpuUsage {
        timestamp,
        usage_core_nano_seconds: value(usage_core_nano_seconds),
        usage_nano_cores: usage_nano_cores.and_then(value),
        psi: pressure.map(psi),
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
        psi: pressure,
    } = *stats;
    cri::MemoryUsage {
        timestamp,
        working_set_bytes: value(working_set_bytes),
        available_bytes: available_bytes.and_then(value),
        usage_bytes: value(usage_bytes),
        rss_bytes: value(rss_bytes),
        page_faults: value(page_faults),
        major_page_faults: value(major_page_faults),
        psi: pressure.map(psi),
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
