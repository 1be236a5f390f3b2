//! Debian's plugins (`containernetworking-plugins`) in real network namespaces. Needs root; the test
//! re-executes itself in private mount and network namespaces, so that the host's network is not touched.

mod common;

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use common::isolation::{is_inside, isolated, run};
use common::{Bench, pod};
use model::{PortMapping, Protocol};
use network::{Cni, CniConfig, Error, Released};

struct Net {
    bench: Bench,
    cni: Cni,
}

/// A network of bridge, host-local and portmap, with a private /run (netns, xtables.lock).
async fn net() -> Net {
    run("ip link set lo up; mount -t tmpfs none /run; mkdir /run/netns");
    let bench = Bench::new();
    let data = bench.path("ipam").display().to_string();
    bench.conf(
        "10-net.conflist",
        &serde_json::json!({
            "cniVersion": "1.0.0", "name": "testnet",
            "plugins": [
                {"type": "bridge", "bridge": "cnitest0", "isGateway": true, "ipMasq": true, "hairpinMode": true,
                 "ipam": {"type": "host-local", "dataDir": data, "routes": [{"dst": "0.0.0.0/0"}],
                          "ranges": [[{"subnet": "10.213.0.0/24"}], [{"subnet": "fd00:213::/64"}]]}},
                {"type": "portmap", "capabilities": {"portMappings": true}, "snat": true}
            ]
        })
        .to_string(),
    );
    let bin_dirs = vec!["/opt/cni/bin".into(), "/usr/lib/cni".into()];
    let cni = Cni::new(CniConfig { bin_dirs, timeout: Duration::from_secs(60), ..bench.config() });
    let readiness = cni.reload().await;
    assert!(readiness.is_ready(), "{readiness:?}");
    Net { bench, cni }
}

impl Net {
    /// Addresses that host-local has allocated.
    fn allocated(&self) -> Vec<String> {
        let dir = self.bench.path("ipam/testnet");
        let names = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.filter(|name| name.parse::<IpAddr>().is_ok()).collect()
    }
}

fn netns(name: &str) -> PathBuf {
    run(&format!("ip netns add {name}"));
    Path::new("/run/netns").join(name)
}

#[tokio::test]
async fn addresses_and_host_ports_are_allocated_and_released() {
    if !is_inside() {
        return isolated("addresses_and_host_ports_are_allocated_and_released");
    }
    let net = net().await;
    let mut attachment = net.bench.attachment(pod(1));
    attachment.netns = netns("cni-one");
    attachment.ports = vec![PortMapping {
        protocol: Protocol::Tcp,
        container_port: 80,
        host_port: 8080,
        host_ip: String::new(),
    }];
    let file = File::open(&attachment.netns).unwrap();
    sys::netns::inside(file.as_fd(), sys::netns::loopback_up).unwrap();
    let ips = net.cni.add(&attachment).await.unwrap();
    assert_eq!(ips.len(), 2, "{ips:?}");
    assert!(ips[0].is_ipv4() && ips[1].is_ipv6());
    assert_eq!(net.allocated().len(), 2);

    // In the pod: lo is up, and eth0 has the addresses.
    let inside = run("ip -n cni-one -o addr");
    assert!(
        inside.contains("127.0.0.1/8") && inside.contains(&format!("eth0    inet {}/24", ips[0])),
        "{inside}"
    );
    let (server, local) = sys::netns::inside(file.as_fd(), || {
        let local = TcpListener::bind("127.0.0.1:0")?;
        TcpStream::connect(local.local_addr()?)?;
        Ok((TcpListener::bind("0.0.0.0:80")?, local))
    })
    .unwrap();
    drop(local);
    // On the host: the pod's port is reachable, and the host port through portmap.
    let serve = std::thread::spawn(move || {
        for _ in 0..2 {
            server.accept().unwrap().0.write_all(b"pod").unwrap();
        }
    });
    for address in [SocketAddr::new(ips[0], 80), "10.213.0.1:8080".parse().unwrap()] {
        let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(10)).unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        assert_eq!(text, "pod", "{address}");
    }
    serve.join().unwrap();

    net.cni.del(&pod(1), Some(&attachment.netns)).await.unwrap();
    net.cni.del(&pod(1), Some(&attachment.netns)).await.unwrap();
    assert!(net.allocated().is_empty() && net.cni.leases().await.unwrap().is_empty());
    assert!(!run("ip -n cni-one -o link").contains("eth0"));
    assert!(!run("iptables-save").contains("8080"), "the host port is still mapped");
    run("ip netns del cni-one");
}

#[tokio::test]
async fn addresses_are_released_without_netns_conflist_and_daemon() {
    if !is_inside() {
        return isolated("addresses_are_released_without_netns_conflist_and_daemon");
    }
    let net = net().await;
    let mut attachment = net.bench.attachment(pod(2));
    attachment.netns = netns("cni-two");
    net.cni.add(&attachment).await.unwrap();
    // As after a reboot: no namespace but an empty file in its place, another configuration, a new process.
    run("ip netns del cni-two; touch /run/netns/cni-two");
    net.bench.conf("10-net.conflist", "{}");
    let cni = Cni::new(CniConfig { bin_dirs: vec!["/usr/lib/cni".into()], ..net.bench.config() });
    assert!(!cni.reload().await.is_ready());
    assert_eq!(cni.leases().await.unwrap(), [pod(2)]);
    cni.del(&pod(2), Some(&attachment.netns)).await.unwrap();
    assert!(net.allocated().is_empty() && cni.leases().await.unwrap().is_empty());
}

#[tokio::test]
async fn an_add_that_fails_half_way_is_undone_by_del() {
    if !is_inside() {
        return isolated("an_add_that_fails_half_way_is_undone_by_del");
    }
    let net = net().await;
    let mut attachment = net.bench.attachment(pod(3));
    attachment.netns = netns("cni-three");
    let text = fs::read_to_string(net.bench.path("conf/10-net.conflist")).unwrap();
    net.bench.conf("10-net.conflist", &text.replace(r#""portmap""#, r#""refuses""#));
    net.bench.plugin("refuses", r#"[ $CNI_COMMAND = DEL ] || { echo '{"code":100,"msg":"no"}'; exit 1; }"#);
    let bin_dirs = vec!["/usr/lib/cni".into(), net.bench.path("bin")];
    let cni = Cni::new(CniConfig { bin_dirs, ..net.bench.config() });
    cni.reload().await;
    let error = cni.add(&attachment).await.unwrap_err();
    assert!(error.to_string().contains("refuses"), "{error}");
    assert_eq!(net.allocated().len(), 2, "bridge has allocated addresses");
    cni.del(&pod(3), Some(&attachment.netns)).await.unwrap();
    assert!(net.allocated().is_empty() && cni.leases().await.unwrap().is_empty());
    assert!(!run("ip -n cni-three -o link").contains("eth0"));
    run("ip netns del cni-three");
}

/// portmap appends its rules: those that a DEL has left would get the connections of the next pod with the host port.
#[tokio::test]
#[expect(clippy::too_many_lines, reason = "one scenario in its order")]
async fn a_host_port_does_not_lead_to_a_pod_that_has_ended() {
    if !is_inside() {
        return isolated("a_host_port_does_not_lead_to_a_pod_that_has_ended");
    }
    let net = net().await;
    let broken = net.bench.path("broken");
    let script =
        format!("[ $CNI_COMMAND = DEL ] && [ -e {} ] && exit 1; exec /usr/lib/cni/portmap", broken.display());
    net.bench.plugin("portmap", &script);
    let bin_dirs = vec![net.bench.path("bin"), "/usr/lib/cni".into()];
    let config = CniConfig { bin_dirs, timeout: Duration::from_secs(60), ..net.bench.config() };
    let cni = Cni::new(config.clone());
    assert!(cni.reload().await.is_ready());
    let attachment = |number, name: &str| {
        let mut attachment = net.bench.attachment(pod(number));
        attachment.netns = netns(name);
        attachment.ports = vec![PortMapping {
            protocol: Protocol::Tcp,
            container_port: 80,
            host_port: 8080,
            host_ip: String::new(),
        }];
        attachment
    };
    let (old, new) = (attachment(1, "cni-old"), attachment(2, "cni-new"));
    let first = cni.add(&old).await.unwrap();
    fs::write(&broken, "").unwrap();
    let within = Duration::from_secs(60);
    assert_eq!(cni.release(&old.pod, &old.netns, within).await, Released::Later);
    assert_eq!(net.allocated().len(), 2, "its addresses are given to nobody else");
    let error = cni.add(&new).await.unwrap_err();
    assert!(matches!(error, Error::HostPort { port: 8080, .. }), "{error:?}");
    // Without the refusal: a client that knows of no pending DEL.
    let ignorant = Cni::new(config);
    assert!(ignorant.reload().await.is_ready());
    let second = ignorant.add(&new).await.unwrap();
    let rules = run("iptables-save -t nat");
    let at = |chain_of: &std::net::IpAddr| {
        let to = format!("--to-destination {chain_of}:80");
        let chain = rules.lines().find(|line| line.contains(&to)).unwrap().split(' ').nth(1).unwrap();
        rules.lines().position(|line| line.contains("--dports 8080") && line.ends_with(chain)).unwrap()
    };
    assert!(at(&first[0]) < at(&second[0]), "the old rule does not precede the new one:\n{rules}");
    fs::remove_file(&broken).unwrap();
    ignorant.del(&new.pod, Some(&new.netns)).await.unwrap();

    cni.add(&new).await.unwrap();
    let file = File::open(&new.netns).unwrap();
    let server = sys::netns::inside(file.as_fd(), || TcpListener::bind("0.0.0.0:80")).unwrap();
    let serve = std::thread::spawn(move || server.accept().unwrap().0.write_all(b"new").unwrap());
    let address: SocketAddr = "10.213.0.1:8080".parse().unwrap();
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(10)).unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    assert_eq!(text, "new");
    serve.join().unwrap();
    cni.del(&new.pod, Some(&new.netns)).await.unwrap();
    assert!(net.allocated().is_empty());
    run("ip netns del cni-old; ip netns del cni-new");
}

#[test]
fn loopback_of_a_path_that_is_not_a_namespace() {
    let file = File::open("/dev/null").unwrap();
    let error = sys::netns::inside(file.as_fd(), sys::netns::loopback_up).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(22), "{error}");
}
