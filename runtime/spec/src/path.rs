//! What a path in a request may be, and its clean form. Accesses no file system. An error says what a valid path is;
//! the caller adds the field.

/// PATH_MAX without the terminating NUL.
const MAX_PATH: usize = 4095;
/// NAME_MAX.
const MAX_NAME: usize = 255;

/// An absolute path with empty and `.` components removed. `..` is refused rather than resolved, because with
/// symlinks the result would differ.
///
/// # Errors
/// What a valid path is.
pub fn clean(given: &str) -> Result<String, &'static str> {
    if !given.starts_with('/') {
        return Err("must be an absolute path");
    }
    Ok(format!("/{}", components(given)?.join("/")))
}

/// Like [`clean`], for a path inside a container. There Kubernetes allows `..`, and every runtime resolves it
/// lexically. The root's parent is the root.
///
/// # Errors
/// What a valid path is.
pub fn fold(given: &str) -> Result<String, &'static str> {
    if !given.starts_with('/') {
        return clean(given);
    }
    check(given)?;
    let mut inner: Vec<&str> = Vec::new();
    for part in given.split('/') {
        match part {
            ".." => {
                inner.pop();
            }
            "" | "." => {}
            part => inner.push(part),
        }
    }
    clean(&format!("/{}", inner.join("/")))
}

/// A relative path that stays below its start: not empty, not absolute, no `..`.
///
/// # Errors
/// What a valid path is.
pub fn clean_relative(given: &str) -> Result<String, &'static str> {
    if given.starts_with('/') {
        return Err("must be a relative path");
    }
    let inner = components(given)?;
    if inner.is_empty() {
        return Err("must not be empty");
    }
    Ok(inner.join("/"))
}

/// Refuses what the kernel does not accept as a path.
fn check(given: &str) -> Result<(), &'static str> {
    if given.len() > MAX_PATH {
        return Err("must have at most 4095 bytes");
    }
    if given.contains('\0') {
        return Err("must not contain NUL");
    }
    Ok(())
}

fn components(given: &str) -> Result<Vec<&str>, &'static str> {
    check(given)?;
    let mut inner = Vec::new();
    for part in given.split('/') {
        match part {
            "" | "." => {}
            ".." => return Err("must not contain \"..\""),
            _ if part.len() > MAX_NAME => return Err("must not contain a name of more than 255 bytes"),
            _ => inner.push(part),
        }
    }
    Ok(inner)
}

/// Whether `path` is `above` or below it; both must be clean and absolute.
pub(crate) fn is_at_or_below(path: &str, above: &str) -> bool {
    above == "/" || path.strip_prefix(above).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// Number of components of a clean absolute path.
pub(crate) fn depth(path: &str) -> usize {
    path.split('/').filter(|part| !part.is_empty()).count()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn cleans_and_refuses() {
        assert_eq!(clean("/a//b/./c/").unwrap(), "/a/b/c");
        assert_eq!(clean("/").unwrap(), "/");
        assert_eq!(clean_relative("a/0.log").unwrap(), "a/0.log");
        let (name, path) = (format!("/{}", "n".repeat(MAX_NAME + 1)), "/n".repeat(MAX_PATH));
        for bad in ["", "a", "/a/../b", "/\0", "/..", &name, &path] {
            assert!(clean(bad).is_err(), "{bad:?}");
        }
        for bad in ["", "/a", "..", "a/../../b", "."] {
            assert!(clean_relative(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn folds() {
        for (given, want) in [("/a/../b/./c/", "/b/c"), ("/..", "/"), ("/../../a", "/a"), ("/", "/")] {
            assert_eq!(fold(given).unwrap(), want, "{given}");
        }
        let long = "/a/..".repeat(MAX_PATH / 5 + 1);
        for bad in ["", "a", "../a", "/a\0", "a/../b", &long] {
            assert!(fold(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn below_is_by_component() {
        assert!(is_at_or_below("/dev/pts", "/dev"));
        assert!(is_at_or_below("/dev", "/dev"));
        assert!(!is_at_or_below("/device", "/dev"));
        assert_eq!((depth("/"), depth("/dev"), depth("/dev/pts")), (0, 1, 2));
    }

    proptest! {
        #[test]
        fn clean_is_idempotent_and_never_climbs(given in "[/a.b]{0,40}") {
            if let Ok(path) = clean(&given) {
                prop_assert_eq!(clean(&path).unwrap(), path.clone());
                prop_assert!(!path.split('/').any(|part| part == ".."));
            }
        }
    }
}
