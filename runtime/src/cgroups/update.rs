//! Changes limits of a container's cgroup, for UpdateContainerResources: all of them or none. Device rules are not
//! limits of a request, and are never changed.
//!
//! The values before the update are read first. `plan` then computes the writes in an order in which the kernel accepts
//! each one, and what undoes it; if one is refused, those before it are undone.

mod plan;

use super::files::{self, of_write, put, read};
use super::{Cgroups, Error, Failures, names, v2};
use model::Resources;
use plan::{Change, Step};
use rustix::io::Errno;
use spec::resources::{Mode, Version, Write};
use std::io;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};

/// A file that an update writes.
struct Target<'a> {
    write: &'a Write,
    file: PathBuf,
    change: Change,
}

impl Cgroups {
    /// Applies an update to an existing leaf, whose resources were `old`. Returns the limits that were skipped because this
    /// host has no files for them.
    ///
    /// # Errors
    /// [`Error::BelowUsage`]; [`Error::Limit`] for other values that the kernel refuses, and for `unified` on v1;
    /// [`Error::Gone`]. Then the leaf has its previous values, unless the error says that they could not be restored.
    pub(crate) fn update(
        &self,
        path: &str,
        old: &Resources,
        update: &Resources,
    ) -> Result<Vec<String>, Error> {
        self.write(path, &self.writes(path, old, update)?)
    }

    /// Finds out whether an update was applied whose end was not seen: true if the leaf has all of its values.
    /// Otherwise the leaf gets its values of `old` back.
    ///
    /// # Errors
    /// As [`Self::update`].
    pub(crate) fn settle(&self, path: &str, old: &Resources, update: &Resources) -> Result<bool, Error> {
        let wanted = self.writes(path, old, update)?;
        if self.targets(path, &wanted)?.0.iter().all(|target| !target.change.changes()) {
            return Ok(true);
        }
        let mut before = spec::resources::before(self.version, old, &wanted);
        // A process cannot join an empty cpuset of v1. That of v2 stands for the one above.
        let is_v1 = self.version == Version::V1;
        for write in before.iter_mut().filter(|write| is_v1 && write.value.is_empty()) {
            if let Some(file) = of_write(self.version, &self.hierarchies, path, write)? {
                write.value = of_parent(&file)?;
            }
        }
        self.write(path, &before)?;
        Ok(false)
    }

    /// Sets oom_score_adj of the leaf's processes that have the same value as `init`. Returns the value in effect, which
    /// is higher than `adj` where the host does not allow that; `None` if init is gone.
    ///
    /// # Errors
    /// The processes cannot be listed.
    pub(crate) fn set_oom_score_adj(&self, path: &str, init: u32, adj: i32) -> Result<Option<i32>, Error> {
        names::check(path)?;
        let hierarchy = self.hierarchies.iter().find(|hierarchy| hierarchy.has("memory"));
        let Some(folder) = hierarchy.map(|hierarchy| hierarchy.folder(path)) else { return Ok(None) };
        let failed = |source| Error::io("set oom_score_adj of the processes in", &folder, source);
        let from = sys::proc::unless_gone(sys::proc::oom_score_adj(init)).map_err(failed)?;
        let Some(from) = from.filter(|_| init != 0) else { return Ok(None) };
        if from == adj {
            return Ok(Some(adj));
        }
        let dir = std::fs::File::open(&folder).map_err(failed)?;
        sys::cgroup::change_oom_score_adj(dir.as_fd(), from, adj).map(Some).map_err(failed)
    }

    /// The files of an update.
    fn writes(&self, path: &str, old: &Resources, update: &Resources) -> Result<Vec<Write>, Error> {
        check_unified(self.version, path, "linux", update)?;
        Ok(spec::resources::writes(self.version, old, update, Mode::Update))
    }

    fn write(&self, path: &str, writes: &[Write]) -> Result<Vec<String>, Error> {
        let (targets, skipped) = self.targets(path, writes)?;
        let steps = plan::steps(targets.iter().map(|target| &target.change));
        let target = |step: &Step| targets.get(step.change);
        let done = plan::perform(&steps, |step, value| match target(step) {
            Some(target) if self.version == Version::V2 => v2::set(&target.file, &target.write.file, value),
            Some(target) => put(&target.file, value),
            None => Err(io::Error::other("bug in copepod: a step of no change")),
        });
        let Err(failed) = done else { return Ok(skipped) };
        let mut failures = Failures::default();
        if let Some(target) = steps.get(failed.step).and_then(target) {
            failures.note::<()>(Err(refused(target, failed.error)));
        }
        for (step, source) in failed.not_undone {
            if let Some(target) = steps.get(step).and_then(target) {
                failures.note::<()>(Err(Error::io("restore the value of", &target.file, source)));
            }
        }
        failures.into_result().map(|()| skipped)
    }

    /// The files of the writes with their current values, and the writes that this host has no files for.
    fn targets<'a>(&self, path: &str, writes: &'a [Write]) -> Result<(Vec<Target<'a>>, Vec<String>), Error> {
        names::check(path)?;
        if !self.hierarchies.iter().any(|hierarchy| hierarchy.folder(path).is_dir()) {
            return Err(Error::Gone { path: path.to_owned() });
        }
        let (mut targets, mut skipped) = (Vec::with_capacity(writes.len()), Vec::new());
        for write in writes {
            match of_write(self.version, &self.hierarchies, path, write)? {
                Some(file) => {
                    let before = read(&file)?;
                    let change = Change { file: write.file.clone(), before, after: write.value.clone() };
                    targets.push(Target { write, file, change });
                }
                None => skipped.push(format!("{}={}", write.file, write.value)),
            }
        }
        Ok((targets, skipped))
    }
}

/// `unified` names files of cgroup v2, and no call may say that it has set what it has not. `message` has the field.
pub(super) fn check_unified(
    version: Version,
    path: &str,
    message: &str,
    resources: &Resources,
) -> Result<(), Error> {
    let Some((file, value)) = resources.unified.first_key_value().filter(|_| version == Version::V1) else {
        return Ok(());
    };
    Err(Error::Limit {
        field: format!("{message}.unified"),
        value: format!("{file}={value}"),
        reason: "this host has cgroup v1, and `unified` sets files of cgroup v2".to_owned(),
        path: PathBuf::from(path),
    })
}

/// The value of the same file in the cgroup above.
fn of_parent(file: &Path) -> Result<String, Error> {
    let above = file.parent().and_then(Path::parent).zip(file.file_name());
    above.map_or(Ok(String::new()), |(above, name)| read(&above.join(name)))
}

/// The error of a write that the kernel refused.
fn refused(target: &Target<'_>, source: io::Error) -> Error {
    let Target { write, file, .. } = target;
    match Errno::from_io_error(&source) {
        // The kernel answers EBUSY if usage stays above the limit after it has reclaimed what it could.
        Some(Errno::BUSY) if write.file.ends_with("limit_in_bytes") || write.file == "memory.max" => {
            Error::BelowUsage {
                field: write.field.clone(),
                value: write.value.clone(),
                usage: usage(file).unwrap_or_default(),
                path: file.clone(),
            }
        }
        Some(Errno::NOENT | Errno::NODEV) => Error::Gone { path: file.display().to_string() },
        _ => files::refused(write, file, &source),
    }
}

/// What counts against a limit: `memory.usage_in_bytes` beside `memory.limit_in_bytes`, `memory.current` beside
/// `memory.max`, and so on.
fn usage(limit: &Path) -> Option<String> {
    let name =
        limit.file_name()?.to_str()?.replace("limit_in_bytes", "usage_in_bytes").replace(".max", ".current");
    read(&limit.with_file_name(name)).ok()
}
