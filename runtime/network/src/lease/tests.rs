use super::*;
use crate::version::Version;

fn lease(pod: &PodId) -> Lease {
    let plugins = serde_json::from_str(r#"[{"type":"bridge"}]"#).unwrap();
    let network = Network {
        name: "net".to_owned(),
        version: Version::V1_0_0,
        disable_check: false,
        disable_gc: false,
        plugins,
    };
    Lease::new(pod.clone(), "/run/netns/x".into(), "A=b".to_owned(), Map::new(), network)
}

fn result() -> Map<String, Value> {
    serde_json::from_str(r#"{"ips":[{"address":"10.0.0.1/8"}]}"#).unwrap()
}

fn kind(error: Error) -> io::ErrorKind {
    match error {
        Error::Lease { source, .. } => source.kind(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn leases_have_magic_checksum_and_boot_id() {
    let (dir, pod) = (tempfile::tempdir().unwrap(), PodId::from_random([1; 32]));
    let leases = Leases::new(dir.path().join("network"), "boot-1".to_owned());
    leases.write(&lease(&pod)).unwrap();
    leases.write_result(&pod, &result()).unwrap();
    assert_eq!(leases.get(&pod).unwrap(), Some((lease(&pod), Some(result()))));
    let path = leases.lease_path(&pod);
    let text = fs::read_to_string(&path).unwrap();
    let file: Value = serde_json::from_str(&text).unwrap();
    assert_eq!((&file["magic"], &file["boot_id"]), (&"copepod-record".into(), &"boot-1".into()));
    // A changed byte that leaves it valid JSON.
    fs::write(&path, text.replace("/run/netns/x", "/run/netns/y")).unwrap();
    assert_eq!(kind(leases.get(&pod).unwrap_err()), io::ErrorKind::InvalidData);
    // A result is no lease.
    fs::copy(leases.result_path(&pod), &path).unwrap();
    assert_eq!(kind(leases.get(&pod).unwrap_err()), io::ErrorKind::InvalidData);
    fs::write(&path, text.replace(r#""version":1,"kind""#, r#""version":9,"kind""#)).unwrap();
    assert_eq!(kind(leases.get(&pod).unwrap_err()), io::ErrorKind::Unsupported);
    // What a killed daemon leaves is removed with the lease.
    for name in [format!(".{pod}.new"), format!(".{pod}.result.new"), format!("{pod}.new")] {
        fs::write(leases.dir.join(name), "").unwrap();
    }
    leases.remove(&pod).unwrap();
    assert_eq!(fs::read_dir(&leases.dir).unwrap().count(), 0);
}

/// As builds before the record format wrote them.
#[test]
fn bare_leases_of_earlier_builds_are_read() {
    let (dir, pod) = (tempfile::tempdir().unwrap(), PodId::from_random([2; 32]));
    let leases = Leases::new(dir.path().to_path_buf(), "boot-1".to_owned());
    let bare = serde_json::json!({
        "version": 1, "pod": pod, "ifname": "eth0", "netns": "/run/netns/x", "args": "A=b", "capabilities": {},
        "network": {"name": "net", "version": "1.0.0", "disable_check": false, "plugins": [{"type": "bridge"}]},
    });
    let path = leases.lease_path(&pod);
    fs::write(&path, bare.to_string()).unwrap();
    fs::write(leases.result_path(&pod), Value::Object(result()).to_string()).unwrap();
    assert_eq!(leases.get(&pod).unwrap(), Some((lease(&pod), Some(result()))));
    let mut newer = bare.clone();
    newer["version"] = 2.into();
    fs::write(&path, newer.to_string()).unwrap();
    assert_eq!(kind(leases.get(&pod).unwrap_err()), io::ErrorKind::Unsupported);
    fs::write(&path, &bare.to_string()[..40]).unwrap();
    assert_eq!(kind(leases.get(&pod).unwrap_err()), io::ErrorKind::InvalidData);
}

#[test]
fn damaged_leases_that_were_set_aside_are_removed() {
    let (dir, pod) = (tempfile::tempdir().unwrap(), PodId::from_random([3; 32]));
    let leases = Leases::new(dir.path().join("absent"), String::new());
    leases.sweep().unwrap();
    let leases = Leases::new(dir.path().to_path_buf(), String::new());
    leases.write(&lease(&pod)).unwrap();
    fs::write(dir.path().join(format!("{pod}.torn")), "{").unwrap();
    leases.sweep().unwrap();
    let left: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, [pod.as_str()]);
    assert_eq!(leases.list().unwrap(), [pod]);
}

/// A file that later versions must be able to read.
fn frozen(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/lease").join(name)
}

#[test]
fn leases_of_every_format_are_readable() {
    let dir = tempfile::tempdir().unwrap();
    let pod = PodId::from_random([1; 32]);
    let leases = Leases::new(dir.path().to_path_buf(), "another boot".to_owned());
    let mut full = lease(&pod);
    full.network.disable_check = true;
    full.capabilities = serde_json::from_str(
        r#"{"portMappings":[{"hostPort":8080,"containerPort":80,"protocol":"tcp","hostIP":""}]}"#,
    )
    .unwrap();
    for format in ["1", "2"] {
        fs::copy(frozen(&format!("lease.{format}.json")), leases.lease_path(&pod)).unwrap();
        fs::copy(frozen(&format!("result.{format}.json")), leases.result_path(&pod)).unwrap();
        assert_eq!(leases.get(&pod).unwrap(), Some((full.clone(), Some(result()))), "{format}");
    }
    // What a later version may add.
    let text = fs::read_to_string(frozen("lease.1.json")).unwrap();
    fs::write(leases.lease_path(&pod), text.replace(r#""ifname""#, r#""later":[1],"ifname""#)).unwrap();
    assert_eq!(leases.get(&pod).unwrap().unwrap().0, full);
}

#[test]
fn capabilities_are_those_of_this_boot() {
    let (dir, pod) = (tempfile::tempdir().unwrap(), PodId::from_random([4; 32]));
    let leases = |boot: &str| Leases::new(dir.path().to_path_buf(), boot.to_owned());
    assert_eq!(leases("1").capabilities_of_this_boot(&pod), Map::new());
    let capabilities: Map<String, Value> = serde_json::from_str(r#"{"dns":{}}"#).unwrap();
    leases("1").write(&Lease { capabilities: capabilities.clone(), ..lease(&pod) }).unwrap();
    assert_eq!(leases("1").capabilities_of_this_boot(&pod), capabilities);
    assert_eq!(leases("2").capabilities_of_this_boot(&pod), Map::new());
}
