use super::*;
use model::{PodConfig, PodId};

const FILE: &str = "process = \"system_u:system_r:container_t:s0\"\n\
    file = \"system_u:object_r:container_file_t:s0\"\n";

fn on() -> Selinux {
    Selinux::with(Support::On(Defaults::parse(FILE).unwrap()))
}

fn asks(kind: &str) -> SelinuxOptions {
    SelinuxOptions { kind: kind.into(), ..SelinuxOptions::default() }
}

fn pod(selinux: Option<SelinuxLabels>) -> PodRecord {
    PodRecord { selinux, ..PodRecord::new(PodId::from_random([1; 32]), PodConfig::default(), 1) }
}

fn labels() -> SelinuxLabels {
    Defaults::parse(FILE).unwrap().labels(&SelinuxOptions::default(), "s0:c1,c2")
}

#[tokio::test]
async fn without_selinux_requests_mean_nothing() {
    for support in [Support::Absent(false), Support::Absent(true), Support::Off] {
        let selinux = Selinux::with(support.clone());
        assert!(selinux.pod(&asks("other_t"), &[0; 32]).await.unwrap().is_none(), "{support:?}");
        assert_eq!(selinux.container(&pod(None), &asks("other_t")).await.unwrap(), None, "{support:?}");
        assert!(!selinux.is_on() && selinux.default_label().is_none());
    }
}

#[tokio::test]
async fn a_policy_without_containers_refuses_what_asks_for_a_label() {
    let selinux = Selinux::with(Support::Unusable("no file".into()));
    assert!(selinux.pod(&SelinuxOptions::default(), &[0; 32]).await.unwrap().is_none());
    let refused = selinux.pod(&asks("other_t"), &[0; 32]).await.unwrap_err();
    assert!(refused.kind == ErrorKind::FailedPrecondition && refused.text().contains("no file"));
    assert!(selinux.container(&pod(None), &asks("other_t")).await.is_err());
    assert_eq!(selinux.container(&pod(None), &SelinuxOptions::default()).await.unwrap(), None);
}

/// A container that asks for nothing needs no look at the policy, whatever the node has.
#[tokio::test]
async fn a_container_has_the_labels_of_its_pod() {
    for selinux in [on(), Selinux::absent()] {
        let made = selinux.container(&pod(Some(labels())), &SelinuxOptions::default()).await.unwrap();
        assert_eq!(made, Some(labels()));
    }
    // It was started by a daemon that gave none.
    let refused = on().container(&pod(None), &asks("other_t")).await.unwrap_err();
    assert!(refused.text().contains("recreate"), "{}", refused.text());
    assert_eq!(on().container(&pod(None), &SelinuxOptions::default()).await.unwrap(), None);
}

#[test]
fn pairs_of_restored_pods_are_in_use() {
    let selinux = on();
    let reserved = selinux.restored(&pod(Some(labels()))).unwrap();
    assert_eq!((reserved.labels(), selinux.pairs_in_use()), (&labels(), 1));
    assert!(selinux.restored(&pod(None)).is_none());
    drop(reserved);
    assert_eq!(selinux.pairs_in_use(), 0);
}

#[test]
fn the_files_of_the_policy_are_found() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let read = || defaults_in(&path("config"), &path("policies"), &path("override"));
    assert!(read().unwrap_err().contains("config"));
    std::fs::write(path("config"), "# SELINUXTYPE=no\nSELINUX=enforcing\nSELINUXTYPE=default\n").unwrap();
    assert!(read().unwrap_err().contains("policies/default/contexts/lxc_contexts"));
    std::fs::create_dir_all(path("policies/default/contexts")).unwrap();
    std::fs::write(path("policies/default/contexts/lxc_contexts"), "").unwrap();
    assert!(read().unwrap_err().contains("module for containers"));
    std::fs::write(path("policies/default/contexts/lxc_contexts"), FILE).unwrap();
    assert_eq!(read().unwrap(), Defaults::parse(FILE).unwrap());
    std::fs::write(path("override"), FILE.replace("container_t", "mine_t")).unwrap();
    assert_eq!(read().unwrap().process.to_string(), "system_u:system_r:mine_t:s0");
    for wrong in ["SELINUXTYPE=", "SELINUXTYPE=../x", "SELINUX=default", "SELINUXTYPE=a/b"] {
        assert_eq!(contexts(wrong, Path::new("/p")), None, "{wrong}");
    }
}
