//! Pod networks with real plugins, host ports, the host network, and faulty plugins.

use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

use anyhow::{Context as _, Result};
use cri_api::v1::{NamespaceMode, Protocol};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::context::{Context, Pod};
use crate::expect::ensure;
use crate::fixture::Fixture;
use crate::isolation::command;
use crate::node::Options;
use crate::registry::free_port;
use crate::runner::{Test, test};
use crate::shapes::{self, PodExt as _};
use crate::wait::{self, secs};

pub(super) fn tests() -> Vec<Test> {
    let none = Options { without_cni: true, ..Options::default() };
    vec![
        test!(address_and_interface),
        test!(loopback_is_up),
        test!(pods_talk_to_each_other),
        test!(host_port_tcp),
        test!(host_port_udp),
        test!(host_port_of_one_address),
        test!(container_port_alone),
        test!(host_port_is_free_again).own(),
        test!(host_network),
        test!(sysctls_in_the_pod),
        test!(unsafe_sysctls_are_refused).ours(),
        test!(address_is_given_back).own(),
        test!(without_configuration).own_with(none.clone()),
        test!(ready_follows_the_directory).own_with(none),
    ]
}

pub(super) async fn ip(cx: &Context, pod: &Pod) -> Result<String> {
    Ok(cx.cri.pod_status(&pod.id).await?.status.and_then(|s| s.network).map(|n| n.ip).unwrap_or_default())
}

async fn address_and_interface(cx: Context) -> Result<()> {
    let pod = cx.pod_of(cx.pod_config().own_network()).await?;
    let id = cx.start(&pod, &cx.sleeper("one")).await?;
    let address = ip(&cx, &pod).await?;
    let shown = cx.cri.sh(&id, "ip -4 addr show eth0").await?;
    ensure!(shown.contains(&format!("inet {address}/24")), "status says {address}, the pod {shown}");
    ensure!(cx.cri.sh(&id, "ip route").await?.contains("default via"), "no default route");
    cx.prints(&id, "grep -c eth0 /proc/net/dev", "1").await?;
    Ok(())
}

async fn loopback_is_up(cx: Context) -> Result<()> {
    let pod = cx.pod_of(cx.pod_config().own_network()).await?;
    let id = cx.start(&pod, &cx.sleeper("one")).await?;
    let shown = cx.cri.sh(&id, "ip addr show lo").await?;
    ensure!(shown.contains("UP") && shown.contains("127.0.0.1/8"), "lo is shown as {shown}");
    Ok(())
}

async fn web(cx: &Context, pod: &Pod) -> Result<String> {
    cx.start(pod, &shapes::container("web", &Fixture::image("nginx"), &[])).await
}

/// One HTTP/1.0 exchange.
async fn fetch(address: &str) -> Result<String> {
    let work = async {
        let mut stream = tokio::net::TcpStream::connect(address).await?;
        stream.write_all(b"GET / HTTP/1.0\r\n\r\n").await?;
        let mut text = String::new();
        stream.read_to_string(&mut text).await?;
        Ok(text)
    };
    wait::timeout(secs(3), work).await.with_context(|| format!("no answer from {address}"))?
}

async fn served(address: &str) -> Result<()> {
    wait::until(&format!("nginx on {address}"), secs(10), || async {
        Ok(fetch(address).await?.contains("hello from nginx").then_some(()))
    })
    .await
}

async fn pods_talk_to_each_other(cx: Context) -> Result<()> {
    let server = cx.pod_of(cx.pod_config().own_network()).await?;
    web(&cx, &server).await?;
    let address = ip(&cx, &server).await?;
    served(&format!("{address}:80")).await.context("from the host")?;
    let client = cx.pod_of(cx.pod_config().own_network()).await?;
    let id = cx.start(&client, &cx.sleeper("client")).await?;
    cx.prints(&id, &format!("wget -q -O - http://{address}/"), "hello from nginx").await?;
    // Two containers of one pod share localhost.
    let neighbour = cx.start(&server, &cx.sleeper("neighbour")).await?;
    cx.prints(&neighbour, "wget -q -O - http://127.0.0.1/", "hello from nginx").await?;
    Ok(())
}

async fn host_port_tcp(cx: Context) -> Result<()> {
    let port = free_port()?;
    let pod = cx.pod_of(cx.pod_config().own_network().port(Protocol::Tcp, 80, port.into())).await?;
    web(&cx, &pod).await?;
    served(&format!("127.0.0.1:{port}")).await.context("by loopback")?;
    served(&format!("{}:{port}", crate::isolation::NODE_IP)).await.context("by the node's address")?;
    Ok(())
}

async fn host_port_of_one_address(cx: Context) -> Result<()> {
    let port = free_port()?;
    let mut config = cx.pod_config().own_network().port(Protocol::Tcp, 80, port.into());
    config.port_mappings.first_mut().context("no port")?.host_ip = String::from(crate::isolation::NODE_IP);
    let pod = cx.pod_of(config).await?;
    web(&cx, &pod).await?;
    served(&format!("{}:{port}", crate::isolation::NODE_IP)).await?;
    let other = fetch(&format!("127.0.0.1:{port}")).await;
    ensure!(other.is_err(), "the port of one address is served on another: {other:?}");
    Ok(())
}

async fn host_port_udp(cx: Context) -> Result<()> {
    let port = free_port()?;
    let pod = cx.pod_of(cx.pod_config().own_network().port(Protocol::Udp, 7, port.into())).await?;
    let id = cx.start(&pod, &cx.sleeper("one")).await?;
    let pid = cx.pid(&id).await?;
    let _server = crate::echo::start(pid, &["udp-echo", "7"])?;
    wait::until("an echo over UDP", secs(10), || async {
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        socket.set_read_timeout(Some(Duration::from_millis(500)))?;
        socket.send_to(b"ping", SocketAddr::new(crate::isolation::NODE_IP.parse()?, port))?;
        let mut buffer = [0_u8; 16];
        let n = socket.recv(&mut buffer)?;
        Ok((buffer.get(..n) == Some(b"ping".as_slice())).then_some(()))
    })
    .await
}

async fn container_port_alone(cx: Context) -> Result<()> {
    let before = command("iptables-save", &["-t", "nat"])?.matches("CNI-DN-").count();
    let pod = cx.pod_of(cx.pod_config().own_network().port(Protocol::Tcp, 80, 0)).await?;
    web(&cx, &pod).await?;
    served(&format!("{}:80", ip(&cx, &pod).await?)).await?;
    let after = command("iptables-save", &["-t", "nat"])?.matches("CNI-DN-").count();
    ensure!(after == before, "host_port 0 made iptables rules: {before} before, {after} now");
    Ok(())
}

async fn host_port_is_free_again(cx: Context) -> Result<()> {
    let port = free_port()?;
    for n in 0..3 {
        let pod = cx.pod_of(cx.pod_config().own_network().port(Protocol::Tcp, 80, port.into())).await?;
        web(&cx, &pod).await?;
        served(&format!("127.0.0.1:{port}")).await.with_context(|| format!("round {n}"))?;
        cx.cri.stop_pod(&pod.id).await?;
        ensure!(
            fetch(&format!("127.0.0.1:{port}")).await.is_err(),
            "the port still answers after StopPodSandbox"
        );
        cx.cri.remove_pod(&pod.id).await?;
    }
    Ok(())
}

async fn host_network(cx: Context) -> Result<()> {
    let pod = cx.pod().await?;
    let status = cx.cri.pod_status(&pod.id).await?.status.context("status")?;
    ensure!(
        status.network.as_ref().is_none_or(|n| n.ip.is_empty()),
        "a host-network pod has {:?}",
        status.network
    );
    let options = status.linux.and_then(|l| l.namespaces).and_then(|n| n.options).context("options")?;
    ensure!(options.network() == NamespaceMode::Node, "the status of a host-network pod has {options:?}");
    let id = cx
        .start(
            &pod,
            &shapes::container(
                "web",
                &Fixture::image("nginx"),
                &["/usr/sbin/nginx", "-g", "daemon off;", "-c", "/etc/nginx/12003.conf"],
            ),
        )
        .await?;
    served("127.0.0.1:12003").await?;
    let inside = cx.cri.sh(&id, "readlink /proc/self/ns/net; hostname").await?;
    let host = std::fs::read_link("/proc/self/ns/net")?;
    ensure!(inside.starts_with(&*host.to_string_lossy()), "not the host's namespace: {inside}");
    ensure!(inside.ends_with("copepod-node"), "hostname is {inside}");
    let own = cx.pod_of(cx.pod_config().own_network()).await?;
    let id = cx.start(&own, &cx.sleeper("one")).await?;
    ensure!(
        cx.cri.sh(&id, "readlink /proc/self/ns/net").await? != host.to_string_lossy(),
        "a pod network is the host's"
    );
    Ok(())
}

async fn sysctls_in_the_pod(cx: Context) -> Result<()> {
    let mut config = cx.pod_config().own_network();
    let linux = config.linux.get_or_insert_default();
    linux.sysctls.insert(String::from("net.ipv4.ip_local_port_range"), String::from("10000 10100"));
    linux.sysctls.insert(String::from("kernel.shm_rmid_forced"), String::from("1"));
    linux.sysctls.insert(String::from("fs.mqueue.msg_max"), String::from("77"));
    linux.sysctls.insert(String::from("kernel.domainname"), String::from("pod.test"));
    let host = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range")?;
    let pod = cx.pod_of(config).await?;
    let id = cx.start(&pod, &cx.sleeper("one")).await?;
    let seen = cx.cri.sh(&id, "cat /proc/sys/net/ipv4/ip_local_port_range /proc/sys/kernel/shm_rmid_forced /proc/sys/fs/mqueue/msg_max /proc/sys/kernel/domainname").await?;
    ensure!(
        seen.split_whitespace().collect::<Vec<_>>() == ["10000", "10100", "1", "77", "pod.test"],
        "the sysctls in the pod are {seen:?}"
    );
    let now = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range")?;
    ensure!(now == host, "the host's port range was {host} and is {now}");
    Ok(())
}

async fn unsafe_sysctls_are_refused(cx: Context) -> Result<()> {
    for (key, own) in [
        ("net.ipv4.ip_forward", false),
        ("kernel.domainname", false),
        ("kernel.hostname", true),
        ("vm.swappiness", true),
        ("kernel/../vm.swappiness", true),
    ] {
        let mut config = cx.pod_config();
        if own {
            config = config.own_network();
        }
        config.linux.get_or_insert_default().sysctls.insert(key.to_owned(), String::from("1"));
        let e = cx.cri.run_pod(&config).await.err().with_context(|| format!("{key} was accepted"))?;
        ensure!(e.message().contains(key), "the error does not name {key}: {e}");
    }
    Ok(())
}

async fn address_is_given_back(cx: Context) -> Result<()> {
    let pod = cx.pod_of(cx.pod_config().own_network()).await?;
    let address = ip(&cx, &pod).await?;
    ensure!(
        cx.node.network.leased() == [address.clone()],
        "the pod has {address}, and leased are {:?}",
        cx.node.network.leased()
    );
    cx.cri.stop_pod(&pod.id).await?;
    ensure!(cx.node.network.leased().is_empty(), "StopPodSandbox kept the lease of {address}");
    let shown = ip(&cx, &pod).await?;
    ensure!(
        shown.is_empty() || shown == address,
        "the stopped pod is shown with {shown} instead of {address}"
    );
    Ok(())
}

/// Whether NetworkReady is true; if it is false, it must have a reason and a message.
async fn network_ready(cx: &Context) -> Result<bool> {
    let c = cx.cri.condition("NetworkReady").await?;
    ensure!(
        c.status || (!c.reason.is_empty() && !c.message.is_empty()),
        "false without reason or message: {c:?}"
    );
    Ok(c.status)
}

/// Waits until NetworkReady has this value.
pub(super) async fn network_becomes(cx: &Context, ready: bool) -> Result<()> {
    wait::until(&format!("NetworkReady to be {ready}"), secs(10), || async {
        Ok((network_ready(cx).await? == ready).then_some(()))
    })
    .await
}

async fn without_configuration(cx: Context) -> Result<()> {
    ensure!(!network_ready(&cx).await?, "NetworkReady is true without a CNI configuration");
    let pod = cx.pod().await.context("a host-network pod needs no CNI")?;
    let id = cx.start(&pod, &cx.sleeper("one")).await?;
    cx.cri.stop(&id, 0).await?;
    cx.cri.drop_pod(&pod.id).await?;
    let e = cx
        .cri
        .run_pod(&cx.pod_config().own_network())
        .await
        .err()
        .context("a pod with a network came up without a CNI configuration")?;
    ensure!(e.message().to_lowercase().contains("cni"), "the error does not name CNI: {e}");
    ensure!(cx.cri.pods(None).await?.is_empty(), "the pod that failed is listed");
    Ok(())
}

async fn ready_follows_the_directory(cx: Context) -> Result<()> {
    ensure!(!network_ready(&cx).await?, "NetworkReady is true without a CNI configuration");
    cx.node.network.install()?;
    network_becomes(&cx, true).await?;
    let pod = cx.pod_of(cx.pod_config().own_network()).await?;
    cx.cri.drop_pod(&pod.id).await?;
    cx.node.network.uninstall()?;
    network_becomes(&cx, false).await?;
    std::fs::write(cx.node.network.conf_dir.join("05-broken.conflist"), "{not json")?;
    let condition = wait::until("NetworkReady to name the broken configuration", secs(20), || async {
        let condition = cx.cri.condition("NetworkReady").await?;
        Ok(condition.message.contains("05-broken").then_some(condition))
    })
    .await?;
    ensure!(!condition.status, "NetworkReady is true with a broken configuration");
    cx.cri.version().await?;
    Ok(())
}
