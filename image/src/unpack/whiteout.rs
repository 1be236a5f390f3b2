//! Whiteouts: how a layer archive says that a lower entry is deleted, and how overlayfs stores that.
//!
//! An archive has a file `.wh.<name>` next to what it deletes, and `.wh..wh..opq` in a folder that hides the
//! same folder of all lower layers. overlayfs uses a character device 0:0 named `<name>`, and an extended
//! attribute on the folder.

/// Set to `y` on a folder that hides its content in lower layers.
pub(crate) const OPAQUE_XATTR: &str = "trusted.overlay.opaque";

/// Set on a folder that has no entry in the layer's archive. overlayfs hides attributes with this prefix from
/// containers.
pub(crate) const IMPLICIT_XATTR: &str = "trusted.overlay.copepod.implicit";

/// What a file name in an archive means.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum NameKind<'a> {
    /// An ordinary name.
    Plain,
    /// `.wh..wh..opq`: the parent folder is opaque.
    Opaque,
    /// `.wh.<name>`: this name is deleted from lower layers.
    Whiteout(&'a [u8]),
    /// Bookkeeping of the old aufs driver; skipped.
    Ignored,
}

/// Classifies the last component of a path.
pub(crate) fn name_kind(name: &[u8]) -> Result<NameKind<'_>, &'static str> {
    let Some(rest) = name.strip_prefix(b".wh.") else { return Ok(NameKind::Plain) };
    match rest {
        b".wh..opq" => Ok(NameKind::Opaque),
        _ if rest.starts_with(b".wh.") => Ok(NameKind::Ignored),
        b"" | b"." | b".." => Err("its whiteout names no file"),
        _ => Ok(NameKind::Whiteout(rest)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn name_kinds() {
        assert_eq!(name_kind(b"a"), Ok(NameKind::Plain));
        assert_eq!(name_kind(b".who"), Ok(NameKind::Plain));
        assert_eq!(name_kind(b".wh.a"), Ok(NameKind::Whiteout(b"a")));
        assert_eq!(name_kind(b".wh..a"), Ok(NameKind::Whiteout(b".a")));
        assert_eq!(name_kind(b".wh..wh..opq"), Ok(NameKind::Opaque));
        assert_eq!(name_kind(b".wh..wh.plnk"), Ok(NameKind::Ignored));
        for bad in [&b".wh."[..], b".wh..", b".wh..."] {
            assert!(name_kind(bad).is_err());
        }
    }

    proptest! {
        #[test]
        fn whited_out_names_are_plain(name in proptest::collection::vec(1u8..=255, 1..40)) {
            if let Ok(NameKind::Whiteout(hidden)) = name_kind(&name) {
                prop_assert!(!hidden.is_empty() && hidden != b"." && hidden != b"..");
                prop_assert!(!hidden.starts_with(b".wh."));
            }
        }
    }
}
