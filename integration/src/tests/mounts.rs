//! Volumes: kinds of sources, special targets, busy devices, the host's mount table.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};
use cri_api::v1::{self as api, MountPropagation};

use crate::context::{Context, Pod};
use crate::expect::{ensure, file_has};
use crate::isolation::command;
use crate::runner::{Test, test};
use crate::shapes::{ContainerExt as _, PodExt as _};
use crate::wait::{self, secs};

pub(super) const PRIVATE: MountPropagation = MountPropagation::PropagationPrivate;

pub(super) const SLAVE: MountPropagation = MountPropagation::PropagationHostToContainer;

pub(super) const SHARED: MountPropagation = MountPropagation::PropagationBidirectional;

pub(super) fn tests() -> Vec<Test> {
    vec![
        test!(bind_and_read_only),
        test!(status_has_exactly_the_mounts),
        test!(symlinked_source),
        test!(missing_source_is_made),
        test!(files_as_volumes),
        test!(nested_in_any_order),
        test!(target_cannot_escape),
        test!(dead_container_frees_the_volume),
        test!(termination_log_below_dev),
        test!(host_dev),
        test!(bpf_below_sys),
        test!(etc_hosts_and_friends),
        test!(host_table_grows_by_the_pin_alone).ours(),
        test!(cgroup_options_of_the_host_stay),
        test!(shm_of_the_pod_is_replaced_by_a_volume),
    ]
}

pub(super) fn tmpfs(place: &Path) -> Result<()> {
    fs::create_dir_all(place)?;
    command("mount", &["-t", "tmpfs", "tmpfs", &place.display().to_string()]).map(drop)
}

pub(super) fn unmount(place: &Path) -> Result<()> {
    command("umount", &[&place.display().to_string()]).map(drop)
}

pub(super) async fn volume(
    cx: &Context,
    pod: &Pod,
    name: &str,
    source: &Path,
    propagation: MountPropagation,
) -> Result<String> {
    cx.start(pod, &cx.sleeper(name).mount(source, "/v", false, propagation)).await
}

pub(super) async fn privileged(cx: &Context) -> Result<Pod> {
    cx.pod_of(cx.pod_config().privileged()).await
}

async fn bind_and_read_only(cx: Context) -> Result<()> {
    let (rw, ro) = (cx.volume("rw")?, cx.volume("ro")?);
    fs::write(ro.join("file"), "host")?;
    let pod = cx.pod().await?;
    let c = cx
        .start(
            &pod,
            &cx.sleeper("one").mount(&rw, "/rw", false, PRIVATE).mount(&ro, "/a/b/ro", true, PRIVATE),
        )
        .await?;
    cx.cri.sh(&c, "echo inside > /rw/file && cat /a/b/ro/file").await?;
    file_has(&rw.join("file"), "inside\n")?;
    let out = cx.cri.exec(&c, &["/bin/sh", "-c", "echo x > /a/b/ro/file"]).await?;
    ensure!(out.code != 0 && out.stderr.contains("Read-only"), "a write to a read-only volume gave {out:?}");
    Ok(())
}

async fn status_has_exactly_the_mounts(cx: Context) -> Result<()> {
    let (one, two) = (cx.volume("one")?, cx.volume("two")?);
    let pod = cx.pod().await?;
    let config = cx.shell("one", "true").mount(&one, "/one", true, PRIVATE).mount(&two, "/two", false, SLAVE);
    let c = cx.start(&pod, &config).await?;
    let mut status = cx.cri.wait_exit(&c, secs(10)).await?;
    // The mounts must be shown after the exit too: kubelet finds the termination message by them.
    status.mounts.sort_by(|a, b| a.container_path.cmp(&b.container_path));
    let short: Vec<_> = status
        .mounts
        .iter()
        .map(|m| (m.container_path.clone(), m.host_path.clone(), m.readonly, m.propagation))
        .collect();
    let expected = vec![
        (String::from("/one"), one.display().to_string(), true, i32::from(PRIVATE)),
        (String::from("/two"), two.display().to_string(), false, i32::from(SLAVE)),
    ];
    ensure!(short == expected, "the status has {short:?} instead of {expected:?}");
    Ok(())
}

async fn symlinked_source(cx: Context) -> Result<()> {
    let real = cx.volume("real")?;
    fs::write(real.join("file"), "real")?;
    let link = real.with_extension("link");
    std::os::unix::fs::symlink(&real, &link)?;
    let pod = cx.pod().await?;
    let c = volume(&cx, &pod, "one", &link, PRIVATE).await?;
    cx.prints(&c, "cat /v/file", "real").await?;
    Ok(())
}

async fn missing_source_is_made(cx: Context) -> Result<()> {
    let absent = cx.volume("x")?.join("made/by/runtime");
    let pod = cx.pod().await?;
    let c = volume(&cx, &pod, "one", &absent, PRIVATE).await?;
    cx.cri.sh(&c, "echo x > /v/file").await?;
    file_has(&absent.join("file"), "x\n")
}

async fn files_as_volumes(cx: Context) -> Result<()> {
    let file = cx.volume("x")?.join("file");
    fs::write(&file, "one file\n")?;
    let pod = cx.pod().await?;
    let config = cx.sleeper("one").mount(&file, "/etc/marker", false, PRIVATE).mount(
        &file,
        "/new/place/file",
        true,
        PRIVATE,
    );
    let c = cx.start(&pod, &config).await?;
    cx.prints(&c, "cat /etc/marker /new/place/file", "one file\none file").await?;
    Ok(())
}

async fn nested_in_any_order(cx: Context) -> Result<()> {
    let (outer, inner) = (cx.volume("outer")?, cx.volume("inner")?);
    fs::write(outer.join("o"), "outer")?;
    fs::write(inner.join("i"), "inner")?;
    let pod = cx.pod().await?;
    let config = cx
        .sleeper("one")
        .mount(&inner, "/data/in/ner", false, PRIVATE)
        .mount(&outer, "/data", false, PRIVATE);
    let c = cx.start(&pod, &config).await?;
    cx.prints(&c, "cat /data/o /data/in/ner/i", "outerinner").await?;
    Ok(())
}

/// Neither `..` nor a symlink in the image may lead a mount out of the root.
async fn target_cannot_escape(cx: Context) -> Result<()> {
    let v = cx.volume("v")?;
    fs::write(v.join("file"), "volume")?;
    let pod = cx.pod().await?;
    let first =
        cx.start(&pod, &cx.sleeper("one").mount(&v, "/bin/../../../../escaped", false, PRIVATE)).await;
    if let Ok(c) = first {
        cx.prints(&c, "cat /escaped/file", "volume").await?;
    }
    ensure!(!Path::new("/escaped").exists(), "/escaped was created on the host");
    let image = crate::fixture::Fixture::image("whiteouts");
    let config = crate::shapes::container("two", &image, &["/bin/sleep", "1000"]).mount(
        &v,
        "/w/absolute",
        false,
        PRIVATE,
    );
    // /w/absolute -> /etc/marker: it may be refused or resolved inside, but nothing may be created on the host.
    drop(cx.start(&pod, &config).await);
    ensure!(!Path::new("/etc/marker").exists(), "/etc/marker was created on the host");
    Ok(())
}

/// An exited container must not keep a device busy, even if it is not removed yet.
async fn dead_container_frees_the_volume(cx: Context) -> Result<()> {
    let image = cx.volume("disk")?.join("image");
    let place = cx.volume("disk")?;
    let path = image.display().to_string();
    command("truncate", &["-s", "16M", &path])?;
    command("mkfs.ext4", &["-q", &path])?;
    command("mount", &["-o", "loop", &path, &place.display().to_string()])?;
    let device = command("findmnt", &["-n", "-o", "SOURCE", &place.display().to_string()])?.trim().to_owned();
    let looked = async {
        let pod = cx.pod().await?;
        let mut ids = Vec::new();
        for (name, kind) in [("private", PRIVATE), ("slave", SLAVE)] {
            ids.push(volume(&cx, &pod, name, &place, kind).await?);
        }
        let created = cx.create(&pod, &cx.sleeper("created").mount(&place, "/v", false, PRIVATE)).await?;
        for id in &ids {
            cx.cri.stop(id, 0).await?;
        }
        cx.cri.remove(&created).await?;
        unmount(&place).context("unmount while exited containers exist")?;
        // Not busy: the loop device goes away, which it does not while any namespace holds the file system.
        wait::until("the device to be free", secs(5), || async {
            let text = command("losetup", &["-a"])?;
            Ok((!text.contains(&path)).then_some(()))
        })
        .await
        .with_context(|| format!("{device} is still in use"))
    }
    .await;
    if looked.is_err() {
        drop(unmount(&place));
        drop(command("losetup", &["-d", &device]));
    }
    looked
}

async fn termination_log_below_dev(cx: Context) -> Result<()> {
    let file = cx.volume("x")?.join("termination");
    fs::write(&file, "")?;
    let pod = cx.pod().await?;
    let s = cx
        .run(
            &pod,
            &cx.shell("one", "echo last words > /dev/termination-log; ls -l /dev/null; exit 3").mount(
                &file,
                "/dev/termination-log",
                false,
                PRIVATE,
            ),
        )
        .await?;
    ensure!(s.exit_code == 3, "it ended with {} instead of 3", s.exit_code);
    file_has(&file, "last words\n")
}

async fn host_dev(cx: Context) -> Result<()> {
    let pod = privileged(&cx).await?;
    let c = cx
        .start(&pod, &cx.sleeper("one").privileged().mount(Path::new("/dev"), "/dev", false, PRIVATE))
        .await?;
    let inside: Vec<String> = cx.cri.sh(&c, "ls /dev").await?.lines().map(str::to_owned).collect();
    for entry in fs::read_dir("/dev")?.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        ensure!(inside.contains(&name), "hostPath /dev shows {inside:?} without {name}");
    }
    cx.cri.sh(&c, "echo x > /dev/null").await?;
    Ok(())
}

async fn bpf_below_sys(cx: Context) -> Result<()> {
    if !Path::new("/sys/fs/bpf").is_dir() {
        println!("      (no /sys/fs/bpf on this kernel: not tested)");
        return Ok(());
    }
    let pod = privileged(&cx).await?;
    let c = cx
        .start(
            &pod,
            &cx.sleeper("cilium").privileged().mount(Path::new("/sys/fs/bpf"), "/sys/fs/bpf", false, SHARED),
        )
        .await?;
    let line = cx.cri.sh(&c, "grep ' /sys/fs/bpf ' /proc/mounts").await?;
    ensure!(line.contains(" bpf "), "at /sys/fs/bpf is {line}");
    cx.cri.sh(&c, "mkdir /sys/fs/bpf/copepod-test").await?;
    ensure!(Path::new("/sys/fs/bpf/copepod-test").is_dir(), "not the host's bpf file system");
    fs::remove_dir("/sys/fs/bpf/copepod-test")?;
    Ok(())
}

async fn etc_hosts_and_friends(cx: Context) -> Result<()> {
    let hosts = cx.volume("x")?.join("hosts");
    fs::write(&hosts, "127.0.0.1 localhost\n10.0.0.1 by-kubelet\n")?;
    let pod = cx.pod_of(cx.pod_config().own_network()).await?;
    let c = cx.start(&pod, &cx.sleeper("one").mount(&hosts, "/etc/hosts", false, PRIVATE)).await?;
    ensure!(cx.cri.sh(&c, "cat /etc/hosts").await?.ends_with("by-kubelet"), "kubelet's /etc/hosts must win");
    let plain = cx.start(&pod, &cx.sleeper("two")).await?;
    cx.cri.sh(&plain, "test -s /etc/resolv.conf && test -s /etc/hostname").await?;
    Ok(())
}

/// Containers' mounts never appear in the host's mount table. A pod with a network adds its netns pin, and nothing
/// else.
async fn host_table_grows_by_the_pin_alone(cx: Context) -> Result<()> {
    let lines = || fs::read_to_string("/proc/self/mountinfo").map(|t| t.lines().count());
    let v = cx.volume("v")?;
    let before = lines()?;
    let host = cx.pod().await?;
    let own = cx.pod_of(cx.pod_config().own_network()).await?;
    for pod in [&host, &own] {
        for n in 0..3 {
            cx.start(pod, &cx.sleeper(&format!("c{n}")).mount(&v, "/v", false, SLAVE)).await?;
        }
    }
    let grown = lines()?.saturating_sub(before);
    ensure!(
        grown <= 1,
        "two pods with six containers, one with a network, added {grown} mounts to the host's table"
    );
    Ok(())
}

/// A new cgroup2 mount with other options would clear the host's nsdelegate.
async fn cgroup_options_of_the_host_stay(cx: Context) -> Result<()> {
    let options = || -> Result<String> {
        let text = fs::read_to_string("/proc/self/mountinfo")?;
        Ok(text
            .lines()
            .filter(|l| l.contains(" cgroup"))
            .map(|l| l.split_once(' ').map_or(l, |x| x.1).to_owned())
            .collect::<Vec<_>>()
            .join("\n"))
    };
    let before = options()?;
    let pod = privileged(&cx).await?;
    cx.start(&pod, &cx.sleeper("privileged").privileged()).await?;
    cx.start(&pod, &cx.sleeper("plain")).await?;
    ensure!(options()? == before, "cgroup mounts changed from\n{before}\nto\n{}", options()?);
    Ok(())
}

async fn shm_of_the_pod_is_replaced_by_a_volume(cx: Context) -> Result<()> {
    let v = cx.volume("shm")?;
    fs::write(v.join("mine"), "volume")?;
    let pod = cx.pod().await?;
    let c = cx
        .start(
            &pod,
            &cx.sleeper("one").with(|c: &mut api::ContainerConfig| {
                c.mounts.push(api::Mount {
                    container_path: String::from("/dev/shm"),
                    host_path: v.display().to_string(),
                    ..Default::default()
                });
            }),
        )
        .await?;
    cx.prints(&c, "cat /dev/shm/mine", "volume").await?;
    Ok(())
}
