use std::collections::BTreeMap;
use std::os::unix::fs::symlink;

use proptest::prelude::*;

use super::*;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Record {
    name: String,
    labels: BTreeMap<String, String>,
    count: u64,
}

fn record() -> Record {
    Record { name: "näme \"x\"".into(), labels: [("a".into(), "}".into())].into(), count: u64::MAX }
}

/// The bytes of a written record.
fn bytes() -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("record");
    write(&path, "pod", "boot", &record(), false).unwrap();
    fs::read(&path).unwrap()
}

fn decoded(bytes: &[u8]) -> Result<Stored<Record>, Error> {
    decode(Path::new("record"), "pod", bytes)
}

#[test]
fn a_record_comes_back_and_leaves_no_temporary_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("record");
    assert!(read::<Record>(&path, "pod").unwrap().is_none());
    for durable in [false, true] {
        write(&path, "pod", "boot", &record(), durable).unwrap();
        let stored = read::<Record>(&path, "pod").unwrap().unwrap();
        assert_eq!(stored, Stored { boot_id: "boot".into(), data: record() });
    }
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    remove(&path).unwrap();
    remove(&path).unwrap();
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn cut_at_each_byte_it_is_damaged_or_whole() {
    let whole = bytes();
    for length in 0..whole.len() {
        match decoded(&whole[..length]) {
            Err(Error::Damaged { .. }) => {}
            // Only the newline at the end may be missing.
            Ok(stored) => assert_eq!((length, stored.data), (whole.len() - 1, record())),
            Err(other) => panic!("{length}: {other}"),
        }
    }
}

#[test]
fn zeroed_from_each_byte_it_is_damaged() {
    // The content that ext4 and xfs show if a file's size was written before its data.
    let whole = bytes();
    for length in 0..whole.len() - 1 {
        let mut zeroed = whole.clone();
        zeroed[length..].fill(0);
        assert!(matches!(decoded(&zeroed), Err(Error::Damaged { .. })), "{length}");
    }
}

proptest! {
    #[test]
    fn any_changed_byte_never_gives_a_wrong_value(at in 0..bytes().len(), by in 1u8..=255) {
        let mut changed = bytes();
        changed[at] ^= by;
        match decoded(&changed) {
            Ok(stored) => prop_assert_eq!((stored.data, stored.boot_id.as_str()), (record(), "boot")),
            // A digit of the version may have become a higher one.
            Err(error) => {
                prop_assert!(error.is_bad_file() || matches!(error, Error::Newer { .. }), "{}", error);
            }
        }
    }

    #[test]
    fn any_bytes_are_refused_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        prop_assert!(decoded(&bytes).is_err());
    }
}

#[test]
fn a_crash_before_the_rename_leaves_the_old_record() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("record");
    write(&path, "pod", "boot", &record(), true).unwrap();
    let new = bytes();
    for length in 0..new.len() {
        fs::write(dir.path().join(".record.new"), &new[..length]).unwrap();
        assert_eq!(read::<Record>(&path, "pod").unwrap().unwrap().data, record());
    }
    // The next write removes it.
    write(&path, "pod", "boot", &Record { count: 1, ..record() }, true).unwrap();
    assert_eq!(read::<Record>(&path, "pod").unwrap().unwrap().data.count, 1);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
}

#[test]
fn another_kind_of_record_an_earlier_format_and_a_link_are_foreign() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("record");
    write(&path, "container", "boot", &record(), false).unwrap();
    let foreign = |path: &Path| {
        let error = read::<Record>(path, "pod").unwrap_err();
        assert!(matches!(error, Error::Foreign { .. }) && error.is_bad_file(), "{error}");
        error.to_string()
    };
    assert!(foreign(&path).contains("container"));
    let earlier = String::from_utf8(bytes()).unwrap().replace("\"version\":1", "\"version\":0");
    fs::write(&path, earlier).unwrap();
    assert!(foreign(&path).contains("format 0"));
    let link = dir.path().join("link");
    symlink("/etc/passwd", &link).unwrap();
    foreign(&link);
    foreign(dir.path());
}

#[test]
fn an_intact_record_that_cannot_be_decoded_is_newer() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("record");
    let newer = |path: &Path| {
        let error = read::<Record>(path, "pod").unwrap_err();
        assert!(matches!(error, Error::Newer { .. }) && !error.is_bad_file(), "{error}");
        error.to_string()
    };
    write(&path, "pod", "boot", &["other", "shape"], false).unwrap();
    newer(&path);
    assert_eq!(look::<Vec<String>>(&path).unwrap(), ["other", "shape"]);
    let later = String::from_utf8(bytes()).unwrap().replace("\"version\":1", "\"version\":2");
    fs::write(&path, later).unwrap();
    assert!(newer(&path).contains("format 2"));
    fs::write(&path, "torn").unwrap();
    assert_eq!(look::<serde_json::Value>(&path), None);
}

#[test]
fn a_new_record_leaves_room_for_its_exit() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("record");
    let max = usize::try_from(MAX_NEW_BYTES).unwrap();
    let write_new = |data: &String| write_within(MAX_NEW_BYTES, &path, "pod", "b", data, false);
    assert!(matches!(write_new(&"x".repeat(max)), Err(Error::TooLarge { .. })));
    let data = "x".repeat(max - 1024);
    write_new(&data).unwrap();
    // The longest message of an exit: 32 KiB, with each byte escaped.
    write(&path, "pod", "b", &(data + &"\n".repeat(32 << 10)), false).unwrap();
}

#[test]
fn fields_of_a_later_build_are_skipped() {
    let data = r#"{"name":"n","labels":{},"count":1,"later":[1,2]}"#;
    let envelope = format!(
        r#"{{"magic":"{MAGIC}","version":1,"later":null,"kind":"pod","boot_id":"b","sum":"{}","data":{data}}}"#,
        sum("pod", "b", data)
    );
    assert_eq!(decoded(envelope.as_bytes()).unwrap().data.name, "n");
}

#[test]
fn too_large_is_refused_both_ways() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("record");
    let large = "x".repeat(usize::try_from(MAX_BYTES).unwrap());
    assert!(matches!(write(&path, "pod", "b", &large, true), Err(Error::TooLarge { .. })));
    assert!(!path.exists());
    std::fs::File::create(&path).unwrap().set_len(1 << 40).unwrap();
    match read::<Record>(&path, "pod") {
        Err(error @ Error::TooLarge { size, .. }) => {
            assert_eq!(size, 1 << 40);
            assert!(!error.is_bad_file(), "a later version may allow it");
        }
        other => panic!("{other:?}"),
    }
}
