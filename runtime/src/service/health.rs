//! Replies of Version, Status and RuntimeConfig.

use crate::config::Config;
use crate::root::Problem;
use cri_api::v1 as cri;
use network::Readiness;
use std::collections::HashMap;

/// Name of this runtime in Kubernetes: the prefix of container ids.
const NAME: &str = "copepod";
/// Version of the kubelet runtime API; kubelet requires this one.
const KUBELET_API: &str = "0.1.0";
/// Version of the CRI package.
const CRI_API: &str = "v1";

/// The request's version is ignored, because there is only one.
pub(super) fn version() -> cri::VersionResponse {
    cri::VersionResponse {
        version: KUBELET_API.to_owned(),
        runtime_name: NAME.to_owned(),
        runtime_version: env!("CARGO_PKG_VERSION").to_owned(),
        runtime_api_version: CRI_API.to_owned(),
    }
}

/// The driver is always set: zero on the wire means systemd.
pub(super) fn runtime_config() -> cri::RuntimeConfigResponse {
    let linux = cri::LinuxRuntimeConfiguration { cgroup_driver: cri::CgroupDriver::Cgroupfs.into() };
    cri::RuntimeConfigResponse { linux: Some(linux) }
}

/// What was measured at the start of the daemon: for each feature, why this node does not have it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Features<'a> {
    /// Pods with user namespaces, whose root file system and volumes are id-mapped.
    pub(super) user_namespaces: Option<&'a str>,
}

/// Conditions, handlers and features. Does not block, because the node's heartbeat depends on it. `root` is
/// the problem of the durable folder, if it has one.
pub(super) fn status(
    readiness: &Readiness,
    root: Option<&Problem>,
    measured: Features<'_>,
    config: &Config,
    verbose: bool,
) -> cri::StatusResponse {
    let condition = |kind: &str, ready: bool, problem: Option<(&str, &str)>| cri::RuntimeCondition {
        r#type: kind.to_owned(),
        status: ready,
        reason: problem.map(|(reason, _)| reason.to_owned()).unwrap_or_default(),
        message: problem.map(|(_, message)| message.to_owned()).unwrap_or_default(),
    };
    let network = readiness.problem.as_deref().map(|problem| ("NetworkPluginNotReady", problem));
    // The records were read at start, so RuntimeReady concerns only whether new ones can be written. A full
    // disk is reported, but the runtime stays ready.
    let ready = root.is_none_or(|problem| problem.full);
    let root = root.map(|problem| (problem.reason.as_str(), problem.message.as_str()));
    let conditions =
        vec![condition("RuntimeReady", ready, root), condition("NetworkReady", network.is_none(), network)];
    // `convert` refuses the requests that need one of these.
    let features = cri::RuntimeHandlerFeatures {
        recursive_read_only_mounts: false,
        user_namespaces: measured.user_namespaces.is_none(),
    };
    cri::StatusResponse {
        status: Some(cri::RuntimeStatus { conditions }),
        info: if verbose { info(readiness, measured, config) } else { HashMap::new() },
        runtime_handlers: vec![cri::RuntimeHandler { name: String::new(), features: Some(features) }],
        features: Some(cri::RuntimeFeatures {
            supplemental_groups_policy: false,
            user_namespaces_host_network: false,
            mount_options: false,
        }),
    }
}

/// JSON values by key, for `crictl info`.
fn info(readiness: &Readiness, measured: Features<'_>, config: &Config) -> HashMap<String, String> {
    // `handlers` and `registry` are always empty.
    let Config {
        root,
        state,
        socket,
        mount_namespace,
        log,
        binaries,
        network,
        image,
        streaming,
        handlers: _,
        registry: _,
    } = config;
    let config = serde_json::json!({
        "rootDir": root,
        "stateDir": state,
        "socket": socket,
        "mountNamespace": mount_namespace.to_string(),
        "log": { "level": log.level.to_string(), "format": log.format.to_string() },
        "binaries": { "shim": binaries.shim, "pause": binaries.pause },
        "network": {
            "confDir": network.conf_dir,
            "binDirs": network.bin_dirs,
            "timeoutSeconds": network.timeout.as_secs(),
            "maxParallel": network.max_parallel,
        },
        "image": { "certsDir": image.certs_dir, "maxParallelDownloads": image.max_parallel_downloads },
        "streaming": {
            "address": streaming.address,
            "idleTimeoutSeconds": streaming.idle_timeout.unwrap_or_default().as_secs(),
            "creationTimeoutSeconds": streaming.creation_timeout.as_secs(),
        },
    });
    let network = serde_json::json!({
        "ready": readiness.is_ready(),
        "name": readiness.network,
        "file": readiness.file,
        "problem": readiness.problem,
    });
    let build = serde_json::json!({ "version": env!("CARGO_PKG_VERSION"), "cgroupDriver": "cgroupfs" });
    let users = serde_json::json!({
        "supported": measured.user_namespaces.is_none(),
        "problem": measured.user_namespaces,
    });
    [("config", config), ("network", network), ("build", build), ("userNamespaces", users)]
        .map(|(key, value)| (key.to_owned(), value.to_string()))
        .into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn readiness(problem: Option<&str>) -> Readiness {
        Readiness { network: None, file: None, problem: problem.map(str::to_owned) }
    }

    #[test]
    fn version_and_cgroup_driver_are_what_kubelet_requires() {
        let version = version();
        assert_eq!(version.version, "0.1.0");
        assert_eq!((version.runtime_name.as_str(), version.runtime_api_version.as_str()), ("copepod", "v1"));
        assert!(!version.runtime_version.is_empty());
        assert_eq!(runtime_config().linux.unwrap().cgroup_driver(), cri::CgroupDriver::Cgroupfs);
    }

    #[test]
    fn network_condition_follows_and_missing_features_are_not_announced() {
        let config = Config::default();
        let without = Features { user_namespaces: Some("too old") };
        let reply = status(&readiness(Some("no conflist")), None, without, &config, false);
        let conditions = reply.status.unwrap().conditions;
        assert!(conditions[0].status && conditions[0].r#type == "RuntimeReady");
        let network = &conditions[1];
        assert!(!network.status && network.r#type == "NetworkReady");
        assert_eq!(
            (network.reason.as_str(), network.message.as_str()),
            ("NetworkPluginNotReady", "no conflist")
        );
        assert!(reply.info.is_empty());
        assert_eq!(reply.runtime_handlers.len(), 1);
        assert_eq!(reply.runtime_handlers[0].name, "");
        assert_eq!(reply.runtime_handlers[0].features, Some(cri::RuntimeHandlerFeatures::default()));
        assert_eq!(reply.features, Some(cri::RuntimeFeatures::default()));
        let all = Features { user_namespaces: None };
        let ready = status(&readiness(None), None, all, &config, true);
        assert!(ready.runtime_handlers[0].features.unwrap().user_namespaces);
        assert!(ready.status.unwrap().conditions[1].status);
        let config: serde_json::Value = serde_json::from_str(&ready.info["config"]).unwrap();
        assert_eq!(config["stateDir"], "/run/copepod");
        // Values are shown as they are written in the configuration.
        assert_eq!(
            (&config["mountNamespace"], &config["log"]),
            (&"pid1".into(), &serde_json::json!({ "level": "info", "format": "text" }))
        );
        for json in ready.info.values() {
            assert!(serde_json::from_str::<serde_json::Value>(json).is_ok(), "{json}");
        }
    }
}
