//! No process keeps privileges while it waits, enters or only holds namespaces: init before its start, exec, pause,
//! shim.

use std::fs;
use std::os::unix::fs::MetadataExt as _;

use anyhow::{Context as _, Result};
use cri_api::v1 as api;
use cri_api::v1::security_profile::ProfileType;
use serde_json::json;

use super::security::id;
use crate::cgroup::Limit;
use crate::context::Context;
use crate::expect::ensure;
use crate::fixture::Fixture;
use crate::images::Recipe;
use crate::images::layer::{Packing, Writer};
use crate::runner::{Test, test};
use crate::shapes::{self, ContainerExt as _, PodExt as _, seccomp};
use crate::{cgroup, proc};

pub(super) fn tests() -> Vec<Test> {
    vec![
        test!(waiting_init_is_the_containers_user).ours(),
        test!(waiting_init_has_the_default_capabilities).ours(),
        test!(waiting_init_without_filter_has_no_more).ours(),
        test!(waiting_init_shows_nothing_of_the_node).ours(),
        test!(a_filter_that_forbids_waiting_is_loaded_at_the_end).ours(),
        test!(exec_stays_in_the_namespaces_of_create),
        test!(exec_of_a_user_stays_out_of_inits_user_namespace),
        test!(pause_has_no_open_descriptor).ours(),
        test!(pause_cannot_be_traced_by_its_user).ours(),
        test!(pause_has_a_filter_of_its_own).ours(),
        test!(pause_can_neither_fork_nor_grow).ours(),
        test!(shim_closes_the_daemons_stderr).ours(),
        test!(null_device_is_never_the_hosts),
        test!(keyring_is_joined_by_no_other_pod),
        test!(keyring_has_no_public_name).ours(),
        test!(a_full_key_quota_stops_no_start),
        test!(crypto_sockets_are_refused_by_default),
        test!(user_4294967295_is_refused),
    ]
}

/// The default capabilities, as /proc/PID/status shows them.
const DEFAULT: &str = "00000000a80425fb";

/// An image with Perl, whose `syscall` makes any call, and busybox.
pub(super) async fn perl(cx: &Context) -> Result<String> {
    let mut layer = Writer::new();
    layer.program("/usr/bin/perl")?;
    let layers = [cx.fixture.layers.busybox.clone(), layer.finish(Packing::Gzip)?];
    let image = Recipe::new(&layers, json!({"Cmd": ["/bin/sh"]})).build();
    cx.fixture.registry.push("perl", "1", &image).await?;
    Ok("registry.test/perl:1".to_owned())
}

/// First word of a line of /proc/PID/status.
fn of(status: &std::collections::BTreeMap<String, String>, key: &str) -> Result<String> {
    let value = status.get(key).with_context(|| format!("no {key} in status"))?;
    Ok(value.split_whitespace().next().unwrap_or_default().to_owned())
}

async fn waiting_init_is_the_containers_user(cx: Context) -> Result<()> {
    let pod = cx.pod().await?;
    let config = cx.sleeper("one").with(|c| {
        let security = c.security();
        security.run_as_user = id(1000);
        security.run_as_group = id(1001);
        security.no_new_privs = true;
        security.capabilities =
            Some(api::Capability { drop_capabilities: vec!["ALL".to_owned()], ..Default::default() });
        security.seccomp = seccomp(ProfileType::RuntimeDefault, "");
    });
    let c = cx.create(&pod, &config).await?;
    let waiting = proc::status(cx.pid(&c).await?)?;
    for (key, want) in [
        ("Uid", "1000"),
        ("Gid", "1001"),
        ("CapPrm", "0000000000000000"),
        ("CapEff", "0000000000000000"),
        ("CapBnd", "0000000000000000"),
        ("NoNewPrivs", "1"),
        ("Seccomp", "2"),
    ] {
        let have = of(&waiting, key)?;
        ensure!(have == want, "while it waits, {key} is {have}, not {want}");
    }
    cx.cri.start(&c).await?;
    cx.prints(&c, "id -u; id -g", "1000\n1001").await?;
    Ok(())
}

async fn waiting_init_has_the_default_capabilities(cx: Context) -> Result<()> {
    let pod = cx.pod().await?;
    let config = cx.sleeper("one").with(|c| c.security().seccomp = seccomp(ProfileType::RuntimeDefault, ""));
    let c = cx.create(&pod, &config).await?;
    let waiting = proc::status(cx.pid(&c).await?)?;
    for key in ["CapPrm", "CapEff", "CapBnd"] {
        let have = of(&waiting, key)?;
        ensure!(have == DEFAULT, "while it waits, {key} is {have}, not the default set");
    }
    ensure!(
        of(&waiting, "Seccomp")? == "2" && of(&waiting, "NoNewPrivs")? == "0",
        "while it waits, it has no filter, or it has no_new_privs: {waiting:?}"
    );
    cx.cri.start(&c).await?;
    let line = cx.cri.sh(&c, "grep ^CapPrm: /proc/1/status").await?;
    ensure!(line.ends_with(DEFAULT), "after its start it has {line}");
    Ok(())
}

async fn waiting_init_without_filter_has_no_more(cx: Context) -> Result<()> {
    let pod = cx.pod().await?;
    let config = cx.sleeper("one").with(|c| c.security().run_as_user = id(1000));
    let c = cx.create(&pod, &config).await?;
    let waiting = proc::status(cx.pid(&c).await?)?;
    let have = (of(&waiting, "Uid")?, of(&waiting, "CapPrm")?, of(&waiting, "CapEff")?);
    // It may keep the container's permitted set until execve, which clears it for a user who is not root.
    ensure!(
        have.0 == "1000" && (have.1 == DEFAULT || have.1 == "0000000000000000"),
        "while it waits, its uid, permitted and effective capabilities are {have:?}"
    );
    let allowed = u64::from_str_radix(DEFAULT, 16)?;
    for set in [&have.1, &have.2] {
        let beyond = u64::from_str_radix(set, 16)? & !allowed;
        ensure!(beyond == 0, "while it waits, it has the capabilities {beyond:#x} beyond the container's");
    }
    cx.cri.start(&c).await?;
    Ok(())
}

async fn waiting_init_shows_nothing_of_the_node(cx: Context) -> Result<()> {
    let pod = cx.pod_of(cx.pod_config().shared_pid()).await?;
    let seen = cx.start(&pod, &cx.sleeper("sees")).await?;
    cx.create(&pod, &cx.sleeper("waits")).await?;
    let shown = cx.cri.sh(&seen, "cat /proc/[0-9]*/comm /proc/[0-9]*/cmdline | tr '\\0' '\\n'").await?;
    ensure!(!shown.contains(&pod.id), "the pod's id is shown: {shown}");
    ensure!(!shown.contains("youki") && !shown.contains("shim"), "names of the runtime are shown: {shown}");
    ensure!(shown.contains("copepod-init"), "the waiting init was not there to be seen: {shown}");
    Ok(())
}

/// init waits in accept4(2), which the profile forbids.
async fn a_filter_that_forbids_waiting_is_loaded_at_the_end(cx: Context) -> Result<()> {
    let file = cx.node.paths.dir.join("no-accept.json");
    let rule = json!({"names": ["accept", "accept4"], "action": "SCMP_ACT_ERRNO", "errnoRet": 5});
    fs::write(&file, json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule]}).to_string())?;
    let pod = cx.pod().await?;
    let profile = seccomp(ProfileType::Localhost, &file.display().to_string());
    let c = cx.create(&pod, &cx.sleeper("one").with(|c| c.security().seccomp = profile)).await?;
    let waiting = proc::status(cx.pid(&c).await?)?;
    // Without no_new_privs, loading the filter needs CAP_SYS_ADMIN; no other capability is kept.
    let have = of(&waiting, "CapPrm")?;
    ensure!(
        have == "00000000a82425fb",
        "while it waits, CapPrm is {have}, not the default set with CAP_SYS_ADMIN"
    );
    cx.cri.start(&c).await?;
    for whose in ["1", "self"] {
        let line = cx.cri.sh(&c, &format!("grep -E '^(CapPrm|Seccomp):' /proc/{whose}/status")).await?;
        ensure!(
            line.contains(DEFAULT) && line.ends_with('2'),
            "after the start {whose} has not the default set and a filter: {line}"
        );
    }
    Ok(())
}

async fn exec_stays_in_the_namespaces_of_create(cx: Context) -> Result<()> {
    let pod = cx.pod().await?;
    let line = "/usr/bin/unshare --mount --uts sh -c 'mount -t tmpfs forged /mnt && touch /mnt/forged && hostname forged && touch /tmp/done && exec sleep 100000'";
    let config = shapes::container(
        "one",
        &Fixture::image("tools"),
        &["/bin/sh", "-c", &format!("mkdir -p /mnt; exec {line}")],
    )
    .without_apparmor()
    .with(|c| {
        c.security().capabilities =
            Some(api::Capability { add_capabilities: vec!["SYS_ADMIN".to_owned()], ..Default::default() });
    });
    let c = cx.start(&pod, &config).await?;
    crate::wait::until("init to have namespaces of its own", crate::wait::secs(10), || async {
        cx.cri.sh(&c, "test -e /tmp/done").await.map(Some)
    })
    .await?;
    let seen = cx.cri.sh(&c, "ls /mnt; hostname").await?;
    ensure!(!seen.contains("forged"), "an exec is in the namespaces that init created: {seen}");
    Ok(())
}

async fn exec_of_a_user_stays_out_of_inits_user_namespace(cx: Context) -> Result<()> {
    let pod = cx.pod().await?;
    let line = "cp /etc/passwd /tmp/passwd; echo forged:x:77:77::/: >> /tmp/passwd; exec /usr/bin/unshare --user --map-root-user --mount sh -c 'mount --bind /tmp/passwd /etc/passwd && touch /tmp/done; exec sleep 100000'";
    let config = shapes::container("one", &Fixture::image("tools"), &["/bin/sh", "-c", line])
        .with(|c| c.security().run_as_user = id(1000));
    let c = cx.start(&pod, &config).await?;
    let made = crate::wait::until("init to forge its passwd file", crate::wait::secs(5), || async {
        cx.cri.sh(&c, "test -e /tmp/done").await.map(Some)
    })
    .await;
    if made.is_err() {
        let status = cx.cri.container(&c).await?;
        println!("      (this host lets no user make a user namespace: {})", status.reason);
        ensure!(
            status.state() != api::ContainerState::ContainerRunning,
            "unshare works, but init has not forged the file within 5 s: {status:?}"
        );
        return Ok(());
    }
    let seen = cx.cri.sh(&c, "cat /etc/passwd; cat /proc/self/uid_map").await?;
    ensure!(!seen.contains("forged"), "an exec reads the passwd file that init forged: {seen}");
    Ok(())
}

async fn pause_has_no_open_descriptor(cx: Context) -> Result<()> {
    let pod = cx.pod().await?;
    let open = proc::fds(cx.node.pause(&pod.id)?.pid)?;
    ensure!(open == 0, "pause has {open} descriptors open");
    Ok(())
}

async fn pause_cannot_be_traced_by_its_user(cx: Context) -> Result<()> {
    let mut config = cx.pod_config().shared_pid();
    config.security().run_as_user = id(1000);
    let pod = cx.pod_of(config).await?;
    let pause = cx.node.pause(&pod.id)?.pid;
    let owner = fs::metadata(format!("/proc/{pause}/mem"))?.uid();
    ensure!(owner == 0, "its memory belongs to {owner}: it can be traced");
    let image = perl(&cx).await?;
    let tracer = shapes::container("one", &image, &["/bin/sleep", "100000"])
        .with(|c| c.security().run_as_user = id(1000));
    let c = cx.start(&pod, &tracer).await?;
    // PTRACE_SEIZE
    let seize = "exit(syscall(101, 0x4206, 1, 0, 0) == 0 ? 1 : 0)";
    let out = cx.cri.exec(&c, &["/usr/bin/perl", "-e", seize]).await?;
    ensure!(out.code == 0, "a container of pause's user traces pause: {out:?}");
    let own = "my $p = fork; if (!$p) { sleep 100 } exit(syscall(101, 0x4206, $p, 0, 0) == 0 ? 7 : 0)";
    let out = cx.cri.exec(&c, &["/usr/bin/perl", "-e", own]).await?;
    ensure!(
        out.code == 7,
        "the same call does not work on a child of its own, so it proves nothing: {out:?}"
    );
    Ok(())
}

async fn pause_has_a_filter_of_its_own(cx: Context) -> Result<()> {
    let pod = cx.pod().await?;
    let status = proc::status(cx.node.pause(&pod.id)?.pid)?;
    ensure!(of(&status, "Seccomp")? == "2", "pause of a host-network pod has no filter: {status:?}");
    let mut config = cx.pod_config().own_network();
    config.security().seccomp = seccomp(ProfileType::RuntimeDefault, "");
    let pod = cx.pod_of(config).await?;
    let status = proc::status(cx.node.pause(&pod.id)?.pid)?;
    ensure!(
        of(&status, "Seccomp_filters")? == "2",
        "pause has not its own filter and that of RuntimeDefault: {status:?}"
    );
    Ok(())
}

async fn pause_can_neither_fork_nor_grow(cx: Context) -> Result<()> {
    let pod = cx.pod().await?;
    let leaf = cgroup::of_process("memory", cx.node.pause(&pod.id)?.pid)?;
    let pids = cgroup::limit_at(Limit::Pids, &leaf)?;
    ensure!(pids == Some(1), "pause's leaf takes {pids:?} processes");
    let memory = cgroup::limit_at(Limit::Memory, &leaf)?;
    ensure!(memory.is_some_and(|bytes| bytes <= 16 << 20), "pause's leaf takes {memory:?} bytes");
    Ok(())
}

async fn shim_closes_the_daemons_stderr(cx: Context) -> Result<()> {
    let pod = cx.pod().await?;
    let shim = cx.node.shim(&pod.id)?.pid;
    for number in 0..3 {
        let what = fs::read_link(format!("/proc/{shim}/fd/{number}"))?;
        ensure!(what.as_os_str() == "/dev/null", "descriptor {number} of the shim is {}", what.display());
    }
    Ok(())
}

async fn null_device_is_never_the_hosts(cx: Context) -> Result<()> {
    let pod = cx.pod().await?;
    let c = cx.start(&pod, &cx.sleeper("one")).await?;
    let host = fs::metadata("/dev/null")?;
    cx.prints(&c, "rm /dev/null; echo gone", "gone").await?;
    let seen = cx.cri.sh(&c, "stat -L -c '%d %i %t %T %a' /proc/self/fd/0").await?;
    let ours = format!("{} {} ", host.dev(), host.ino());
    ensure!(!seen.starts_with(&ours), "stdin of an exec is the host's node: {seen}");
    ensure!(seen.ends_with(" 1 3 666"), "stdin of an exec is no null device: {seen}");
    cx.cri.sh(&c, "cat; mkdir /dev/null").await?;
    let seen = cx.cri.sh(&c, "stat -L -c '%d %i %t %T %a' /proc/self/fd/0").await?;
    ensure!(
        !seen.starts_with(&ours) && seen.ends_with(" 1 3 666"),
        "with a folder at /dev/null, stdin of an exec is {seen}"
    );
    Ok(())
}

/// keyctl(2) and its kin by number (x86-64): 248 add_key, 250 keyctl; -3 is the session keyring.
async fn keyring_is_joined_by_no_other_pod(cx: Context) -> Result<()> {
    let image = perl(&cx).await?;
    let (one, other) = (cx.pod().await?, cx.pod().await?);
    let sleeper = shapes::container("one", &image, &["/bin/sleep", "100000"]);
    let c = cx.start(&one, &sleeper).await?;
    let add = "my ($t, $n, $v) = ('user', 'secret', 'text'); syscall(248, $t, $n, $v, 4, -3) > 0 or die; \
               open K, '/proc/keys'; print <K>";
    let out = cx.cri.exec(&c, &["/usr/bin/perl", "-e", add]).await?;
    ensure!(out.code == 0, "adding a key gave {out:?}");
    let line = out.stdout.lines().find(|line| line.contains(" _ses.")).context("no session keyring")?;
    let name = line.split_whitespace().find(|word| word.starts_with("_ses.")).context("its name")?;
    let name = name.trim_end_matches(':');
    // The next exec of the same container sees it.
    let find = "my ($t, $n) = ('user', 'secret'); exit(syscall(250, 10, -3, $t, $n, 0) > 0 ? 0 : 1)";
    ensure!(cx.cri.exec(&c, &["/usr/bin/perl", "-e", find]).await?.code == 0, "an exec has another keyring");
    let thief = cx.start(&other, &sleeper).await?;
    for name in [name.to_owned(), format!("_ses.{c}")] {
        let join = format!("my $ring = '{name}'; syscall(250, 1, $ring) > 0 or exit 3; {find}");
        let out = cx.cri.exec(&thief, &["/usr/bin/perl", "-e", &join]).await?;
        ensure!(out.code != 0, "root of another pod has the key by joining {name}");
    }
    Ok(())
}

async fn keyring_has_no_public_name(cx: Context) -> Result<()> {
    let pod = cx.pod().await?;
    let c = cx.start(&pod, &cx.sleeper("one")).await?;
    let keys = cx.cri.sh(&c, "cat /proc/keys").await?;
    ensure!(keys.contains(" _ses."), "there is no session keyring in {keys}");
    ensure!(!keys.contains(&c) && !keys.contains(&c[..12]), "named after the container's public id: {keys}");
    Ok(())
}

async fn a_full_key_quota_stops_no_start(cx: Context) -> Result<()> {
    let image = perl(&cx).await?;
    let pod = cx.pod().await?;
    // Adds ever smaller keys until the quota of uid 0, which root of all containers shares, is used up.
    let fill = "$| = 1; my $t = 'user'; for my $size (32000, 4000, 400, 40, 1) { my $p = 'x' x $size; \
                for my $n (1 .. 5000) { my $k = \"k$size-$n\"; last if syscall(248, $t, $k, $p, $size, -3) < 0 } } \
                print \"full\\n\"; sleep 100000";
    let c = cx.start(&pod, &shapes::container("fills", &image, &["/usr/bin/perl", "-e", fill])).await?;
    cx.said(&c, "full").await?;
    let other = cx.pod().await.context("a pod, with root's key quota used up")?;
    for (name, user) in [("root", None), ("user", id(1000))] {
        let config = cx.sleeper(name).with(|c| c.security().run_as_user = user);
        let c = cx.start(&other, &config).await.with_context(|| format!("a container of {name}"))?;
        cx.prints(&c, "echo runs", "runs").await?;
    }
    cx.cri.stop(&c, 0).await?;
    Ok(())
}

async fn crypto_sockets_are_refused_by_default(cx: Context) -> Result<()> {
    let image = perl(&cx).await?;
    let pod = cx.pod().await?;
    let sleeper = shapes::container("one", &image, &["/bin/sleep", "100000"])
        .with(|c| c.security().seccomp = seccomp(ProfileType::RuntimeDefault, ""));
    let c = cx.start(&pod, &sleeper).await?;
    // socket(2) by number (x86-64); 97 is EAFNOSUPPORT.
    for (family, want) in [(38, 97), (40, 97), (2, 0), (1, 0), (16, 0)] {
        let kind = if family == 38 { 5 } else { 2 };
        let ask = format!("exit(syscall(41, {family}, {kind}, 0) >= 0 ? 0 : $! + 0)");
        let out = cx.cri.exec(&c, &["/usr/bin/perl", "-e", &ask]).await?;
        ensure!(out.code == want, "socket(2) of family {family} gave {out:?} instead of code {want}");
    }
    Ok(())
}

async fn user_4294967295_is_refused(cx: Context) -> Result<()> {
    let mut layer = Writer::new();
    layer.file(
        "etc/passwd",
        0o644,
        b"root:x:0:0:root:/root:/bin/sh\nevil:x:4294967295:4294967295::/:/bin/sh\n",
    )?;
    let layers = [cx.fixture.layers.busybox.clone(), layer.finish(Packing::Gzip)?];
    let pod = cx.pod().await?;
    for (name, user) in [("nobody-name", "evil"), ("nobody-group", "1000:4294967295")] {
        let image = Recipe::new(&layers, json!({"Cmd": ["/bin/sh"], "User": user})).build();
        cx.fixture.registry.push(name, "1", &image).await?;
        let config = shapes::container(name, &format!("registry.test/{name}:1"), &["/bin/sleep", "100000"]);
        let error = cx.create(&pod, &config).await.err().with_context(|| format!("{user} was accepted"))?;
        ensure!(format!("{error:#}").contains("4294967295"), "the error does not name the id: {error:#}");
    }
    Ok(())
}
