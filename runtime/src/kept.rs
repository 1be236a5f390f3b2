//! Objects whose records this build cannot use: they cannot be read, are too large, or were written by a later version.
//! The pods and containers may be running, so they are listed as far as possible, every command on them
//! is refused with the reason, and nothing of them is changed: no file, process, cgroup or lease.

use crate::clock::now;
use crate::error::{Error, ErrorKind};
use model::{
    ContainerConfig, ContainerId, ContainerMeta, ContainerPhase, ContainerRecord, ImageOfContainer,
    PodConfig, PodId, PodMeta, PodPhase, PodRecord,
};
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::path::{Path, PathBuf};

/// A pod that is kept unchanged.
#[derive(Debug)]
pub(crate) struct KeptPod {
    /// The record that is listed; never written.
    pub(crate) record: PodRecord,
    /// The error that commands get.
    pub(crate) refusal: Error,
}

/// A container that is kept unchanged.
#[derive(Debug)]
pub(crate) struct KeptContainer {
    /// The record that is listed; never written.
    pub(crate) record: ContainerRecord,
    /// The error that commands get.
    pub(crate) refusal: Error,
}

/// A pod whose record cannot be used for the reason `why`. Blocking.
pub(crate) fn pod(id: &PodId, path: &Path, why: &state::Error) -> KeptPod {
    let fields = Fields::of(path, why);
    let refusal = refusal(&format!("pod {id}"), why);
    let record = PodRecord {
        phase: PodPhase::Stopping,
        message: refusal.text(),
        ..PodRecord::new(
            id.clone(),
            PodConfig {
                meta: fields.get::<PodMeta>("/config/meta"),
                log_directory: fields.get("/config/log_directory"),
                labels: fields.get("/config/labels"),
                annotations: fields.get("/config/annotations"),
                cgroup_parent: fields.get("/config/cgroup_parent"),
                ..PodConfig::default()
            },
            fields.created_at(),
        )
    };
    KeptPod { record, refusal }
}

/// A container whose record cannot be used for the reason `why`. Blocking.
pub(crate) fn container(id: &ContainerId, path: &Path, why: &state::Error) -> KeptContainer {
    let fields = Fields::of(path, why);
    let record = ContainerRecord {
        image: fields.get::<ImageOfContainer>("/image"),
        started_at: fields.get("/started_at"),
        phase: ContainerPhase::Unknown,
        log_path: fields.get("/log_path"),
        ..ContainerRecord::new(
            id.clone(),
            fields.value("/pod").unwrap_or_else(|| PodId::from_random([0; 32])),
            ContainerConfig {
                meta: fields.get::<ContainerMeta>("/config/meta"),
                image: fields.get("/config/image"),
                labels: fields.get("/config/labels"),
                annotations: fields.get("/config/annotations"),
                ..ContainerConfig::default()
            },
            fields.created_at(),
        )
    };
    KeptContainer { record, refusal: refusal(&format!("container {id}"), why) }
}

/// A container whose own record is readable, but not that of its pod.
pub(crate) fn container_of(pod: &KeptPod, record: ContainerRecord) -> KeptContainer {
    let refusal = pod.refusal.clone().context(format!("container {}", record.id));
    KeptContainer { record: ContainerRecord { phase: ContainerPhase::Unknown, ..record }, refusal }
}

fn refusal(object: &str, why: &state::Error) -> Error {
    let why_text = causes::with_causes(why);
    match why {
        state::Error::Newer { .. } | state::Error::TooLarge { .. } => Error::state(format!(
            "{object} is not managed and may be running: {why_text}; to manage it, start the version that wrote it"
        )),
        _ => Error::new(
            ErrorKind::Unavailable,
            format!(
                "{object} is not managed and may be running: its record cannot be read ({why_text}); \
                 repair the disk, then restart copepod"
            ),
        ),
    }
}

/// The readable fields of a record that another version wrote.
struct Fields {
    data: Value,
    path: PathBuf,
}

impl Fields {
    fn of(path: &Path, why: &state::Error) -> Self {
        let newer = matches!(why, state::Error::Newer { .. });
        // After a read error the file is not read again.
        let data = newer.then(|| state::file::look::<Value>(path)).flatten().unwrap_or_default();
        Self { data, path: path.to_owned() }
    }

    fn value<T: DeserializeOwned>(&self, pointer: &str) -> Option<T> {
        T::deserialize(self.data.pointer(pointer)?).ok()
    }

    fn get<T: DeserializeOwned + Default>(&self, pointer: &str) -> T {
        self.value(pointer).unwrap_or_default()
    }

    /// CRI requires a value other than 0; the record's folder is as old as the object.
    fn created_at(&self) -> i64 {
        let folder = || {
            let made = std::fs::symlink_metadata(self.path.parent()?).ok()?.modified().ok()?;
            i64::try_from(made.duration_since(std::time::UNIX_EPOCH).ok()?.as_nanos()).ok()
        };
        self.value("/created_at").filter(|at| *at > 0).or_else(folder).unwrap_or_else(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_later_versions_object_is_listed_and_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("record");
        let id = ContainerId::from_random([1; 32]);
        let data = serde_json::json!({
            "id": id, "pod": PodId::from_random([2; 32]), "created_at": 5, "phase": "Checkpointed",
            "config": {"meta": {"name": "web", "attempt": 3}, "labels": {"a": "b"}, "mounts": [{"kind": "Image"}]},
        });
        state::file::write(&path, state::kind::CONTAINER, "boot", &data, false).unwrap();
        let why = state::file::read::<ContainerRecord>(&path, state::kind::CONTAINER).unwrap_err();
        let kept = container(&id, &path, &why);
        assert_eq!((kept.record.config.meta.name.as_str(), kept.record.created_at), ("web", 5));
        assert_eq!(kept.record.phase, ContainerPhase::Unknown);
        assert_eq!(kept.record.pod, PodId::from_random([2; 32]));
        assert_eq!(kept.refusal.kind, ErrorKind::FailedPrecondition);
        assert!(kept.refusal.text().contains("later version"), "{}", kept.refusal.text());
    }

    #[test]
    fn an_unreadable_object_has_an_age_and_a_reason() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("record");
        let why = state::Error::Io {
            action: "read",
            path: path.clone(),
            source: std::io::Error::from_raw_os_error(5),
        };
        let kept = pod(&PodId::from_random([3; 32]), &path, &why);
        assert!(kept.record.created_at > 0);
        assert_eq!((kept.record.phase, kept.refusal.kind), (PodPhase::Stopping, ErrorKind::Unavailable));
        assert_eq!(kept.record.message, kept.refusal.text());
    }
}
