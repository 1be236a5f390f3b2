//! Converts `Mount` and `Device`.

use super::security::{mapping_in, mapping_out};
use super::{Field, Host, Refusal, Result};
use cri_api::v1 as cri;
use model::{Device, Mount, Propagation};

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
    if image.is_some_and(|image| image != cri::ImageSpec::default()) {
        return Err(field
            .at("image")
            .not_implemented_as("ImageVolumeMountFailed", "image volumes are not implemented yet"));
    }
    if !image_sub_path.is_empty() {
        return Err(field.at("image_sub_path").invalid(image_sub_path, "must be empty without an image"));
    }
    let host_path = super::absolute(&field.at("host_path"), host_path)?;
    if let Some(option) = mount_options.into_iter().next() {
        return Err(refused_option(&field.entry("mount_options", 0), option));
    }
    let propagation = propagation_in(&field.at("propagation"), propagation)?;
    if recursive_read_only {
        return Err(refused_recursion(field, readonly, propagation));
    }
    if selinux_relabel && host.selinux {
        return Err(field
            .at("selinux_relabel")
            .not_implemented("SELinux is not implemented yet, and this host enforces it"));
    }
    Ok(Mount {
        container_path,
        host_path,
        readonly,
        selinux_relabel,
        propagation,
        // `spec` compares them with the pod's.
        uid_mappings: uid_mappings.into_iter().map(mapping_in).collect(),
        gid_mappings: gid_mappings.into_iter().map(mapping_in).collect(),
    })
}

fn propagation_in(field: &Field<'_>, given: i32) -> Result<Propagation> {
    let names = "PROPAGATION_PRIVATE, PROPAGATION_HOST_TO_CONTAINER, PROPAGATION_BIDIRECTIONAL";
    Ok(match super::choice(field, given, names)? {
        cri::MountPropagation::PropagationPrivate => Propagation::Private,
        cri::MountPropagation::PropagationHostToContainer => Propagation::HostToContainer,
        cri::MountPropagation::PropagationBidirectional => Propagation::Bidirectional,
    })
}

fn refused_option(field: &Field<'_>, option: String) -> Refusal {
    match option.as_str() {
        "noexec" | "nosuid" | "nodev" => field
            .not_implemented(format!("mount options are not implemented yet; the request has {option:?}")),
        _ => field.invalid(option, "must be noexec, nosuid or nodev"),
    }
}

/// Why `recursive_read_only` is refused: the rules of CRI come first.
fn refused_recursion(field: &Field<'_>, readonly: bool, propagation: Propagation) -> Refusal {
    if !readonly {
        return field.at("readonly").invalid(readonly, "must be true with recursive_read_only");
    }
    if propagation != Propagation::Private {
        let want = "must be PROPAGATION_PRIVATE with recursive_read_only";
        return field.at("propagation").invalid(format_args!("{propagation:?}"), want);
    }
    field
        .at("recursive_read_only")
        .not_implemented_as("RROUnsupported", "recursive read-only mounts are not implemented yet")
}

/// The mount as requested.
pub(super) fn mount_out(mount: &Mount) -> cri::Mount {
    let Mount {
        container_path,
        host_path,
        readonly,
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
        recursive_read_only: false,
        image: None,
        image_sub_path: String::new(),
        mount_options: Vec::new(),
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
