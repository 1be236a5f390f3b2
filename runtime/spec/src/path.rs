//! Paths in requests: absolute, without `..`, cleaned. Accesses no file system.

use crate::Error;

/// PATH_MAX without the terminating NUL.
const MAX_PATH: usize = 4095;

/// An absolute path with empty and `.` components removed. `..` is refused rather than resolved, because with
/// symlinks the result would differ.
pub fn clean(field: &str, given: &str) -> Result<String, Error> {
    if !given.starts_with('/') {
        return Err(Error::invalid(field, given, "an absolute path is needed"));
    }
    let inner = components(field, given)?;
    Ok(format!("/{}", inner.join("/")))
}

/// Like [`clean`], for a path inside a container. There Kubernetes allows `..`, and every runtime resolves it
/// lexically. The root's parent is the root.
pub(crate) fn fold(field: &str, given: &str) -> Result<String, Error> {
    if !given.starts_with('/') {
        return clean(field, given);
    }
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
    clean(field, &format!("/{}", inner.join("/")))
}

/// A relative path that stays below its start: not empty, not absolute, no `..`.
pub fn clean_relative(field: &str, given: &str) -> Result<String, Error> {
    if given.starts_with('/') {
        return Err(Error::invalid(field, given, "a relative path is needed"));
    }
    let inner = components(field, given)?;
    if inner.is_empty() {
        return Err(Error::invalid(field, given, "the path is empty"));
    }
    Ok(inner.join("/"))
}

fn components<'a>(field: &str, given: &'a str) -> Result<Vec<&'a str>, Error> {
    if given.len() > MAX_PATH {
        return Err(Error::invalid(field, given, format!("at most {MAX_PATH} bytes")));
    }
    if given.contains('\0') {
        return Err(Error::invalid(field, given, "a path cannot hold NUL"));
    }
    let mut inner = Vec::new();
    for part in given.split('/') {
        match part {
            "" | "." => {}
            ".." => return Err(Error::invalid(field, given, "\"..\" is not allowed")),
            _ if part.len() > 255 => {
                return Err(Error::invalid(field, given, "a component is longer than 255 bytes"));
            }
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
        assert_eq!(clean("f", "/a//b/./c/").unwrap(), "/a/b/c");
        assert_eq!(clean("f", "/").unwrap(), "/");
        assert_eq!(clean_relative("f", "a/0.log").unwrap(), "a/0.log");
        for bad in ["", "a", "/a/../b", "/\0", "/.."] {
            assert!(clean("f", bad).is_err(), "{bad:?}");
        }
        for bad in ["", "/a", "..", "a/../../b", "."] {
            assert!(clean_relative("f", bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn folds() {
        for (given, want) in [("/a/../b/./c/", "/b/c"), ("/..", "/"), ("/../../a", "/a"), ("/", "/")] {
            assert_eq!(fold("f", given).unwrap(), want, "{given}");
        }
        for bad in ["", "a", "../a", "/a\0", "a/../b"] {
            assert!(fold("f", bad).is_err(), "{bad:?}");
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
            if let Ok(path) = clean("f", &given) {
                prop_assert_eq!(clean("f", &path).unwrap(), path.clone());
                prop_assert!(!path.split('/').any(|part| part == ".."));
            }
        }
    }
}
