//! Restarts of the daemon, dead or hung shims, damaged records.

use std::fs;
use std::time::Instant;

use anyhow::{Context as _, Result};
use cri_api::v1::{self as api, ContainerState, MountPropagation, PodSandboxState};
use nix::sys::signal::Signal;

use super::start::attempt;
use crate::context::Context;
use crate::expect::ensure;
use crate::isolation::command;
use crate::proc;
use crate::registry::free_port;
use crate::runner::{Test, test};
use crate::shapes::{ContainerExt as _, PodExt as _};
use crate::wait::{self, secs};

pub(super) fn tests() -> Vec<Test> {
    vec![
        test!(graceful_stop_leaves_pods_running).own(),
        test!(crash_leaves_pods_running).own(),
        test!(exit_codes_of_those_that_ended_meanwhile).own(),
        test!(created_containers_survive).own(),
        test!(images_survive).own(),
        test!(killed_shim_costs_its_own_pod).own(),
        test!(shim_killed_while_the_daemon_is_down).own(),
        test!(stuck_shim_does_not_hang_the_daemon).own().limit(120),
        test!(killed_pause_ends_the_sandbox).own(),
        test!(everything_lost_but_the_records).own(),
        test!(damaged_record_costs_one_object).own(),
        test!(second_daemon_is_refused).own(),
        test!(ten_restarts_in_a_row).own(),
    ]
}

/// Both lists, sorted by id.
async fn lists(cx: &Context) -> Result<(Vec<api::PodSandbox>, Vec<api::Container>)> {
    let mut pods = cx.cri.pods(None).await?;
    let mut containers = cx.cri.containers(None).await?;
    pods.sort_by(|a, b| a.id.cmp(&b.id));
    containers.sort_by(|a, b| a.id.cmp(&b.id));
    Ok((pods, containers))
}

async fn survives(cx: &Context, crash: bool) -> Result<()> {
    let (pod, id, pid) = cx.sleeping(cx.pod_config().own_network()).await?;
    let (host, other, _) = cx.sleeping(cx.pod_config()).await?;
    let (before, status) = (lists(cx).await?, cx.cri.container(&id).await?);
    let address = cx.cri.pod_status(&pod.id).await?.status.and_then(|s| s.network).map(|n| n.ip);
    if crash {
        cx.node.crash().await?
    } else {
        cx.node.restart().await?
    }
    // The first reply must be complete.
    let after = lists(cx).await?;
    ensure!(after == before, "the lists changed from {before:?} to {after:?}");
    let now = cx.cri.container(&id).await?;
    ensure!(now == status, "the container's status changed from {status:?} to {now:?}");
    let now = cx.cri.pod_status(&pod.id).await?.status.and_then(|s| s.network).map(|n| n.ip);
    ensure!(now == address, "the pod's address changed from {address:?} to {now:?}");
    ensure!(proc::alive(pid) && cx.pid(&id).await? == pid, "the container's process is not {pid} any more");
    cx.exec_works(&id).await?;
    let fresh = cx.start(&pod, &cx.sleeper("fresh")).await.context("a new container in an old pod")?;
    cx.cri.stop(&fresh, 0).await?;
    cx.cri.stop(&id, 0).await?;
    cx.exited_with(&id, 137).await.context("exit code after the restart")?;
    ensure!(cx.cri.stats(&other).await?.is_some(), "a running container has no stats after the restart");
    cx.cri.drop_pod(&pod.id).await?;
    cx.cri.drop_pod(&host.id).await?;
    Ok(())
}

async fn graceful_stop_leaves_pods_running(cx: Context) -> Result<()> {
    survives(&cx, false).await
}

async fn crash_leaves_pods_running(cx: Context) -> Result<()> {
    survives(&cx, true).await
}

async fn exit_codes_of_those_that_ended_meanwhile(cx: Context) -> Result<()> {
    let pod = cx.pod().await?;
    let mut ids = Vec::new();
    // They exit once the daemon has ended, not before.
    let gate = cx.volume("gate")?;
    let at_the_gate = |name: &str, then: &str| {
        let line = format!("while [ ! -e /gate/open ]; do sleep 0.05; done; {then}");
        cx.shell(name, &line).mount(&gate, "/gate", true, MountPropagation::PropagationPrivate)
    };
    let mut pids = Vec::new();
    for code in [0, 3, 42, 255] {
        let id = cx.start(&pod, &at_the_gate(&format!("c{code}"), &format!("echo bye; exit {code}"))).await?;
        pids.push(cx.pid(&id).await?);
        ids.push((code, id));
    }
    let oom = at_the_gate("oom", "exec dd if=/dev/zero of=/dev/null bs=64M count=10");
    let oom = cx.start(&pod, &oom.with(|c| c.resources().memory_limit_in_bytes = 15 << 20)).await?;
    pids.push(cx.pid(&oom).await?);
    cx.node.kill9()?;
    fs::write(gate.join("open"), "")?;
    wait::until_true("all to have ended", secs(30), || !pids.iter().any(|pid| proc::alive(*pid))).await?;
    let up = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?.as_nanos();
    cx.node.launch().await?;
    for (code, id) in ids {
        let s = cx.cri.wait_exit(&id, secs(5)).await?;
        let reason = if code == 0 { "Completed" } else { "Error" };
        ensure!(
            s.exit_code == code && s.reason == reason,
            "code {code} and reason {reason} became {} and {}",
            s.exit_code,
            s.reason
        );
        ensure!(
            u128::try_from(s.finished_at)? <= up,
            "finished_at is {}, after the new daemon's start at {up}",
            s.finished_at
        );
        let text = crate::logfile::Log::read(&s.log_path)?.text(None);
        ensure!(text == "bye\n", "the log is {text:?}");
    }
    let s = cx.cri.wait_exit(&oom, secs(5)).await?;
    ensure!(
        s.reason == "OOMKilled" && s.exit_code == 137,
        "an OOM kill while there was no daemon is shown with reason {} and code {}",
        s.reason,
        s.exit_code
    );
    Ok(())
}

async fn created_containers_survive(cx: Context) -> Result<()> {
    let pod = cx.pod().await?;
    let id = cx.create(&pod, &cx.shell("one", "echo started late; sleep 1000")).await?;
    cx.node.crash().await?;
    cx.is_shown(&id, ContainerState::ContainerCreated).await?;
    cx.cri.start(&id).await?;
    cx.exec_works(&id).await?;
    Ok(())
}

async fn images_survive(cx: Context) -> Result<()> {
    let name = crate::fixture::Fixture::image("tools");
    let id = cx.cri.pull(&name).await?;
    let before = cx.cri.images().await?;
    cx.node.crash().await?;
    let after = cx.cri.images().await?;
    ensure!(after == before, "the images changed from {before:?} to {after:?}");
    let pod = cx.pod().await?;
    cx.outputs(&pod, &crate::shapes::container("one", &id, &["/usr/bin/id", "-u"]), "0\n").await
}

async fn killed_shim_costs_its_own_pod(cx: Context) -> Result<()> {
    let port = free_port()?;
    let (pod, id, pid) =
        cx.sleeping(cx.pod_config().own_network().port(api::Protocol::Tcp, 80, port.into())).await?;
    let (other, neighbour, alive) = cx.sleeping(cx.pod_config()).await?;
    let pause = cx.node.pause(&pod.id)?;
    proc::signal(cx.node.shim(&pod.id)?.pid, Signal::SIGKILL)?;
    let s = cx.cri.wait_exit(&id, secs(5)).await.context("5 s after its shim's death")?;
    ensure!(
        s.exit_code == 255 && !s.reason.is_empty() && !s.message.is_empty(),
        "an exit that was not recorded is shown with code {}, reason `{}` and message `{}`",
        s.exit_code,
        s.reason,
        s.message
    );
    wait::until_true("all processes of the pod to be dead", secs(5), || {
        !proc::alive(pid) && !proc::alive(pause.pid)
    })
    .await?;
    wait::until("the pod to be NOTREADY", secs(5), || async {
        let s = cx.cri.pod_status(&pod.id).await?.status.context("status")?;
        Ok((s.state() == PodSandboxState::SandboxNotready).then_some(()))
    })
    .await?;
    wait::until_true("the address to be free", secs(5), || cx.node.network.leased().is_empty()).await?;
    ensure!(
        !command("iptables-save", &["-t", "nat"])?.contains(&format!("--dport {port} ")),
        "the host port is taken"
    );
    ensure!(proc::alive(alive), "the process {alive} of another pod's container is dead");
    cx.exec_works(&neighbour).await.context("another pod")?;
    cx.cri.drop_pod(&pod.id).await?;
    cx.cri.drop_pod(&other.id).await?;
    Ok(())
}

async fn shim_killed_while_the_daemon_is_down(cx: Context) -> Result<()> {
    let (pod, id, pid) = cx.sleeping(cx.pod_config().own_network()).await?;
    let shim = cx.node.shim(&pod.id)?;
    cx.node.kill9()?;
    proc::signal(shim.pid, Signal::SIGKILL)?;
    wait::until_true("the shim to be dead", secs(20), || !proc::alive(shim.pid)).await?;
    cx.node.launch().await?;
    let s = cx.cri.wait_exit(&id, secs(5)).await?;
    ensure!(
        s.exit_code == 255 && !s.reason.is_empty(),
        "an exit that was not recorded is shown with code {} and reason `{}`",
        s.exit_code,
        s.reason
    );
    wait::until_true("the container's process to be dead", secs(5), || !proc::alive(pid)).await?;
    cx.cri.drop_pod(&pod.id).await?;
    ensure!(cx.node.network.leased().is_empty(), "the address leaked");
    Ok(())
}

async fn stuck_shim_does_not_hang_the_daemon(cx: Context) -> Result<()> {
    let (pod, id, pid) = cx.sleeping(cx.pod_config().own_network()).await?;
    let (other, neighbour, _) = cx.sleeping(cx.pod_config()).await?;
    proc::signal(cx.node.shim(&pod.id)?.pid, Signal::SIGSTOP)?;
    let start = Instant::now();
    let pending = {
        let (cri, id) = (cx.cri.clone(), id.clone());
        tokio::spawn(async move { cri.exec_sync(&id, &["/bin/true"], 3).await })
    };
    for _ in 0..10 {
        cx.cri.pods(None).await?;
        cx.cri.containers(None).await?;
        cx.cri.container(&id).await?;
        cx.cri.status(true).await?;
        cx.cri.list_stats(None).await?;
    }
    // Fifty calls. If one of each round waited for the shim, they would take much longer.
    ensure!(
        start.elapsed() < wait::longer(secs(10)),
        "beside a stopped shim, fifty calls took {:?}",
        start.elapsed()
    );
    cx.exec_works(&neighbour).await.context("another pod")?;
    ensure!(pending.await?.is_err(), "an exec through a stopped shim succeeded");
    cx.cri.drop_pod(&pod.id).await.context("remove a pod whose shim is stopped")?;
    ensure!(!proc::alive(pid), "the container's process {pid} is alive");
    cx.cri.drop_pod(&other.id).await?;
    Ok(())
}

async fn killed_pause_ends_the_sandbox(cx: Context) -> Result<()> {
    let pod = cx.pod_of(cx.pod_config().shared_pid()).await?;
    let id = cx.start(&pod, &cx.sleeper("one")).await?;
    proc::signal(cx.node.pause(&pod.id)?.pid, Signal::SIGKILL)?;
    cx.cri.wait_exit(&id, secs(5)).await.context("a container whose PID 1, pause, was killed")?;
    wait::until("the pod to be NOTREADY", secs(5), || async {
        let s = cx.cri.pod_status(&pod.id).await?.status.context("status")?;
        Ok((s.state() == PodSandboxState::SandboxNotready).then_some(()))
    })
    .await
}

/// The state after a reboot: no process, no pin, no volatile folder, but CNI leases whose DEL is due.
async fn everything_lost_but_the_records(cx: Context) -> Result<()> {
    let (pod, id, pid) = cx.sleeping(cx.pod_config().own_network()).await?;
    let created = cx.create(&pod, &cx.sleeper("created")).await?;
    let shim = cx.node.shim(&pod.id)?;
    cx.node.kill9()?;
    for dead in [shim.pid, pid] {
        proc::signal(dead, Signal::SIGKILL)?;
    }
    for pin in fs::read_dir("/run/netns")?.flatten() {
        nix::mount::umount2(&pin.path(), nix::mount::MntFlags::MNT_DETACH)?;
        fs::remove_file(pin.path())?;
    }
    remove_nat_rules(&pod.id)?;
    let all = [shim.pid, pid];
    wait::until_true("the shim and init to be dead", secs(20), || !all.iter().any(|pid| proc::alive(*pid)))
        .await?;
    fs::remove_dir_all(&cx.node.paths.run)?;
    fs::create_dir_all(&cx.node.paths.run)?;
    cx.node.launch().await?;
    let s = cx.cri.wait_exit(&id, secs(5)).await?;
    ensure!(
        s.exit_code == 255 && !s.reason.is_empty(),
        "an exit that was not recorded is shown with code {} and reason `{}`",
        s.exit_code,
        s.reason
    );
    cx.cri.container(&created).await.context("the status of the container that was not started")?;
    cx.pod_is_shown(&pod.id, PodSandboxState::SandboxNotready).await?;
    cx.cri.stop_pod(&pod.id).await?;
    ensure!(
        cx.node.network.leased().is_empty(),
        "DEL was not run: {:?} are leased",
        cx.node.network.leased()
    );
    cx.cri.remove_pod(&pod.id).await?;
    let again = cx.pod_of(pod.config.clone()).await.context("the same pod again")?;
    cx.cri.drop_pod(&again.id).await?;
    Ok(())
}

/// Removes the pod's NAT rules, as a power loss would. DEL would leave them: the bridge plugin reads the addresses in its
/// rules from the pod's interface, which is gone with its namespace.
fn remove_nat_rules(pod: &str) -> Result<()> {
    let saved = command("iptables-save", &["-t", "nat"])?;
    let mut chains = Vec::new();
    for line in saved.lines().filter(|line| line.contains(pod)) {
        // iptables-save quotes arguments as a shell needs them.
        let rule = line.strip_prefix("-A ").with_context(|| format!("not a rule: {line}"))?;
        command("sh", &["-c", &format!("iptables -w -t nat -D {rule}")])?;
        chains.extend(rule.split_once(' ').filter(|(chain, _)| chain.starts_with("CNI-")).map(|it| it.0));
    }
    chains.dedup();
    for chain in chains {
        command("iptables", &["-w", "-t", "nat", "-X", chain])?;
    }
    Ok(())
}

async fn damaged_record_costs_one_object(cx: Context) -> Result<()> {
    let (good, id, _) = cx.sleeping(cx.pod_config()).await?;
    let (bad, _, pid) = cx.sleeping(cx.pod_config()).await?;
    cx.node.kill9()?;
    let record = cx.node.paths.root.join("pods").join(&bad.id).join("record");
    let bytes = fs::read(&record).with_context(|| record.display().to_string())?;
    fs::write(&record, bytes.get(..bytes.len() / 2).unwrap_or_default())?;
    cx.node.launch().await.context("a start with a damaged record")?;
    cx.exec_works(&id).await.context("the other pod")?;
    let listed = cx.cri.pods(None).await?;
    for pod in &listed {
        cx.cri.pod_status(&pod.id).await.with_context(|| format!("listed pod {} has no status", pod.id))?;
    }
    wait::until_true("the process of the damaged record's pod to end", secs(10), || !proc::alive(pid))
        .await?;
    ensure!(
        cx.node.last_log(100_000).contains(&bad.id),
        "the log does not name the pod of the damaged record"
    );
    cx.cri.drop_pod(&good.id).await?;
    for pod in cx.cri.pods(None).await? {
        cx.cri.drop_pod(&pod.id).await?;
    }
    // The daemon keeps the damaged record here for the operator; the census would find it.
    drop(fs::remove_dir_all(cx.node.paths.root.join("aside")));
    fs::create_dir_all(cx.node.paths.root.join("aside"))?;
    Ok(())
}

async fn second_daemon_is_refused(cx: Context) -> Result<()> {
    let out = attempt(&cx, &["--config", &cx.node.paths.config.display().to_string()]).await?;
    ensure!(!out.status.success(), "a second daemon exited with success");
    let text = String::from_utf8_lossy(&out.stderr).into_owned();
    let pid = cx.node.pid()?.to_string();
    ensure!(text.contains(&pid), "the error does not name the first daemon's pid {pid}: {text}");
    cx.cri.version().await.context("the first daemon")?;
    Ok(())
}

async fn ten_restarts_in_a_row(cx: Context) -> Result<()> {
    let (pod, id, pid) = cx.sleeping(cx.pod_config().own_network()).await?;
    for n in 0..10 {
        cx.node.kill9()?;
        cx.node.launch().await?;
        if n % 3 == 0 {
            cx.exec_works(&id).await.with_context(|| format!("round {n}"))?;
        }
    }
    ensure!(proc::alive(pid), "the container's process {pid} is dead");
    cx.cri.drop_pod(&pod.id).await?;
    Ok(())
}
