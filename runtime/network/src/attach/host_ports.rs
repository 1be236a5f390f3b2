//! Host ports of pods whose DEL is due. Plugins append their rules, so that the old pod's, which is still there, would get
//! all connections of a new pod's same port: to an address that nobody has.

use model::PodId;
use serde::Deserialize;
use serde_json::{Map, Value};
use std::net::IpAddr;
use std::time::Duration;

use super::Cni;
use crate::error::Error;

/// The capability argument with a pod's host ports.
pub(super) const CAPABILITY: &str = "portMappings";
/// How long an ADD waits for the DELs of other pods, which go on after that.
const WAIT: Duration = Duration::from_secs(20);

/// An entry of [`CAPABILITY`], as [`crate::input::capabilities`] writes it.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct HostPort {
    host_port: u16,
    protocol: String,
    #[serde(rename = "hostIP")]
    host_ip: String,
}

impl HostPort {
    /// Whether a connection to one could be one to the other.
    fn overlaps(&self, other: &Self) -> bool {
        // No address, and the unspecified ones, stand for all of the host. What is no address is compared as it is.
        let all = |ip: &str| ip.is_empty() || ip.parse::<IpAddr>().is_ok_and(|ip| ip.is_unspecified());
        let (one, two) = (self.host_ip.as_str(), other.host_ip.as_str());
        (self.host_port, &self.protocol) == (other.host_port, &other.protocol)
            && (one == two || all(one) || all(two))
    }
}

fn host_ports(capabilities: &Map<String, Value>) -> Vec<HostPort> {
    let ports = capabilities.get(CAPABILITY).cloned();
    ports.and_then(|ports| serde_json::from_value(ports).ok()).unwrap_or_default()
}

impl Cni {
    /// Runs the DELs that are due of pods with the same host ports as `pod`, whose `capabilities` these are, before its ADD.
    ///
    /// # Errors
    /// A plugin that may still lead such a port to its old pod has failed again.
    pub(super) async fn free_host_ports(
        &self,
        pod: &PodId,
        capabilities: &Map<String, Value>,
    ) -> Result<(), Error> {
        let wanted = host_ports(capabilities);
        // Nearly always: no lease is read.
        let holders = if wanted.is_empty() { Vec::new() } else { self.0.pending.with_host_ports() };
        for holder in holders {
            let id = holder.clone();
            let held = self.blocking(move |leases| Ok(leases.capabilities_of_this_boot(&id))).await?;
            let held = host_ports(&held);
            let Some(port) = wanted.iter().find(|port| held.iter().any(|it| it.overlaps(port))) else {
                continue;
            };
            let _step = progress::enter(
                format!("release the host port {} of pod {holder}, which has ended", port.host_port),
                "verbose Status (crictl info) shows in networkReleases why it fails",
            );
            tracing::info!(%pod, port = port.host_port, %holder, "a pod needs a host port of one whose CNI DEL is due: that is run first");
            self.retry_now(&holder, WAIT).await;
            if let Some(problem) = self.0.pending.host_ports_problem(&holder) {
                let (pod, port, protocol) = (pod.clone(), port.host_port, port.protocol.clone());
                let lease = self.0.config.cache_dir.join(holder.as_str());
                return Err(Error::HostPort { pod, port, protocol, holder, lease, problem });
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_overlap_if_a_connection_could_be_to_both() {
        let port = |host_port, protocol: &str, host_ip: &str| HostPort {
            host_port,
            protocol: protocol.to_owned(),
            host_ip: host_ip.to_owned(),
        };
        let one = port(80, "tcp", "10.0.0.1");
        for (other, wanted) in [
            (port(80, "tcp", "10.0.0.1"), true),
            (port(80, "tcp", ""), true),
            (port(80, "tcp", "0.0.0.0"), true),
            (port(80, "tcp", "::"), true),
            (port(80, "tcp", "10.0.0.2"), false),
            (port(80, "udp", "10.0.0.1"), false),
            (port(81, "tcp", ""), false),
        ] {
            assert_eq!((one.overlaps(&other), other.overlaps(&one)), (wanted, wanted), "{other:?}");
        }
    }

    #[test]
    fn what_is_no_list_of_ports_is_none() {
        let ports = serde_json::json!({"portMappings": [{"hostPort": 80, "containerPort": 1, "protocol": "tcp", "hostIP": ""}]});
        assert_eq!(host_ports(ports.as_object().unwrap())[0].host_port, 80);
        let none = serde_json::json!({"portMappings": "80"});
        assert!(host_ports(none.as_object().unwrap()).is_empty());
        assert!(host_ports(&Map::new()).is_empty());
    }
}
