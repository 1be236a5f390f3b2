//! A daemon that is killed, or a power loss, during an operation; removals that cannot succeed yet.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use cri_api::v1::{ContainerState, PodSandboxState};
use nix::sys::signal::Signal;
use serde_json::json;
use tonic::Code;

use super::Frozen;
use crate::context::{Context, Pod};
use crate::disk::Mounted;
use crate::expect::ensure;
use crate::fixture::Fixture;
use crate::proc;
use crate::runner::{Test, test};
use crate::shapes::{self, PodExt as _};
use crate::wait::{self, secs};

pub(super) fn tests() -> Vec<Test> {
    vec![
        test!(power_loss_between_the_intent_and_the_commit).own(),
        test!(failed_rollback_is_reported_and_repeated).own(),
        test!(failed_del_is_repeated_without_a_call).own(),
        test!(execs_of_a_killed_daemon_end).own(),
        test!(exec_limits_hold_without_a_daemon).own(),
        test!(start_whose_reply_finds_no_daemon).own(),
        test!(interrupted_creates_leave_no_lease).own().limit(180),
    ]
}

/// Makes a plugin with this shell code the node's network. It sets up no real network.
fn plugin(cx: &Context, name: &str, body: &str) -> Result<()> {
    let result = "echo '{\"cniVersion\":\"1.0.0\",\"ips\":[{\"address\":\"10.9.8.7/24\"}]}'";
    cx.node
        .network
        .script(name, &format!("cat > /dev/null\n{body}\n[ \"$CNI_COMMAND\" = ADD ] && {result}\nexit 0"))?;
    cx.node.network.uninstall()?;
    cx.node.network.conflist("10-plugin.conflist", &json!([{"type": name}]))
}

/// The commit of a pod is not durable: after a power loss its record may be the intent, though containers ran.
async fn power_loss_between_the_intent_and_the_commit(cx: Context) -> Result<()> {
    let gate = cx.node.paths.dir.join("gate");
    plugin(&cx, "gated", &format!("while [ ! -e {} ]; do sleep 0.05; done", gate.display()))?;
    let config = cx.pod_config().own_network();
    let running = {
        let (cri, config) = (cx.cri.clone(), config.clone());
        tokio::spawn(async move { cri.run_pod(&config).await })
    };
    let pods = cx.node.paths.root.join("pods");
    let intent = wait::until("the intent", secs(10), || async {
        let Some(entry) = fs::read_dir(&pods).ok().and_then(|mut dir| dir.next()) else { return Ok(None) };
        Ok(fs::read(entry?.path().join("record")).ok())
    })
    .await?;
    fs::write(&gate, "")?;
    let pod = Pod { id: running.await??, config: config.clone() };
    let id = cx.start(&pod, &cx.sleeper("one")).await?;
    let (pid, shim) = (cx.pid(&id).await?, cx.node.shim(&pod.id)?);
    cx.node.kill9()?;
    for dead in [shim.pid, pid] {
        proc::signal(dead, Signal::SIGKILL)?;
    }
    wait::until_true("the pod's processes to have ended", secs(5), || {
        !proc::alive(pid) && !proc::alive(shim.pid)
    })
    .await?;
    fs::write(pods.join(&pod.id).join("record"), &intent)?;
    fs::remove_dir_all(&cx.node.paths.run)?;
    fs::create_dir_all(&cx.node.paths.run)?;
    let boot = cx.node.paths.dir.join("boot_id");
    fs::write(&boot, "01234567-89ab-cdef-0123-456789abcdef\n")?;
    let _boot = Mounted::bind(&boot, Path::new("/proc/sys/kernel/random/boot_id"))?;
    cx.node.launch().await?;
    let listed = cx.cri.pods(None).await?;
    ensure!(listed.iter().any(|it| it.id == pod.id), "the pod is not listed: {listed:?}");
    let status = cx.cri.wait_exit(&id, secs(5)).await.context("its container")?;
    ensure!(status.exit_code == 255, "its container's exit code is not known, but it is shown as {status:?}");
    cx.pod_is_shown(&pod.id, PodSandboxState::SandboxNotready).await?;
    cx.cri.drop_pod(&pod.id).await?;
    let again = cx.cri.run_pod(&config).await.context("the same pod again")?;
    cx.cri.drop_pod(&again).await?;
    Ok(())
}

async fn failed_rollback_is_reported_and_repeated(cx: Context) -> Result<()> {
    let config = cx.pod_config();
    cx.node.terminate().await?;
    let (program, args) = cx.node.program();
    let mut command = std::process::Command::new(program);
    command.args(args).env("COPEPOD_FAILPOINT", "pod.supervised");
    cx.node.launch_by(command).await?;
    ensure!(
        cx.cri.run_pod(&config).await.is_err(),
        "RunPodSandbox succeeded, so the failpoint did not end the daemon"
    );
    cx.node.kill9()?;
    let pods = cx.node.paths.root.join("pods");
    let entry = fs::read_dir(&pods)?.next().context("no intent was recorded")??;
    let obstacle = Mounted::tmpfs(&entry.path().join("mounted"), "")?;
    cx.node.launch().await?;
    let asked = Instant::now();
    let refused = cx
        .cri
        .run_pod(&config)
        .await
        .err()
        .context("a pod came up although its last launch is not undone")?;
    ensure!(asked.elapsed() < wait::longer(secs(15)), "RunPodSandbox took {:?}: {refused}", asked.elapsed());
    ensure!(refused.code() != Code::DeadlineExceeded, "RunPodSandbox hung: {refused}");
    ensure!(refused.message().contains("remove pod"), "the error does not name the cause: {refused}");
    let listed = cx.cri.pods(None).await?;
    ensure!(listed.len() == 1, "the pod is not listed, so kubelet cannot remove it: {listed:?}");
    drop(obstacle);
    // The daemon repeats the removal by itself: no client requests it.
    let id =
        wait::until("the name to be free", secs(40), || async { Ok(Some(cx.cri.run_pod(&config).await?)) })
            .await?;
    cx.cri.drop_pod(&id).await?;
    Ok(())
}

async fn failed_del_is_repeated_without_a_call(cx: Context) -> Result<()> {
    let (gate, done) = (cx.node.paths.dir.join("gate"), cx.node.paths.dir.join("done"));
    let body = format!(
        "if [ \"$CNI_COMMAND\" = DEL ]; then [ -e {} ] || {{ echo '{{\"cniVersion\":\"1.0.0\",\"code\":7,\"msg\":\"not now\"}}'; exit 1; }}; touch {}; fi",
        gate.display(),
        done.display()
    );
    plugin(&cx, "failing", &body)?;
    // A launch reads the configuration folder, so the pod gets the plugin's network.
    let pod = cx.pod_of(cx.pod_config().own_network()).await?;
    let network = cx.cri.pod_status(&pod.id).await?.status.and_then(|s| s.network).context("network")?;
    ensure!(network.ip == "10.9.8.7", "the pod has {network:?}, not the plugin's address");
    cx.cri.stop_pod(&pod.id).await.context("a stop whose DEL fails")?;
    fs::write(&gate, "")?;
    wait::until_true("DEL to be tried again", secs(20), || done.exists()).await?;
    cx.cri.drop_pod(&pod.id).await?;
    Ok(())
}

async fn execs_of_a_killed_daemon_end(cx: Context) -> Result<()> {
    let pod = cx.pod().await?;
    let id = cx.start(&pod, &cx.sleeper("one")).await?;
    let mark = format!("5{:05}", shapes::unique());
    let mut calls = Vec::new();
    for limit in [60, 0] {
        let (cri, id, line) = (cx.cri.clone(), id.clone(), format!("sleep {mark}; true"));
        calls.push(tokio::spawn(async move { cri.exec_sync(&id, &["/bin/sh", "-c", &line], limit).await }));
    }
    // Each is a shell and its child.
    let running = || proc::with_args(&format!("sleep {mark}")).len();
    wait::until_true("both commands to run", secs(10), || running() >= 4).await?;
    cx.node.crash().await?;
    for call in calls {
        ensure!(call.await?.is_err(), "an exec of a dead daemon succeeded");
    }
    wait::until_true("the new daemon to end the commands", secs(10), || running() == 0).await?;
    cx.exec_works(&id).await.context("exec afterwards")?;
    cx.cri.drop_pod(&pod.id).await?;
    Ok(())
}

/// No daemon is started again: the command's time limit must still be enforced.
async fn exec_limits_hold_without_a_daemon(cx: Context) -> Result<()> {
    let pod = cx.pod().await?;
    let id = cx.start(&pod, &cx.sleeper("one")).await?;
    let mark = format!("7{:05}", shapes::unique());
    let call = {
        let (cri, id, mark) = (cx.cri.clone(), id.clone(), mark.clone());
        tokio::spawn(async move { cri.exec_sync(&id, &["sleep", &mark], 3).await })
    };
    let runs = || !proc::with_args(&format!("sleep {mark}")).is_empty();
    wait::until_true("the command to run", secs(3), runs).await?;
    cx.node.kill9()?;
    ensure!(call.await?.is_err(), "an exec of a dead daemon succeeded");
    wait::until_true("the command to be killed at its limit", secs(12), || !runs()).await?;
    ensure!(proc::alive(cx.node.shim(&pod.id)?.pid), "the shim is dead");
    cx.node.launch().await?;
    cx.exec_works(&id).await.context("exec afterwards")?;
    cx.cri.drop_pod(&pod.id).await?;
    Ok(())
}

/// The daemon is killed between Start and execve, so the shim's reply finds none: the status afterwards must be
/// correct.
async fn start_whose_reply_finds_no_daemon(cx: Context) -> Result<()> {
    let pod = cx.pod().await?;
    let id = cx.create(&pod, &cx.sleeper("one")).await?;
    let frozen = Frozen::container(&id).await?;
    let start = {
        let (cri, id) = (cx.cri.clone(), id.clone());
        tokio::spawn(async move { cri.start(&id).await })
    };
    // The intent is on disk before the reply.
    let record = cx.node.paths.root.join("containers").join(&id).join("record");
    wait::until_true("the record to say that it is to run", secs(10), || {
        fs::read(&record).is_ok_and(|bytes| String::from_utf8_lossy(&bytes).contains("Running"))
    })
    .await?;
    wait::until("the request to come to the container", secs(10), || async {
        match proc::unanswered_starts() {
            1 => Ok(Some(())),
            count => bail!("{count} containers were sent a start request and have not accepted it"),
        }
    })
    .await?;
    cx.node.kill9()?;
    ensure!(start.await?.is_err(), "a start of a frozen container succeeded");
    cx.node.launch().await?;
    cx.is_shown(&id, ContainerState::ContainerCreated).await.context("before execve")?;
    drop(frozen);
    wait::until("the container to be shown running", secs(15), || async {
        cx.is_shown(&id, ContainerState::ContainerRunning).await.map(Some)
    })
    .await?;
    ensure!(cx.cri.container(&id).await?.started_at > 0, "a running container has no started_at");
    cx.exec_works(&id).await?;
    cx.cri.stop(&id, 0).await?;
    cx.exited_with(&id, 137).await?;
    cx.cri.drop_pod(&pod.id).await?;
    Ok(())
}

async fn interrupted_creates_leave_no_lease(cx: Context) -> Result<()> {
    let image = Fixture::image("busybox");
    cx.need(&image).await?;
    let pod = cx.pod().await?;
    for round in 0..14_u64 {
        let calls: Vec<_> = (0..6)
            .map(|n| {
                let (cri, pod) = (cx.cri.clone(), pod.clone());
                let config = shapes::ContainerExt::like(cx.sleeper(&format!("c{round}-{n}")), &pod.config);
                tokio::spawn(async move { cri.create(&pod.id, &config, &pod.config).await })
            })
            .collect();
        tokio::time::sleep(Duration::from_millis(20 + round * 12)).await;
        cx.node.kill9()?;
        for call in calls {
            drop(call.await?);
        }
        cx.node.launch().await.with_context(|| format!("round {round}"))?;
        for container in cx.cri.containers(None).await? {
            cx.cri.remove(&container.id).await.with_context(|| format!("round {round}"))?;
        }
    }
    let (leases, containers) =
        (cx.node.paths.root.join("images/leases"), cx.node.paths.root.join("containers"));
    let count =
        |folder: &Path| fs::read_dir(folder).map(Iterator::count).context(folder.display().to_string());
    // The new daemon undoes the last of them.
    for (what, folder, limit) in [("containers", &containers, secs(20)), ("image leases", &leases, secs(10))]
    {
        wait::until(&format!("the interrupted creates to leave no {what}"), limit, || async {
            let left = count(folder)?;
            ensure!(left == 0, "{left} are in {}", folder.display());
            Ok(Some(()))
        })
        .await?;
    }
    let log = cx.node.last_log(100_000);
    ensure!(!log.contains("cannot undo"), "the daemon could not undo a create: {log}");
    // The shim has none of them either: a container of the same pod can be created.
    let one = cx.start(&pod, &cx.sleeper("one")).await?;
    cx.exec_works(&one).await?;
    cx.cri.drop_pod(&pod.id).await?;
    Ok(())
}
