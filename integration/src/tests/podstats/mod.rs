//! Stats of pods.

mod lists;
mod pressure;
mod values;

use anyhow::{Context as _, Result};
use cri_api::v1 as api;

use crate::context::Context;
use crate::runner::Test;

pub(super) fn tests() -> Vec<Test> {
    [values::tests(), pressure::tests(), lists::tests()].concat()
}

async fn stats(cx: &Context, pod: &str) -> Result<api::PodSandboxStats> {
    cx.cri.pod_stats(pod).await?.context("PodSandboxStats without stats")
}

async fn linux(cx: &Context, pod: &str) -> Result<api::LinuxPodSandboxStats> {
    stats(cx, pod).await?.linux.context("stats without `linux`: kubelet would panic")
}

pub(super) fn value(value: Option<api::UInt64Value>, what: &str) -> Result<u64> {
    Ok(value.with_context(|| format!("no {what}"))?.value)
}

/// The interfaces of a reply: name; bytes and errors received, bytes and errors sent.
fn answered(network: &api::NetworkUsage) -> Result<Vec<(String, [u64; 4])>> {
    let mut found = Vec::new();
    for it in &network.interfaces {
        let counters = [
            value(it.rx_bytes, "rx_bytes")?,
            value(it.rx_errors, "rx_errors")?,
            value(it.tx_bytes, "tx_bytes")?,
            value(it.tx_errors, "tx_errors")?,
        ];
        found.push((it.name.clone(), counters));
    }
    Ok(found)
}
