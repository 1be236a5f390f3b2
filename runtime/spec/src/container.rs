//! Computes a container's plan from its record, its image and facts about the node.

use crate::devices::{self, HostDevice};
use crate::{Error, PodFiles, exec, mounts, path, resources, security};
use std::collections::HashMap;

use model::{
    ContainerConfig, ContainerRecord, GroupsPolicy, NamespaceMode, PodRecord, SelinuxLabels, Text,
    UserMapping, UserRequest,
};
use wire::{
    CgroupPlan, ContainerPlan, LogPlan, NamespacePlan, NamespaceSource, ProcessPlan, RootfsPlan,
    SeccompProgram, UserPlan,
};

/// PATH if neither the image nor the request has one.
pub(crate) const DEFAULT_PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Maximum number of VOLUMEs of an image, and of bytes of all their paths: each costs a folder for every name in its
/// path, and with a read-only root a mount. Real images have about ten.
const MAX_VOLUMES: usize = 1024;
const MAX_VOLUME_BYTES: usize = 64 << 10;
/// What execve accepts as a string.
const NO_NUL: &str = "must not contain NUL";

/// Process defaults from an image's config.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ImageFacts {
    /// First arguments of the command line.
    pub entrypoint: Vec<String>,
    /// Default arguments, or the whole command line.
    pub cmd: Vec<String>,
    /// `KEY=value`.
    pub env: Vec<String>,
    /// `user[:group]`; empty means root.
    pub user: String,
    /// Working directory; empty means `/`.
    pub working_dir: String,
    /// Stop signal; empty means SIGTERM.
    pub stop_signal: String,
    /// Folders that the image declares as volumes.
    pub volumes: Vec<String>,
}

/// Facts about the node.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HostFacts {
    /// The daemon's bounding set, which limits all containers.
    pub cap_bounding: u64,
    /// The node's host name: HOSTNAME in pods that name none.
    pub hostname: String,
    /// Device nodes at and below the requested `host_path`s; for a privileged container also those below
    /// /dev.
    pub devices: Vec<HostDevice>,
}

/// The input of [`container`].
#[derive(Debug, Clone)]
pub struct ContainerInput<'a> {
    /// The sandbox's record.
    pub pod: &'a PodRecord,
    /// The validated request.
    pub container: &'a ContainerRecord,
    /// The image's process defaults.
    pub image: &'a ImageFacts,
    /// Root file system; `readonly` is set by [`container`].
    pub rootfs: RootfsPlan,
    /// Files that are bound below /etc.
    pub files: PodFiles,
    /// The layers of the images of its image volumes.
    pub image_layers: &'a mounts::ImageLayers,
    /// The container's cgroup.
    pub cgroup: CgroupPlan,
    /// Filter, compiled for the capabilities that [`security::caps`] returns; ignored if privileged.
    pub seccomp: Option<SeccompProgram>,
    /// SECCOMP_FILTER_FLAG_* bits of the filter's profile.
    pub seccomp_flags: u32,
    /// Name of the AppArmor profile; empty for none.
    pub apparmor: String,
    /// Its SELinux labels; `None` without SELinux.
    pub selinux: Option<SelinuxLabels>,
    /// Name of the session keyring. It must not be guessable: a process of the right user that knows the name
    /// can join.
    pub keyring: String,
    /// Facts about the node.
    pub host: &'a HostFacts,
}

/// Computes the plan of a container; the error names the field that is refused.
#[expect(clippy::too_many_lines, reason = "one line for each field of the plan")]
pub fn container(input: ContainerInput<'_>) -> Result<ContainerPlan, Error> {
    let ContainerInput {
        pod,
        container,
        image,
        mut rootfs,
        files,
        image_layers,
        cgroup,
        seccomp,
        seccomp_flags,
        apparmor,
        selinux,
        keyring,
        host,
    } = input;
    let config = &container.config;
    let asked = &config.security;
    rootfs.readonly = asked.readonly_rootfs;
    rootfs.folders = folders(&image.volumes)?;
    let namespaces = namespaces(config, pod, cgroup.unified)?;
    let selinux = selinux.unwrap_or_default();
    let process = ProcessPlan {
        args: args(config, image)?,
        env: env(config, image, pod, host)?,
        cwd: cwd(config, image)?,
        terminal: config.tty,
        caps: security::caps(asked, host.cap_bounding)?,
        no_new_privs: asked.no_new_privs,
        seccomp: if asked.privileged { None } else { seccomp },
        umask: 0o022,
        oom_score_adj: Some(resources::oom_score_adj(&config.resources)),
        rlimits: Vec::new(),
        seccomp_flags: if asked.privileged { 0 } else { seccomp_flags },
        apparmor,
        // As with other runtimes: the policy decides what becomes of a privileged process.
        selinux: if asked.privileged { String::new() } else { selinux.process.clone() },
        keyring,
    };
    let paths = |field: &str, list: &[String]| -> Result<Vec<String>, Error> {
        if asked.privileged {
            return Ok(Vec::new());
        }
        let clean = |given: &String| path::clean(given).map_err(Error::about(field, given));
        list.iter().map(clean).collect()
    };
    Ok(ContainerPlan {
        id: container.id.clone(),
        pod: pod.id.clone(),
        namespaces,
        rootfs,
        mounts: mounts::labelled(
            mounts::plan(container, &pod.config.security.namespaces, &files, image_layers)?,
            container,
            pod,
            &selinux,
        ),
        devices: devices::nodes(&config.devices, asked.privileged, &host.devices)?,
        masked_paths: paths("config.linux.security_context.masked_paths", &asked.masked_paths)?,
        readonly_paths: paths("config.linux.security_context.readonly_paths", &asked.readonly_paths)?,
        user: user(config, image),
        process,
        cgroup,
        privileged: asked.privileged,
        file_label: selinux.file,
    })
}

/// The folders of an image's VOLUMEs. Values that are not paths are ignored, as with other runtimes.
fn folders(volumes: &[String]) -> Result<Vec<String>, Error> {
    let (count, bytes) = (volumes.len(), volumes.iter().map(String::len).sum::<usize>());
    if count > MAX_VOLUMES || bytes > MAX_VOLUME_BYTES {
        let want = format!("must be at most {MAX_VOLUMES} volumes, with {MAX_VOLUME_BYTES} bytes in all");
        let have = format!("{count} volumes, {bytes} bytes");
        return Err(Error::invalid("image config Volumes", have, want));
    }
    Ok(volumes.iter().filter_map(|volume| path::clean(volume).ok()).collect())
}

/// The request's command replaces the image's entrypoint and cmd; the request's args replace cmd.
fn args(config: &ContainerConfig, image: &ImageFacts) -> Result<Vec<Text>, Error> {
    let texts = |list: &[String], field: &str| -> Result<Vec<Text>, Error> {
        let text =
            |word: &String| Text::new(word.as_bytes()).ok_or_else(|| Error::invalid(field, word, NO_NUL));
        list.iter().map(text).collect()
    };
    let mut args = config.command.clone();
    if args.is_empty() {
        // Image builders write an Entrypoint of one empty string to mean "none".
        let none = matches!(image.entrypoint.as_slice(), [word] if word.is_empty());
        if !none {
            args = texts(&image.entrypoint, "image config Entrypoint")?;
        }
        if config.args.is_empty() {
            args.extend(texts(&image.cmd, "image config Cmd")?);
        }
    }
    args.extend(config.args.iter().cloned());
    match args.first() {
        Some(first) if !first.as_bytes().is_empty() => Ok(args),
        Some(_) => Err(Error::invalid("config.command", "", "must begin with the name of a program")),
        None => Err(Error::invalid("config.command", "", "must be set, as the image has no command either")),
    }
}

/// The defaults of every container, then the image's variables, then the request's. The last value of a name
/// wins and takes the position of the first. An entry of the image without `=` is ignored.
fn env(
    config: &ContainerConfig,
    image: &ImageFacts,
    pod: &PodRecord,
    host: &HostFacts,
) -> Result<Vec<Text>, Error> {
    let mut env: Vec<(Vec<u8>, Vec<u8>)> = Vec::new();
    // Position of each name. With service links there can be tens of thousands.
    let mut places: HashMap<Vec<u8>, usize> = HashMap::new();
    let mut set = |key: &[u8], value: &[u8]| match places.get(key).and_then(|at| env.get_mut(*at)) {
        Some((_, have)) => *have = value.to_vec(),
        None => {
            places.insert(key.to_vec(), env.len());
            env.push((key.to_vec(), value.to_vec()));
        }
    };
    let split = |entry: &str, set: &mut dyn FnMut(&[u8], &[u8])| match entry.split_once('=') {
        Some((key, value)) if !key.is_empty() => set(key.as_bytes(), value.as_bytes()),
        _ => {}
    };
    split(DEFAULT_PATH, &mut set);
    if config.tty {
        split(exec::TERM, &mut set);
    }
    // The image's HOSTNAME wins, because servers bind to it.
    let hostname = if pod.config.hostname.is_empty() { &host.hostname } else { &pod.config.hostname };
    set(b"HOSTNAME", hostname.as_bytes());
    for entry in &image.env {
        split(entry, &mut set);
    }
    for var in &config.envs {
        set(var.key.as_bytes(), var.value.as_bytes());
    }
    let join = |(mut key, value): (Vec<u8>, Vec<u8>)| {
        key.push(b'=');
        key.extend(value);
        let shown = String::from_utf8_lossy(&key).into_owned();
        Text::new(key).ok_or_else(|| Error::invalid("image config Env", shown, NO_NUL))
    };
    env.into_iter().map(join).collect()
}

fn cwd(config: &ContainerConfig, image: &ImageFacts) -> Result<String, Error> {
    match (config.working_dir.as_str(), image.working_dir.as_str()) {
        ("", "") => Ok("/".to_owned()),
        // An image may have a relative path; it is relative to the root.
        ("", own) => path::fold(&format!("/{own}")).map_err(Error::about("image config WorkingDir", own)),
        (asked, _) => path::fold(asked).map_err(Error::about("config.working_dir", asked)),
    }
}

fn user(config: &ContainerConfig, image: &ImageFacts) -> UserPlan {
    let asked = &config.security;
    let request = match &asked.user {
        UserRequest::Root if !image.user.is_empty() => UserRequest::Image(image.user.clone()),
        request => request.clone(),
    };
    UserPlan {
        request,
        gid: asked.run_as_group,
        supplemental: asked.supplemental_groups.clone(),
        merge_image_groups: asked.groups_policy == GroupsPolicy::Merge,
    }
}

/// Network, IPC, UTS and user namespace are those of the sandbox; a request that contradicts them is refused.
fn namespaces(config: &ContainerConfig, pod: &PodRecord, unified: bool) -> Result<NamespacePlan, Error> {
    let (own, sandbox) = (&config.security.namespaces, &pod.config.security.namespaces);
    let field = "config.linux.security_context.namespace_options";
    let shared = |name: &str, own: NamespaceMode, sandbox: NamespaceMode| match (own, sandbox) {
        (NamespaceMode::Pod, NamespaceMode::Node) | (NamespaceMode::Node, NamespaceMode::Node) => {
            Ok(NamespaceSource::Host)
        }
        (NamespaceMode::Pod, _) => Ok(NamespaceSource::Pause),
        (mode, _) => {
            let want = "must be POD, or NODE where the sandbox has NODE";
            Err(Error::invalid(format!("{field}.{name}"), format!("{mode:?}"), want))
        }
    };
    if own.mapping() != sandbox.mapping() {
        let show = |mapping: Option<UserMapping>| mapping.map_or("NODE".to_owned(), |m| format!("{m:?}"));
        let want = format!("must be equal to the sandbox's, {}", show(sandbox.mapping()));
        return Err(Error::invalid(format!("{field}.userns_options"), show(own.mapping()), want));
    }
    let network = shared("network", own.network, sandbox.network)?;
    let pid = match own.pid {
        NamespaceMode::Node => NamespaceSource::Host,
        NamespaceMode::Container => NamespaceSource::New,
        NamespaceMode::Pod if sandbox.pid == NamespaceMode::Node => NamespaceSource::Host,
        NamespaceMode::Pod => NamespaceSource::Pause,
        NamespaceMode::Target => {
            let target = own.target.parse().map_err(|error: model::IdError| {
                Error::invalid(format!("{field}.target_id"), &own.target, error.to_string())
            })?;
            NamespaceSource::Container(target)
        }
    };
    Ok(NamespacePlan {
        uts: network.clone(),
        network,
        ipc: shared("ipc", own.ipc, sandbox.ipc)?,
        pid,
        cgroup: unified && !config.security.privileged,
        user: sandbox.mapping(),
    })
}

/// The container's log file, below the pod's log directory; `None` discards the output.
///
/// # Errors
/// The log path leads out of the directory.
pub fn log(config: &ContainerConfig, log_directory: &str) -> Result<Option<LogPlan>, Error> {
    if config.log_path.is_empty() || log_directory.is_empty() {
        return Ok(None);
    }
    let path = path::clean_relative(&config.log_path);
    Ok(Some(LogPlan { path: path.map_err(Error::about("config.log_path", &config.log_path))? }))
}

#[cfg(test)]
#[path = "container_tests.rs"]
mod tests;
