//! The environment of a container's process: variables, command, limits, scheduling, the pod's network settings.

use std::process::Command;

use anyhow::{Context as _, Result};
use cri_api::v1 as api;
use cri_api::v1::security_profile::ProfileType;
use serde_json::{Value, json};

use super::privilege::perl;
use super::security::id;
use crate::context::Context;
use crate::expect::ensure;
use crate::images::Recipe;
use crate::runner::{Test, test};
use crate::shapes::{self, ContainerExt as _, PodExt as _, seccomp};

pub(super) fn tests() -> Vec<Test> {
    vec![
        test!(low_ports_and_ping_for_everybody),
        test!(a_requests_sysctls_win),
        test!(images_hostname_wins),
        test!(entrypoint_of_one_empty_word_counts_as_none),
        test!(empty_home_counts_as_none),
        test!(filter_flags_are_accepted),
        test!(scheduling_is_reset).own(),
        test!(containers_get_the_limit_of_open_files_that_the_daemon_was_started_with).ours(),
        test!(too_low_memory_limit_names_the_minimum).ours(),
        test!(minimum_memory_limit_works).ours(),
    ]
}

/// An image of busybox with this configuration.
async fn image(cx: &Context, name: &str, config: Value) -> Result<String> {
    let image = Recipe::new(std::slice::from_ref(&cx.fixture.layers.busybox), config).build();
    cx.fixture.registry.push(name, "1", &image).await?;
    Ok(format!("registry.test/{name}:1"))
}

async fn low_ports_and_ping_for_everybody(cx: Context) -> Result<()> {
    let image = perl(&cx).await?;
    let pod = cx.pod_of(cx.pod_config().own_network()).await?;
    let config = shapes::container("one", &image, &["/bin/sleep", "100000"]).with(|c| {
        let security = c.security();
        security.run_as_user = id(1000);
        security.run_as_group = id(1000);
        security.capabilities =
            Some(api::Capability { drop_capabilities: vec!["ALL".to_owned()], ..Default::default() });
        security.seccomp = seccomp(ProfileType::RuntimeDefault, "");
    });
    let c = cx.start(&pod, &config).await?;
    let bind =
        "socket(S, 2, 1, 0) or die; bind(S, pack('S n a4 x8', 2, 80, \"\\0\" x 4)) or die \"bind: $!\"";
    let out = cx.cri.exec(&c, &["/usr/bin/perl", "-e", bind]).await?;
    ensure!(out.code == 0, "a user without capabilities cannot serve on port 80: {out:?}");
    // A ping socket: SOCK_DGRAM, IPPROTO_ICMP.
    let out = cx.cri.exec(&c, &["/usr/bin/perl", "-e", "socket(S, 2, 2, 1) or die \"ping: $!\""]).await?;
    ensure!(out.code == 0, "a user without capabilities cannot ping: {out:?}");
    Ok(())
}

async fn a_requests_sysctls_win(cx: Context) -> Result<()> {
    let mut config = cx.pod_config().own_network();
    let sysctls = &mut config.linux.get_or_insert_default().sysctls;
    sysctls.insert("net.ipv4.ip_unprivileged_port_start".to_owned(), "81".to_owned());
    let pod = cx.pod_of(config).await?;
    let c = cx.start(&pod, &cx.sleeper("one")).await?;
    let line = "cat /proc/sys/net/ipv4/ip_unprivileged_port_start /proc/sys/net/ipv4/ping_group_range";
    let seen = cx.cri.sh(&c, line).await?;
    ensure!(
        seen.split_whitespace().collect::<Vec<_>>() == ["81", "0", "2147483647"],
        "the first port and the groups that may ping are {seen:?}"
    );
    Ok(())
}

async fn images_hostname_wins(cx: Context) -> Result<()> {
    let image =
        image(&cx, "hostname-env", json!({"Cmd": ["/bin/sh"], "Env": ["PATH=/bin", "HOSTNAME=0.0.0.0"]}))
            .await?;
    let pod = cx.pod_of(cx.pod_config().own_network()).await?;
    let echo = ["/bin/sh", "-c", "echo $HOSTNAME"];
    let plain = shapes::container("image", &image, &echo);
    cx.outputs(&pod, &plain, "0.0.0.0\n").await.context("the image's HOSTNAME")?;
    let asked = shapes::container("request", &image, &echo).env("HOSTNAME", "mine");
    cx.outputs(&pod, &asked, "mine\n").await.context("the request's HOSTNAME")?;
    let none = cx.shell("none", "echo $HOSTNAME");
    cx.outputs(&pod, &none, &format!("{}\n", pod.config.hostname)).await.context("the pod's HOSTNAME")
}

async fn entrypoint_of_one_empty_word_counts_as_none(cx: Context) -> Result<()> {
    let image =
        image(&cx, "entrypoint-empty", json!({"Entrypoint": [""], "Cmd": ["/bin/echo", "hi"]})).await?;
    let pod = cx.pod().await?;
    cx.outputs(&pod, &shapes::container("cmd", &image, &[]), "hi\n").await?;
    let mut config = shapes::container("args", &image, &[]);
    config.args = vec!["/bin/echo".to_owned(), "args".to_owned()];
    cx.outputs(&pod, &config, "args\n").await?;
    Ok(())
}

async fn empty_home_counts_as_none(cx: Context) -> Result<()> {
    let image =
        image(&cx, "home-empty", json!({"Cmd": ["/bin/sh"], "Env": ["PATH=/bin:/usr/bin", "HOME="]})).await?;
    let pod = cx.pod().await?;
    let c = cx
        .start(&pod, &shapes::container("one", &image, &["/bin/sh", "-c", "echo $HOME; exec sleep 100000"]))
        .await?;
    let path = cx.cri.container(&c).await?.log_path;
    let init = crate::wait::until("init's line", crate::wait::secs(10), || async {
        Ok(Some(crate::logfile::Log::read(&path)?.text(None)).filter(|text| text.ends_with('\n')))
    })
    .await?;
    let exec = cx.cri.sh(&c, "echo $HOME").await?;
    ensure!((init.trim(), exec.as_str()) == ("/root", "/root"), "init has {init:?}, exec {exec:?}");
    Ok(())
}

async fn filter_flags_are_accepted(cx: Context) -> Result<()> {
    let pod = cx.pod().await?;
    for flag in ["LOG", "SPEC_ALLOW", "TSYNC"] {
        let file = cx.node.paths.dir.join(format!("flag-{flag}.json"));
        let flags = [format!("SECCOMP_FILTER_FLAG_{flag}")];
        std::fs::write(&file, json!({"defaultAction": "SCMP_ACT_ALLOW", "flags": flags}).to_string())?;
        let profile = seccomp(ProfileType::Localhost, &file.display().to_string());
        let config =
            cx.sleeper(&flag.to_lowercase().replace('_', "-")).with(|c| c.security().seccomp = profile);
        let c = cx.start(&pod, &config).await.with_context(|| format!("flag {flag}"))?;
        for whose in ["1", "self"] {
            let line = cx.cri.sh(&c, &format!("grep ^Seccomp: /proc/{whose}/status")).await?;
            ensure!(line.ends_with('2'), "with the flag {flag}, {whose} has no filter: {line}");
        }
    }
    Ok(())
}

/// Containers must not inherit scheduling settings that the daemon got from its service manager or its parent.
async fn scheduling_is_reset(cx: Context) -> Result<()> {
    let daemon = cx.node.pid()?;
    let change = format!(
        "chrt --all-tasks --batch --pid 0 {daemon} && for t in /proc/{daemon}/task/*; do ionice -c 3 -p ${{t##*/}}; done && \
         echo 0x7 > /proc/{daemon}/coredump_filter"
    );
    let changed = Command::new("sh").args(["-ec", &change]).output().context("sh")?;
    ensure!(changed.status.success(), "chrt, ionice: {}", String::from_utf8_lossy(&changed.stderr));
    let pod = cx.pod().await?;
    let line = "sed 's/.*) //' /proc/$$/stat | cut -d' ' -f39; ionice -p $$; cat /proc/$$/coredump_filter";
    let c = cx.start(&pod, &cx.shell("one", &format!("{line}; exec sleep 100000"))).await?;
    let path = cx.cri.container(&c).await?.log_path;
    let init = crate::wait::until("init's lines", crate::wait::secs(10), || async {
        Ok(Some(crate::logfile::Log::read(&path)?.text(None)).filter(|text| text.lines().count() == 3))
    })
    .await?;
    for (who, seen) in [("init", init), ("exec", cx.cri.sh(&c, line).await?)] {
        let lines: Vec<&str> = seen.lines().collect();
        ensure!(lines.first() == Some(&"0"), "scheduling class of {who}: {seen}");
        ensure!(lines.get(1).is_some_and(|class| class.contains("none")), "I/O priority of {who}: {seen}");
        ensure!(lines.get(2) == Some(&"00000033"), "coredump_filter of {who}: {seen}");
    }
    Ok(())
}

/// Soft and hard limit of open files of a process; `pid` is its folder in /proc.
fn open_files(pid: &str) -> Result<(u64, u64)> {
    let limits = std::fs::read_to_string(format!("/proc/{pid}/limits"))?;
    let line = limits.lines().find(|l| l.starts_with("Max open files")).context("no line of open files")?;
    let mut numbers = line.split_whitespace().filter_map(|word| word.parse().ok());
    Ok((numbers.next().context("soft")?, numbers.next().context("hard")?))
}

async fn containers_get_the_limit_of_open_files_that_the_daemon_was_started_with(cx: Context) -> Result<()> {
    // The daemon was started by this process and has its limits, except those it raised itself.
    let (soft, hard) = open_files("self")?;
    let daemon = open_files(&cx.node.pid()?.to_string())?;
    let pod = cx.pod().await?;
    let shim = open_files(&cx.node.shim(&pod.id)?.pid.to_string())?;
    for (who, have) in [("the daemon", daemon), ("a shim", shim)] {
        ensure!(
            have.0 >= hard.min(65_536).max(soft),
            "{who} may open {have:?} files; the daemon was started with {soft} of {hard}"
        );
    }
    let c = cx.start(&pod, &cx.sleeper("one")).await?;
    for whose in ["1", "self"] {
        let line = cx.cri.sh(&c, &format!("grep '^Max open files' /proc/{whose}/limits")).await?;
        let words: Vec<&str> = line.split_whitespace().collect();
        let have = (words.get(3).copied().unwrap_or_default(), words.get(4).copied().unwrap_or_default());
        ensure!(
            have == (soft.to_string().as_str(), hard.to_string().as_str()),
            "{whose} may open {have:?} files; the daemon was started with {soft} of {hard}"
        );
    }
    Ok(())
}

async fn too_low_memory_limit_names_the_minimum(cx: Context) -> Result<()> {
    let pod = cx.pod().await?;
    for bytes in [1, 4096, 102_400, 1_048_575] {
        let config = cx.sleeper("one").with(|c| c.resources().memory_limit_in_bytes = bytes);
        let error =
            cx.create(&pod, &config).await.err().with_context(|| format!("{bytes} bytes accepted"))?;
        let code = error.downcast_ref::<tonic::Status>().map(tonic::Status::code);
        ensure!(code == Some(tonic::Code::InvalidArgument), "a limit of {bytes} bytes: {error:#}");
        let text = format!("{error:#}");
        ensure!(
            text.contains("memory_limit_in_bytes") && text.contains("1048576"),
            "with a limit of {bytes} bytes the error does not name the field and the minimum: {text}"
        );
    }
    Ok(())
}

async fn minimum_memory_limit_works(cx: Context) -> Result<()> {
    let pod = cx.pod().await?;
    for round in 0..5 {
        let config =
            cx.sleeper(&format!("minimum{round}")).with(|c| c.resources().memory_limit_in_bytes = 1_048_576);
        let c = cx.start(&pod, &config).await?;
        let out = cx.cri.exec(&c, &["/bin/true"]).await?;
        ensure!(out.code == 0, "round {round}: an exec with a limit of 1 MiB gave {out:?}");
        cx.cri.stop(&c, 0).await?;
    }
    Ok(())
}
