//! SELinux labels: their syntax, the defaults of a policy for containers, and what a request makes of them.
//!
//! A label is `user:role:type:level`. A level has a sensitivity and categories, `s0:c1,c2`. Where the policy constrains
//! containers by their categories (MCS), a process can only access files whose categories it has: the pair of each pod keeps
//! the pods apart, and files without categories are shared.

use model::{SelinuxLabels, SelinuxOptions};
use std::fmt;

/// Number of categories of a policy: `c0` to `c1023`.
pub const CATEGORIES: u16 = 1024;
/// Number of sensitivities, `s0` to `s15`.
const SENSITIVITIES: u16 = 16;
/// Maximum length in bytes of a level, and of another part of a label.
const MAX_LEVEL: usize = 1024;
const MAX_PART: usize = 128;
/// The level of files that all pods share.
const SHARED: &str = "s0";
/// The type of containers that the policy does not confine; their volumes keep their labels.
const UNCONFINED: &str = "spc_t";

/// A label in parts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Label {
    user: String,
    role: String,
    kind: String,
    /// Empty with a policy without levels.
    level: String,
}

impl Label {
    /// Parses `user:role:type` or `user:role:type:level`; `None` if it is neither.
    pub fn parse(text: &str) -> Option<Self> {
        let mut parts = text.splitn(4, ':').map(str::to_owned);
        let mut part = || parts.next().filter(|part| is_part(part));
        let (user, role, kind) = (part()?, part()?, part()?);
        let level = parts.next().unwrap_or_default();
        (level.is_empty() || is_level(&level)).then_some(Self { user, role, kind, level })
    }

    /// Its level.
    pub fn level(&self) -> &str {
        &self.level
    }
}

impl fmt::Display for Label {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { user, role, kind, level } = self;
        write!(f, "{user}:{role}:{kind}")?;
        if level.is_empty() { Ok(()) } else { write!(f, ":{level}") }
    }
}

/// Whether it can be the user, role or type of a label.
pub fn is_part(text: &str) -> bool {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.');
    !text.is_empty() && text.len() <= MAX_PART && text.bytes().all(allowed)
}

/// Whether it is a level, or a range of two: `s0`, `s0:c1,c2`, `s0-s0:c0.c1023`.
pub fn is_level(text: &str) -> bool {
    let one = |level: &str| {
        let (sensitivity, categories) = level.split_once(':').map_or((level, None), |(s, c)| (s, Some(c)));
        number(sensitivity, 's', SENSITIVITIES).is_some() && categories.is_none_or(are_categories)
    };
    text.len() <= MAX_LEVEL && text.splitn(2, '-').all(one)
}

/// `c1,c5.c9`: categories, and ranges of them.
fn are_categories(text: &str) -> bool {
    let category = |text| number(text, 'c', CATEGORIES);
    text.split(',').all(|item| match item.split_once('.') {
        None => category(item).is_some(),
        Some((first, last)) => category(first).zip(category(last)).is_some_and(|(first, last)| first < last),
    })
}

/// The number after `letter`, if it is below `limit` and written with at most four digits.
fn number(text: &str, letter: char, limit: u16) -> Option<u16> {
    let digits = text.strip_prefix(letter)?;
    let plain = (1..=4).contains(&digits.len()) && digits.bytes().all(|b| b.is_ascii_digit());
    digits.parse().ok().filter(|number| plain && *number < limit)
}

/// Two different categories, the lower one first. As a level, it is what a pod has for itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Pair(u16, u16);

impl Pair {
    /// `None` unless they are two different categories.
    pub fn new(one: u16, other: u16) -> Option<Self> {
        let (low, high) = (one.min(other), one.max(other));
        (low < high && high < CATEGORIES).then_some(Self(low, high))
    }

    /// The pair that `level` is; `None` for any other level.
    pub fn of_level(level: &str) -> Option<Self> {
        let (one, other) = level.strip_prefix("s0:")?.split_once(',')?;
        Self::new(number(one, 'c', CATEGORIES)?, number(other, 'c', CATEGORIES)?)
    }

    /// The level.
    pub fn level(self) -> String {
        format!("s0:c{},c{}", self.0, self.1)
    }
}

/// What a policy gives to containers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Defaults {
    /// The label of processes.
    pub process: Label,
    /// The label of files.
    pub file: Label,
}

impl Defaults {
    /// Reads the policy's file of containers (`lxc_contexts`, selinux_lxc_contexts_path(3)): lines of `name = "label"`.
    /// `None` without a label for processes or one for files: the policy does not know containers.
    pub fn parse(text: &str) -> Option<Self> {
        let find = |name: &str| {
            let mut values = text.lines().filter_map(|line| {
                let (key, value) = line.split_once('=')?;
                (key.trim() == name).then(|| value.trim().trim_matches('"'))
            });
            // Of two lines the later one counts, as with other readers of this file.
            values.next_back().and_then(Label::parse)
        };
        Some(Self { process: find("process")?, file: find("file")? })
    }

    /// The labels of an object: the defaults, with the level `level` unless the policy has none, and then with the parts that
    /// are asked for. Files have the user and the level of processes.
    pub fn labels(&self, asked: &SelinuxOptions, level: &str) -> SelinuxLabels {
        let (mut process, mut file) = (self.process.clone(), self.file.clone());
        if !process.level.is_empty() {
            level.clone_into(&mut process.level);
        }
        let SelinuxOptions { user, role, kind, level } = asked;
        for (part, asked) in [
            (&mut process.user, user),
            (&mut process.role, role),
            (&mut process.kind, kind),
            (&mut process.level, level),
        ] {
            if !asked.is_empty() {
                part.clone_from(asked);
            }
        }
        if !user.is_empty() {
            file.user.clone_from(user);
        }
        file.level.clone_from(&process.level);
        SelinuxLabels { process: process.to_string(), file: file.to_string() }
    }
}

/// The level of a label; empty if it has none.
pub fn level_of(label: &str) -> &str {
    label.splitn(4, ':').nth(3).unwrap_or_default()
}

/// Whether the volumes of a container with this label are relabelled.
pub(crate) fn relabels(process: &str) -> bool {
    process.split(':').nth(2) != Some(UNCONFINED)
}

/// The label that the pod's files below /etc must get for a container with files labelled `file`: none, if the container has
/// the pod's level. Otherwise one that both can access: the pod's other containers must be able to as well.
pub(crate) fn of_shared_files(pod: &str, file: &str) -> Option<String> {
    if level_of(pod) == level_of(file) {
        return None;
    }
    let shared = Label::parse(pod).map(|label| Label { level: SHARED.to_owned(), ..label });
    shared.map(|label| label.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Debian's file.
    const FILE: &str = "process = \"system_u:system_r:container_t:s0\"\n\
        content = \"system_u:object_r:virt_var_lib_t:s0\"\n\
        file = \"system_u:object_r:container_file_t:s0\"\n\
        ro_file = \"system_u:object_r:container_ro_file_t:s0\"\n";

    fn options(kind: &str, level: &str) -> SelinuxOptions {
        SelinuxOptions { kind: kind.into(), level: level.into(), ..SelinuxOptions::default() }
    }

    #[test]
    fn levels() {
        for level in
            ["s0", "s15", "s0:c0", "s0:c4,c5", "s0:c0.c1023", "s0-s0:c0.c1023", "s0:c1,c3.c5,c7-s2:c9"]
        {
            assert!(is_level(level), "{level}");
        }
        let long = format!("s0:{}", vec!["c1"; 1000].join(","));
        for level in [
            "",
            "s",
            "0",
            "s16",
            "s0,c4,c5",
            "s0:",
            "s0:c",
            "s0:c1024",
            "s0:c00001",
            "s0:c1,",
            "s0:c5.c4",
            "s0-",
            "-s0",
            "s0:c1-",
            "s0:c1 ",
            "S0",
            "s+1",
            "s0:c1.c2.c3",
            "s0-s0-s0",
            &long,
        ] {
            assert!(!is_level(level), "{level}");
        }
    }

    #[test]
    fn labels_in_parts() {
        let label = Label::parse("system_u:system_r:container_t:s0:c1,c2").unwrap();
        assert_eq!(label.level(), "s0:c1,c2");
        assert_eq!(label.to_string(), "system_u:system_r:container_t:s0:c1,c2");
        assert_eq!(Label::parse("u:r:t").unwrap().to_string(), "u:r:t");
        for wrong in ["", "u", "u:r", "u::t:s0", "u:r:t:x", "u:r:t t:s0", "u:r:t\0:s0", ":::"] {
            assert_eq!(Label::parse(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn the_policys_file_is_read() {
        let defaults = Defaults::parse(FILE).unwrap();
        assert_eq!(defaults.process.to_string(), "system_u:system_r:container_t:s0");
        assert_eq!(defaults.file.to_string(), "system_u:object_r:container_file_t:s0");
        let commented = format!("# process = \"u:r:other_t:s0\"\n\n;x\n{FILE}process=u:r:last_t:s0\n");
        assert_eq!(Defaults::parse(&commented).unwrap().process.to_string(), "u:r:last_t:s0");
        for without in ["", "process = \"u:r:t:s0\"", "file = \"u:r:t:s0\"\nprocess = \"damaged\""] {
            assert_eq!(Defaults::parse(without), None, "{without}");
        }
    }

    #[test]
    fn a_request_replaces_parts_of_the_defaults() {
        let defaults = Defaults::parse(FILE).unwrap();
        let of = |asked: &SelinuxOptions| {
            let SelinuxLabels { process, file } = defaults.labels(asked, "s0:c7,c8");
            (process, file)
        };
        let own = |process: &str, file: &str| (process.to_owned(), file.to_owned());
        assert_eq!(
            of(&options("", "")),
            own("system_u:system_r:container_t:s0:c7,c8", "system_u:object_r:container_file_t:s0:c7,c8")
        );
        assert_eq!(
            of(&options("svirt_lxc_net_t", "s0:c4,c5")),
            own("system_u:system_r:svirt_lxc_net_t:s0:c4,c5", "system_u:object_r:container_file_t:s0:c4,c5")
        );
        let all = SelinuxOptions { user: "staff_u".into(), role: "staff_r".into(), ..options("", "s0") };
        assert_eq!(of(&all), own("staff_u:staff_r:container_t:s0", "staff_u:object_r:container_file_t:s0"));
        let flat = Defaults::parse("process = u:r:t\nfile = u:object_r:f\n").unwrap();
        assert_eq!(flat.labels(&options("", ""), "s0:c1,c2").file, "u:object_r:f", "a policy without levels");
    }

    #[test]
    fn files_of_the_pod_are_shared_with_a_container_of_another_level() {
        let pod = "system_u:object_r:container_file_t:s0:c1,c2";
        assert_eq!(of_shared_files(pod, "other_u:object_r:x_t:s0:c1,c2"), None);
        let shared = "system_u:object_r:container_file_t:s0";
        assert_eq!(
            of_shared_files(pod, "system_u:object_r:container_file_t:s0:c3,c4").as_deref(),
            Some(shared)
        );
        assert!(relabels("u:r:container_t:s0") && !relabels("u:r:spc_t:s0"));
    }

    proptest! {
        #[test]
        fn pairs_are_levels(one in any::<u16>(), other in any::<u16>()) {
            if let Some(pair) = Pair::new(one, other) {
                prop_assert!(is_level(&pair.level()));
                prop_assert_eq!(Pair::of_level(&pair.level()), Some(pair));
                prop_assert_eq!(Pair::new(other, one), Some(pair));
            } else {
                prop_assert!(one == other || one.max(other) >= CATEGORIES);
            }
        }

        #[test]
        fn no_text_is_too_much(text in "\\PC{0,64}") {
            drop((is_level(&text), Pair::of_level(&text), Defaults::parse(&text)));
            if let Some(label) = Label::parse(&text) {
                prop_assert_eq!(label.to_string(), text.trim_end_matches(':'));
            }
        }
    }
}
