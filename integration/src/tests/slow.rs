//! Operations that hang: what the error of a call whose deadline passes says, what verbose Status and the log say meanwhile,
//! and that nothing is listed once it has ended.

use std::future::Future;
use std::time::Duration;

use anyhow::{Context as _, Result};
use cri_api::v1 as api;
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use tonic::{Code, Response, Status};

use super::network::network_becomes;
use crate::context::Context;
use crate::cri::bounded;
use crate::expect::ensure;
use crate::fixture::Fixture;
use crate::fuse::Hang;
use crate::images::Recipe;
use crate::images::layer::{Packing, Writer};
use crate::proc;
use crate::runner::{Test, test};
use crate::shapes::{ContainerExt as _, PodExt as _};
use crate::stall::Stall;
use crate::wait::{self, secs};

pub(super) fn tests() -> Vec<Test> {
    vec![
        test!(a_plugin_that_hangs).own().limit(120),
        test!(a_registry_that_stalls).own(),
        test!(a_shim_that_hangs).ours(),
        test!(a_shim_that_does_not_start).own().limit(120),
        test!(a_volume_that_hangs).own().limit(180),
        test!(a_grace_period).ours(),
    ]
}

/// The deadline of a call that is made to hang.
const DEADLINE: Duration = Duration::from_secs(4);

/// The operations in verbose Status, as `crictl info` shows them.
async fn operations(cx: &Context) -> Result<Vec<Value>> {
    let info = cx.cri.status(true).await?.info;
    let shown: Value = serde_json::from_str(info.get("operations").context("no operations in Status")?)?;
    let oldest = shown.get("oldest").and_then(Value::as_array).context("no list of operations")?;
    ensure!(shown.get("count") == Some(&json!(oldest.len())), "the count is not that of the list: {shown}");
    Ok(oldest.clone())
}

fn text<'v>(operation: &'v Value, key: &str) -> &'v str {
    operation.get(key).and_then(Value::as_str).unwrap_or_default()
}

/// Waits until an operation for which `wanted` is true is listed.
async fn listed(cx: &Context, what: &str, wanted: impl Fn(&Value) -> bool) -> Result<Value> {
    wait::until(&format!("{what} in verbose Status"), secs(10), || async {
        let all = operations(cx).await?;
        let found = all.iter().find(|operation| wanted(operation)).cloned();
        match found {
            Some(found) => Ok(Some(found)),
            None => anyhow::bail!("{all:?}"),
        }
    })
    .await
}

/// Waits until no operation is listed for which `wanted` is true.
async fn ended(cx: &Context, what: &str, limit: Duration, wanted: impl Fn(&Value) -> bool) -> Result<()> {
    wait::until(&format!("{what} to leave verbose Status"), limit, || async {
        let all = operations(cx).await?;
        Ok((!all.iter().any(&wanted)).then_some(()))
    })
    .await
}

/// The error of a call whose deadline has passed, which must have these parts. On an emulated machine the client's own timer
/// may end before the reply arrives, which is sent 100 ms earlier at most; the daemon's log then has the error.
async fn late<T>(
    cx: &Context,
    name: &str,
    call: impl Future<Output = Result<Response<T>, Status>>,
    parts: &[&str],
) -> Result<()> {
    let error = call.await.err().context("a call that should hang has ended")?;
    if wait::is_slow() && error.code() == Code::Cancelled && error.message() == "Timeout expired" {
        let parts = [&["code=DeadlineExceeded"][..], parts].concat();
        return wait::until("the error in the log", secs(10), || async {
            logged(cx, name, &parts).map(Some)
        })
        .await;
    }
    ensure!(error.code() == Code::DeadlineExceeded, "not DeadlineExceeded: {error}");
    for part in parts {
        ensure!(error.message().contains(part), "the error does not say `{part}`: {}", error.message());
    }
    Ok(())
}

/// The last line of the log about a call that failed, which must have these parts.
fn logged(cx: &Context, call: &str, parts: &[&str]) -> Result<()> {
    let log = cx.node.last_log(1000);
    let wanted = format!("call=\"{call}\"");
    let lines = || log.lines().filter(|line| line.contains(&wanted) && line.contains("error="));
    let line = lines().next_back().with_context(|| format!("no line about {call} in\n{log}"))?;
    for part in parts {
        ensure!(line.contains(part), "`{part}` is not in the log line\n{line}");
    }
    Ok(())
}

async fn a_plugin_that_hangs(cx: Context) -> Result<()> {
    // The time-out for plugins is 5 s here, so that DEL, which hangs as well, can be waited for.
    cx.node.network.script("hangs", "sleep 1000")?;
    cx.node.network.uninstall()?;
    cx.node.network.conflist("10-hangs.conflist", &json!([{"type": "hangs"}]))?;
    network_becomes(&cx, true).await?;
    let config = cx.pod_config().own_network();
    let request = api::RunPodSandboxRequest { config: Some(config.clone()), runtime_handler: String::new() };
    let mut traced = bounded(request, DEADLINE);
    let trace = "4bf92f3577b34da6a3ce929d0e0e4736";
    traced.metadata_mut().insert("traceparent", format!("00-{trace}-00f067aa0ba902b7-01").parse()?);
    let mut runtime = cx.cri.runtime.clone();
    let call = tokio::spawn(async move { runtime.run_pod_sandbox(traced).await });
    let stage = "launch the pod: set up the network: CNI ADD of plugin hangs";
    let shown =
        listed(&cx, "the plugin", |it| text(it, "call") == "RunPodSandbox" && text(it, "stage") == stage)
            .await?;
    let id = text(&shown, "pod").to_owned();
    ensure!(
        text(&shown, "podName") == cx.name && text(&shown, "namespace") == "it" && id.len() == 64,
        "whose it is: {shown}"
    );
    ensure!(
        text(&shown, "traceId") == trace
            && shown.get("since").and_then(Value::as_i64).is_some_and(|at| at > 0),
        "since when, and the trace: {shown}"
    );
    let pod = format!("pod it/{}, id {id}", cx.name);
    late(
        &cx,
        "RunPodSandbox",
        async { call.await.map_err(|error| Status::internal(error.to_string()))? },
        &[stage, &pod, "look at the plugin's own log", "the work continues"],
    )
    .await?;
    logged(
        &cx,
        "RunPodSandbox",
        &[&format!("pod={id}"), &format!("pod_name=\"{}\"", cx.name), trace, stage],
    )?;
    // The caller has gone. The launch goes on: the plugin is killed, and DEL hangs too.
    let undo = listed(&cx, "the undo without a caller", |it| {
        text(it, "pod") == id
            && text(it, "stage")
                .contains("undo the failed launch: release the network: CNI DEL of plugin hangs")
    })
    .await?;
    ensure!(undo.get("call").is_none(), "a call that has ended is listed: {undo}");
    // An equal request joins it, and gets the plugin's own time-out.
    let again = cx.cri.run_pod(&config).await.err().context("a pod came up with a plugin that hangs")?;
    for part in [
        "CNI ADD of plugin \"hangs\"",
        "did not end within ",
        "ms and was killed (network.timeout_seconds",
        "own log",
    ] {
        ensure!(again.message().contains(part), "the error does not say `{part}`: {again}");
    }
    cx.node.network.script("hangs", "exit 0")?;
    for left in cx.cri.pods(None).await? {
        cx.cri.drop_pod(&left.id).await?;
    }
    ended(&cx, "the pod", secs(30), |it| text(it, "pod") == id).await
}

async fn a_registry_that_stalls(cx: Context) -> Result<()> {
    let mut writer = Writer::new();
    writer.file("stalled", 0o644, cx.name.as_bytes())?;
    let layer = writer.finish(Packing::Gzip)?;
    let recipe = Recipe::new(std::slice::from_ref(&layer), json!({"Cmd": ["/bin/true"]}));
    cx.fixture.registry.push("slow", "1", &recipe.build()).await?;
    let digest = layer.blob.digest.clone();
    let stall = Stall::start(cx.fixture.registry.port, vec![digest.clone()], layer.blob.bytes.len()).await?;
    let image = format!("127.0.0.1:{}/slow:1", stall.port);
    let pull = || {
        let spec = api::ImageSpec { image: image.clone(), ..Default::default() };
        let request = api::PullImageRequest { image: Some(spec), ..Default::default() };
        let mut images = cx.cri.images.clone();
        async move { images.pull_image(bounded(request, DEADLINE)).await }
    };
    // The second joins the first.
    let (first, second) = (tokio::spawn(pull()), tokio::spawn(pull()));
    let stage = format!("transfer the layers: layer {digest}");
    wait::until("both pulls in verbose Status", secs(3), || async {
        let all = operations(&cx).await?;
        let pulls = all.iter().filter(|it| text(it, "call") == "PullImage" && text(it, "image") == image);
        Ok((pulls.filter(|it| text(it, "stage") == stage).count() == 2).then_some(()))
    })
    .await?;
    for call in [first, second] {
        let parts =
            [&stage, &*format!("image {image}"), "the registry or a mirror", "the pull was cancelled"];
        late(
            &cx,
            "PullImage",
            async { call.await.map_err(|error| Status::internal(error.to_string()))? },
            &parts,
        )
        .await?;
    }
    logged(&cx, "PullImage", &[&format!("image=\"{image}\""), &stage])?;
    ended(&cx, "the pull", secs(5), |it| text(it, "image") == image).await?;
    // A client that goes away without a deadline of its own.
    let call = tokio::spawn(pull());
    listed(&cx, "the third pull", |it| text(it, "image") == image).await?;
    call.abort();
    ended(&cx, "the third pull", secs(3), |it| text(it, "image") == image).await
}

async fn a_shim_that_hangs(cx: Context) -> Result<()> {
    let pod = cx.pod().await?;
    let id = cx.create(&pod, &cx.sleeper("app")).await?;
    let shim = cx.node.shim(&pod.id)?.pid;
    proc::signal(shim, Signal::SIGSTOP)?;
    let hung = async {
        let request = api::StartContainerRequest { container_id: id.clone() };
        let mut runtime = cx.cri.runtime.clone();
        let call = tokio::spawn(async move { runtime.start_container(bounded(request, DEADLINE)).await });
        let stage = "start the container: the shim's reply to start";
        let shown =
            listed(&cx, "the start", |it| text(it, "call") == "StartContainer" && text(it, "stage") == stage);
        let shown = shown.await?;
        ensure!(
            text(&shown, "container") == id
                && text(&shown, "containerName") == "app"
                && text(&shown, "pod") == pod.id,
            "whose it is: {shown}"
        );
        let whose = format!("pod it/{}, id {}, container app, id {id}", cx.name, pod.id);
        late(
            &cx,
            "StartContainer",
            async { call.await.map_err(|error| Status::internal(error.to_string()))? },
            &[stage, &whose, "StopPodSandbox ends the pod without it"],
        )
        .await?;
        logged(&cx, "StartContainer", &[&format!("container={id}"), &format!("pod={}", pod.id), stage])
    }
    .await;
    proc::signal(shim, Signal::SIGCONT)?;
    hung?;
    ended(&cx, "the start", secs(10), |it| text(it, "pod") == pod.id).await?;
    cx.cri.drop_pod(&pod.id).await?;
    Ok(())
}

/// The folder of the pod's logs hangs, which a shim opens before its hello.
async fn a_shim_that_does_not_start(cx: Context) -> Result<()> {
    let hang = Hang::mount(&cx.volume("hung")?)?;
    let mut config = cx.pod_config();
    config.log_directory = hang.path("logs");
    let request = api::RunPodSandboxRequest { config: Some(config.clone()), runtime_handler: String::new() };
    let stage = "launch the pod: the shim's greeting";
    let hung = async {
        let call = cx.cri.runtime.clone();
        late(
            &cx,
            "RunPodSandbox",
            async move { call.clone().run_pod_sandbox(bounded(request, DEADLINE)).await },
            &[stage, &format!("pod it/{}, id ", cx.name), "the disk of the pod's logs"],
        )
        .await?;
        // The same request joins the launch, whose own limit is 10 s.
        let error = cx.cri.run_pod(&config).await.err().context("a pod came up without its shim")?;
        let parts = [
            &*format!("pod it/{}: start the shim", cx.name),
            "greeting within 10s",
            "the disk of the pod's logs",
        ];
        for part in parts {
            ensure!(error.message().contains(part), "the error does not say `{part}`: {error}");
        }
        Ok(())
    }
    .await;
    drop(hang);
    hung?;
    ended(&cx, "the launch", secs(30), |it| text(it, "podName") == cx.name).await
}

async fn a_volume_that_hangs(cx: Context) -> Result<()> {
    let pod = cx.pod().await?;
    let hang = Hang::mount(&cx.volume("hung")?)?;
    let source = hang.path("data");
    let config = cx.sleeper("app").mount(
        std::path::Path::new(&source),
        "/srv/a/long/path/data",
        false,
        api::MountPropagation::PropagationPrivate,
    );
    cx.need(&Fixture::image("busybox")).await?;
    let request = api::CreateContainerRequest {
        pod_sandbox_id: pod.id.clone(),
        config: Some(config.clone().like(&pod.config)),
        sandbox_config: Some(pod.config.clone()),
    };
    let stage = format!("volume /srv/a/long/path/data from {source}");
    let hung = async {
        let mut runtime = cx.cri.runtime.clone();
        let (message, limit) = (request.clone(), DEADLINE);
        let call = tokio::spawn(async move { runtime.create_container(bounded(message, limit)).await });
        let shown = listed(&cx, "the volume", |it| {
            text(it, "call") == "CreateContainer" && text(it, "stage").ends_with(&stage)
        });
        let shown = shown.await?;
        ensure!(
            text(&shown, "containerName") == "app" && text(&shown, "pod") == pod.id,
            "whose it is: {shown}"
        );
        // An operator finds the process by the same name.
        ensure!(
            proc::all().iter().any(|p| p.comm == "v:ong/path/data"),
            "no process is named for the volume"
        );
        late(
            &cx,
            "CreateContainer",
            async { call.await.map_err(|error| Status::internal(error.to_string()))? },
            &[
                &stage,
                &format!("pod it/{}, id {}, container app", cx.name, pod.id),
                "the volume's file system may hang",
            ],
        )
        .await?;
        logged(&cx, "CreateContainer", &[&format!("pod={}", pod.id), "container_name=\"app\"", &stage])?;
        // The work goes on without its caller.
        let left = listed(&cx, "the create without a caller", |it| text(it, "pod") == pod.id).await?;
        ensure!(left.get("call").is_none() && text(&left, "stage").ends_with(&stage), "{left}");
        Ok::<_, anyhow::Error>(())
    }
    .await;
    drop(hang);
    hung?;
    ended(&cx, "the create", secs(30), |it| text(it, "pod") == pod.id).await?;
    cx.cri.drop_pod(&pod.id).await?;
    Ok(())
}

/// A stop that takes long because the container has time to end is no fault, and is shown as what it is.
async fn a_grace_period(cx: Context) -> Result<()> {
    let pod = cx.pod().await?;
    let id = cx
        .start(&pod, &cx.shell("stubborn", "trap '' TERM; echo ready; while :; do sleep 0.1; done"))
        .await?;
    cx.said(&id, "ready").await?;
    let request = api::StopContainerRequest { container_id: id.clone(), timeout: 600 };
    let stop = cx.cri.runtime.clone();
    late(
        &cx,
        "StopContainer",
        async move { stop.clone().stop_container(bounded(request, Duration::from_secs(2))).await },
        &[
            "stop the container: wait until it ends by the stop signal",
            &format!("pod it/{}, id {}, container stubborn, id {id}", cx.name, pod.id),
            "a second StopContainer with a shorter one ends it earlier",
        ],
    )
    .await?;
    cx.cri.stop(&id, 0).await?;
    ended(&cx, "the stop", secs(10), |it| text(it, "container") == id).await?;
    cx.cri.drop_pod(&pod.id).await?;
    Ok(())
}
