//! How a layer says that something below it is gone, and how overlayfs wants to hear it.
//!
//! A tar layer has a file `.wh.<name>` beside what it hides, and `.wh..wh..opq` in a folder that hides all
//! below it. overlayfs wants a character device 0:0 called `<name>`, and an extended attribute on the folder.

/// Set to `y` on a folder that hides what lower layers have in it.
pub(crate) const OPAQUE_XATTR: &str = "trusted.overlay.opaque";

/// Set on a folder that the layer has no entry for. overlayfs shows no attribute of this prefix in containers.
pub(crate) const IMPLICIT_XATTR: &str = "trusted.overlay.copepod.implicit";

/// What a file name means.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Mark<'a> {
    /// An ordinary name.
    None,
    /// The parent hides everything below it.
    Opaque,
    /// This name is hidden in lower layers.
    Hides(&'a [u8]),
    /// Bookkeeping of the old aufs driver: has no meaning and is left out.
    Ignored,
}

/// Reads a last path component.
pub(crate) fn mark(name: &[u8]) -> Result<Mark<'_>, &'static str> {
    let Some(rest) = name.strip_prefix(b".wh.") else { return Ok(Mark::None) };
    match rest {
        b".wh..opq" => Ok(Mark::Opaque),
        _ if rest.starts_with(b".wh.") => Ok(Mark::Ignored),
        b"" | b"." | b".." => Err("its whiteout names no file"),
        _ => Ok(Mark::Hides(rest)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn marks() {
        assert_eq!(mark(b"a"), Ok(Mark::None));
        assert_eq!(mark(b".who"), Ok(Mark::None));
        assert_eq!(mark(b".wh.a"), Ok(Mark::Hides(b"a")));
        assert_eq!(mark(b".wh..a"), Ok(Mark::Hides(b".a")));
        assert_eq!(mark(b".wh..wh..opq"), Ok(Mark::Opaque));
        assert_eq!(mark(b".wh..wh.plnk"), Ok(Mark::Ignored));
        for bad in [&b".wh."[..], b".wh..", b".wh..."] {
            assert!(mark(bad).is_err());
        }
    }

    proptest! {
        #[test]
        fn what_is_hidden_is_a_plain_name(name in proptest::collection::vec(1u8..=255, 1..40)) {
            if let Ok(Mark::Hides(hidden)) = mark(&name) {
                prop_assert!(!hidden.is_empty() && hidden != b"." && hidden != b"..");
                prop_assert!(!hidden.starts_with(b".wh."));
            }
        }
    }
}
