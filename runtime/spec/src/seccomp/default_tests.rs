use super::*;
use std::collections::{BTreeMap, BTreeSet};

#[test]
fn no_name_has_two_plain_rules() {
    for caps in [0, u64::MAX] {
        let mut seen = BTreeSet::new();
        for rule in runtime_default(Arch::X86_64, caps).rules.iter().filter(|rule| rule.args.is_empty()) {
            for name in &rule.names {
                assert!(seen.insert(name.clone()), "{name} twice");
            }
        }
        for tested in ["socket", "personality"] {
            assert!(!seen.contains(tested));
        }
    }
}

#[test]
fn capabilities_open_calls() {
    let find = |caps, name: &str| {
        let profile = runtime_default(Arch::X86_64, caps);
        let rule = profile.rules.iter().find(|rule| rule.names.iter().any(|n| n == name)).unwrap();
        (rule.action, rule.args.len())
    };
    assert_eq!(find(0, "mount"), (EPERM, 0));
    assert_eq!(find(mask_of(&["SYS_ADMIN"]), "mount"), (Action::Allow, 0));
    assert_eq!(find(mask_of(&["BPF"]), "bpf"), (Action::Allow, 0));
    assert_eq!(find(0, "clone"), (Action::Allow, 1));
    assert_eq!(find(0, "clone3"), (ENOSYS, 0));
    assert_eq!(find(mask_of(&["SYS_ADMIN"]), "clone3"), (Action::Allow, 0));
    assert_eq!(RELEVANT_CAPS & mask_of(&["CHOWN"]), 0);
    let all = NAMESPACE_FLAGS.iter().fold(0, |all, flag| all | flag);
    assert_eq!(all, 0x7e02_0000);
}
