//! Calls that meet another call or the end of a process: they succeed, or their code says that a retry may succeed.
//! What must be complete when the daemon has ended, and when a removal returns.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::libc;
use nix::sys::signal::Signal;
use tonic::Code;

use crate::context::Context;
use crate::expect::ensure;
use crate::fixture::Fixture;
use crate::images::Recipe;
use crate::proc;
use crate::repeat::Repeat;
use crate::runner::{Test, test};
use crate::shapes;

pub(super) fn tests() -> Vec<Test> {
    vec![
        test!(start_is_aborted_by_stop_or_removal).limit(120),
        test!(launch_fails_when_its_shim_is_killed).own().limit(120),
        test!(pull_succeeds_beside_removals).own().limit(120),
        test!(the_lock_is_held_until_the_daemon_has_ended).own(),
        test!(removal_frees_the_space_before_it_returns),
    ]
}

/// Rounds with delays between start and stop.
const DELAYED_ROUNDS: u32 = 60;
/// Maximum number of rounds until one start was aborted.
const MAX_ROUNDS: u32 = 1_000;

/// How often each code was returned.
type Codes = BTreeMap<String, u32>;

async fn start_is_aborted_by_stop_or_removal(cx: Context) -> Result<()> {
    let pod = cx.pod().await?;
    let mut codes = Codes::new();
    // First the stop comes after a delay of up to the time that a start takes on this machine. If no start was aborted
    // by then, further rounds stop without a delay, which aborts starts most often.
    let mut took = Duration::from_millis(3);
    for round in 0..MAX_ROUNDS {
        let delayed = round < DELAYED_ROUNDS;
        if !delayed && codes.contains_key("Aborted") {
            break;
        }
        let id = cx.create(&pod, &cx.sleeper(&format!("c{round}"))).await?;
        let start = async {
            let began = Instant::now();
            let started = cx.cri.start(&id).await;
            (started, began.elapsed())
        };
        let end = async {
            if delayed {
                tokio::time::sleep(took * (round % 20) / 20).await;
            }
            if !delayed || round % 2 == 0 { cx.cri.stop(&id, 0).await } else { cx.cri.remove(&id).await }
        };
        let ((started, time), ended) = tokio::join!(start, end);
        ended.with_context(|| format!("stop or removal of {id}"))?;
        let code = started.as_ref().err().map_or(Code::Ok, tonic::Status::code);
        *codes.entry(format!("{code:?}")).or_default() += 1;
        // NotFound and FailedPrecondition: it had exited or was removed when the start arrived.
        let fits = matches!(code, Code::Ok | Code::Aborted | Code::NotFound | Code::FailedPrecondition);
        ensure!(fits, "round {round}: StartContainer was answered with {started:?}");
        if code == Code::Ok {
            took = time;
        }
        cx.cri.remove(&id).await?;
    }
    println!("      ({codes:?})");
    ensure!(codes.contains_key("Aborted"), "no start was aborted: {codes:?}");
    Ok(())
}

/// Simulates an OOM killer that kills shims while they start.
async fn launch_fails_when_its_shim_is_killed(cx: Context) -> Result<()> {
    let daemon = cx.node.pid()?;
    let killer = Repeat::start(move |_| {
        for shim in proc::children(daemon) {
            proc::signal(shim.pid, Signal::SIGKILL)?;
        }
        Ok(())
    });
    let mut codes = Codes::new();
    let mut outcome = Ok(());
    for round in 0..20 {
        let made = cx.cri.run_pod(&cx.pod_config()).await;
        let code = made.as_ref().err().map_or(Code::Ok, tonic::Status::code);
        *codes.entry(format!("{code:?}")).or_default() += 1;
        if !matches!(code, Code::Ok | Code::Unavailable | Code::Aborted) {
            outcome = Err(anyhow::anyhow!("round {round}: RunPodSandbox was answered with {made:?}"));
            break;
        }
        if let Ok(id) = made {
            cx.cri.drop_pod(&id).await?;
        }
    }
    killer.stop()?;
    println!("      ({codes:?})");
    outcome?;
    ensure!(codes.contains_key("Unavailable"), "no shim was killed in time: {codes:?}");
    // The next pod starts; the census checks that nothing of the others is left.
    let pod = cx.pod().await?;
    Ok(cx.cri.drop_pod(&pod.id).await?)
}

async fn pull_succeeds_beside_removals(cx: Context) -> Result<()> {
    const PULLS: usize = 150;
    let name = format!("registry.test/{}:1", cx.name);
    // Without a layer, so that only the documents take time.
    let image = Recipe::new(&[], serde_json::json!({"Env": ["PULLED=1"]}));
    cx.fixture.registry.push(&cx.name, "1", &image.build()).await?;
    let stop = Arc::new(AtomicBool::new(false));
    let removing = tokio::spawn({
        let (cri, name, stop) = (cx.cri.clone(), name.clone(), Arc::clone(&stop));
        async move {
            while !stop.load(Ordering::Relaxed) {
                cri.remove_image(&name).await?;
            }
            Ok::<_, anyhow::Error>(())
        }
    });
    let mut failed = Vec::new();
    for _ in 0..PULLS {
        failed.extend(cx.cri.pull(&name).await.err());
    }
    stop.store(true, Ordering::Relaxed);
    removing.await??;
    ensure!(failed.is_empty(), "{} of {PULLS} pulls failed: {:?}", failed.len(), failed.first());
    Ok(())
}

/// The process that has an fcntl(2) write lock on a file.
fn holder(file: &File) -> Result<Option<libc::pid_t>> {
    let mut lock = libc::flock {
        l_type: i16::try_from(libc::F_WRLCK)?,
        l_whence: i16::try_from(libc::SEEK_SET)?,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    };
    fcntl(file, FcntlArg::F_GETLK(&mut lock))?;
    Ok((i32::from(lock.l_type) != libc::F_UNLCK).then_some(lock.l_pid))
}

/// Threads of a stopping daemon may still be writing, so the next daemon must not start. Its standard error
/// accepts nothing, so that it waits a while for its last log lines.
async fn the_lock_is_held_until_the_daemon_has_ended(cx: Context) -> Result<()> {
    let (unread, stderr): (OwnedFd, OwnedFd) = nix::unistd::pipe2(OFlag::O_CLOEXEC)?;
    cx.node.terminate().await?;
    fcntl(&stderr, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
    while nix::unistd::write(&stderr, &[b'x'; 4096]).is_ok() {}
    fcntl(&stderr, FcntlArg::F_SETFL(OFlag::empty()))?;
    cx.node.launch_with_stderr(Stdio::from(stderr)).await?;
    let (pid, path) = (cx.node.pid()?, cx.node.paths.root.join("lock"));
    let watching = tokio::task::spawn_blocking(move || -> Result<(u32, bool)> {
        let file = File::open(path)?;
        // A process's descriptors are closed after its last thread has ended.
        let lives = || fs::read_dir(format!("/proc/{pid}/fd")).is_ok_and(|mut fds| fds.next().is_some());
        let (begun, mut looks) = (Instant::now(), 0);
        while lives() {
            if holder(&file)?.is_none() && lives() {
                return Ok((looks, true));
            }
            looks += 1;
            ensure!(
                begun.elapsed() < crate::wait::longer(Duration::from_secs(15)),
                "the daemon has not ended within 15 s"
            );
        }
        Ok((looks, false))
    });
    let ended = cx.node.terminate().await;
    let watched = watching.await?;
    drop(unread);
    let (looks, early) = watched?;
    ended?;
    cx.node.launch().await?;
    ensure!(!early, "the lock was released before the daemon had ended");
    ensure!(looks > 0, "the daemon ended before the first look at the lock, so this test shows nothing");
    Ok(())
}

/// kubelet removes dead containers to free space, measures right after, and evicts a pod if there is too
/// little.
async fn removal_frees_the_space_before_it_returns(cx: Context) -> Result<()> {
    let pod = cx.pod().await?;
    let line = "mkdir /many && cd /many && for n in $(seq 1000); do echo $n > $n; done";
    let id = cx
        .run(&pod, &shapes::container("many", &Fixture::image("busybox"), &["/bin/sh", "-c", line]))
        .await?
        .id;
    let trash = cx.node.paths.root.join("trash");
    let list = || -> Result<Vec<_>> {
        let entries = fs::read_dir(&trash)?.map(|entry| Ok(entry?.file_name()));
        entries.collect()
    };
    let before = list()?;
    cx.cri.remove(&id).await?;
    let after: Vec<_> = list()?.into_iter().filter(|name| !before.contains(name)).collect();
    ensure!(after.is_empty(), "{after:?} are still in the trash when RemoveContainer has returned");
    Ok(())
}
