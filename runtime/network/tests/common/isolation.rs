//! Runs a test in private mount and network namespaces. Needs root.

use std::process::Command;

const MARK: &str = "COPEPOD_NETWORK_TEST_INSIDE";

pub(crate) fn run(command: &str) -> String {
    let output = Command::new("sh").args(["-c", command]).output().unwrap();
    assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Runs the test `name` of this program in private namespaces.
pub(crate) fn isolated(name: &str) {
    let output = Command::new("unshare")
        .args(["--net", "--mount", "--propagation", "private", "--"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", name, "--nocapture", "--test-threads=1"])
        .env(MARK, "1")
        .output()
        .expect("unshare (util-linux) runs");
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success() && text.contains("1 passed"),
        "needs root and the Debian plugins\n{text}"
    );
}

pub(crate) fn is_inside() -> bool {
    std::env::var_os(MARK).is_some()
}
