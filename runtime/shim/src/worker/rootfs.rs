//! The root file system: an overlay of the image's layers and the container's writable folder.

use std::fs;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;

use sys::mount::{self, Attributes, FsOption, PropagationType};
use wire::RootfsPlan;

use super::stage::{Step, internal, invalid};
use super::tree::Root;
use super::users::Users;
use crate::podns::{EMPTY, LAYERS, WRITABLE};

const STAGE: &str = "rootfs";
/// The kernel's limit of layers of one overlay.
const MAX_LAYERS: usize = 500;

/// The clones from the host's namespace.
pub(super) struct Sources {
    store: OwnedFd,
    writable: OwnedFd,
}

/// Clones the layer store and the writable folder, in the mount namespace that has them. With a user namespace the store
/// is id-mapped, with one id-mapped mount for all layers. The writable folder is not: it belongs to root of the container
/// already, and the kernel makes an overlay with an id-mapped upper folder read-only.
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

/// Creates the overlay and attaches it at `at`, in the worker's mount namespace. The sources are attached
/// there meanwhile, because kernels before 6.15 refuse layers that are not attached.
pub(super) fn assemble(plan: &RootfsPlan, sources: &Sources, at: &Path) -> Step<()> {
    let attach =
        |tree: &OwnedFd, path| mount::attach_at(tree.as_fd(), Path::new(path)).map_err(internal(STAGE, path));
    attach(&sources.store, LAYERS)?;
    attach(&sources.writable, WRITABLE)?;
    if plan.layers.len() > MAX_LAYERS {
        return Err(invalid(
            STAGE,
            format!("{} layers, at most {MAX_LAYERS} can be mounted", plan.layers.len()),
        ));
    }
    let mut lower: Vec<String> = Vec::with_capacity(plan.layers.len());
    for layer in &plan.layers {
        if layer.is_empty() || layer.split('/').any(|name| name == "..") {
            return Err(invalid(STAGE, format!("{layer:?} is not the name of a layer")));
        }
        lower.push(format!("{LAYERS}/{layer}"));
    }
    let mut names = plan.layers.clone();
    if lower.is_empty() {
        lower.push(EMPTY.to_owned());
        names.push(EMPTY.to_owned());
    }
    let (upper, work) = (format!("{WRITABLE}/upper"), format!("{WRITABLE}/work"));
    let mut options = vec![FsOption::Value("source", "overlay")];
    options.extend(lower.iter().map(|layer| FsOption::Value("lowerdir+", layer)));
    options.push(FsOption::Value("upperdir", &upper));
    options.push(FsOption::Value("workdir", &work));
    if plan.volatile {
        options.push(FsOption::Flag("volatile"));
    }
    let what = || format!("overlay of {} layers on {}", lower.len(), plan.rw);
    let overlay = match mount::create("overlay", &options, Attributes::default()) {
        Ok(overlay) => Some(overlay),
        Err(error) if mount::errno(&error) == rustix::io::Errno::INVAL.raw_os_error() => {
            fs::create_dir_all(at).map_err(internal(STAGE, at.display()))?;
            // If both ways fail, the first error says more.
            by_names(Path::new(LAYERS), &names, &upper, &work, plan.volatile, at)
                .map_err(|second| internal(STAGE, format!("{} (by mount(2): {second})", what()))(error))?;
            None
        }
        Err(error) => return Err(internal(STAGE, what())(error)),
    };
    for path in [LAYERS, WRITABLE] {
        mount::detach(Path::new(path)).map_err(internal(STAGE, path))?;
    }
    let Some(overlay) = overlay else { return Ok(()) };
    fs::create_dir_all(at).map_err(internal(STAGE, at.display()))?;
    mount::attach_at(overlay.as_fd(), at).map_err(internal(STAGE, at.display()))
}

/// Creates the folders that the image declares as volumes. This comes before any mount, so that none is created on a
/// volume. If the root is read-only, each becomes a bind mount of itself, which stays writable, as with containerd; its
/// content is in the container's writable layer.
pub(super) fn make_folders(root: &Root, plan: &RootfsPlan) -> Step<()> {
    for path in &plan.folders {
        let make = || -> std::io::Result<()> {
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
    upper: &str,
    work: &str,
    volatile: bool,
    at: &Path,
) -> std::io::Result<()> {
    if layers.iter().any(|layer| layer.contains([':', ',', '\\'])) {
        return Err(std::io::Error::other("a layer's name has a separator"));
    }
    let volatile = if volatile { ",volatile" } else { "" };
    let options = format!("lowerdir={},upperdir={upper},workdir={work}{volatile}", layers.join(":"));
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
        by_names(&path("store"), &layers, &text("upper"), &text("work"), true, &path("at")).unwrap();
        let seen = [fs::read_to_string(path("at/both")), fs::read_to_string(path("at/below"))];
        let written = fs::write(path("at/new"), "n");
        mount::detach(&path("at")).unwrap();
        assert_eq!(seen.map(Result::unwrap), ["a", "b"]);
        written.unwrap();
        assert!(path("upper/new").exists());
        let wrong = ["a:b".to_owned()];
        assert!(by_names(&path("store"), &wrong, "u", "w", false, &path("at")).is_err());
    }
}
