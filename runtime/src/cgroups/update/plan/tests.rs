//! Random updates on a model of the kernel's checks.

use super::*;
use proptest::prelude::*;
use std::collections::BTreeMap;

/// The files of a v1 cgroup, and what the kernel compares them with.
#[derive(Debug, Clone, PartialEq)]
struct Kernel {
    files: BTreeMap<&'static str, i64>,
    /// Bytes in use that cannot be reclaimed.
    usage: i64,
    /// CPUs of the cgroup above, and of one below.
    above: f64,
    below: f64,
}

const MEMORY: &str = "memory.limit_in_bytes";
const BOTH: &str = "memory.memsw.limit_in_bytes";
const PERIOD: &str = "cpu.cfs_period_us";
const QUOTA: &str = "cpu.cfs_quota_us";
const SHARES: &str = "cpu.shares";
const FILES: [&str; 5] = [SHARES, PERIOD, QUOTA, MEMORY, BOTH];
/// How the kernel shows that there is no limit.
const NONE: i64 = 9_223_372_036_854_771_712;

impl Kernel {
    fn get(&self, file: &str) -> i64 {
        self.files[file]
    }

    /// Whether it accepts these values together.
    fn check(&self) -> io::Result<()> {
        let quota = self.get(QUOTA);
        #[expect(clippy::cast_precision_loss, reason = "small numbers")]
        let cpus = if quota < 0 { self.above } else { quota as f64 / self.get(PERIOD) as f64 };
        if self.get(MEMORY) > self.get(BOTH) || cpus > self.above + 1e-9 || cpus + 1e-9 < self.below {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        if self.get(MEMORY).min(self.get(BOTH)) < self.usage {
            return Err(io::ErrorKind::ResourceBusy.into());
        }
        Ok(())
    }

    fn put(&mut self, file: &'static str, value: &str) -> io::Result<()> {
        let mut value: i64 = value.parse().map_err(io::Error::other)?;
        if file.starts_with("memory.") {
            value = if value < 0 { NONE } else { value / 4096 * 4096 };
        }
        let mut next = self.clone();
        next.files.insert(file, value);
        next.check()?;
        *self = next;
        Ok(())
    }

    fn with(&self, update: &[(&'static str, i64)]) -> Self {
        let mut next = self.clone();
        for (file, value) in update {
            let none = file.starts_with("memory.") && *value < 0;
            next.files.insert(file, if none { NONE } else { *value });
        }
        next
    }

    fn changes(&self, update: &[(&'static str, i64)]) -> Vec<Change> {
        let change = |(file, value): &(&'static str, i64)| Change {
            file: (*file).to_owned(),
            before: self.get(file).to_string(),
            after: value.to_string(),
        };
        update.iter().map(change).collect()
    }
}

fn name(change: &Change) -> &'static str {
    FILES.into_iter().find(|file| *file == change.file).unwrap()
}

fn kernels() -> impl Strategy<Value = Kernel> {
    let memory = || prop_oneof![Just(NONE), (1..9_i64).prop_map(|mib| mib << 20)];
    let quota = prop_oneof![Just(-1), (1..9_i64).prop_map(|k| k * 10_000)];
    let numbers = (memory(), memory(), 0..9_i64, 1..9_i64, quota, 2..5_i64, 1..5_u8, 0..5_u8);
    let kernel = |(memory, both, usage, period, quota, shares, above, below)| Kernel {
        files: [(MEMORY, memory), (BOTH, both), (PERIOD, period * 10_000), (QUOTA, quota), (SHARES, shares)]
            .into(),
        usage: usage << 20,
        above: f64::from(above),
        below: f64::from(below) / 4.0,
    };
    numbers.prop_map(kernel).prop_filter("it accepts its own values", |kernel| kernel.check().is_ok())
}

/// Files in the order in which `spec` writes them, each with a new value or not.
fn updates() -> impl Strategy<Value = Vec<(&'static str, i64)>> {
    let memory = || prop_oneof![Just(-1), (1..9_i64).prop_map(|mib| mib << 20)];
    let quota = prop_oneof![Just(-1), (1..9_i64).prop_map(|k| k * 10_000)];
    let some = prop::option::of::<BoxedStrategy<i64>>;
    let values = (
        some((2..5_i64).boxed()),
        some((1..9_i64).prop_map(|k| k * 10_000).boxed()),
        some(quota.boxed()),
        some(memory().boxed()),
        some(memory().boxed()),
    );
    values.prop_map(|(shares, period, quota, memory, both)| {
        let values = [shares, period, quota, memory, both];
        FILES.into_iter().zip(values).filter_map(|(file, value)| Some((file, value?))).collect()
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4000, failure_persistence: None, ..ProptestConfig::default() })]

    /// If the kernel accepts the new values, no write on the way to them is refused; otherwise nothing has changed.
    #[test]
    fn an_update_is_whole_or_nothing(kernel in kernels(), update in updates()) {
        let changes = kernel.changes(&update);
        let steps = steps(changes.iter());
        let (mut now, wanted) = (kernel.clone(), kernel.with(&update));
        let done = perform(&steps, |step, value| now.put(name(&changes[step.change]), value));
        if wanted.check().is_ok() {
            prop_assert!(done.is_ok(), "{:?} {:?}", steps, done);
            prop_assert_eq!(now, wanted);
        } else {
            let failed = done.unwrap_err();
            prop_assert!(failed.not_undone.is_empty(), "{:?}", failed);
            prop_assert_eq!(now, kernel);
        }
    }

    /// Whichever write fails for another reason, the ones before it are undone.
    #[test]
    fn a_write_that_fails_is_undone_with_those_before_it(kernel in kernels(), update in updates(), fails in 0..6_usize) {
        let changes = kernel.changes(&update);
        let steps = steps(changes.iter());
        if kernel.with(&update).check().is_err() || steps.is_empty() {
            return Ok(());
        }
        let fails = fails % steps.len();
        let (mut now, mut writes) = (kernel.clone(), 0);
        let failed = perform(&steps, |step, value| {
            writes += 1;
            if writes == fails + 1 { Err(io::ErrorKind::Interrupted.into()) } else { now.put(name(&changes[step.change]), value) }
        });
        let failed = failed.unwrap_err();
        prop_assert_eq!(failed.step, fails);
        prop_assert!(failed.not_undone.is_empty(), "{:?}", failed);
        prop_assert_eq!(now, kernel);
    }

    /// What was written is recognized when it is read, and a file that has its value is not written.
    #[test]
    fn written_values_are_recognized(kernel in kernels(), update in updates()) {
        let wanted = kernel.with(&update);
        let changes = wanted.changes(&update);
        prop_assert!(changes.iter().all(|change| !change.changes()), "{:?}", changes);
        prop_assert!(steps(changes.iter()).is_empty());
        for change in kernel.changes(&update) {
            let same = wanted.get(name(&change)) == kernel.get(name(&change));
            prop_assert_eq!(change.changes(), !same, "{:?}", change);
        }
    }

    #[test]
    fn no_text_of_a_file_is_a_panic(file in "(cpuset.cpus|hugetlb.[0-9]{0,40}MB.limit_in_bytes|memory.x|x)", after in ".{0,30}", before in "[-0-9,]{0,60}") {
        let change = Change { file, before, after };
        drop(steps([&change].into_iter()));
    }
}

#[test]
fn values_as_the_kernel_shows_them() {
    for (file, wanted, found) in [
        ("cpuset.cpus", "0-3,8", "0-3,8"),
        ("cpuset.cpus", "3,0,1,2", "0-3"),
        ("cpuset.cpus", "0-1,1-2", "0-2"),
        ("memory.limit_in_bytes", "1048577", "1048576"),
        ("memory.limit_in_bytes", "-1", "9223372036854771712"),
        ("memory.memsw.limit_in_bytes", "-1", "9223372036854710272"),
        ("hugetlb.2MB.limit_in_bytes", "2097153", "2097152"),
        ("hugetlb.1GB.limit_in_bytes", "-1", "9223372035781033984"),
        ("cpu.cfs_quota_us", "-1", "-1"),
        ("cpu.shares", "2", "2"),
    ] {
        assert!(is_same(file, wanted, found), "{file} {wanted} {found}");
    }
    for (file, wanted, found) in [
        ("cpuset.cpus", "0-3", "0-2"),
        ("cpuset.cpus", "0", ""),
        ("memory.limit_in_bytes", "1048576", "1179648"),
        ("memory.limit_in_bytes", "1048576", "9223372036854771712"),
        ("hugetlb.2MB.limit_in_bytes", "4194304", "2097152"),
        ("cpu.shares", "1024", "1023"),
        ("cpu.cfs_quota_us", "-1", "5000"),
        ("cpu.cfs_quota_us", "5000", "-1"),
    ] {
        assert!(!is_same(file, wanted, found), "{file} {wanted} {found}");
    }
}
