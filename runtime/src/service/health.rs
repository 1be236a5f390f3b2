//! Replies of Version, Status and RuntimeConfig. Status announces an optional feature only if it is implemented and, where
//! it depends on the host, was measured.

use crate::apparmor::{AppArmor, Support};
use crate::cgroups::Driver;
use crate::config::Config;
use crate::operations::{Operation, UnderWay};
use crate::root::Problem;
use crate::selinux::Selinux;
use cri_api::v1 as cri;
use network::{PendingDel, PendingDels, Readiness};
use std::collections::HashMap;
use std::time::Duration;

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
pub(super) fn runtime_config(driver: Driver) -> cri::RuntimeConfigResponse {
    let driver = match driver {
        Driver::Cgroupfs => cri::CgroupDriver::Cgroupfs,
        Driver::Systemd => cri::CgroupDriver::Systemd,
    };
    let linux = cri::LinuxRuntimeConfiguration { cgroup_driver: driver.into() };
    cri::RuntimeConfigResponse { linux: Some(linux) }
}

/// What was measured at the start of the daemon: the features that depend on the host.
#[derive(Debug, Clone, Copy)]
pub(super) struct Features<'a> {
    /// Why this node cannot have pods with user namespaces, whose root file system and volumes are id-mapped.
    pub(super) user_namespaces: Option<&'a str>,
    /// Whether volumes can be read-only together with the mounts below them.
    pub(super) recursive_read_only: bool,
    /// Who makes the cgroups of new pods.
    pub(super) cgroup_driver: Driver,
    /// AppArmor.
    pub(super) apparmor: &'a AppArmor,
    /// SELinux.
    pub(super) selinux: &'a Selinux,
}

/// Conditions, handlers and features. Does not block, because the node's heartbeat depends on it. `root` is
/// the problem of the durable folder, if it has one. `verbose`: what is under way, for a verbose status.
pub(super) fn status(
    readiness: &Readiness,
    root: Option<&Problem>,
    measured: Features<'_>,
    config: &Config,
    verbose: Option<&UnderWay>,
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
    // `convert` and RunPodSandbox refuse the requests that need one that is false.
    let features = cri::RuntimeHandlerFeatures {
        recursive_read_only_mounts: measured.recursive_read_only,
        user_namespaces: measured.user_namespaces.is_none(),
    };
    cri::StatusResponse {
        status: Some(cri::RuntimeStatus { conditions }),
        info: verbose.map(|under_way| info(readiness, measured, config, under_way)).unwrap_or_default(),
        runtime_handlers: vec![cri::RuntimeHandler { name: String::new(), features: Some(features) }],
        features: Some(cri::RuntimeFeatures {
            supplemental_groups_policy: true,
            user_namespaces_host_network: false,
            mount_options: true,
        }),
    }
}

/// JSON values by key, for `crictl info`, which shows a value that is not an object as it is.
fn info(
    readiness: &Readiness,
    measured: Features<'_>,
    config: &Config,
    under_way: &UnderWay,
) -> HashMap<String, String> {
    let cni = cniconfig(readiness, &config.network);
    let network = serde_json::json!({
        "ready": readiness.is_ready(),
        "name": readiness.network,
        "file": readiness.file,
        "problem": readiness.problem,
    });
    let last = readiness.problem.clone().unwrap_or_else(|| "OK".to_owned());
    let driver = match measured.cgroup_driver {
        Driver::Cgroupfs => "cgroupfs",
        Driver::Systemd => "systemd",
    };
    let build = serde_json::json!({ "version": env!("CARGO_PKG_VERSION"), "cgroupDriver": driver });
    let users = serde_json::json!({
        "supported": measured.user_namespaces.is_none(),
        "problem": measured.user_namespaces,
    });
    let apparmor = serde_json::json!({
        "enabled": measured.apparmor.support() == Support::On,
        "defaultProfile": measured.apparmor.default_profile(),
        "problem": measured.apparmor.problem(),
    });
    let selinux = serde_json::json!({
        "enabled": measured.selinux.is_on(),
        "defaultLabel": measured.selinux.default_label(),
        "problem": measured.selinux.problem(),
        "categoryPairs": measured.selinux.pairs_in_use(),
    });
    [
        ("config", config.to_json().to_string()),
        ("network", network.to_string()),
        ("build", build.to_string()),
        ("operations", operations(under_way).to_string()),
        ("userNamespaces", users.to_string()),
        ("appArmor", apparmor.to_string()),
        ("selinux", selinux.to_string()),
        ("cniconfig", cni.to_string()),
        ("lastCNILoadStatus", last),
    ]
    .map(|(key, value)| (key.to_owned(), value))
    .into()
}

/// Pods whose network is not released although they have ended, for a verbose status.
pub(super) fn releases(pending: &PendingDels) -> serde_json::Value {
    let oldest = pending.oldest.iter().map(|del| {
        let PendingDel { pod, since, attempts, next, problem } = del;
        serde_json::json!({
            "pod": pod.as_str(),
            "seconds": seconds(*since),
            "attempts": attempts,
            "nextSeconds": next.map(seconds),
            "problem": problem,
        })
    });
    serde_json::json!({ "count": pending.count, "oldest": oldest.collect::<Vec<_>>() })
}

/// The part of containerd's `cniconfig` that is known here: its users look there for the network that is loaded.
fn cniconfig(readiness: &Readiness, network: &crate::config::Network) -> serde_json::Value {
    let networks = readiness.network.as_ref().map(
        |name| serde_json::json!({ "IFName": "eth0", "Config": { "Name": name, "Source": readiness.file } }),
    );
    serde_json::json!({
        "PluginDirs": network.bin_dirs,
        "PluginConfDir": network.conf_dir,
        "Networks": networks.into_iter().collect::<Vec<_>>(),
    })
}

/// What is under way. Keys without a value are left out.
fn operations(under_way: &UnderWay) -> serde_json::Value {
    let now = crate::clock::now();
    let oldest = under_way.oldest.iter().map(|operation| {
        let Operation { call, subject, took, place, trace } = operation;
        let (namespace, pod_name) = subject.pod_name.clone().unzip();
        let values = [
            ("call", call.map(Into::into)),
            ("namespace", namespace.map(Into::into)),
            ("podName", pod_name.map(Into::into)),
            ("pod", subject.pod.as_ref().map(|id| id.as_str().into())),
            ("containerName", subject.container_name.clone().map(Into::into)),
            ("container", subject.container.as_ref().map(|id| id.as_str().into())),
            ("image", subject.image.clone().map(Into::into)),
            ("since", Some(now.saturating_sub(i64::try_from(took.as_nanos()).unwrap_or(i64::MAX)).into())),
            ("seconds", Some(seconds(*took))),
            ("stage", place.as_ref().map(|place| place.steps.clone().into())),
            ("stageSeconds", place.as_ref().map(|place| seconds(place.took))),
            ("advice", place.as_ref().map(|place| place.advice).filter(|it| !it.is_empty()).map(Into::into)),
            ("traceId", trace.map(|id| id.to_string().into())),
        ];
        let present = values.into_iter().filter_map(|(key, value)| Some((key.to_owned(), value?)));
        serde_json::Value::Object(present.collect())
    });
    serde_json::json!({ "count": under_way.count, "oldest": oldest.collect::<Vec<_>>() })
}

/// Rounded to milliseconds.
fn seconds(time: Duration) -> serde_json::Value {
    (time.as_millis() as f64 / 1000.0).into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::operations::Subject;
    use model::PodId;
    use progress::Place;

    fn readiness(problem: Option<&str>) -> Readiness {
        Readiness { network: None, file: None, problem: problem.map(str::to_owned) }
    }

    #[test]
    fn version_and_cgroup_driver_are_what_kubelet_requires() {
        let version = version();
        assert_eq!(version.version, "0.1.0");
        assert_eq!((version.runtime_name.as_str(), version.runtime_api_version.as_str()), ("copepod", "v1"));
        assert!(!version.runtime_version.is_empty());
        let driver = |driver| runtime_config(driver).linux.unwrap().cgroup_driver();
        assert_eq!(driver(Driver::Cgroupfs), cri::CgroupDriver::Cgroupfs);
        assert_eq!(driver(Driver::Systemd), cri::CgroupDriver::Systemd);
    }

    #[test]
    fn operations_show_what_is_known() {
        let subject = Subject {
            pod_name: Some(("shop".to_owned(), "web-0".to_owned())),
            pod: Some(PodId::from_random([1; 32])),
            container_name: Some("app".to_owned()),
            ..Subject::default()
        };
        let place = Place { steps: "a: b".to_owned(), took: Duration::from_millis(1500), advice: "look" };
        let full = Operation {
            call: Some("CreateContainer"),
            subject,
            took: Duration::from_secs(2),
            place: Some(place),
            trace: None,
        };
        let bare = Operation {
            call: None,
            subject: Subject::default(),
            took: Duration::ZERO,
            place: None,
            trace: None,
        };
        let shown = operations(&UnderWay { count: 9, oldest: vec![full, bare] });
        assert_eq!(shown["count"], 9);
        let mut first = shown["oldest"][0].clone();
        assert!(first.as_object_mut().unwrap().remove("since").unwrap().as_i64().unwrap() > 0);
        assert_eq!(
            first,
            serde_json::json!({
                "call": "CreateContainer", "namespace": "shop", "podName": "web-0", "pod": "01".repeat(32),
                "containerName": "app", "seconds": 2.0, "stage": "a: b", "stageSeconds": 1.5, "advice": "look",
            })
        );
        let keys: Vec<_> = shown["oldest"][1].as_object().unwrap().keys().collect();
        assert_eq!(keys, ["seconds", "since"]);
    }

    #[test]
    fn networks_that_are_still_to_be_released_are_shown() {
        let pod = model::PodId::from_random([1; 32]);
        let del = PendingDel {
            pod: pod.clone(),
            since: Duration::from_millis(61_500),
            attempts: 3,
            next: Some(Duration::from_secs(4)),
            problem: "no such program".to_owned(),
        };
        let running = PendingDel { next: None, ..del.clone() };
        let shown = releases(&PendingDels { count: 40, oldest: vec![del, running] });
        let first = serde_json::json!({
            "pod": pod.as_str(), "seconds": 61.5, "attempts": 3, "nextSeconds": 4.0, "problem": "no such program",
        });
        assert_eq!((&shown["count"], &shown["oldest"][0]), (&40.into(), &first));
        assert_eq!(shown["oldest"][1]["nextSeconds"], serde_json::Value::Null);
    }

    #[test]
    fn what_user_namespaces_lack_is_shown() {
        let idle = UnderWay { count: 0, oldest: Vec::new() };
        let apparmor = AppArmor::new(Support::Absent);
        let without = Features {
            user_namespaces: Some("too old"),
            recursive_read_only: true,
            cgroup_driver: Driver::Cgroupfs,
            apparmor: &apparmor,
            selinux: &Selinux::absent(),
        };
        let reply = status(&readiness(None), None, without, &Config::default(), Some(&idle));
        let users: serde_json::Value = serde_json::from_str(&reply.info["userNamespaces"]).unwrap();
        assert_eq!(users, serde_json::json!({ "supported": false, "problem": "too old" }));
        let apparmor: serde_json::Value = serde_json::from_str(&reply.info["appArmor"]).unwrap();
        assert_eq!(
            apparmor,
            serde_json::json!({ "enabled": false, "defaultProfile": null, "problem": null })
        );
        let announced = reply.runtime_handlers[0].features.unwrap();
        assert!(!announced.user_namespaces && announced.recursive_read_only_mounts);
    }

    #[test]
    fn network_condition_follows_and_only_what_is_there_is_announced() {
        let config = Config::default();
        let apparmor = AppArmor::new(Support::Absent);
        let without = Features {
            user_namespaces: Some("too old"),
            recursive_read_only: false,
            cgroup_driver: Driver::Cgroupfs,
            apparmor: &apparmor,
            selinux: &Selinux::absent(),
        };
        let reply = status(&readiness(Some("no conflist")), None, without, &config, None);
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
        let (supplemental_groups_policy, mount_options) = (true, true);
        let features = cri::RuntimeFeatures {
            supplemental_groups_policy,
            mount_options,
            ..cri::RuntimeFeatures::default()
        };
        assert_eq!(reply.features, Some(features));
        let all = Features {
            user_namespaces: None,
            recursive_read_only: true,
            cgroup_driver: Driver::Cgroupfs,
            apparmor: &apparmor,
            selinux: &Selinux::absent(),
        };
        let ready = status(&readiness(None), None, all, &config, None);
        let announced = ready.runtime_handlers[0].features.unwrap();
        assert!(announced.user_namespaces && announced.recursive_read_only_mounts);
        assert!(ready.status.unwrap().conditions[1].status);
    }

    #[test]
    fn what_verbose_status_shows_is_json() {
        let apparmor = AppArmor::new(Support::Absent);
        let idle = UnderWay { count: 0, oldest: Vec::new() };
        let all = Features {
            user_namespaces: None,
            recursive_read_only: true,
            cgroup_driver: Driver::Cgroupfs,
            apparmor: &apparmor,
            selinux: &Selinux::absent(),
        };
        let ready = status(&readiness(None), None, all, &Config::default(), Some(&idle));
        let config: serde_json::Value = serde_json::from_str(&ready.info["config"]).unwrap();
        assert_eq!(config["stateDir"], "/run/copepod");
        // Values are shown as they are written in the configuration.
        assert_eq!(
            (&config["mountNamespace"], &config["log"]),
            (&"pid1".into(), &serde_json::json!({ "level": "info", "format": "text" }))
        );
        let none: serde_json::Value = serde_json::from_str(&ready.info["operations"]).unwrap();
        assert_eq!(none, serde_json::json!({ "count": 0, "oldest": [] }));
        assert_eq!(ready.info["lastCNILoadStatus"], "OK");
        for (key, json) in ready.info.iter().filter(|(key, _)| *key != "lastCNILoadStatus") {
            assert!(serde_json::from_str::<serde_json::Value>(json).is_ok(), "{key}: {json}");
        }
        let loaded =
            Readiness { network: Some("net".to_owned()), file: Some("/c/1.conflist".into()), problem: None };
        let cni: serde_json::Value = serde_json::from_str(
            &status(&loaded, None, all, &Config::default(), Some(&idle)).info["cniconfig"],
        )
        .unwrap();
        let network = &cni["Networks"][0];
        assert_eq!((&network["IFName"], &network["Config"]["Name"]), (&"eth0".into(), &"net".into()));
        let broken = status(&readiness(Some("no conflist")), None, all, &Config::default(), Some(&idle));
        assert_eq!(broken.info["lastCNILoadStatus"], "no conflist");
    }
}
