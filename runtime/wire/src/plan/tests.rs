//! A plan with a field or a variant that this version does not know is refused.

use super::*;
use serde_json::{Value, json};

fn fuse() -> DeviceNode {
    DeviceNode { path: "/dev/fuse".into(), kind: 'c', major: 10, minor: 229, mode: 0o666, uid: 0, gid: 0 }
}

fn container() -> ContainerPlan {
    let mount = MountPlan::new;
    ContainerPlan {
        id: "ab".repeat(32).parse().unwrap(),
        pod: "cd".repeat(32).parse().unwrap(),
        namespaces: NamespacePlan::default(),
        rootfs: RootfsPlan::default(),
        mounts: vec![
            mount("/a", MountKind::Bind { source: "/x".into(), propagation: Propagation::Private }),
            mount("/b", MountKind::Tmpfs { mode: 0o755, size: 0 }),
            mount("/c", MountKind::Proc),
            mount(
                "/d",
                MountKind::Image {
                    image: "sha256:d".into(),
                    layers: vec!["1".to_owned().into()],
                    sub_path: "x".into(),
                },
            ),
        ],
        devices: vec![fuse()],
        masked_paths: Vec::new(),
        readonly_paths: Vec::new(),
        user: UserPlan::default(),
        process: ProcessPlan {
            seccomp: Some(SeccompProgram { instructions: vec![1] }),
            rlimits: vec![Rlimit { resource: 7, soft: 1, hard: 2 }],
            ..ProcessPlan::default()
        },
        cgroup: CgroupPlan {
            unified: false,
            members: vec![CgroupMember { hierarchy: "memory".into(), path: "/x".into() }],
        },
        privileged: false,
        file_label: String::new(),
    }
}

/// Every object inside a value, with its path.
fn objects(value: &Value, at: String, found: &mut Vec<String>) {
    match value {
        Value::Object(fields) => {
            found.push(at.clone());
            fields.iter().for_each(|(name, inner)| objects(inner, format!("{at}/{name}"), found));
        }
        Value::Array(items) => {
            items.iter().enumerate().for_each(|(place, inner)| objects(inner, format!("{at}/{place}"), found))
        }
        _ => {}
    }
}

#[test]
fn an_unknown_field_anywhere_in_a_plan_is_refused() {
    let plan = serde_json::to_value(container()).unwrap();
    assert_eq!(serde_json::from_value::<ContainerPlan>(plan.clone()).unwrap(), container());
    for newer in ["recursive", "idmap", "\"user\":null", "apparmor", "selinux", "label"] {
        assert!(!plan.to_string().contains(newer), "older shims would refuse every plan: {newer}");
    }
    let mut places = Vec::new();
    objects(&plan, String::new(), &mut places);
    assert!(places.len() > 14, "{places:?}");
    for place in places {
        let mut with = plan.clone();
        let fields = with.pointer_mut(&place).and_then(Value::as_object_mut).unwrap();
        fields.insert("landlock".to_owned(), json!("confined"));
        let failure = parse_plan::<ContainerPlan>(with.to_string().as_bytes()).unwrap_err();
        assert_eq!(failure.kind, ErrorKind::Unsupported, "a field more in {place:?}");
    }
    let mut exec = json!({"process": {}, "user": {"uid": 0, "gid": 0, "groups": []}});
    assert!(serde_json::from_value::<ExecPlan>(exec.clone()).is_ok());
    exec["selinux"] = json!(1);
    assert!(serde_json::from_value::<ExecPlan>(exec).is_err());
    assert!(serde_json::from_value::<PausePlan>(json!({"uts": true})).is_ok());
    assert!(serde_json::from_value::<PausePlan>(json!({"uts": true, "user_namespace": true})).is_err());
}

#[test]
fn an_unknown_variant_in_a_plan_is_refused() {
    for (place, value) in [
        ("/mounts/2/kind", json!("Dataset")),
        ("/mounts/2/kind", json!({"Dataset": {"id": "x"}})),
        ("/namespaces/pid", json!("Session")),
        ("/mounts/0/kind/Bind/propagation", json!("Unbindable")),
    ] {
        let mut plan = serde_json::to_value(container()).unwrap();
        *plan.pointer_mut(place).unwrap() = value.clone();
        assert!(serde_json::from_value::<ContainerPlan>(plan).is_err(), "{value} at {place}");
    }
}
