//! Chains of many plugins: Debian's (CNI 1.0.0), and today's, built from their Go modules (CNI 1.1.0, `make cni-plugins`).
//! Needs root; each test re-executes itself in private mount and network namespaces.

mod common;

use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use common::isolation::{is_inside, isolated, run};
use common::{Bench, pod};
use model::{PortMapping, Protocol};
use network::{Attachment, Cni, CniConfig};

/// Set by `make unit`: the folder of the plugins that were built.
const BUILT: &str = "COPEPOD_CNI_PLUGINS";
const DEBIAN: &str = "/usr/lib/cni";

/// The folder of today's plugins, or `None`, and the reason is printed.
fn built() -> Option<PathBuf> {
    let found = std::env::var_os(BUILT).map(PathBuf::from);
    if found.is_none() {
        eprintln!("not run: {BUILT} is not set; `make unit` builds the plugins and sets it");
    }
    found
}

struct Net {
    bench: Bench,
    cni: Cni,
}

impl Net {
    async fn new(bin_dirs: Vec<PathBuf>, file: &str, list: &serde_json::Value) -> Self {
        let bench = Bench::new();
        let text = list.to_string().replace("DATA", &bench.path("ipam").display().to_string());
        bench.conf(file, &text);
        let cni = Cni::new(CniConfig { bin_dirs, timeout: Duration::from_secs(60), ..bench.config() });
        let readiness = cni.reload().await;
        assert!(readiness.is_ready(), "{readiness:?}");
        Self { bench, cni }
    }

    /// Addresses that host-local has allocated in network `name`.
    fn allocated(&self, name: &str) -> usize {
        let entries = fs::read_dir(self.bench.path("ipam").join(name)).unwrap();
        entries
            .filter(|it| it.as_ref().unwrap().file_name().to_str().unwrap().parse::<IpAddr>().is_ok())
            .count()
    }

    fn attachment(&self, number: u8) -> Attachment {
        let mut attachment = self.bench.attachment(pod(number));
        attachment.netns = Path::new("/run/netns").join(format!("p{number}"));
        run(&format!("ip netns add p{number}"));
        attachment
    }
}

fn private_run() {
    run("ip link set lo up; mount -t tmpfs none /run; mkdir /run/netns");
}

fn chain(version: &str) -> serde_json::Value {
    serde_json::json!({
        "cniVersion": version, "name": "chain",
        "plugins": [
            {"type": "bridge", "bridge": "cnichain0", "isGateway": true, "ipMasq": true,
             "ipam": {"type": "host-local", "dataDir": "DATA", "routes": [{"dst": "0.0.0.0/0"}],
                      "ranges": [[{"subnet": "10.214.0.0/24"}], [{"subnet": "fd00:214::/64"}]]}},
            {"type": "tuning", "sysctl": {"net.core.somaxconn": "321"}},
            {"type": "portmap", "capabilities": {"portMappings": true}, "snat": true},
            {"type": "firewall", "backend": "iptables"},
            {"type": "bandwidth", "capabilities": {"bandwidth": true}},
        ],
    })
}

/// A pod's life in a chain of six plugins. Returns the network, with one pod attached.
async fn life(bin_dirs: Vec<PathBuf>, version: &str, host_ip: &str) -> (Net, Attachment) {
    private_run();
    let net = Net::new(bin_dirs, "10-chain.conflist", &chain(version)).await;
    let mut attachment = net.attachment(1);
    let port = |protocol, container_port, host_port, host_ip: &str| PortMapping {
        protocol,
        container_port,
        host_port,
        host_ip: host_ip.to_owned(),
    };
    attachment.ports = vec![port(Protocol::Tcp, 80, 8080, host_ip), port(Protocol::Sctp, 81, 8181, "")];
    for (annotation, limit) in [("ingress", "10M"), ("egress", "20M")] {
        attachment.annotations.insert(format!("kubernetes.io/{annotation}-bandwidth"), limit.to_owned());
    }
    let ips = net.cni.add(&attachment).await.unwrap();
    assert!(ips.len() == 2 && ips[0].is_ipv4() && ips[1].is_ipv6(), "{ips:?}");
    assert_eq!(run("ip netns exec p1 cat /proc/sys/net/core/somaxconn").trim(), "321");
    let rules = run("iptables-save");
    for part in [host_ip, "8080", "sctp", "8181", &ips[0].to_string()] {
        assert!(rules.contains(part), "{part} in\n{rules}");
    }
    let limits = run("tc qdisc");
    assert!(limits.contains("rate 10Mbit") && limits.contains("rate 20Mbit"), "{limits}");
    // Debian 12's portmap finds a fault in the host ports of every dual-stack pod.
    if version == "1.1.0" {
        assert!(net.cni.check(&attachment.pod).await.unwrap(), "CHECK was not asked");
        // A fault that CHECK finds. (Without the addresses, DEL of the bridge plugin leaves its masquerading.)
        run("ip -n p1 route del default");
        let error = net.cni.check(&attachment.pod).await.unwrap_err();
        assert!(error.to_string().contains("CNI CHECK of plugin \"bridge\""), "{error}");
    }
    net.cni.del(&attachment.pod, Some(&attachment.netns)).await.unwrap();
    assert_eq!(net.allocated("chain"), 0);
    let left = run("iptables-save; tc qdisc; ip -o link");
    for part in ["8080", "8181", "10Mbit", &ips[0].to_string()] {
        assert!(!left.contains(part), "{part} in\n{left}");
    }
    let again = net.attachment(2);
    net.cni.add(&again).await.unwrap();
    (net, again)
}

#[tokio::test]
async fn a_chain_of_debians_plugins() {
    if !is_inside() {
        return isolated("a_chain_of_debians_plugins");
    }
    let (net, pod) = life(vec![DEBIAN.into()], "1.0.0", "").await;
    assert!(net.cni.gc().await.unwrap());
    assert_eq!(net.allocated("chain"), 2, "GC does not exist in this version");
    net.cni.del(&pod.pod, None).await.unwrap();
}

#[tokio::test]
async fn a_chain_of_todays_plugins_with_gc() {
    let Some(built) = built() else { return };
    if !is_inside() {
        return isolated("a_chain_of_todays_plugins_with_gc");
    }
    let (net, first) = life(vec![built.clone()], "1.1.0", "127.0.0.1").await;
    assert_eq!(net.cni.status().await.problem, None);
    assert!(net.cni.gc().await.unwrap(), "every plugin knows GC");
    assert_eq!(net.allocated("chain"), 2);
    assert!(net.cni.check(&first.pod).await.unwrap());
    net.cni.del(&first.pod, Some(&first.netns)).await.unwrap();
    assert_eq!(net.allocated("chain"), 0);

    // The only one that does something in GC is host-local, and bridge does not forward it.
    let alone = serde_json::json!({
        "cniVersion": "1.1.0", "name": "alone", "type": "host-local",
        "ipam": {"type": "host-local", "dataDir": "DATA", "ranges": [[{"subnet": "10.217.0.0/24"}]]},
    });
    let net = Net::new(vec![built], "10-alone.conf", &alone).await;
    // A pod of which only the plugin knows: its lease was lost.
    let (kept, lost) = (net.attachment(3), net.attachment(4));
    net.cni.add(&kept).await.unwrap();
    net.cni.add(&lost).await.unwrap();
    for end in ["", ".result"] {
        fs::remove_file(net.bench.path("cache").join(format!("{}{end}", lost.pod))).unwrap();
    }
    assert_eq!(net.allocated("alone"), 2);
    assert!(net.cni.gc().await.unwrap());
    assert_eq!(net.allocated("alone"), 1, "GC releases what belongs to no pod, and nothing else");
    net.cni.del(&kept.pod, None).await.unwrap();
    assert_eq!(net.allocated("alone"), 0);
}

/// Networks of every version, with and without `cniVersion`.
#[tokio::test]
async fn every_version_of_a_network() {
    if !is_inside() {
        return isolated("every_version_of_a_network");
    }
    private_run();
    let mut number = 10;
    for (dir, versions) in [
        (Some(DEBIAN.into()), &["", "0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0"][..]),
        (built(), &["", "0.2.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"]),
    ] {
        let Some(dir) = dir else { continue };
        for version in versions {
            number += 1;
            let mut list = serde_json::json!({
                "name": "old",
                "plugins": [
                    {"type": "bridge", "bridge": "cniold0",
                     "ipam": {"type": "host-local", "dataDir": "DATA", "subnet": "10.215.0.0/24"}},
                    {"type": "tuning"},
                ],
            });
            if !version.is_empty() {
                list["cniVersion"] = (*version).into();
            }
            // A chain needs `prevResult`, which exists since 0.3.0.
            if *version < "0.3.0" {
                list["plugins"].as_array_mut().unwrap().pop();
            }
            let net = Net::new(vec![dir.clone()], "10-old.conflist", &list).await;
            let attachment = net.attachment(number);
            let ips = net.cni.add(&attachment).await.unwrap_or_else(|error| panic!("{version:?}: {error}"));
            assert!(ips[0].to_string().starts_with("10.215.0."), "{version:?}: {ips:?}");
            net.cni.del(&attachment.pod, Some(&attachment.netns)).await.unwrap();
            assert_eq!(net.allocated("old"), 0, "{version:?}");
        }
    }
}

/// The Flannel plugin, which delegates to bridge by the file that Flannel's daemon writes.
#[tokio::test]
async fn flannel() {
    let Some(built) = built() else { return };
    if !is_inside() {
        return isolated("flannel");
    }
    private_run();
    run(
        "mkdir /run/flannel; printf 'FLANNEL_NETWORK=10.216.0.0/16\nFLANNEL_SUBNET=10.216.3.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=false\n' > /run/flannel/subnet.env",
    );
    let list = serde_json::json!({
        "name": "cbr0", "cniVersion": "0.3.1",
        "plugins": [
            {"type": "flannel", "dataDir": "DATA/flannel",
             "ipam": {"dataDir": "DATA"},
             "delegate": {"bridge": "cniflan0", "hairpinMode": true, "isDefaultGateway": true}},
            {"type": "portmap", "capabilities": {"portMappings": true}},
        ],
    });
    let net = Net::new(vec![built], "10-flannel.conflist", &list).await;
    let attachment = net.attachment(1);
    let ips = net.cni.add(&attachment).await.unwrap();
    assert!(ips[0].to_string().starts_with("10.216.3."), "{ips:?}");
    assert_eq!(net.allocated("cbr0"), 1);
    net.cni.del(&attachment.pod, Some(&attachment.netns)).await.unwrap();
    assert_eq!(net.allocated("cbr0"), 0);
}

/// Multus, which reads the pod's name in CNI_ARGS, and calls the plugins of its delegates.
#[tokio::test]
async fn multus() {
    let Some(built) = built() else { return };
    if !built.join("multus").exists() {
        eprintln!("not run: `make -C integration/cni bin/multus` builds it in two minutes");
        return;
    }
    if !is_inside() {
        return isolated("multus");
    }
    private_run();
    let mut delegate = chain("0.4.0");
    delegate["plugins"].as_array_mut().unwrap().truncate(3);
    let multus = serde_json::json!({
        "cniVersion": "0.3.1", "name": "multus-cni-network", "type": "multus", "binDir": built, "cniDir": "DATA/multus",
        "capabilities": {"portMappings": true}, "delegates": [delegate],
    });
    let net = Net::new(vec![built], "00-multus.conf", &multus).await;
    let mut attachment = net.attachment(1);
    attachment.ports = vec![PortMapping {
        protocol: Protocol::Tcp,
        container_port: 80,
        host_port: 8080,
        host_ip: String::new(),
    }];
    let ips = net.cni.add(&attachment).await.unwrap();
    assert_eq!(ips.len(), 2, "{ips:?}");
    assert!(run("iptables-save").contains("8080"), "the delegate did not get its capability argument");
    net.cni.del(&attachment.pod, Some(&attachment.netns)).await.unwrap();
    assert_eq!(net.allocated("chain"), 0);
    assert!(!run("iptables-save").contains("8080"));
}

/// Plugins do not inherit what protects the daemon when memory runs out, nor its limit of open files.
#[tokio::test]
async fn plugins_have_the_usual_oom_score() {
    if !is_inside() {
        return isolated("plugins_have_the_usual_oom_score");
    }
    if let Err(error) = fs::write("/proc/self/oom_score_adj", "-500") {
        assert_eq!(error.kind(), std::io::ErrorKind::PermissionDenied);
        eprintln!("not run: oom_score_adj cannot be lowered without CAP_SYS_RESOURCE");
        return;
    }
    let bench = Bench::new();
    let seen = bench.path("seen").display().to_string();
    // It is set when the program has been started already.
    bench.plugin("p", &format!(
        r#"cat > /dev/null; while [ "$(cat /proc/self/oom_score_adj)" != 0 ]; do sleep 0.01; done; echo done > {seen}
        [ $CNI_COMMAND != ADD ] || echo '{{"ips":[{{"address":"10.9.0.2/24"}}]}}'"#
    ));
    bench.conf("n.conf", r#"{"cniVersion":"1.0.0","name":"n","type":"p"}"#);
    let cni = bench.cni();
    cni.reload().await;
    cni.add(&bench.attachment(pod(1))).await.unwrap();
    assert_eq!(fs::read_to_string(&seen).unwrap(), "done\n");
    assert_eq!(fs::read_to_string("/proc/self/oom_score_adj").unwrap().trim(), "-500");
}
