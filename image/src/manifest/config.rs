//! Configs: what a container is started with, and which layers its root has.

use super::clip;
use super::json::{self, Present, Words};
use super::platform::{Host, Platform};
use crate::error::{Error, Result};
use crate::record::{ConfigDocument, ImageConfig};
use crate::reference::Digest;
use std::collections::BTreeMap;

/// A parsed config.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Config {
    pub(crate) process: ImageConfig,
    /// Digests of the uncompressed layers, lowest first.
    pub(crate) diff_ids: Vec<Digest>,
    platform: Platform,
}

impl Config {
    /// Fails if the config states another processor. `resolve` asks for every image, but only warns if the image was named
    /// itself or an index says that it is for this processor: configs often state the processor of the machine that built
    /// them, and the kernel may run others by binfmt_misc.
    pub(crate) fn check_platform(&self, id: &Digest, host: &Host) -> Result<()> {
        if !self.platform.has_architecture() || host.rank(&self.platform).is_some() {
            return Ok(());
        }
        Err(Error::unsupported(
            format!("config {id}"),
            format!("it is for {}, this node is {host}", self.platform),
        ))
    }
}

json::object! {
    struct RawConfig {
        architecture: String = "architecture",
        os: String = "os",
        variant: String = "variant",
        config: RawProcess = "config",
        rootfs: RawRootfs = "rootfs",
    }
}

json::object! {
    struct RawRootfs {
        diff_ids: Vec<String> = "diff_ids",
    }
}

json::object! {
    struct RawProcess {
        entrypoint: Words = "Entrypoint",
        cmd: Words = "Cmd",
        env: Vec<String> = "Env",
        user: String = "User",
        working_dir: String = "WorkingDir",
        stop_signal: String = "StopSignal",
        /// The values are always empty objects.
        volumes: BTreeMap<String, Present> = "Volumes",
        labels: BTreeMap<String, String> = "Labels",
    }
}

/// Parses a config. It must be for Linux.
pub(crate) fn config(id: &Digest, bytes: &[u8]) -> Result<Config> {
    let object = || format!("config {id}");
    let raw: RawConfig = json::parse(bytes).map_err(|error| Error::corrupt(object(), error))?;
    let platform = Platform::new(&raw.os, &raw.architecture, &raw.variant);
    if !platform.is_linux() {
        let reason = format!("it is for {}, this node is {}", clip(&platform.to_string()), Host::this());
        return Err(Error::unsupported(object(), reason));
    }
    let diff_ids = raw.rootfs.diff_ids.iter().map(|text| {
        Digest::parse(text).ok_or_else(|| {
            Error::corrupt(object(), format!("diff id {:?} is no sha256 or sha512 digest", clip(text)))
        })
    });
    let diff_ids = diff_ids.collect::<Result<_>>()?;
    let process = raw.config;
    let process = ImageConfig {
        entrypoint: process.entrypoint.0,
        cmd: process.cmd.0,
        env: process.env,
        user: process.user,
        working_dir: process.working_dir,
        stop_signal: process.stop_signal,
        volumes: process.volumes.into_keys().collect(),
        labels: process.labels,
    };
    Ok(Config { process, diff_ids, platform })
}

/// A stored config as a document; `None` if it cannot be parsed.
pub(crate) fn config_document(id: &Digest, bytes: Vec<u8>) -> Option<ConfigDocument> {
    let config = config(id, &bytes).ok()?;
    let chain_id = chain_id(&config.diff_ids).map(|id| id.to_string()).unwrap_or_default();
    Some(ConfigDocument { json: String::from_utf8(bytes).ok()?, chain_id })
}

/// The chain id of these layers, lowest first (OCI image specification, "Layer ChainID"); `None` without layers.
fn chain_id(diff_ids: &[Digest]) -> Option<Digest> {
    let join = |below: Digest, layer: Digest| Digest::of(format!("{below} {layer}").as_bytes());
    diff_ids.iter().copied().reduce(join)
}

/// Parses the user part of `USER`: a numeric id, or a name. An empty one means root (0). A number that is too large for
/// an id counts as a name, which no passwd file has.
pub(crate) fn user(text: &str) -> (Option<u32>, Option<String>) {
    let user = text.split(':').next().unwrap_or_default();
    if user.is_empty() {
        return (Some(0), None);
    }
    let digits = user.bytes().all(|b| b.is_ascii_digit());
    match user.parse::<u32>() {
        Ok(uid) if digits && uid != u32::MAX => (Some(uid), None),
        _ => (None, Some(user.to_owned())),
    }
}
