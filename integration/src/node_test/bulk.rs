//! The pods of most checks; their manifests are written together.

use std::fs;

use anyhow::Result;
use serde_json::{Value, json};

use super::Rig;
use super::manifests::{pod, probe, shell, sleeper, with, with_spec};

/// One pod of each kind.
#[expect(clippy::too_many_lines, reason = "one scenario in its order")]
pub(super) async fn manifests_are_written(rig: &Rig) -> Result<()> {
    let resources =
        |requests: Value, limits: Value| json!({"resources": {"requests": requests, "limits": limits}});
    let host = rig.node.paths.dir.join("host-volume");
    fs::create_dir_all(&host)?;
    fs::write(host.join("from-host"), "host content\n")?;
    let apply = |p: Value| rig.kubelet.apply(&p);
    let never = json!({"restartPolicy": "Never"});
    let both = json!({"cpu": "200m", "memory": "64Mi"});
    apply(pod("guaranteed", json!([with(sleeper("main"), &resources(both.clone(), both))])))?;
    apply(pod(
        "burstable",
        json!([with(
            sleeper("main"),
            &resources(json!({"cpu": "100m", "memory": "32Mi"}), json!({"memory": "128Mi"}))
        )]),
    ))?;
    apply(pod("best-effort", json!([sleeper("main")])))?;
    let nginx = json!({"name": "web", "image": "registry.test/nginx:1", "ports": [{"containerPort": 80}]});
    apply(pod(
        "localhost",
        json!([
            nginx,
            shell(
                "client",
                "trap 'exit 0' TERM; while :; do wget -q -O - http://127.0.0.1/ && echo talked; sleep 1; done"
            )
        ]),
    ))?;
    let mount = json!({"volumeMounts": [{"name": "shared", "mountPath": "/shared"}]});
    let volume = json!([{"name": "shared", "emptyDir": {}}]);
    apply(with_spec(
        pod(
            "init",
            json!([with(
                shell("main", "cat /shared/made; trap 'exit 0' TERM; while :; do sleep 0.2; done"),
                &mount
            )]),
        ),
        &json!({"volumes": volume, "initContainers": [with(shell("first", "sleep 1; echo by init > /shared/made"), &mount)]}),
    ))?;
    let side = with(
        shell(
            "side",
            "echo ready > /shared/side; trap 'echo side ends; exit 0' TERM; while :; do sleep 0.2; done",
        ),
        &mount,
    );
    let side = with(
        side,
        &json!({"restartPolicy": "Always", "startupProbe": probe(json!({"exec": {"command": ["test", "-e", "/shared/side"]}}))}),
    );
    apply(with_spec(
        pod(
            "sidecar",
            json!([with(
                shell("main", "cat /shared/side; trap 'exit 0' TERM; while :; do sleep 0.2; done"),
                &mount
            )]),
        ),
        &json!({"volumes": volume, "initContainers": [side]}),
    ))?;
    let probed = with(
        nginx.clone(),
        &json!({
            "readinessProbe": probe(json!({"httpGet": {"path": "/", "port": 80}})),
            "livenessProbe": probe(json!({"tcpSocket": {"port": 80}})),
        }),
    );
    let by_exec = with(
        sleeper("exec"),
        &json!({
            "readinessProbe": probe(json!({"exec": {"command": ["/bin/sh", "-c", "test -e /etc/marker"]}})),
            "livenessProbe": probe(json!({"exec": {"command": ["/bin/true"]}})),
        }),
    );
    apply(pod("probes", json!([probed, by_exec])))?;
    let failing = with(
        shell(
            "main",
            "touch /tmp/ok; (sleep 4; rm /tmp/ok) & trap 'exit 0' TERM; while :; do sleep 0.2; done",
        ),
        &json!({
            "livenessProbe": {"exec": {"command": ["test", "-e", "/tmp/ok"]}, "periodSeconds": 1, "failureThreshold": 1, "initialDelaySeconds": 1},
        }),
    );
    apply(pod("probe-fails", json!([failing])))?;
    let hungry = json!({"name": "main", "image": "registry.test/busybox:1", "command": ["dd", "if=/dev/zero", "of=/dev/null", "bs=200M", "count=10"]});
    apply(with_spec(
        pod("oom", json!([with(hungry, &resources(json!({}), json!({"memory": "20Mi"})))])),
        &never,
    ))?;
    apply(with_spec(
        pod("exit", json!([shell("main", "echo what went wrong > /dev/termination-log; exit 42")])),
        &never,
    ))?;
    let mounts = json!({"volumeMounts": [
        {"name": "host", "mountPath": "/host"}, {"name": "disk", "mountPath": "/disk"}, {"name": "memory", "mountPath": "/memory"},
        {"name": "disk", "mountPath": "/sub", "subPath": "deep/er"}, {"name": "host", "mountPath": "/one-file", "subPath": "from-host", "readOnly": true},
    ]});
    let script = "cat /host/from-host /one-file; echo inside > /host/from-pod; echo x > /sub/file; ls /disk/deep/er; grep ' /memory ' /proc/mounts; df -k /memory | tail -1; trap 'exit 0' TERM; while :; do sleep 0.2; done";
    apply(with_spec(
        pod("volumes", json!([with(shell("main", script), &mounts)])),
        &json!({"volumes": [{"name": "host", "hostPath": {"path": host, "type": "Directory"}}, {"name": "disk", "emptyDir": {}}, {"name": "memory", "emptyDir": {"medium": "Memory", "sizeLimit": "8Mi"}}]}),
    ))?;
    let on_host = json!({"name": "web", "image": "registry.test/nginx:1", "args": ["-g", "daemon off;", "-c", "/etc/nginx/12003.conf"]});
    apply(with_spec(pod("on-host", json!([on_host])), &json!({"hostNetwork": true})))?;
    apply(pod(
        "host-port",
        json!([with(nginx, &json!({"ports": [{"containerPort": 80, "hostPort": 18_080}]}))]),
    ))?;
    apply(pod(
        "logs",
        json!([shell(
            "main",
            "echo first; echo second >&2; echo third; trap 'exit 0' TERM; while :; do sleep 0.2; done"
        )]),
    ))?;
    apply(pod(
        "wrong-image",
        json!([with(sleeper("main"), &json!({"image": "registry.test/comes-later:1"}))]),
    ))?;
    let writer = "i=0; while [ $i -lt 1500 ]; do echo line $i padded to make the file grow faster than it would; i=$((i+1)); [ $((i % 10)) = 0 ] && sleep 0.1; done; echo done; trap 'exit 0' TERM; while :; do sleep 0.2; done";
    apply(pod("rotation", json!([shell("main", writer)])))
}
