//! The loads; each function is one round, measured at the client.

use std::fs;
use std::io::Write as _;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use cri_api::v1::MountPropagation;

use crate::context::Context;
use crate::expect::ensure;
use crate::shapes::{ContainerExt as _, PodExt as _};

/// Bytes that a log writer writes in one round.
const LOG_BYTES: usize = 64 << 20;

/// Milliseconds since `from`.
fn ms(from: Instant) -> f64 {
    from.elapsed().as_secs_f64() * 1000.0
}

/// Runs RunPodSandbox, CreateContainer and StartContainer, then stops and removes; returns the milliseconds
/// of both halves.
pub(super) async fn pod(ctx: &Context, plugins: bool) -> Result<(f64, f64)> {
    let config = if plugins { ctx.pod_config().own_network() } else { ctx.pod_config() };
    let container = ctx.sleeper("main").like(&config);
    let began = Instant::now();
    let pod = ctx.pod_of(config).await?;
    let id = ctx.cri.create(&pod.id, &container, &pod.config).await?;
    ctx.cri.start(&id).await?;
    let ready = ms(began);
    let began = Instant::now();
    ctx.cri.drop_pod(&pod.id).await?;
    Ok((ready, ms(began)))
}

/// Pods per second when `count` are started at once with CNI plugins.
pub(super) async fn burst(ctx: &Context, count: usize) -> Result<f64> {
    let began = Instant::now();
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..count {
        let ctx = ctx.clone();
        tasks.spawn(async move {
            let pod = ctx.pod_of(ctx.pod_config().own_network()).await?;
            ctx.start(&pod, &ctx.sleeper("main")).await?;
            anyhow::Ok(pod.id)
        });
    }
    let mut ids = Vec::with_capacity(count);
    while let Some(done) = tasks.join_next().await {
        ids.push(done??);
    }
    let seconds = began.elapsed().as_secs_f64();
    for id in ids {
        ctx.cri.drop_pod(&id).await?;
    }
    #[expect(clippy::cast_precision_loss, reason = "a handful of pods")]
    Ok(count as f64 / seconds)
}

/// One ExecSync of `true`, in milliseconds.
pub(super) async fn exec(ctx: &Context, container: &str) -> Result<f64> {
    let began = Instant::now();
    let answer = ctx.cri.exec_sync(container, &["/bin/true"], 10).await?;
    let took = ms(began);
    ensure!(answer.exit_code == 0, "true ended with {}", answer.exit_code);
    Ok(took)
}

/// MiB/s of a container that writes lines of `length` bytes at full speed, computed from its start and end
/// times. Its input is in the page cache, so that reading does not limit it.
pub(super) async fn log(ctx: &Context, length: usize) -> Result<f64> {
    let dir = ctx.volume("log")?;
    let mut file = fs::File::create(dir.join("lines"))?;
    let mut line = vec![b'x'; length - 1];
    line.push(b'\n');
    let block = line.repeat((1 << 20) / length);
    let mut written = 0;
    while written < LOG_BYTES {
        file.write_all(&block)?;
        written += block.len();
    }
    drop(file);
    let pod = ctx.pod().await?;
    let writer = ctx.shell("writer", "exec cat /in/lines").mount(
        &dir,
        "/in",
        true,
        MountPropagation::PropagationPrivate,
    );
    let id = ctx.start(&pod, &writer).await?;
    let status = ctx.cri.wait_exit(&id, Duration::from_secs(60)).await?;
    ensure!(status.exit_code == 0, "the writer ended with {}", status.exit_code);
    let logged = fs::metadata(&status.log_path).with_context(|| status.log_path.clone())?.len();
    ensure!(logged > written as u64, "{logged} bytes logged of {written} written");
    ctx.cri.drop_pod(&pod.id).await?;
    fs::remove_dir_all(&dir)?;
    fs::remove_dir_all(&pod.config.log_directory)?;
    #[expect(clippy::cast_precision_loss, reason = "seconds and MiB need no more digits")]
    let (seconds, mib) =
        ((status.finished_at - status.started_at) as f64 / 1e9, written as f64 / f64::from(1 << 20));
    Ok(mib / seconds)
}
