//! A container's plan from its record, its image and the node's facts.

use crate::devices::{self, HostDevice};
use crate::{Error, PodFiles, exec, mounts, path, refuse, resources, security};
use model::{ContainerConfig, ContainerRecord, GroupsPolicy, NamespaceMode, PodRecord, Text, UserRequest};
use wire::{
    CgroupPlan, ContainerPlan, LogPlan, NamespacePlan, NamespaceSource, ProcessPlan, RootfsPlan,
    SeccompProgram, UserPlan,
};

/// PATH where neither the image nor the request has one.
pub const DEFAULT_PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Most VOLUMEs of an image, and bytes of their paths together: each costs a folder for every name on its way,
/// and below a read-only root a mount. Images in use have some ten.
const MOST_VOLUMES: usize = 1024;
const LONGEST_VOLUMES: usize = 64 << 10;

/// What an image's configuration says about its processes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ImageFacts {
    /// First words of the command line.
    pub entrypoint: Vec<String>,
    /// The rest, or all of it.
    pub cmd: Vec<String>,
    /// `KEY=value`.
    pub env: Vec<String>,
    /// `user[:group]`, empty for root.
    pub user: String,
    /// Empty for `/`.
    pub working_dir: String,
    /// Empty for SIGTERM.
    pub stop_signal: String,
    /// Folders that the image declares as volumes.
    pub volumes: Vec<String>,
}

/// What the node has.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HostFacts {
    /// The daemon's bounding set: no container can have more.
    pub cap_bounding: u64,
    /// Host name, for pods with the host's network and no name of their own.
    pub hostname: String,
    /// Nodes at and below the requested `host_path`s; for a privileged container also those below /dev.
    pub devices: Vec<HostDevice>,
}

/// All that [`container`] looks at.
#[derive(Debug, Clone)]
pub struct ContainerInput<'a> {
    /// Its sandbox.
    pub pod: &'a PodRecord,
    /// What was asked for.
    pub container: &'a ContainerRecord,
    /// Its image's configuration.
    pub image: &'a ImageFacts,
    /// Root file system; `readonly` is set here.
    pub rootfs: RootfsPlan,
    /// Files bound below /etc.
    pub files: PodFiles,
    /// The leaf that was made for it.
    pub cgroup: CgroupPlan,
    /// Its filter, compiled for the capabilities that [`security::caps`] gives; dropped when privileged.
    pub seccomp: Option<SeccompProgram>,
    /// SECCOMP_FILTER_FLAG_* bits that the filter's profile asks for.
    pub seccomp_flags: u32,
    /// Name of its session keyring. Whoever knows it and has the right user can join: it must not be guessed.
    pub keyring: String,
    /// Facts.
    pub host: &'a HostFacts,
}

/// The plan of a container, or which field stands in its way.
pub fn container(input: ContainerInput<'_>) -> Result<ContainerPlan, Error> {
    let ContainerInput {
        pod,
        container,
        image,
        mut rootfs,
        files,
        cgroup,
        seccomp,
        seccomp_flags,
        keyring,
        host,
    } = input;
    let config = &container.config;
    let asked = &config.security;
    refuse::container(config)?;
    if asked.privileged && !pod.config.security.privileged {
        let field = "linux.security_context.privileged";
        return Err(Error::invalid(field, "true", "the sandbox must be privileged too"));
    }
    rootfs.readonly = asked.readonly_rootfs;
    rootfs.folders = folders(&image.volumes)?;
    let namespaces = namespaces(config, pod, cgroup.unified)?;
    let process = ProcessPlan {
        args: args(config, image)?,
        env: env(config, image, pod, host)?,
        cwd: cwd(config, image)?,
        terminal: config.tty,
        caps: security::caps(asked, host.cap_bounding)?,
        no_new_privs: asked.no_new_privs,
        seccomp: if asked.privileged { None } else { seccomp },
        umask: 0o022,
        oom_score_adj: Some(resources::oom_score_adj(&config.resources)?),
        rlimits: Vec::new(),
        seccomp_flags: if asked.privileged { 0 } else { seccomp_flags },
        keyring,
    };
    let hidden = |field: &str, list: &[String]| -> Result<Vec<String>, Error> {
        if asked.privileged {
            return Ok(Vec::new());
        }
        list.iter().map(|given| path::clean(&format!("linux.security_context.{field}"), given)).collect()
    };
    Ok(ContainerPlan {
        id: container.id.clone(),
        pod: pod.id.clone(),
        namespaces,
        rootfs,
        mounts: mounts::plan(config, &pod.config.security.namespaces, &files)?,
        devices: devices::nodes(&config.devices, asked.privileged, &host.devices)?,
        masked_paths: hidden("masked_paths", &asked.masked_paths)?,
        readonly_paths: hidden("readonly_paths", &asked.readonly_paths)?,
        user: user(config, image)?,
        process,
        cgroup,
        privileged: asked.privileged,
    })
}

/// The folders of an image's VOLUMEs. What is no path declares nothing, as with other runtimes.
fn folders(volumes: &[String]) -> Result<Vec<String>, Error> {
    let (count, bytes) = (volumes.len(), volumes.iter().map(String::len).sum::<usize>());
    if count > MOST_VOLUMES || bytes > LONGEST_VOLUMES {
        let want = format!("at most {MOST_VOLUMES} volumes, and {LONGEST_VOLUMES} bytes for all of them");
        let have = format!("{count} volumes, {bytes} bytes");
        return Err(Error::invalid("image config Volumes", have, want));
    }
    Ok(volumes.iter().filter_map(|volume| path::clean("image volume", volume).ok()).collect())
}

/// The request's command replaces the image's entrypoint and drops its cmd; the request's args replace cmd.
fn args(config: &ContainerConfig, image: &ImageFacts) -> Result<Vec<Text>, Error> {
    let own = |list: &[String], field: &str| -> Result<Vec<Text>, Error> {
        let text =
            |word: &String| Text::new(word.as_bytes()).ok_or_else(|| Error::invalid(field, word, "no NUL"));
        list.iter().map(text).collect()
    };
    let mut args = config.command.clone();
    if args.is_empty() {
        // An Entrypoint of one empty word is how image builders write "none".
        let none = matches!(image.entrypoint.as_slice(), [word] if word.is_empty());
        if !none {
            args = own(&image.entrypoint, "image config Entrypoint")?;
        }
        if config.args.is_empty() {
            args.extend(own(&image.cmd, "image config Cmd")?);
        }
    }
    args.extend(config.args.iter().cloned());
    match args.first() {
        Some(first) if !first.as_bytes().is_empty() => Ok(args),
        Some(_) => Err(Error::invalid("command", "", "the program's name is empty")),
        None => Err(Error::invalid("command", "", "neither the request nor the image names a program")),
    }
}

/// What every container has, then the image's, then the request's; the last of a key wins and stays where
/// the first stood. An entry of the image without `=` sets nothing and is left out.
fn env(
    config: &ContainerConfig,
    image: &ImageFacts,
    pod: &PodRecord,
    host: &HostFacts,
) -> Result<Vec<Text>, Error> {
    let mut env: Vec<(Vec<u8>, Vec<u8>)> = Vec::new();
    let mut set = |key: &[u8], value: &[u8]| match env.iter_mut().find(|(have, _)| have == key) {
        Some((_, have)) => *have = value.to_vec(),
        None => env.push((key.to_vec(), value.to_vec())),
    };
    let split = |entry: &str, set: &mut dyn FnMut(&[u8], &[u8])| match entry.split_once('=') {
        Some((key, value)) if !key.is_empty() => set(key.as_bytes(), value.as_bytes()),
        _ => {}
    };
    split(DEFAULT_PATH, &mut set);
    if config.tty {
        split(exec::TERM, &mut set);
    }
    // The image's wins: servers bind to it.
    let hostname = if pod.config.hostname.is_empty() { &host.hostname } else { &pod.config.hostname };
    set(b"HOSTNAME", hostname.as_bytes());
    for entry in &image.env {
        split(entry, &mut set);
    }
    for (index, var) in config.envs.iter().enumerate() {
        if var.key.is_empty() || var.key.contains(['=', '\0']) {
            return Err(Error::invalid(format!("envs[{index}].key"), &var.key, "a name without '=' and NUL"));
        }
        set(var.key.as_bytes(), var.value.as_bytes());
    }
    let join = |(mut key, value): (Vec<u8>, Vec<u8>)| {
        key.push(b'=');
        key.extend(value);
        let shown = String::from_utf8_lossy(&key).into_owned();
        Text::new(key).ok_or_else(|| Error::invalid("image config Env", shown, "no NUL"))
    };
    env.into_iter().map(join).collect()
}

fn cwd(config: &ContainerConfig, image: &ImageFacts) -> Result<String, Error> {
    match (config.working_dir.as_str(), image.working_dir.as_str()) {
        ("", "") => Ok("/".to_owned()),
        // Images may hold a relative one; it counts from the root.
        ("", own) => path::fold("image config WorkingDir", &format!("/{own}")),
        (asked, _) => path::fold("working_dir", asked),
    }
}

fn user(config: &ContainerConfig, image: &ImageFacts) -> Result<UserPlan, Error> {
    let asked = &config.security;
    if let (UserRequest::Root, Some(group)) = (&asked.user, asked.run_as_group) {
        let want = "run_as_user or run_as_username must be set with it";
        return Err(Error::invalid("linux.security_context.run_as_group", group.to_string(), want));
    }
    let request = match &asked.user {
        UserRequest::Root if !image.user.is_empty() => UserRequest::Image(image.user.clone()),
        request => request.clone(),
    };
    Ok(UserPlan {
        request,
        gid: asked.run_as_group,
        supplemental: asked.supplemental_groups.clone(),
        merge_image_groups: asked.groups_policy == GroupsPolicy::Merge,
    })
}

/// Network, IPC and UTS are the sandbox's, whatever the container says; only what contradicts is refused.
pub(crate) fn namespaces(
    config: &ContainerConfig,
    pod: &PodRecord,
    unified: bool,
) -> Result<NamespacePlan, Error> {
    let (own, sandbox) = (&config.security.namespaces, &pod.config.security.namespaces);
    let field = "linux.security_context.namespace_options";
    let shared = |name: &str, own: NamespaceMode, sandbox: NamespaceMode| match (own, sandbox) {
        (NamespaceMode::Pod, NamespaceMode::Node) | (NamespaceMode::Node, NamespaceMode::Node) => {
            Ok(NamespaceSource::Host)
        }
        (NamespaceMode::Pod, _) => Ok(NamespaceSource::Pause),
        (mode, _) => {
            let want = "POD, or NODE where the sandbox has NODE";
            Err(Error::invalid(format!("{field}.{name}"), format!("{mode:?}"), want))
        }
    };
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
    })
}

/// Where its output goes, below the pod's log directory; `None` discards it.
///
/// # Errors
/// A log path that leaves the directory.
pub fn log(config: &ContainerConfig, log_directory: &str) -> Result<Option<LogPlan>, Error> {
    if config.log_path.is_empty() || log_directory.is_empty() {
        return Ok(None);
    }
    path::clean("log_directory", log_directory)?;
    Ok(Some(LogPlan { path: path::clean_relative("log_path", &config.log_path)? }))
}

#[cfg(test)]
#[path = "container_tests.rs"]
mod tests;
