//! SELinux: labels of processes, files and volumes, and the pairs of categories that keep pods apart.
//!
//! Where the node has no policy each test says that it checks nothing, unless [`VARIABLE`] is set: then it fails.
//! `fields::labels_of_selinux_are_moot_without_it` asserts what holds there. `make test-vm-selinux` runs these in a guest
//! with Debian's policy, enforcing.

mod labels;
mod levels;
mod volumes;

use std::path::Path;

use anyhow::{Context as _, Result, bail};
use cri_api::v1 as api;

use crate::context::{Context, Pod};
use crate::expect::ensure;
use crate::isolation::command;
use crate::runner::Test;
use crate::shapes::ContainerExt as _;

pub(super) fn tests() -> Vec<Test> {
    [labels::tests(), levels::tests(), volumes::tests()].concat()
}

/// Set to 1 where the policy must be enforced.
const VARIABLE: &str = "COPEPOD_TEST_SELINUX";

/// Whether this host enforces a policy. If not, prints that nothing is checked.
fn enforced(cx: &Context) -> Result<bool> {
    let enforced = std::fs::read_to_string("/sys/fs/selinux/enforce").is_ok_and(|text| text.trim() == "1");
    if !enforced && std::env::var(VARIABLE).is_ok_and(|value| value == "1") {
        bail!("{VARIABLE}=1, but this host enforces no SELinux policy");
    }
    if !enforced {
        println!("      {}: not checked: this host enforces no SELinux policy", cx.name);
    }
    Ok(enforced)
}

/// The label of a process.
fn label(pid: u32) -> Result<String> {
    let path = format!("/proc/{pid}/attr/current");
    let text = std::fs::read_to_string(&path).with_context(|| path.clone())?;
    Ok(text.trim_end_matches('\0').trim().to_owned())
}

/// The label of a file, as stat(1) shows it.
fn file_label(path: &Path) -> Result<String> {
    Ok(command("stat", &["--format=%C", &path.display().to_string()])?.trim().to_owned())
}

/// The type of a label.
fn kind(label: &str) -> &str {
    label.split(':').nth(2).unwrap_or_default()
}

/// The level of a label.
fn level(label: &str) -> &str {
    label.splitn(4, ':').nth(3).unwrap_or_default()
}

/// Fails unless the level is a pair of categories, as a pod has for itself.
fn is_pair(level: &str) -> Result<()> {
    let categories: Vec<&str> = level.strip_prefix("s0:").unwrap_or_default().split(',').collect();
    let plain = |category: &&str| category.strip_prefix('c').is_some_and(|n| n.parse::<u16>().is_ok());
    ensure!(categories.len() == 2 && categories.iter().all(plain), "{level:?} is not a pair of categories");
    Ok(())
}

/// Request options with these parts.
fn options(kind: &str, level: &str) -> Option<api::SeLinuxOption> {
    Some(api::SeLinuxOption { r#type: kind.to_owned(), level: level.to_owned(), ..Default::default() })
}

/// Starts a sleeping container with these options and returns its id and the label of its init.
async fn labelled(
    cx: &Context,
    pod: &Pod,
    name: &str,
    asked: Option<api::SeLinuxOption>,
) -> Result<(String, String)> {
    let id = cx.start(pod, &cx.sleeper(name).with(|c| c.security().selinux_options = asked)).await?;
    let found = label(cx.pid(&id).await?)?;
    Ok((id, found))
}
