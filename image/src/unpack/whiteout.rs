//! Whiteouts and opaque folders, in archives and in overlayfs.
//!
//! | meaning | in an archive (OCI image-spec, layer) | in overlayfs |
//! | --- | --- | --- |
//! | lower layers' `<name>` is deleted | a file `.wh.<name>` | a character device 0:0 `<name>` |
//! | the folder's content in lower layers is hidden | a file `.wh..wh..opq` in it | an extended attribute of the folder |

/// Marks an opaque folder, with the value `y`.
pub(crate) const OPAQUE_XATTR: &str = "trusted.overlay.opaque";

/// Marks an implicit folder: one without an entry of its own in the layer's archive. overlayfs hides attributes with
/// this prefix from containers.
pub(crate) const IMPLICIT_XATTR: &str = "trusted.overlay.copepod.implicit";

/// The folder in which aufs, the file system of early Docker versions, kept files with several hard links. Layers of that
/// time have it, and hard links into it.
pub(super) const AUFS_LINKS: &[u8] = b".wh..wh.plnk";

/// Whether a name in the root folder belongs to the metadata of aufs.
pub(super) fn is_aufs(name: &[u8]) -> bool {
    name.starts_with(b".wh..wh.") && name != b".wh..wh..opq"
}

/// The meaning of a file name in an archive.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum NameKind<'a> {
    /// An ordinary name.
    Plain,
    /// `.wh..wh..opq`: the parent folder is opaque.
    Opaque,
    /// `.wh.<name>`: lower layers' `<name>` is deleted.
    Whiteout(&'a [u8]),
    /// `.wh..wh.<anything else>`: metadata of aufs, which is skipped.
    Ignored,
}

/// Classifies the last component of a path.
pub(crate) fn name_kind(name: &[u8]) -> Result<NameKind<'_>, &'static str> {
    let Some(rest) = name.strip_prefix(b".wh.") else { return Ok(NameKind::Plain) };
    match rest {
        b".wh..opq" => Ok(NameKind::Opaque),
        _ if rest.starts_with(b".wh.") => Ok(NameKind::Ignored),
        b"" | b"." | b".." => Err("it is a whiteout without a valid name"),
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
