//! Users with thousands of groups or a long home, tiny memory limits, a full table of containers.

use std::fs;

use anyhow::{Context as _, Result};
use serde_json::json;
use tonic::Code;

use crate::context::Context;
use crate::expect::ensure;
use crate::images::Recipe;
use crate::images::layer::{Packing, Writer};
use crate::runner::{Test, test};
use crate::shapes::{self, ContainerExt as _};

pub(super) fn tests() -> Vec<Test> {
    vec![
        test!(thousands_of_groups),
        test!(too_many_groups_are_refused),
        test!(long_home),
        test!(tiny_memory_limits_are_reported),
        test!(full_table_is_reported_and_recovers).limit(240),
    ]
}

/// busybox with a user `many` that has this many groups and this home.
async fn user_image(cx: &Context, name: &str, groups: usize, home: usize) -> Result<String> {
    let mut w = Writer::new();
    let home = format!("/{}", "h".repeat(home));
    w.file(
        "etc/passwd",
        0o644,
        format!("root:x:0:0::/root:/bin/sh\nmany:x:1000:1000::{home}:/bin/sh\n").as_bytes(),
    )?;
    let list: String = (0..groups).map(|n| format!("g{n}:x:{}:many\n", 20_000 + n)).collect();
    w.file("etc/group", 0o644, format!("root:x:0:\nmany:x:1000:\n{list}").as_bytes())?;
    let layers = [cx.fixture.layers.busybox.clone(), w.finish(Packing::Gzip)?];
    let image = Recipe::new(&layers, json!({"Cmd": ["/bin/sh"], "User": "many"})).build();
    cx.fixture.registry.push(name, "1", &image).await?;
    Ok(format!("registry.test/{name}:1"))
}

async fn thousands_of_groups(cx: Context) -> Result<()> {
    let image = user_image(&cx, "groups-6000", 6000, 4).await?;
    let pod = cx.pod().await?;
    let config = shapes::container("one", &image, &["/bin/sleep", "1000"]);
    let id = cx.start(&pod, &config).await.context("a user with 6000 groups")?;
    let count = cx.cri.sh(&id, "id -G | wc -w").await?;
    ensure!(count == "6001", "an exec has {count} groups");
    let status = fs::read_to_string(format!("/proc/{}/status", cx.pid(&id).await?))?;
    let groups = status.lines().find_map(|l| l.strip_prefix("Groups:")).unwrap_or_default();
    ensure!(
        groups.split_whitespace().count() >= 6000,
        "init has {} groups",
        groups.split_whitespace().count()
    );
    Ok(())
}

async fn too_many_groups_are_refused(cx: Context) -> Result<()> {
    let image = user_image(&cx, "groups-30000", 30_000, 4).await?;
    let pod = cx.pod().await?;
    let config = shapes::container("one", &image, &["/bin/sleep", "1000"]);
    let e = cx.create(&pod, &config).await.err().context("a user with 30000 groups")?;
    let status = e.downcast_ref::<tonic::Status>().context("no status")?;
    ensure!(
        status.code() == Code::InvalidArgument && status.message().contains("groups and a home of"),
        "a user with 30000 groups: {status}"
    );
    Ok(())
}

async fn long_home(cx: Context) -> Result<()> {
    let image = user_image(&cx, "home-33000", 1, 33_000).await?;
    let pod = cx.pod().await?;
    let config = shapes::container("one", &image, &["/bin/sh", "-c", "echo -n $HOME | wc -c"]);
    let text = cx.output(&pod, &config).await.context("a home of 33000 bytes")?;
    ensure!(text.trim() == "33001", "HOME has {text} bytes");
    Ok(())
}

async fn tiny_memory_limits_are_reported(cx: Context) -> Result<()> {
    let pod = cx.pod().await?;
    let mut seen = Vec::new();
    for kib in [64_i64, 256, 512, 1024, 1536, 2048, 3072, 4096, 8192] {
        let config = cx.sleeper(&format!("m{kib}")).with(|c| c.resources().memory_limit_in_bytes = kib << 10);
        let error = match cx.create(&pod, &config).await {
            Ok(id) => match cx.cri.start(&id).await {
                Ok(()) => {
                    // It is running, or was OOM-killed later, which its status says.
                    seen.push((kib, "started"));
                    continue;
                }
                Err(status) => {
                    seen.push((kib, "start"));
                    status
                }
            },
            Err(error) => {
                seen.push((kib, "create"));
                let status = error.downcast::<tonic::Status>().context("no status")?;
                ensure!(
                    status.code() == Code::InvalidArgument,
                    "a create with a limit of {kib} KiB: {status}"
                );
                status
            }
        };
        ensure!(
            error.message().contains("memory"),
            "with a limit of {kib} KiB the error does not name it: {error}"
        );
    }
    println!("      (limits in KiB, and whether the container started or which call failed: {seen:?})");
    ensure!(seen.contains(&(8192, "started")), "with 8 MiB the container did not start: {seen:?}");
    Ok(())
}

async fn full_table_is_reported_and_recovers(cx: Context) -> Result<()> {
    let pod = cx.pod().await?;
    cx.need(&crate::fixture::Fixture::image("busybox")).await?;
    let mut made = Vec::new();
    let refused = loop {
        ensure!(made.len() < 300, "300 containers were created in one pod");
        match cx.create(&pod, &cx.sleeper(&format!("c{}", made.len()))).await {
            Ok(id) => made.push(id),
            Err(e) => break e,
        }
    };
    let status = refused.downcast_ref::<tonic::Status>().context("no status")?;
    ensure!(status.code() == Code::ResourceExhausted, "after {} containers: {status}", made.len());
    ensure!(status.message().contains("remove some first"), "the error does not say what to do: {status}");
    let one = made.pop().context("none was made")?;
    cx.cri.remove(&one).await?;
    let again = cx.start(&pod, &cx.sleeper("again")).await.context("after one was removed")?;
    cx.exec_works(&again).await?;
    Ok(())
}
