//! Converts pod sandboxes.

use super::{Field, Host, Refusal, Result};
use cri_api::v1 as cri;
use model::{Dns, NamespaceMode, PodConfig, PodMeta, PodPhase, PodRecord, PortMapping, Protocol};
use spec::sysctl::Namespace;
use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;

/// Maximum number of servers, of search domains and of options in a resolv.conf. Kubernetes allows 3 servers and 32
/// domains.
const MAX_DNS: usize = 64;
/// Maximum length of a host name (Linux's HOST_NAME_MAX).
const MAX_HOSTNAME: usize = 64;
/// Maximum number of kernel parameters of a pod.
const MAX_SYSCTLS: usize = 256;
/// Maximum length of a sysctl's value in bytes: /proc/sys accepts one page.
const MAX_SYSCTL: usize = 4095;

/// Converts and validates a RunPodSandbox request.
pub(crate) fn run_request(given: cri::RunPodSandboxRequest, host: Host) -> Result<PodConfig> {
    let cri::RunPodSandboxRequest { config, runtime_handler } = given;
    let field = Field::root("config");
    let config = config.ok_or_else(|| field.missing())?;
    let object = config.metadata.as_ref().map(|meta| format!("pod {:?}/{:?}", meta.namespace, meta.name));
    let about = |refusal: Refusal| match &object {
        Some(object) => refusal.about(object),
        None => refusal,
    };
    super::image::handler(&Field::root("runtime_handler"), &runtime_handler).map_err(about)?;
    pod_config(&field, config, host).map_err(about)
}

fn pod_config(field: &Field<'_>, given: cri::PodSandboxConfig, host: Host) -> Result<PodConfig> {
    let cri::PodSandboxConfig {
        metadata,
        hostname,
        log_directory,
        dns_config,
        port_mappings,
        labels,
        annotations,
        linux,
        // Other operating systems only.
        windows: _,
    } = given;
    let cri::LinuxPodSandboxConfig { cgroup_parent, security_context, sysctls, overhead, resources } =
        linux.unwrap_or_default();
    let linux = field.at("linux");
    let security = super::security::pod_security(&linux.at("security_context"), security_context, host)?;
    Ok(PodConfig {
        meta: metadata_in(&field.at("metadata"), metadata)?,
        hostname: hostname_in(&field.at("hostname"), hostname)?,
        log_directory: super::absolute_or_empty(&field.at("log_directory"), log_directory)?,
        dns: dns_config.map(|dns| dns_in(&field.at("dns_config"), dns)).transpose()?,
        ports: super::each(field, "port_mappings", port_mappings, port)?,
        labels: super::map(&field.at("labels"), labels)?,
        annotations: annotations_in(&field.at("annotations"), annotations, &security.namespaces)?,
        cgroup_parent: cgroup_parent_in(&linux.at("cgroup_parent"), cgroup_parent)?,
        sysctls: sysctls_in(&linux.at("sysctls"), sysctls, &security.namespaces)?,
        overhead: super::resources::resources(&linux.at("overhead"), overhead)?,
        resources: super::resources::resources(&linux.at("resources"), resources)?,
        security,
        runtime_handler: String::new(),
    })
}

fn metadata_in(field: &Field<'_>, given: Option<cri::PodSandboxMetadata>) -> Result<PodMeta> {
    let cri::PodSandboxMetadata { name, uid, namespace, attempt } = given.ok_or_else(|| field.missing())?;
    Ok(PodMeta {
        name: super::name(&field.at("name"), name)?,
        namespace: super::name(&field.at("namespace"), namespace)?,
        uid: super::name(&field.at("uid"), uid)?,
        attempt,
    })
}

/// Empty means the node's name.
fn hostname_in(field: &Field<'_>, name: String) -> Result<String> {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_');
    if name.len() > MAX_HOSTNAME || !name.bytes().all(plain) {
        return Err(field.invalid(
            name,
            format!("must be at most {MAX_HOSTNAME} letters, digits, '-', '_' and '.'; empty means the node's name"),
        ));
    }
    Ok(name)
}

/// Each entry becomes part of a line in resolv.conf.
fn dns_in(field: &Field<'_>, given: cri::DnsConfig) -> Result<Dns> {
    let cri::DnsConfig { servers, searches, options } = given;
    for (name, list) in [("servers", &servers), ("searches", &searches), ("options", &options)] {
        super::at_most(&field.at(name), list.len(), MAX_DNS)?;
    }
    let word = |field: &Field<'_>, text: String| {
        if text.is_empty() || text.len() > 255 || text.chars().any(|c| c.is_control() || c.is_whitespace()) {
            return Err(field.invalid(text, "must be one word of at most 255 bytes"));
        }
        Ok(text)
    };
    let server = |field: &Field<'_>, text: String| {
        // A link-local address has a scope: fe80::1%eth0.
        let address = text.split('%').next().unwrap_or_default();
        if address.parse::<IpAddr>().is_err() {
            return Err(field.invalid(text, "must be an IP address"));
        }
        word(field, text)
    };
    Ok(Dns {
        servers: super::each(field, "servers", servers, server)?,
        searches: super::each(field, "searches", searches, word)?,
        options: super::each(field, "options", options, word)?,
    })
}

fn port(field: &Field<'_>, given: cri::PortMapping) -> Result<PortMapping> {
    let cri::PortMapping { protocol, container_port, host_port, host_ip } = given;
    let protocol = match super::choice(&field.at("protocol"), protocol, "TCP, UDP, SCTP")? {
        cri::Protocol::Tcp => Protocol::Tcp,
        cri::Protocol::Udp => Protocol::Udp,
        cri::Protocol::Sctp => Protocol::Sctp,
    };
    let number = |name: &str, value: i32| {
        u16::try_from(value).map_err(|_| field.at(name).invalid(value, "must be 0 to 65535"))
    };
    let mapping = PortMapping {
        protocol,
        container_port: number("container_port", container_port)?,
        host_port: number("host_port", host_port)?,
        host_ip,
    };
    if mapping.host_port != 0 && mapping.container_port == 0 {
        return Err(field.at("container_port").invalid(0, "must be 1 to 65535 with a host_port"));
    }
    if !mapping.host_ip.is_empty() && mapping.host_ip.parse::<IpAddr>().is_err() {
        return Err(field.at("host_ip").invalid(mapping.host_ip, "must be an IP address, or empty for all"));
    }
    Ok(mapping)
}

/// Annotations are kept unchanged. Those that limit the traffic are checked, unless the pod has no network of its own.
fn annotations_in(
    field: &Field<'_>,
    given: HashMap<String, String>,
    namespaces: &model::Namespaces,
) -> Result<BTreeMap<String, String>> {
    let annotations = super::map(field, given)?;
    if namespaces.network != NamespaceMode::Node {
        network::check_bandwidth(&annotations)
            .map_err(|error| field.at(error.annotation).invalid(&error.value, error.to_string()))?;
    }
    Ok(annotations)
}

/// A path, or the bare name of a slice. Which of them this node wants depends on its driver (`cgroups`).
fn cgroup_parent_in(field: &Field<'_>, path: String) -> Result<String> {
    let path = super::plain(field, path)?;
    if spec::slice::path(&path).is_ok() {
        return Ok(path);
    }
    match spec::path::clean(&path) {
        Err(want) if !path.is_empty() => {
            let want = format!(
                "{want}; for example /kubepods/burstable/pod<uid> (cgroupfs), or the name of a systemd slice"
            );
            Err(field.invalid(path, want))
        }
        _ => Ok(path),
    }
}

/// Only parameters of the pod's own namespaces: all others would change the host. Two spellings of one parameter are
/// refused, because it is not known which value is meant.
fn sysctls_in(
    field: &Field<'_>,
    given: HashMap<String, String>,
    namespaces: &model::Namespaces,
) -> Result<BTreeMap<String, String>> {
    super::at_most(field, given.len(), MAX_SYSCTLS)?;
    let mut checked = BTreeMap::new();
    let mut spellings: BTreeMap<String, String> = BTreeMap::new();
    // In a fixed order, so that the same request gets the same error.
    for (key, value) in given.into_iter().collect::<BTreeMap<_, _>>() {
        let sysctl = spec::sysctl::parse(&key).map_err(|want| field.invalid(&key, want))?;
        if value.contains(['\0', '\n']) || value.len() > MAX_SYSCTL {
            let want = format!("the value must be one line of at most {MAX_SYSCTL} bytes");
            return Err(field.invalid((key, value), want));
        }
        let (mode, shared) = match sysctl.namespace {
            Namespace::Network => (namespaces.network, "network"),
            Namespace::Ipc => (namespaces.ipc, "ipc"),
            // The UTS namespace is the host's if the network is.
            Namespace::Uts => (namespaces.network, "network (and UTS)"),
        };
        if mode == NamespaceMode::Node {
            let want = format!("must not be set when the pod uses the host's {shared} namespace");
            return Err(field.invalid(key, want));
        }
        if let Some(other) = spellings.insert(sysctl.name.clone(), key.clone()) {
            let want = format!("is the same parameter as {other:?}; only one of them may be set");
            return Err(field.invalid(key, want));
        }
        checked.insert(sysctl.name, value);
    }
    Ok(checked)
}

fn metadata_out(meta: &PodMeta) -> cri::PodSandboxMetadata {
    let PodMeta { name, namespace, uid, attempt } = meta;
    cri::PodSandboxMetadata {
        name: name.clone(),
        uid: uid.clone(),
        namespace: namespace.clone(),
        attempt: *attempt,
    }
}

pub(super) fn state(phase: PodPhase) -> cri::PodSandboxState {
    match phase {
        PodPhase::Ready => cri::PodSandboxState::SandboxReady,
        PodPhase::Launching | PodPhase::Stopping | PodPhase::Stopped | PodPhase::Removing => {
            cri::PodSandboxState::SandboxNotready
        }
    }
}

/// What identifies a pod in its stats.
pub(super) fn attributes(pod: &PodRecord) -> cri::PodSandboxAttributes {
    cri::PodSandboxAttributes {
        id: pod.id.to_string(),
        metadata: Some(metadata_out(&pod.config.meta)),
        labels: super::unmap(&pod.config.labels),
        annotations: super::unmap(&pod.config.annotations),
    }
}

/// An entry of ListPodSandbox.
pub(crate) fn pod_item(pod: &PodRecord) -> cri::PodSandbox {
    cri::PodSandbox {
        id: pod.id.to_string(),
        metadata: Some(metadata_out(&pod.config.meta)),
        state: state(pod.phase).into(),
        created_at: pod.created_at,
        labels: super::unmap(&pod.config.labels),
        annotations: super::unmap(&pod.config.annotations),
        runtime_handler: pod.config.runtime_handler.clone(),
    }
}

/// kubelet compares this status with what it requested: the namespaces must equal the request, or it
/// recreates the pod.
pub(crate) fn pod_status(pod: &PodRecord) -> cri::PodSandboxStatus {
    let mut ips =
        if pod.phase == PodPhase::Ready { pod.ips.as_slice() } else { &[] }.iter().map(IpAddr::to_string);
    let network = cri::PodSandboxNetworkStatus {
        ip: ips.next().unwrap_or_default(),
        additional_ips: ips.map(|ip| cri::PodIp { ip }).collect(),
    };
    let options = super::security::namespaces_out(&pod.config.security.namespaces);
    cri::PodSandboxStatus {
        id: pod.id.to_string(),
        metadata: Some(metadata_out(&pod.config.meta)),
        state: state(pod.phase).into(),
        created_at: pod.created_at,
        network: Some(network),
        linux: Some(cri::LinuxPodSandboxStatus {
            namespaces: Some(cri::Namespace { options: Some(options) }),
        }),
        labels: super::unmap(&pod.config.labels),
        annotations: super::unmap(&pod.config.annotations),
        runtime_handler: pod.config.runtime_handler.clone(),
    }
}
