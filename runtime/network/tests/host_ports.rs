//! Host ports of pods whose DEL is due, and new pods with the same ports. No root.

mod common;

use std::fs;
use std::time::Duration;

use common::{Bench, pod};
use model::{PortMapping, Protocol};
use network::{Attachment, Cni, CniConfig, Error, Released};

/// Prints a result with one address.
const GOOD: &str = r#"[ $CNI_COMMAND != ADD ] ||
    echo '{"cniVersion":"1.0.0","interfaces":[{"name":"eth0","sandbox":"x"}],"ips":[{"address":"10.9.0.2/24","interface":0}]}'"#;

/// A network of two plugins, `bridge` and `map`, which has the host ports. Each writes its calls, and its DEL fails while the
/// file `broken-<name>` exists.
async fn net() -> (Bench, Cni) {
    let bench = Bench::new();
    let dir = bench.path("").display().to_string();
    for name in ["bridge", "map"] {
        bench.plugin(
            name,
            &format!(
                r#"cat > /dev/null; echo $CNI_COMMAND-{name} $CNI_CONTAINERID >> {dir}/calls
                if [ $CNI_COMMAND = DEL ] && [ -e {dir}/broken-{name} ]; then
                    echo '{{"code":7,"msg":"{name} says not now"}}'; exit 1
                fi
                {GOOD}"#
            ),
        );
    }
    bench.conf(
        "n.conflist",
        r#"{"cniVersion":"1.0.0","name":"n","plugins":[{"type":"bridge"},{"type":"map","capabilities":{"portMappings":true}}]}"#,
    );
    let cni = bench.cni();
    assert!(cni.reload().await.is_ready());
    (bench, cni)
}

fn with_port(bench: &Bench, number: u8, protocol: Protocol, host_port: u16) -> Attachment {
    let mut attachment = bench.attachment(pod(number));
    attachment.ports = vec![PortMapping { protocol, container_port: 80, host_port, host_ip: String::new() }];
    attachment
}

const WITHIN: Duration = Duration::from_secs(60);

#[tokio::test]
async fn a_pod_is_refused_a_host_port_that_leads_to_one_that_has_ended() {
    let (bench, cni) = net().await;
    let old = with_port(&bench, 1, Protocol::Tcp, 8080);
    cni.add(&old).await.unwrap();
    fs::write(bench.path("broken-map"), "").unwrap();
    assert_eq!(cni.release(&old.pod, &old.netns, WITHIN).await, Released::Later);
    let new = with_port(&bench, 2, Protocol::Tcp, 8080);
    let error = cni.add(&new).await.unwrap_err();
    assert!(matches!(&error, Error::HostPort { port: 8080, holder, .. } if *holder == old.pod), "{error:?}");
    assert!(error.is_temporary());
    let lease = bench.path("cache").join(old.pod.as_str());
    for part in ["8080/tcp", "map says not now", old.pod.as_str(), &lease.display().to_string()] {
        assert!(error.to_string().contains(part), "{error}");
    }
    assert_eq!(cni.leases().await.unwrap(), std::slice::from_ref(&old.pod), "no plugin ran for the new pod");
    // Others are not kept from it.
    for other in [with_port(&bench, 3, Protocol::Tcp, 8081), with_port(&bench, 4, Protocol::Udp, 8080)] {
        cni.add(&other).await.unwrap();
    }
    // Rules do not outlive a boot.
    let rebooted = Cni::new(CniConfig { boot_id: "another".to_owned(), ..bench.config() });
    assert!(rebooted.reload().await.is_ready());
    rebooted.add_pending_del(&old.pod, &old.netns);
    rebooted.add(&with_port(&bench, 5, Protocol::Tcp, 8080)).await.unwrap();

    // The DEL that is due is run first.
    fs::remove_file(bench.path("broken-map")).unwrap();
    fs::remove_file(bench.path("calls")).unwrap();
    cni.add(&new).await.unwrap();
    let calls = fs::read_to_string(bench.path("calls")).unwrap();
    let wanted = [("DEL-map", &old), ("DEL-bridge", &old), ("ADD-bridge", &new), ("ADD-map", &new)];
    let wanted: String = wanted.iter().map(|(call, of)| format!("{call} {}\n", of.pod)).collect();
    assert_eq!(calls, wanted);
}

#[tokio::test]
async fn a_plugin_without_host_ports_keeps_none() {
    let (bench, cni) = net().await;
    let old = with_port(&bench, 1, Protocol::Tcp, 8080);
    cni.add(&old).await.unwrap();
    fs::write(bench.path("broken-bridge"), "").unwrap();
    assert_eq!(cni.release(&old.pod, &old.netns, WITHIN).await, Released::Later);
    cni.add(&with_port(&bench, 2, Protocol::Tcp, 8080)).await.unwrap();
    assert!(cni.leases().await.unwrap().contains(&old.pod), "its DEL is still due");
}

/// The stop of a pod in one call, and the start of the next in another.
#[tokio::test]
async fn a_del_that_runs_is_waited_for() {
    let (bench, cni) = net().await;
    let dir = bench.path("").display().to_string();
    bench.plugin(
        "map",
        &format!(
            r#"cat > /dev/null; echo $CNI_COMMAND $CNI_CONTAINERID >> {dir}/map
            while [ $CNI_COMMAND = DEL ] && [ ! -e {dir}/gate ]; do sleep 0.02; done; {GOOD}"#
        ),
    );
    let (old, new) = (with_port(&bench, 1, Protocol::Tcp, 8080), with_port(&bench, 2, Protocol::Tcp, 8080));
    cni.add(&old).await.unwrap();
    let (released, added, ()) =
        tokio::join!(cni.release(&old.pod, &old.netns, WITHIN), cni.add(&new), async {
            while !fs::read_to_string(bench.path("map")).unwrap().contains("DEL") {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
            fs::write(bench.path("gate"), "").unwrap();
        });
    assert_eq!(released, Released::Now);
    added.unwrap();
    let order = format!("ADD {0}\nDEL {0}\nADD {1}\n", old.pod, new.pod);
    assert_eq!(fs::read_to_string(bench.path("map")).unwrap(), order);
}
