//! Faulty CNI plugins, the environment of plugins, and DEL after a lost configuration or a failure.

use std::path::PathBuf;

use anyhow::{Context as _, Result};
use cri_api::v1::{DnsConfig, Protocol, StatusRequest};
use serde_json::{Value, json};

use super::network::{ip, network_becomes};
use crate::context::Context;
use crate::expect::ensure;
use crate::isolation::command;
use crate::registry::free_port;
use crate::runner::{Test, test};
use crate::shapes::PodExt as _;
use crate::wait::{self, secs};

pub(super) fn tests() -> Vec<Test> {
    vec![
        test!(failing_plugin).own(),
        test!(hanging_plugin).own(),
        test!(garbage_plugin).own(),
        test!(missing_plugin).own(),
        test!(plugin_sees_the_pod).own(),
        test!(plugin_sees_ports_and_dns).own(),
        test!(deletion_without_configuration).own(),
        test!(deletion_is_repeated_without_the_pod).own(),
    ]
}

/// Starting a pod with this plugin must fail with the given text and leave nothing.
async fn refused(cx: &Context, plugin: &str, expected: &str) -> Result<()> {
    cx.node.network.uninstall()?;
    network_becomes(cx, false).await?;
    // The network counts as ready: whether plugins of CNI 1.0 work shows only when they are run.
    cx.node.network.conflist("10-bad.conflist", &json!([{"type": plugin}]))?;
    network_becomes(cx, true).await?;
    let e = cx
        .cri
        .run_pod(&cx.pod_config().own_network())
        .await
        .err()
        .with_context(|| format!("a pod came up with plugin {plugin}"))?;
    ensure!(e.message().contains(expected), "the error does not say `{expected}`: {e}");
    let pods = cx.cri.pods(None).await?;
    for pod in &pods {
        ensure!(
            pod.state() == cri_api::v1::PodSandboxState::SandboxNotready,
            "the pod that failed is ready: {pod:?}"
        );
        cx.cri.drop_pod(&pod.id).await?;
    }
    // The node still works.
    cx.node.network.uninstall()?;
    cx.node.network.install()?;
    network_becomes(cx, true).await?;
    let good = cx.pod_of(cx.pod_config().own_network()).await?;
    cx.cri.drop_pod(&good.id).await?;
    Ok(())
}

async fn failing_plugin(cx: Context) -> Result<()> {
    cx.node.network.script("fails", "[ \"$CNI_COMMAND\" = DEL ] && exit 0; cat > /dev/null; echo '{\"cniVersion\":\"1.0.0\",\"code\":11,\"msg\":\"no more addresses today\"}'; exit 1")?;
    refused(&cx, "fails", "no more addresses today").await
}

async fn hanging_plugin(cx: Context) -> Result<()> {
    cx.node.network.script("hangs", "[ \"$CNI_COMMAND\" = DEL ] && exit 0; sleep 1000")?;
    // The daemon's time-out for plugins is 5 s here.
    let start = std::time::Instant::now();
    refused(&cx, "hangs", "hangs").await?;
    ensure!(
        start.elapsed() < wait::longer(secs(25)),
        "with a limit of 5 s for plugins it took {:?}",
        start.elapsed()
    );
    Ok(())
}

async fn garbage_plugin(cx: Context) -> Result<()> {
    cx.node.network.script(
        "garbage",
        "[ \"$CNI_COMMAND\" = DEL ] && exit 0; cat > /dev/null; head -c 100000 /dev/urandom; exit 0",
    )?;
    refused(&cx, "garbage", "garbage").await
}

async fn missing_plugin(cx: Context) -> Result<()> {
    refused(&cx, "nowhere", "nowhere").await
}

/// Installs a plugin that writes the output of `line` to the returned path with `.ADD` or `.DEL`, and answers with addresses.
async fn spy(cx: &Context, line: &str, addresses: &[&str], plugin: &Value) -> Result<PathBuf> {
    let seen = cx.node.paths.dir.join("seen");
    let ips: Vec<Value> =
        addresses.iter().map(|address| json!({"address": address, "interface": 0})).collect();
    let interfaces = json!([{"name": "eth0", "sandbox": "x"}]);
    let answer = json!({"cniVersion": "1.0.0", "interfaces": interfaces, "ips": ips});
    let body = format!("{{ {line}; }} > {}.$CNI_COMMAND; echo '{answer}'", seen.display());
    cx.node.network.script("spy", &body)?;
    cx.node.network.uninstall()?;
    cx.node.network.conflist("10-spy.conflist", &json!([plugin]))?;
    network_becomes(cx, true).await?;
    Ok(seen)
}

async fn plugin_sees_the_pod(cx: Context) -> Result<()> {
    let line = "cat > /dev/null; echo \"the plugin's own line\" >&2; env";
    let seen = spy(&cx, line, &["10.9.8.7/24"], &json!({"type": "spy"})).await?;
    let config = cx.pod_config().own_network();
    let pod = cx.pod_of(config.clone()).await?;
    let shown = ip(&cx, &pod).await?;
    ensure!(shown == "10.9.8.7", "the plugin's address is shown as {shown:?}");
    let added = std::fs::read_to_string(format!("{}.ADD", seen.display()))?;
    let uid = config.metadata.map(|m| m.uid).unwrap_or_default();
    for part in [
        format!("CNI_CONTAINERID={}", pod.id),
        String::from("CNI_IFNAME=eth0"),
        String::from("CNI_NETNS=/"),
        String::from("IgnoreUnknown=1"),
        format!("K8S_POD_NAME={}", cx.name),
        String::from("K8S_POD_NAMESPACE=it"),
        format!("K8S_POD_INFRA_CONTAINER_ID={}", pod.id),
        format!("K8S_POD_UID={uid}"),
    ] {
        ensure!(added.contains(&part), "ADD did not see {part} in\n{added}");
    }
    ensure!(cx.node.last_log(200).contains("the plugin's own line"), "standard error is not in the log");
    cx.cri.drop_pod(&pod.id).await?;
    let deleted = std::fs::read_to_string(format!("{}.DEL", seen.display()))?;
    ensure!(
        deleted.contains(&format!("CNI_CONTAINERID={}", pod.id)) && deleted.contains("K8S_POD_NAMESPACE=it"),
        "DEL for pod {} had the environment\n{deleted}",
        pod.id
    );
    Ok(())
}

async fn plugin_sees_ports_and_dns(cx: Context) -> Result<()> {
    let capabilities = json!({"portMappings": true, "dns": true});
    let plugin = json!({"type": "spy", "capabilities": capabilities});
    let seen = spy(&cx, "cat", &["10.9.8.7/24", "fd00::7/64"], &plugin).await?;
    let mut config = cx
        .pod_config()
        .own_network()
        .port(Protocol::Sctp, 36412, 30412)
        .port(Protocol::Udp, 53, 30053)
        .port(Protocol::Tcp, 80, 30080)
        .port(Protocol::Tcp, 81, 0);
    config.port_mappings.first_mut().context("no port")?.host_ip = String::from("fd00::1");
    config.dns_config = Some(DnsConfig {
        servers: vec![String::from("10.10.10.10")],
        searches: vec![String::from("cluster.local")],
        options: vec![String::from("ndots:5")],
    });
    let pod = cx.pod_of(config).await?;
    let network = cx.cri.pod_status(&pod.id).await?.status.and_then(|it| it.network).context("no network")?;
    let others: Vec<&str> = network.additional_ips.iter().map(|it| it.ip.as_str()).collect();
    ensure!(network.ip == "10.9.8.7" && others == ["fd00::7"], "the addresses are {network:?}");
    let added: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(format!("{}.ADD", seen.display()))?)?;
    let wanted = json!({
        "portMappings": [
            {"hostPort": 30412, "containerPort": 36412, "protocol": "sctp", "hostIP": "fd00::1"},
            {"hostPort": 30053, "containerPort": 53, "protocol": "udp", "hostIP": ""},
            {"hostPort": 30080, "containerPort": 80, "protocol": "tcp", "hostIP": ""},
        ],
        "dns": {"servers": ["10.10.10.10"], "searches": ["cluster.local"], "options": ["ndots:5"]},
    });
    ensure!(added["runtimeConfig"] == wanted, "ADD had {}", added["runtimeConfig"]);
    cx.cri.drop_pod(&pod.id).await?;
    Ok(())
}

/// DEL runs with the configuration of ADD, even when that file is gone.
async fn deletion_without_configuration(cx: Context) -> Result<()> {
    let port = free_port()?;
    let pod = cx.pod_of(cx.pod_config().own_network().port(Protocol::Tcp, 80, port.into())).await?;
    cx.node.network.uninstall()?;
    cx.node.crash().await?;
    cx.cri.drop_pod(&pod.id).await?;
    ensure!(cx.node.network.leased().is_empty(), "the address leaked");
    ensure!(
        !command("iptables-save", &["-t", "nat"])?.contains(&format!("--dport {port} ")),
        "the host port leaked"
    );
    Ok(())
}

/// What verbose Status tells of networks that are still to be released.
pub(super) async fn releases(cx: &Context) -> Result<Value> {
    let request = StatusRequest { verbose: true };
    let info = cx.cri.runtime.clone().status(request).await?.into_inner().info;
    Ok(serde_json::from_str(info.get("networkReleases").context("verbose Status has no networkReleases")?)?)
}

/// A pod whose DEL fails can be stopped and removed. DEL is repeated in the background, also by the next daemon, and until
/// then its lease stays and `crictl info` shows it.
async fn deletion_is_repeated_without_the_pod(cx: Context) -> Result<()> {
    let gate = cx.node.paths.dir.join("gate");
    let body = format!(
        "cat > /dev/null; if [ \"$CNI_COMMAND\" = DEL ] && [ ! -e {} ]; then echo '{{\"cniVersion\":\"1.0.0\",\"code\":7,\"msg\":\"not now\"}}'; exit 1; fi; \
         [ \"$CNI_COMMAND\" = ADD ] && echo '{{\"cniVersion\":\"1.0.0\",\"ips\":[{{\"address\":\"10.9.8.7/24\"}}]}}'; exit 0",
        gate.display()
    );
    cx.node.network.script("gated", &body)?;
    cx.node.network.uninstall()?;
    cx.node.network.conflist("10-gated.conflist", &json!([{"type": "gated"}]))?;
    let pod = cx.pod_of(cx.pod_config().own_network()).await?;
    cx.start(&pod, &cx.sleeper("one")).await?;
    cx.cri.drop_pod(&pod.id).await.context("the pod whose DEL fails")?;
    ensure!(cx.cri.pods(None).await?.is_empty(), "the pod is still listed");
    let shown = releases(&cx).await?;
    let (first, problem) = (&shown["oldest"][0], shown["oldest"][0]["problem"].as_str().unwrap_or_default());
    ensure!(
        shown["count"] == 1 && first["pod"] == pod.id.as_str() && problem.contains("not now (code 7)"),
        "verbose Status shows {shown}"
    );
    ensure!(cx.node.last_log(200).contains("cannot release a pod's network"), "the log does not tell it");
    cx.node.crash().await?;
    wait::until("the next daemon to try it", secs(20), || async {
        Ok((releases(&cx).await?["oldest"][0]["attempts"].as_u64() >= Some(1)).then_some(()))
    })
    .await?;
    std::fs::write(&gate, "")?;
    wait::until("DEL to be repeated", secs(30), || async {
        Ok((releases(&cx).await?["count"] == 0).then_some(()))
    })
    .await
}
