//! What plugins get: the data of a pod, CNI_ARGS, capability arguments, and the standard input.

use std::collections::BTreeMap;
use std::path::PathBuf;

use model::{Dns, PodId, PortMapping, Protocol};
use serde_json::{Map, Value, json};

use crate::bandwidth::{self, InvalidBandwidth};
use crate::conf::{Network, PluginConf};
use crate::error::Error;
use crate::lease::IFNAME;
use crate::plugin;

/// The data about a pod that plugins get.
#[derive(Debug, Clone)]
pub struct Attachment {
    /// The sandbox: CNI_CONTAINERID.
    pub pod: PodId,
    /// Pod name.
    pub name: String,
    /// Pod namespace.
    pub namespace: String,
    /// Pod uid.
    pub uid: String,
    /// The pinned network namespace.
    pub netns: PathBuf,
    /// Host ports, passed as capability `portMappings`; those with host port 0 are skipped.
    pub ports: Vec<PortMapping>,
    /// Capability `dns`.
    pub dns: Option<Dns>,
    /// Capability `cgroupPath`; empty means none.
    pub cgroup_parent: String,
    /// Capabilities `io.kubernetes.cri.pod-annotations` and `bandwidth`.
    pub annotations: BTreeMap<String, String>,
}

/// The standard input of one plugin: its configuration with the network's name and version, the capability
/// arguments it asks for, and the previous result.
pub(crate) fn plugin_input(
    network: &Network,
    plugin: &PluginConf,
    capabilities: Option<&Map<String, Value>>,
    previous: Option<&Map<String, Value>>,
) -> Map<String, Value> {
    let mut body = plugin.body().clone();
    // Reserved for the runtime (specification, sections 1 and 3).
    body.retain(|key, _| !key.starts_with("cni.dev/") && key != "prevResult");
    body.insert("name".to_owned(), network.name.clone().into());
    body.insert("cniVersion".to_owned(), network.version.as_str().into());
    let wanted: Map<String, Value> = capabilities
        .into_iter()
        .flatten()
        .filter(|(name, _)| plugin.wants(name))
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect();
    if !wanted.is_empty() {
        body.insert("runtimeConfig".to_owned(), wanted.into());
    }
    if let Some(previous) = previous {
        body.insert("prevResult".to_owned(), previous.clone().into());
    }
    body
}

/// The standard input of one plugin for GC: `valid` are the pods that are attached to the network.
pub(crate) fn gc_input(network: &Network, plugin: &PluginConf, valid: &[PodId]) -> Map<String, Value> {
    let mut body = plugin_input(network, plugin, None, None);
    let valid: Vec<Value> =
        valid.iter().map(|pod| json!({"containerID": pod.as_str(), "ifname": IFNAME})).collect();
    // The name in the specification, and the one that it had at first, which released plugins read.
    for key in ["cni.dev/valid-attachments", "cni.dev/attachments"] {
        body.insert(key.to_owned(), valid.clone().into());
    }
    body
}

/// Capability arguments, with the names that other CRI runtimes use.
///
/// # Errors
/// A limit of the pod's bandwidth is invalid.
pub(crate) fn capabilities(pod: &Attachment) -> Result<Map<String, Value>, Error> {
    let mut all = Map::new();
    let ports: Vec<Value> = pod
        .ports
        .iter()
        .filter(|port| port.host_port != 0)
        .map(|port| {
            let protocol = match port.protocol {
                Protocol::Tcp => "tcp",
                Protocol::Udp => "udp",
                Protocol::Sctp => "sctp",
            };
            json!({
                "hostPort": port.host_port,
                "containerPort": port.container_port,
                "protocol": protocol,
                "hostIP": port.host_ip,
            })
        })
        .collect();
    if !ports.is_empty() {
        all.insert("portMappings".to_owned(), ports.into());
    }
    if let Some(dns) = &pod.dns {
        let dns = json!({"servers": dns.servers, "searches": dns.searches, "options": dns.options});
        all.insert("dns".to_owned(), dns);
    }
    if !pod.cgroup_parent.is_empty() {
        all.insert("cgroupPath".to_owned(), pod.cgroup_parent.clone().into());
    }
    if !pod.annotations.is_empty() {
        all.insert("io.kubernetes.cri.pod-annotations".to_owned(), json!(pod.annotations));
    }
    let bandwidth = bandwidth::argument(&pod.annotations);
    let invalid = |InvalidBandwidth { annotation, value }: InvalidBandwidth| {
        attachment_error(pod, annotation, &value, InvalidBandwidth::WANT)
    };
    if let Some(limits) = bandwidth.map_err(invalid)? {
        all.insert("bandwidth".to_owned(), limits);
    }
    Ok(all)
}

fn attachment_error(pod: &Attachment, field: &'static str, value: &str, want: &'static str) -> Error {
    let value = plugin::excerpt(value.as_bytes());
    Error::Attachment { pod: pod.pod.clone(), field, value, want }
}

/// Whether a value can be passed in CNI_ARGS (`KEY=value;KEY=value`), which has no escapes: a separator in a value
/// would add an argument.
pub fn fits_cni_args(value: &str) -> bool {
    !value.contains([';', '=', '\0'])
}

/// The value of CNI_ARGS.
///
/// # Errors
/// A value does not fit ([`fits_cni_args`]).
pub(crate) fn cni_args(pod: &Attachment) -> Result<String, Error> {
    let mut args = "IgnoreUnknown=1".to_owned();
    for (key, field, value) in [
        ("K8S_POD_NAMESPACE", "metadata.namespace", pod.namespace.as_str()),
        ("K8S_POD_NAME", "metadata.name", pod.name.as_str()),
        ("K8S_POD_INFRA_CONTAINER_ID", "id", pod.pod.as_str()),
        ("K8S_POD_UID", "metadata.uid", pod.uid.as_str()),
    ] {
        if !fits_cni_args(value) {
            let want = "must not contain ';', '=' or NUL: they would add arguments to CNI_ARGS";
            return Err(attachment_error(pod, field, value, want));
        }
        args.extend([";", key, "=", value]);
    }
    Ok(args)
}
