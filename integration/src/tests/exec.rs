//! ExecSync.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use tonic::Code;

use crate::context::Context;
use crate::expect::ensure;
use crate::proc;
use crate::runner::{Test, test};
use crate::shapes::{self, ContainerExt as _, PodExt as _};
use crate::wait::{self, secs};

pub(super) fn tests() -> Vec<Test> {
    vec![
        test!(streams_and_code),
        test!(environment_user_and_directory),
        test!(timeout_kills_the_tree),
        test!(background_child_does_not_hang_it).ours(),
        test!(output_is_capped).ours(),
        test!(only_in_running_containers),
        test!(missing_program_fails),
        test!(stdin_is_empty),
        test!(joins_the_cgroup),
        test!(hundred_in_a_row),
        test!(parallel),
        test!(signal_gives_128_plus),
        test!(dies_with_the_container),
        test!(several_containers_of_a_pod),
    ]
}

async fn streams_and_code(cx: Context) -> Result<()> {
    let pod = cx.pod().await?;
    let id = cx.start(&pod, &cx.sleeper("one")).await?;
    let out = cx.cri.exec(&id, &["/bin/sh", "-c", "echo out; echo err >&2; exit 9"]).await?;
    ensure!(out.stdout == "out\n" && out.stderr == "err\n" && out.code == 9, "the exec gave {out:?}");
    let out = cx.cri.exec(&id, &["echo", "found by PATH"]).await?;
    ensure!(out.stdout == "found by PATH\n" && out.code == 0, "the exec gave {out:?}");
    let binary = cx.cri.exec_sync(&id, &["/bin/sh", "-c", "printf '\\000\\377\\n'"], 5).await?;
    ensure!(binary.stdout == [0, 255, 10], "of bytes that are no UTF-8 came back {:?}", binary.stdout);
    Ok(())
}

async fn environment_user_and_directory(cx: Context) -> Result<()> {
    let pod = cx.pod().await?;
    let config = cx.sleeper("one").env("MINE", "a b").with(|c| {
        c.working_dir = String::from("/tmp");
        let s = c.security();
        s.run_as_user = Some(cri_api::v1::Int64Value { value: 1000 });
        s.run_as_group = Some(cri_api::v1::Int64Value { value: 1000 });
        s.supplemental_groups = vec![4242];
    });
    let id = cx.start(&pod, &config).await?;
    cx.prints(&id, "echo $MINE; pwd; id -u; id -g", "a b\n/tmp\n1000\n1000").await?;
    let groups = cx.cri.sh(&id, "id -G").await?;
    let groups: Vec<&str> = groups.split(' ').collect();
    for group in ["1000", "4242", "50000"] {
        ensure!(groups.contains(&group), "groups of the exec'd process are {groups:?}");
    }
    Ok(())
}

async fn timeout_kills_the_tree(cx: Context) -> Result<()> {
    let pod = cx.pod().await?;
    let id = cx.start(&pod, &cx.sleeper("one")).await?;
    let mark = format!("4{:05}", shapes::unique());
    // As `sudo` and `su -l` do, the second starts a session of its own.
    let line = format!("sleep {mark} & setsid sleep {mark} & sleep {mark}");
    let start = Instant::now();
    let refused = cx.cri.exec_sync(&id, &["/bin/sh", "-c", &line], 1).await.err().context("no time-out")?;
    let took = start.elapsed();
    ensure!(refused.code() == Code::DeadlineExceeded, "kubelet's probes need DeadlineExceeded: {refused}");
    ensure!(took >= Duration::from_millis(900) && took < secs(20), "with a time-out of 1 s it took {took:?}");
    if !cx.node.is_foreign() {
        wait::until_true("all processes of the command to be dead", secs(3), || {
            proc::with_args(&format!("sleep {mark}")).is_empty()
        })
        .await?;
    }
    cx.exec_works(&id).await.context("the container after it")?;
    Ok(())
}

/// A grandchild that keeps the pipes open must not delay the reply.
async fn background_child_does_not_hang_it(cx: Context) -> Result<()> {
    let pod = cx.pod().await?;
    let id = cx.start(&pod, &cx.sleeper("one")).await?;
    let start = Instant::now();
    let out = cx.cri.exec(&id, &["/bin/sh", "-c", "echo first; sleep 30 & exit 0"]).await?;
    ensure!(out.stdout == "first\n" && out.code == 0, "the exec gave {out:?}");
    ensure!(
        start.elapsed() < wait::longer(secs(10)),
        "with a child in the background it took {:?}",
        start.elapsed()
    );
    Ok(())
}

async fn output_is_capped(cx: Context) -> Result<()> {
    let pod = cx.pod().await?;
    let id = cx.start(&pod, &cx.sleeper("one")).await?;
    let r = cx
        .cri
        .exec_sync(
            &id,
            &["/bin/sh", "-c", "dd if=/dev/zero bs=1M count=12; dd if=/dev/zero bs=1M count=12 >&2; exit 6"],
            60,
        )
        .await?;
    let size = r.stdout.len() + r.stderr.len();
    ensure!(size <= (16 << 20) - (64 << 10), "{size} bytes do not fit kubelet's message");
    ensure!(size > 12 << 20, "only {size} bytes were kept");
    ensure!(r.exit_code == 6, "the command ended with {}, not by its own `exit 6`", r.exit_code);
    Ok(())
}

async fn only_in_running_containers(cx: Context) -> Result<()> {
    let pod = cx.pod().await?;
    let created = cx.create(&pod, &cx.sleeper("created")).await?;
    ensure!(cx.cri.exec_sync(&created, &["true"], 5).await.is_err(), "exec in a created container");
    let exited = cx.start(&pod, &cx.shell("exited", "true")).await?;
    cx.cri.wait_exit(&exited, secs(10)).await?;
    ensure!(cx.cri.exec_sync(&exited, &["true"], 5).await.is_err(), "exec in an exited container");
    let unknown = cx.cri.exec_sync(&"a".repeat(64), &["true"], 5).await.err().context("exec in nothing")?;
    ensure!(unknown.code() == Code::NotFound, "an exec in an unknown container: {unknown}");
    let running = cx.start(&pod, &cx.sleeper("running")).await?;
    ensure!(cx.cri.exec_sync(&running, &[], 5).await.is_err(), "an empty command");
    Ok(())
}

async fn missing_program_fails(cx: Context) -> Result<()> {
    let pod = cx.pod().await?;
    let id = cx.start(&pod, &cx.sleeper("one")).await?;
    let e = cx.cri.exec_sync(&id, &["/no/such/program"], 5).await.err().context("a missing program ran")?;
    ensure!(e.message().contains("/no/such/program"), "the error does not name it: {e}");
    cx.exec_works(&id).await?;
    Ok(())
}

async fn stdin_is_empty(cx: Context) -> Result<()> {
    let pod = cx.pod().await?;
    let id = cx.start(&pod, &cx.sleeper("one")).await?;
    let out = cx.cri.exec_sync(&id, &["/bin/cat"], 5).await?;
    ensure!(out.exit_code == 0 && out.stdout.is_empty(), "cat of an empty stdin: {out:?}");
    Ok(())
}

async fn joins_the_cgroup(cx: Context) -> Result<()> {
    let pod = cx.pod().await?;
    let id = cx.start(&pod, &cx.sleeper("one")).await?;
    let lines = cx.cri.sh(&id, "cat /proc/1/cgroup; echo; cat /proc/self/cgroup").await?;
    let (init, exec) = lines.split_once("\n\n").context("two lists")?;
    let v1 =
        |text: &str| text.lines().filter(|l| !l.starts_with("0::")).map(str::to_owned).collect::<Vec<_>>();
    ensure!(v1(init) == v1(exec), "init is in\n{init}\nexec in\n{exec}");
    Ok(())
}

async fn hundred_in_a_row(cx: Context) -> Result<()> {
    let pod = cx.pod().await?;
    let id = cx.start(&pod, &cx.sleeper("one")).await?;
    for n in 0..100 {
        let out = cx.cri.exec(&id, &["/bin/echo", &n.to_string()]).await?;
        ensure!(out.stdout == format!("{n}\n") && out.code == 0, "`echo {n}` gave {out:?}");
    }
    let left: u32 = cx.cri.sh(&id, "ls /proc | grep -c '^[0-9]'").await?.parse()?;
    ensure!(left < 6, "{left} processes are in the container after the execs");
    Ok(())
}

async fn parallel(cx: Context) -> Result<()> {
    let pod = cx.pod().await?;
    let id = cx.start(&pod, &cx.sleeper("one")).await?;
    let work: Vec<_> = (0..30)
        .map(|n| {
            let (cri, id) = (cx.cri.clone(), id.clone());
            tokio::spawn(async move {
                cri.exec(&id, &["/bin/sh", "-c", &format!("sleep 0.{}; echo {n}; exit {n}", n % 10)])
                    .await
                    .map(|o| (n, o))
            })
        })
        .collect();
    for one in work {
        let (n, out) = one.await??;
        ensure!(out.stdout == format!("{n}\n") && out.code == n, "`echo {n}; exit {n}` gave {out:?}");
    }
    Ok(())
}

async fn signal_gives_128_plus(cx: Context) -> Result<()> {
    let pod = cx.pod().await?;
    let id = cx.start(&pod, &cx.sleeper("one")).await?;
    let out = cx.cri.exec(&id, &["/bin/sh", "-c", "kill -9 $$"]).await?;
    ensure!(out.code == 137, "a command that was killed by SIGKILL gave {out:?}");
    Ok(())
}

async fn dies_with_the_container(cx: Context) -> Result<()> {
    let pod = cx.pod_of(cx.pod_config().shared_pid()).await?;
    let id = cx.start(&pod, &cx.sleeper("one")).await?;
    let mark = format!("5{:05}", shapes::unique());
    let (cri, target, line) = (cx.cri.clone(), id.clone(), format!("sleep {mark}"));
    let running = tokio::spawn(async move { cri.exec_sync(&target, &["/bin/sh", "-c", &line], 60).await });
    wait::until_true("the exec to run", secs(10), || {
        cx.node.is_foreign() || !proc::with_args(&format!("sleep {mark}")).is_empty()
    })
    .await?;
    cx.cri.stop(&id, 0).await?;
    let ended = wait::timeout(secs(10), running).await.context("the exec outlived its container")??;
    ensure!(ended.is_err() || ended.is_ok_and(|r| r.exit_code != 0), "the exec claims success");
    ensure!(
        cx.node.is_foreign() || proc::with_args(&format!("sleep {mark}")).is_empty(),
        "the command of the exec is alive after its container's stop"
    );
    Ok(())
}

async fn several_containers_of_a_pod(cx: Context) -> Result<()> {
    let pod = cx.pod().await?;
    let mut ids = Vec::new();
    for n in 0..3 {
        ids.push(
            cx.start(&pod, &cx.shell(&format!("c{n}"), &format!("echo {n} > /tmp/me; sleep 10000"))).await?,
        );
    }
    for (n, id) in ids.iter().enumerate() {
        wait::until(&format!("the file of container {n}"), secs(5), || async {
            cx.prints(id, "cat /tmp/me", &n.to_string()).await.map(Some)
        })
        .await?;
    }
    Ok(())
}
