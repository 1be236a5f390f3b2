//! Image volumes: the layers of an image without a writable one, so nobody can write there. Each is assembled in the
//! worker and attached in the scratch root; what the container gets is a clone of it, or of a file or folder in it.
//!
//! The image is untrusted, but nothing can change it: it is resolved once, with its root as `/`, so its symlinks lead
//! nowhere else.

use std::fs::create_dir_all;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;

use rustix::fs::{FileType, OFlags, fstat};
use sys::mount::{self, Attributes};
use wire::{ContainerPlan, ErrorKind, Failure, LayerSource, MountKind, MountPlan};

use super::rootfs::lower_only;
use super::scratch::Scratch;
use super::stage::{Step, internal};
use super::users::Users;
use super::volumes::attributes;

/// Size in bytes of the file system of an image without layers; nobody can write there.
const EMPTY_SIZE: u64 = 4096;

/// The image volumes of a container.
pub(super) struct Images(Vec<Image>);

struct Image {
    plan: MountPlan,
    /// The root of the attached mount.
    top: OwnedFd,
    /// What is mounted: `top`, or a file or folder in it.
    source: OwnedFd,
}

/// Marks a failure as that of an image volume: kubelet has an error and a metric of their own for these.
pub(super) fn failed(failure: Failure) -> Failure {
    Failure { kind: ErrorKind::ImageVolume, ..failure }
}

impl Images {
    /// Assembles the image volumes of a plan. The layer store must be attached (`rootfs::Sources::attach`).
    ///
    /// With a user namespace, their files have the owners that it maps them to, because the layer store is id-mapped.
    pub(super) fn assemble(
        container: &ContainerPlan,
        scratch: &Scratch,
        at: &Path,
        users: Option<Users<'_>>,
    ) -> Step<Self> {
        let mut images = Vec::new();
        let label = container.file_label.as_str();
        for plan in &container.mounts {
            let MountKind::Image { image, layers, sub_path } = &plan.kind else { continue };
            let stage = format!("volume {}", plan.target);
            let what = format!("image {image}");
            let failed_here = |error| failed(internal(&stage, &what)(error));
            let make_empty = || without_layers(label).map_err(failed_here);
            let empty = layers.is_empty().then(|| Users::as_root(users, make_empty)).transpose()?;
            let place = Place { scratch, index: images.len(), at };
            let top = attach(layers, empty, label, &place).map_err(failed_here)?;
            let source = find(&top, sub_path)
                .map_err(internal(&stage, format!("image_sub_path {sub_path:?} in image {image}")))
                .map_err(failed)?;
            images.push(Image { plan: plan.clone(), top, source });
        }
        Ok(Self(images))
    }

    /// A detached clone of the image volume of this plan; `None` if it is none. In the mount namespace in which they were
    /// assembled.
    pub(super) fn clone(&self, plan: &MountPlan) -> Step<Option<OwnedFd>> {
        let Some(image) = self.0.iter().find(|image| image.plan == *plan) else { return Ok(None) };
        let copy = || {
            let tree = mount::clone(image.source.as_fd(), false)?;
            mount::add_attributes(tree.as_fd(), Attributes { readonly: true, ..attributes(plan) })?;
            Ok(Some(tree))
        };
        copy().map_err(internal(&format!("volume {}", plan.target), "copy of the image")).map_err(failed)
    }

    /// Detaches what was assembled. The clones keep the file systems alive.
    pub(super) fn detach(self) -> Step<()> {
        for image in self.0 {
            let stage = format!("volume {}", image.plan.target);
            mount::detach_fd(image.top.as_fd()).map_err(internal(&stage, "detaching")).map_err(failed)?;
        }
        Ok(())
    }
}

/// The root of an image without layers. Its folder belongs to the caller's file-system ids.
fn without_layers(label: &str) -> io::Result<OwnedFd> {
    mount::labelled_tmpfs(0o755, EMPTY_SIZE, Attributes::default(), label)
}

/// Where an image volume is assembled: the scratch root, which is attached at `at`.
struct Place<'a> {
    scratch: &'a Scratch,
    index: usize,
    at: &'a Path,
}

/// Mounts an image, or `empty` instead, in the scratch root and returns the mount's root. `label`: of its files.
fn attach(
    layers: &[LayerSource],
    empty: Option<OwnedFd>,
    label: &str,
    place: &Place<'_>,
) -> io::Result<OwnedFd> {
    let name = format!("images/{}", place.index);
    let path = place.at.join(&name);
    create_dir_all(&path)?;
    match empty {
        Some(empty) => mount::attach_at(empty.as_fd(), &path)?,
        None => lower_only(layers, label, &path)?,
    }
    place.scratch.open(&name)
}

/// Opens (O_PATH) a file or folder of the image at `top`.
fn find(top: &OwnedFd, sub_path: &str) -> io::Result<OwnedFd> {
    if sub_path.is_empty() {
        return top.try_clone();
    }
    let found = mount::open_in_root(top.as_fd(), Path::new(sub_path), OFlags::PATH, 0)?;
    match FileType::from_raw_mode(fstat(&found)?.st_mode) {
        FileType::Directory | FileType::RegularFile => Ok(found),
        // What a device or a socket leads to is not part of the image.
        _ => Err(io::Error::other("it is neither a file nor a folder")),
    }
}
