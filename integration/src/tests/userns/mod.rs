//! Pods with a user namespace of their own (`hostUsers: false`): namespaces, owners, users, restart.

mod confined;
mod locked;
mod privileged;
mod volumes;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use anyhow::{Context as _, Result};
use cri_api::v1::{self as api, NamespaceMode};
use serde_json::json;
use tonic::Code;

use crate::compare::Case;
use crate::context::{Context, Pod};
use crate::expect::ensure;
use crate::images::Recipe;
use crate::images::layer::{Packing, Writer};
use crate::isolation::command;
use crate::runner::{Test, test};
use crate::shapes::{self, ContainerExt as _, PodExt as _};
use crate::streaming;

pub(super) fn tests() -> Vec<Test> {
    let mut tests = vec![
        test!(the_feature_is_measured).ours(),
        test!(namespaces_belong_to_the_pods_users),
        test!(init_and_exec_equal_runcs),
        test!(owners_inside_and_on_the_host),
        test!(terminals_and_streams),
        test!(users_and_groups_outside_the_map).ours(),
        test!(two_pods_share_an_image),
        test!(restart_of_the_daemon).own(),
        test!(invalid_mappings_are_refused).ours(),
    ];
    tests.extend(volumes::tests());
    tests.extend(confined::tests());
    tests.extend(locked::tests());
    tests.extend(privileged::tests());
    tests
}

/// The length that kubelet uses.
const LENGTH: u32 = 65_536;

/// A mapping of ids from 0 on to those from `host` on.
fn ids(host: u32, length: u32) -> Vec<api::IdMapping> {
    vec![api::IdMapping { host_id: host, container_id: 0, length }]
}

/// As kubelet sends it.
fn users(host: u32, length: u32) -> api::UserNamespace {
    api::UserNamespace { mode: NamespaceMode::Pod.into(), uids: ids(host, length), gids: ids(host, length) }
}

/// A pod's configuration with a user namespace, on its own network.
pub(super) fn mapped(cx: &Context, host: u32, length: u32) -> api::PodSandboxConfig {
    let mut config = cx.pod_config().own_network();
    config.namespaces().userns_options = Some(users(host, length));
    config
}

/// Owner and group of a file, as numbers.
fn owner(path: &Path) -> Result<(u32, u32)> {
    let found = fs::symlink_metadata(path).with_context(|| path.display().to_string())?;
    Ok((found.uid(), found.gid()))
}

/// A path inside a process's root, seen from the host.
fn inside(pid: u32, path: &str) -> std::path::PathBuf {
    Path::new(&format!("/proc/{pid}/root")).join(path.trim_start_matches('/'))
}

async fn the_feature_is_measured(cx: Context) -> Result<()> {
    let status = cx.cri.status(true).await?;
    let handler =
        status.runtime_handlers.iter().find(|h| h.name.is_empty()).context("no nameless handler")?;
    ensure!(handler.features.is_some_and(|f| f.user_namespaces), "user_namespaces is not announced");
    let features = status.features.unwrap_or_default();
    ensure!(!features.user_namespaces_host_network, "user namespaces on the host's network are announced");
    let info: serde_json::Value =
        serde_json::from_str(status.info.get("userNamespaces").context("no info")?)?;
    ensure!(info == json!({"supported": true, "problem": null}), "the info is {info}");
    Ok(())
}

/// The numbers of all namespaces that have a process, each with its owner's.
fn owners() -> Result<BTreeMap<String, String>> {
    let text = command("lsns", &["--noheadings", "--raw", "--output", "NS,ONS"])?;
    Ok(text.lines().filter_map(|l| l.split_once(' ')).map(|(a, b)| (a.to_owned(), b.to_owned())).collect())
}

/// The user namespace that a pod's status shows.
async fn shown(cx: &Context, pod: &Pod) -> Result<Option<api::UserNamespace>> {
    let status = cx.cri.pod_status(&pod.id).await?.status.context("no status")?;
    Ok(status.linux.and_then(|l| l.namespaces).and_then(|n| n.options).and_then(|o| o.userns_options))
}

async fn namespaces_belong_to_the_pods_users(cx: Context) -> Result<()> {
    let number = |pid: u32, kind: &str| -> Result<String> {
        let link = fs::read_link(format!("/proc/{pid}/ns/{kind}"))?.display().to_string();
        Ok(link.trim_start_matches(|c: char| !c.is_ascii_digit()).trim_end_matches(']').to_owned())
    };
    let (pod, one, first) = cx.sleeping(mapped(&cx, 200_000, LENGTH).shared_pid()).await?;
    let two = cx.start(&pod, &cx.sleeper("two")).await?;
    let second = cx.pid(&two).await?;
    let users = number(first, "user")?;
    ensure!(users != number(std::process::id(), "user")?, "the container is in the host's user namespace");
    ensure!(users == number(second, "user")?, "the pod's containers have two user namespaces");
    let owners = owners()?;
    for kind in ["net", "ipc", "uts", "pid", "mnt"] {
        let found = owners.get(&number(first, kind)?);
        ensure!(found == Some(&users), "the {kind} namespace belongs to {found:?} instead of {users}");
    }
    for pid in [first, second] {
        for map in ["uid_map", "gid_map"] {
            let text = fs::read_to_string(format!("/proc/{pid}/{map}"))?;
            let words: Vec<&str> = text.split_whitespace().collect();
            ensure!(words == ["0", "200000", "65536"], "{map} is {words:?}");
        }
    }
    // An exec is root of the pod, not of the host.
    let seen =
        cx.cri.sh(&one, "readlink /proc/self/ns/user; cat /proc/self/uid_map; id -u; touch /made").await?;
    ensure!(seen.contains(&users) && seen.ends_with("\n0"), "an exec sees {seen}");
    ensure!(
        owner(&inside(first, "made"))? == (200_000, 200_000),
        "a file of an exec's root is not the pod's root's"
    );
    // The status shows what was asked for.
    let shown = shown(&cx, &pod).await?;
    ensure!(shown == pod.config.clone().namespaces().userns_options, "the status shows {shown:?}");
    Ok(())
}

async fn init_and_exec_equal_runcs(cx: Context) -> Result<()> {
    for user in [None, Some((1000, 1000, vec![1234, 5678]))] {
        let case = Case { user, mapping: Some(300_000), ..Case::default() };
        let config = mapped(&cx, 300_000, LENGTH);
        super::same_as_runc::same_in(&cx, &case, config).await.with_context(|| format!("{case:?}"))?;
    }
    Ok(())
}

async fn owners_inside_and_on_the_host(cx: Context) -> Result<()> {
    cx.need("registry.test/whiteouts:1").await?;
    let pod = cx.pod_of(mapped(&cx, 400_000, LENGTH)).await?;
    let config = shapes::container("main", "registry.test/whiteouts:1", &["/bin/sleep", "100000"]);
    let id = cx.start(&pod, &config).await?;
    let pid = cx.pid(&id).await?;
    let files = "/ /etc/marker /tmp /w/owned /w/hard /etc/hosts /etc/resolv.conf /etc/hostname /dev/shm";
    let seen = cx.cri.sh(&id, &format!("stat -c '%u:%g %n' {files}")).await?;
    for line in seen.lines() {
        let wanted = if line.ends_with("/w/owned") { "1234:5678 " } else { "0:0 " };
        ensure!(line.starts_with(wanted), "inside it is {line}, not {wanted}");
    }
    ensure!(owner(&inside(pid, "w/owned"))? == (401_234, 405_678), "the image's file, seen on the host");
    ensure!(owner(&inside(pid, "etc/marker"))? == (400_000, 400_000), "root's file, seen on the host");
    // Written, copied up, given away; a set-user-id program of root is root's inside.
    cx.cri
        .sh(&id, "echo x > /new; echo more >> /w/owned; chown 7:8 /w/hard; mkdir -p /deep/er; cd /w && ./suid || true")
        .await?;
    for (path, wanted) in [
        ("new", (400_000, 400_000)),
        ("w/owned", (401_234, 405_678)),
        ("w/hard", (400_007, 400_008)),
        ("deep/er", (400_000, 400_000)),
    ] {
        let found = owner(&inside(pid, path))?;
        ensure!(found == wanted, "{path} belongs to {found:?} on the host, not {wanted:?}");
    }
    let upper = cx.node.paths.root.join("containers").join(&id).join("rw/upper");
    ensure!(owner(&upper.join("new"))? == (400_000, 400_000), "the writable layer has other owners");
    // The working folder is made by root of the container, like the image's VOLUMEs.
    let made =
        cx.shell("made", "stat -c %u:%g /work/here").with(|c| c.working_dir = String::from("/work/here"));
    cx.outputs(&pod, &made, "0:0\n").await?;
    let volumes = shapes::container(
        "volumes",
        "registry.test/configured:1",
        &["/bin/sh", "-c", "stat -c %u:%g /data; touch /data/x"],
    );
    cx.outputs(&pod, &volumes, "0:0\n").await?;
    Ok(())
}

async fn terminals_and_streams(cx: Context) -> Result<()> {
    let pod = cx.pod_of(mapped(&cx, 500_000, LENGTH)).await?;
    let as_user = |mut config: api::ContainerConfig| {
        config.security().run_as_user = Some(api::Int64Value { value: 1000 });
        config
    };
    // Standard streams belong to the user, so that it can open them again.
    let script = "echo out > /dev/stdout; echo err > /dev/stderr; echo done";
    cx.outputs(&pod, &as_user(cx.shell("pipes", script)), "out\ndone\n").await?;
    let terminal =
        as_user(cx.shell("tty", "stat -c %u $(tty) /dev/console; echo x > /dev/tty; exec sleep 100000"));
    let tty = cx.start(&pod, &terminal.terminal()).await?;
    cx.said(&tty, "1000").await?;
    let main = cx.start(&pod, &as_user(cx.sleeper("main"))).await?;
    cx.prints(
        &main,
        "id -u; echo again > /dev/stdout; test -w /dev/stderr && echo writable",
        "1000\nagain\nwritable",
    )
    .await?;
    let url =
        streaming::exec(&cx.cri, &main, &["/bin/sh", "-c", "stat -c %u $(tty); id -u; tty"], true).await?;
    let text = streaming::Client::connect(&url, "v5.channel.k8s.io").await?.rest().await?.text();
    ensure!(text.starts_with("1000\r\n1000\r\n/dev/pts/"), "exec -t printed {text:?}");
    let echo = cx
        .start(&pod, &cx.shell("echo", "while read line; do echo got $line; done").with(|c| c.stdin = true))
        .await?;
    let mut client =
        streaming::Client::connect(&streaming::attach(&cx.cri, &echo, false).await?, "v5.channel.k8s.io")
            .await?;
    client.send(0, b"a line\n").await?;
    client.until("got a line").await
}

async fn users_and_groups_outside_the_map(cx: Context) -> Result<()> {
    let mut writer = Writer::new();
    writer.owned("far/away", 0o644, (70_000, 70_001), b"readable\n")?;
    writer.owned("far/secret", 0o600, (70_000, 70_000), b"secret\n")?;
    let layers = [cx.fixture.layers.busybox.clone(), writer.finish(Packing::Gzip)?];
    let image = Recipe::new(&layers, json!({"Cmd": ["/bin/sh"], "Env": ["PATH=/bin"]})).build();
    let name = format!("userns-{}", cx.name);
    cx.fixture.registry.push(&name, "1", &image).await?;
    let image = format!("registry.test/{name}:1");
    let pod = cx.pod_of(mapped(&cx, 600_000, LENGTH)).await?;
    cx.need(&image).await?;
    // A file whose owner is not mapped has the owner 65534 (nobody) inside: only its permissions for others apply, and root
    // cannot change its owner.
    let script = "stat -c %u:%g /far/away; cat /far/away; cat /far/secret 2>/dev/null; chown 0 /far/away 2>/dev/null || echo no";
    let config = shapes::container("far", &image, &["/bin/sh", "-c", script]);
    cx.outputs(&pod, &config, "65534:65534\nreadable\nno\n").await?;
    for (field, id) in [("user", 70_000), ("group", 70_000), ("groups", 65_536)] {
        let mut config = cx.sleeper(field);
        let security = config.security();
        let value = api::Int64Value { value: id };
        match field {
            "user" => security.run_as_user = Some(value),
            "group" => {
                (security.run_as_user, security.run_as_group) =
                    (Some(api::Int64Value::default()), Some(value))
            }
            _ => security.supplemental_groups = vec![id],
        }
        let refused =
            cx.create(&pod, &config).await.err().with_context(|| format!("{field} {id} was accepted"))?;
        let text = format!("{refused:#}");
        ensure!(text.contains(&format!("{id} is not mapped")), "{field}: {text}");
    }
    // A mapping of few ids: pause's user is one of them, and a file of the image whose owner is not has the owner nobody.
    let small = cx.pod_of(mapped(&cx, 700_000, 1000)).await?;
    cx.need("registry.test/whiteouts:1").await?;
    let config = shapes::container(
        "small",
        "registry.test/whiteouts:1",
        &["/bin/sh", "-c", "stat -c %u:%g /w/owned; id -u"],
    );
    cx.outputs(&small, &config, "65534:65534\n0\n").await?;
    cx.cri.remove_image(&image).await?;
    Ok(())
}

async fn two_pods_share_an_image(cx: Context) -> Result<()> {
    let start = async |host: u32| {
        let pod = cx.pod_of(mapped(&cx, host, LENGTH)).await?;
        let id = cx.start(&pod, &cx.sleeper("main")).await?;
        let pid = cx.pid(&id).await?;
        anyhow::Ok((pod, id, pid))
    };
    let (_, one, first) = start(1_000_000).await?;
    let (_, two, second) = start(2_000_000).await?;
    let host = cx.start(&cx.pod().await?, &cx.sleeper("main")).await?;
    let third = cx.pid(&host).await?;
    for (pid, root) in [(first, 1_000_000), (second, 2_000_000), (third, 0)] {
        let found = owner(&inside(pid, "etc/marker"))?;
        ensure!(found == (root, root), "the image's file belongs to {found:?}, not to {root}");
    }
    for id in [&one, &two, &host] {
        cx.prints(id, "stat -c %u:%g /etc/marker; echo mine > /etc/marker; cat /etc/marker", "0:0\nmine")
            .await?;
    }
    // Equal ids inside are different ones outside.
    let signal = format!("kill -0 {second}");
    let out =
        command("setpriv", &["--reuid=1000000", "--regid=1000000", "--clear-groups", "sh", "-c", &signal]);
    ensure!(out.is_err(), "root of one pod may signal the other's");
    Ok(())
}

async fn restart_of_the_daemon(cx: Context) -> Result<()> {
    let (pod, id, pid) = cx.sleeping(mapped(&cx, 800_000, LENGTH)).await?;
    cx.node.crash().await?;
    cx.prints(&id, "cat /proc/self/uid_map | tr -s ' '; id -u", "0 800000 65536\n0").await?;
    let shown = shown(&cx, &pod).await?;
    ensure!(shown == Some(users(800_000, LENGTH)), "after the restart the status shows {shown:?}");
    let fresh = cx.start(&pod, &cx.sleeper("fresh")).await.context("a new container in an old pod")?;
    let number = |pid: u32| fs::read_link(format!("/proc/{pid}/ns/user"));
    ensure!(number(cx.pid(&fresh).await?)? == number(pid)?, "the new container is in another user namespace");
    let other = Pod { id: pod.id.clone(), config: cx.pod_config().own_network() };
    ensure!(
        cx.create(&other, &cx.sleeper("host")).await.is_err(),
        "a container in the host's user namespace joined the pod"
    );
    cx.cri.drop_pod(&pod.id).await?;
    Ok(())
}

async fn invalid_mappings_are_refused(cx: Context) -> Result<()> {
    let one = |host_id, container_id, length| vec![api::IdMapping { host_id, container_id, length }];
    let two = [ids(100_000, 10), ids(200_000, 10)].concat();
    let ok = ids(100_000, LENGTH);
    let cases: [(&str, Vec<api::IdMapping>, Vec<api::IdMapping>); 8] = [
        ("exactly one mapping", Vec::new(), Vec::new()),
        ("exactly one mapping", two.clone(), ok.clone()),
        ("exactly one mapping", ok.clone(), two),
        ("root inside would be the host's root", one(0, 0, LENGTH), ok.clone()),
        ("root inside would be the host's root", ok.clone(), one(0, 0, LENGTH)),
        ("so that root inside is mapped", one(100_000, 1, LENGTH), ok.clone()),
        ("must be at least 1", one(u32::MAX - 10, 0, LENGTH), ok.clone()),
        ("must have the length of uids", ok.clone(), ids(100_000, 10)),
    ];
    let refused = async |config: &api::PodSandboxConfig, want: &str| {
        let error = cx.cri.run_pod(config).await.err().with_context(|| format!("accepted: {want}"))?;
        ensure!(error.code() == Code::InvalidArgument && error.message().contains(want), "{want}: {error:?}");
        anyhow::Ok(())
    };
    for (want, uids, gids) in cases {
        let mut config = mapped(&cx, 100_000, LENGTH);
        config.namespaces().userns_options =
            Some(api::UserNamespace { mode: NamespaceMode::Pod.into(), uids, gids });
        refused(&config, want).await?;
    }
    for change in [
        (|n| n.network = NamespaceMode::Node.into()) as fn(&mut api::NamespaceOption),
        |n| n.pid = NamespaceMode::Node.into(),
        |n| n.ipc = NamespaceMode::Node.into(),
    ] {
        let mut config = mapped(&cx, 100_000, LENGTH);
        change(config.namespaces());
        refused(&config, "must not be NODE in a pod with a user namespace").await?;
    }
    // A container's options must be its pod's.
    let pod = cx.pod_of(mapped(&cx, 100_000, LENGTH)).await?;
    for other in [None, Some(users(200_000, LENGTH)), Some(users(100_000, 10))] {
        let mut config = cx.sleeper("other").like(&pod.config);
        config.security().namespace_options.get_or_insert_default().userns_options = other;
        let error = cx.create_as_is(&pod, &config).await.err().context("another mapping was accepted")?;
        ensure!(format!("{error:#}").contains("must be equal to the sandbox's"), "{error:#}");
    }
    let plain = cx.pod().await?;
    let mut config = cx.sleeper("mapped").like(&plain.config);
    config.security().namespace_options.get_or_insert_default().userns_options = Some(users(100_000, LENGTH));
    let error =
        cx.create_as_is(&plain, &config).await.err().context("a mapping without a sandbox's was accepted")?;
    ensure!(format!("{error:#}").contains("namespace"), "{error:#}");
    Ok(())
}
