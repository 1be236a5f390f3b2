//! Invalid requests: they cause a clear error and create nothing.

use std::fs;

use anyhow::{Context as _, Result};
use cri_api::v1 as api;
use tonic::Code;

use super::start::outcome;
use crate::context::Context;
use crate::expect::ensure;
use crate::runner::{Test, test};
use crate::shapes::{ContainerExt as _, PodExt as _};

pub(super) fn tests() -> Vec<Test> {
    vec![
        test!(unknown_ids),
        test!(pod_without_metadata),
        test!(container_without_metadata),
        test!(wrong_fields).ours(),
        test!(target_container_that_does_not_exist).ours(),
        test!(config_typos).ours(),
        test!(config_check_and_default).ours(),
        test!(garbage_on_the_socket).ours(),
    ]
}

async fn unknown_ids(cx: Context) -> Result<()> {
    let absent = "1234567890abcdef".repeat(4);
    for (name, code) in [
        ("PodSandboxStatus", cx.cri.pod_status(&absent).await.err()),
        ("ContainerStatus", cx.cri.container_response(&absent).await.err()),
        ("StartContainer", cx.cri.start(&absent).await.err()),
        ("ExecSync", cx.cri.exec_sync(&absent, &["true"], 1).await.err()),
        ("ReopenContainerLog", cx.cri.reopen_log(&absent).await.err()),
        ("ContainerStats", cx.cri.stats(&absent).await.err()),
    ] {
        let status = code.with_context(|| format!("{name} of an unknown id succeeded"))?;
        ensure!(status.code() == Code::NotFound || cx.node.is_foreign(), "{name} of an unknown id: {status}");
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
        // An idempotent call may succeed or fail, but must return.
        let stopped = cx.cri.stop_pod(id).await;
        ensure!(
            stopped.as_ref().err().is_none_or(|e| e.code() != Code::DeadlineExceeded),
            "StopPodSandbox of `{id:.20}` hung: {stopped:?}"
        );
    }
    cx.cri.version().await?;
    Ok(())
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
        "a pod without metadata: {e}"
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
    let listed = cx.cri.containers(None).await?;
    ensure!(listed.iter().all(|c| c.pod_sandbox_id != pod.id), "a refused container is listed: {listed:?}");
    Ok(())
}

async fn wrong_fields(cx: Context) -> Result<()> {
    let bad_pods: Vec<(&str, api::PodSandboxConfig)> = vec![
        ("protocol", {
            let mut c = cx.pod_config().own_network().port(api::Protocol::Tcp, 80, 8080);
            c.port_mappings.first_mut().context("no port")?.protocol = 77;
            c
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
    ensure!(
        !std::path::Path::new("/tmp/escaped.log").exists(),
        "a log was created outside of the pod's folder"
    );
    Ok(())
}

async fn target_container_that_does_not_exist(cx: Context) -> Result<()> {
    let shared = cx.pod_of(cx.pod_config().shared_pid()).await?;
    let mut target = cx.sleeper("target");
    let options = target.security().namespace_options.get_or_insert_default();
    options.pid = api::NamespaceMode::Target.into();
    options.target_id = "f".repeat(64);
    ensure!(cx.create_as_is(&shared, &target).await.is_err(), "TARGET of a container that does not exist");
    Ok(())
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
            let (good, said) = outcome(&cx, &args).await?;
            ensure!(
                !good && said.contains(expected),
                "`{text}` with {args:?} succeeded: {good}, and `{expected}` is not in: {said}"
            );
        }
    }
    let (good, said) = outcome(&cx, &["--config", "/no/such/file.toml"]).await?;
    ensure!(
        !good && said.contains("/no/such/file.toml"),
        "with a missing file it succeeded: {good}, and said: {said}"
    );
    Ok(())
}

async fn config_check_and_default(cx: Context) -> Result<()> {
    let (good, text) = outcome(&cx, &["config", "default"]).await?;
    ensure!(good && text.contains("root = "), "`config default` succeeded: {good}, and wrote: {text}");
    let file = cx.node.paths.dir.join("default.toml");
    fs::write(&file, &text)?;
    let (good, said) = outcome(&cx, &["config", "check", "--config", &file.display().to_string()]).await?;
    ensure!(good, "its own default is refused: {said}");
    let running = cx.node.paths.config.display().to_string();
    let (good, said) = outcome(&cx, &["config", "check", "--config", &running]).await?;
    ensure!(good, "the configuration of the running daemon is refused: {said}");
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
        // The daemon may close the connection before everything is sent.
        drop(stream.write_all(&bytes).await);
        drop(stream);
        cx.cri.version().await.context("after garbage")?;
    }
    Ok(())
}
