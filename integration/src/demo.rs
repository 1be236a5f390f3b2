//! `make run`: shows one pod from image to removal, step by step.

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context as _, Result};

use crate::census::Census;
use crate::context::{Context, Pod};
use crate::fixture::Fixture;
use crate::node::{Node, Options};
use crate::shapes::{self, PodExt as _};

/// Runs the demonstration.
pub(crate) async fn run(bin: &Path) -> Result<bool> {
    let start = Instant::now();
    let step = |text: &str| println!("[{:6.2} s] {text}", start.elapsed().as_secs_f32());
    let before = Census::take(None);
    step("starting a registry, making images from Debian packages and pushing them");
    let fixture = Arc::new(Fixture::new(bin).await?);
    step(&format!("registry on 127.0.0.1:{} holds {} images", fixture.registry.port, fixture.images.len()));
    let node = Arc::new(Node::start(&fixture, &Options::default()).await?);
    let version = node.cri.version().await?;
    step(&format!(
        "{} {} answers on {}",
        version.runtime_name,
        version.runtime_version,
        node.paths.socket.display()
    ));
    let shown = show(&Context::new(Arc::clone(&fixture), Arc::clone(&node), "demo"), &step).await;
    let emptied = node.empty().await;
    let ended = node.terminate().await;
    shown?;
    emptied?;
    ended?;
    node.wipe();
    drop(node);
    drop(fixture);
    crate::cgroup::destroy(&shapes::CGROUP_PARENT);
    before.settle(None).await?;
    step("clean: no process, mount, network namespace, cgroup or interface is left");
    Ok(true)
}

async fn show(cx: &Context, step: &impl Fn(&str)) -> Result<()> {
    let image = cx.fixture.registry.plain("busybox:1");
    let id = cx.cri.pull(&image).await?;
    step(&format!("pulled {image}: {id}"));
    let pod: Pod = cx.pod_of(cx.pod_config().own_network()).await?;
    let status = cx.cri.pod_status(&pod.id).await?.status.context("no pod status")?;
    let ip = status.network.map(|n| n.ip).unwrap_or_default();
    step(&format!("pod {} runs with address {ip}", short(&pod.id)));
    let line = "echo \"hello from $(hostname)\"; ip -4 addr show eth0 | grep inet; exec sleep 1000";
    let container = cx.start(&pod, &shapes::container("hello", &image, &["/bin/sh", "-c", line])).await?;
    step(&format!("container {} runs", short(&container)));
    let path = cx.cri.container(&container).await?.log_path;
    crate::wait::until_true("the container's address in its log", crate::wait::secs(10), || {
        std::fs::read_to_string(&path).is_ok_and(|t| t.contains("inet"))
    })
    .await?;
    step("its log:");
    print!("{}", std::fs::read_to_string(&path)?);
    let out = cx.cri.exec(&container, &["/bin/ps"]).await?;
    step("`ps` by ExecSync:");
    print!("{}", out.stdout);
    cx.cri.stop(&container, 1).await?;
    let status = cx.cri.container(&container).await?;
    step(&format!("stopped: exit code {}, {}", status.exit_code, status.reason));
    cx.cri.drop_pod(&pod.id).await?;
    step("pod removed");
    Ok(())
}

fn short(id: &str) -> &str {
    id.get(..12).unwrap_or(id)
}
