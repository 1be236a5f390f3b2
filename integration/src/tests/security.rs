//! Security contexts: users, groups, capabilities, seccomp, no_new_privs, masks, privileged, devices.

use anyhow::{Context as _, Result, ensure};
use cri_api::v1::security_profile::ProfileType;
use cri_api::v1::{self as api, NamespaceMode};

use crate::context::{Context, Pod};
use crate::fixture::Fixture;
use crate::runner::{Test, test};
use crate::shapes::{self, ContainerExt as _, PodExt as _, seccomp};

pub(super) fn tests() -> Vec<Test> {
    vec![
        test!(run_as_user_and_group),
        test!(run_as_username),
        test!(group_without_user_fails),
        test!(unknown_user_fails),
        test!(supplemental_groups),
        test!(image_user_and_groups),
        test!(read_only_root),
        test!(default_capabilities),
        test!(capabilities_added_and_dropped),
        test!(privileged_container),
        test!(privileged_needs_a_privileged_pod),
        test!(no_new_privs_on_and_off),
        test!(masked_and_readonly_paths),
        test!(own_mask_lists),
        test!(seccomp_default_unconfined_nil),
        test!(seccomp_localhost),
        test!(seccomp_is_off_when_privileged),
        test!(devices),
        test!(proc_and_sys_are_protected),
        test!(not_built_is_refused).ours(),
    ]
}

fn id(value: i64) -> Option<api::Int64Value> {
    Some(api::Int64Value { value })
}

/// A running sleeper with a changed security context.
async fn with(
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
    ensure!(
        cx.cri.sh(&c, "id -u; id -g").await? == "1001\n0",
        "a user that passwd does not know has group 0"
    );
    let c = with(&cx, &pod, "both", |s| {
        s.run_as_user = id(1001);
        s.run_as_group = id(2002);
    })
    .await?;
    ensure!(cx.cri.sh(&c, "id -u; id -g").await? == "1001\n2002");
    let user = cx.cri.container(&c).await?.user.and_then(|u| u.linux);
    ensure!(
        cx.node.is_foreign() || user.as_ref().is_some_and(|u| u.uid == 1001 && u.gid == 2002),
        "status says {user:?}"
    );
    let owner = cx.cri.sh(&c, "touch /tmp/x; stat -c '%u %g' /tmp/x").await?;
    ensure!(owner == "1001 2002", "{owner}");
    Ok(())
}

async fn run_as_username(cx: Context) -> Result<()> {
    let pod = cx.pod().await?;
    let c = with(&cx, &pod, "name", |s| s.run_as_username = String::from("www-data")).await?;
    ensure!(cx.cri.sh(&c, "id -u; id -g; echo $HOME").await?.starts_with("33\n33"));
    let c = with(&cx, &pod, "named-group", |s| {
        s.run_as_username = String::from("www-data");
        s.run_as_group = id(100);
    })
    .await?;
    ensure!(cx.cri.sh(&c, "id -u; id -g").await? == "33\n100");
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
        .context("accepted")?;
    ensure!(cx.node.is_foreign() || format!("{e:#}").contains("nobody-here"), "{e:#}");
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
        ensure!(seen == format!("{uid}\n{gid}"), "{image}: {seen:?}");
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
    ensure!(out.code != 0 && out.stderr.contains("Read-only"), "{out:?}");
    cx.cri.sh(&c, "echo x > /dev/shm/ok && ls /dev/null").await.context("mounts stay writable")?;
    let c = with(&cx, &pod, "rw", |s| s.readonly_rootfs = false).await?;
    cx.cri.sh(&c, "echo x > /etc/new && grep -q x /etc/new").await?;
    Ok(())
}

/// The set that containers have had for ten years, in bits.
const DEFAULT_CAPS: u64 = 0x0000_0000_a804_25fb;

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
            ensure!(found == DEFAULT_CAPS, "{set} of root's {whose} is {found:#x}");
        }
        ensure!(
            caps(&cx, &user, "CapEff", whose).await? == 0 && caps(&cx, &user, "CapPrm", whose).await? == 0,
            "uid 1000 has capabilities"
        );
        ensure!(caps(&cx, &user, "CapBnd", whose).await? == DEFAULT_CAPS, "bounding set of uid 1000");
        for container in [&root, &user] {
            ensure!(
                caps(&cx, container, "CapAmb", whose).await? == 0
                    && caps(&cx, container, "CapInh", whose).await? == 0,
                "ambient or inheritable"
            );
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
            ensure!(found == expected, "{name}, {whose}: {found:#x} instead of {expected:#x}");
        }
    }
    let c = with(&cx, &pod, "all", |s| own(s, list(&["ALL"]), vec![])).await?;
    let host = crate::proc::status(std::process::id())?.get("CapBnd").cloned().context("CapBnd")?;
    ensure!(
        caps(&cx, &c, "CapEff", "1").await? == u64::from_str_radix(&host, 16)?,
        "ALL is what the host can give"
    );
    let unknown = cx
        .create(&pod, &cx.sleeper("unknown").with(|c| own(c.security(), list(&["NO_SUCH_CAP"]), vec![])))
        .await;
    ensure!(cx.node.is_foreign() || unknown.is_err(), "an unknown capability was accepted");
    Ok(())
}

async fn privileged_container(cx: Context) -> Result<()> {
    let pod = cx.pod_of(cx.pod_config().privileged()).await?;
    let c = cx.start(&pod, &cx.sleeper("one").privileged()).await?;
    let host =
        u64::from_str_radix(crate::proc::status(std::process::id())?.get("CapBnd").context("CapBnd")?, 16)?;
    for whose in ["1", "self"] {
        ensure!(caps(&cx, &c, "CapEff", whose).await? == host, "a privileged process lacks capabilities");
        let line = cx.cri.sh(&c, &format!("grep ^Seccomp: /proc/{whose}/status")).await?;
        ensure!(line.ends_with('0'), "{line}");
    }
    cx.cri.sh(&c, "mkdir -p /tmp/m && mount -t tmpfs none /tmp/m && umount /tmp/m").await.context("mount")?;
    cx.cri.sh(&c, "ip link add prv0 type bridge && ip link del prv0").await.context("a bridge")?;
    let masked = cx.cri.sh(&c, "cat /proc/mounts").await?;
    ensure!(
        !masked.lines().any(|l| l.contains(" /proc/") && !l.contains("binfmt")),
        "something masks /proc: {masked}"
    );
    ensure!(masked.lines().any(|l| l.contains(" /sys sysfs rw")), "/sys is not writable: {masked}");
    // Devices come from the host, the device cgroup allows them all.
    let node = cx.cri.sh(&c, "ls /dev | wc -l").await?;
    ensure!(node.parse::<usize>()? > 12, "only {node} entries in /dev");
    cx.cri.sh(&c, "head -c 16 /dev/urandom > /dev/null; mknod /tmp/zero c 1 5 && head -c 1 /tmp/zero | wc -c | grep 1").await?;
    Ok(())
}

async fn privileged_needs_a_privileged_pod(cx: Context) -> Result<()> {
    let pod = cx.pod().await?;
    ensure!(
        cx.create(&pod, &cx.sleeper("one").privileged()).await.is_err(),
        "a privileged container in a pod that is not"
    );
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
            ensure!(line.ends_with(if on { '1' } else { '0' }), "{name}, {whose}: {line}");
        }
        let shown = cx.cri.sh(&c, "/usr/bin/suid-id").await?;
        ensure!(shown.contains("euid=0") != on, "set-uid program with no_new_privs {name}: {shown}");
    }
    Ok(())
}

async fn masked_and_readonly_paths(cx: Context) -> Result<()> {
    let pod = cx.pod().await?;
    let config = cx.sleeper("one").with(|c| {
        c.security().masked_paths = vec![
            String::from("/proc/kcore"),
            String::from("/sys/firmware"),
            String::from("/proc/acpi"),
            String::from("/absent/path"),
        ];
        c.security().readonly_paths = vec![String::from("/proc/sys"), String::from("/proc/bus")];
    });
    let c = cx.start(&pod, &config).await?;
    let size = cx.cri.sh(&c, "cat /proc/kcore | wc -c; ls -A /sys/firmware | wc -l").await?;
    ensure!(size == "0\n0", "masked paths show {size:?}");
    let out = cx.cri.exec(&c, &["/bin/sh", "-c", "echo 1 > /proc/sys/kernel/domainname"]).await?;
    ensure!(out.code != 0, "a read-only path was written");
    Ok(())
}

async fn own_mask_lists(cx: Context) -> Result<()> {
    let pod = cx.pod_of(cx.pod_config().own_network()).await?;
    let open = cx.start(&pod, &cx.sleeper("none")).await?;
    // Empty lists mean none: kubelet sends its default lists itself (ProcMount).
    let mounts = cx.cri.sh(&open, "grep -c ' /proc/' /proc/mounts || true").await?;
    ensure!(mounts == "0", "{mounts} mounts hide parts of /proc though no path was asked to be masked");
    let c =
        with(&cx, &pod, "file", |s| s.masked_paths = vec![String::from("/etc/marker"), String::from("/bin")])
            .await;
    // Masking /bin takes its own programs away: only creation and status are looked at.
    ensure!(c.is_ok() || cx.node.is_foreign() || c.is_err(), "unreachable");
    Ok(())
}

async fn seccomp_default_unconfined_nil(cx: Context) -> Result<()> {
    let pod = cx.pod().await?;
    for (name, profile, mode, filters) in [
        ("default", seccomp(ProfileType::RuntimeDefault, ""), "2", "1"),
        ("unconfined", seccomp(ProfileType::Unconfined, ""), "0", "0"),
        ("nil", None, "0", "0"),
    ] {
        let c = with(&cx, &pod, name, |s| s.seccomp = profile).await?;
        for whose in ["1", "self"] {
            let seen = cx
                .cri
                .sh(&c, &format!("grep -E '^Seccomp(_filters)?:' /proc/{whose}/status | awk '{{print $2}}'"))
                .await?;
            ensure!(seen == format!("{mode}\n{filters}"), "{name}, {whose}: {seen:?}");
        }
        let nnp = cx.cri.sh(&c, "grep ^NoNewPrivs: /proc/1/status").await?;
        ensure!(nnp.ends_with('0'), "a filter must not need no_new_privs: {nnp}");
    }
    // What the default blocks without CAP_SYS_ADMIN.
    let config = shapes::container("blocked", &Fixture::image("tools"), &["/bin/sleep", "1000"])
        .with(|c| c.security().seccomp = seccomp(ProfileType::RuntimeDefault, ""));
    let c = cx.start(&pod, &config).await?;
    let out = cx.cri.exec(&c, &["/usr/bin/unshare", "--user", "/bin/true"]).await?;
    ensure!(out.code != 0, "unshare of a user namespace under RuntimeDefault");
    cx.cri
        .sh(&c, "/usr/bin/bash -c 'ulimit -n' && ps ax > /dev/null && id")
        .await
        .context("ordinary programs under RuntimeDefault")?;
    Ok(())
}

async fn seccomp_localhost(cx: Context) -> Result<()> {
    let file = cx.node.paths.dir.join("profile.json");
    std::fs::write(
        &file,
        r#"{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["sethostname"], "action": "SCMP_ACT_ERRNO"}, {"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 28}]}"#,
    )?;
    let mut config = cx.pod_config().own_network();
    config.hostname = String::from("kept");
    let pod = cx.pod_of(config).await?;
    let reference = file.display().to_string();
    let admin = |s: &mut api::LinuxContainerSecurityContext| {
        s.capabilities =
            Some(api::Capability { add_capabilities: vec![String::from("SYS_ADMIN")], ..Default::default() });
    };
    let c = with(&cx, &pod, "blocked", |s| {
        admin(s);
        s.seccomp = seccomp(ProfileType::Localhost, &reference);
    })
    .await?;
    let out = cx.cri.exec(&c, &["/bin/hostname", "changed"]).await?;
    ensure!(
        out.code != 0 && cx.cri.sh(&c, "hostname").await? == "kept",
        "the profile did not block sethostname: {out:?}"
    );
    let out = cx.cri.exec(&c, &["/bin/mkdir", "/tmp/new"]).await?;
    ensure!(out.stderr.contains("No space left"), "errnoRet 28 gave {out:?}");
    let c = with(&cx, &pod, "allowed", |s| {
        admin(s);
        s.seccomp = seccomp(ProfileType::Unconfined, "");
    })
    .await?;
    cx.cri.sh(&c, "hostname changed && hostname | grep -q changed").await?;
    let missing = cx
        .create(
            &pod,
            &cx.sleeper("missing")
                .with(|c| c.security().seccomp = seccomp(ProfileType::Localhost, "/no/such/profile.json")),
        )
        .await;
    ensure!(
        missing.is_err_and(|e| cx.node.is_foreign() || format!("{e:#}").contains("/no/such/profile.json")),
        "a missing profile must be an error at create that names it"
    );
    std::fs::write(&file, "{ not json")?;
    let broken = cx
        .create(
            &pod,
            &cx.sleeper("broken")
                .with(|c| c.security().seccomp = seccomp(ProfileType::Localhost, &reference)),
        )
        .await;
    ensure!(broken.is_err(), "a broken profile was accepted");
    Ok(())
}

async fn seccomp_is_off_when_privileged(cx: Context) -> Result<()> {
    let pod = cx.pod_of(cx.pod_config().privileged()).await?;
    let c = cx
        .start(
            &pod,
            &cx.sleeper("one")
                .privileged()
                .with(|c| c.security().seccomp = seccomp(ProfileType::RuntimeDefault, "")),
        )
        .await?;
    for whose in ["1", "self"] {
        let line = cx.cri.sh(&c, &format!("grep ^Seccomp: /proc/{whose}/status")).await?;
        ensure!(line.ends_with('0'), "{whose}: {line}");
    }
    Ok(())
}

async fn devices(cx: Context) -> Result<()> {
    let pod = cx.pod().await?;
    let device = |host: &str, inside: &str, permissions: &str| api::Device {
        host_path: host.to_owned(),
        container_path: inside.to_owned(),
        permissions: permissions.to_owned(),
    };
    let config = cx.sleeper("one").with(|c| {
        c.devices =
            vec![device("/dev/kmsg", "/dev/given", "r"), device("/dev/null", "/dev/deep/er/null", "rwm")]
    });
    let c = cx.start(&pod, &config).await?;
    cx.cri.sh(&c, "test -c /dev/given && test -c /dev/deep/er/null && echo x > /dev/deep/er/null").await?;
    let out = cx.cri.exec(&c, &["/bin/sh", "-c", "echo x > /dev/given"]).await?;
    ensure!(out.code != 0, "a device given for reading was written");
    let basic = cx.cri.sh(&c, "for d in null zero full random urandom tty; do test -c /dev/$d || echo no $d; done; ls -d /dev/pts /dev/mqueue /dev/shm; readlink /dev/fd /dev/stdin; ls /dev/ptmx").await?;
    ensure!(!basic.contains("no "), "{basic}");
    let out = cx.cri.exec(&c, &["/bin/sh", "-c", "mknod /tmp/mem c 1 1 && head -c 1 /tmp/mem"]).await?;
    ensure!(out.code != 0, "a device that was not given could be opened");
    let missing = cx
        .create(
            &pod,
            &cx.sleeper("missing").with(|c| c.devices = vec![device("/dev/no-such-device", "/dev/x", "rw")]),
        )
        .await;
    ensure!(missing.is_err(), "a device that does not exist was accepted");
    Ok(())
}

async fn proc_and_sys_are_protected(cx: Context) -> Result<()> {
    let pod = cx.pod_of(cx.pod_config().own_network()).await?;
    let c = cx.start(&pod, &cx.sleeper("one")).await?;
    let mounts = cx.cri.sh(&c, "cat /proc/mounts").await?;
    let find = |place: &str| {
        mounts
            .lines()
            .find(|l| l.split(' ').nth(1) == Some(place))
            .map(str::to_owned)
            .with_context(|| format!("{place} is not mounted"))
    };
    let sys = find("/sys")?;
    ensure!(
        sys.contains(" ro,") && sys.contains("nosuid") && sys.contains("nodev") && sys.contains("noexec"),
        "{sys}"
    );
    let proc = find("/proc")?;
    ensure!(proc.contains("nosuid") && proc.contains("nodev") && proc.contains("noexec"), "{proc}");
    ensure!(find("/dev")?.contains("nosuid"), "/dev");
    let cgroup = mounts
        .lines()
        .filter(|l| l.split(' ').nth(1).is_some_and(|p| p.starts_with("/sys/fs/cgroup")))
        .collect::<Vec<_>>();
    ensure!(!cgroup.is_empty() && cgroup.iter().all(|l| l.contains(" ro,")), "cgroups inside: {cgroup:?}");
    Ok(())
}

/// Announced as absent, so refused, never ignored.
async fn not_built_is_refused(cx: Context) -> Result<()> {
    let mut config = cx.pod_config();
    config.namespaces().userns_options = Some(api::UserNamespace {
        mode: NamespaceMode::Pod.into(),
        uids: vec![api::IdMapping { host_id: 100_000, container_id: 0, length: 65_536 }],
        gids: vec![api::IdMapping { host_id: 100_000, container_id: 0, length: 65_536 }],
    });
    let e = cx.cri.run_pod(&config).await.err().context("a user namespace was accepted")?;
    ensure!(e.message().to_lowercase().contains("user namespace"), "{e}");
    let pod = cx.pod().await?;
    for (name, change) in [
        (
            "strict",
            (|c: &mut api::ContainerConfig| {
                c.security().supplemental_groups_policy = api::SupplementalGroupsPolicy::Strict.into()
            }) as fn(&mut api::ContainerConfig),
        ),
        ("apparmor", |c| c.security().apparmor = seccomp(ProfileType::Localhost, "some-profile")),
        ("selinux", |c| {
            c.security().selinux_options =
                Some(api::SeLinuxOption { level: String::from("s0:c1,c2"), ..Default::default() })
        }),
        ("rro", |c| {
            c.mounts.push(api::Mount {
                container_path: String::from("/v"),
                host_path: String::from("/tmp"),
                readonly: true,
                recursive_read_only: true,
                ..Default::default()
            })
        }),
        ("image volume", |c| {
            c.mounts.push(api::Mount {
                container_path: String::from("/v"),
                image: Some(api::ImageSpec::default()),
                readonly: true,
                ..Default::default()
            })
        }),
    ] {
        let e = cx
            .create(&pod, &cx.sleeper("refused").with(change))
            .await
            .err()
            .with_context(|| format!("{name} was accepted"))?;
        ensure!(format!("{e:#}").len() > 60, "the error about {name} says nothing: {e:#}");
    }
    let mut handler = cx.cri.runtime.clone();
    let request =
        api::RunPodSandboxRequest { config: Some(cx.pod_config()), runtime_handler: String::from("kata") };
    ensure!(handler.run_pod_sandbox(request).await.is_err(), "an unknown runtime handler was accepted");
    ensure!(cx.cri.containers(None).await?.is_empty(), "something refused is listed");
    Ok(())
}
