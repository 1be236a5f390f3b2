//! Assembly of the root file system: symlinks of the image on the paths of mounts, files below /etc, image volumes,
//! devices, users, and the effects that volumes may have on /proc, /dev and the host.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use cri_api::v1 as api;
use serde_json::json;
use tar::EntryType;

use super::escape::{as_kubelet, image_with, listing, sleeper};
use super::mounts::{PRIVATE, SHARED, privileged};
use crate::context::Context;
use crate::runner::{Test, test};
use crate::shapes::{self, ContainerExt as _, PodExt as _};

pub(super) fn tests() -> Vec<Test> {
    vec![
        test!(dangling_resolv_conf),
        test!(dangling_link_under_a_file),
        test!(dangling_link_on_the_way_of_a_volume),
        test!(dangling_link_under_a_volume),
        test!(dangling_working_directory),
        test!(links_that_turn_in_circles),
        test!(files_below_etc_on_a_volume),
        test!(files_below_etc_stay_off_the_host),
        test!(link_onto_a_bidirectional_volume),
        test!(two_bidirectional_volumes_on_one_place),
        test!(masks_stay_off_bidirectional_volumes),
        test!(image_volume_is_not_made_on_a_volume),
        test!(image_volume_is_writable_below_a_read_only_root),
        test!(image_volume_on_the_root_changes_nothing),
        test!(users_are_the_images),
        test!(device_in_place_of_passwd),
        test!(own_folders_are_no_files),
        test!(mask_that_leads_to_the_root),
        test!(read_only_path_that_leads_to_the_root),
        test!(masks_lie_where_links_lead),
        test!(volume_on_dev_null),
        test!(volume_on_dev),
        test!(volume_on_proc),
        test!(device_that_is_there_already),
        test!(device_name_that_is_something_else),
        test!(magic_links_lead_nowhere),
        test!(dev_is_executable),
        test!(exec_sees_the_same_root),
        test!(console_of_a_volume_is_no_device),
    ]
}

async fn dangling_resolv_conf(cx: Context) -> Result<()> {
    let target = "../run/systemd/resolve/stub-resolv.conf";
    let image = image_with(&cx, json!({}), |w| w.symlink("etc/resolv.conf", target)).await?;
    let pod = cx.pod_of(cx.pod_config().own_network()).await?;
    let c = cx.start(&pod, &sleeper("one", &image)).await?;
    cx.cri.sh(&c, "test -s /etc/resolv.conf && test -s /run/systemd/resolve/stub-resolv.conf").await?;
    Ok(())
}

async fn dangling_link_under_a_file(cx: Context) -> Result<()> {
    let file = cx.volume("x")?.join("localtime");
    fs::write(&file, "zone")?;
    let image =
        image_with(&cx, json!({}), |w| w.symlink("etc/localtime", "/usr/share/zoneinfo/Etc/UTC")).await?;
    let pod = cx.pod().await?;
    let c = cx.start(&pod, &sleeper("one", &image).mount(&file, "/etc/localtime", true, PRIVATE)).await?;
    ensure!(cx.cri.sh(&c, "cat /etc/localtime /usr/share/zoneinfo/Etc/UTC").await? == "zonezone");
    ensure!(
        !Path::new("/usr/share/zoneinfo/Etc/UTC").exists()
            || fs::read("/usr/share/zoneinfo/Etc/UTC")? != b"zone"
    );
    Ok(())
}

/// The mount point of the service account, in an image whose /var/run is a symlink to a missing folder.
async fn dangling_link_on_the_way_of_a_volume(cx: Context) -> Result<()> {
    let volume = cx.volume("token")?;
    fs::write(volume.join("token"), "secret")?;
    let image = image_with(&cx, json!({}), |w| w.symlink("var/run", "/absent/run")).await?;
    let pod = cx.pod().await?;
    let place = "/var/run/secrets/kubernetes.io/serviceaccount";
    let c = cx.start(&pod, &sleeper("one", &image).mount(&volume, place, true, PRIVATE)).await?;
    ensure!(cx.cri.sh(&c, &format!("cat {place}/token")).await? == "secret");
    ensure!(!Path::new("/absent").exists(), "made on the host");
    Ok(())
}

async fn dangling_link_under_a_volume(cx: Context) -> Result<()> {
    let volume = cx.volume("v")?;
    fs::write(volume.join("file"), "volume")?;
    let image = image_with(&cx, json!({}), |w| {
        w.symlink("jump", "/tmp/foo/bar")?;
        w.symlink("chain", "usr/../../../one/./two")?;
        w.symlink("one", "jump2")
    })
    .await?;
    let pod = cx.pod().await?;
    let config = sleeper("one", &image).mount(&volume, "/jump", false, PRIVATE).mount(
        &volume,
        "/chain/three",
        false,
        PRIVATE,
    );
    let c = cx.start(&pod, &config).await?;
    let text = cx.cri.sh(&c, "cat /tmp/foo/bar/file /jump2/two/three/file; readlink /jump").await?;
    ensure!(text == "volumevolume/tmp/foo/bar", "{text}");
    Ok(())
}

async fn dangling_working_directory(cx: Context) -> Result<()> {
    let image =
        image_with(&cx, json!({"WorkingDir": "/work/sub"}), |w| w.symlink("work", "srv/not/there")).await?;
    let pod = cx.pod().await?;
    let config = shapes::container("one", &image, &["/bin/sh", "-c", "pwd -P; stat -c %a /srv/not"]);
    let text = cx.output(&pod, &config).await?;
    ensure!(text == "/srv/not/there/sub\n755\n", "{text}");
    Ok(())
}

async fn links_that_turn_in_circles(cx: Context) -> Result<()> {
    let volume = cx.volume("v")?;
    let image = image_with(&cx, json!({}), |w| {
        w.symlink("a", "b/x")?;
        w.symlink("b", "a/y")?;
        w.symlink("self", "self")
    })
    .await?;
    let pod = cx.pod().await?;
    for place in ["/a/volume", "/self", "/self/volume"] {
        let made = cx.create(&pod, &sleeper("one", &image).mount(&volume, place, false, PRIVATE)).await;
        let error = format!("{:#}", made.err().context("a mount behind a circle of links")?);
        ensure!(error.contains(place), "{error}");
    }
    Ok(())
}

async fn files_below_etc_on_a_volume(cx: Context) -> Result<()> {
    let (etc, hosts) = (cx.volume("etc")?, cx.volume("x")?.join("hosts"));
    fs::write(etc.join("own"), "own")?;
    fs::write(etc.join("resolv.conf"), "the volume's\n")?;
    fs::write(&hosts, "127.0.0.1 kubelets\n")?;
    let pod = cx.pod_of(cx.pod_config().own_network()).await?;
    let config =
        cx.sleeper("one").mount(&etc, "/etc", false, PRIVATE).mount(&hosts, "/etc/hosts", false, PRIVATE);
    let c = cx.start(&pod, &config).await?;
    let text = cx
        .cri
        .sh(&c, "cat /etc/own /etc/hosts; test -s /etc/hostname; ! grep volume /etc/resolv.conf")
        .await?;
    ensure!(text == "own127.0.0.1 kubelets", "{text}");
    ensure!(fs::read_to_string(etc.join("resolv.conf"))? == "the volume's\n");
    // A volume at exactly that path replaces our file.
    let own = cx.volume("x")?.join("resolv");
    fs::write(&own, "nameserver 192.0.2.53\n")?;
    let c = cx.start(&pod, &cx.sleeper("two").mount(&own, "/etc/resolv.conf", false, PRIVATE)).await?;
    ensure!(cx.cri.sh(&c, "cat /etc/resolv.conf").await? == "nameserver 192.0.2.53");
    Ok(())
}

/// A mount point in the host's mount table at or below a folder.
fn mounted_below(folder: &Path) -> Result<Vec<String>> {
    let below = folder.display().to_string();
    let table = fs::read_to_string("/proc/self/mountinfo")?;
    Ok(table
        .lines()
        .filter(|l| l.split(' ').nth(4).is_some_and(|p| p.starts_with(&below)))
        .map(str::to_owned)
        .collect())
}

/// A folder that is a separate mount, so that mounts on it are visible.
fn mount_of_its_own(cx: &Context) -> Result<std::path::PathBuf> {
    let place = cx.volume("bidirectional")?;
    super::mounts::tmpfs(&place)?;
    Ok(place)
}

async fn files_below_etc_stay_off_the_host(cx: Context) -> Result<()> {
    let place = mount_of_its_own(&cx)?;
    let looked = async {
        for name in ["resolv.conf", "hostname", "hosts"] {
            fs::write(place.join(name), "the host's")?;
        }
        let image = image_with(&cx, json!({}), |w| w.symlink("etc", "/shared")).await?;
        let pod = privileged(&cx).await?;
        for (name, at) in [("direct", "/etc"), ("by-link", "/shared")] {
            let image =
                if name == "direct" { crate::fixture::Fixture::image("busybox") } else { image.clone() };
            let config = sleeper(name, &image).privileged().mount(&place, at, false, SHARED);
            let c = cx.start(&pod, &config).await?;
            let mounts = mounted_below(&place)?;
            ensure!(mounts.len() == 1, "mounted on the host: {mounts:#?}");
            let text = cx.cri.sh(&c, &format!("cat {at}/resolv.conf")).await?;
            ensure!(text == "the host's", "{text}");
        }
        ensure!(fs::read_to_string(place.join("hosts"))? == "the host's");
        Ok(())
    }
    .await;
    super::mounts::unmount(&place)?;
    looked
}

/// A symlink of the image leads a volume onto another, Bidirectional one.
async fn link_onto_a_bidirectional_volume(cx: Context) -> Result<()> {
    let place = mount_of_its_own(&cx)?;
    let looked = async {
        fs::create_dir(place.join("x"))?;
        let inner = cx.volume("inner")?;
        let image = image_with(&cx, json!({}), |w| w.symlink("b", "/shared")).await?;
        let pod = privileged(&cx).await?;
        let config = sleeper("one", &image)
            .privileged()
            .mount(&place, "/shared", false, SHARED)
            .mount(&inner, "/b/x", false, PRIVATE)
            .mount(&inner, "/dev/y", false, PRIVATE);
        let made = cx.start(&pod, &config).await;
        let mounts = mounted_below(&place)?;
        ensure!(mounts.len() == 1, "mounted on the host: {mounts:#?}");
        let c = made?;
        // It is still a shared mount.
        cx.cri.sh(&c, "mkdir /shared/in && mount -t tmpfs none /shared/in").await?;
        ensure!(mounted_below(&place)?.len() == 2, "a mount of the container's does not reach the host");
        cx.cri.sh(&c, "umount /shared/in").await?;
        Ok(())
    }
    .await;
    super::mounts::unmount(&place)?;
    looked
}

async fn two_bidirectional_volumes_on_one_place(cx: Context) -> Result<()> {
    let (one, two) = (mount_of_its_own(&cx)?, mount_of_its_own(&cx)?);
    let looked = async {
        let image = image_with(&cx, json!({}), |w| {
            w.dir("shared", 0o755)?;
            w.symlink("b", "/shared")
        })
        .await?;
        let pod = privileged(&cx).await?;
        let config = sleeper("one", &image)
            .privileged()
            .mount(&one, "/shared", false, SHARED)
            .mount(&two, "/b", false, SHARED);
        let made = cx.start(&pod, &config).await;
        for place in [&one, &two] {
            let mounts = mounted_below(place)?;
            ensure!(mounts.len() == 1, "mounted on the host: {mounts:#?}");
        }
        ensure!(made.is_err(), "two Bidirectional volumes lie on one another");
        Ok(())
    }
    .await;
    super::mounts::unmount(&one)?;
    super::mounts::unmount(&two)?;
    looked
}

/// A mask or read-only mount on such a volume would remain on the host after the container.
async fn masks_stay_off_bidirectional_volumes(cx: Context) -> Result<()> {
    let place = mount_of_its_own(&cx)?;
    let looked = async {
        fs::create_dir(place.join("folder"))?;
        fs::write(place.join("file"), "the host's")?;
        let pod = privileged(&cx).await?;
        for (masked, readonly) in
            [("/shared/folder", "/absent"), ("/shared/file", "/absent"), ("/absent", "/shared")]
        {
            let config = as_kubelet(cx.sleeper("one")).mount(&place, "/shared", false, SHARED).with(|c| {
                c.security().masked_paths.push(masked.to_owned());
                c.security().readonly_paths.push(readonly.to_owned());
            });
            let made = cx.start(&pod, &config).await;
            let mounts = mounted_below(&place)?;
            ensure!(mounts.len() == 1, "mounted on the host: {mounts:#?}");
            let error = format!("{:#}", made.err().context("a path of the host's was to be hidden")?);
            ensure!(error.contains("Bidirectional"), "{error}");
        }
        // Masks at other paths are in effect.
        let config = as_kubelet(cx.sleeper("two")).mount(&place, "/shared", false, SHARED).with(|c| {
            c.security().readonly_paths.extend(["/proc", "/sys"].map(str::to_owned));
        });
        let c = cx.start(&pod, &config).await?;
        let text = cx.cri.sh(&c, "cat /shared/file /proc/keys; ls /sys/firmware | wc -l").await?;
        ensure!(text == "the host's0", "{text}");
        Ok(())
    }
    .await;
    super::mounts::unmount(&place)?;
    looked
}

async fn image_volume_is_not_made_on_a_volume(cx: Context) -> Result<()> {
    let volume = cx.volume("v")?;
    let image = image_with(&cx, json!({"Volumes": {"/v/declared": {}, "/link/deep": {}}}), |w| {
        w.symlink("link", "/v")
    })
    .await?;
    let pod = cx.pod().await?;
    let c = cx.start(&pod, &sleeper("one", &image).mount(&volume, "/v", false, PRIVATE)).await?;
    ensure!(listing(&volume)?.is_empty(), "{:?}", listing(&volume)?);
    cx.cri.stop(&c, 0).await?;
    Ok(())
}

async fn image_volume_is_writable_below_a_read_only_root(cx: Context) -> Result<()> {
    let image = image_with(&cx, json!({"Volumes": {"/data": {}, "/var/lib/new": {}, "/v": {}}}), |w| {
        w.file("data/from-image", 0o644, b"image\n")
    })
    .await?;
    let volume = cx.volume("v")?;
    let pod = cx.pod().await?;
    let config = sleeper("one", &image)
        .mount(&volume, "/v", true, PRIVATE)
        .with(|c| c.security().readonly_rootfs = true);
    let c = cx.start(&pod, &config).await?;
    let text = cx.cri.sh(&c, "cat /data/from-image; echo x > /data/from-image; echo y > /var/lib/new/file; cat /data/from-image").await?;
    ensure!(text == "image\nx", "{text}");
    for place in ["/file", "/var/lib/file", "/v/file"] {
        let out = cx.cri.exec(&c, &["/bin/sh", "-c", &format!("echo x > {place}")]).await?;
        ensure!(out.code != 0 && out.stderr.contains("Read-only"), "{place}: {out:?}");
    }
    // Another container starts with the image's content.
    let config = sleeper("two", &image).with(|c| c.security().readonly_rootfs = true);
    let c = cx.start(&pod, &config).await?;
    ensure!(cx.cri.sh(&c, "cat /data/from-image").await? == "image");
    Ok(())
}

async fn image_volume_on_the_root_changes_nothing(cx: Context) -> Result<()> {
    let image =
        image_with(&cx, json!({"Volumes": {"/": {}, "/slash": {}, "/..": {}}}), |w| w.symlink("slash", "/"))
            .await?;
    let pod = cx.pod().await?;
    let config = sleeper("one", &image).with(|c| c.security().readonly_rootfs = true);
    let c = cx.start(&pod, &config).await?;
    let out = cx.cri.exec(&c, &["/bin/sh", "-c", "echo x > /file"]).await?;
    ensure!(out.code != 0 && out.stderr.contains("Read-only"), "{out:?}");
    Ok(())
}

/// As with containerd, a volume on /etc/passwd changes what programs see, but not the container's user.
async fn users_are_the_images(cx: Context) -> Result<()> {
    let passwd = cx.volume("x")?.join("passwd");
    fs::write(&passwd, "root:x:0:0::/:/bin/sh\nalice:x:0:0::/:/bin/sh\nghost:x:7:7::/:/bin/sh\n")?;
    let pod = cx.pod().await?;
    let named = |name: &str, user: &str| {
        cx.sleeper(name)
            .mount(&passwd, "/etc/passwd", true, PRIVATE)
            .with(|c| user.clone_into(&mut c.security().run_as_username))
    };
    let c = cx.start(&pod, &named("one", "alice")).await?;
    ensure!(cx.cri.sh(&c, "id -u; grep -c ghost /etc/passwd").await? == "1000\n1", "the volume's alice");
    let error = cx.create(&pod, &named("two", "ghost")).await.err().context("a user that the image lacks")?;
    ensure!(format!("{error:#}").contains("ghost"), "{error:#}");
    ensure!(
        fs::read_dir(passwd.parent().context("folder")?)?.count() == 1,
        "the volume's folder was emptied"
    );
    Ok(())
}

/// Opening a device may have an effect (a watchdog reboots the node), so it is examined but never opened.
async fn device_in_place_of_passwd(cx: Context) -> Result<()> {
    let pod = cx.pod().await?;
    for (kind, name) in
        [(EntryType::Char, "etc/passwd"), (EntryType::Block, "etc/group"), (EntryType::Fifo, "etc/passwd")]
    {
        let image = image_with(&cx, json!({}), |w| w.raw(kind, name, "", 0o666, (0, 0), b"")).await?;
        let error = cx.create(&pod, &sleeper("one", &image)).await.err().context("a device was read")?;
        let error = format!("{error:#}");
        ensure!(error.contains(&format!("/{name}: not a plain file")), "{error}");
    }
    Ok(())
}

async fn own_folders_are_no_files(cx: Context) -> Result<()> {
    let pod = cx.pod().await?;
    for folder in ["proc", "sys", "dev"] {
        let image = image_with(&cx, json!({}), |w| w.file(folder, 0o644, b"file")).await?;
        let error = cx.create(&pod, &sleeper("one", &image)).await.err().context("a file was mounted on")?;
        ensure!(format!("{error:#}").contains(&format!("/{folder}")), "{error:#}");
    }
    Ok(())
}

async fn mask_that_leads_to_the_root(cx: Context) -> Result<()> {
    let image = image_with(&cx, json!({}), |w| w.symlink("m", "bin/..")).await?;
    let pod = cx.pod().await?;
    let config = sleeper("one", &image).with(|c| c.security().masked_paths = vec![String::from("/m")]);
    let error = cx.create(&pod, &config).await.err().context("the root was masked")?;
    ensure!(format!("{error:#}").contains("/m"), "{error:#}");
    Ok(())
}

async fn read_only_path_that_leads_to_the_root(cx: Context) -> Result<()> {
    let image = image_with(&cx, json!({}), |w| w.symlink("r", "/")).await?;
    let pod = cx.pod().await?;
    let config = sleeper("one", &image).with(|c| c.security().readonly_paths = vec![String::from("/r")]);
    let error = cx.create(&pod, &config).await.err().context("the root was mounted over")?;
    ensure!(format!("{error:#}").contains("/r"), "{error:#}");
    Ok(())
}

/// Below /proc and /sys the kernel's own symlinks are followed, and nothing else can redirect a mask.
async fn masks_lie_where_links_lead(cx: Context) -> Result<()> {
    let volume = cx.volume("v")?;
    fs::write(volume.join("secret"), "secret")?;
    symlink("/etc/marker", volume.join("link"))?;
    let pod = cx.pod().await?;
    let config = as_kubelet(cx.sleeper("one")).mount(&volume, "/v", false, PRIVATE).with(|c| {
        let more = [
            "/sys/class/net/lo/address",
            "/v/secret",
            "/v/link",
            "/proc/absent/x",
            "/proc/version/x",
            "/bin/ls/x",
        ];
        c.security().masked_paths.extend(more.map(str::to_owned));
    });
    let c = cx.start(&pod, &config).await?;
    let text = cx.cri.sh(&c, "cat /sys/devices/virtual/net/lo/address /v/secret /v/link /etc/marker /proc/keys; ls /sys/firmware; cat /proc/version | wc -l").await?;
    ensure!(text == "1", "{text}");
    ensure!(fs::read_to_string(volume.join("secret"))? == "secret");
    Ok(())
}

async fn volume_on_dev_null(cx: Context) -> Result<()> {
    let file = cx.volume("x")?.join("log");
    fs::write(&file, "")?;
    let pod = cx.pod().await?;
    let config =
        as_kubelet(cx.shell("one", "echo last > /dev/null; cat /proc/keys | wc -c; ls /proc/acpi | wc -l"))
            .mount(&file, "/dev/null", false, PRIVATE);
    let text = cx.output(&pod, &config).await?;
    ensure!(text == "0\n0\n", "{text}");
    ensure!(fs::read_to_string(&file)? == "last\n");
    Ok(())
}

async fn volume_on_dev(cx: Context) -> Result<()> {
    let dev = cx.volume("dev")?;
    fs::write(dev.join("null"), "a file")?;
    let pod = cx.pod().await?;
    let config =
        as_kubelet(cx.shell("one", "ls /dev; cat /proc/keys | wc -c")).mount(&dev, "/dev", false, PRIVATE);
    let text = cx.output(&pod, &config).await?;
    ensure!(text == "null\n0\n", "{text}");
    ensure!(fs::read_to_string(dev.join("null"))? == "a file", "it was taken for the null device");
    Ok(())
}

async fn volume_on_proc(cx: Context) -> Result<()> {
    let folder = cx.volume("proc")?;
    let file = folder.join("file");
    fs::write(&file, "lxcfs")?;
    let pod = cx.pod().await?;
    for place in ["/proc", "/proc/1", "/proc/self", "/proc/self/attr", "/proc/thread-self/attr"] {
        let made =
            cx.create(&pod, &as_kubelet(cx.sleeper("one").mount(&folder, place, false, PRIVATE))).await;
        let error = format!("{:#}", made.err().with_context(|| format!("a volume at {place}"))?);
        ensure!(error.contains(place), "{error}");
    }
    let config = cx
        .sleeper("two")
        .mount(&file, "/proc/meminfo", true, PRIVATE)
        .mount(&folder, "/proc/fs", true, PRIVATE);
    let c = cx.start(&pod, &as_kubelet(config)).await?;
    ensure!(cx.cri.sh(&c, "cat /proc/meminfo /proc/fs/file").await? == "lxcfslxcfs");
    Ok(())
}

fn null_at(path: &str) -> api::Device {
    api::Device {
        host_path: String::from("/dev/null"),
        container_path: path.to_owned(),
        permissions: String::from("rwm"),
    }
}

async fn device_that_is_there_already(cx: Context) -> Result<()> {
    let volume = cx.volume("v")?;
    let pod = cx.pod().await?;
    for name in ["one", "two"] {
        let config = cx
            .sleeper(name)
            .mount(&volume, "/v", false, PRIVATE)
            .with(|c| c.devices = vec![null_at("/v/null"), null_at("/dev/null"), null_at("/dev/deep/null")]);
        let c = cx.start(&pod, &config).await?;
        cx.cri.sh(&c, "test -c /v/null && test -c /dev/deep/null && echo x > /v/null").await?;
    }
    Ok(())
}

async fn device_name_that_is_something_else(cx: Context) -> Result<()> {
    let volume = cx.volume("v")?;
    let outside = cx.volume("outside")?.join("file");
    fs::write(&outside, "the host's")?;
    symlink(&outside, volume.join("link"))?;
    fs::write(volume.join("file"), "a file")?;
    let pod = cx.pod().await?;
    let before = listing(&volume)?;
    for place in ["/v/link", "/v/file"] {
        let config =
            cx.sleeper("one").mount(&volume, "/v", false, PRIVATE).with(|c| c.devices = vec![null_at(place)]);
        let error =
            cx.create(&pod, &config).await.err().context("something else was taken for the device")?;
        ensure!(format!("{error:#}").contains(place), "{error:#}");
    }
    ensure!(listing(&volume)? == before && fs::read_to_string(&outside)? == "the host's");
    Ok(())
}

async fn magic_links_lead_nowhere(cx: Context) -> Result<()> {
    let volume = cx.volume("v")?;
    let pod = cx.pod().await?;
    for place in ["/dev/fd/0", "/dev/stdin", "/proc/1/cwd/tmp", "/dev/fd/3/x"] {
        let made = cx.create(&pod, &cx.sleeper("one").mount(&volume, place, false, PRIVATE)).await;
        ensure!(made.is_err(), "a volume at {place}");
    }
    let image = image_with(&cx, json!({}), |w| w.symlink("p", "/proc/1/root")).await?;
    // While volumes are attached, /proc is not mounted yet: the paths are folders of the image.
    let c = cx.start(&pod, &sleeper("two", &image).mount(&volume, "/p/volume", false, PRIVATE)).await?;
    cx.cri.sh(&c, "test ! -e /volume").await?;
    ensure!(!Path::new("/volume").exists(), "made on the host");
    Ok(())
}

async fn dev_is_executable(cx: Context) -> Result<()> {
    let pod = cx.pod_of(cx.pod_config().own_network()).await?;
    let c = cx.start(&pod, &cx.sleeper("one")).await?;
    let script =
        "cp /bin/busybox /dev/box && /dev/box true; grep -E ' (/dev|/etc/[a-z.]*|/dev/shm) ' /proc/mounts";
    let text = cx.cri.sh(&c, script).await?;
    for line in text.lines() {
        let flags: Vec<&str> = line.split(' ').nth(3).unwrap_or_default().split(',').collect();
        ensure!(flags.contains(&"nosuid"), "{line}");
        ensure!(line.contains("/dev/shm") == flags.contains(&"noexec"), "{line}");
    }
    ensure!(text.lines().count() >= 4, "{text}");
    Ok(())
}

async fn exec_sees_the_same_root(cx: Context) -> Result<()> {
    let pod = cx.pod().await?;
    let c = cx.start(&pod, &as_kubelet(cx.sleeper("one"))).await?;
    ensure!(
        cx.cri.sh(&c, "ls -a /").await? == cx.cri.sh(&c, "ls -a /..").await?,
        "there is something above /"
    );
    let text = cx
        .cri
        .sh(
            &c,
            "readlink /proc/self/root; stat -c '%d %i' / /proc/1/root/ | uniq | wc -l; \
             cut -d' ' -f5 /proc/self/mountinfo | grep -cx /; grep -c ' / / .* - overlay' /proc/self/mountinfo",
        )
        .await?;
    ensure!(text == "/\n1\n1\n1", "{text}");
    Ok(())
}

/// A terminal comes only from devpts: another device of that name would be opened as root.
async fn console_of_a_volume_is_no_device(cx: Context) -> Result<()> {
    let dev = cx.volume("dev")?;
    fs::create_dir(dev.join("pts"))?;
    nix::unistd::mkfifo(&dev.join("pts/ptmx"), nix::sys::stat::Mode::S_IRWXU)?;
    let pod = cx.pod().await?;
    let config = cx.sleeper("one").mount(&dev, "/dev", false, PRIVATE).terminal();
    let error = cx.create(&pod, &config).await.err().context("a FIFO was taken for a terminal")?;
    ensure!(format!("{error:#}").contains("devpts"), "{error:#}");
    Ok(())
}
