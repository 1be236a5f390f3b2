//! What a container must not be able to do: seccomp, masked paths, devices, refused requests.

use anyhow::{Context as _, Result};
use cri_api::v1 as api;
use cri_api::v1::security_profile::ProfileType;

use super::security::with;
use crate::context::Context;
use crate::expect::ensure;
use crate::fixture::Fixture;
use crate::runner::{Test, test};
use crate::shapes::{self, ContainerExt as _, PodExt as _, seccomp};

pub(super) fn tests() -> Vec<Test> {
    vec![
        test!(seccomp_default_unconfined_nil),
        test!(seccomp_localhost),
        test!(seccomp_is_off_when_privileged),
        test!(devices),
        test!(proc_and_sys_are_protected),
        test!(masked_and_readonly_paths),
        test!(own_mask_lists),
        test!(masked_program_is_refused),
        test!(not_implemented_is_refused).ours(),
    ]
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
    cx.prints(&open, "cat /etc/marker; ls -A /usr | wc -l", "from the image\n2").await?;
    let masked = |s: &mut api::LinuxContainerSecurityContext| {
        s.masked_paths = vec![String::from("/etc/marker"), String::from("/usr")];
    };
    let c = with(&cx, &pod, "file", masked).await?;
    let seen = cx.cri.sh(&c, "cat /etc/marker | wc -c; ls -A /usr | wc -l").await?;
    ensure!(seen == "0\n0", "a file and a folder of the image are not masked: {seen}");
    Ok(())
}

/// A program below a mask cannot be executed. It is a file of its own: the applets of busybox are one file.
async fn masked_program_is_refused(cx: Context) -> Result<()> {
    let pod = cx.pod().await?;
    let tools = shapes::container("masked", &Fixture::image("tools"), &["/bin/sleep", "1000"]);
    let c = cx
        .start(&pod, &tools.with(|c| c.security().masked_paths = vec![String::from("/usr/bin/lsns")]))
        .await?;
    let out = cx.cri.exec(&c, &["/bin/sh", "-c", "lsns"]).await?;
    ensure!(
        out.code != 0 && out.stdout.is_empty() && out.stderr.contains("lsns: Permission denied"),
        "a masked program: {out:?}"
    );
    cx.cri.sh(&c, "/usr/bin/findmnt /proc").await.context("another program beside it").map(drop)
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
            ensure!(
                seen == format!("{mode}\n{filters}"),
                "profile {name}: mode and filters of {whose} are {seen:?} instead of {mode} and {filters}"
            );
        }
        let line = cx.cri.sh(&c, "grep ^NoNewPrivs: /proc/1/status").await?;
        ensure!(line.ends_with('0'), "profile {name} sets no_new_privs: {line}");
    }
    // Calls that the default profile blocks without CAP_SYS_ADMIN.
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
        ensure!(line.ends_with('0'), "the filter mode of {whose} in a privileged container: {line}");
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
    let basic = "for d in null zero full random urandom tty; do test -c /dev/$d || { echo no $d; exit 1; }; done; \
                 ls -d /dev/pts /dev/mqueue /dev/shm && readlink /dev/fd && readlink /dev/stdin && ls /dev/ptmx";
    cx.cri.sh(&c, basic).await.context("the entries of every /dev")?;
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
        "/sys is mounted as {sys}"
    );
    let proc = find("/proc")?;
    ensure!(
        proc.contains("nosuid") && proc.contains("nodev") && proc.contains("noexec"),
        "/proc is mounted as {proc}"
    );
    let dev = find("/dev")?;
    ensure!(dev.contains("nosuid"), "/dev is mounted as {dev}");
    let cgroup = mounts
        .lines()
        .filter(|l| l.starts_with("cgroup") && l.contains(" /sys/fs/cgroup"))
        .collect::<Vec<_>>();
    ensure!(!cgroup.is_empty() && cgroup.iter().all(|l| l.contains(" ro,")), "cgroups inside: {cgroup:?}");
    Ok(())
}

/// Features that are not implemented must be refused, never ignored.
async fn not_implemented_is_refused(cx: Context) -> Result<()> {
    let pod = cx.pod().await?;
    for (field, change) in [
        (
            "CDI_devices",
            (|c: &mut api::ContainerConfig| {
                c.cdi_devices = vec![api::CdiDevice { name: String::from("vendor/class=one") }]
            }) as fn(&mut api::ContainerConfig),
        ),
        ("unified", |c| c.resources().unified = [(String::from("memory.high"), String::from("1"))].into()),
    ] {
        // v1 has no files of that kind.
        if field == "unified" && crate::cgroup::is_v2() {
            continue;
        }
        let e = cx
            .create(&pod, &cx.sleeper("refused").with(change))
            .await
            .err()
            .with_context(|| format!("{field} was accepted"))?;
        ensure!(format!("{e:#}").contains(field), "the error does not name {field}: {e:#}");
    }
    let mut handler = cx.cri.runtime.clone();
    let request =
        api::RunPodSandboxRequest { config: Some(cx.pod_config()), runtime_handler: String::from("kata") };
    ensure!(handler.run_pod_sandbox(request).await.is_err(), "an unknown runtime handler was accepted");
    let listed = cx.cri.containers(None).await?;
    ensure!(listed.is_empty(), "a refused container is listed: {listed:?}");
    Ok(())
}
