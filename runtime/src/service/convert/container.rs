//! Converts containers.

use super::{Field, Host, MAX_ARGUMENT, Refusal, Result};
use cri_api::v1 as cri;
use model::{ContainerConfig, ContainerMeta, ContainerPhase, ContainerRecord, EnvVar, Exit, ImageSpec, Text};

/// Maximum number of volumes of a container.
const MAX_MOUNTS: usize = 1024;

/// Converts and validates a CreateContainer request. Returns the sandbox's id as given, the configuration, and
/// whether the request says that the sandbox is privileged.
///
/// The sandbox's configuration was sent with RunPodSandbox already and is in its record; another one now cannot
/// change a running sandbox. Only `privileged` is read here too: it is true as soon as any container of the pod is
/// privileged, and an ephemeral container (`kubectl debug --profile=sysadmin`) is added to a pod that runs.
pub(crate) fn container_config(
    given: cri::CreateContainerRequest,
    host: Host,
) -> Result<(String, ContainerConfig, bool)> {
    let cri::CreateContainerRequest { pod_sandbox_id, config, sandbox_config } = given;
    let sandbox = sandbox_config.and_then(|sandbox| sandbox.linux?.security_context);
    let privileged = sandbox.is_some_and(|security| security.privileged);
    let field = Field::root("config");
    let config = config.ok_or_else(|| field.missing())?;
    let object =
        config.metadata.as_ref().map(|meta| format!("container {:?} of pod {pod_sandbox_id:?}", meta.name));
    let checked = config_in(&field, config, host).map_err(|refusal: Refusal| match object {
        Some(object) => refusal.about(object),
        None => refusal,
    })?;
    Ok((pod_sandbox_id, checked, privileged))
}

#[expect(clippy::too_many_lines, reason = "one line for each field of the message")]
fn config_in(field: &Field<'_>, given: cri::ContainerConfig, host: Host) -> Result<ContainerConfig> {
    let cri::ContainerConfig {
        metadata,
        image,
        command,
        args,
        working_dir,
        envs,
        mounts,
        devices,
        labels,
        annotations,
        log_path,
        stdin,
        stdin_once,
        tty,
        linux,
        // Other operating systems only.
        windows: _,
        cdi_devices,
        stop_signal,
    } = given;
    let meta_field = field.at("metadata");
    let cri::ContainerMetadata { name, attempt } = metadata.ok_or_else(|| meta_field.missing())?;
    let cri::LinuxContainerConfig { resources, security_context } = linux.unwrap_or_default();
    let linux = field.at("linux");
    if let Some(cri::CdiDevice { name }) = cdi_devices.first() {
        return Err(field
            .entry("CDI_devices", 0)
            .not_implemented(format!("CDI is not implemented yet; the request has the device {name:?}")));
    }
    super::at_most(&field.at("mounts"), mounts.len(), MAX_MOUNTS)?;
    let signal = super::choice::<cri::Signal>(
        &field.at("stop_signal"),
        stop_signal,
        "the numbers of enum Signal, 0 to 65",
    )?;
    Ok(ContainerConfig {
        meta: ContainerMeta { name: super::name(&meta_field.at("name"), name)?, attempt },
        image: super::image::spec(&field.at("image"), image)?,
        command: super::each(field, "command", command, text)?,
        args: super::each(field, "args", args, text)?,
        working_dir: working_dir_in(&field.at("working_dir"), working_dir)?,
        envs: super::each(field, "envs", envs, env)?,
        mounts: super::each(field, "mounts", mounts, |field, given| super::mount::mount(field, given, host))?,
        devices: super::each(field, "devices", devices, super::mount::device)?,
        labels: super::map(&field.at("labels"), labels)?,
        annotations: super::map(&field.at("annotations"), annotations)?,
        log_path: log_path_in(&field.at("log_path"), log_path)?,
        stdin,
        stdin_once,
        tty,
        resources: super::resources::of_container(&linux.at("resources"), resources)?,
        security: super::security::container_security(&linux.at("security_context"), security_context, host)?,
        stop_signal: signal.into(),
    })
}

/// An argument: any bytes that execve accepts.
fn text(field: &Field<'_>, given: impl Into<Vec<u8>>) -> Result<Text> {
    let bytes = given.into();
    if bytes.len() > MAX_ARGUMENT {
        return Err(field.invalid(
            format_args!("{} bytes", bytes.len()),
            format!("must have at most {MAX_ARGUMENT} bytes, the kernel's limit of one string"),
        ));
    }
    Text::new(bytes).ok_or_else(|| field.invalid("…\0…", "must not contain a NUL byte"))
}

fn env(field: &Field<'_>, given: cri::KeyValue) -> Result<EnvVar> {
    let cri::KeyValue { key, value } = given;
    if key.is_empty() || key.contains(['=', '\0']) {
        return Err(field.at("key").invalid(key, "must not be empty or contain '=' or NUL"));
    }
    Ok(EnvVar { value: text(&field.at("value"), value)?, key })
}

/// A path in the container, or empty for the image's.
fn working_dir_in(field: &Field<'_>, path: String) -> Result<String> {
    match spec::path::fold(&path) {
        Err(want) if !path.is_empty() => Err(field.invalid(path, want)),
        _ => Ok(path),
    }
}

/// The path of a file below the sandbox's log directory, or empty for no log.
fn log_path_in(field: &Field<'_>, path: String) -> Result<String> {
    if path.is_empty() || (spec::path::clean_relative(&path).is_ok() && !path.ends_with('/')) {
        return Ok(path);
    }
    let want = "must be the path of a file below the sandbox's log_directory, without \"..\"";
    Err(field.invalid(path, want))
}

/// Container id, command and time-out (in seconds, 0 means none) of an ExecSync request.
pub(crate) fn exec_sync(given: cri::ExecSyncRequest) -> Result<(String, Vec<Text>, i64)> {
    let cri::ExecSyncRequest { container_id, cmd, timeout } = given;
    if timeout < 0 {
        return Err(Field::root("timeout").invalid(timeout, "must be 0 (none) or more seconds"));
    }
    Ok((container_id, command(cmd)?, timeout))
}

/// The command of an exec.
pub(super) fn command(cmd: Vec<String>) -> Result<Vec<Text>> {
    if cmd.is_empty() {
        return Err(Field::root("cmd").missing());
    }
    super::each(&Field::root("request"), "cmd", cmd, text)
}

fn metadata_out(meta: &ContainerMeta) -> cri::ContainerMetadata {
    let ContainerMeta { name, attempt } = meta;
    cri::ContainerMetadata { name: name.clone(), attempt: *attempt }
}

/// Identity of a container; stats need it even without values.
pub(super) fn attributes(container: &ContainerRecord) -> cri::ContainerAttributes {
    cri::ContainerAttributes {
        id: container.id.to_string(),
        metadata: Some(metadata_out(&container.config.meta)),
        labels: super::unmap(&container.config.labels),
        annotations: super::unmap(&container.config.annotations),
    }
}

/// The name of the image as requested. If kubelet requested it by id, this is the name that the user wrote.
pub(crate) fn image_of(container: &ContainerRecord) -> &str {
    let ImageSpec { image, user_specified_image, .. } = &container.config.image;
    let by_id = *image == container.image.id || container.image.id.strip_prefix("sha256:") == Some(image);
    if by_id && !user_specified_image.is_empty() { user_specified_image } else { image }
}

fn image_out(container: &ContainerRecord) -> cri::ImageSpec {
    let ImageSpec { image: _, annotations, user_specified_image, runtime_handler } = &container.config.image;
    cri::ImageSpec {
        image: image_of(container).to_owned(),
        annotations: super::unmap(annotations),
        user_specified_image: user_specified_image.clone(),
        runtime_handler: runtime_handler.clone(),
        image_ref: String::new(),
    }
}

pub(super) fn state(phase: ContainerPhase) -> cri::ContainerState {
    match phase {
        ContainerPhase::Creating | ContainerPhase::Created => cri::ContainerState::ContainerCreated,
        ContainerPhase::Running => cri::ContainerState::ContainerRunning,
        ContainerPhase::Exited | ContainerPhase::Removing => cri::ContainerState::ContainerExited,
        ContainerPhase::Unknown => cri::ContainerState::ContainerUnknown,
    }
}

/// `repository@digest`, or the id if the image has no digest. Clients treat an empty value as an error.
fn image_ref(container: &ContainerRecord) -> String {
    let model::ImageOfContainer { id, digested } = &container.image;
    if digested.is_empty() { id.clone() } else { digested.clone() }
}

/// An entry of ListContainers.
pub(crate) fn container_item(container: &ContainerRecord) -> cri::Container {
    cri::Container {
        id: container.id.to_string(),
        pod_sandbox_id: container.pod.to_string(),
        metadata: Some(metadata_out(&container.config.meta)),
        image: Some(image_out(container)),
        image_ref: image_ref(container),
        state: state(container.phase).into(),
        created_at: container.created_at,
        labels: super::unmap(&container.config.labels),
        annotations: super::unmap(&container.config.annotations),
        image_id: container.image.id.clone(),
    }
}

/// The status, computed from the record alone. `silent_log` gives an absolute path where no file ever exists, and is only
/// called for a container that does not log: kubelet removes what matches `<log_path>*`, so the path must not be empty.
pub(crate) fn container_status(
    container: &ContainerRecord,
    silent_log: impl FnOnce() -> String,
) -> cri::ContainerStatus {
    let log_path =
        if container.log_path.starts_with('/') { container.log_path.clone() } else { silent_log() };
    let Exit { code, finished_at, oom_killed: _, reason, message } =
        container.exit.clone().unwrap_or_default();
    let model::User { uid, gid, groups } = &container.user;
    let user = cri::LinuxContainerUser {
        uid: (*uid).into(),
        gid: (*gid).into(),
        supplemental_groups: groups.iter().map(|gid| i64::from(*gid)).collect(),
    };
    let signal = match container.config.stop_signal {
        0 => spec::signals::to_cri(container.stop_signal),
        asked => asked,
    };
    cri::ContainerStatus {
        id: container.id.to_string(),
        metadata: Some(metadata_out(&container.config.meta)),
        state: state(container.phase).into(),
        created_at: container.created_at,
        started_at: container.started_at,
        finished_at,
        exit_code: code,
        image: Some(image_out(container)),
        image_ref: image_ref(container),
        reason,
        message,
        labels: super::unmap(&container.config.labels),
        annotations: super::unmap(&container.config.annotations),
        mounts: super::mount::mounts_out(container),
        log_path,
        resources: Some(cri::ContainerResources {
            linux: Some(super::resources::resources_out(&container.config.resources)),
            windows: None,
        }),
        image_id: container.image.id.clone(),
        user: Some(cri::ContainerUser { linux: Some(user) }),
        stop_signal: signal,
    }
}
