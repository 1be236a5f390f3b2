//! The programs are run by an interpreter and compared with v1's controller, as `security/device_cgroup.c` defines it,
//! written down once more without regard to speed.

use super::*;
use crate::devices::{HostDevice, MAX_NODES, rules};
use model::Device;
use proptest::prelude::*;

/// An exception of v1's controller: type, numbers (the greatest is any), access bits.
type Exception = (char, u32, u32, u8);

fn bits(access: &str) -> u8 {
    [('m', 1), ('r', 2), ('w', 4)]
        .into_iter()
        .filter(|(letter, _)| access.contains(*letter))
        .map(|one| one.1)
        .sum()
}

/// The default and the exceptions to it.
fn written(rules: &[DeviceRule]) -> (bool, Vec<Exception>) {
    let (mut allow, mut exceptions) = (true, Vec::<Exception>::new());
    for rule in rules {
        if rule.kind == 'a' {
            (allow, exceptions) = (rule.allow, Vec::new());
            continue;
        }
        let (major, minor) = (rule.major.unwrap_or(u32::MAX), rule.minor.unwrap_or(u32::MAX));
        let access = bits(&rule.access);
        let same = exceptions.iter().position(|e| (e.0, e.1, e.2) == (rule.kind, major, minor));
        match (rule.allow == allow, same) {
            (true, Some(same)) => exceptions[same].3 &= !access,
            (true, None) => {}
            (false, Some(same)) => exceptions[same].3 |= access,
            (false, None) => exceptions.push((rule.kind, major, minor, access)),
        }
        exceptions.retain(|exception| exception.3 != 0);
    }
    (allow, exceptions)
}

/// What v1 answers to an access.
fn expected(state: &(bool, Vec<Exception>), kind: char, major: u32, minor: u32, access: u8) -> bool {
    let mut matching = state.1.iter().filter(|(of, its_major, its_minor, _)| {
        *of == kind && [u32::MAX, major].contains(its_major) && [u32::MAX, minor].contains(its_minor)
    });
    if state.0 {
        matching.all(|exception| exception.3 & access == 0)
    } else {
        matching.any(|exception| exception.3 & access == access)
    }
}

fn bytes(program: &Program) -> Vec<u8> {
    program.instructions().iter().flat_map(|instruction| instruction.to_le_bytes()).collect()
}

/// What the program answers: type and access in the kernel's bits.
fn run(machine: &rbpf::EbpfVmRaw<'_>, kind: u32, access: u32, major: u32, minor: u32) -> bool {
    let mut context: Vec<u8> =
        [access << 16 | kind, major, minor].iter().flat_map(|word| word.to_ne_bytes()).collect();
    match machine.execute_program(&mut context).unwrap() {
        0 => false,
        1 => true,
        other => panic!("returned {other}"),
    }
}

/// Every access to every device with these numbers.
fn compare(list: &[DeviceRule], majors: &[u32], minors: &[u32]) {
    let program = program(list).unwrap();
    let bytes = bytes(&program);
    let machine = rbpf::EbpfVmRaw::new(Some(&bytes)).unwrap();
    let state = written(list);
    for (kind, number) in [('b', BLOCK), ('c', CHAR)] {
        for (major, minor) in majors.iter().flat_map(|major| minors.iter().map(move |minor| (*major, *minor)))
        {
            for access in 0..8 {
                let answer = run(&machine, number, access.into(), major, minor);
                let expected = expected(&state, kind, major, minor, access);
                assert_eq!(answer, expected, "{kind} {major}:{minor} {access:03b} after {list:?}");
            }
        }
    }
}

/// What the kernel's verifier requires of jumps: forward, inside, and no instruction that none leads to.
fn assert_sound(program: &Program) {
    let code = program.instructions();
    let mut reached = vec![false; code.len()];
    reached[0] = true;
    for (at, instruction) in code.iter().enumerate() {
        assert!(reached[at], "{at} of {} is never reached", code.len());
        let [operation, _, low, high, ..] = instruction.to_le_bytes();
        let target = at + 1 + usize::try_from(i16::from_le_bytes([low, high])).unwrap();
        match (operation & 7, operation) {
            (5, 0x95) => {}
            (5, 0x05) => reached[target] = true,
            (6, _) => (reached[target], reached[at + 1]) = (true, true),
            _ => reached[at + 1] = true,
        }
    }
}

fn rule(allow: bool, kind: char, major: Option<u32>, minor: Option<u32>, access: &str) -> DeviceRule {
    DeviceRule { allow, kind, major, minor, access: access.to_owned() }
}

/// Few numbers, so that rules meet, and those at the ends.
fn number() -> impl Strategy<Value = Option<u32>> {
    prop_oneof![
        8 => (0u32..5).prop_map(Some),
        3 => Just(None),
        1 => prop::sample::select(vec![255, 1 << 20, 1 << 31, u32::MAX - 1, u32::MAX]).prop_map(Some),
    ]
}

fn a_rule() -> impl Strategy<Value = DeviceRule> {
    let kind = prop_oneof![1 => Just('a'), 8 => Just('b'), 8 => Just('c')];
    let access = prop::sample::select(vec!["r", "w", "m", "rw", "wm", "mr", "rwm", "rr"]);
    (any::<bool>(), kind, number(), number(), access)
        .prop_map(|(allow, kind, major, minor, access)| rule(allow, kind, major, minor, access))
}

proptest! {
    #[test]
    fn answers_are_those_of_v1(list in prop::collection::vec(a_rule(), 0..40)) {
        let numbers = [0, 1, 2, 3, 4, 5, 255, 1 << 20, 1 << 31, u32::MAX - 1];
        assert_sound(&program(&list).unwrap());
        compare(&list, &numbers, &numbers);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    /// Many ranges and single numbers, so that the search divides them.
    #[test]
    fn long_lists_are_searched(
        minors in prop::collection::btree_set(0u32..600, 0..300),
        majors in prop::collection::btree_set(0u32..90, 1..60),
        allow in any::<bool>(),
    ) {
        let mut list = vec![rule(!allow, 'a', None, None, "rwm"), rule(allow, 'c', None, None, "m")];
        let accesses = ["rwm", "r", "rw"];
        for (index, minor) in minors.iter().enumerate() {
            list.push(rule(allow, 'c', Some(8), Some(*minor), accesses[index / 7 % 3]));
        }
        list.extend(majors.iter().map(|major| rule(allow, 'b', Some(*major), None, "rw")));
        assert_sound(&program(&list).unwrap());
        let all: Vec<u32> = (0..602).collect();
        compare(&list, &[7, 8, 9], &all);
        compare(&list, &all[..92], &[0, 300]);
    }
}

#[test]
fn default_and_privileged_rules() {
    let default = program(&rules(&[], false, &[]).unwrap()).unwrap();
    assert_sound(&default);
    assert!(!default.allows_all());
    assert_eq!(default.instructions().len(), DEFAULT_INSTRUCTIONS);
    let numbers = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 135, 136, 137, 199, 200, 201, 229];
    compare(&rules(&[], false, &[]).unwrap(), &numbers, &numbers);
    let privileged = program(&rules(&[], true, &[]).unwrap()).unwrap();
    assert!(privileged.allows_all());
    // r0 = 1; exit
    assert_eq!(privileged.instructions(), [0x1_0000_00b4, 0x95]);
    assert!(program(&[]).unwrap().allows_all());
    // r0 = 0; exit
    let nothing = program(&[rule(false, 'a', None, None, "rwm")]).unwrap();
    assert_eq!(nothing.instructions(), [0xb4, 0x95]);
}

/// Of the rules of a container without devices in its request. ARCHITECTURE.md mentions it.
const DEFAULT_INSTRUCTIONS: usize = 33;

/// An unknown type of device, or access, is denied as soon as anything is.
#[test]
fn what_no_kernel_asks_is_denied() {
    for list in [rules(&[], false, &[]).unwrap(), vec![rule(false, 'c', Some(1), Some(1), "rwm")]] {
        let program = program(&list).unwrap();
        let bytes = bytes(&program);
        let machine = rbpf::EbpfVmRaw::new(Some(&bytes)).unwrap();
        assert!(run(&machine, CHAR, 2, 1, 3));
        for (kind, access) in
            [(CHAR, 8), (CHAR, 32), (CHAR, 0xffff), (BLOCK, 10), (0, 2), (3, 2), (0xffff, 2)]
        {
            assert!(!run(&machine, kind, access, 1, 3), "{kind} {access}");
        }
    }
}

/// As many devices as a container may have, no two of them side by side.
#[test]
fn the_greatest_number_of_devices_fits() {
    let found: Vec<HostDevice> = (0..u32::try_from(MAX_NODES).unwrap())
        .map(|n| HostDevice {
            path: format!("/dev/x/{n}"),
            kind: 'b',
            major: 253,
            minor: 2 * n,
            mode: 0o600,
            uid: 0,
            gid: 0,
        })
        .collect();
    let device =
        Device { host_path: "/dev/x".into(), container_path: String::new(), permissions: "rw".into() };
    let list = rules(&[device], false, &found).unwrap();
    let made = program(&list).unwrap();
    assert_sound(&made);
    assert!((16_384..MAX_INSTRUCTIONS).contains(&made.instructions().len()), "{}", made.instructions().len());
    let last = found.last().unwrap().minor;
    let bytes = bytes(&made);
    let machine = rbpf::EbpfVmRaw::new(Some(&bytes)).unwrap();
    for minor in (0..40).chain(last - 40..last + 4) {
        assert_eq!(run(&machine, BLOCK, 6, 253, minor), minor <= last && minor % 2 == 0, "{minor}");
    }
    // Side by side they are one range.
    let adjacent: Vec<DeviceRule> =
        list.iter().map(|rule| DeviceRule { minor: rule.minor.map(|n| n / 2), ..rule.clone() }).collect();
    assert!(program(&adjacent).unwrap().instructions().len() < 40);
}

#[test]
fn refuses_what_does_not_fit_and_what_v1_refuses() {
    let deny = rule(false, 'a', None, None, "rwm");
    // Other minors for each major: equal ones would be searched by the same code.
    let single = |n: u32| rule(true, 'c', Some(n % 4096), Some(n / 4096 * 2 + n % 4096 * 64), "rw");
    let list: Vec<DeviceRule> = [deny.clone()].into_iter().chain((0..40_000).map(single)).collect();
    let error = program(&list).unwrap_err().to_string();
    assert!(error.contains("40001 rules") && error.contains("32767 instructions"), "{error}");
    let any_major = |n: u32| rule(true, 'c', None, Some(n), "r");
    let list: Vec<DeviceRule> = (0..2000).map(single).chain((0..2000).map(any_major)).collect();
    let list = [vec![deny], list].concat();
    let error = program(&list).unwrap_err().to_string();
    assert!(error.contains("pairs"), "{error}");
    for wrong in
        [rule(true, 'u', None, None, "r"), rule(true, 'c', None, None, ""), rule(true, 'c', None, None, "x")]
    {
        let error = program(std::slice::from_ref(&wrong)).unwrap_err().to_string();
        assert!(error.contains("must be a rule"), "{error}");
    }
}
