//! Containers: life cycle, status, lists, configuration merged with the image's, resources, stop.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use cri_api::v1::{self as api, ContainerState, MountPropagation};
use tonic::Code;

use crate::context::Context;
use crate::expect::ensure;
use crate::fixture::Fixture;
use crate::proc;
use crate::runner::{Test, test};
use crate::shapes::{self, ContainerExt as _};
use crate::wait::{self, secs};

pub(super) fn tests() -> Vec<Test> {
    vec![
        test!(life_of_a_container),
        test!(attributes_are_echoed),
        test!(filters_combine),
        test!(exit_codes_and_reasons),
        test!(missing_program_is_a_start_error),
        test!(removal_in_every_state),
        test!(idempotent_calls),
        test!(start_only_once),
        test!(stop_sends_term_then_kill),
        test!(stop_signal_of_image_and_request),
        test!(shorter_stop_wins).ours(),
        test!(image_configuration_is_merged),
        test!(environment_bytes_survive).ours(),
        test!(container_without_log_runs),
        test!(verbose_status_has_pid),
        test!(equal_create_joins).ours(),
    ]
}

async fn life_of_a_container(cx: Context) -> Result<()> {
    let pod = cx.pod().await?;
    let id = cx.create(&pod, &cx.sleeper("one")).await?;
    ensure!(id.len() == 64 && !id.contains('-'), "container id {id}");
    cx.is_shown(&id, ContainerState::ContainerCreated).await?;
    let s = cx.cri.container(&id).await?;
    ensure!(
        s.created_at > 0 && s.started_at == 0 && s.finished_at == 0,
        "times of a created container: {s:?}"
    );
    cx.cri.start(&id).await?;
    cx.is_shown(&id, ContainerState::ContainerRunning).await?;
    let s = cx.cri.container(&id).await?;
    ensure!(s.started_at >= s.created_at && s.finished_at == 0, "times of a running container: {s:?}");
    ensure!(std::path::Path::new(&s.log_path).is_absolute(), "log_path `{}`", s.log_path);
    ensure!(std::path::Path::new(&s.log_path).exists(), "the log does not exist after StartContainer");
    cx.cri.stop(&id, 0).await?;
    cx.exited_with(&id, 137).await?;
    let s = cx.cri.container(&id).await?;
    ensure!(
        s.finished_at >= s.started_at,
        "it finished at {} and started at {}",
        s.finished_at,
        s.started_at
    );
    cx.cri.remove(&id).await?;
    let gone = cx.cri.container_response(&id).await.err().context("a removed container has a status")?;
    ensure!(gone.code() == Code::NotFound, "the status of a removed container: {gone}");
    ensure!(std::path::Path::new(&s.log_path).exists(), "the log belongs to kubelet and must stay");
    Ok(())
}

async fn attributes_are_echoed(cx: Context) -> Result<()> {
    let pod = cx.pod().await?;
    let mut config = cx.sleeper("named");
    config.labels.insert(String::from("a/b"), String::from("c \u{f6}"));
    config.annotations.insert(String::from("hash"), String::from("deadbeef\n"));
    if let Some(m) = config.metadata.as_mut() {
        m.attempt = 3;
    }
    if let Some(i) = config.image.as_mut() {
        i.user_specified_image = String::from("busybox:as-the-user-wrote-it");
    }
    let id = cx.start(&pod, &config).await?;
    let s = cx.cri.container(&id).await?;
    ensure!(
        s.metadata == config.metadata && s.labels == config.labels && s.annotations == config.annotations,
        "of {config:?} the status shows {s:?}"
    );
    let image = cx.cri.image(&Fixture::image("busybox")).await?.context("image")?;
    ensure!(s.image_id == image.id, "image_id {} is not Image.id {}", s.image_id, image.id);
    ensure!(s.image.as_ref().is_some_and(|i| !i.image.is_empty()), "no image name");
    ensure!(
        !s.image_ref.is_empty() && (cx.node.is_foreign() || s.image_ref.contains("@sha256:")),
        "image_ref is `{}`",
        s.image_ref
    );
    let listed = cx.cri.containers(None).await?.into_iter().find(|c| c.id == id).context("not listed")?;
    ensure!(
        listed.metadata == config.metadata
            && listed.labels == config.labels
            && listed.annotations == config.annotations,
        "of {config:?} the list shows {listed:?}"
    );
    ensure!(
        listed.pod_sandbox_id == pod.id && listed.created_at == s.created_at && listed.image_id == image.id,
        "in pod {} with the status {s:?} the list shows {listed:?}",
        pod.id
    );
    ensure!(
        listed.state() == ContainerState::ContainerRunning,
        "a running container is listed as {listed:?}"
    );
    Ok(())
}

async fn filters_combine(cx: Context) -> Result<()> {
    let (first, second) = (cx.pod().await?, cx.pod().await?);
    let mut labelled = cx.sleeper("one");
    labelled.labels.insert(String::from("k"), String::from("v"));
    let one = cx.start(&first, &labelled).await?;
    let two = cx.create(&first, &cx.sleeper("two")).await?;
    let three = cx.start(&second, &labelled).await?;
    let list = |filter: api::ContainerFilter| {
        let cx = cx.clone();
        async move {
            let mut ids: Vec<String> =
                cx.cri.containers(Some(filter)).await?.into_iter().map(|c| c.id).collect();
            ids.sort();
            Ok::<_, anyhow::Error>(ids)
        }
    };
    let label: std::collections::HashMap<String, String> = [(String::from("k"), String::from("v"))].into();
    let found = list(api::ContainerFilter { pod_sandbox_id: first.id.clone(), ..Default::default() }).await?;
    ensure!(found.len() == 2 && found.contains(&one) && found.contains(&two), "by pod: {found:?}");
    let found = list(api::ContainerFilter { label_selector: label.clone(), ..Default::default() }).await?;
    ensure!(found.len() == 2 && found.contains(&one) && found.contains(&three), "by label: {found:?}");
    let state = Some(api::ContainerStateValue { state: ContainerState::ContainerCreated.into() });
    let found =
        list(api::ContainerFilter { state, pod_sandbox_id: first.id.clone(), ..Default::default() }).await?;
    ensure!(found == [two.clone()], "by state: {found:?}");
    let found = list(api::ContainerFilter { id: two, label_selector: label, ..Default::default() }).await?;
    ensure!(found.is_empty(), "all conditions must hold: {found:?}");
    let found =
        list(api::ContainerFilter { id: one.get(..14).unwrap_or_default().to_owned(), ..Default::default() })
            .await?;
    ensure!(found == [one], "by prefix: {found:?}");
    Ok(())
}

async fn exit_codes_and_reasons(cx: Context) -> Result<()> {
    let pod = cx.pod().await?;
    for (name, line, code, reason) in [
        ("zero", "exit 0", 0, "Completed"),
        ("seven", "exit 7", 7, "Error"),
        ("high", "exit 255", 255, "Error"),
        // PID 1 of a namespace ignores fatal signals without a handler, so a child is killed and its exit code
        // passed on.
        ("segv", "sh -c 'kill -SEGV $$'; exit $?", 139, "Error"),
    ] {
        let s = cx.run(&pod, &cx.shell(name, line)).await?;
        ensure!(
            s.exit_code == code && s.reason == reason,
            "`{line}` ended with code {} and reason {} instead of {code} and {reason}",
            s.exit_code,
            s.reason
        );
        ensure!(s.finished_at > 0, "{name}: no finished_at");
    }
    Ok(())
}

async fn missing_program_is_a_start_error(cx: Context) -> Result<()> {
    let pod = cx.pod().await?;
    let config = shapes::container("missing", &Fixture::image("busybox"), &["/no/such/program"]);
    let text = match cx.create(&pod, &config).await {
        Err(e) => format!("{e:#}"),
        Ok(id) => {
            let e = cx.cri.start(&id).await.err().context("a missing program started")?;
            let s = cx.cri.container(&id).await?;
            ensure!(
                s.state() == ContainerState::ContainerExited && s.exit_code != 0,
                "after the failed start it is {:?} with code {}",
                s.state(),
                s.exit_code
            );
            ensure!(!s.reason.is_empty() && !s.message.is_empty(), "no reason or message: {s:?}");
            format!("{e}")
        }
    };
    ensure!(text.contains("/no/such/program"), "the error does not name the program: {text}");
    let denied = shapes::container("denied", &Fixture::image("busybox"), &["/etc/marker"]);
    let id = cx.create(&pod, &denied).await?;
    ensure!(cx.cri.start(&id).await.is_err(), "a file that is not executable started");
    Ok(())
}

async fn removal_in_every_state(cx: Context) -> Result<()> {
    let pod = cx.pod().await?;
    let created = cx.create(&pod, &cx.sleeper("created")).await?;
    cx.cri.remove(&created).await.context("remove a created container")?;
    let running = cx.start(&pod, &cx.sleeper("running")).await?;
    cx.cri.remove(&running).await.context("remove a running container")?;
    let exited = cx.start(&pod, &cx.shell("exited", "true")).await?;
    cx.cri.wait_exit(&exited, secs(10)).await?;
    cx.cri.remove(&exited).await.context("remove an exited container")?;
    let listed = cx.cri.containers(None).await?;
    ensure!(!listed.iter().any(|c| c.pod_sandbox_id == pod.id), "a removed container is listed: {listed:?}");
    // The name is free again.
    cx.start(&pod, &cx.sleeper("running")).await?;
    Ok(())
}

async fn idempotent_calls(cx: Context) -> Result<()> {
    let absent = "f".repeat(64);
    cx.cri.stop(&absent, 1).await.context("stop an unknown container")?;
    cx.cri.remove(&absent).await.context("remove an unknown container")?;
    let pod = cx.pod().await?;
    let id = cx.start(&pod, &cx.sleeper("one")).await?;
    for _ in 0..2 {
        cx.cri.stop(&id, 0).await?;
    }
    for _ in 0..2 {
        cx.cri.remove(&id).await?;
    }
    let created = cx.create(&pod, &cx.sleeper("two")).await?;
    cx.cri.stop(&created, 5).await.context("stop a created container")?;
    Ok(())
}

async fn start_only_once(cx: Context) -> Result<()> {
    let pod = cx.pod().await?;
    let id = cx.start(&pod, &cx.shell("one", "exit 0")).await?;
    cx.cri.wait_exit(&id, secs(10)).await?;
    ensure!(cx.cri.start(&id).await.is_err(), "an exited container was started again");
    let id = cx.start(&pod, &cx.sleeper("two")).await?;
    ensure!(cx.cri.start(&id).await.is_err(), "a running container was started again");
    cx.is_shown(&id, ContainerState::ContainerRunning).await.context("after the refused start")?;
    Ok(())
}

async fn stop_sends_term_then_kill(cx: Context) -> Result<()> {
    let pod = cx.pod().await?;
    let polite = cx
        .start(&pod, &cx.shell("polite", "trap 'exit 3' TERM; echo ready; while :; do sleep 0.05; done"))
        .await?;
    // Until its trap is set, a PID 1 ignores SIGTERM.
    cx.said(&polite, "ready").await?;
    let start = Instant::now();
    cx.cri.stop(&polite, 60).await?;
    ensure!(
        start.elapsed() < wait::longer(secs(30)),
        "the stop of a container that exits on SIGTERM took {:?}",
        start.elapsed()
    );
    cx.exited_with(&polite, 3).await?;
    let deaf =
        cx.start(&pod, &cx.shell("deaf", "trap '' TERM; echo ready; while :; do sleep 0.05; done")).await?;
    cx.said(&deaf, "ready").await?;
    let start = Instant::now();
    cx.cri.stop(&deaf, 2).await?;
    let took = start.elapsed();
    ensure!(
        took >= Duration::from_millis(1800) && took < secs(20),
        "the stop of a container that ignores SIGTERM, with 2 s of grace, took {took:?}"
    );
    cx.exited_with(&deaf, 137).await?;
    Ok(())
}

async fn stop_signal_of_image_and_request(cx: Context) -> Result<()> {
    let pod = cx.pod().await?;
    let traps = "trap 'exit 11' USR1; trap 'exit 12' USR2; trap 'exit 13' TERM; echo ready; while :; do sleep 0.05; done";
    let image = shapes::container("image", &Fixture::image("configured"), &["/bin/sh", "-c", traps]);
    let id = cx.start(&pod, &image).await?;
    cx.said(&id, "ready").await?;
    cx.cri.stop(&id, 10).await?;
    cx.exited_with(&id, 11).await.context("the image's STOPSIGNAL was not sent")?;
    if cx.node.is_foreign() {
        return Ok(());
    }
    let asked = shapes::container("asked", &Fixture::image("configured"), &["/bin/sh", "-c", traps])
        .with(|c| c.stop_signal = 30);
    let id = cx.start(&pod, &asked).await?;
    cx.said(&id, "ready").await?;
    ensure!(cx.cri.container(&id).await?.stop_signal == 30, "status does not report SIGUSR2");
    cx.cri.stop(&id, 10).await?;
    cx.exited_with(&id, 12).await.context("the request's signal must win over the image's")?;
    Ok(())
}

/// kubelet's second call may have a shorter grace period: it must not wait for that of the first.
async fn shorter_stop_wins(cx: Context) -> Result<()> {
    let pod = cx.pod().await?;
    let id = cx
        .start(&pod, &cx.shell("deaf", "trap 'echo asked' TERM; echo ready; while :; do sleep 0.05; done"))
        .await?;
    cx.said(&id, "ready").await?;
    let start = Instant::now();
    let (cri, long) = (cx.cri.clone(), id.clone());
    let first = tokio::spawn(async move { cri.stop(&long, 60).await });
    cx.said(&id, "asked").await?;
    cx.cri.stop(&id, 1).await?;
    first.await??;
    ensure!(
        start.elapsed() < wait::longer(secs(45)),
        "with a second grace of 1 s, both stops took {:?}",
        start.elapsed()
    );
    Ok(())
}

async fn image_configuration_is_merged(cx: Context) -> Result<()> {
    let pod = cx.pod().await?;
    let image = Fixture::image("configured");
    let plain = shapes::container("plain", &image, &[]);
    cx.outputs(&pod, &plain, "entry command\n").await.context("entrypoint and cmd")?;
    let args = shapes::container("args", &image, &[]).with(|c| c.args = vec![String::from("argument")]);
    cx.outputs(&pod, &args, "entry argument\n").await.context("args replace cmd")?;
    let command = shapes::container("command", &image, &["/bin/echo", "own"]);
    cx.outputs(&pod, &command, "own\n").await.context("command replaces entrypoint and drops cmd")?;
    let env =
        shapes::container("env", &image, &["/bin/sh", "-c", "echo $FROM_IMAGE $BOTH $PWD; stat -c %F /data"])
            .env("BOTH", "request");
    let text = cx.output(&pod, &env).await?;
    ensure!(text == "yes request /work/dir\ndirectory\n", "environment, working directory, volume: {text}");
    let cwd =
        shapes::container("cwd", &image, &["/bin/pwd"]).with(|c| c.working_dir = String::from("/made/here"));
    cx.outputs(&pod, &cwd, "/made/here\n").await.context("working_dir wins and is made")?;
    let nothing = cx.create(&pod, &shapes::container("nothing", &Fixture::image("no-command"), &[])).await;
    ensure!(nothing.is_err(), "neither image nor request has a command, yet it was created");
    Ok(())
}

async fn environment_bytes_survive(cx: Context) -> Result<()> {
    let pod = cx.pod().await?;
    let config = cx.shell("bytes", "printf %s \"$RAW\" | od -An -tx1").with(|c| {
        c.envs.push(api::KeyValue {
            key: String::from("RAW"),
            value: vec![0x61, 0xff, 0xfe, 0x3d, 0x0a, 0x62],
        });
    });
    let text = cx.output(&pod, &config).await?;
    ensure!(text.trim() == "61 ff fe 3d 0a 62", "the variable has the bytes {text}");
    Ok(())
}

async fn container_without_log_runs(cx: Context) -> Result<()> {
    let mut config = cx.pod_config();
    config.log_directory = String::new();
    let pod = cx.pod_of(config).await?;
    let s = cx
        .run(
            &pod,
            &cx.shell(
                "quiet",
                "i=0; while [ $i -lt 20000 ]; do echo a line that nobody keeps; i=$((i+1)); done; exit 4",
            )
            .with(|c| c.log_path = String::new()),
        )
        .await?;
    ensure!(s.exit_code == 4, "a container without a log ended with {}", s.exit_code);
    Ok(())
}

async fn verbose_status_has_pid(cx: Context) -> Result<()> {
    let pod = cx.pod().await?;
    let id = cx
        .start(
            &pod,
            &cx.sleeper("one").mount(&cx.volume("v")?, "/v", false, MountPropagation::PropagationPrivate),
        )
        .await?;
    let info = cx.cri.container_response(&id).await?.info;
    let parsed: serde_json::Value = serde_json::from_str(info.get("info").context("no info key")?)?;
    let pid = parsed.get("pid").and_then(serde_json::Value::as_u64).context("info has no pid")?;
    ensure!(
        cx.node.is_foreign() || proc::one(u32::try_from(pid)?).is_some_and(|p| p.comm == "sleep"),
        "the process {pid} of the status is {:?}, not the container's sleep",
        proc::one(u32::try_from(pid)?)
    );
    Ok(())
}

async fn equal_create_joins(cx: Context) -> Result<()> {
    let pod = cx.pod().await?;
    let config = cx.sleeper("one").like(&pod.config);
    cx.need(&Fixture::image("busybox")).await?;
    let (a, b) = tokio::join!(
        cx.cri.create(&pod.id, &config, &pod.config),
        cx.cri.create(&pod.id, &config, &pod.config)
    );
    let (a, b) = (a?, b?);
    ensure!(a == b, "two equal requests made {a} and {b}");
    Ok(())
}
