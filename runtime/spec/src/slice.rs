//! Names of systemd's slices (systemd.slice(5)), as a pod's `cgroup_parent` has them.

/// Maximum length of a unit's name in bytes (systemd.unit(5)).
const MAX_NAME: usize = 255;
/// How the name of a slice ends.
const SUFFIX: &str = ".slice";

/// Whether the last component of a path is named as a slice is.
pub fn is_slice(path: &str) -> bool {
    last(path).ends_with(SUFFIX)
}

/// The unit that a path or a bare name stands for: its last component.
pub fn last(path: &str) -> &str {
    path.trim_end_matches('/').rsplit('/').next().unwrap_or_default()
}

/// The path of a slice's cgroup. The name says which slices it is in: `a-b.slice` is `/a.slice/a-b.slice`. Empty for
/// the root slice, `-.slice`.
///
/// # Errors
/// What a valid name is.
pub fn path(name: &str) -> Result<String, &'static str> {
    const WANT: &str = "must be the name of a systemd slice, whose parts are separated by single dashes, for example a-b.slice";
    let Some(parts) = name.strip_suffix(SUFFIX) else { return Err(WANT) };
    if parts == "-" {
        return Ok(String::new());
    }
    let is_valid = |byte: u8| byte.is_ascii_alphanumeric() || b":_.\\-".contains(&byte);
    if name.len() > MAX_NAME || !parts.bytes().all(is_valid) || parts.split('-').any(str::is_empty) {
        return Err(WANT);
    }
    let mut path = String::new();
    for (end, _) in parts.match_indices('-').chain([(parts.len(), "")]) {
        path.push('/');
        path.push_str(parts.get(..end).unwrap_or_default());
        path.push_str(SUFFIX);
    }
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_has_the_whole_path() {
        let pod = "kubepods-burstable-pod3d4f_1a.slice";
        let expected = format!("/kubepods.slice/kubepods-burstable.slice/{pod}");
        assert_eq!(path(pod).unwrap(), expected);
        assert_eq!((last(&expected), is_slice(&expected)), (pod, true));
        assert_eq!(path("system.slice").unwrap(), "/system.slice");
        assert_eq!(path("-.slice").unwrap(), "");
        assert_eq!(last("/a.slice/"), "a.slice");
        assert!(!is_slice("/kubepods/pod1") && !is_slice("/kubepods.slice/x.scope") && !is_slice(""));
    }

    #[test]
    fn other_names_are_refused() {
        let long = format!("{}.slice", "k".repeat(250));
        for bad in [
            "",
            ".slice",
            "a",
            "-a.slice",
            "a-.slice",
            "a--b.slice",
            "a b.slice",
            "a@b.slice",
            "ä.slice",
            &long,
        ] {
            assert!(path(bad).is_err(), "{bad}");
        }
    }
}
