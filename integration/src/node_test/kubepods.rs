//! The cgroups that kubelet makes for pods: slices with the systemd driver, folders with cgroupfs
//! (`pod_container_manager_linux.go` and `cgroup_manager_linux.go` of its package cm).

use crate::cgroup::{self, Driver, driver};
use crate::isolation::command;

/// The class that kubelet derives from the requests and limits of a pod's containers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Class {
    /// Limits for all resources, equal to the requests.
    Guaranteed,
    /// Anything else.
    Burstable,
    /// Neither requests nor limits.
    BestEffort,
}

impl Class {
    /// Its name in paths; guaranteed pods are directly below the top.
    fn word(self) -> Option<&'static str> {
        match self {
            Self::Guaranteed => None,
            Self::Burstable => Some("burstable"),
            Self::BestEffort => Some("besteffort"),
        }
    }

    /// The cgroup of all pods of the class, as in /proc/PID/cgroup; for guaranteed pods that of all pods.
    pub(crate) fn place(self) -> String {
        match (driver(), self.word()) {
            (Driver::Cgroupfs, None) => "/kubepods".to_owned(),
            (Driver::Cgroupfs, Some(class)) => format!("/kubepods/{class}"),
            (Driver::Systemd, None) => "/kubepods.slice".to_owned(),
            (Driver::Systemd, Some(class)) => format!("/kubepods.slice/kubepods-{class}.slice"),
        }
    }

    /// The last element of the path of a pod's cgroup.
    pub(crate) fn name_of_pod(self, uid: &str) -> String {
        match (driver(), self.word()) {
            (Driver::Cgroupfs, _) => format!("pod{uid}"),
            // A dash would be another level.
            (Driver::Systemd, None) => format!("kubepods-pod{}.slice", uid.replace('-', "_")),
            (Driver::Systemd, Some(class)) => format!("kubepods-{class}-pod{}.slice", uid.replace('-', "_")),
        }
    }

    /// The cgroup of a pod, as in /proc/PID/cgroup.
    pub(crate) fn pod(self, uid: &str) -> String {
        format!("{}/{}", self.place(), self.name_of_pod(uid))
    }
}

/// Removes the cgroups that kubelet leaves below its root.
pub(crate) fn remove(root: &str) {
    if driver() == Driver::Systemd {
        // With all slices below it.
        drop(command("systemctl", &["stop", "kubepods.slice"]));
    }
    cgroup::destroy(&format!("{}{}", root.trim_end_matches('/'), Class::Guaranteed.place()));
}
