//! What a cgroup of v1's device controller allows after rules were written to it (the kernel's
//! `security/device_cgroup.c`), as a map from devices to answers.
//!
//! The controller keeps a default, allow or deny, and a list of exceptions to it. A rule `a` sets the default and
//! empties the list. Any other rule adds to the exception of exactly its type and numbers if it contradicts the default,
//! and otherwise takes from that exception: `deny c 1:* r` does not undo `allow c 1:3 r`. With default deny, an access is
//! allowed if one single exception contains all of it; with default allow, it is denied if any exception contains a part.

use super::DeviceRule;
use crate::Error;
use std::collections::BTreeMap;

/// CRI name of the field that the rules come from.
pub(super) const FIELD: &str = "config.devices";
/// BPF_DEVCG_ACC_*: what an access does, in the kernel's bits.
const MKNOD: u8 = 1;
const READ: u8 = 2;
const WRITE: u8 = 4;
/// How many pairs of a major number and an exception for all majors are looked at. Rules that a request causes have no
/// exceptions for single minors of all majors, so there are two pairs for each major at most.
const MAX_PAIRS: usize = 1 << 20;

/// The answers for one device: bit `n` is set if the access with the kernel's bits `n` is allowed. (An access may have
/// no bits: access(2) with F_OK.)
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Answers(pub(super) u8);

impl Answers {
    /// Every access is denied.
    pub(super) const NONE: Self = Self(0);
    /// Every access is allowed.
    pub(super) const ALL: Self = Self(u8::MAX);

    /// Of a device that these exceptions match.
    fn new(allow_by_default: bool, exceptions: impl Iterator<Item = u8> + Clone) -> Self {
        let allowed = |access: u8| {
            let mut exceptions = exceptions.clone();
            if allow_by_default {
                !exceptions.any(|exception| access & exception != 0)
            } else {
                exceptions.any(|exception| access & !exception == 0)
            }
        };
        Self((0..8).filter(|access| allowed(*access)).fold(0, |bits, access| bits | 1 << access))
    }
}

/// A function of a number in steps: each has its first number and its value. The first step begins at 0, and steps side
/// by side have different values.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Steps<T>(Vec<(u32, T)>);

impl<T: Clone + PartialEq> Steps<T> {
    /// `elsewhere` except for these numbers, which are in ascending order.
    fn new(elsewhere: &T, values: impl Iterator<Item = (u32, T)>) -> Self {
        let mut steps = vec![(0, elsewhere.clone())];
        let mut push = |first: u32, value: T| {
            // The step after the previous number begins here, and so is empty.
            steps.pop_if(|last| last.0 == first);
            if steps.last().is_none_or(|last| last.1 != value) {
                steps.push((first, value));
            }
        };
        for (number, value) in values {
            push(number, value);
            if let Some(next) = number.checked_add(1) {
                push(next, elsewhere.clone());
            }
        }
        Self(steps)
    }

    /// The steps in ascending order.
    pub(super) fn steps(&self) -> &[(u32, T)] {
        &self.0
    }

    /// The value if it is the same for every number.
    pub(super) fn constant(&self) -> Option<&T> {
        match self.0.as_slice() {
            [(_, value)] => Some(value),
            _ => None,
        }
    }
}

/// The answers for the devices of one type: by major, then by minor.
pub(super) type Devices = Steps<Steps<Answers>>;

/// The state of the controller. Exceptions are by type, major and minor (`None`: any), with their access bits.
#[derive(Debug)]
pub(super) struct Controller {
    allow_by_default: bool,
    exceptions: BTreeMap<(char, Option<u32>, Option<u32>), u8>,
}

impl Controller {
    /// After these rules were written, in this order, to a new cgroup whose parent allows everything.
    ///
    /// # Errors
    /// A rule that the kernel refuses: a type that is none of a, c and b, or no access that [`super::is_access`] accepts.
    pub(super) fn after(rules: &[DeviceRule]) -> Result<Self, Error> {
        // As the kernel reads it: the greatest number means any.
        let number = |number: Option<u32>| number.filter(|number| *number != u32::MAX);
        let mut state = Self { allow_by_default: true, exceptions: BTreeMap::new() };
        for rule in rules {
            if rule.kind == 'a' {
                state = Self { allow_by_default: rule.allow, exceptions: BTreeMap::new() };
                continue;
            }
            if !matches!(rule.kind, 'b' | 'c') || !super::is_access(&rule.access) {
                let want =
                    "must be a rule for devices of type a, b or c with some of the accesses r, w and m";
                return Err(Error::invalid(FIELD, rule.to_string(), want));
            }
            let bits = rule.access.chars().fold(0, |bits, access| {
                bits | match access {
                    'r' => READ,
                    'w' => WRITE,
                    _ => MKNOD,
                }
            });
            let key = (rule.kind, number(rule.major), number(rule.minor));
            let exception = state.exceptions.entry(key).or_default();
            if rule.allow == state.allow_by_default {
                *exception &= !bits;
            } else {
                *exception |= bits;
            }
            // The kernel drops an exception without accesses; it would allow access(2) with F_OK.
            if *exception == 0 {
                state.exceptions.remove(&key);
            }
        }
        Ok(state)
    }

    /// The answers for the devices of a type, 'c' or 'b'.
    ///
    /// # Errors
    /// There are too many exceptions for single minors of all majors.
    pub(super) fn devices(&self, kind: char) -> Result<Devices, Error> {
        let mut by_major: BTreeMap<Option<u32>, Vec<(Option<u32>, u8)>> = BTreeMap::new();
        for ((of, major, minor), bits) in &self.exceptions {
            if *of == kind {
                by_major.entry(*major).or_default().push((*minor, *bits));
            }
        }
        let any = by_major.remove(&None).unwrap_or_default();
        if any.len().saturating_mul(by_major.len()) > MAX_PAIRS {
            let want = format!(
                "at most {MAX_PAIRS} pairs of a major number and a rule for all major numbers are supported"
            );
            return Err(Error::unsupported(FIELD, format!("{} rules", self.exceptions.len()), want));
        }
        let majors = by_major.into_iter().filter_map(|(major, mut own)| {
            own.extend(&any);
            Some((major?, self.minors(&own)))
        });
        Ok(Steps::new(&self.minors(&any), majors))
    }

    /// The answers for the devices of a major number, which these exceptions (minor, access bits) match.
    fn minors(&self, exceptions: &[(Option<u32>, u8)]) -> Steps<Answers> {
        let mut by_minor: BTreeMap<Option<u32>, Vec<u8>> = BTreeMap::new();
        for (minor, bits) in exceptions {
            by_minor.entry(*minor).or_default().push(*bits);
        }
        let any = by_minor.remove(&None).unwrap_or_default();
        let answers = |own: &[u8]| Answers::new(self.allow_by_default, own.iter().chain(&any).copied());
        let minors = by_minor.iter().filter_map(|(minor, own)| Some(((*minor)?, answers(own))));
        Steps::new(&answers(&[]), minors)
    }
}
