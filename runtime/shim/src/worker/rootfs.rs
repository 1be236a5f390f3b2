//! The root file system: an overlay of the image's layers and the container's writable folder (MOUNTS 4).

use std::fs;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;

use sys::mount::{self, Attributes, Option_, Pass};
use wire::RootfsPlan;

use super::stage::{Step, internal, invalid};
use crate::podns::{EMPTY, LAYERS, WRITABLE};

const STAGE: &str = "rootfs";
/// Layers the kernel takes in one overlay.
const MOST_LAYERS: usize = 500;

/// What was cloned in the host's namespace.
pub(super) struct Sources {
    store: OwnedFd,
    writable: OwnedFd,
}

/// Clones layer store and writable folder. In the namespace that has them.
pub(super) fn clone_sources(plan: &RootfsPlan) -> Step<Sources> {
    let clone = |path: &str| {
        let fd = mount::open_path(Path::new(path)).map_err(internal(STAGE, path))?;
        let tree = mount::clone(fd.as_fd(), false).map_err(internal(STAGE, path))?;
        mount::set_propagation(tree.as_fd(), Pass::Private, false).map_err(internal(STAGE, path))?;
        Ok(tree)
    };
    Ok(Sources { store: clone(&plan.store)?, writable: clone(&plan.rw)? })
}

/// Builds the overlay and attaches it at `at`. In the worker's own namespace: the sources are attached there
/// while it is built, because kernels before 6.13 take no layer that is attached nowhere.
pub(super) fn assemble(plan: &RootfsPlan, sources: &Sources, at: &Path) -> Step<()> {
    let attach =
        |tree: &OwnedFd, path| mount::attach_at(tree.as_fd(), Path::new(path)).map_err(internal(STAGE, path));
    attach(&sources.store, LAYERS)?;
    attach(&sources.writable, WRITABLE)?;
    if plan.layers.len() > MOST_LAYERS {
        return Err(invalid(
            STAGE,
            format!("{} layers, at most {MOST_LAYERS} can be mounted", plan.layers.len()),
        ));
    }
    let mut lower: Vec<String> = Vec::with_capacity(plan.layers.len());
    for layer in &plan.layers {
        if layer.is_empty() || layer.split('/').any(|name| name == "..") {
            return Err(invalid(STAGE, format!("{layer:?} is no layer's name")));
        }
        lower.push(format!("{LAYERS}/{layer}"));
    }
    if lower.is_empty() {
        lower.push(EMPTY.to_owned());
    }
    let (upper, work) = (format!("{WRITABLE}/upper"), format!("{WRITABLE}/work"));
    let mut options = vec![Option_::Value("source", "overlay")];
    options.extend(lower.iter().map(|layer| Option_::Value("lowerdir+", layer)));
    options.push(Option_::Value("upperdir", &upper));
    options.push(Option_::Value("workdir", &work));
    if plan.volatile {
        options.push(Option_::Flag("volatile"));
    }
    let overlay = mount::create("overlay", &options, Attributes::default())
        .map_err(internal(STAGE, format!("overlay of {} layers on {}", lower.len(), plan.rw)))?;
    for path in [LAYERS, WRITABLE] {
        mount::detach(Path::new(path)).map_err(internal(STAGE, path))?;
    }
    fs::create_dir_all(at).map_err(internal(STAGE, at.display()))?;
    mount::attach_at(overlay.as_fd(), at).map_err(internal(STAGE, at.display()))
}
