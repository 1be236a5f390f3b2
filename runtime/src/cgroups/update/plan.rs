//! The order of an update's writes. Pure.

use std::io;

/// An unlimited counter reads as the largest multiple of a page, or of a huge page (at most 16 GiB), below 2^63.
const UNLIMITED: i128 = i64::MAX as i128 - (16 << 30);
/// The value for no quota.
const NO_QUOTA: &str = "-1";

/// A file with its value and the one that is wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Change {
    /// Name of the file.
    pub(super) file: String,
    /// Its value now, as the kernel writes it.
    pub(super) before: String,
    /// The value that is wanted.
    pub(super) after: String,
}

impl Change {
    /// Whether the file has another value than the wanted one.
    pub(super) fn changes(&self) -> bool {
        !is_same(&self.file, &self.after, &self.before)
    }

    fn lifts_quota(&self) -> bool {
        limit(&self.after).is_none()
    }
}

/// One write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Step {
    /// Index of its change.
    pub(super) change: usize,
    /// The value to write.
    value: String,
    /// The value that the file has before it.
    undo: String,
}

/// A refused write, after which the earlier ones were undone.
#[derive(Debug)]
pub(super) struct Failed {
    /// Index of the step.
    pub(super) step: usize,
    /// Why it was refused.
    pub(super) error: io::Error,
    /// Earlier steps that could not be undone.
    pub(super) not_undone: Vec<(usize, io::Error)>,
}

/// Whether `found`, as the kernel writes it, is the value that was written as `wanted`.
fn is_same(file: &str, wanted: &str, found: &str) -> bool {
    if file.starts_with("cpuset.") {
        return ranges(wanted) == ranges(found);
    }
    let Ok(found_number) = found.parse::<i128>() else { return wanted == found };
    match limit(wanted) {
        None => limit(found).is_none(),
        Some(wanted) => (0..granularity(file)).contains(&(wanted - found_number)),
    }
}

/// The unit that the kernel rounds a value down to.
fn granularity(file: &str) -> i128 {
    if file.starts_with("memory.") && file != "memory.oom.group" {
        return sys::page::size().into();
    }
    let Some(size) = file.strip_prefix("hugetlb.").and_then(|rest| rest.split('.').next()) else { return 1 };
    let unit = |suffix: &str, unit: i128| Some(size.strip_suffix(suffix)?.parse::<i128>().ok()? * unit);
    unit("KB", 1 << 10).or_else(|| unit("MB", 1 << 20)).or_else(|| unit("GB", 1 << 30)).unwrap_or(1)
}

/// A limit; `None` means that there is none. The kernel accepts the suffixes K, M, G and T for bytes (memparse), which
/// `unified` may have.
fn limit(value: &str) -> Option<i128> {
    let suffixes = [('k', 10), ('m', 20), ('g', 30), ('t', 40)];
    let suffix = suffixes.into_iter().find_map(|(letter, shift)| {
        let digits = value.strip_suffix([letter, letter.to_ascii_uppercase()])?;
        Some((digits, shift))
    });
    let (digits, shift) = suffix.unwrap_or((value, 0));
    let number = digits.parse::<i128>().ok()?.checked_mul(1 << shift)?;
    (0..UNLIMITED).contains(&number).then_some(number)
}

/// The ranges of a cpuset list in order, merged.
fn ranges(list: &str) -> Vec<(u32, u32)> {
    let number = |text: &str| text.trim().parse::<u32>().ok();
    let range = |part: &str| match part.split_once('-') {
        Some((from, to)) => number(from).zip(number(to)),
        None => number(part).map(|one| (one, one)),
    };
    let mut all: Vec<(u32, u32)> = list.split(',').filter_map(range).collect();
    all.sort_unstable();
    let mut merged: Vec<(u32, u32)> = Vec::with_capacity(all.len());
    for (from, to) in all {
        match merged.last_mut() {
            Some((_, end)) if from <= end.saturating_add(1) => *end = to.max(*end),
            _ => merged.push((from, to)),
        }
    }
    merged
}

/// The writes, in an order in which the kernel accepts each one if it accepts the values before and after them. Files
/// that have the wanted value are not written.
///
/// The kernel checks two pairs of files against each other:
/// - The limit of memory and swap together may never be lower than that of memory: it is raised first and lowered last.
/// - A quota divided by its period may neither be more than that of the cgroup above nor less than that of one below. If
///   both change, the quota is removed before the period is written and set after it; meanwhile only the quota of the
///   cgroup above limits the processes.
pub(super) fn steps<'a>(changes: impl Iterator<Item = &'a Change>) -> Vec<Step> {
    let all: Vec<(usize, &Change)> = changes.enumerate().filter(|(_, change)| change.changes()).collect();
    let find = |file: &str| all.iter().copied().find(|(_, change)| change.file == file);
    let memory = find("memory.limit_in_bytes").zip(find("memory.memsw.limit_in_bytes"));
    let cpu = find("cpu.cfs_period_us").zip(find("cpu.cfs_quota_us"));
    let mut steps = Vec::with_capacity(all.len() + 1);
    for (at, change) in all.iter().copied() {
        match (change.file.as_str(), memory, cpu) {
            ("memory.memsw.limit_in_bytes", Some(_), _) | ("cpu.cfs_quota_us", _, Some(_)) => {}
            ("memory.limit_in_bytes", Some((memory, both)), _) => steps.extend(memory_pair(memory, both)),
            ("cpu.cfs_period_us", _, Some((period, quota))) => steps.extend(cpu_pair(period, quota)),
            _ => steps.push(whole((at, change))),
        }
    }
    steps
}

/// The write of a change as a whole.
fn whole((change, Change { before, after, .. }): (usize, &Change)) -> Step {
    Step { change, value: after.clone(), undo: before.clone() }
}

fn memory_pair(memory: (usize, &Change), both: (usize, &Change)) -> [Step; 2] {
    let value = |value: &str| limit(value).unwrap_or(i128::MAX);
    let raises = value(&both.1.after) > value(&both.1.before);
    if raises { [whole(both), whole(memory)] } else { [whole(memory), whole(both)] }
}

fn cpu_pair(period: (usize, &Change), quota: (usize, &Change)) -> Vec<Step> {
    let (change, Change { before, after, .. }) = quota;
    let write = |value: &str, undo: &str| Step { change, value: value.to_owned(), undo: undo.to_owned() };
    let lift = limit(before).map(|_| write(NO_QUOTA, before));
    let set = (!quota.1.lifts_quota()).then(|| write(after, NO_QUOTA));
    lift.into_iter().chain([whole(period)]).chain(set).collect()
}

/// Performs the writes by `put`, which gets a step and the value to write. After an error, those before it are undone in
/// reverse order; all of them are tried.
pub(super) fn perform(
    steps: &[Step],
    mut put: impl FnMut(&Step, &str) -> io::Result<()>,
) -> Result<(), Failed> {
    for (at, step) in steps.iter().enumerate() {
        let Err(error) = put(step, &step.value) else { continue };
        let earlier = steps.iter().enumerate().take(at).rev();
        let undo = |(at, step): (usize, &Step)| Some((at, put(step, &step.undo).err()?));
        let not_undone = earlier.filter_map(undo).collect();
        return Err(Failed { step: at, error, not_undone });
    }
    Ok(())
}

#[cfg(test)]
mod tests;
