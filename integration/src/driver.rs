//! Who makes the cgroups of pods in a run of the tests: given from outside, for a guest with systemd.

/// Environment variable with [`Driver`]: `cgroupfs`, the default, or `systemd`.
const DRIVER: &str = "COPEPOD_TEST_CGROUP_DRIVER";

/// Who makes the cgroups of pods in this run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Driver {
    /// copepod does. It need not be the host's systemd that is asked, so that processes may be in a PID namespace.
    Cgroupfs,
    /// The host's systemd, on request of copepod.
    Systemd,
}

/// The driver of this run.
pub(crate) fn driver() -> Driver {
    match std::env::var(DRIVER).as_deref() {
        Ok("systemd") => Driver::Systemd,
        _ => Driver::Cgroupfs,
    }
}
