//! Bad input: a clear error, nothing made, nothing left.

use std::fs;

use anyhow::{Context as _, Result, ensure};
use cri_api::v1 as api;
use serde_json::json;
use tar::EntryType;
use tonic::Code;

use crate::context::Context;
use crate::images::layer::{Packing, Writer};
use crate::images::{Image, Recipe};
use crate::runner::{Test, test};
use crate::shapes::{self, ContainerExt as _, PodExt as _};

pub(super) fn tests() -> Vec<Test> {
    vec![
        test!(unknown_ids),
        test!(missing_image),
        test!(bad_references),
        test!(digest_that_does_not_match).own(),
        test!(corrupt_layer).own(),
        test!(layer_with_another_diff_id).own(),
        test!(tar_that_climbs_out).own(),
        test!(tar_through_a_symlink).own(),
        test!(truncated_and_foreign_bytes).own(),
        test!(manifest_that_lies).own(),
        test!(pod_without_metadata),
        test!(container_without_metadata),
        test!(wrong_fields),
        test!(container_in_another_pods_config),
        test!(config_typos).ours(),
        test!(config_check_and_default).ours(),
        test!(garbage_on_the_socket).ours(),
    ]
}

async fn unknown_ids(cx: Context) -> Result<()> {
    let absent = "1234567890abcdef".repeat(4);
    let mut runtime = cx.cri.runtime.clone();
    for (name, code) in [
        ("PodSandboxStatus", cx.cri.pod_status(&absent).await.err()),
        ("ContainerStatus", cx.cri.container_response(&absent).await.err()),
        ("StartContainer", cx.cri.start(&absent).await.err()),
        ("ExecSync", cx.cri.exec_sync(&absent, &["true"], 1).await.err()),
        ("ReopenContainerLog", cx.cri.reopen_log(&absent).await.err()),
        ("ContainerStats", cx.cri.stats(&absent).await.err()),
    ] {
        let status = code.with_context(|| format!("{name} of an unknown id succeeded"))?;
        ensure!(status.code() == Code::NotFound || cx.node.is_foreign(), "{name}: {status}");
        ensure!(
            status.message().contains(absent.get(..12).unwrap_or_default()),
            "{name} does not name the id: {status}"
        );
    }
    let config = cx.pod_config();
    ensure!(
        cx.cri.create(&absent, &cx.sleeper("one"), &config).await.is_err(),
        "a container in an unknown pod"
    );
    for id in ["", "../../../etc", "a\0b", "\u{1f980}", &"x".repeat(100_000)] {
        ensure!(
            cx.cri.pod_status(id).await.is_err() && cx.cri.container_response(id).await.is_err(),
            "`{id}` has a status"
        );
        // Idempotent calls may say Ok or refuse, but must answer.
        drop(runtime.stop_pod_sandbox(api::StopPodSandboxRequest { pod_sandbox_id: id.to_owned() }).await);
    }
    cx.cri.version().await?;
    Ok(())
}

async fn missing_image(cx: Context) -> Result<()> {
    let e = cx.cri.pull("registry.test/no-such-image:1").await.err().context("pulled a missing image")?;
    ensure!(e.message().contains("no-such-image"), "{e}");
    let e = cx.cri.pull("registry.test/busybox:no-such-tag").await.err().context("pulled a missing tag")?;
    ensure!(e.message().contains("no-such-tag"), "{e}");
    let pod = cx.pod().await?;
    let config = shapes::container("one", "registry.test/never-pulled:1", &["true"]).like(&pod.config);
    let e =
        cx.cri.create(&pod.id, &config, &pod.config).await.err().context("a container without an image")?;
    ensure!(e.message().contains("never-pulled"), "{e}");
    ensure!(cx.cri.containers(None).await?.iter().all(|c| c.pod_sandbox_id != pod.id), "it is listed");
    Ok(())
}

async fn bad_references(cx: Context) -> Result<()> {
    for name in [
        "",
        " ",
        "UPPER/case:1",
        "registry.test/busybox:",
        "registry.test/busybox@sha256:short",
        "registry.test/../etc:1",
        "registry.test/a b",
        "http://registry.test/busybox",
        &format!("registry.test/{}:1", "a".repeat(5000)),
    ] {
        ensure!(cx.cri.pull(name).await.is_err(), "`{name}` was pulled");
    }
    ensure!(cx.cri.images().await?.iter().all(|i| !i.id.is_empty()));
    Ok(())
}

/// A pull that must fail with some words, on a node where nothing may stay.
async fn refused(cx: &Context, name: &str, expected: &[&str]) -> Result<()> {
    let files = || -> Vec<String> {
        let out = std::process::Command::new("find").arg(cx.node.paths.root.join("images")).output();
        out.map(|o| String::from_utf8_lossy(&o.stdout).lines().map(str::to_owned).collect())
            .unwrap_or_default()
    };
    let before = files();
    let e = cx.cri.pull(name).await.err().with_context(|| format!("{name} was pulled"))?;
    ensure!(
        expected.iter().any(|w| e.message().to_lowercase().contains(w)),
        "the error has none of {expected:?}: {e}"
    );
    ensure!(cx.cri.images().await?.is_empty(), "an image of a refused pull is listed");
    crate::wait::until("the store to be as before", crate::wait::secs(10), || async {
        let left: Vec<String> = files().into_iter().filter(|f| !before.contains(f)).collect();
        // Folders for a kind of content are made once.
        let left: Vec<String> =
            left.into_iter().filter(|f| std::path::Path::new(f).is_file() || f.contains("sha256")).collect();
        ensure!(left.is_empty(), "left {left:?}");
        Ok(Some(()))
    })
    .await
}

async fn push(cx: &Context, name: &str, image: &Image) -> Result<String> {
    cx.fixture.registry.push(name, "1", image).await?;
    Ok(format!("registry.test/{name}:1"))
}

fn layer_of(content: &str) -> Result<crate::images::layer::Layer> {
    let mut w = Writer::new();
    w.file("etc/unique", 0o644, content.as_bytes())?;
    w.file("big", 0o644, &vec![b'x'; 200_000])?;
    w.finish(Packing::Gzip)
}

async fn digest_that_does_not_match(cx: Context) -> Result<()> {
    let name = format!("registry.test/busybox@sha256:{}", "0".repeat(64));
    refused(&cx, &name, &["not found", "unknown", "404"]).await?;
    // The manifest's bytes change behind the registry's back.
    let image = Recipe::new(&[layer_of("manifest")?], json!({"Cmd": ["x"]})).build();
    push(&cx, "bad-manifest", &image).await?;
    let file = cx.fixture.registry.blob_file(&image.manifest.digest);
    let text = fs::read_to_string(&file)?;
    fs::write(&file, text.replace("schemaVersion\":2", "schemaVersion\": 2"))?;
    let result = refused(
        &cx,
        &format!("registry.test/bad-manifest@{}", image.manifest.digest),
        &["digest", "sha256", "mismatch", "manifest"],
    )
    .await;
    fs::write(&file, text)?;
    result
}

async fn corrupt_layer(cx: Context) -> Result<()> {
    let layer = layer_of("corrupt")?;
    let image = Recipe::new(std::slice::from_ref(&layer), json!({"Cmd": ["x"]})).build();
    let name = push(&cx, "corrupt", &image).await?;
    let file = cx.fixture.registry.blob_file(&layer.blob.digest);
    let good = fs::read(&file)?;
    let mut bad = good.clone();
    let middle = bad.len() / 2;
    if let Some(byte) = bad.get_mut(middle) {
        *byte ^= 0xff;
    }
    fs::write(&file, &bad)?;
    refused(&cx, &name, &["digest", "corrupt", "checksum", "deflate", "gzip", "inflate"]).await?;
    fs::write(&file, good.get(..good.len() / 2).unwrap_or_default())?;
    refused(&cx, &name, &["digest", "size", "short", "end", "truncat", "length"]).await?;
    fs::write(&file, &good)?;
    cx.cri.pull(&name).await.context("once the registry is mended")?;
    cx.cri.remove_image(&name).await?;
    Ok(())
}

async fn layer_with_another_diff_id(cx: Context) -> Result<()> {
    let mut layer = layer_of("diff id")?;
    layer.diff_id = format!("sha256:{}", "1".repeat(64));
    let name = push(&cx, "diff-id", &Recipe::new(&[layer], json!({"Cmd": ["x"]})).build()).await?;
    refused(&cx, &name, &["diff", "digest"]).await
}

async fn tar_that_climbs_out(cx: Context) -> Result<()> {
    for (n, (kind, entry, link)) in [
        (EntryType::Regular, "../climbed", ""),
        (EntryType::Regular, "a/../../climbed", ""),
        (EntryType::Link, "hard", "../../../../../../etc/passwd"),
        (EntryType::Link, "hard", "/etc/passwd"),
        (EntryType::Regular, "/absolute-climbed", ""),
    ]
    .into_iter()
    .enumerate()
    {
        let mut w = Writer::new();
        w.file("etc/fine", 0o644, b"x")?;
        w.raw(kind, entry, link, 0o644, (0, 0), if link.is_empty() { b"evil" } else { b"" })?;
        let repository = format!("climb-{n}");
        let name = push(
            &cx,
            &repository,
            &Recipe::new(
                &[cx.fixture.layers.busybox.clone(), w.finish(Packing::Gzip)?],
                json!({"Cmd": ["/bin/true"]}),
            )
            .build(),
        )
        .await?;
        let pulled = cx.cri.pull(&name).await;
        // An absolute name may be taken as relative to the root, as tar does; anything that climbs is refused.
        ensure!(
            pulled.is_err() || entry.starts_with('/') || link.starts_with('/'),
            "{entry} -> {link} was accepted"
        );
        ensure!(!std::path::Path::new("/absolute-climbed").exists(), "written to the host's root");
        for place in ["climbed", "images/climbed", "images/layers/climbed"] {
            ensure!(!cx.node.paths.root.join(place).exists(), "{place} appeared");
        }
        if pulled.is_ok() {
            let pod = cx.pod().await?;
            let text = cx
                .output(
                    &pod,
                    &shapes::container(
                        "look",
                        &name,
                        &["/bin/sh", "-c", "grep -c root /hard 2>/dev/null; cat /etc/passwd | wc -l"],
                    ),
                )
                .await
                .unwrap_or_default();
            ensure!(!text.contains("systemd"), "the host's /etc/passwd is in the container");
            cx.cri.drop_pod(&pod.id).await?;
            cx.cri.remove_image(&name).await?;
        }
    }
    Ok(())
}

/// A link in the layer, then a file through it: it must end up inside, or be refused.
async fn tar_through_a_symlink(cx: Context) -> Result<()> {
    let victim = cx.volume("victim")?;
    for (n, target) in
        [victim.display().to_string(), String::from("../../../../../../../../../../../../var/lib")]
            .into_iter()
            .enumerate()
    {
        let mut first = Writer::new();
        first.raw(EntryType::Symlink, "link", &target, 0o777, (0, 0), b"")?;
        first.raw(EntryType::Regular, "link/same-layer", "", 0o644, (0, 0), b"evil")?;
        let mut second = Writer::new();
        second.raw(EntryType::Regular, "link/next-layer", "", 0o644, (0, 0), b"evil")?;
        second.raw(EntryType::Regular, "link/.wh.victim", "", 0o644, (0, 0), b"")?;
        fs::write(victim.join("victim"), "keep")?;
        let layers =
            [cx.fixture.layers.busybox.clone(), first.finish(Packing::Gzip)?, second.finish(Packing::Gzip)?];
        let name =
            push(&cx, &format!("symlink-{n}"), &Recipe::new(&layers, json!({"Cmd": ["/bin/true"]})).build())
                .await?;
        let pulled = cx.cri.pull(&name).await;
        for file in ["same-layer", "next-layer"] {
            ensure!(
                !victim.join(file).exists() && !std::path::Path::new("/var/lib").join(file).exists(),
                "{file} was written through the link"
            );
        }
        ensure!(victim.join("victim").exists(), "a whiteout went through the link");
        if pulled.is_ok() {
            cx.cri.remove_image(&name).await?;
        }
    }
    Ok(())
}

async fn truncated_and_foreign_bytes(cx: Context) -> Result<()> {
    let mut w = Writer::new();
    w.file("etc/file", 0o644, &vec![b'y'; 50_000])?;
    let good = w.finish(Packing::Plain)?;
    for (name, bytes) in [
        ("not-a-tar", bytes::Bytes::from_static(&[0x42; 4096])),
        ("cut-tar", good.blob.bytes.slice(..30_000)),
        ("empty", bytes::Bytes::new()),
    ] {
        let mut layer = good.clone();
        layer.diff_id = crate::images::digest(&bytes);
        layer.blob.digest.clone_from(&layer.diff_id);
        layer.blob.bytes = bytes;
        let pushed = push(&cx, name, &Recipe::new(&[layer], json!({"Cmd": ["x"]})).build()).await;
        // An empty blob is refused by some registries already.
        let Ok(reference) = pushed else { continue };
        if name == "empty" {
            if cx.cri.pull(&reference).await.is_ok() {
                cx.cri.remove_image(&reference).await?;
            }
            continue;
        }
        refused(&cx, &reference, &["tar", "archive", "layer", "end", "header"]).await.context(name)?;
    }
    Ok(())
}

async fn manifest_that_lies(cx: Context) -> Result<()> {
    let mut image = Recipe::new(&[layer_of("sizes")?], json!({"Cmd": ["x"]})).build();
    let mut value: serde_json::Value = serde_json::from_slice(&image.manifest.bytes)?;
    if let Some(size) = value.pointer_mut("/layers/0/size") {
        *size = json!(7);
    }
    image.manifest.bytes = bytes::Bytes::from(value.to_string());
    image.manifest.digest = crate::images::digest(&image.manifest.bytes);
    if let Ok(name) = push(&cx, "lying-size", &image).await {
        refused(&cx, &name, &["size", "length", "bytes", "digest"]).await?;
    }
    let only_arm =
        Recipe { architecture: "arm64", ..Recipe::new(&[layer_of("arm")?], json!({"Cmd": ["x"]})) }.build();
    let list = crate::images::index(
        crate::images::Form::Oci,
        &[(only_arm, json!({"architecture": "arm64", "os": "linux"}))],
    );
    let name = push(&cx, "only-arm", &list).await?;
    refused(&cx, &name, &["platform", "amd64", "architecture"]).await
}

async fn pod_without_metadata(cx: Context) -> Result<()> {
    let mut runtime = cx.cri.runtime.clone();
    ensure!(
        runtime.run_pod_sandbox(api::RunPodSandboxRequest::default()).await.is_err(),
        "a pod without a configuration"
    );
    let mut config = cx.pod_config();
    config.metadata = None;
    let e = cx.cri.run_pod(&config).await.err().context("a pod without metadata")?;
    ensure!(
        cx.node.is_foreign() || (e.code() == Code::InvalidArgument && e.message().contains("metadata")),
        "{e}"
    );
    ensure!(cx.cri.pods(None).await?.is_empty() || cx.node.is_foreign(), "it is listed");
    Ok(())
}

async fn container_without_metadata(cx: Context) -> Result<()> {
    let pod = cx.pod().await?;
    let base = cx.sleeper("one").like(&pod.config);
    cx.need(&crate::fixture::Fixture::image("busybox")).await?;
    for (what, config) in [
        ("metadata", base.clone().with(|c| c.metadata = None)),
        ("image", base.clone().with(|c| c.image = None)),
    ] {
        ensure!(cx.cri.create(&pod.id, &config, &pod.config).await.is_err(), "a container without {what}");
    }
    let mut runtime = cx.cri.runtime.clone();
    let empty = api::CreateContainerRequest { pod_sandbox_id: pod.id.clone(), ..Default::default() };
    ensure!(runtime.create_container(empty).await.is_err(), "a container without a configuration");
    ensure!(cx.cri.containers(None).await?.iter().all(|c| c.pod_sandbox_id != pod.id));
    Ok(())
}

async fn wrong_fields(cx: Context) -> Result<()> {
    if cx.node.is_foreign() {
        return Ok(());
    }
    let bad_pods: Vec<(&str, api::PodSandboxConfig)> = vec![
        ("protocol", cx.pod_config().own_network().port(api::Protocol::Tcp, 80, 8080)).into_iter_with(|c| {
            if let Some(p) = c.port_mappings.first_mut() {
                p.protocol = 77;
            }
        }),
        ("port", cx.pod_config().own_network().port(api::Protocol::Tcp, 80, 70_000)),
        ("namespace", {
            let mut c = cx.pod_config();
            c.namespaces().network = 9;
            c
        }),
        ("cgroup_parent", {
            let mut c = cx.pod_config();
            c.linux.get_or_insert_default().cgroup_parent = String::from("../../escape");
            c
        }),
        ("hostname", {
            let mut c = cx.pod_config().own_network();
            c.hostname = "h".repeat(300);
            c
        }),
    ];
    for (what, config) in bad_pods {
        ensure!(cx.cri.run_pod(&config).await.is_err(), "a pod with a wrong {what} was accepted");
    }
    let pod = cx.pod().await?;
    let bad: Vec<(&str, api::ContainerConfig)> = vec![
        (
            "mount target",
            cx.sleeper("c").mount(
                std::path::Path::new("/tmp"),
                "relative/path",
                false,
                api::MountPropagation::PropagationPrivate,
            ),
        ),
        (
            "mount without a source",
            cx.sleeper("c").mount(
                std::path::Path::new(""),
                "/v",
                false,
                api::MountPropagation::PropagationPrivate,
            ),
        ),
        (
            "propagation",
            cx.sleeper("c").with(|c| {
                c.mounts.push(api::Mount {
                    container_path: String::from("/v"),
                    host_path: String::from("/tmp"),
                    propagation: 9,
                    ..Default::default()
                })
            }),
        ),
        ("log path", cx.sleeper("c").with(|c| c.log_path = String::from("../../../../tmp/escaped.log"))),
        ("stop signal", cx.sleeper("c").with(|c| c.stop_signal = 999)),
        ("environment", cx.sleeper("c").env("A=B", "x")),
        ("user", cx.sleeper("c").with(|c| c.security().run_as_user = Some(api::Int64Value { value: -5 }))),
        ("working directory", cx.sleeper("c").with(|c| c.working_dir = String::from("relative"))),
    ];
    for (what, config) in bad {
        let refused = cx.create(&pod, &config).await;
        ensure!(refused.is_err(), "a container with a wrong {what} was accepted");
    }
    ensure!(!std::path::Path::new("/tmp/escaped.log").exists());
    Ok(())
}

/// Lets a tuple's configuration be changed in place.
trait IntoIterWith {
    fn into_iter_with(self, change: impl FnOnce(&mut api::PodSandboxConfig)) -> Self;
}

impl IntoIterWith for (&'static str, api::PodSandboxConfig) {
    fn into_iter_with(mut self, change: impl FnOnce(&mut api::PodSandboxConfig)) -> Self {
        change(&mut self.1);
        self
    }
}

async fn container_in_another_pods_config(cx: Context) -> Result<()> {
    if cx.node.is_foreign() {
        return Ok(());
    }
    let shared = cx.pod_of(cx.pod_config().shared_pid()).await?;
    let mut target = cx.sleeper("target");
    let options = target.security().namespace_options.get_or_insert_default();
    options.pid = api::NamespaceMode::Target.into();
    options.target_id = "f".repeat(64);
    ensure!(cx.create_as_is(&shared, &target).await.is_err(), "TARGET of a container that does not exist");
    Ok(())
}

fn copepod(cx: &Context, args: &[&str]) -> Result<(bool, String)> {
    let out = std::process::Command::new(cx.fixture.bin.join("copepod")).args(args).output()?;
    Ok((
        out.status.success(),
        format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr)),
    ))
}

async fn config_typos(cx: Context) -> Result<()> {
    let file = cx.node.paths.dir.join("typo.toml");
    for (text, expected) in [
        ("rot = \"/x\"\n", "root"),
        ("[network]\nconf_dri = \"/x\"\n", "conf_dir"),
        ("[netwrok]\nconf_dir = \"/x\"\n", "network"),
        ("root = 5\n", "root"),
        ("[network]\ntimeout_seconds = -1\n", "timeout_seconds"),
        ("root = \"relative\"\n", "root"),
        ("root = \n", ""),
    ] {
        fs::write(&file, text)?;
        for args in [vec!["config", "check"], vec![]] {
            let path = file.display().to_string();
            let mut args: Vec<&str> = args;
            args.extend(["--config", &path]);
            let (good, said) = copepod(&cx, &args)?;
            ensure!(!good && said.contains(expected), "`{text}` with {args:?}: {said}");
        }
    }
    let absent = copepod(&cx, &["--config", "/no/such/file.toml"])?;
    ensure!(!absent.0 && absent.1.contains("/no/such/file.toml"), "{}", absent.1);
    Ok(())
}

async fn config_check_and_default(cx: Context) -> Result<()> {
    let (good, text) = copepod(&cx, &["config", "default"])?;
    ensure!(good && text.contains("root = "), "{text}");
    let file = cx.node.paths.dir.join("default.toml");
    fs::write(&file, &text)?;
    let (good, said) = copepod(&cx, &["config", "check", "--config", &file.display().to_string()])?;
    ensure!(good, "its own default is refused: {said}");
    let (good, said) =
        copepod(&cx, &["config", "check", "--config", &cx.node.paths.config.display().to_string()])?;
    ensure!(good, "{said}");
    Ok(())
}

async fn garbage_on_the_socket(cx: Context) -> Result<()> {
    use tokio::io::AsyncWriteExt as _;
    for bytes in [
        vec![0_u8; 1000],
        b"GET / HTTP/1.1\r\n\r\n".to_vec(),
        vec![0xff; 100_000],
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\xff\xff\xff\xff\xff\xff".to_vec(),
    ] {
        let mut stream = tokio::net::UnixStream::connect(&cx.node.paths.socket).await?;
        // The daemon may hang up in the middle.
        drop(stream.write_all(&bytes).await);
        drop(stream);
        cx.cri.version().await.context("after garbage")?;
    }
    Ok(())
}
