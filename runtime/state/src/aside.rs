//! Moves files that cannot be used out of the way, and keeps them for inspection.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::{Error, Layout, file};

/// Maximum number of files in the aside folder. Once it has that many, further bad files are deleted.
const MAX_ASIDE: usize = 1000;

/// Moves a bad file to [`Layout::aside_dir`]. Returns its new path; `None` if it was deleted, because that folder has too
/// many files, or is on another file system and the file could not be copied there.
///
/// # Errors
/// The bad file is still at its path, or may be there again after a power loss.
pub fn set_aside(path: &Path, layout: &Layout) -> Result<Option<PathBuf>, Error> {
    let aside = layout.aside_dir();
    let inside =
        path.strip_prefix(layout.root()).or_else(|_| path.strip_prefix(layout.run())).unwrap_or(path);
    let mut flat = OsString::new();
    for part in inside.components().filter_map(|part| match part {
        std::path::Component::Normal(name) => Some(name),
        _ => None,
    }) {
        if !flat.is_empty() {
            flat.push("_");
        }
        flat.push(part);
    }
    let count = fs::read_dir(&aside).map_err(Error::io("list", &aside))?.count();
    let free = (0..MAX_ASIDE)
        .map(|number| {
            let mut name = flat.clone();
            name.push(format!(".{number}"));
            aside.join(name)
        })
        .find(|place| {
            fs::symlink_metadata(place).is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
        });
    let Some(place) = free.filter(|_| count < MAX_ASIDE) else {
        file::remove(path)?;
        return Ok(None);
    };
    match fs::rename(path, &place) {
        Ok(()) => {
            file::sync_dir(&aside)?;
            file::sync_dir(path.parent().unwrap_or(Path::new("/")))?;
            Ok(Some(place))
        }
        Err(error) if error.kind() == io::ErrorKind::CrossesDevices => {
            let small = fs::symlink_metadata(path)
                .is_ok_and(|facts| facts.is_file() && facts.len() <= file::MAX_BYTES);
            let copied = small && fs::copy(path, &place).is_ok();
            file::remove(path)?;
            Ok(copied.then_some(place))
        }
        Err(error) => Err(Error::io("set aside", path)(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bad_files_are_set_aside_under_names_of_their_own() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::new(dir.path().join("root"), dir.path().join("run")).unwrap();
        layout.create().unwrap();
        let pod = model::PodId::from_random([3; 32]);
        file::create_dir(&layout.pod_dir(&pod)).unwrap();
        file::create_dir(&layout.pod_dir(&pod)).unwrap();
        let path = layout.pod_record(&pod);
        let mut places = Vec::new();
        for content in ["torn 1", "torn 2"] {
            fs::write(&path, content).unwrap();
            let place = set_aside(&path, &layout).unwrap().unwrap();
            assert_eq!(fs::read_to_string(&place).unwrap(), content);
            assert!(place.starts_with(layout.aside_dir()) && !path.exists());
            places.push(place);
        }
        assert_ne!(places[0], places[1]);
        assert!(places[0].to_string_lossy().ends_with(&format!("pods_{pod}_record.0")));
        file::remove_dir(&layout.pod_dir(&pod)).unwrap();
        file::remove_dir(&layout.pod_dir(&pod)).unwrap();
    }
}
