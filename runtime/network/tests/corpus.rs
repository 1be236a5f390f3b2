//! Replays what the fuzz targets begin with: configurations and results as the makers of networks document and print them.

use std::fs;
use std::path::Path;

/// Replays a folder; its files without those in `refused` must be accepted.
fn replay(folder: &str, check: fn(&[u8]) -> Result<bool, String>, refused: &[&str]) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures").join(folder);
    let mut count = 0;
    for entry in fs::read_dir(&folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        let accepted = check(&fs::read(&path).unwrap()).unwrap_or_else(|broken| panic!("{name}: {broken}"));
        assert_eq!(accepted, !refused.contains(&name.as_str()), "{name}");
        count += 1;
    }
    assert!(count > refused.len(), "{}", folder.display());
}

#[test]
fn results() {
    // An error that a plugin prints although it exits with 0 has no address, which ADD refuses.
    replay("result", network::fuzzing::result, &[]);
}

#[test]
fn configurations() {
    replay("configuration", network::fuzzing::configuration, &["folder", "path"]);
}
