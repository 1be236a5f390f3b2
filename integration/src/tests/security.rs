//! Security contexts: users, groups, read-only roots, capabilities, privileged containers, no_new_privs.

use anyhow::{Context as _, Result};
use cri_api::v1 as api;

use crate::context::{Context, Pod};
use crate::expect::ensure;
use crate::fixture::Fixture;
use crate::runner::{Test, test};
use crate::shapes::{self, ContainerExt as _, PodExt as _};

pub(super) fn tests() -> Vec<Test> {
    vec![
        test!(run_as_user_and_group),
        test!(run_as_username),
        test!(group_without_user_fails),
        test!(unknown_user_fails),
        test!(supplemental_groups),
        test!(supplemental_groups_of_the_image_are_left_out),
        test!(groups_of_the_sandbox).ours(),
        test!(image_user_and_groups),
        test!(read_only_root),
        test!(default_capabilities),
        test!(capabilities_added_and_dropped),
        test!(ambient_capabilities).ours(),
        test!(privileged_container),
        test!(privileged_needs_a_privileged_pod),
        test!(privileged_container_is_added_to_a_running_pod),
        test!(tun_device_needs_no_request),
        test!(no_new_privs_on_and_off),
    ]
}

pub(super) fn id(value: i64) -> Option<api::Int64Value> {
    Some(api::Int64Value { value })
}

/// A running container with a changed security context.
pub(super) async fn with(
    cx: &Context,
    pod: &Pod,
    name: &str,
    change: impl FnOnce(&mut api::LinuxContainerSecurityContext),
) -> Result<String> {
    cx.start(pod, &cx.sleeper(name).with(|c| change(c.security()))).await
}

async fn run_as_user_and_group(cx: Context) -> Result<()> {
    let pod = cx.pod().await?;
    let c = with(&cx, &pod, "user", |s| s.run_as_user = id(1001)).await?;
    cx.prints(&c, "id -u; id -g", "1001\n0").await.context("a user that passwd does not know has group 0")?;
    let c = with(&cx, &pod, "both", |s| {
        s.run_as_user = id(1001);
        s.run_as_group = id(2002);
    })
    .await?;
    cx.prints(&c, "id -u; id -g", "1001\n2002").await?;
    let user = cx.cri.container(&c).await?.user.and_then(|u| u.linux);
    ensure!(
        cx.node.is_foreign() || user.as_ref().is_some_and(|u| u.uid == 1001 && u.gid == 2002),
        "status says {user:?}"
    );
    cx.prints(&c, "touch /tmp/x; stat -c '%u %g' /tmp/x", "1001 2002").await
}

async fn run_as_username(cx: Context) -> Result<()> {
    let pod = cx.pod().await?;
    let c = with(&cx, &pod, "name", |s| s.run_as_username = String::from("www-data")).await?;
    cx.prints(&c, "id -u; id -g; echo $HOME", "33\n33\n/var/www").await?;
    let c = with(&cx, &pod, "named-group", |s| {
        s.run_as_username = String::from("www-data");
        s.run_as_group = id(100);
    })
    .await?;
    cx.prints(&c, "id -u; id -g", "33\n100").await?;
    Ok(())
}

async fn group_without_user_fails(cx: Context) -> Result<()> {
    let pod = cx.pod().await?;
    let refused = cx.create(&pod, &cx.sleeper("one").with(|c| c.security().run_as_group = id(5))).await;
    ensure!(refused.is_err(), "run_as_group alone was accepted");
    Ok(())
}

async fn unknown_user_fails(cx: Context) -> Result<()> {
    let pod = cx.pod().await?;
    let e = cx
        .create(&pod, &cx.sleeper("one").with(|c| c.security().run_as_username = String::from("nobody-here")))
        .await
        .err()
        .context("an unknown user was accepted")?;
    ensure!(
        cx.node.is_foreign() || format!("{e:#}").contains("nobody-here"),
        "the error does not name the user: {e:#}"
    );
    let image = shapes::container("image", &Fixture::image("user-unknown"), &["/bin/true"]);
    ensure!(cx.create(&pod, &image).await.is_err(), "the image's unknown user was accepted");
    Ok(())
}

async fn supplemental_groups(cx: Context) -> Result<()> {
    let pod = cx.pod().await?;
    let c = with(&cx, &pod, "one", |s| {
        s.run_as_user = id(1000);
        s.run_as_group = id(1000);
        s.supplemental_groups = vec![1234, 5678];
    })
    .await?;
    for whose in ["1", "self"] {
        let line = cx.cri.sh(&c, &format!("grep ^Groups: /proc/{whose}/status")).await?;
        let groups: Vec<&str> = line.split_whitespace().skip(1).collect();
        for group in ["1234", "5678", "50000"] {
            ensure!(groups.contains(&group), "Groups of {whose} are {groups:?} without {group}");
        }
    }
    if !cx.node.is_foreign() {
        let user = cx.cri.container(&c).await?.user.and_then(|u| u.linux).context("status without a user")?;
        let mut groups = user.supplemental_groups.clone();
        groups.sort_unstable();
        ensure!(groups == [1000, 1234, 5678, 50000], "status lists {groups:?}");
    }
    Ok(())
}

/// The groups of a process as the kernel shows them, sorted.
fn groups_of(status: &str) -> Result<Vec<i64>> {
    let line = status.lines().find(|line| line.starts_with("Groups:")).context("no groups")?;
    let mut groups: Vec<i64> =
        line.split_whitespace().skip(1).map(str::parse).collect::<std::result::Result<_, _>>()?;
    groups.sort_unstable();
    Ok(groups)
}

/// In the images' /etc/group alice (1000) is a member of 50000.
async fn supplemental_groups_of_the_image_are_left_out(cx: Context) -> Result<()> {
    use api::SupplementalGroupsPolicy::{Merge, Strict};
    let pod = cx.pod().await?;
    let image = Fixture::image("predefined-group");
    for (name, policy, user, extra, gid, wanted) in [
        ("merge", Merge, id(1000), vec![1234], 1000, vec![1000, 1234, 50000]),
        ("strict", Strict, id(1000), vec![1234], 1000, vec![1000, 1234]),
        ("strict-bare", Strict, id(1000), vec![], 1000, vec![1000]),
        // The user comes from the image.
        ("strict-image", Strict, None, vec![1234], 1000, vec![1000, 1234]),
        ("merge-image", Merge, None, vec![], 1000, vec![1000, 50000]),
        ("strict-root", Strict, id(0), vec![50000], 0, vec![0, 50000]),
    ] {
        let config = shapes::container(name, &image, &["/bin/sleep", "1000"]).with(|c| {
            c.security().run_as_user = user;
            c.security().supplemental_groups = extra;
            c.security().supplemental_groups_policy = policy.into();
        });
        let c = cx.start(&pod, &config).await?;
        let exec = groups_of(&cx.cri.sh(&c, "cat /proc/self/status").await?)?;
        ensure!(exec == wanted, "{name}: an exec has the groups {exec:?} instead of {wanted:?}");
        if cx.node.is_foreign() {
            continue;
        }
        let status = std::fs::read_to_string(format!("/proc/{}/status", cx.pid(&c).await?))?;
        let init = groups_of(&status)?;
        ensure!(init == wanted, "{name}: init has the groups {init:?} instead of {wanted:?}");
        let user = cx.cri.container(&c).await?.user.and_then(|u| u.linux).context("status without a user")?;
        ensure!(
            user.supplemental_groups == wanted && (user.uid, user.gid) == (gid, gid),
            "{name}: status shows {user:?}"
        );
    }
    Ok(())
}

/// The user of the sandbox is that of pause. It has no image, so both policies mean the same.
async fn groups_of_the_sandbox(cx: Context) -> Result<()> {
    for policy in [0, 1] {
        let mut config = cx.pod_config();
        let security = config.security();
        (security.run_as_user, security.run_as_group) = (id(4001), id(4002));
        security.supplemental_groups = vec![4003, 4004];
        security.supplemental_groups_policy = policy;
        // The root of pause is read-only with both values.
        security.readonly_rootfs = policy == 1;
        let pod = cx.pod_of(config).await?;
        let pause = cx.node.pause(&pod.id)?.pid;
        let status = std::fs::read_to_string(format!("/proc/{pause}/status"))?;
        let groups = groups_of(&status)?;
        ensure!(groups == [4003, 4004], "policy {policy}: pause has the groups {groups:?}");
        let root = crate::proc::mount_options(pause, "/")?;
        ensure!(root.contains(&String::from("ro")), "the root of pause has the options {root:?}");
        let found = crate::proc::status(pause)?;
        for (key, wanted) in [("Uid", "4001"), ("Gid", "4002")] {
            let ids = found.get(key).with_context(|| format!("no {key}"))?;
            ensure!(ids.split_whitespace().all(|one| one == wanted), "{key} of pause is {ids}");
        }
    }
    Ok(())
}

async fn image_user_and_groups(cx: Context) -> Result<()> {
    let pod = cx.pod().await?;
    for (image, uid, gid) in [
        ("user-uid", "1002", "0"),
        ("user-name", "33", "33"),
        ("user-uid-group", "1003", "100"),
        ("user-name-group", "33", "100"),
        ("predefined-group", "1000", "1000"),
    ] {
        let c = cx
            .start(&pod, &shapes::container(image, &Fixture::image(image), &["/bin/sleep", "1000"]))
            .await?;
        let seen = cx.cri.sh(&c, "id -u; id -g").await?;
        ensure!(
            seen == format!("{uid}\n{gid}"),
            "image {image}: uid and gid are {seen:?} instead of {uid} and {gid}"
        );
        if image == "predefined-group" {
            let groups = cx.cri.sh(&c, "id -G").await?;
            ensure!(groups.split(' ').any(|g| g == "50000"), "groups of /etc/group are missing: {groups}");
        }
    }
    Ok(())
}

async fn read_only_root(cx: Context) -> Result<()> {
    let pod = cx.pod().await?;
    let c = with(&cx, &pod, "ro", |s| s.readonly_rootfs = true).await?;
    let out = cx.cri.exec(&c, &["/bin/sh", "-c", "echo x > /etc/new"]).await?;
    ensure!(out.code != 0 && out.stderr.contains("Read-only"), "a write to the read-only root gave {out:?}");
    cx.cri.sh(&c, "echo x > /dev/shm/ok && ls /dev/null").await.context("a write to a mount in it")?;
    let c = with(&cx, &pod, "rw", |s| s.readonly_rootfs = false).await?;
    cx.cri.sh(&c, "echo x > /etc/new && grep -q x /etc/new").await?;
    Ok(())
}

/// Docker's default capability set as a bit mask.
const DEFAULT_CAPS: u64 = 0x0000_0000_a804_25fb;

/// The capabilities that this host's processes can have.
fn host_caps() -> Result<u64> {
    let status = crate::proc::status(std::process::id())?;
    Ok(u64::from_str_radix(status.get("CapBnd").context("no CapBnd")?, 16)?)
}

/// A capability set of a process in a container; `whose` is its folder in /proc.
async fn caps(cx: &Context, container: &str, set: &str, whose: &str) -> Result<u64> {
    let line = cx.cri.sh(container, &format!("grep ^{set}: /proc/{whose}/status")).await?;
    Ok(u64::from_str_radix(line.split_whitespace().nth(1).context("no value")?, 16)?)
}

async fn default_capabilities(cx: Context) -> Result<()> {
    let pod = cx.pod().await?;
    let root = cx.start(&pod, &cx.sleeper("root")).await?;
    let user = with(&cx, &pod, "user", |s| s.run_as_user = id(1000)).await?;
    for whose in ["1", "self"] {
        for set in ["CapPrm", "CapEff", "CapBnd"] {
            let found = caps(&cx, &root, set, whose).await?;
            ensure!(
                found == DEFAULT_CAPS,
                "{set} of root's {whose} is {found:#x} instead of {DEFAULT_CAPS:#x}"
            );
        }
        for (set, wanted) in [("CapEff", 0), ("CapPrm", 0), ("CapBnd", DEFAULT_CAPS)] {
            let found = caps(&cx, &user, set, whose).await?;
            ensure!(found == wanted, "{set} of uid 1000's {whose} is {found:#x} instead of {wanted:#x}");
        }
        for (container, set) in [(&root, "CapAmb"), (&root, "CapInh"), (&user, "CapAmb"), (&user, "CapInh")] {
            let found = caps(&cx, container, set, whose).await?;
            ensure!(found == 0, "{set} of {whose} is {found:#x} instead of 0 in container {container}");
        }
    }
    Ok(())
}

async fn capabilities_added_and_dropped(cx: Context) -> Result<()> {
    let pod = cx.pod().await?;
    let list = |names: &[&str]| names.iter().map(|n| (*n).to_owned()).collect::<Vec<_>>();
    let (net_admin, chown) = (1_u64 << 12, 1_u64);
    let own = |s: &mut api::LinuxContainerSecurityContext, add: Vec<String>, drop: Vec<String>| {
        s.capabilities =
            Some(api::Capability { add_capabilities: add, drop_capabilities: drop, ..Default::default() });
    };
    for (name, add, drop, expected) in [
        ("add", list(&["NET_ADMIN"]), vec![], DEFAULT_CAPS | net_admin),
        ("prefix", list(&["CAP_NET_ADMIN"]), vec![], DEFAULT_CAPS | net_admin),
        ("drop", vec![], list(&["CHOWN"]), DEFAULT_CAPS & !chown),
        ("none", vec![], list(&["ALL"]), 0),
        ("only", list(&["NET_ADMIN"]), list(&["ALL"]), net_admin),
    ] {
        let c = with(&cx, &pod, name, |s| own(s, add, drop)).await?;
        for whose in ["1", "self"] {
            let found = caps(&cx, &c, "CapEff", whose).await?;
            ensure!(
                found == expected,
                "case {name}: CapEff of {whose} is {found:#x} instead of {expected:#x}"
            );
        }
    }
    let c = with(&cx, &pod, "all", |s| own(s, list(&["ALL"]), vec![])).await?;
    let (host, found) = (host_caps()?, caps(&cx, &c, "CapEff", "1").await?);
    ensure!(found == host, "with ALL, CapEff is {found:#x} instead of the host's {host:#x}");
    let unknown = cx
        .create(&pod, &cx.sleeper("unknown").with(|c| own(c.security(), list(&["NO_SUCH_CAP"]), vec![])))
        .await;
    ensure!(cx.node.is_foreign() || unknown.is_err(), "an unknown capability was accepted");
    Ok(())
}

/// A user other than root keeps ambient capabilities over execve, and children of its programs inherit them.
async fn ambient_capabilities(cx: Context) -> Result<()> {
    let pod = cx.pod_of(cx.pod_config().privileged()).await?;
    let list = |names: &[&str]| names.iter().map(|n| (*n).to_owned()).collect::<Vec<_>>();
    let (chown, bind) = (1_u64, 1_u64 << 10);
    for (name, ambient, drop, privileged, wanted) in [
        ("one", &["NET_BIND_SERVICE"][..], &[][..], false, bind),
        ("only", &["CAP_NET_BIND_SERVICE", "chown"], &["ALL"], false, bind | chown),
        // CRI: a dropped capability is in no set.
        ("dropped", &["NET_BIND_SERVICE", "CHOWN"], &["CHOWN"], false, bind),
        ("privileged", &["CHOWN"], &[], true, chown),
        ("none", &[], &[], false, 0),
    ] {
        let config = cx.sleeper(name).with(|c| {
            c.security().run_as_user = id(1000);
            c.security().privileged = privileged;
            c.security().capabilities = Some(api::Capability {
                add_ambient_capabilities: list(ambient),
                drop_capabilities: list(drop),
                ..Default::default()
            });
        });
        let c = cx.start(&pod, &config).await?;
        for whose in ["1", "self"] {
            for set in ["CapAmb", "CapInh", "CapEff", "CapPrm"] {
                let found = caps(&cx, &c, set, whose).await?;
                ensure!(found == wanted, "{name}: {set} of {whose} is {found:#x} instead of {wanted:#x}");
            }
        }
    }
    let all = cx.sleeper("all").with(|c| {
        c.security().capabilities =
            Some(api::Capability { add_ambient_capabilities: list(&["ALL"]), ..Default::default() });
    });
    let text = format!("{:#}", cx.create(&pod, &all).await.err().context("ALL was accepted")?);
    ensure!(text.contains("add_ambient_capabilities[0]"), "{text}");
    Ok(())
}

async fn privileged_container(cx: Context) -> Result<()> {
    let pod = cx.pod_of(cx.pod_config().privileged()).await?;
    let c = cx.start(&pod, &cx.sleeper("one").privileged()).await?;
    let host = host_caps()?;
    for whose in ["1", "self"] {
        let found = caps(&cx, &c, "CapEff", whose).await?;
        ensure!(found == host, "CapEff of {whose} is {found:#x} instead of the host's {host:#x}");
        let line = cx.cri.sh(&c, &format!("grep ^Seccomp: /proc/{whose}/status")).await?;
        ensure!(line.ends_with('0'), "{whose} has a filter: {line}");
    }
    cx.cri.sh(&c, "mkdir -p /tmp/m && mount -t tmpfs none /tmp/m && umount /tmp/m").await.context("mount")?;
    cx.cri.sh(&c, "ip link add prv0 type bridge && ip link del prv0").await.context("a bridge")?;
    let mounts = cx.cri.sh(&c, "cat /proc/mounts").await?;
    ensure!(
        !mounts.lines().any(|l| l.contains(" /proc/") && !l.contains("binfmt")),
        "something is mounted below /proc: {mounts}"
    );
    ensure!(mounts.lines().any(|l| l.contains(" /sys sysfs rw")), "/sys is not writable: {mounts}");
    // The host's devices are there, and the device cgroup allows all of them.
    let node = cx.cri.sh(&c, "ls /dev | wc -l").await?;
    ensure!(node.parse::<usize>()? > 12, "only {node} entries in /dev");
    cx.cri.sh(&c, "head -c 16 /dev/urandom > /dev/null; mknod /tmp/zero c 1 5 && head -c 1 /tmp/zero | wc -c | grep 1").await?;
    Ok(())
}

async fn privileged_needs_a_privileged_pod(cx: Context) -> Result<()> {
    let pod = cx.pod().await?;
    ensure!(
        cx.create(&pod, &cx.sleeper("one").privileged()).await.is_err(),
        "a privileged container was created in a pod that is not privileged"
    );
    Ok(())
}

/// `kubectl debug --profile=sysadmin` adds a privileged ephemeral container to a pod that runs. kubelet then says with
/// the container that the pod is privileged, although it was made without that.
async fn privileged_container_is_added_to_a_running_pod(cx: Context) -> Result<()> {
    let (pod, app, _) = cx.sleeping(cx.pod_config()).await?;
    let debugger = cx.sleeper("debugger").privileged().like(&pod.config).with(|c| {
        let namespaces = c.security().namespace_options.get_or_insert_default();
        namespaces.pid = api::NamespaceMode::Target.into();
        namespaces.target_id.clone_from(&app);
    });
    let mut now = pod.config.clone();
    now.linux.get_or_insert_default().security_context.get_or_insert_default().privileged = true;
    let debugger = cx.cri.create(&pod.id, &debugger, &now).await?;
    cx.cri.start(&debugger).await?;
    let (found, host) = (caps(&cx, &debugger, "CapEff", "self").await?, host_caps()?);
    ensure!(found == host, "CapEff of the debugger is {found:#x} instead of the host's {host:#x}");
    cx.cri
        .sh(&debugger, "ls /proc/1/root/bin/sleep")
        .await
        .context("files of the container that it debugs")?;
    let found = caps(&cx, &app, "CapEff", "1").await?;
    ensure!(found != host, "the other container of the pod is privileged too: {found:#x}");
    Ok(())
}

/// VPN clients mount the host's /dev/net/tun as a volume. Here the container makes the node itself, so that the test needs
/// no driver in the kernel: without one, the open fails with ENODEV, but the cgroup was asked before.
async fn tun_device_needs_no_request(cx: Context) -> Result<()> {
    let (_, c, _) = cx.sleeping(cx.pod_config()).await?;
    for (minor, allowed) in [(200, true), (201, false)] {
        let open = format!("mknod /tmp/{minor} c 10 {minor} && (exec 3<>/tmp/{minor}) 2>&1; true");
        let said = cx.cri.sh(&c, &open).await?;
        ensure!(said.contains("not permitted") != allowed, "open of the device 10:{minor}: {said:?}");
    }
    Ok(())
}

async fn no_new_privs_on_and_off(cx: Context) -> Result<()> {
    let pod = cx.pod().await?;
    for (name, on) in [("on", true), ("off", false)] {
        let config = shapes::container(name, &Fixture::image("tools"), &["/bin/sleep", "1000"]).with(|c| {
            c.security().run_as_user = id(1000);
            c.security().no_new_privs = on;
        });
        let c = cx.start(&pod, &config).await?;
        for whose in ["1", "self"] {
            let line = cx.cri.sh(&c, &format!("grep ^NoNewPrivs: /proc/{whose}/status")).await?;
            ensure!(
                line.ends_with(if on { '1' } else { '0' }),
                "with no_new_privs {name}, {whose} has {line}"
            );
        }
        let shown = cx.cri.sh(&c, "/usr/bin/suid-id").await?;
        ensure!(shown.contains("euid=0") != on, "set-uid program with no_new_privs {name}: {shown}");
    }
    Ok(())
}
