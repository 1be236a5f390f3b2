//! Sandboxes: life cycle, status, lists, namespaces, names.

use anyhow::{Context as _, Result};
use cri_api::v1::{self as api, PodSandboxState};
use tonic::Code;

use crate::cgroup::{self, Driver};
use crate::context::Context;
use crate::expect::ensure;
use crate::runner::{Test, test};
use crate::shapes::{ContainerExt as _, PodExt as _};

pub(super) fn tests() -> Vec<Test> {
    vec![
        test!(version_has_every_field),
        test!(status_has_both_conditions),
        test!(runtime_config_has_the_driver).ours(),
        test!(life_of_a_sandbox),
        test!(attributes_are_echoed),
        test!(filters_combine),
        test!(stop_and_remove_are_idempotent),
        test!(remove_forces_stop),
        test!(prefix_finds_a_pod),
        test!(equal_request_joins).ours(),
        test!(stopped_pod_refuses_containers),
    ]
}

async fn version_has_every_field(cx: Context) -> Result<()> {
    let v = cx.cri.version().await?;
    ensure!(v.version == "0.1.0", "version is `{}`", v.version);
    ensure!(v.runtime_api_version == "v1", "runtime_api_version is `{}`", v.runtime_api_version);
    ensure!(!v.runtime_version.is_empty(), "runtime_version is empty");
    ensure!(cx.node.is_foreign() || v.runtime_name == "copepod", "runtime_name is `{}`", v.runtime_name);
    Ok(())
}

async fn status_has_both_conditions(cx: Context) -> Result<()> {
    let r = cx.cri.status(true).await?;
    let status = r.status.context("no status")?;
    for kind in ["RuntimeReady", "NetworkReady"] {
        let c = status.conditions.iter().find(|c| c.r#type == kind).with_context(|| format!("no {kind}"))?;
        ensure!(c.status, "{kind} is false: {} {}", c.reason, c.message);
    }
    if !cx.node.is_foreign() {
        let handler = r.runtime_handlers.iter().find(|h| h.name.is_empty()).context("no nameless handler")?;
        let f = handler.features.unwrap_or_default();
        // Whether there are user namespaces depends on the host: `userns` has tests for that.
        ensure!(
            f.recursive_read_only_mounts,
            "the features of the handler are not those of this host: {f:?}"
        );
        let f = r.features.unwrap_or_default();
        ensure!(f.supplemental_groups_policy && f.mount_options, "features are not announced: {f:?}");
    }
    // The words of containerd's key, which crictl shows as they are.
    let json = |key: &str| key != "lastCNILoadStatus" && !cx.node.is_foreign();
    for (key, value) in r.info.iter().filter(|(key, _)| json(key)) {
        let parsed: std::result::Result<serde_json::Value, _> = serde_json::from_str(value);
        ensure!(parsed.is_ok(), "info[{key}] is not JSON: {value}");
    }
    Ok(())
}

async fn runtime_config_has_the_driver(cx: Context) -> Result<()> {
    let r = cx.cri.runtime.clone().runtime_config(api::RuntimeConfigRequest {}).await?.into_inner();
    let driver = r.linux.context("no linux part")?.cgroup_driver();
    let expected = match cgroup::driver() {
        Driver::Cgroupfs => api::CgroupDriver::Cgroupfs,
        Driver::Systemd => api::CgroupDriver::Systemd,
    };
    ensure!(driver == expected, "the cgroup driver is {driver:?}");
    let network = api::NetworkConfig { pod_cidr: String::from("10.1.0.0/16") };
    let config = api::RuntimeConfig { network_config: Some(network) };
    cx.cri
        .runtime
        .clone()
        .update_runtime_config(api::UpdateRuntimeConfigRequest { runtime_config: Some(config) })
        .await?;
    Ok(())
}

async fn life_of_a_sandbox(cx: Context) -> Result<()> {
    let config = cx.pod_config().own_network();
    let pod = cx.pod_of(config).await?;
    let status = cx.cri.pod_status(&pod.id).await?.status.context("no status")?;
    ensure!(status.state() == PodSandboxState::SandboxReady, "a running pod is {:?}", status.state());
    ensure!(status.created_at > 1_700_000_000_000_000_000, "created_at is {}", status.created_at);
    let ip = status.network.map(|n| n.ip).unwrap_or_default();
    ensure!(ip.parse::<std::net::IpAddr>().is_ok(), "ip is `{ip}`");
    cx.cri.stop_pod(&pod.id).await?;
    let status = cx.cri.pod_status(&pod.id).await?.status.context("no status")?;
    ensure!(status.state() == PodSandboxState::SandboxNotready, "a stopped pod is {:?}", status.state());
    cx.cri.remove_pod(&pod.id).await?;
    let gone = cx.cri.pod_status(&pod.id).await.err().context("a removed pod has a status")?;
    ensure!(gone.code() == Code::NotFound, "the status of a removed pod: {gone}");
    ensure!(!cx.cri.pods(None).await?.iter().any(|p| p.id == pod.id), "a removed pod is listed");
    Ok(())
}

async fn attributes_are_echoed(cx: Context) -> Result<()> {
    let mut config = cx.pod_config().label("io.kubernetes.pod.name", "x y\u{e4}").label("empty", "");
    config.annotations.insert(String::from("raw"), String::from("{\"a\": [1]}\n  indented"));
    let meta = config.metadata.as_mut().context("metadata")?;
    meta.attempt = 7;
    let pod = cx.pod_of(config.clone()).await?;
    let status = cx.cri.pod_status(&pod.id).await?.status.context("no status")?;
    ensure!(
        status.metadata == config.metadata
            && status.labels == config.labels
            && status.annotations == config.annotations,
        "of {config:?} the status shows {status:?}"
    );
    let options =
        status.linux.and_then(|l| l.namespaces).and_then(|n| n.options).context("no namespace options")?;
    let asked =
        config.linux.and_then(|l| l.security_context).and_then(|s| s.namespace_options).context("asked")?;
    ensure!(
        options.network == asked.network && options.pid == asked.pid && options.ipc == asked.ipc,
        "of the namespace options {asked:?} the status shows {options:?}"
    );
    let listed = cx.cri.pods(None).await?.into_iter().find(|p| p.id == pod.id).context("not listed")?;
    ensure!(
        listed.metadata == config.metadata
            && listed.labels == config.labels
            && listed.annotations == config.annotations,
        "the list shows {listed:?}"
    );
    ensure!(listed.created_at == status.created_at, "created_at differs between list and status");
    Ok(())
}

async fn filters_combine(cx: Context) -> Result<()> {
    let one = cx.pod_of(cx.pod_config().label("app", "one").label("tier", "x")).await?;
    let two = cx.pod_of(cx.pod_config().label("app", "two").label("tier", "x")).await?;
    cx.cri.stop_pod(&two.id).await?;
    let ids = |filter: api::PodSandboxFilter| {
        let cx = cx.clone();
        async move {
            let mut ids: Vec<String> = cx.cri.pods(Some(filter)).await?.into_iter().map(|p| p.id).collect();
            ids.sort();
            Ok::<_, anyhow::Error>(ids)
        }
    };
    let labels =
        |pairs: &[(&str, &str)]| pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    let both =
        ids(api::PodSandboxFilter { label_selector: labels(&[("tier", "x")]), ..Default::default() }).await?;
    ensure!(both.len() == 2, "tier=x gives {both:?}");
    let first = ids(api::PodSandboxFilter {
        label_selector: labels(&[("tier", "x"), ("app", "one")]),
        ..Default::default()
    })
    .await?;
    ensure!(first == [one.id.clone()], "tier=x,app=one gives {first:?}");
    let state = Some(api::PodSandboxStateValue { state: PodSandboxState::SandboxNotready.into() });
    let stopped =
        ids(api::PodSandboxFilter { state, label_selector: labels(&[("tier", "x")]), ..Default::default() })
            .await?;
    ensure!(stopped == [two.id.clone()], "NOTREADY gives {stopped:?}");
    let none = ids(api::PodSandboxFilter { id: one.id.clone(), state, ..Default::default() }).await?;
    ensure!(none.is_empty(), "id and state must both hold: {none:?}");
    let prefix = one.id.get(..13).unwrap_or_default().to_owned();
    let by_prefix = ids(api::PodSandboxFilter { id: prefix, ..Default::default() }).await?;
    ensure!(by_prefix == [one.id], "prefix gives {by_prefix:?}");
    Ok(())
}

async fn stop_and_remove_are_idempotent(cx: Context) -> Result<()> {
    let absent = "0".repeat(64);
    cx.cri.stop_pod(&absent).await.context("stop an unknown pod")?;
    cx.cri.remove_pod(&absent).await.context("remove an unknown pod")?;
    let pod = cx.pod().await?;
    for _ in 0..2 {
        cx.cri.stop_pod(&pod.id).await?;
    }
    for _ in 0..2 {
        cx.cri.remove_pod(&pod.id).await?;
    }
    Ok(())
}

async fn remove_forces_stop(cx: Context) -> Result<()> {
    let pod = cx.pod().await?;
    let id = cx.start(&pod, &cx.sleeper("one")).await?;
    cx.cri.remove_pod(&pod.id).await?;
    let gone = cx.cri.container(&id).await.err().context("a container of a removed pod has a status")?;
    ensure!(
        gone.downcast_ref::<tonic::Status>().is_some_and(|s| s.code() == Code::NotFound),
        "the status of a container of a removed pod: {gone:#}"
    );
    Ok(())
}

async fn prefix_finds_a_pod(cx: Context) -> Result<()> {
    let pod = cx.pod().await?;
    let prefix = pod.id.get(..13).unwrap_or_default();
    let status = cx.cri.pod_status(prefix).await?.status.context("no status")?;
    ensure!(status.id == pod.id, "the prefix {prefix} gives pod {} instead of {}", status.id, pod.id);
    cx.cri.drop_pod(prefix).await?;
    Ok(())
}

/// A client whose call timed out retries: the second call must not fail because the first reserved the name.
async fn equal_request_joins(cx: Context) -> Result<()> {
    let config = cx.pod_config().own_network();
    let (a, b, c) = tokio::join!(cx.cri.run_pod(&config), cx.cri.run_pod(&config), cx.cri.run_pod(&config));
    let (a, b, c) = (a?, b?, c?);
    ensure!(a == b && b == c, "three equal requests made {a}, {b}, {c}");
    let again = cx.cri.run_pod(&config).await?;
    ensure!(again == a, "a later equal request made {again}");
    Ok(())
}

async fn stopped_pod_refuses_containers(cx: Context) -> Result<()> {
    let pod = cx.pod().await?;
    cx.need(&crate::fixture::Fixture::image("busybox")).await?;
    cx.cri.stop_pod(&pod.id).await?;
    let refused = cx.cri.create(&pod.id, &cx.sleeper("late").like(&pod.config), &pod.config).await;
    ensure!(refused.is_err(), "a container was created in a stopped pod");
    ensure!(
        cx.cri.containers(None).await?.iter().all(|c| c.pod_sandbox_id != pod.id),
        "the refused container is listed"
    );
    Ok(())
}
