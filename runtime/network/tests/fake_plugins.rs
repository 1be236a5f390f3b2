//! Plugins that fail, hang, crash, print invalid output or are missing, and the leases that are left. No
//! root.

mod common;

use std::fs;
use std::time::{Duration, Instant};

use common::{Bench, pod};
use model::{PortMapping, Protocol};
use network::{Cni, CniConfig, Error, Failure};

/// Prints a result with one address.
const GOOD: &str = r#"cat > /dev/null; [ $CNI_COMMAND != ADD ] ||
    echo '{"cniVersion":"1.0.0","interfaces":[{"name":"eth0","sandbox":"x"}],"ips":[{"address":"10.9.0.2/24","interface":0}]}'"#;

/// How the one plugin of the chain failed.
fn failure(error: Error) -> Failure {
    match error {
        Error::Plugin { failure, .. } => *failure,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
#[expect(clippy::too_many_lines, reason = "one life of a pod, checked step by step")]
async fn plugins_get_their_input_and_del_gets_that_of_add() {
    let bench = Bench::new();
    // Records each call's input as <command>-<plugin>.{env,in}, and the order of calls.
    let record = |name: &str, result: &str| {
        bench.plugin(
            name,
            &format!(
                r#"base={dir}/$CNI_COMMAND-{name}; env > $base.env; cat > $base.in
                echo $CNI_COMMAND-{name} >> {dir}/order
                [ $CNI_COMMAND != ADD ] || echo '{result}'"#,
                dir = bench.path("").display()
            ),
        );
    };
    record(
        "first",
        r#"{"cniVersion":"1.0.0","interfaces":[{"name":"eth0","sandbox":"x"}],"ips":[{"address":"10.9.0.2/24","interface":0}]}"#,
    );
    record(
        "second",
        r#"{"cniVersion":"1.0.0","interfaces":[{"name":"eth0","sandbox":"x"}],"ips":[{"address":"10.9.0.2/24","interface":0},{"address":"fd00::2/64","interface":0}],"dns":{"search":["x"]}}"#,
    );
    bench.conf(
        "10-net.conflist",
        r#"{"cniVersion":"1.0.0","name":"net","plugins":[{"type":"first","keep":{"me":1}},
            {"type":"second","capabilities":{"portMappings":true,"dns":false}}]}"#,
    );
    let cni = bench.cni();
    assert!(cni.reload().await.is_ready());
    let mut attachment = bench.attachment(pod(1));
    attachment.ports = vec![
        PortMapping {
            protocol: Protocol::Udp,
            container_port: 53,
            host_port: 5353,
            host_ip: "127.0.0.1".into(),
        },
        PortMapping { protocol: Protocol::Tcp, container_port: 80, host_port: 0, host_ip: String::new() },
    ];
    let ips = cni.add(&attachment).await.unwrap();
    assert_eq!(ips.iter().map(ToString::to_string).collect::<Vec<_>>(), ["10.9.0.2", "fd00::2"]);
    assert_eq!(cni.leases().await.unwrap(), [pod(1)]);

    let read = |name: &str| fs::read_to_string(bench.path(name)).unwrap();
    let json = |name: &str| serde_json::from_str::<serde_json::Value>(&read(name)).unwrap();
    let env = read("ADD-first.env");
    for line in [
        format!("CNI_CONTAINERID={}", pod(1)),
        format!("CNI_NETNS={}", attachment.netns.display()),
        "CNI_IFNAME=eth0".to_owned(),
        format!("CNI_PATH={}", bench.path("bin").display()),
        format!(
            "CNI_ARGS=IgnoreUnknown=1;K8S_POD_NAMESPACE=ns;K8S_POD_NAME=web;K8S_POD_INFRA_CONTAINER_ID={};K8S_POD_UID=u-1",
            pod(1)
        ),
    ] {
        assert!(env.lines().any(|it| it == line), "{line} in {env}");
    }
    let (first, second) = (json("ADD-first.in"), json("ADD-second.in"));
    assert_eq!(
        (&first["name"], &first["cniVersion"], &first["keep"]["me"]),
        (&"net".into(), &"1.0.0".into(), &1.into())
    );
    assert!(first.get("prevResult").is_none() && first.get("runtimeConfig").is_none());
    assert_eq!(second["prevResult"]["ips"][0]["address"], "10.9.0.2/24");
    let ports = serde_json::json!(
        {"portMappings":[{"hostPort":5353,"containerPort":53,"protocol":"udp","hostIP":"127.0.0.1"}]}
    );
    assert_eq!(second["runtimeConfig"], ports);

    // The configuration has changed: DEL still uses that of ADD. The namespace is gone.
    fs::remove_file(bench.path("conf/10-net.conflist")).unwrap();
    let again = bench.cni();
    assert!(!again.reload().await.is_ready());
    again.del(&pod(1), Some(&attachment.netns)).await.unwrap();
    let order = "ADD-first\nADD-second\nDEL-second\nDEL-first\n";
    assert_eq!(read("order"), order);
    assert!(read("DEL-first.env").lines().any(|line| line == "CNI_NETNS="));
    for name in ["DEL-first.in", "DEL-second.in"] {
        assert_eq!(json(name)["prevResult"]["dns"]["search"][0], "x", "{name}: the whole chain's result");
    }
    assert_eq!(json("DEL-second.in")["runtimeConfig"], ports);
    assert!(again.leases().await.unwrap().is_empty());
    assert_eq!(fs::read_dir(bench.path("cache")).unwrap().count(), 0, "lease files are left");
    again.del(&pod(1), None).await.unwrap();
    assert_eq!(read("order"), order, "DEL runs once");
}

#[tokio::test]
async fn each_failure_is_reported_and_leaves_a_lease() {
    let bench = Bench::new();
    bench.conf("n.conf", r#"{"cniVersion":"1.0.0","name":"n","type":"bad"}"#);
    let cni = bench.cni();
    cni.reload().await;
    let attachment = bench.attachment(pod(2));
    let add = async |script: &str| {
        bench.plugin("bad", script);
        let error = cni.add(&attachment).await.unwrap_err();
        assert_eq!(cni.leases().await.unwrap(), [pod(2)], "{script}");
        // Only a successful DEL removes the lease.
        bench.plugin("bad", "exit 0");
        cni.del(&pod(2), None).await.unwrap();
        assert!(cni.leases().await.unwrap().is_empty());
        error
    };

    let refused =
        add(r#"echo '{"cniVersion":"1.0.0","code":11,"msg":"later","details":"pool is full"}'; exit 1"#)
            .await;
    assert!(refused.is_temporary());
    assert!(matches!(failure(refused), Failure::Refused { code: 11, message, details }
        if message == "later" && details == "pool is full"));
    assert!(matches!(failure(add("echo out; echo 'se\tgmentation' >&2; exit 3").await),
        Failure::Ended { status, output } if status == "exit status 3" && output == "se gmentation"));
    assert!(
        matches!(failure(add("kill -9 $$").await), Failure::Ended { status, .. } if status.contains("signal 9"))
    );
    for garbage in
        ["true", "echo hello", "echo '{\"ips\":[{\"address\":\"nowhere\"}]}'", "printf '\\377\\376'"]
    {
        assert!(matches!(failure(add(garbage).await), Failure::Garbage { .. }), "{garbage}");
    }
    assert!(matches!(failure(add("exec yes").await), Failure::TooMuch { limit: 1_048_576 }));
    let none = add("echo '{\"cniVersion\":\"1.0.0\",\"ips\":[]}'").await;
    assert!(matches!(none, Error::NoAddress { .. }), "{none:?}");
    // Long output on standard error is not an error.
    bench.plugin("bad", &format!("head -c 3000000 /dev/zero >&2; {GOOD}"));
    cni.add(&attachment).await.unwrap();
    cni.del(&pod(2), None).await.unwrap();

    fs::remove_file(bench.path("bin/bad")).unwrap();
    let missing = cni.add(&attachment).await.unwrap_err();
    assert!(matches!(failure(missing), Failure::Missing { dirs } if dirs == [bench.path("bin")]));
    assert!(cni.leases().await.unwrap().is_empty(), "a lease was left although no plugin ran");
}

#[tokio::test]
async fn a_hung_plugin_is_killed_with_its_children() {
    let bench = Bench::new();
    bench.conf("n.conf", r#"{"cniVersion":"1.0.0","name":"n","type":"hang"}"#);
    let mut config = bench.config();
    // Long enough for the plugin to start on a busy machine.
    config.timeout = Duration::from_secs(3);
    let cni = network::Cni::new(config);
    cni.reload().await;
    bench.plugin("hang", &format!("sleep 300 & echo $! > {}; wait", bench.path("child").display()));
    let started = Instant::now();
    let error = cni.add(&bench.attachment(pod(3))).await.unwrap_err();
    assert!(started.elapsed() < Duration::from_secs(60), "{:?}", started.elapsed());
    assert!(matches!(failure(error), Failure::Hung { .. }));
    let child = fs::read_to_string(bench.path("child")).unwrap();
    common::wait_gone(child.trim()).await;
    // A grandchild that keeps the pipes open does not delay the call: the plugin itself has ended.
    let script = format!("setsid sleep 300 & echo $! > {}; {GOOD}", bench.path("keeper").display());
    let mut config = bench.config();
    config.timeout = Duration::from_secs(60);
    let cni = network::Cni::new(config);
    cni.reload().await;
    bench.plugin("hang", "exit 0");
    cni.del(&pod(3), None).await.unwrap();
    bench.plugin("hang", &script);
    let started = Instant::now();
    assert_eq!(cni.add(&bench.attachment(pod(3))).await.unwrap().len(), 1);
    assert!(started.elapsed() < Duration::from_secs(10), "{:?}", started.elapsed());
    let keeper = fs::read_to_string(bench.path("keeper")).unwrap();
    assert!(std::process::Command::new("kill").arg(keeper.trim()).status().unwrap().success());
}

#[tokio::test]
async fn a_dropped_call_kills_its_plugin() {
    let bench = Bench::new();
    bench.conf("n.conf", r#"{"cniVersion":"1.0.0","name":"n","type":"slow"}"#);
    bench.plugin("slow", &format!("echo $$ > {}; sleep 300", bench.path("pid").display()));
    let cni = bench.cni();
    cni.reload().await;
    let attachment = bench.attachment(pod(4));
    let pid = {
        let add = cni.add(&attachment);
        let begun = common::wait_text(bench.path("pid"));
        tokio::select! {
            added = add => panic!("{added:?}"),
            pid = begun => pid,
        }
    };
    common::wait_gone(&pid).await;
    assert_eq!(cni.leases().await.unwrap(), [pod(4)], "a DEL is needed");
}

/// A client that is dropped with its runtime stands for a killed daemon; what its ADD left running goes on.
#[tokio::test]
async fn del_waits_for_plugins_that_outlived_their_daemon() {
    for (lasts, limit, order) in [(1, 20, ["ADD", "late", "DEL"]), (1000, 1, ["ADD", "DEL", ""])] {
        let bench = Bench::new();
        let dir = bench.path("");
        bench.plugin(
            "one",
            &format!(
                r#"{GOOD}
                echo $CNI_COMMAND >> {dir}/order
                if [ $CNI_COMMAND = ADD ]; then
                    (sleep {lasts}; echo late >> {dir}/order) < /dev/null > /dev/null 2>&1 &
                    echo $$ > {dir}/pid
                fi"#,
                dir = dir.display()
            ),
        );
        bench.conf("10-net.conf", r#"{"cniVersion":"1.0.0","name":"net","type":"one"}"#);
        let first = bench.cni();
        assert!(first.reload().await.is_ready());
        first.add(&bench.attachment(pod(1))).await.unwrap();
        drop(first);
        let second = Cni::new(CniConfig { timeout: Duration::from_secs(limit), ..bench.config() });
        second.del(&pod(1), None).await.unwrap();
        // The plugin's process group, of which only what it left running is still there.
        let group = fs::read_to_string(bench.path("pid")).unwrap();
        let group = rustix::process::Pid::from_raw(group.trim().parse().unwrap()).unwrap();
        rustix::process::kill_process_group(group, rustix::process::Signal::KILL).unwrap_or_default();
        let found = fs::read_to_string(bench.path("order")).unwrap();
        assert_eq!(found.lines().collect::<Vec<_>>().join(" "), order.join(" ").trim_end(), "{lasts} s");
        assert!(second.leases().await.unwrap().is_empty());
    }
}

/// A process that a plugin of this daemon has left may never end.
#[tokio::test]
async fn del_does_not_wait_for_what_plugins_of_this_daemon_left() {
    let bench = Bench::new();
    bench.plugin(
        "one",
        &format!(
            r#"{GOOD}
            if [ $CNI_COMMAND = ADD ]; then
                sleep 300 < /dev/null > /dev/null 2>&1 &
                echo $! > {}
            fi"#,
            bench.path("child").display()
        ),
    );
    bench.conf("10-net.conf", r#"{"cniVersion":"1.0.0","name":"net","type":"one"}"#);
    let cni = Cni::new(CniConfig { timeout: Duration::from_secs(60), ..bench.config() });
    cni.reload().await;
    cni.add(&bench.attachment(pod(1))).await.unwrap();
    let started = Instant::now();
    cni.del(&pod(1), None).await.unwrap();
    let took = started.elapsed();
    let child = fs::read_to_string(bench.path("child")).unwrap();
    // It has run all the time: that it can be killed shows it.
    assert!(std::process::Command::new("kill").arg(child.trim()).status().unwrap().success());
    assert!(took < Duration::from_secs(8), "{took:?}");
    assert!(cni.leases().await.unwrap().is_empty());
}

/// The annotations of a pod, as the plugin that asks for the capability gets them.
#[tokio::test]
async fn bandwidth_is_passed_to_plugins_that_ask_for_it() {
    let bench = Bench::new();
    for name in ["plain", "bandwidth"] {
        let file = bench.path(name).display().to_string();
        bench.plugin(name, &format!("tee {file}-$CNI_COMMAND.in | {GOOD}"));
    }
    bench.conf(
        "n.conflist",
        r#"{"cniVersion":"1.0.0","name":"n","plugins":[{"type":"plain"},
            {"type":"bandwidth","capabilities":{"bandwidth":true}}]}"#,
    );
    let cni = bench.cni();
    cni.reload().await;
    let mut attachment = bench.attachment(pod(1));
    let mut annotate = |key: &str, value: &str| {
        attachment.annotations.insert(format!("kubernetes.io/{key}-bandwidth"), value.to_owned());
        attachment.clone()
    };
    let wrong = annotate("ingress", "10 Mbit");
    match cni.add(&wrong).await.unwrap_err() {
        error @ Error::Attachment { field: "kubernetes.io/ingress-bandwidth", .. } => {
            assert!(error.to_string().contains("\"10 Mbit\": must be"), "{error}");
        }
        other => panic!("{other:?}"),
    }
    assert!(cni.leases().await.unwrap().is_empty(), "nothing was done");
    annotate("ingress", "10M");
    cni.add(&annotate("egress", "2.5Mi")).await.unwrap();
    cni.del(&pod(1), None).await.unwrap();
    let read = |name: &str| {
        let text = fs::read_to_string(bench.path(name)).unwrap();
        serde_json::from_str::<serde_json::Value>(&text).unwrap()
    };
    let limits = serde_json::json!({"bandwidth": {
        "ingressRate": 10_000_000, "ingressBurst": u32::MAX, "egressRate": 2_621_440, "egressBurst": u32::MAX,
    }});
    for name in ["bandwidth-ADD.in", "bandwidth-DEL.in"] {
        assert_eq!(read(name)["runtimeConfig"], limits, "{name}");
    }
    assert!(read("plain-ADD.in").get("runtimeConfig").is_none());
}

#[tokio::test]
async fn del_runs_every_plugin_and_reports_all_failures() {
    let bench = Bench::new();
    bench.conf(
        "n.conflist",
        r#"{"cniVersion":"0.3.1","name":"n","plugins":[{"type":"a"},{"type":"b"},{"type":"c"}]}"#,
    );
    for name in ["a", "b", "c"] {
        bench.plugin(name, GOOD);
    }
    let cni = bench.cni();
    cni.reload().await;
    cni.add(&bench.attachment(pod(5))).await.unwrap();
    let log = bench.path("log").display().to_string();
    let fail = |name: &str| bench.plugin(name, &format!("cat > {log}.in; echo {name} >> {log}; exit 1"));
    for name in ["a", "b", "c"] {
        fail(name);
    }
    let error = cni.del(&pod(5), None).await.unwrap_err();
    assert!(matches!(&error, Error::Several(errors) if errors.len() == 2), "{error:?}");
    for reason in ["\"c\" in network \"n\": exit status 1", "\"b\" in network \"n\": exit status 1"] {
        assert!(error.to_string().contains(reason), "{error}");
    }
    assert_eq!(fs::read_to_string(&log).unwrap(), "c\nb\n", "no address is given back before that");
    for name in ["b", "c"] {
        bench.plugin(name, &format!("echo {name} >> {log}"));
    }
    cni.del(&pod(5), None).await.unwrap_err();
    assert_eq!(fs::read_to_string(&log).unwrap(), "c\nb\nc\nb\na\n");
    // Before 0.4.0 a DEL has no prevResult.
    assert!(!fs::read_to_string(format!("{log}.in")).unwrap().contains("prevResult"));
    assert_eq!(cni.leases().await.unwrap(), [pod(5)]);
    // An ADD releases the old lease first.
    bench.plugin("b", &format!("echo $CNI_COMMAND >> {log}; {GOOD}"));
    bench.plugin("a", GOOD);
    bench.plugin("c", GOOD);
    cni.add(&bench.attachment(pod(5))).await.unwrap();
    assert!(fs::read_to_string(&log).unwrap().ends_with("DEL\nADD\n"));
    // After an ADD that has failed, the first plugin does not wait for the others.
    bench.plugin("a", &format!("echo a $CNI_COMMAND >> {log}; {GOOD}"));
    fail("c");
    cni.add(&bench.attachment(pod(6))).await.unwrap_err();
    cni.del(&pod(6), None).await.unwrap_err();
    assert!(fs::read_to_string(&log).unwrap().ends_with("c\nDEL\na DEL\n"));
}

#[tokio::test]
#[expect(clippy::too_many_lines, reason = "one scenario in its order")]
async fn chains_are_limited_and_waiting_chains_time_out() {
    let bench = Bench::new();
    bench.conf("n.conf", r#"{"cniVersion":"1.0.0","name":"n","type":"slow"}"#);
    let running = bench.path("running");
    fs::create_dir(&running).unwrap();
    bench.plugin(
        "slow",
        &format!(
            "touch {dir}/$$; ls {dir} | wc -l >> {dir}.counts; sleep 0.2; rm {dir}/$$; {GOOD}",
            dir = running.display()
        ),
    );
    let mut config = bench.config();
    config.max_parallel = 2;
    let cni = network::Cni::new(config);
    cni.reload().await;
    let adds: Vec<_> = (10..16)
        .map(|number| {
            let (cni, attachment) = (cni.clone(), bench.attachment(pod(number)));
            tokio::spawn(async move { cni.add(&attachment).await })
        })
        .collect();
    for add in adds {
        add.await.unwrap().unwrap();
    }
    let counts = fs::read_to_string(bench.path("running.counts")).unwrap();
    assert!(counts.lines().all(|count| count.trim().parse::<u32>().unwrap() <= 2), "{counts}");
    assert_eq!(counts.lines().count(), 6);

    // The first chain has the only place until its time is over: the second runs no plugin before, and does
    // not wait longer.
    let bench = Bench::new();
    let mut config = bench.config();
    (config.max_parallel, config.timeout) = (1, Duration::from_secs(3));
    bench.conf("n.conf", r#"{"cniVersion":"1.0.0","name":"n","type":"s"}"#);
    let begun = bench.path("begun");
    bench.plugin("s", &format!("echo $CNI_CONTAINERID >> {}; sleep 300", begun.display()));
    let cni = network::Cni::new(config);
    cni.reload().await;
    let first = {
        let (cni, attachment) = (cni.clone(), bench.attachment(pod(20)));
        tokio::spawn(async move { cni.add(&attachment).await })
    };
    common::wait_text(begun.clone()).await;
    let second = {
        let (cni, attachment) = (cni.clone(), bench.attachment(pod(21)));
        tokio::spawn(async move { cni.add(&attachment).await })
    };
    while !first.is_finished() {
        let lines = fs::read_to_string(&begun).unwrap();
        assert!(first.is_finished() || !lines.contains(pod(21).as_str()), "two chains ran at once:\n{lines}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(matches!(failure(first.await.unwrap().unwrap_err()), Failure::Hung { .. }));
    let late =
        tokio::time::timeout(Duration::from_secs(30), second).await.expect("the second ADD never returned");
    let late = late.unwrap().unwrap_err();
    // The second may get the place shortly before its own time is over.
    if !matches!(late, Error::Busy { .. }) {
        assert!(matches!(failure(late), Failure::Hung { .. }));
    }
}

#[tokio::test]
async fn status_needs_cni_1_1_0() {
    let bench = Bench::new();
    let log = bench.path("log").display().to_string();
    bench.plugin("p", &format!("(echo $CNI_COMMAND $CNI_CONTAINERID; cat) >> {log}; echo >> {log}"));
    bench.conf("n.conf", r#"{"cniVersion":"1.0.0","name":"n","type":"p"}"#);
    let cni = bench.cni();
    assert!(!cni.readiness().is_ready(), "ready before the configuration was read");
    cni.reload().await;
    assert!(cni.status().await.is_ready());
    assert!(fs::metadata(&log).is_err(), "a plugin ran");

    bench.conf("n.conf", r#"{"cniVersion":"1.1.0","name":"n","type":"p"}"#);
    cni.reload().await;
    assert!(cni.status().await.is_ready());
    let text = fs::read_to_string(&log).unwrap();
    assert!(text.contains("STATUS\n"), "{text}");

    bench.plugin("p", r#"echo '{"code":50,"msg":"no uplink"}'; exit 1"#);
    let status = cni.status().await;
    assert!(status.problem.as_deref().is_some_and(|problem| problem.contains("no uplink")), "{status:?}");
    assert_eq!(cni.readiness(), status);
    assert_eq!(cni.reload().await, status, "an unchanged file does not make it ready");
}

#[tokio::test]
async fn names_that_would_add_arguments_are_refused_without_a_lease() {
    let bench = Bench::new();
    bench.conf("n.conf", r#"{"cniVersion":"1.0.0","name":"n","type":"p"}"#);
    let cni = bench.cni();
    let mut attachment = bench.attachment(pod(8));
    assert!(matches!(cni.add(&attachment).await, Err(Error::NotReady { .. })));
    cni.reload().await;
    attachment.name = "x;K8S_POD_NAMESPACE=kube-system".into();
    match cni.add(&attachment).await {
        Err(Error::Attachment { field, .. }) => assert_eq!(field, "metadata.name"),
        other => panic!("{other:?}"),
    }
    assert!(cni.leases().await.unwrap().is_empty());
}
