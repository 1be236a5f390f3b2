//! Fields of CRI that belong to no other theme: what has no meaning on Linux, what is only echoed, what selects, and times.

use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result};
use cri_api::v1::security_profile::ProfileType;
use cri_api::v1::{self as api, NamespaceMode};

use super::podstats::value;
use crate::cgroup::Limit;
use crate::context::Context;
use crate::expect::ensure;
use crate::fixture::Fixture;
use crate::runner::{Test, test};
use crate::shapes::{self, ContainerExt as _, PodExt as _, seccomp};
use crate::wait::{self, secs};
use crate::{cgroup, metrics, proc};

pub(super) fn tests() -> Vec<Test> {
    vec![
        test!(attempts_are_pods_of_their_own).ours(),
        test!(windows_parts_change_nothing).ours(),
        test!(containers_follow_the_configuration_of_the_running_pod).ours(),
        test!(verbose_information_comes_only_if_it_is_asked_for).ours(),
        test!(image_specs_are_echoed).ours(),
        test!(image_lists_are_filtered).ours(),
        test!(stats_have_times_and_attributes).ours(),
        test!(metrics_have_types_and_times).ours(),
        test!(deprecated_seccomp_paths_count).ours(),
        test!(labels_of_selinux_are_moot_without_it).ours(),
        test!(any_version_of_a_client_is_served).ours(),
    ]
}

/// kubelet makes a new sandbox of a pod while the old one is still there.
async fn attempts_are_pods_of_their_own(cx: Context) -> Result<()> {
    let (old, first, _) = cx.sleeping(cx.pod_config()).await?;
    let mut config = old.config.clone();
    config.metadata.get_or_insert_default().attempt = 1;
    let new = cx.pod_of(config.clone()).await?;
    ensure!(new.id != old.id, "the second attempt is the first one, {}", old.id);
    let second = cx.start(&new, &cx.sleeper("main")).await?;
    cx.cri.drop_pod(&old.id).await?;
    cx.exec_works(&second).await?;
    ensure!(cx.cri.container_response(&first).await.is_err(), "a container of the removed attempt is left");
    // The name of the attempt that exists is taken.
    config.hostname = String::from("another");
    let taken = cx.cri.run_pod(&config).await.err().context("two sandboxes have one name and attempt")?;
    ensure!(taken.code() == tonic::Code::AlreadyExists && taken.message().contains(&new.id), "{taken}");
    Ok(())
}

fn windows_resources() -> api::WindowsContainerResources {
    api::WindowsContainerResources {
        cpu_shares: 7,
        cpu_count: 1,
        cpu_maximum: 5,
        memory_limit_in_bytes: 4 << 20,
        rootfs_size_in_bytes: 4 << 20,
        affinity_cpus: vec![api::WindowsCpuGroupAffinity { cpu_mask: 2, cpu_group: 1 }],
    }
}

/// kubelet fills in these parts on Windows only; on Linux the other runtimes ignore them too.
async fn windows_parts_change_nothing(cx: Context) -> Result<()> {
    let (user, spec) = (String::from("ContainerUser"), String::from("{\"a\": 1}"));
    let mut config = cx.pod_config().own_network();
    let security = api::WindowsSandboxSecurityContext {
        run_as_username: user.clone(),
        credential_spec: spec.clone(),
        host_process: true,
        namespace_options: Some(api::WindowsNamespaceOption { network: NamespaceMode::Node.into() }),
    };
    config.windows = Some(api::WindowsPodSandboxConfig { security_context: Some(security) });
    let pod = cx.pod_of(config).await?;
    let container = cx.sleeper("one").with(|c| {
        c.resources().cpu_shares = 300;
        c.windows = Some(api::WindowsContainerConfig {
            resources: Some(windows_resources()),
            security_context: Some(api::WindowsContainerSecurityContext {
                run_as_username: user,
                credential_spec: spec,
                host_process: true,
            }),
        });
    });
    let id = cx.start(&pod, &container).await?;
    let host = std::fs::read_link("/proc/self/ns/net")?.display().to_string();
    let seen = cx.cri.sh(&id, "id -u; readlink /proc/self/ns/net").await?;
    ensure!(seen.starts_with("0\n") && !seen.contains(&host), "a user or the host's network: {seen}");
    let limits = || -> Result<[Option<u64>; 2]> {
        Ok([cgroup::limit(Limit::CpuShares, &id)?, cgroup::limit(Limit::Memory, &id)?])
    };
    let before = limits()?;
    ensure!(
        before[0] == Some(cgroup::shares(300)) && before[1] != Some(4 << 20),
        "shares and limit are {before:?}"
    );
    let request = api::UpdateContainerResourcesRequest {
        container_id: id.clone(),
        windows: Some(windows_resources()),
        ..Default::default()
    };
    cx.cri.update_with(request).await?;
    ensure!(limits()? == before, "an update for Windows has changed {before:?} to {:?}", limits()?);
    // Nor do replies have parts for Windows.
    let resources = cx.cri.container(&id).await?.resources.context("no resources")?;
    ensure!(resources.windows.is_none() && resources.linux.is_some(), "resources are {resources:?}");
    let stats = cx.cri.pod_stats(&pod.id).await?.context("no stats")?;
    ensure!(stats.windows.is_none() && stats.linux.is_some(), "stats are {stats:?}");
    Ok(())
}

/// CRI: CreateContainer repeats the configuration that RunPodSandbox had. kubelet makes it anew for each call, so that it
/// may differ after a restart of kubelet; the namespaces, the log folder and the cgroup are those of the pod that runs.
async fn containers_follow_the_configuration_of_the_running_pod(cx: Context) -> Result<()> {
    let pod = cx.pod_of(cx.pod_config().own_network()).await?;
    cx.need(&Fixture::image("busybox")).await?;
    let elsewhere = cx.node.paths.logs.join("elsewhere");
    let mut other = pod.config.clone();
    other.hostname = String::from("another");
    other.log_directory = elsewhere.display().to_string();
    other.linux.get_or_insert_default().cgroup_parent = shapes::below_parent("elsewhere");
    for (name, sandbox_config) in [("other", Some(other)), ("none", None)] {
        let request = api::CreateContainerRequest {
            pod_sandbox_id: pod.id.clone(),
            config: Some(cx.sleeper(name).like(&pod.config)),
            sandbox_config,
        };
        let id = cx.cri.runtime.clone().create_container(request).await?.into_inner().container_id;
        cx.cri.start(&id).await?;
        cx.prints(&id, "hostname", &pod.config.hostname).await?;
        let log = cx.cri.container(&id).await?.log_path;
        ensure!(log == format!("{}/{name}/0.log", pod.config.log_directory), "{name}: the log is {log}");
        let parent = pod.config.linux.as_ref().map(|linux| linux.cgroup_parent.clone()).unwrap_or_default();
        let leaf = cgroup::place(&id).context("no cgroup")?;
        ensure!(leaf == cgroup::leaf(&parent, &pod.id, &id), "{name}: the cgroup is {leaf}");
    }
    ensure!(!elsewhere.exists(), "{} was made", elsewhere.display());
    Ok(())
}

async fn verbose_information_comes_only_if_it_is_asked_for(cx: Context) -> Result<()> {
    let (pod, id, _) = cx.sleeping(cx.pod_config()).await?;
    let image = Some(api::ImageSpec { image: Fixture::image("busybox"), ..Default::default() });
    let (mut runtime, mut images) = (cx.cri.runtime.clone(), cx.cri.images.clone());
    for verbose in [false, true] {
        let of_pod = api::PodSandboxStatusRequest { pod_sandbox_id: pod.id.clone(), verbose };
        let of_container = api::ContainerStatusRequest { container_id: id.clone(), verbose };
        let of_image = api::ImageStatusRequest { image: image.clone(), verbose };
        let status = cx.cri.status(verbose).await?;
        let pod = runtime.pod_sandbox_status(of_pod).await?.into_inner();
        let container = runtime.container_status(of_container).await?.into_inner();
        let image = images.image_status(of_image).await?.into_inner();
        ensure!(
            status.status.is_some()
                && pod.status.is_some()
                && container.status.is_some()
                && image.image.is_some(),
            "verbose {verbose}: a status is missing"
        );
        for (call, info) in [
            ("Status", status.info),
            ("PodSandboxStatus", pod.info),
            ("ContainerStatus", container.info),
            ("ImageStatus", image.info),
        ] {
            ensure!(info.is_empty() != verbose, "{call} with verbose {verbose} has the info {info:?}");
        }
    }
    Ok(())
}

/// The image of a container as it was asked for, in status and list; and what other parts of an image's name do.
async fn image_specs_are_echoed(cx: Context) -> Result<()> {
    let pod = cx.pod().await?;
    let id = cx.cri.pull(&Fixture::image("busybox")).await?;
    // As kubelet sends it. `image_ref` is for replies; in a request it names no image.
    let asked = api::ImageSpec {
        image: id.clone(),
        annotations: [(String::from("note"), String::from("kept"))].into(),
        user_specified_image: String::from("busybox:as-written"),
        runtime_handler: String::new(),
        image_ref: String::from("registry.test/other@sha256:00"),
    };
    let container = cx.create(&pod, &cx.sleeper("one").with(|c| c.image = Some(asked.clone()))).await?;
    let status = cx.cri.container(&container).await?;
    let wanted = api::ImageSpec {
        image: asked.user_specified_image.clone(),
        image_ref: String::new(),
        ..asked.clone()
    };
    let listed = cx.cri.containers(None).await?.into_iter().find(|it| it.id == container);
    let listed = listed.context("not listed")?;
    ensure!(status.image.as_ref() == Some(&wanted), "status shows {:?}", status.image);
    ensure!(listed.image.as_ref() == Some(&wanted), "the list shows {:?}", listed.image);
    ensure!(
        (&listed.image_ref, &listed.image_id) == (&status.image_ref, &id),
        "the list shows {listed:?}, status {status:?}"
    );
    let mut images = cx.cri.images.clone();
    let of = |change: fn(&mut api::ImageSpec)| {
        let mut spec = asked.clone();
        change(&mut spec);
        Some(spec)
    };
    let pull = |image| api::PullImageRequest { image, sandbox_config: Some(pod.config.clone()), auth: None };
    let pulled = images.pull_image(pull(of(|spec| spec.image = Fixture::image("busybox")))).await?;
    ensure!(pulled.into_inner().image_ref == id, "annotations and a pod have changed the image");
    // A handler that does not exist is refused wherever it can stand.
    let kata = of(|spec| spec.runtime_handler = String::from("kata"));
    let status = api::ImageStatusRequest { image: kata.clone(), verbose: false };
    let removal = api::RemoveImageRequest { image: kata.clone() };
    let listing = api::ListImagesRequest { filter: Some(api::ImageFilter { image: kata.clone() }) };
    let refused = cx.sleeper("refused").like(&pod.config).with(|c| c.image = kata.clone());
    let created = cx.cri.create(&pod.id, &refused, &pod.config).await;
    for (call, error) in [
        ("PullImage", images.pull_image(pull(kata.clone())).await.err()),
        ("ImageStatus", images.image_status(status).await.err()),
        ("RemoveImage", images.remove_image(removal).await.err()),
        ("ListImages", images.list_images(listing).await.err()),
        ("CreateContainer", created.err()),
    ] {
        let error = error.with_context(|| format!("{call} took the handler"))?;
        ensure!(
            error.code() == tonic::Code::InvalidArgument && error.message().contains("runtime_handler"),
            "{call}: {error}"
        );
    }
    // Without a handler of its own, nothing has the name of one.
    let shown = cx.cri.pod_status(&pod.id).await?.status.context("no status")?;
    let in_list = cx.cri.pods(None).await?.into_iter().find(|it| it.id == pod.id).context("not listed")?;
    ensure!(
        shown.runtime_handler.is_empty() && in_list.runtime_handler.is_empty(),
        "the handlers are {:?} and {:?}",
        shown.runtime_handler,
        in_list.runtime_handler
    );
    Ok(())
}

async fn image_lists_are_filtered(cx: Context) -> Result<()> {
    let (one, two) = (Fixture::image("number-1"), Fixture::image("number-2"));
    let (first, second) = (cx.cri.pull(&one).await?, cx.cri.pull(&two).await?);
    let mut images = cx.cri.images.clone();
    let name = |name: &str| Some(api::ImageSpec { image: name.to_owned(), ..Default::default() });
    for (image, wanted) in [
        (name(&one), Some(vec![&first])),
        (name(&second), Some(vec![&second])),
        (name("registry.test/never-pulled:1"), Some(vec![])),
        // crictl's filter for all images.
        (name(""), None),
        (None, None),
    ] {
        let filter = Some(api::ImageFilter { image });
        let list = api::ListImagesRequest { filter: filter.clone() };
        let listed = images.list_images(list).await?.into_inner().images;
        let mut stream =
            images.stream_images(api::StreamImagesRequest { filter: filter.clone() }).await?.into_inner();
        let mut streamed = Vec::new();
        while let Some(reply) = stream.message().await? {
            streamed.extend(reply.images);
        }
        ensure!(streamed == listed, "{filter:?} lists {listed:?} and streams {streamed:?}");
        let ids: Vec<&String> = listed.iter().map(|image| &image.id).collect();
        let fits = match &wanted {
            Some(wanted) => ids == *wanted,
            None => ids.contains(&&first) && ids.contains(&&second),
        };
        ensure!(fits, "{filter:?} gives {ids:?} instead of {wanted:?}");
        for image in &listed {
            let spec = image.spec.as_ref().context("an image without a spec")?;
            ensure!(spec.image == image.id && !image.pinned, "{image:?}");
        }
    }
    cx.cri.remove_image(&one).await?;
    cx.cri.remove_image(&two).await?;
    Ok(())
}

/// Nanoseconds since the epoch.
fn now() -> Result<i64> {
    Ok(i64::try_from(SystemTime::now().duration_since(UNIX_EPOCH)?.as_nanos())?)
}

async fn stats_have_times_and_attributes(cx: Context) -> Result<()> {
    let begun = now()?;
    let pod = cx.pod_of(cx.pod_config().own_network()).await?;
    let config = cx.shell("one", "mkdir /a /a/b; echo x > /a/b/file; exec sleep 1000").with(|c| {
        c.labels.insert(String::from("k"), String::from("v"));
        c.annotations.insert(String::from("note"), String::from("kept"));
        if let Some(meta) = c.metadata.as_mut() {
            meta.attempt = 2;
        }
        c.resources().memory_limit_in_bytes = 64 << 20;
    });
    let id = cx.start(&pod, &config).await?;
    cx.start(&pod, &cx.sleeper("two")).await?;
    let stats = wait::until("the walk of the writable layer", secs(20), || async {
        let prefix = id.get(..20).unwrap_or_default().to_owned();
        let filter = api::ContainerStatsFilter { id: prefix, ..Default::default() };
        let listed = cx.cri.list_stats(Some(filter)).await?;
        let [stats] = listed.as_slice() else { anyhow::bail!("a prefix of {id} selects {listed:?}") };
        let layer = stats.writable_layer.as_ref().and_then(|layer| layer.inodes_used);
        // Two folders and a file.
        Ok(layer.is_some_and(|inodes| inodes.value >= 3).then(|| stats.clone()))
    })
    .await?;
    let linux = cx.cri.pod_stats(&pod.id).await?.and_then(|it| it.linux).context("no stats of the pod")?;
    let ended = now()?;
    let wanted = api::ContainerAttributes {
        id: id.clone(),
        metadata: config.metadata.clone(),
        labels: config.labels.clone(),
        annotations: config.annotations.clone(),
    };
    ensure!(stats.attributes.as_ref() == Some(&wanted), "attributes are {:?}", stats.attributes);
    let memory = stats.memory.context("no memory")?;
    let (available, used) =
        (value(memory.available_bytes, "available")?, value(memory.working_set_bytes, "working set")?);
    ensure!(available == (64 << 20) - used, "{available} bytes are available, and {used} used");
    for (what, time) in [
        ("cpu", stats.cpu.map(|it| it.timestamp)),
        ("memory", Some(memory.timestamp)),
        ("swap", stats.swap.map(|it| it.timestamp)),
        ("writable_layer", stats.writable_layer.map(|it| it.timestamp)),
        ("the pod's cpu", linux.cpu.map(|it| it.timestamp)),
        ("the pod's memory", linux.memory.map(|it| it.timestamp)),
        ("the pod's network", linux.network.map(|it| it.timestamp)),
        ("the pod's processes", linux.process.map(|it| it.timestamp)),
    ] {
        let time = time.with_context(|| format!("no {what}"))?;
        ensure!((begun..=ended).contains(&time), "{what} is of {time}, not from {begun} to {ended}");
    }
    Ok(())
}

async fn metrics_have_types_and_times(cx: Context) -> Result<()> {
    let begun = now()?;
    let (pod, id, _) = cx.sleeping(cx.pod_config()).await?;
    let layer = wait::until("the size of the writable layer", secs(20), || async {
        let pods = metrics::list(&cx.cri).await?;
        let of_pod =
            pods.into_iter().find(|it| it.pod_sandbox_id == pod.id).context("no metrics of the pod")?;
        let [container] = of_pod.container_metrics.as_slice() else {
            anyhow::bail!("containers: {:?}", of_pod.container_metrics)
        };
        ensure!(container.container_id == id, "metrics of the container {}", container.container_id);
        for (name, kind) in [
            ("container_cpu_usage_seconds_total", api::MetricType::Counter),
            ("container_memory_usage_bytes", api::MetricType::Gauge),
        ] {
            for metrics in [&of_pod.metrics, &container.metrics] {
                let metric =
                    metrics.iter().find(|it| it.name == name).with_context(|| format!("no {name}"))?;
                ensure!(metric.metric_type() == kind && metric.timestamp == 0, "{metric:?}");
            }
        }
        Ok(container.metrics.iter().find(|it| it.name == "container_fs_usage_bytes").cloned())
    })
    .await?;
    // It is of the last walk.
    ensure!(
        layer.metric_type() == api::MetricType::Gauge && (begun..=now()?).contains(&layer.timestamp),
        "{layer:?}, from {begun} on"
    );
    Ok(())
}

#[expect(deprecated, reason = "older clients send these fields")]
async fn deprecated_seccomp_paths_count(cx: Context) -> Result<()> {
    let mode = |pid: u32, key: &str| -> Result<String> {
        Ok(proc::status(pid)?.get(key).with_context(|| format!("no {key}"))?.trim().to_owned())
    };
    let mut config = cx.pod_config();
    config.security().seccomp_profile_path = String::from("runtime/default");
    let pod = cx.pod_of(config).await?;
    // Beside the one that pause always has.
    let filters = mode(cx.node.pause(&pod.id)?.pid, "Seccomp_filters")?;
    ensure!(filters == "2", "pause has {filters} filters");
    let file = cx.node.paths.dir.join("deprecated.json");
    std::fs::write(
        &file,
        r#"{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO"}]}"#,
    )?;
    let localhost = format!("localhost/{}", file.display());
    for (name, path, message, filters) in [
        ("default", "runtime/default", None, "1"),
        ("unconfined", "unconfined", None, "0"),
        ("file", localhost.as_str(), None, "1"),
        // The message counts if there is one.
        ("message", "runtime/default", seccomp(ProfileType::Unconfined, ""), "0"),
    ] {
        let container = cx.sleeper(name).with(|c| {
            c.security().seccomp_profile_path = path.to_owned();
            c.security().seccomp = message;
        });
        let id = cx.start(&pod, &container).await?;
        let found = mode(cx.pid(&id).await?, "Seccomp_filters")?;
        ensure!(found == filters, "{name}: init has {found} filters instead of {filters}");
        let made = cx.cri.exec(&id, &["/bin/mkdir", "/made"]).await?;
        ensure!((made.code == 0) == (name != "file"), "{name}: mkdir gave {made:?}");
    }
    Ok(())
}

/// There is no label on a host without SELinux, so requests for one replace nothing, as with containerd.
async fn labels_of_selinux_are_moot_without_it(cx: Context) -> Result<()> {
    if std::path::Path::new("/sys/fs/selinux/enforce").exists() {
        println!("      not checked: this host has SELinux");
        return Ok(());
    }
    let label = api::SeLinuxOption {
        user: String::from("system_u"),
        role: String::from("system_r"),
        r#type: String::from("spc_t"),
        level: String::from("s0:c1,c2"),
    };
    let mut config = cx.pod_config();
    config.security().selinux_options = Some(label.clone());
    let pod = cx.pod_of(config).await?;
    let wrong = api::SeLinuxOption { level: String::from("s0,c4,c5"), ..Default::default() };
    let wrong = cx.sleeper("wrong").with(|c| c.security().selinux_options = Some(wrong));
    ensure!(cx.create(&pod, &wrong).await.is_err(), "a level that is none was accepted");
    let mount = api::Mount {
        container_path: String::from("/v"),
        host_path: cx.volume("v")?.display().to_string(),
        selinux_relabel: true,
        ..Default::default()
    };
    let id = cx
        .start(
            &pod,
            &cx.sleeper("one").with(|c| {
                c.mounts.push(mount.clone());
                c.security().selinux_options = Some(label);
            }),
        )
        .await?;
    cx.cri.sh(&id, "echo x > /v/file").await?;
    let shown = cx.cri.container(&id).await?.mounts;
    ensure!(shown == [mount], "status shows {shown:?}");
    Ok(())
}

async fn any_version_of_a_client_is_served(cx: Context) -> Result<()> {
    let mut runtime = cx.cri.runtime.clone();
    for version in ["", "0.1.0", "9.9"] {
        let request = api::VersionRequest { version: version.to_owned() };
        let reply = runtime.version(request).await?.into_inner();
        ensure!(reply.version == "0.1.0", "a client of version {version:?} is told {:?}", reply.version);
    }
    Ok(())
}
