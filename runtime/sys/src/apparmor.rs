//! AppArmor (apparmor(7), proc_pid_attr(5)): whether the kernel enforces it, which profiles it has, and the profile that
//! the calling process gets at its next execve(2).

use std::fs;
use std::io;
use std::path::Path;

use crate::host_proc::HostProc;

/// `Y` if the kernel enforces it.
const ENABLED: &str = "/sys/module/apparmor/parameters/enabled";
/// The kernel's list of loaded profiles, one per line: `name (mode)`. Reading it needs CAP_MAC_ADMIN.
pub const PROFILES: &str = "/sys/kernel/security/apparmor/profiles";
/// Below the root of a procfs. AppArmor has files of its own there since Linux 5.8.
const ON_EXEC: &str = "thread-self/attr/apparmor/exec";
/// Maximum length of a name in bytes. The kernel takes commands that are shorter than a page.
pub const MAX_NAME: usize = 2048;

/// Whether the kernel enforces AppArmor.
pub fn is_enforced() -> bool {
    fs::read_to_string(ENABLED).is_ok_and(|text| text.trim() == "Y")
}

/// The profile of the calling process, such as `unconfined` or `name (enforce)`.
///
/// # Errors
/// The kernel has no AppArmor.
pub fn own_profile() -> io::Result<String> {
    Ok(fs::read_to_string("/proc/thread-self/attr/apparmor/current")?.trim().to_owned())
}

/// Whether the profile `name` is in `list`, which is [`PROFILES`] except in tests.
///
/// # Errors
/// Reading the list: securityfs is not mounted, or a capability is missing.
pub fn is_loaded(list: &Path, name: &str) -> io::Result<bool> {
    Ok(is_listed(&fs::read_to_string(list)?, name))
}

/// A name may have spaces and parentheses; the mode has neither.
fn is_listed(profiles: &str, name: &str) -> bool {
    profiles.lines().any(|line| line.rsplit_once(" (").is_some_and(|(listed, _)| listed == name))
}

/// Changes to the profile `name` at the next execve of the calling process. Its children inherit that until they call
/// execve themselves.
///
/// # Errors
/// NotFound: the kernel has no such profile. PermissionDenied: the profile of the caller does not allow the change.
pub fn set_on_exec(proc: &HostProc, name: &str) -> io::Result<()> {
    if name.is_empty() || name.len() > MAX_NAME || name.contains(char::is_control) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not the name of a profile"));
    }
    proc.write(ON_EXEC, &format!("exec {name}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_compared_as_a_whole() {
        let list = "/usr/bin/man (enforce)\nlsb_release (complain)\nwith space (x) (kill)\nns//&child (unconfined)\n";
        for name in ["/usr/bin/man", "lsb_release", "with space (x)", "ns//&child"] {
            assert!(is_listed(list, name), "{name}");
        }
        for name in ["man", "lsb", "with space", "", "lsb_release (complain)"] {
            assert!(!is_listed(list, name), "{name}");
        }
    }

    #[test]
    fn what_is_no_name_is_not_written() {
        let proc = HostProc::open().unwrap();
        for name in [String::new(), "a\nb".to_owned(), "a\0".to_owned(), "x".repeat(MAX_NAME + 1)] {
            assert_eq!(set_on_exec(&proc, &name).unwrap_err().kind(), io::ErrorKind::InvalidInput);
        }
    }

    /// No kernel has it; one without AppArmor has no such file either.
    #[test]
    fn an_unknown_profile_is_an_error() {
        let error = set_on_exec(&HostProc::open().unwrap(), "copepod-test-no-such-profile").unwrap_err();
        assert!(matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::InvalidInput), "{error}");
    }
}
