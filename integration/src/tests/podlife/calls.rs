//! Calls that meet a stop, a removal or the end of their container.

use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use tonic::Code;

use super::Frozen;
use crate::context::Context;
use crate::expect::ensure;
use crate::fixture::Fixture;
use crate::proc;
use crate::runner::{Test, test};
use crate::shapes::{self};
use crate::wait::{self, secs};

pub(super) fn tests() -> Vec<Test> {
    vec![
        test!(container_and_pod_removed_at_once).ours(),
        test!(exec_answers_at_its_limit).ours(),
        test!(creates_aborted_by_a_stop),
        test!(execs_refused_after_the_end),
        test!(a_traced_container_can_be_stopped).ours(),
        test!(short_commands_start_and_complete).limit(180),
    ]
}

/// Traces a process without ever waiting for it, until it is dropped.
struct Tracer {
    /// The tracing thread ends when this is dropped.
    _end: mpsc::Sender<()>,
}

impl Tracer {
    fn seize(pid: u32) -> Result<Self> {
        let pid = nix::unistd::Pid::from_raw(i32::try_from(pid)?);
        let (end, ended) = mpsc::channel();
        let (told, outcome) = mpsc::channel();
        // The thread is the tracer, so tracing ends with it.
        std::thread::spawn(move || {
            let seized = nix::sys::ptrace::seize(pid, nix::sys::ptrace::Options::empty());
            told.send(seized).unwrap_or_default();
            ended.recv().unwrap_or_default();
        });
        outcome.recv()?.with_context(|| format!("trace {pid}"))?;
        Ok(Self { _end: end })
    }
}

async fn container_and_pod_removed_at_once(cx: Context) -> Result<()> {
    for round in 0..25 {
        let pod = cx.pod().await?;
        let mut calls = Vec::new();
        for n in 0..3 {
            let id = cx.start(&pod, &cx.shell(&format!("c{n}"), "exit 0")).await?;
            cx.cri.wait_exit(&id, secs(10)).await?;
            let cri = cx.cri.clone();
            calls.push(tokio::spawn(async move { cri.remove(&id).await }));
        }
        let (cri, id) = (cx.cri.clone(), pod.id.clone());
        calls.push(tokio::spawn(async move {
            cri.stop_pod(&id).await?;
            cri.remove_pod(&id).await
        }));
        for call in calls {
            call.await?.with_context(|| format!("round {round}"))?;
        }
        ensure!(!cx.cri.pods(None).await?.iter().any(|it| it.id == pod.id), "the pod is still listed");
    }
    Ok(())
}

/// The caller of an exec must get a reply even if the command cannot be killed now.
async fn exec_answers_at_its_limit(cx: Context) -> Result<()> {
    let pod = cx.pod().await?;
    let id = cx.start(&pod, &cx.sleeper("one")).await?;
    let mark = format!("6{:05}", shapes::unique());
    let asked = Instant::now();
    let call = {
        let (cri, id, mark) = (cx.cri.clone(), id.clone(), mark.clone());
        tokio::spawn(async move { cri.exec_sync(&id, &["sleep", &mark], 3).await })
    };
    wait::until_true("the command to run", secs(2), || !proc::with_args(&format!("sleep {mark}")).is_empty())
        .await?;
    let frozen = Frozen::container(&id).await?;
    let error = call.await?.err().context("an exec of a frozen command succeeded")?;
    let took = asked.elapsed();
    ensure!(error.code() == Code::DeadlineExceeded, "an exec of a frozen command: {error}");
    ensure!(took >= Duration::from_millis(2900) && took < secs(20), "answered after {took:?} instead of 3 s");
    drop(frozen);
    wait::until_true("the thawed command to be killed", secs(15), || {
        proc::with_args(&format!("sleep {mark}")).is_empty()
    })
    .await?;
    cx.exec_works(&id).await?;
    Ok(())
}

async fn creates_aborted_by_a_stop(cx: Context) -> Result<()> {
    cx.need(&Fixture::image("busybox")).await?;
    let (mut aborted, mut rounds) = (0, 0);
    // At least 16 rounds, and more if too few creates were aborted: how long a create takes depends on the machine.
    for round in 0..64_u64 {
        if round >= 16 && aborted >= 4 {
            break;
        }
        rounds += 1;
        let pod = cx.pod().await?;
        let create = {
            let (cri, pod) = (cx.cri.clone(), pod.clone());
            let config = shapes::ContainerExt::like(cx.sleeper("one"), &pod.config);
            tokio::spawn(async move { cri.create(&pod.id, &config, &pod.config).await })
        };
        tokio::time::sleep(Duration::from_millis(round % 16 * 2)).await;
        cx.cri.drop_pod(&pod.id).await?;
        if let Err(error) = create.await? {
            let fits = match error.code() {
                Code::FailedPrecondition => error.message().contains("stopped"),
                // The pod was gone before the call arrived.
                Code::NotFound => true,
                _ => false,
            };
            ensure!(fits, "round {round}: a create beside a stop was answered with {error}");
            aborted += 1;
        }
    }
    ensure!(aborted >= 4, "only {aborted} creates of {rounds} were aborted");
    Ok(())
}

async fn execs_refused_after_the_end(cx: Context) -> Result<()> {
    let pod = cx.pod().await?;
    let mut refused = 0;
    for round in 0..16_u64 {
        let id = cx.start(&pod, &cx.sleeper(&format!("c{round}"))).await?;
        let calls: Vec<_> = (0..3)
            .map(|_| {
                let (cri, id) = (cx.cri.clone(), id.clone());
                tokio::spawn(async move { cri.exec_sync(&id, &["true"], 10).await })
            })
            .collect();
        tokio::time::sleep(Duration::from_micros(round * 400)).await;
        cx.cri.stop(&id, 0).await?;
        for call in calls {
            match call.await? {
                // It was killed with its container, or had ended before.
                Ok(done) => {
                    ensure!([0, 137].contains(&done.exit_code), "an exec ended with {}", done.exit_code)
                }
                Err(error) => {
                    ensure!(
                        error.code() == Code::FailedPrecondition,
                        "round {round}: an exec beside a stop was answered with {error}"
                    );
                    refused += 1;
                }
            }
        }
        cx.cri.remove(&id).await?;
    }
    println!("      {refused} of 48 execs were refused because their container had ended");
    Ok(())
}

/// The kernel keeps a killed process for its tracer, so its parent cannot reap it: the container still counts as
/// exited.
async fn a_traced_container_can_be_stopped(cx: Context) -> Result<()> {
    let pod = cx.pod().await?;
    let id = cx.start(&pod, &cx.sleeper("traced")).await?;
    let tracer = Tracer::seize(cx.pid(&id).await?)?;
    let asked = Instant::now();
    cx.cri.stop(&id, 0).await?;
    ensure!(asked.elapsed() < wait::longer(secs(15)), "StopContainer took {:?}", asked.elapsed());
    cx.exited_with(&id, 137).await?;
    cx.cri.remove(&id).await.context("RemoveContainer")?;
    let next = cx.start(&pod, &cx.sleeper("next")).await.context("a further container")?;
    cx.exec_works(&next).await?;
    drop(tracer);
    cx.cri.drop_pod(&pod.id).await?;
    Ok(())
}

/// A command may end before the shim sees that it has started; it must still count as started.
async fn short_commands_start_and_complete(cx: Context) -> Result<()> {
    cx.need(&Fixture::image("busybox")).await?;
    let mut pods = Vec::new();
    for n in 0..4 {
        let mut config = cx.pod_config();
        if let Some(metadata) = &mut config.metadata {
            metadata.name = format!("{}-{n}", metadata.name);
        }
        pods.push(cx.pod_of(config).await?);
    }
    let lives = pods.iter().map(|pod| {
        let (cx, pod) = (cx.clone(), pod.clone());
        tokio::spawn(async move {
            for n in 0..20 {
                let config = shapes::container(&format!("c{n}"), &Fixture::image("busybox"), &["/bin/true"]);
                let status = cx.run(&pod, &config).await.with_context(|| format!("container {n}"))?;
                ensure!(
                    status.exit_code == 0 && status.reason == "Completed",
                    "`true` ended with {status:?}"
                );
                cx.cri.remove(&status.id).await?;
            }
            Ok(())
        })
    });
    for life in lives.collect::<Vec<_>>() {
        life.await??;
    }
    for pod in pods {
        cx.cri.drop_pod(&pod.id).await?;
    }
    Ok(())
}
