//! A node on which so many containers have ended that their list does not fit one message: kubelet has them only from the
//! streamed list (its gate CRIListStreaming).

use std::fs;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context as _, Result};
use cri_api::v1 as api;
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use tonic::Code;

use super::manifests::{pod, shell, sleeper, with, with_spec};
use super::{Check, Rig, check};
use super::{churn, view};
use crate::expect::ensure;
use crate::metrics::Samples;
use crate::record;
use crate::wait::{self, secs};

/// Containers that have ended, beside the few of other checks.
const DEAD: usize = 12_000;
/// The pods that they belong to.
const PODS: usize = 100;
/// kubelet's garbage collection leaves containers alone that are younger than this. Those of unknown pods are also removed
/// one after the other while it looks at them, but not before it has counted all.
const KEEP: &str = "--minimum-container-ttl-duration=1h";
/// How long kubelet may take to have them all: its first relist asks for the status of each.
const LISTED: u64 = 60;

pub(super) fn all() -> Vec<Check> {
    vec![check!(twelve_thousand_dead_containers)]
}

async fn twelve_thousand_dead_containers(rig: &Rig) -> Result<()> {
    let template = ended(rig).await?;
    rig.kubelet.kill(Signal::SIGTERM)?;
    rig.node.terminate().await?;
    let copies = multiply(rig, &template)?;
    let begun = Instant::now();
    rig.node.launch().await?;
    println!(
        "      copepod serves {DEAD} dead containers {:.1} s after its start",
        begun.elapsed().as_secs_f32()
    );
    let seen = rig.kubelet.log().len();
    let mut checked = are_streamed(rig).await;
    rig.kubelet.launch_with(&[KEEP]).await?;
    if checked.is_ok() {
        checked = all_are_listed(rig, seen).await;
    }
    rig.kubelet.kill(Signal::SIGKILL)?;
    rig.kubelet.delete("ended")?;
    // They go as they came: to remove each by CRI would take minutes too.
    rig.node.terminate().await?;
    for copy in copies {
        // kubelet removes some itself, because it does not know their pods.
        match fs::remove_dir_all(copy) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error.into()),
            _ => {}
        }
    }
    rig.node.launch().await?;
    rig.kubelet.launch().await?;
    checked
}

/// A pod that has ended with its only container; their ids.
async fn ended(rig: &Rig) -> Result<[String; 2]> {
    // The hook never runs. It is in an annotation of the container, and so in every list.
    let hook = json!({"preStop": {"exec": {"command": ["/bin/sh", "-c", format!(": {}", "x".repeat(600))]}}});
    let container = with(shell("main", "exit 0"), &json!({"lifecycle": hook}));
    rig.kubelet.apply(&with_spec(pod("ended", json!([container])), &json!({"restartPolicy": "Never"})))?;
    let seen = view::until(rig, "ended", "ended", 60, |it| it.terminated("main").is_some()).await?;
    let id = seen.container_id("main")?;
    let listed = rig.node.cri.containers(None).await?;
    let container = listed.into_iter().find(|it| it.id == id).context("kubelet's container is not listed")?;
    let sandbox = container.pod_sandbox_id;
    wait::until("kubelet to stop the pod", secs(30), || async {
        let status = rig.node.cri.pod_status(&sandbox).await?.status.context("no status")?;
        Ok((status.state() == api::PodSandboxState::SandboxNotready).then_some(()))
    })
    .await?;
    Ok([sandbox, id])
}

/// Copies the records of a pod and of its container, as if many pods had ended whose container had been restarted again
/// and again. Running them would take minutes. Returns the copies' folders.
fn multiply(rig: &Rig, [pod, container]: &[String; 2]) -> Result<Vec<PathBuf>> {
    let read = |kind: &str, id: &str| -> Result<Value> {
        Ok(serde_json::from_slice(&fs::read(rig.node.paths.root.join(kind).join(id).join("record"))?)?)
    };
    let put = |kind: &str, record: &mut Value, fields: &[(&str, Value)]| -> Result<PathBuf> {
        for (pointer, value) in fields {
            let field = record.pointer_mut(&format!("/data{pointer}"));
            *field.with_context(|| format!("a record of {kind} without {pointer}"))? = value.clone();
        }
        let id = record.pointer("/data/id").and_then(Value::as_str).unwrap_or_default();
        let folder = rig.node.paths.root.join(kind).join(id);
        fs::create_dir(&folder)?;
        fs::write(folder.join("record"), record::sealed(record)?)?;
        Ok(folder)
    };
    let (mut pod, mut container) = (read("pods", pod)?, read("containers", container)?);
    let mut copies = Vec::with_capacity(PODS + DEAD);
    for number in 0..PODS {
        let (id, uid, name) = (format!("{number:064x}"), format!("{number:032x}"), format!("ended-{number}"));
        let of_pod = [
            ("/config/labels/io.kubernetes.pod.uid", json!(uid)),
            ("/config/labels/io.kubernetes.pod.name", json!(name)),
        ];
        let named =
            [("/id", json!(id)), ("/config/meta/uid", json!(uid)), ("/config/meta/name", json!(name))];
        copies.push(put("pods", &mut pod, &[&named[..], &of_pod[..]].concat())?);
        for attempt in 0..DEAD / PODS {
            let named = [
                ("/id", json!(format!("{:064x}", number * DEAD + attempt))),
                ("/pod", json!(id)),
                ("/config/meta/attempt", json!(attempt)),
            ];
            copies.push(put("containers", &mut container, &[&named[..], &of_pod[..]].concat())?);
        }
    }
    Ok(copies)
}

/// The list does not fit one message, and the streamed one has all. Without kubelet, which removes some.
async fn are_streamed(rig: &Rig) -> Result<()> {
    // Without the gate, kubelet would have nothing: this is the limit of its client.
    let code = rig.node.cri.containers(None).await.err().map(|status| status.code());
    ensure!(code == Some(Code::OutOfRange), "the list in one message ends with {code:?}");
    let request = api::StreamContainersRequest { filter: None };
    let mut replies = rig.node.cri.runtime.clone().stream_containers(request).await?.into_inner();
    let (mut streamed, mut parts) = (0, 0);
    while let Some(reply) = replies.message().await? {
        streamed += reply.containers.len();
        parts += 1;
    }
    ensure!(streamed > DEAD && parts > 16, "{streamed} containers in {parts} replies");
    Ok(())
}

/// `seen`: the length of kubelet's log before its start.
async fn all_are_listed(rig: &Rig, seen: usize) -> Result<()> {
    let begun = Instant::now();
    let exited = [("container_state", "exited")];
    wait::until("kubelet to list all of them", secs(LISTED), || async {
        let metrics = Samples::of_text(&rig.kubelet.metrics()?)?;
        let found = metrics.one("kubelet_running_containers", &exited)?;
        ensure!(found >= DEAD as f64, "it counts {found} containers that have ended");
        Ok(Some(()))
    })
    .await?;
    println!("      kubelet counts them {:.1} s after its start", begun.elapsed().as_secs_f32());
    // It works with them: a pod starts, and its end is seen.
    rig.kubelet.apply(&pod("beside", json!([sleeper("main")])))?;
    view::ready(rig, "beside").await?;
    rig.kubelet.delete("beside")?;
    wait::until("the pod beside them to be gone", secs(60), || async {
        Ok(view::find(rig, "beside").await?.is_none().then_some(()))
    })
    .await?;
    let log = rig.kubelet.log();
    let log = log.get(seen..).unwrap_or_default();
    ensure!(!log.contains("falling back to"), "kubelet fell back to the lists in one message");
    churn::has_no_bad_lines(log)
}
