//! The root file system: an overlay of the image's layers and the container's writable folder.

use std::fs;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;

use sys::mount::{self, Attributes, FsOption, PropagationType};
use wire::{LayerSource, RootfsPlan};

use super::stage::{Step, internal, invalid};
use super::tree::Root;
use super::users::Users;
use crate::podns::{EMPTY, LAYERS, WRITABLE};

const STAGE: &str = "rootfs";
/// The kernel's limit of layers of one overlay.
const MAX_LAYERS: usize = 500;
/// statfs(2)'s type of an overlay.
const OVERLAYFS: i64 = 0x794c_7630;

/// The clones from the host's namespace.
pub(super) struct Sources {
    store: OwnedFd,
    writable: OwnedFd,
}

impl Sources {
    /// Attaches them in the worker's mount namespace, because kernels before 6.15 refuse layers that are not attached.
    pub(super) fn attach(self) -> Step<Attached> {
        for (tree, path) in [(&self.store, LAYERS), (&self.writable, WRITABLE)] {
            mount::attach_at(tree.as_fd(), Path::new(path)).map_err(internal(STAGE, path))?;
        }
        Ok(Attached)
    }
}

/// The layer store is at [`LAYERS`], and the writable folder at [`WRITABLE`].
#[must_use]
pub(super) struct Attached;

impl Attached {
    /// Detaches them. The overlays that were made of them keep what they need.
    pub(super) fn detach(self) -> Step<()> {
        for path in [LAYERS, WRITABLE] {
            mount::detach(Path::new(path)).map_err(internal(STAGE, path))?;
        }
        Ok(())
    }
}

/// Clones the layer store and the writable folder, in the mount namespace that has them. With a user namespace the store
/// is id-mapped, with one id-mapped mount for all layers, those of image volumes included. The writable folder is not: it
/// belongs to root of the container already, and the kernel makes an overlay with an id-mapped upper folder read-only.
pub(super) fn clone_sources(plan: &RootfsPlan, users: Option<Users<'_>>) -> Step<Sources> {
    let clone = |path: &str, users: Option<Users<'_>>| {
        let fd = mount::open_path(Path::new(path)).map_err(internal(STAGE, path))?;
        let tree = mount::clone(fd.as_fd(), false).map_err(internal(STAGE, path))?;
        mount::set_propagation(tree.as_fd(), PropagationType::Private, false)
            .map_err(internal(STAGE, path))?;
        if let Some(users) = users {
            users.idmap(tree.as_fd(), fd.as_fd(), path, STAGE)?;
        }
        Ok(tree)
    };
    Ok(Sources { store: clone(&plan.store, users)?, writable: clone(&plan.rw, None)? })
}

/// Creates the overlay and attaches it at `at`, in the worker's mount namespace. Its sources must be attached.
/// Its files have the SELinux label `label`, or, if that is empty, those of the layers and the writable folder.
pub(super) fn assemble(plan: &RootfsPlan, label: &str, at: &Path) -> Step<()> {
    let (upper, work) = (format!("{WRITABLE}/upper"), format!("{WRITABLE}/work"));
    let writable = Writable { upper: &upper, work: &work, volatile: plan.volatile };
    let what = || format!("overlay of {} layers on {}{}", plan.layers.len(), plan.rw, advice(&upper));
    let names = names(&plan.layers).map_err(|text| invalid(STAGE, text))?;
    overlay(&names, Some(writable), label, at).map_err(|error| internal(STAGE, what())(error))
}

/// What an operator can do if the kernel refuses an overlay with this writable folder: it says only that it is invalid.
fn advice(upper: &str) -> &'static str {
    match rustix::fs::statfs(upper) {
        Ok(there) if there.f_type == OVERLAYFS => {
            ", which is itself on an overlay (a container's root): put `root` on another file system, for example on a volume"
        }
        _ => "",
    }
}

/// Creates an overlay of layers alone, which is read-only, and attaches it at `at`, a folder. The layer store must be
/// attached.
pub(super) fn lower_only(layers: &[LayerSource], label: &str, at: &Path) -> io::Result<()> {
    let mut names = names(layers).map_err(io::Error::other)?;
    // Without an upper folder the kernel wants two layers. (A bind mount of a single layer would show its whiteouts.)
    if let [_] = layers {
        names.push(EMPTY.to_owned());
    }
    overlay(&names, None, label, at)
}

/// The folders of an overlay that is not read-only.
#[derive(Clone, Copy)]
struct Writable<'a> {
    upper: &'a str,
    work: &'a str,
    volatile: bool,
}

/// Layers as they are named in the store, topmost first; an empty folder for an image without layers. The error is a text.
fn names(layers: &[LayerSource]) -> Result<Vec<String>, String> {
    if layers.len() > MAX_LAYERS {
        return Err(format!("{} layers, at most {MAX_LAYERS} can be mounted", layers.len()));
    }
    let folders = layers.iter().map(|layer| match layer {
        LayerSource::Folder(name) => name.clone(),
    });
    let folders: Vec<String> = folders.collect();
    let is_name =
        |layer: &&String| !layer.is_empty() && !layer.starts_with('/') && layer.split('/').all(|n| n != "..");
    if let Some(wrong) = folders.iter().find(|layer| !is_name(layer)) {
        return Err(format!("{wrong:?} is not the name of a layer"));
    }
    Ok(if folders.is_empty() { vec![EMPTY.to_owned()] } else { folders })
}

/// Creates an overlay of `names` and attaches it at `at`, which is created if missing.
fn overlay(names: &[String], writable: Option<Writable<'_>>, label: &str, at: &Path) -> io::Result<()> {
    // An absolute name is that of the empty folder.
    let lower: Vec<String> = names.iter().map(|name| in_store(name)).collect();
    let mut options = vec![FsOption::Value("source", "overlay")];
    options.extend(lower.iter().map(|layer| FsOption::Value("lowerdir+", layer)));
    if let Some(Writable { upper, work, volatile }) = writable {
        options.extend([FsOption::Value("upperdir", upper), FsOption::Value("workdir", work)]);
        options.extend(volatile.then_some(FsOption::Flag("volatile")));
    }
    options.extend(mount::label(label));
    fs::create_dir_all(at)?;
    match mount::create("overlay", &options, Attributes::default()) {
        Ok(overlay) => mount::attach_at(overlay.as_fd(), at),
        Err(error) if mount::errno(&error) == rustix::io::Errno::INVAL.raw_os_error() => {
            // If both ways fail, the first error says more.
            by_names(Path::new(LAYERS), names, writable, label, at)
                .map_err(|second| mount::with_text(&error, format!("by mount(2): {second}")))
        }
        Err(error) => Err(error),
    }
}

fn in_store(name: &str) -> String {
    if name.starts_with('/') { name.to_owned() } else { format!("{LAYERS}/{name}") }
}

/// Creates the folders that the image declares as volumes. This comes before any mount, so that none is created on a
/// volume. If the root is read-only, each becomes a bind mount of itself, which stays writable, as with containerd; its
/// content is in the container's writable layer.
pub(super) fn make_folders(root: &Root, plan: &RootfsPlan) -> Step<()> {
    for path in &plan.folders {
        let make = || -> io::Result<()> {
            let folder = root.folder(path)?;
            if plan.readonly && !root.is(folder.as_fd())? {
                mount::attach(mount::clone(folder.as_fd(), false)?.as_fd(), folder.as_fd())?;
            }
            Ok(())
        };
        make().map_err(internal("VOLUME of the image", path))?;
    }
    Ok(())
}

/// Mounts the overlay on kernels before 6.7, which have no `lowerdir+`. All options must fit into one page, so layers
/// are named relative to the store, which is the working directory meanwhile.
#[expect(
    clippy::disallowed_methods,
    reason = "the worker has one thread, and relative names of layers need it"
)]
fn by_names(
    store: &Path,
    layers: &[String],
    writable: Option<Writable<'_>>,
    label: &str,
    at: &Path,
) -> io::Result<()> {
    if layers.iter().any(|layer| layer.contains([':', ',', '\\'])) {
        return Err(io::Error::other("a layer's name has a separator"));
    }
    let mut options = format!("lowerdir={}", layers.join(":"));
    if let Some(Writable { upper, work, volatile }) = writable {
        let volatile = if volatile { ",volatile" } else { "" };
        options = format!("{options},upperdir={upper},workdir={work}{volatile}");
    }
    if !label.is_empty() {
        // A level may have commas.
        options = format!("{options},context=\"{label}\"");
    }
    std::env::set_current_dir(store)?;
    let mounted = mount::create_at("overlay", at, &options);
    std::env::set_current_dir("/")?;
    mounted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_are_mounted_by_their_names() {
        let dir = tempfile::Builder::new().prefix("copepod-names-").tempdir_in("/run").unwrap();
        let path = |name: &str| dir.path().join(name);
        for name in ["store/a", "store/b", "upper", "work", "at"] {
            fs::create_dir_all(path(name)).unwrap();
        }
        fs::write(path("store/a/both"), "a").unwrap();
        fs::write(path("store/b/both"), "b").unwrap();
        fs::write(path("store/b/below"), "b").unwrap();
        let text = |name| path(name).to_str().unwrap().to_owned();
        let layers = ["a".to_owned(), "b".to_owned()];
        let (upper, work) = (text("upper"), text("work"));
        let writable = Writable { upper: &upper, work: &work, volatile: true };
        by_names(&path("store"), &layers, Some(writable), "", &path("at")).unwrap();
        let seen = [fs::read_to_string(path("at/both")), fs::read_to_string(path("at/below"))];
        let written = fs::write(path("at/new"), "n");
        mount::detach(&path("at")).unwrap();
        assert_eq!(seen.map(Result::unwrap), ["a", "b"]);
        written.unwrap();
        assert!(path("upper/new").exists());
        let wrong = ["a:b".to_owned()];
        assert!(by_names(&path("store"), &wrong, None, "", &path("at")).is_err());
        // Layers alone are read-only.
        by_names(&path("store"), &layers, None, "", &path("at")).unwrap();
        let (seen, written) = (fs::read_to_string(path("at/both")), fs::write(path("at/new"), "n"));
        mount::detach(&path("at")).unwrap();
        assert_eq!(seen.unwrap(), "a");
        assert_eq!(written.unwrap_err().kind(), io::ErrorKind::ReadOnlyFilesystem);
    }
}
