//! Clients on gRPC's C core, which send the socket's path as `:authority`: here Python's. kubelet is the client in Go
//! (`node-test`), and all other tests use one in Rust.

use anyhow::{Context as _, Result};

use crate::context::Context;
use crate::expect::ensure;
use crate::runner::{Test, test};
use crate::wait::{self, secs};

/// What the client does; Python runs it.
const CALLS: &str = include_str!("../../grpcio/calls.py");
/// How often it makes its calls: by two forms of the target.
const TARGETS: usize = 2;

pub(super) fn tests() -> Vec<Test> {
    vec![test!(pythons_client_is_served)]
}

async fn pythons_client_is_served(cx: Context) -> Result<()> {
    // The job of `integration vm` has this variable.
    if std::env::var_os("VM_BOOT").is_some() {
        println!("      {}: left out in the guest: this Python is the build machine's", cx.name);
        return Ok(());
    }
    let python = cx.fixture.bin.join("grpcio/bin/python");
    ensure!(python.exists(), "{} is missing: run `make grpcio`", python.display());
    let pod = cx.pod().await?;
    let client = tokio::process::Command::new(&python)
        .args(["-c", CALLS])
        .arg(&cx.node.paths.socket)
        .kill_on_drop(true)
        .output();
    let client = wait::timeout(secs(50), client).await.context("the client has not ended")?;
    let client = client.with_context(|| python.display().to_string())?;
    let (replies, errors) =
        (String::from_utf8_lossy(&client.stdout), String::from_utf8_lossy(&client.stderr));
    ensure!(client.status.success(), "the client failed: {errors}");
    let count = |call: &str, text: &str| {
        replies.lines().filter(|line| line.starts_with(call) && line.contains(text)).count()
    };
    for (call, text, wanted) in [
        ("Version ", "0.1.0", 3 * TARGETS),
        ("ListPodSandbox ", pod.id.as_str(), 53 * TARGETS),
        ("PodSandboxStatus ", "NOT_FOUND", TARGETS),
    ] {
        let found = count(call, text);
        ensure!(found == wanted, "{found} of {wanted} replies to {call} have {text:?}:\n{replies}\n{errors}");
    }
    cx.cri.drop_pod(&pod.id).await?;
    Ok(())
}
