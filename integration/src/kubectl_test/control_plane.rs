//! etcd, kube-apiserver and metrics-server, with kubeconfigs for an administrator and the nodes; and, if wanted, the
//! scheduler and the controller manager. Without these nothing schedules: pods name their node; and nothing makes
//! service accounts: pods have none.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};

use super::kubectl::Kubectl;
use crate::isolation::{NODE_IP, command};
use crate::registry::free_port;
use crate::wait::{self, secs};

/// The users of the API server: the name of the kubeconfig, which is the token too, the user's name, and its group.
/// What a user may do is what Kubernetes' own roles say.
const USERS: [[&str; 3]; 5] = [
    ["admin", "admin", "system:masters"],
    ["node1", "system:node:node1", "system:nodes"],
    ["node2", "system:node:node2", "system:nodes"],
    ["scheduler", "system:kube-scheduler", "system:authenticated"],
    ["manager", "system:kube-controller-manager", "system:authenticated"],
];

/// The programs of a control plane.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Extent {
    /// etcd and the API server, on the loopback address.
    Api,
    /// With the scheduler and the controller manager, and service accounts; other machines reach the API server.
    Whole,
}

/// A control plane. Its processes are killed when it is dropped.
#[derive(Debug)]
pub(crate) struct ControlPlane {
    programs: PathBuf,
    dir: PathBuf,
    /// The API server's port.
    pub(crate) port: u16,
    /// kubectl as administrator.
    pub(crate) kubectl: Kubectl,
    running: Vec<(&'static str, Child)>,
}

impl ControlPlane {
    /// Starts the programs of this folder; returns when the API server is ready.
    #[expect(clippy::too_many_lines, reason = "the arguments of etcd and of the API server")]
    pub(crate) async fn start(programs: &Path, dir: &Path, extent: Extent) -> Result<Self> {
        let programs = fs::canonicalize(programs)
            .with_context(|| format!("{} (build it with `make cluster`)", programs.display()))?;
        let dir = dir.join("control-plane");
        fs::create_dir_all(&dir)?;
        let place = dir.clone();
        let file = |name: &str| place.join(name).display().to_string();
        let tokens: String =
            USERS.iter().map(|[name, user, group]| format!("{name},{user},{name},{group}\n")).collect();
        fs::write(file("tokens"), tokens)?;
        command("openssl", &["genrsa", "-out", &file("key"), "2048"])?;
        let (host, own) = match extent {
            Extent::Api => {
                ("127.0.0.1", "--bind-address 127.0.0.1 --disable-admission-plugins ServiceAccount")
            }
            Extent::Whole => (
                NODE_IP,
                "--bind-address 0.0.0.0 --advertise-address 192.0.2.10 --enable-admission-plugins NodeRestriction",
            ),
        };
        let port = free_port()?;
        for [name, ..] in USERS {
            fs::write(file(&format!("{name}.json")), kubeconfig(&format!("https://{host}:{port}"), name))?;
        }
        let kubectl = Kubectl::new(programs.join("kubectl"), dir.join("admin.json"), dir.clone());
        let mut this = Self { programs, dir, port, kubectl, running: Vec::new() };
        let (etcd, peers) =
            (format!("http://127.0.0.1:{}", free_port()?), format!("http://127.0.0.1:{}", free_port()?));
        let (data, key, tokens) = (file("etcd"), file("key"), file("tokens"));
        this.launch(
            "etcd",
            &format!(
                "--data-dir {data} --unsafe-no-fsync --listen-client-urls {etcd} --advertise-client-urls {etcd} \
                 --listen-peer-urls {peers}"
            ),
        )?;
        let certificates = file("certificates");
        this.launch(
            "kube-apiserver",
            &format!(
                "--etcd-servers {etcd} --token-auth-file {tokens} --service-account-key-file {key} \
                 --service-account-signing-key-file {key} --service-account-issuer https://kubernetes.default.svc \
                 --service-cluster-ip-range 10.96.0.0/24 --authorization-mode Node,RBAC --allow-privileged \
                 {own} --secure-port {port} \
                 --cert-dir {certificates} --kubelet-preferred-address-types InternalIP --enable-aggregator-routing"
            ),
        )?;
        wait::until("the API server", secs(90), || async {
            this.alive()?;
            this.kubectl.quiet(&["get", "--raw", "/readyz"]).await.map(Some)
        })
        .await?;
        if extent == Extent::Whole {
            this.start_controllers()?;
        }
        Ok(this)
    }

    /// The kubeconfig of a node, by its name.
    pub(crate) fn node(&self, name: &str) -> PathBuf {
        self.dir.join(format!("{name}.json"))
    }

    /// Starts the scheduler and the controller manager. Each of its controllers is a service account of its own.
    fn start_controllers(&mut self) -> Result<()> {
        let dir = self.dir.display().to_string();
        let common = |user: &str, port: u16| {
            let file = format!("{dir}/{user}.json");
            format!(
                "--kubeconfig {file} --authentication-kubeconfig {file} --authorization-kubeconfig {file} \
                 --leader-elect=false --bind-address 127.0.0.1 --secure-port {port}"
            )
        };
        self.launch("kube-scheduler", &common("scheduler", free_port()?))?;
        // The API server's certificate is followed by that of the CA that has signed it.
        let arguments = format!(
            "{} --kube-api-qps 200 --kube-api-burst 200 --use-service-account-credentials --service-account-private-key-file {dir}/key \
             --root-ca-file {dir}/certificates/apiserver.crt",
            common("manager", free_port()?)
        );
        self.launch("kube-controller-manager", &arguments)
    }

    /// Starts metrics-server as a process of the node, and registers it.
    pub(crate) async fn start_metrics(&mut self) -> Result<()> {
        let port = free_port()?;
        let admin = self.dir.join("admin.json").display().to_string();
        let certificates = self.dir.join("metrics-certificates").display().to_string();
        // Every client that reaches its port may read: the API server has no client certificate that would tell
        // metrics-server which user a request is for.
        self.launch(
            "metrics-server",
            &format!(
                "--kubeconfig {admin} --authentication-kubeconfig {admin} --authorization-kubeconfig {admin} \
                 --authentication-skip-lookup --authorization-always-allow-paths /* --cert-dir {certificates} --secure-port {port} --kubelet-insecure-tls \
                 --kubelet-use-node-status-port --kubelet-preferred-address-types InternalIP \
                 --kubelet-request-timeout 5s --metric-resolution 10s"
            ),
        )?;
        self.kubectl.apply(&metrics_objects(port)).await
    }

    /// Starts a program with arguments, none of which has a space.
    fn launch(&mut self, name: &'static str, arguments: &str) -> Result<()> {
        let log = fs::File::create(self.log(name))?;
        let child = Command::new(self.programs.join(name))
            .args(arguments.split_whitespace())
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("start {name}"))?;
        self.running.push((name, child));
        Ok(())
    }

    fn log(&self, name: &str) -> PathBuf {
        self.dir.join(format!("{name}.log"))
    }

    /// All processes run.
    pub(crate) fn alive(&self) -> Result<()> {
        for (name, child) in &self.running {
            if !crate::proc::alive(child.id()) {
                bail!("{name} has ended: {}", self.last(name));
            }
        }
        Ok(())
    }

    /// The last lines of a program's log.
    pub(crate) fn last(&self, name: &str) -> String {
        let text = fs::read_to_string(self.log(name)).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines.get(lines.len().saturating_sub(5)..).unwrap_or_default().join("\n")
    }

    /// Kills all processes, the last started first.
    pub(crate) fn stop(&mut self) {
        while let Some((name, mut child)) = self.running.pop() {
            drop(child.kill());
            if let Err(error) = wait::ended(&mut child, secs(10)) {
                println!("      {name}: {error:#}");
            }
        }
    }
}

impl Drop for ControlPlane {
    fn drop(&mut self) {
        self.stop();
    }
}

/// What registers metrics-server, and lets everybody read from it.
fn metrics_objects(port: u16) -> Value {
    json!({"apiVersion": "v1", "kind": "List", "items": [
        {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "metrics-server", "namespace": "kube-system"},
         "spec": {"ports": [{"name": "https", "port": 443, "targetPort": port}]}},
        {"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
         "metadata": {"name": "metrics-server", "namespace": "kube-system", "labels": {"kubernetes.io/service-name": "metrics-server"}},
         "ports": [{"name": "https", "port": port}], "endpoints": [{"addresses": [NODE_IP]}]},
        {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "metadata": {"name": "read-metrics"},
         "rules": [{"apiGroups": ["metrics.k8s.io"], "resources": ["pods", "nodes"], "verbs": ["get", "list"]}]},
        {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding", "metadata": {"name": "read-metrics"},
         "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "read-metrics"},
         "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "Group", "name": "system:unauthenticated"}]},
        {"apiVersion": "apiregistration.k8s.io/v1", "kind": "APIService", "metadata": {"name": "v1beta1.metrics.k8s.io"},
         "spec": {"group": "metrics.k8s.io", "version": "v1beta1", "groupPriorityMinimum": 100, "versionPriority": 100,
                  "insecureSkipTLSVerify": true, "service": {"name": "metrics-server", "namespace": "kube-system"}}},
    ]})
}

fn kubeconfig(server: &str, token: &str) -> String {
    let config = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "test",
        "clusters": [{"name": "test", "cluster": {"server": server, "insecure-skip-tls-verify": true}}],
        "users": [{"name": "test", "user": {"token": token}}],
        "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test", "namespace": "default"}}],
    });
    config.to_string()
}
