//! Changes limits of a v1 leaf that has processes, for UpdateContainerResources. Only tests call it so far.

use super::v1::{file, put, read, refused};
use super::{Cgroups, Error, Failures, names};
use spec::resources::Write;
use std::path::PathBuf;

impl Cgroups {
    /// Changes limits of an existing leaf in the order that the kernel accepts. On an error the previous
    /// values are restored.
    #[cfg_attr(not(test), expect(dead_code, reason = "UpdateContainerResources is not implemented yet"))]
    pub(crate) fn update(&self, path: &str, writes: &[Write]) -> Result<(), Error> {
        names::check(path)?;
        let mut steps = Vec::with_capacity(writes.len());
        for write in writes {
            if let Some(file) = file(&self.hierarchies, path, write)? {
                let before = read(&file)?;
                steps.push(Step { write, file, before });
            }
        }
        order(&mut steps);
        for (done, step) in steps.iter().enumerate() {
            let Err(source) = put(&step.file, &step.write.value) else { continue };
            let mut failures = Failures::default();
            failures.note::<()>(Err(refused(step.write, &step.file, &source)));
            for earlier in steps[..done].iter().rev() {
                let restored = put(&earlier.file, &earlier.before);
                failures.note(restored.map_err(|source| Error::io("restore", &earlier.file, source)));
            }
            return failures.into_result();
        }
        Ok(())
    }
}

/// One write, and the value before it.
struct Step<'a> {
    write: &'a Write,
    file: PathBuf,
    before: String,
}

/// A value as the kernel compares it: -1 means no limit.
fn bytes(value: &str) -> u64 {
    value.parse::<i128>().map_or(u64::MAX, |number| u64::try_from(number).unwrap_or(u64::MAX))
}

/// Orders pairs of files that the kernel checks against each other. The limit of memory and swap together may never be
/// lower than that of memory: it is raised first, and lowered last. The quota divided by the period may never be more than
/// the parent's: so a period that becomes shorter is written after the quota, and one that becomes longer before it.
fn order(steps: &mut [Step<'_>]) {
    let at = |steps: &[Step<'_>], file: &str| steps.iter().position(|step| step.write.file == file);
    let memory = at(steps, "memory.limit_in_bytes").zip(at(steps, "memory.memsw.limit_in_bytes"));
    if let Some((memory, both)) = memory {
        let raises = bytes(&steps[both].write.value) > bytes(&steps[both].before);
        if raises == (memory < both) {
            steps.swap(memory, both);
        }
    }
    let cpu = at(steps, "cpu.cfs_period_us").zip(at(steps, "cpu.cfs_quota_us"));
    if let Some((period, quota)) = cpu {
        let shortens = bytes(&steps[period].write.value) < bytes(&steps[period].before);
        if shortens == (period < quota) {
            steps.swap(period, quota);
        }
    }
}
