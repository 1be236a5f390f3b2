//! Converts `Mount` and `Device`.

use super::security::{mapping_in, mapping_out};
use super::{Field, Host, Result};
use cri_api::v1 as cri;
use model::{ContainerRecord, Device, ImageSpec, ImageVolume, Mount, MountOption, Propagation};

/// Maximum number of mount options of one volume; there are three.
const MAX_OPTIONS: usize = 16;

/// One volume. Paths are kept as written: kubelet finds its volumes in status by comparing strings.
#[expect(clippy::too_many_lines, reason = "one check for each field of the message")]
pub(super) fn mount(field: &Field<'_>, given: cri::Mount, host: Host) -> Result<Mount> {
    let cri::Mount {
        container_path,
        host_path,
        readonly,
        selinux_relabel,
        propagation,
        uid_mappings,
        gid_mappings,
        recursive_read_only,
        image,
        image_sub_path,
        mount_options,
    } = given;
    let want = match spec::path::fold(&container_path) {
        Ok(path) if path == "/" => Some("must not be the root of the container"),
        Ok(_) => None,
        Err(want) => Some(want),
    };
    if let Some(want) = want {
        return Err(field.at("container_path").invalid(container_path, want));
    }
    let propagation = propagation_in(&field.at("propagation"), propagation)?;
    // An empty message counts as absent.
    let image = image.filter(|image| *image != cri::ImageSpec::default());
    let (image, host_path) = match image {
        Some(image) => (Some(image_in(field, image, image_sub_path, &host_path)?), host_path),
        None if !image_sub_path.is_empty() => {
            return Err(field.at("image_sub_path").invalid(image_sub_path, "must be empty without an image"));
        }
        None => (None, super::absolute(&field.at("host_path"), host_path)?),
    };
    if image.is_some() && !readonly {
        return Err(field.at("readonly").invalid(readonly, "must be true with an image"));
    }
    if image.is_some() && propagation != Propagation::Private {
        let want = "must be PROPAGATION_PRIVATE with an image";
        return Err(field.at("propagation").invalid(format_args!("{propagation:?}"), want));
    }
    super::at_most(&field.at("mount_options"), mount_options.len(), MAX_OPTIONS)?;
    if recursive_read_only {
        recursive(field, readonly, propagation, host)?;
    }
    Ok(Mount {
        container_path,
        host_path,
        readonly,
        recursive_read_only,
        mount_options: super::each(field, "mount_options", mount_options, option)?,
        image,
        selinux_relabel,
        propagation,
        // `spec` compares them with the pod's.
        uid_mappings: uid_mappings.into_iter().map(mapping_in).collect(),
        gid_mappings: gid_mappings.into_iter().map(mapping_in).collect(),
    })
}

/// The image of an image volume. Its path is relative, as kubelet sends it.
fn image_in(
    field: &Field<'_>,
    image: cri::ImageSpec,
    sub_path: String,
    host_path: &str,
) -> Result<ImageVolume> {
    if !host_path.is_empty() {
        return Err(field.at("host_path").invalid(host_path, "must be empty with an image"));
    }
    if !sub_path.is_empty()
        && let Err(want) = spec::path::clean_relative(&sub_path)
    {
        return Err(field.at("image_sub_path").invalid(sub_path, want));
    }
    Ok(ImageVolume { image: super::image::spec(&field.at("image"), Some(image))?, sub_path })
}

fn option(field: &Field<'_>, name: String) -> Result<MountOption> {
    MountOption::find(&name).ok_or_else(|| field.invalid(name, "must be noexec, nosuid or nodev"))
}

fn propagation_in(field: &Field<'_>, given: i32) -> Result<Propagation> {
    let names = "PROPAGATION_PRIVATE, PROPAGATION_HOST_TO_CONTAINER, PROPAGATION_BIDIRECTIONAL";
    Ok(match super::choice(field, given, names)? {
        cri::MountPropagation::PropagationPrivate => Propagation::Private,
        cri::MountPropagation::PropagationHostToContainer => Propagation::HostToContainer,
        cri::MountPropagation::PropagationBidirectional => Propagation::Bidirectional,
    })
}

/// Checks `recursive_read_only`: the rules of CRI come first.
fn recursive(field: &Field<'_>, readonly: bool, propagation: Propagation, host: Host) -> Result<()> {
    if !readonly {
        return Err(field.at("readonly").invalid(readonly, "must be true with recursive_read_only"));
    }
    if propagation != Propagation::Private {
        let want = "must be PROPAGATION_PRIVATE with recursive_read_only";
        return Err(field.at("propagation").invalid(format_args!("{propagation:?}"), want));
    }
    if host.recursive_read_only {
        return Ok(());
    }
    Err(field.at("recursive_read_only").not_implemented_as(
        "RROUnsupported",
        "this host cannot make mounts read-only recursively (mount_setattr(2), Linux 5.12)",
    ))
}

/// The mounts as requested. An image is named by its id, whatever the request named it by, because kubelet finds the
/// images that are in use by comparing ids; `image_ref` is the same id, as in all of CRI since 1.36.
pub(crate) fn mounts_out(container: &ContainerRecord) -> Vec<cri::Mount> {
    let mut ids = container.volume_images.iter();
    container.config.mounts.iter().map(|mount| mount_out(mount, &mut ids)).collect()
}

fn mount_out<'a>(mount: &Mount, ids: &mut impl Iterator<Item = &'a String>) -> cri::Mount {
    let Mount {
        container_path,
        host_path,
        readonly,
        recursive_read_only,
        mount_options,
        image,
        selinux_relabel,
        propagation,
        uid_mappings,
        gid_mappings,
    } = mount;
    let propagation = match propagation {
        Propagation::Private => cri::MountPropagation::PropagationPrivate,
        Propagation::HostToContainer => cri::MountPropagation::PropagationHostToContainer,
        Propagation::Bidirectional => cri::MountPropagation::PropagationBidirectional,
    };
    cri::Mount {
        container_path: container_path.clone(),
        host_path: host_path.clone(),
        readonly: *readonly,
        selinux_relabel: *selinux_relabel,
        propagation: propagation.into(),
        uid_mappings: uid_mappings.iter().map(mapping_out).collect(),
        gid_mappings: gid_mappings.iter().map(mapping_out).collect(),
        recursive_read_only: *recursive_read_only,
        image: image.as_ref().map(|volume| image_out(volume, ids.next())),
        image_sub_path: image.as_ref().map(|volume| volume.sub_path.clone()).unwrap_or_default(),
        mount_options: mount_options.iter().map(|option| option.name().to_owned()).collect(),
    }
}

/// The image of an image volume; `id` is its CRI `Image.id`.
fn image_out(volume: &ImageVolume, id: Option<&String>) -> cri::ImageSpec {
    let ImageSpec { image, annotations, user_specified_image, runtime_handler } = &volume.image;
    let user_specified_image = match user_specified_image.as_str() {
        "" if Some(image) != id => image,
        _ => user_specified_image,
    };
    cri::ImageSpec {
        image: id.unwrap_or(image).clone(),
        annotations: super::unmap(annotations),
        user_specified_image: user_specified_image.clone(),
        runtime_handler: runtime_handler.clone(),
        image_ref: id.cloned().unwrap_or_default(),
    }
}

/// One device, or a folder of devices.
pub(super) fn device(field: &Field<'_>, given: cri::Device) -> Result<Device> {
    let cri::Device { container_path, host_path, permissions } = given;
    if !spec::devices::is_access(&permissions) {
        return Err(field.at("permissions").invalid(permissions, "must be any of r, w and m"));
    }
    Ok(Device {
        // Empty means the path on the host, as with containerd: device plugins may leave it out.
        container_path: super::absolute_or_empty(&field.at("container_path"), container_path)?,
        host_path: super::absolute(&field.at("host_path"), host_path)?,
        permissions,
    })
}
