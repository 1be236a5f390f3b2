//! Processes of a container that others stop or trace.

use std::fs;
use std::time::Instant;

use anyhow::{Context as _, Result};
use cri_api::v1::{self as api, ContainerState, NamespaceMode};
use nix::sys::signal::Signal;
use serde_json::json;
use tonic::Code;

use crate::context::{Context, Pod};
use crate::expect::ensure;
use crate::images::layer::{Packing, Writer};
use crate::images::{Image, Recipe};
use crate::proc;
use crate::runner::{Test, test};
use crate::shapes::{self, ContainerExt as _, PodExt as _};
use crate::wait::{self, secs};

pub(super) fn tests() -> Vec<Test> {
    vec![
        test!(start_of_a_stopped_init),
        test!(init_killed_before_execve_never_ran),
        test!(traced_exec_times_out_in_time),
        test!(traced_execs_take_no_place_for_ever),
        test!(traced_container_is_stopped),
        test!(container_held_at_its_exit_is_stopped).limit(90),
        test!(pod_traced_from_another_is_stopped),
        test!(lost_container_held_at_its_exit_keeps_its_files).own().limit(240),
    ]
}

/// A created container whose waiting init is stopped, as a process in the same PID namespace can do.
async fn stopped(cx: &Context, pod: &Pod) -> Result<(String, u32)> {
    let id = cx.create(pod, &cx.sleeper("waits")).await?;
    let pid = cx.pid(&id).await?;
    proc::signal(pid, Signal::SIGSTOP)?;
    wait::until_true("init to be stopped", secs(5), || proc::one(pid).is_some_and(|p| p.state == 'T'))
        .await?;
    Ok((id, pid))
}

async fn start_of_a_stopped_init(cx: Context) -> Result<()> {
    let pod = cx.pod_of(cx.pod_config().shared_pid()).await?;
    let (id, _) = stopped(&cx, &pod).await?;
    let start = Instant::now();
    cx.cri.start(&id).await.context("start of a stopped init")?;
    ensure!(start.elapsed() < wait::longer(secs(10)), "the start took {:?}", start.elapsed());
    cx.is_shown(&id, ContainerState::ContainerRunning).await
}

async fn init_killed_before_execve_never_ran(cx: Context) -> Result<()> {
    let pod = cx.pod_of(cx.pod_config().shared_pid()).await?;
    let (id, pid) = stopped(&cx, &pod).await?;
    let asking = cx.cri.clone();
    let asked = id.clone();
    let start = tokio::spawn(async move { asking.start(&asked).await });
    // init is killed when the start request waits for it in its socket: a stopped process does not read it.
    wait::until_true("the start request to be sent", secs(10), || proc::unanswered_starts() == 1).await?;
    proc::signal(pid, Signal::SIGKILL)?;
    let answer = start.await?;
    ensure!(answer.is_err(), "StartContainer succeeded although init was killed before execve");
    let s = cx.cri.wait_exit(&id, secs(10)).await?;
    ensure!(
        s.exit_code != 0 && s.started_at == 0,
        "a container that never ran is shown with code {} and started at {}",
        s.exit_code,
        s.started_at
    );
    Ok(())
}

/// busybox, and a program that traces every process named `busybox-victim` for ever and creates a file in /ptrace for
/// each.
fn tracer_image(cx: &Context) -> Result<Image> {
    let mut w = Writer::new();
    w.program("/usr/bin/perl")?;
    w.symlink("bin/busybox-victim", "busybox")?;
    w.dir("ptrace", 0o755)?;
    let call = if cfg!(target_arch = "aarch64") { 117 } else { 101 };
    let script = format!(
        "my ($options, $mark) = @ARGV; my %traced; \
         while (1) {{ opendir(my $d, '/proc'); \
         for my $p (grep {{ /^[0-9]+$/ }} readdir $d) {{ next if $traced{{$p}}; \
         open(my $f, '<', \"/proc/$p/comm\") or next; my $name = <$f>; next unless $name eq \"busybox-victim\\n\"; \
         if (syscall({call}, 0x4206, $p + 0, 0, $options + 0) == 0) {{ $traced{{$p}} = 1; open(my $m, '>', \"/ptrace/$p\"); }} }} \
         select(undef, undef, undef, 0.01); }}\n"
    );
    w.file("usr/bin/trace.pl", 0o644, script.as_bytes())?;
    Ok(Recipe::new(
        &[cx.fixture.layers.busybox.clone(), w.finish(Packing::Gzip)?],
        json!({"Cmd": ["/bin/sh"], "Env": ["PATH=/usr/sbin:/usr/bin:/sbin:/bin"]}),
    )
    .build())
}

/// Pushes the image of [`tracer_image`]; returns its reference.
async fn push_tracer_image(cx: &Context) -> Result<String> {
    let image = tracer_image(cx)?;
    cx.fixture.registry.push("tracer", "1", &image).await?;
    Ok("registry.test/tracer:1".to_owned())
}

/// PTRACE_O_TRACEEXIT.
const TRACE_EXIT: u32 = 0x40;

fn tracer(name: &str, image: &str, options: u32) -> api::ContainerConfig {
    shapes::container(name, image, &["/usr/bin/perl", "/usr/bin/trace.pl", &options.to_string()])
        .with_capability("SYS_PTRACE")
}

/// Waits until a tracer container traces this many processes.
async fn traces(cx: &Context, tracer: &str, count: usize) -> Result<()> {
    let line = format!("until [ $(ls /ptrace | wc -l) -ge {count} ]; do sleep 0.01; done");
    cx.cri.sh(tracer, &line).await.map(drop)
}

async fn traced_exec_times_out_in_time(cx: Context) -> Result<()> {
    let image = push_tracer_image(&cx).await?;
    let pod = cx.pod().await?;
    let id = cx.start(&pod, &tracer("one", &image, 0)).await?;
    let start = Instant::now();
    let answers = traced_execs(&cx, &id, 4).await;
    ensure!(
        answers.iter().all(|code| *code == Code::DeadlineExceeded),
        "traced execs were answered with {answers:?}"
    );
    ensure!(
        start.elapsed() < wait::longer(secs(6)),
        "traced execs with a time-out of 1 s took {:?}",
        start.elapsed()
    );
    cx.exec_works(&id).await?;
    Ok(())
}

/// Runs execs that are traced, all at once and each with a time limit of one second; returns their codes.
async fn traced_execs(cx: &Context, id: &str, count: usize) -> Vec<Code> {
    let mut tasks = Vec::new();
    for _ in 0..count {
        let (cri, id) = (cx.cri.clone(), id.to_owned());
        tasks.push(tokio::spawn(async move {
            cri.exec_sync(&id, &["/bin/busybox-victim", "sleep", "50"], 1)
                .await
                .map_or_else(|e| e.code(), |_| Code::Ok)
        }));
    }
    let mut codes = Vec::new();
    for task in tasks {
        codes.push(task.await.unwrap_or(Code::Unknown));
    }
    codes
}

async fn traced_execs_take_no_place_for_ever(cx: Context) -> Result<()> {
    let image = push_tracer_image(&cx).await?;
    let pod = cx.pod().await?;
    let id = cx.start(&pod, &tracer("one", &image, TRACE_EXIT)).await?;
    let start = Instant::now();
    let answers = traced_execs(&cx, &id, 40).await;
    ensure!(
        answers.iter().all(|code| *code == Code::DeadlineExceeded),
        "traced execs were answered with {answers:?}"
    );
    ensure!(
        start.elapsed() < wait::longer(secs(8)),
        "traced execs with a time-out of 1 s took {:?}",
        start.elapsed()
    );
    // The container with all of them is stopped like any other.
    let start = Instant::now();
    cx.cri.stop(&id, 0).await?;
    ensure!(start.elapsed() < wait::longer(secs(5)), "its stop took {:?}", start.elapsed());
    Ok(())
}

/// Stops a container whose init is traced by another container in a shared PID namespace, which must work in time;
/// returns the ids of the tracer and of the container.
async fn stopped_though_traced(cx: &Context, options: u32) -> Result<(String, String)> {
    let image = push_tracer_image(cx).await?;
    let pod = cx.pod_of(cx.pod_config().shared_pid()).await?;
    let tracing = cx.start(&pod, &tracer("tracer", &image, options)).await?;
    let victim = shapes::container("victim", &image, &["/bin/busybox-victim", "sleep", "5000"]);
    let victim = cx.start(&pod, &victim).await?;
    traces(cx, &tracing, 1).await?;
    let start = Instant::now();
    cx.cri.stop(&victim, 0).await?;
    ensure!(start.elapsed() < wait::longer(secs(5)), "its stop took {:?}", start.elapsed());
    cx.exited_with(&victim, 137).await?;
    Ok((tracing, victim))
}

async fn traced_container_is_stopped(cx: Context) -> Result<()> {
    let (tracing, victim) = stopped_though_traced(&cx, 0).await.context("stop of a traced container")?;
    cx.cri.remove(&victim).await.context("removal of a traced container")?;
    cx.is_shown(&tracing, ContainerState::ContainerRunning).await.context("the tracer")
}

async fn container_held_at_its_exit_is_stopped(cx: Context) -> Result<()> {
    let (tracing, victim) = stopped_though_traced(&cx, TRACE_EXIT)
        .await
        .context("stop of a container that its tracer holds at its exit")?;
    // Its cgroup can be removed once the tracer has detached.
    cx.cri.stop(&tracing, 0).await?;
    cx.cri.remove(&victim).await.context("removal after the tracer's end")
}

/// A pod whose container is traced by that of another pod. Returns the tracer's pod and container, and the traced pod
/// and container.
async fn traced_from_another(cx: &Context, options: u32) -> Result<(Pod, String, Pod, String)> {
    let image = push_tracer_image(cx).await?;
    let mut config = cx.pod_config();
    config.namespaces().pid = NamespaceMode::Node.into();
    let attacker = cx.pod_of(config).await?;
    let tracing = cx.start(&attacker, &tracer("tracer", &image, options)).await?;
    let pod = cx.pod().await?;
    let victim = shapes::container("victim", &image, &["/bin/busybox-victim", "sleep", "5000"]);
    let victim = cx.start(&pod, &victim).await?;
    traces(cx, &tracing, 1).await?;
    Ok((attacker, tracing, pod, victim))
}

async fn pod_traced_from_another_is_stopped(cx: Context) -> Result<()> {
    let (_, _, pod, _) = traced_from_another(&cx, 0).await?;
    let start = Instant::now();
    cx.cri.stop_pod(&pod.id).await.context("stop of a pod that another one traces")?;
    ensure!(start.elapsed() < wait::longer(secs(5)), "its stop took {:?}", start.elapsed());
    cx.cri.remove_pod(&pod.id).await?;
    Ok(())
}

/// A restarted daemon removes the containers of a pod whose record is damaged. One whose process survives SIGKILL keeps its
/// folder and its image lease.
async fn lost_container_held_at_its_exit_keeps_its_files(cx: Context) -> Result<()> {
    let (attacker, tracing, pod, victim) = traced_from_another(&cx, TRACE_EXIT).await?;
    let pid = cx.pid(&victim).await?;
    cx.node.kill9()?;
    let root = &cx.node.paths.root;
    fs::write(root.join("pods").join(&pod.id).join("record"), "{\"magic\":")?;
    let files =
        [root.join("containers").join(&victim), root.join("images/leases").join(format!("{victim}.json"))];
    cx.node.launch().await?;
    let tried = || cx.node.last_log(100_000).contains("cannot remove a container without a pod");
    wait::until_true("the daemon to try the removal", secs(120), tried).await?;
    // Other work of the start, which could remove them too.
    tokio::time::sleep(secs(5)).await;
    ensure!(proc::one(pid).is_some(), "the process {pid} is gone, so this test shows nothing");
    for file in &files {
        ensure!(file.exists(), "{} is gone, and process {pid} exists", file.display());
    }
    cx.exec_works(&tracing).await.context("the other pod")?;
    cx.cri.stop(&tracing, 0).await?;
    cx.node.crash().await?;
    let gone = || files.iter().all(|file| !file.exists());
    wait::until_true("the files to be removed after the tracer's end", secs(60), gone).await?;
    cx.cri.drop_pod(&attacker.id).await?;
    // The daemon keeps the damaged record here for the operator; the census would find it.
    fs::remove_dir_all(root.join("aside"))?;
    Ok(fs::create_dir(root.join("aside"))?)
}
