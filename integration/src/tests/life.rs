//! Unusual events in a container's life: terminals that are closed for a moment, lost log lines, processes that are
//! stopped, traced or frozen by others, full tables.

use std::fs;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use cri_api::v1::{self as api, ContainerState, MountPropagation, NamespaceMode};
use nix::sys::signal::Signal;
use serde_json::json;
use tonic::Code;

use crate::context::{Context, Pod};
use crate::images::layer::{Packing, Writer};
use crate::images::{Image, Recipe};
use crate::logfile::Log;
use crate::proc;
use crate::runner::{Test, test};
use crate::shapes::{self, ContainerExt as _, PodExt as _};
use crate::wait::{self, secs};

pub(super) fn tests() -> Vec<Test> {
    vec![
        test!(terminal_closed_for_a_moment_is_logged_on),
        test!(terminal_may_be_closed_again_and_again),
        test!(closing_the_terminal_hangs_up_nobody),
        test!(closing_the_terminal_hangs_up_nobody_of_the_host),
        test!(closed_terminal_costs_no_time).ours(),
        test!(terminal_is_read_to_its_end),
        test!(lost_lines_leave_a_mark),
        test!(carriage_returns_are_the_programs_own),
        test!(start_of_a_stopped_init),
        test!(init_killed_before_execve_never_ran),
        test!(traced_exec_times_out_in_time),
        test!(traced_execs_take_no_place_for_ever),
        test!(traced_container_is_stopped),
        test!(container_held_at_its_exit_is_stopped).limit(90),
        test!(pod_traced_from_another_is_stopped),
        test!(own_frozen_cgroup_does_not_keep_it_alive),
        test!(deep_cgroups_are_killed),
        test!(who_left_the_freezer_is_killed),
        test!(ten_thousand_cgroups_are_removed),
        test!(thousands_of_groups),
        test!(too_many_groups_are_refused),
        test!(long_home),
        test!(tiny_memory_limits_are_told),
        test!(full_table_is_told_and_recovers).limit(240),
    ]
}

/// Its streams are redirected, so it writes to /dev/console.
const ELSEWHERE: &str = "exec </dev/null >/tmp/elsewhere 2>&1";

async fn terminal_closed_for_a_moment_is_logged_on(cx: Context) -> Result<()> {
    let pod = cx.pod().await?;
    let line = format!("echo before; {ELSEWHERE}; sleep 0.5; echo after >/dev/console; sleep 0.1");
    let s = cx.run(&pod, &cx.shell("one", &line).terminal()).await?;
    ensure!(s.exit_code == 0, "ended with {}", s.exit_code);
    let text = Log::read(&s.log_path)?.text(None);
    ensure!(text == "before\nafter\n", "{text:?}");
    Ok(())
}

async fn terminal_may_be_closed_again_and_again(cx: Context) -> Result<()> {
    let pod = cx.pod().await?;
    let line = format!("{ELSEWHERE}; for i in 1 2 3 4 5 6 7 8 9; do echo $i >/dev/console; sleep 0.05; done");
    let s = cx.run(&pod, &cx.shell("one", &line).terminal()).await?;
    let text = Log::read(&s.log_path)?.text(None);
    ensure!(text == "1\n2\n3\n4\n5\n6\n7\n8\n9\n", "{text:?}");
    Ok(())
}

async fn closing_the_terminal_hangs_up_nobody(cx: Context) -> Result<()> {
    // If init were PID 1 of its namespace, a SIGHUP would have no effect. The half second gives a SIGHUP time to
    // arrive; on a busy machine it is longer, which changes nothing if none is sent.
    let pod = cx.pod_of(cx.pod_config().shared_pid()).await?;
    let s = cx.run(&pod, &cx.shell("one", &format!("{ELSEWHERE}; sleep 0.5; exit 7")).terminal()).await?;
    ensure!(s.exit_code == 7, "ended with {} instead of 7", s.exit_code);
    Ok(())
}

async fn closing_the_terminal_hangs_up_nobody_of_the_host(cx: Context) -> Result<()> {
    let mut config = cx.pod_config();
    config.namespaces().pid = NamespaceMode::Node.into();
    let pod = cx.pod_of(config).await?;
    let s = cx.run(&pod, &cx.shell("one", &format!("{ELSEWHERE}; sleep 0.5; exit 7")).terminal()).await?;
    ensure!(s.exit_code == 7, "ended with {} instead of 7", s.exit_code);
    Ok(())
}

/// User and system time of a process, in clock ticks.
fn ticks(pid: u32) -> Result<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let field = |n: usize| fields.get(n).and_then(|f| f.parse::<u64>().ok()).context("short stat");
    Ok(field(11)? + field(12)?)
}

async fn closed_terminal_costs_no_time(cx: Context) -> Result<()> {
    let pod = cx.pod().await?;
    let line = format!("{ELSEWHERE}; echo closed > /tmp/state; exec sleep 1000");
    let id = cx.start(&pod, &cx.shell("one", &line).terminal()).await?;
    cx.cri.sh(&id, "until [ -e /tmp/state ]; do sleep 0.01; done").await?;
    let shim = cx.node.shim(&pod.id)?.pid;
    let before = ticks(shim)?;
    // CPU time is compared with elapsed time; a loop without a pause would use all of it. A longer second on a busy
    // machine costs an idle shim nothing.
    tokio::time::sleep(secs(1)).await;
    let took = ticks(shim)? - before;
    ensure!(took < 20, "the shim ran for {took} hundredths of a second of one second");
    Ok(())
}

async fn terminal_is_read_to_its_end(cx: Context) -> Result<()> {
    let pod = cx.pod().await?;
    let s = cx.run(&pod, &cx.shell("one", "seq 1 3000").terminal()).await?;
    let text = Log::read(&s.log_path)?.text(None);
    let wanted: String = (1..=3000).map(|n| format!("{n}\n")).collect();
    ensure!(text == wanted, "{} bytes of {}", text.len(), wanted.len());
    Ok(())
}

/// A small file system mounted at a pod's log folder; unmounted on drop.
struct SmallDisk(std::path::PathBuf);

impl SmallDisk {
    fn at(path: &str) -> Result<Self> {
        fs::create_dir_all(path)?;
        nix::mount::mount(
            Some("tmpfs"),
            path,
            Some("tmpfs"),
            nix::mount::MsFlags::empty(),
            Some("size=256k,mode=755"),
        )?;
        Ok(Self(path.into()))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        nix::mount::umount2(&self.0, nix::mount::MntFlags::MNT_DETACH).unwrap_or_default();
    }
}

async fn lost_lines_leave_a_mark(cx: Context) -> Result<()> {
    let config = cx.pod_config();
    let disk = SmallDisk::at(&config.log_directory)?;
    let filler = disk.0.join("filler");
    fs::write(&filler, vec![0; 128 << 10])?;
    let pod = cx.pod_of(config).await?;
    let line = "i=0; while [ $i -lt 4000 ]; do echo a line with the number $i; i=$((i+1)); done; touch /tmp/full; \
                until [ -e /tmp/go ]; do sleep 0.02; done; echo last";
    let id = cx.start(&pod, &cx.shell("one", line)).await?;
    cx.cri.sh(&id, "until [ -e /tmp/full ]; do sleep 0.02; done").await?;
    let path = cx.cri.container(&id).await?.log_path;
    // The shim read everything that the container wrote: a pipe holds less than the missing amount.
    fs::remove_file(&filler)?;
    cx.cri.sh(&id, "touch /tmp/go").await?;
    cx.cri.wait_exit(&id, secs(20)).await?;
    let log = Log::read(&path)?;
    let marks: Vec<u64> = log
        .lines
        .iter()
        .filter(|line| line.stream == "stderr")
        .filter_map(|line| {
            let text = String::from_utf8_lossy(&line.content).into_owned();
            text.strip_prefix("[copepod: ")?.split(' ').next()?.parse().ok()
        })
        .collect();
    ensure!(!marks.is_empty(), "no mark among {} lines", log.lines.len());
    let there = log.text(Some("stdout")).lines().count() as u64;
    ensure!(
        there + marks.iter().sum::<u64>() == 4001,
        "{there} lines are there, marks say {marks:?} of 4001"
    );
    ensure!(log.text(Some("stdout")).ends_with("last\n"), "what came after is not there");
    cx.cri.drop_pod(&pod.id).await?;
    Ok(())
}

async fn carriage_returns_are_the_programs_own(cx: Context) -> Result<()> {
    let pod = cx.pod().await?;
    let s = cx.run(&pod, &cx.shell("one", "printf 'dos\\r\\n10%%\\r20%%\\n'")).await?;
    let bytes = Log::read(&s.log_path)?.bytes(None);
    ensure!(bytes == b"dos\r\n10%\r20%\n", "{bytes:?}");
    Ok(())
}

/// State letter of a process.
fn state(pid: u32) -> Option<char> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit(')').next()?.trim_start().chars().next()
}

/// A created container whose waiting init is stopped, as a process in the same PID namespace can do.
async fn stopped(cx: &Context, pod: &Pod) -> Result<(String, u32)> {
    let id = cx.create(pod, &cx.sleeper("waits")).await?;
    let pid = cx.pid(&id).await?;
    proc::signal(pid, Signal::SIGSTOP)?;
    wait::until_true("init to be stopped", secs(5), || state(pid) == Some('T')).await?;
    Ok((id, pid))
}

async fn start_of_a_stopped_init(cx: Context) -> Result<()> {
    let pod = cx.pod_of(cx.pod_config().shared_pid()).await?;
    let (id, _) = stopped(&cx, &pod).await?;
    let start = Instant::now();
    cx.cri.start(&id).await.context("start of a stopped init")?;
    ensure!(start.elapsed() < secs(10), "the start took {:?}", start.elapsed());
    let shown = cx.cri.container(&id).await?.state();
    ensure!(shown == ContainerState::ContainerRunning, "it is shown as {shown:?}");
    Ok(())
}

async fn init_killed_before_execve_never_ran(cx: Context) -> Result<()> {
    let pod = cx.pod_of(cx.pod_config().shared_pid()).await?;
    let (id, pid) = stopped(&cx, &pod).await?;
    let asking = cx.cri.clone();
    let asked = id.clone();
    let start = tokio::spawn(async move { asking.start(&asked).await });
    // Once its socket is connected, the start request was sent, but a stopped init does not read it. Then it is
    // killed.
    wait::until_true("the start request to be sent", secs(10), || proc::told_to_start() == 1).await?;
    proc::signal(pid, Signal::SIGKILL)?;
    let answer = start.await?;
    ensure!(answer.is_err(), "a container that never ran was started");
    let s = cx.cri.wait_exit(&id, secs(10)).await?;
    ensure!(s.exit_code != 0 && s.started_at == 0, "{} {}", s.exit_code, s.started_at);
    Ok(())
}

/// busybox, and a program that traces every process named `busybox-victim` for ever.
fn tracer_image(cx: &Context) -> Result<Image> {
    let mut w = Writer::new();
    w.program("/usr/bin/perl")?;
    w.symlink("bin/busybox-victim", "busybox")?;
    w.dir("ptrace", 0o755)?;
    let call = if cfg!(target_arch = "aarch64") { 117 } else { 101 };
    let script = format!(
        "my ($options, $mark) = @ARGV; my %held; \
         while (1) {{ opendir(my $d, '/proc'); \
         for my $p (grep {{ /^[0-9]+$/ }} readdir $d) {{ next if $held{{$p}}; \
         open(my $f, '<', \"/proc/$p/comm\") or next; my $name = <$f>; next unless $name eq \"busybox-victim\\n\"; \
         if (syscall({call}, 0x4206, $p + 0, 0, $options + 0) == 0) {{ $held{{$p}} = 1; open(my $m, '>', \"/ptrace/$p\"); }} }} \
         select(undef, undef, undef, 0.01); }}\n"
    );
    w.file("usr/bin/trace.pl", 0o644, script.as_bytes())?;
    Ok(Recipe::new(
        &[cx.fixture.layers.busybox.clone(), w.finish(Packing::Gzip)?],
        json!({"Cmd": ["/bin/sh"], "Env": ["PATH=/usr/sbin:/usr/bin:/sbin:/bin"]}),
    )
    .build())
}

async fn with_tracer_image(cx: &Context) -> Result<String> {
    let image = tracer_image(cx)?;
    cx.fixture.registry.push("tracer", "1", &image).await?;
    Ok("registry.test/tracer:1".to_owned())
}

/// PTRACE_O_TRACEEXIT.
const TRACE_EXIT: u32 = 0x40;

fn tracer(name: &str, image: &str, options: u32) -> api::ContainerConfig {
    shapes::container(name, image, &["/usr/bin/perl", "/usr/bin/trace.pl", &options.to_string()])
        .with(|c| c.security().capabilities = Some(trace_capability()))
}

fn trace_capability() -> api::Capability {
    api::Capability { add_capabilities: vec!["SYS_PTRACE".to_owned()], ..Default::default() }
}

/// Waits until a tracer container has traced a process.
async fn holds(cx: &Context, tracer: &str, count: usize) -> Result<()> {
    let line = format!("until [ $(ls /ptrace | wc -l) -ge {count} ]; do sleep 0.01; done");
    cx.cri.sh(tracer, &line).await.map(drop)
}

async fn traced_exec_times_out_in_time(cx: Context) -> Result<()> {
    let image = with_tracer_image(&cx).await?;
    let pod = cx.pod().await?;
    let id = cx.start(&pod, &tracer("one", &image, 0)).await?;
    let start = Instant::now();
    let answers = futures_of(&cx, &id, 4).await;
    ensure!(answers.iter().all(|code| *code == Code::DeadlineExceeded), "{answers:?}");
    ensure!(start.elapsed() < secs(6), "execs of 1 s took {:?}", start.elapsed());
    ensure!(cx.cri.sh(&id, "echo lives").await? == "lives");
    Ok(())
}

/// Runs execs that are traced, all at once and each with a time limit of one second; returns their results.
async fn futures_of(cx: &Context, id: &str, count: usize) -> Vec<Code> {
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
    let image = with_tracer_image(&cx).await?;
    let pod = cx.pod().await?;
    let id = cx.start(&pod, &tracer("one", &image, TRACE_EXIT)).await?;
    let start = Instant::now();
    let answers = futures_of(&cx, &id, 40).await;
    ensure!(answers.iter().all(|code| *code == Code::DeadlineExceeded), "{answers:?}");
    ensure!(start.elapsed() < secs(8), "execs of 1 s took {:?}", start.elapsed());
    // The container with all of them is stopped like any other.
    let start = Instant::now();
    cx.cri.stop(&id, 0).await?;
    ensure!(start.elapsed() < secs(5), "its stop took {:?}", start.elapsed());
    Ok(())
}

/// A container whose init is traced by another container in a shared PID namespace, and that was still stopped in
/// time: (tracer, container).
async fn stopped_though_traced(cx: &Context, options: u32) -> Result<(String, String)> {
    let image = with_tracer_image(cx).await?;
    let pod = cx.pod_of(cx.pod_config().shared_pid()).await?;
    let tracing = cx.start(&pod, &tracer("tracer", &image, options)).await?;
    let victim = shapes::container("victim", &image, &["/bin/busybox-victim", "sleep", "5000"]);
    let victim = cx.start(&pod, &victim).await?;
    holds(cx, &tracing, 1).await?;
    let start = Instant::now();
    cx.cri.stop(&victim, 0).await?;
    ensure!(start.elapsed() < secs(5), "its stop took {:?}", start.elapsed());
    let s = cx.cri.container(&victim).await?;
    ensure!(
        s.state() == ContainerState::ContainerExited && s.exit_code == 137,
        "{:?} {}",
        s.state,
        s.exit_code
    );
    Ok((tracing, victim))
}

async fn traced_container_is_stopped(cx: Context) -> Result<()> {
    let (tracing, victim) = stopped_though_traced(&cx, 0).await.context("stop of a traced container")?;
    cx.cri.remove(&victim).await.context("removal of a traced container")?;
    let shown = cx.cri.container(&tracing).await?.state();
    ensure!(shown == ContainerState::ContainerRunning, "the tracer is {shown:?}");
    Ok(())
}

async fn container_held_at_its_exit_is_stopped(cx: Context) -> Result<()> {
    let (tracing, victim) =
        stopped_though_traced(&cx, TRACE_EXIT).await.context("stop of a held container")?;
    // Its cgroup can be removed once the tracer has detached.
    cx.cri.stop(&tracing, 0).await?;
    cx.cri.remove(&victim).await.context("removal after the tracer's end")
}

async fn pod_traced_from_another_is_stopped(cx: Context) -> Result<()> {
    let image = with_tracer_image(&cx).await?;
    let mut config = cx.pod_config();
    config.namespaces().pid = NamespaceMode::Node.into();
    let attacker = cx.pod_of(config).await?;
    let tracing = cx.start(&attacker, &tracer("tracer", &image, 0)).await?;
    let pod = cx.pod().await?;
    let victim = shapes::container("victim", &image, &["/bin/busybox-victim", "sleep", "5000"]);
    cx.start(&pod, &victim).await?;
    holds(&cx, &tracing, 1).await?;
    let start = Instant::now();
    cx.cri.stop_pod(&pod.id).await.context("stop of a pod that another one traces")?;
    ensure!(start.elapsed() < secs(5), "its stop took {:?}", start.elapsed());
    cx.cri.remove_pod(&pod.id).await?;
    Ok(())
}

/// A privileged container on a pod that allows it, with the line as its shell's.
async fn privileged(cx: &Context, line: &str) -> Result<String> {
    let pod = cx.pod_of(cx.pod_config().privileged()).await?;
    let id = cx.start(&pod, &cx.shell("one", line).privileged()).await?;
    cx.cri.sh(&id, "until [ -e /tmp/ready ]; do sleep 0.01; done").await?;
    Ok(id)
}

async fn own_frozen_cgroup_does_not_keep_it_alive(cx: Context) -> Result<()> {
    let mark = format!("7{:05}", shapes::unique());
    let line = format!(
        "cd /sys/fs/cgroup/freezer; mkdir -p a/b; sleep {mark} & echo $! > a/b/cgroup.procs; \
         echo FROZEN > a/b/freezer.state; touch /tmp/ready; exec sleep 1000"
    );
    let id = privileged(&cx, &line).await?;
    let start = Instant::now();
    cx.cri.stop(&id, 0).await?;
    ensure!(start.elapsed() < secs(5), "its stop took {:?}", start.elapsed());
    ensure!(proc::with_args(&format!("sleep {mark}")).is_empty(), "a process that it froze itself lives");
    cx.cri.remove(&id).await?;
    Ok(())
}

async fn deep_cgroups_are_killed(cx: Context) -> Result<()> {
    let mark = format!("8{:05}", shapes::unique());
    let line = format!(
        "cd /sys/fs/cgroup/freezer; i=0; while [ $i -lt 50 ]; do mkdir d && cd d; i=$((i+1)); done; \
         setsid sleep {mark} & echo $! > cgroup.procs; touch /tmp/ready; exec sleep 1000"
    );
    // In the PID namespace of pause, other processes do not end with init.
    let pod = cx.pod_of(cx.pod_config().privileged().shared_pid()).await?;
    let id = cx.start(&pod, &cx.shell("one", &line).privileged()).await?;
    cx.cri.sh(&id, "until [ -e /tmp/ready ]; do sleep 0.01; done").await?;
    ensure!(!proc::with_args(&format!("sleep {mark}")).is_empty(), "the test's process does not run");
    cx.cri.stop(&id, 0).await?;
    ensure!(proc::with_args(&format!("sleep {mark}")).is_empty(), "a process 50 cgroups deep lives");
    cx.cri.remove(&id).await?;
    Ok(())
}

async fn ten_thousand_cgroups_are_removed(cx: Context) -> Result<()> {
    let mark = format!("6{:05}", shapes::unique());
    let line = format!(
        "cd /sys/fs/cgroup/freezer; mkdir $(seq 1 10200); setsid sleep {mark} & \
         echo $! > /sys/fs/cgroup/freezer/10200/cgroup.procs; touch /tmp/ready; exec sleep 1000"
    );
    let pod = cx.pod_of(cx.pod_config().privileged().shared_pid()).await?;
    let id = cx.start(&pod, &cx.shell("one", &line).privileged()).await?;
    cx.cri.sh(&id, "until [ -e /tmp/ready ]; do sleep 0.01; done").await?;
    cx.cri.stop(&id, 0).await.context("stop")?;
    ensure!(proc::with_args(&format!("sleep {mark}")).is_empty(), "a process in one of them lives");
    cx.cri.remove(&id).await.context("removal")?;
    ensure!(crate::cgroup::find("freezer", &id).is_none(), "its cgroup is still there");
    Ok(())
}

async fn who_left_the_freezer_is_killed(cx: Context) -> Result<()> {
    let mark = format!("9{:05}", shapes::unique());
    let line = format!(
        "setsid sleep {mark} & echo $! > /host/freezer/cgroup.procs && touch /tmp/ready; exec sleep 1000"
    );
    let pod = cx.pod_of(cx.pod_config().privileged().shared_pid()).await?;
    let config = cx.shell("one", &line).privileged().mount(
        Path::new("/sys/fs/cgroup"),
        "/host",
        false,
        MountPropagation::PropagationPrivate,
    );
    let id = cx.start(&pod, &config).await?;
    cx.cri.sh(&id, "until [ -e /tmp/ready ]; do sleep 0.01; done").await?;
    let all = proc::with_args(&format!("sleep {mark}"));
    ensure!(!all.is_empty(), "the test's process does not run");
    cx.cri.stop(&id, 0).await?;
    ensure!(proc::with_args(&format!("sleep {mark}")).is_empty(), "who left the freezer hierarchy lives");
    Ok(())
}

/// busybox with a user `many` that has this many groups and this home.
async fn user_image(cx: &Context, name: &str, groups: usize, home: usize) -> Result<String> {
    let mut w = Writer::new();
    let home = format!("/{}", "h".repeat(home));
    w.file(
        "etc/passwd",
        0o644,
        format!("root:x:0:0::/root:/bin/sh\nmany:x:1000:1000::{home}:/bin/sh\n").as_bytes(),
    )?;
    let list: String = (0..groups).map(|n| format!("g{n}:x:{}:many\n", 20_000 + n)).collect();
    w.file("etc/group", 0o644, format!("root:x:0:\nmany:x:1000:\n{list}").as_bytes())?;
    let layers = [cx.fixture.layers.busybox.clone(), w.finish(Packing::Gzip)?];
    let image = Recipe::new(&layers, json!({"Cmd": ["/bin/sh"], "User": "many"})).build();
    cx.fixture.registry.push(name, "1", &image).await?;
    Ok(format!("registry.test/{name}:1"))
}

async fn thousands_of_groups(cx: Context) -> Result<()> {
    let image = user_image(&cx, "groups-6000", 6000, 4).await?;
    let pod = cx.pod().await?;
    let config = shapes::container("one", &image, &["/bin/sleep", "1000"]);
    let id = cx.start(&pod, &config).await.context("a user with 6000 groups")?;
    let count = cx.cri.sh(&id, "id -G | wc -w").await?;
    ensure!(count == "6001", "an exec has {count} groups");
    let status = fs::read_to_string(format!("/proc/{}/status", cx.pid(&id).await?))?;
    let groups = status.lines().find_map(|l| l.strip_prefix("Groups:")).unwrap_or_default();
    ensure!(
        groups.split_whitespace().count() >= 6000,
        "init has {} groups",
        groups.split_whitespace().count()
    );
    Ok(())
}

async fn too_many_groups_are_refused(cx: Context) -> Result<()> {
    let image = user_image(&cx, "groups-30000", 30_000, 4).await?;
    let pod = cx.pod().await?;
    let config = shapes::container("one", &image, &["/bin/sleep", "1000"]);
    let e = cx.create(&pod, &config).await.err().context("a user with 30000 groups")?;
    let status = e.downcast_ref::<tonic::Status>().context("no status")?;
    ensure!(
        status.code() == Code::InvalidArgument && status.message().contains("groups and a home of"),
        "{status}"
    );
    Ok(())
}

async fn long_home(cx: Context) -> Result<()> {
    let image = user_image(&cx, "home-33000", 1, 33_000).await?;
    let pod = cx.pod().await?;
    let config = shapes::container("one", &image, &["/bin/sh", "-c", "echo -n $HOME | wc -c"]);
    let text = cx.output(&pod, &config).await.context("a home of 33000 bytes")?;
    ensure!(text.trim() == "33001", "HOME has {text} bytes");
    Ok(())
}

async fn tiny_memory_limits_are_told(cx: Context) -> Result<()> {
    let pod = cx.pod().await?;
    let mut seen = Vec::new();
    for kib in [64_i64, 256, 512, 1024, 1536, 2048, 3072, 4096, 8192] {
        let config = cx.sleeper(&format!("m{kib}")).with(|c| c.resources().memory_limit_in_bytes = kib << 10);
        let error = match cx.create(&pod, &config).await {
            Ok(id) => match cx.cri.start(&id).await {
                Ok(()) => {
                    // It is running, or was OOM-killed later, which its status says.
                    seen.push((kib, "started"));
                    continue;
                }
                Err(status) => {
                    seen.push((kib, "start"));
                    status
                }
            },
            Err(error) => {
                seen.push((kib, "create"));
                let status = error.downcast::<tonic::Status>().context("no status")?;
                ensure!(status.code() == Code::InvalidArgument, "{kib} KiB: {status}");
                status
            }
        };
        ensure!(error.message().contains("memory"), "{kib} KiB: {error}");
    }
    println!("memory limits in KiB: {seen:?}");
    ensure!(seen.contains(&(8192, "started")), "8 MiB are not enough: {seen:?}");
    Ok(())
}

async fn full_table_is_told_and_recovers(cx: Context) -> Result<()> {
    let pod = cx.pod().await?;
    cx.need(&crate::fixture::Fixture::image("busybox")).await?;
    let mut made = Vec::new();
    let refused = loop {
        ensure!(made.len() < 300, "300 containers in one pod");
        match cx.create(&pod, &cx.sleeper(&format!("c{}", made.len()))).await {
            Ok(id) => made.push(id),
            Err(e) => break e,
        }
    };
    let status = refused.downcast_ref::<tonic::Status>().context("no status")?;
    ensure!(status.code() == Code::ResourceExhausted, "after {} containers: {status}", made.len());
    ensure!(status.message().contains("remove some first"), "{status}");
    let one = made.pop().context("none was made")?;
    cx.cri.remove(&one).await?;
    let again = cx.start(&pod, &cx.sleeper("again")).await.context("after one was removed")?;
    ensure!(cx.cri.sh(&again, "echo lives").await? == "lives");
    Ok(())
}
