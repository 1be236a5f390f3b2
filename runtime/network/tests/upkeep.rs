//! What is done beside ADD and DEL: damaged leases, DELs that fail, CHECK and GC. No root.

mod common;

use std::fs;
use std::path::PathBuf;
use std::sync::Mutex;
use std::time::Duration;

use common::{Bench, pod};
use network::{Cni, CniConfig, Pace, Released};
use serde_json::{Value, json};

/// Prints a result with one address.
const GOOD: &str = r#"[ $CNI_COMMAND != ADD ] ||
    echo '{"cniVersion":"1.0.0","interfaces":[{"name":"eth0","sandbox":"x"}],"ips":[{"address":"10.9.0.2/24","interface":0}]}'"#;

/// Long enough that nothing of it happens in a test.
const NEVER: Pace = Pace {
    first: Duration::from_secs(10_000),
    gc: Duration::from_secs(10_000),
    busy: Duration::from_secs(10_000),
};

/// A plugin that writes each call as a line `<command> <container> <netns>` to `calls`, and its input to
/// `<command>-<name>.in`.
fn recorder(bench: &Bench, name: &str, more: &str) {
    let dir = bench.path("").display().to_string();
    let script = format!(
        "cat > {dir}/$CNI_COMMAND-{name}.in; echo $CNI_COMMAND $CNI_CONTAINERID $CNI_NETNS >> {dir}/calls; {more}"
    );
    bench.plugin(name, &script);
}

fn calls(bench: &Bench) -> Vec<String> {
    let text = fs::read_to_string(bench.path("calls")).unwrap_or_default();
    text.lines().map(|line| line.trim().to_owned()).collect()
}

fn input(bench: &Bench, name: &str) -> Value {
    serde_json::from_str(&fs::read_to_string(bench.path(name)).unwrap()).unwrap()
}

/// Waits until `done`, with a limit far above what it takes.
async fn until(what: &str, done: impl Fn() -> bool) {
    for _ in 0..2400 {
        if done() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
    panic!("never: {what}");
}

#[tokio::test]
async fn del_of_a_damaged_lease_uses_the_network_that_is_loaded() {
    let bench = Bench::new();
    bench.conf("n.conf", r#"{"cniVersion":"1.0.0","name":"n","type":"good"}"#);
    recorder(&bench, "good", GOOD);
    let cni = bench.cni();
    cni.reload().await;
    cni.add(&bench.attachment(pod(6))).await.unwrap();
    let path: PathBuf = bench.path("cache").join(pod(6).as_str());
    let whole = fs::read(&path).unwrap();
    // Without a network it stays due.
    fs::write(&path, &whole[..50]).unwrap();
    let error = bench.cni().del(&pod(6), None).await.unwrap_err();
    assert!(error.to_string().contains("not ready"), "{error}");
    for length in (0..whole.len()).step_by(23) {
        fs::write(&path, &whole[..length]).unwrap();
        cni.del(&pod(6), None).await.unwrap();
        assert!(cni.leases().await.unwrap().is_empty(), "{length}");
        assert_eq!(calls(&bench).last().unwrap(), &format!("DEL {}", pod(6)), "{length}");
    }
    assert_eq!(fs::read_dir(bench.path("cache")).unwrap().count(), 0, "nothing is left of the damaged lease");
    // A damaged result is treated as missing.
    cni.add(&bench.attachment(pod(6))).await.unwrap();
    fs::write(bench.path("cache").join(format!("{}.result", pod(6))), "{").unwrap();
    cni.del(&pod(6), None).await.unwrap();
    assert!(input(&bench, "DEL-good.in").get("prevResult").is_none());
}

#[tokio::test]
async fn a_del_that_fails_is_repeated_in_the_background() {
    let bench = Bench::new();
    bench.conf("n.conf", r#"{"cniVersion":"1.0.0","name":"n","type":"p"}"#);
    recorder(&bench, "p", GOOD);
    let cni = bench.cni();
    cni.reload().await;
    let (one, two) = (bench.attachment(pod(1)), bench.attachment(pod(2)));
    cni.add(&one).await.unwrap();
    cni.add(&two).await.unwrap();
    let within = Duration::from_secs(60);
    assert_eq!(cni.release(&pod(1), &one.netns, within).await, Released::Now);
    assert_eq!(cni.pending_dels().count, 0);
    // The program is gone for good, or so it seems.
    fs::rename(bench.path("bin/p"), bench.path("away")).unwrap();
    assert_eq!(cni.release(&pod(2), &two.netns, within).await, Released::Later);
    assert_eq!(cni.release(&pod(2), &two.netns, within).await, Released::Later, "the background has it");
    let pending = cni.pending_dels();
    assert_eq!((pending.count, pending.oldest[0].attempts, &pending.oldest[0].pod), (1, 1, &pod(2)));
    assert!(pending.oldest[0].problem.contains("no such program"), "{pending:?}");
    assert_eq!(cni.leases().await.unwrap(), [pod(2)], "its address is not lost");

    let unpinned = Mutex::new(Vec::new());
    let unpin = |pin: PathBuf| {
        unpinned.lock().unwrap().push(pin);
        std::future::ready(())
    };
    let mended = async {
        until("another attempt", || cni.pending_dels().oldest.first().is_some_and(|del| del.attempts > 1))
            .await;
        fs::rename(bench.path("away"), bench.path("bin/p")).unwrap();
        until("the DEL to succeed", || cni.pending_dels().count == 0).await;
        until("the pin to be removed", || !unpinned.lock().unwrap().is_empty()).await;
    };
    tokio::select! {
        () = cni.upkeep(NEVER, unpin) => panic!("upkeep ended"),
        () = mended => {}
    }
    assert_eq!(*unpinned.lock().unwrap(), [two.netns]);
    assert!(cni.leases().await.unwrap().is_empty());
    assert_eq!(calls(&bench).last().unwrap(), &format!("DEL {}", pod(2)));
}

/// A DEL that takes longer than the caller waits goes on; a new daemon learns of the DEL that an old one has not completed.
#[tokio::test]
async fn a_slow_del_is_not_waited_for_and_one_of_an_earlier_daemon_is_repeated() {
    let bench = Bench::new();
    bench.conf("n.conf", r#"{"cniVersion":"1.0.0","name":"n","type":"p"}"#);
    let gate = bench.path("gate").display().to_string();
    recorder(
        &bench,
        "p",
        &format!("while [ $CNI_COMMAND = DEL ] && [ ! -e {gate} ]; do sleep 0.02; done; {GOOD}"),
    );
    let cni = bench.cni();
    cni.reload().await;
    let (one, two) = (bench.attachment(pod(1)), bench.attachment(pod(2)));
    cni.add(&one).await.unwrap();
    cni.add(&two).await.unwrap();
    assert_eq!(cni.release(&pod(1), &one.netns, Duration::from_millis(100)).await, Released::Later);
    // One that is given up is due again.
    let given_up = tokio::time::timeout(
        Duration::from_millis(300),
        cni.release(&two.pod, &two.netns, Duration::from_secs(60)),
    );
    assert!(given_up.await.is_err());
    assert!(
        cni.pending_dels().oldest.iter().any(|del| del.pod == pod(2) && del.problem.contains("given up"))
    );
    fs::write(&gate, "").unwrap();
    let second = bench.cni();
    second.add_pending_del(&pod(2), &two.netns);
    let unpin = |_| std::future::ready(());
    let succeeded = async {
        until("both to succeed", || cni.pending_dels().count == 0 && second.pending_dels().count == 0).await;
    };
    tokio::select! {
        () = cni.upkeep(NEVER, unpin) => panic!("upkeep ended"),
        () = second.upkeep(NEVER, unpin) => panic!("upkeep ended"),
        () = succeeded => {}
    }
    assert!(cni.leases().await.unwrap().is_empty());
}

#[tokio::test]
async fn del_of_a_container_that_the_plugin_does_not_know_is_done() {
    let bench = Bench::new();
    bench.conf("n.conf", r#"{"cniVersion":"1.0.0","name":"n","type":"p"}"#);
    recorder(
        &bench,
        "p",
        &format!(r#"[ $CNI_COMMAND != DEL ] || {{ echo '{{"code":3,"msg":"unknown"}}'; exit 1; }}; {GOOD}"#),
    );
    let cni = bench.cni();
    cni.reload().await;
    cni.add(&bench.attachment(pod(1))).await.unwrap();
    cni.del(&pod(1), None).await.unwrap();
    assert!(cni.leases().await.unwrap().is_empty());
}

#[tokio::test]
async fn gc_tells_which_pods_are_attached() {
    let bench = Bench::new();
    let conf = |version: &str, more: &str| {
        let text = format!(
            r#"{{"cniVersion":"{version}","name":"n"{more},"plugins":[{{"type":"a","cni.dev/x":1}},{{"type":"b"}}]}}"#
        );
        bench.conf("n.conflist", &text);
    };
    for name in ["a", "b"] {
        recorder(&bench, name, GOOD);
    }
    let cni = bench.cni();
    assert!(cni.gc().await.unwrap(), "no network is loaded");
    for (version, more) in [("1.0.0", ""), ("1.1.0", r#","disableGC":"true""#)] {
        conf(version, more);
        cni.load().await;
        assert!(cni.gc().await.unwrap());
        assert!(calls(&bench).is_empty(), "{version} {more}");
    }
    conf("1.1.0", "");
    cni.load().await;
    cni.add(&bench.attachment(pod(1))).await.unwrap();
    cni.add(&bench.attachment(pod(2))).await.unwrap();
    // The addresses of a pod whose DEL is due stay taken.
    recorder(&bench, "a", &format!("[ $CNI_COMMAND != DEL ] || exit 1; {GOOD}"));
    assert_eq!(cni.release(&pod(2), &bench.path("netns"), Duration::from_secs(60)).await, Released::Later);
    fs::remove_file(bench.path("calls")).unwrap();
    assert!(cni.gc().await.unwrap());
    assert_eq!(calls(&bench), ["GC", "GC"], "once for each plugin, without a container");
    for name in ["GC-a.in", "GC-b.in"] {
        let given = input(&bench, name);
        let valid = [1, 2].map(|number| json!({"containerID": pod(number), "ifname": "eth0"}));
        let valid = json!(valid);
        assert_eq!(
            (&given["cni.dev/valid-attachments"], &given["cni.dev/attachments"]),
            (&valid, &valid),
            "{name}"
        );
        assert_eq!((&given["name"], &given["cniVersion"]), (&"n".into(), &"1.1.0".into()));
        assert!(given.get("cni.dev/x").is_none() && given.get("prevResult").is_none(), "{given}");
    }
    // Every plugin is told, and each reason is in the error.
    recorder(&bench, "a", r#"echo '{"code":7,"msg":"one"}'; exit 1"#);
    recorder(&bench, "b", r#"echo '{"code":7,"msg":"two"}'; exit 1"#);
    let error = cni.gc().await.unwrap_err().to_string();
    assert!(error.contains("CNI GC") && error.contains("one") && error.contains("two"), "{error}");
}

/// GC runs alone: an ADD that runs has a lease, but what its plugins have allocated is not complete.
#[tokio::test]
async fn gc_and_chains_exclude_each_other() {
    let bench = Bench::new();
    bench.conf("n.conf", r#"{"cniVersion":"1.1.0","name":"n","type":"p"}"#);
    let gate = bench.path("gate").display().to_string();
    let log = bench.path("log").display().to_string();
    let script = format!(
        "cat > /dev/null; echo begin $CNI_COMMAND >> {log}; \
         while [ $CNI_COMMAND = ADD ] && [ ! -e {gate} ]; do sleep 0.02; done; sleep 0.1; \
         echo end $CNI_COMMAND >> {log}; {GOOD}"
    );
    bench.plugin("p", &script);
    let cni = bench.cni();
    cni.load().await;
    let attachment = bench.attachment(pod(1));
    let (added, collected) = tokio::join!(cni.add(&attachment), async {
        common::wait_text(bench.path("log")).await;
        tokio::join!(cni.gc(), async {
            tokio::time::sleep(Duration::from_millis(200)).await;
            fs::write(&gate, "").unwrap();
        })
        .0
    });
    added.unwrap();
    assert!(collected.unwrap());
    let lines = fs::read_to_string(bench.path("log")).unwrap();
    assert_eq!(lines, "begin ADD\nend ADD\nbegin GC\nend GC\n");
}

/// A process that a plugin has left stands for a GC that outlived its daemon.
#[tokio::test]
async fn the_first_add_waits_for_a_gc_that_outlived_its_daemon() {
    let bench = Bench::new();
    bench.conf("n.conf", r#"{"cniVersion":"1.1.0","name":"n","type":"p"}"#);
    let log = bench.path("log").display().to_string();
    let left = format!("(sleep 1; echo late >> {log}) < /dev/null > /dev/null 2>&1 &");
    bench.plugin(
        "p",
        &format!("cat > /dev/null; echo $CNI_COMMAND >> {log}; [ $CNI_COMMAND != GC ] || {left}\n{GOOD}"),
    );
    let first = bench.cni();
    first.load().await;
    assert!(first.gc().await.unwrap());
    drop(first);
    let second = bench.cni();
    second.load().await;
    second.add(&bench.attachment(pod(1))).await.unwrap();
    assert_eq!(fs::read_to_string(&log).unwrap(), "GC\nlate\nADD\n");
    assert!(second.gc().await.unwrap());
}

/// A process that a plugin leaves in GC, or for a pod, may never end: it keeps the lock, but neither GC nor CHECK from
/// running.
#[tokio::test]
async fn processes_that_plugins_leave_keep_nothing_from_running() {
    let bench = Bench::new();
    bench.conf("n.conf", r#"{"cniVersion":"1.1.0","name":"n","type":"p"}"#);
    let left = bench.path("left").display().to_string();
    let leave = format!("setsid sleep 300 < /dev/null > /dev/null 2>&1 & echo $! >> {left}");
    recorder(&bench, "p", &format!("case $CNI_COMMAND in GC|ADD) {leave};; esac\n{GOOD}"));
    let config = CniConfig { timeout: Duration::from_secs(3), ..bench.config() };
    let cni = Cni::new(config.clone());
    cni.load().await;
    let mut attachment = bench.attachment(pod(1));
    attachment.netns = "/proc/self/ns/net".into();
    cni.add(&attachment).await.unwrap();
    assert!(cni.check(&pod(1)).await.unwrap());
    let started = std::time::Instant::now();
    for _ in 0..2 {
        assert!(cni.gc().await.unwrap());
    }
    assert!(started.elapsed() < Duration::from_secs(3), "all plugins of this daemon have ended");
    // The next daemon cannot know that it is no plugin, and waits for a while.
    let next = Cni::new(config);
    next.load().await;
    assert!(next.gc().await.unwrap());
    next.add(&bench.attachment(pod(2))).await.unwrap();
    let commands: Vec<String> =
        calls(&bench).iter().map(|call| call.split(' ').next().unwrap_or_default().to_owned()).collect();
    assert_eq!(commands, ["ADD", "CHECK", "GC", "GC", "GC", "ADD"]);
    for process in fs::read_to_string(&left).unwrap().lines() {
        // That it can be killed shows that it has run all the time.
        assert!(std::process::Command::new("kill").arg(process).status().unwrap().success());
    }
}

#[tokio::test]
async fn upkeep_checks_pods_once_and_collects_from_time_to_time() {
    let bench = Bench::new();
    bench.conf("n.conf", r#"{"cniVersion":"1.1.0","name":"n","type":"p"}"#);
    recorder(&bench, "p", GOOD);
    let cni = bench.cni();
    cni.load().await;
    let mut attachment = bench.attachment(pod(1));
    // Any namespace: CHECK is not asked about one that is gone.
    attachment.netns = "/proc/self/ns/net".into();
    cni.add(&attachment).await.unwrap();
    let pace = Pace { first: Duration::from_millis(1), gc: Duration::from_millis(50), ..NEVER };
    let count = |command: &str| calls(&bench).iter().filter(|call| call.starts_with(command)).count();
    tokio::select! {
        () = cni.upkeep(pace, |_| std::future::ready(())) => panic!("upkeep ended"),
        () = until("several GCs", || count("GC") >= 3 && count("CHECK") >= 1) => {}
    }
    assert_eq!(count("CHECK"), 1);
}

#[tokio::test]
async fn check_gets_the_input_and_the_result_of_add() {
    let bench = Bench::new();
    let conf = |version: &str, more: &str| {
        let text = format!(
            r#"{{"cniVersion":"{version}","name":"n"{more},"plugins":[{{"type":"p"}},{{"type":"q"}}]}}"#
        );
        bench.conf("n.conflist", &text);
    };
    let cni = bench.cni();
    let mut attachment = bench.attachment(pod(1));
    attachment.netns = "/proc/self/ns/net".into();
    assert!(!cni.check(&pod(1)).await.unwrap(), "no lease");
    for name in ["p", "q"] {
        recorder(&bench, name, GOOD);
    }
    for (version, more) in [("0.3.1", ""), ("0.4.0", r#","disableCheck":true"#)] {
        conf(version, more);
        cni.load().await;
        cni.add(&attachment).await.unwrap();
        assert!(!cni.check(&pod(1)).await.unwrap(), "{version} {more}");
        cni.del(&pod(1), None).await.unwrap();
    }
    conf("0.4.0", "");
    cni.load().await;
    cni.add(&attachment).await.unwrap();
    fs::remove_file(bench.path("calls")).unwrap();
    assert!(cni.check(&pod(1)).await.unwrap());
    let call = format!("CHECK {} /proc/self/ns/net", pod(1));
    assert_eq!(calls(&bench), [call.clone(), call], "in ADD's order");
    let given = input(&bench, "CHECK-p.in");
    assert_eq!(
        given["prevResult"]["ips"][0]["address"], "10.9.0.2/24",
        "the first gets the chain's result too"
    );
    recorder(
        &bench,
        "p",
        r#"[ $CNI_COMMAND != CHECK ] || { echo '{"code":100,"msg":"eth0 is missing"}'; exit 1; }"#,
    );
    let error = cni.check(&pod(1)).await.unwrap_err();
    assert!(error.to_string().contains("CNI CHECK of plugin \"p\""), "{error}");
    assert_eq!(cni.leases().await.unwrap(), [pod(1)], "nothing is changed");
    // A network namespace that is gone, and an ADD that failed.
    cni.del(&pod(1), None).await.unwrap();
    attachment.netns = bench.path("gone");
    recorder(&bench, "p", GOOD);
    cni.add(&attachment).await.unwrap();
    assert!(!cni.check(&pod(1)).await.unwrap());
    cni.del(&pod(1), None).await.unwrap();
    recorder(&bench, "q", "[ $CNI_COMMAND != ADD ] || exit 1");
    cni.add(&attachment).await.unwrap_err();
    assert!(!cni.check(&pod(1)).await.unwrap());
}

#[tokio::test]
async fn configurations_without_a_version_and_results_of_any() {
    let bench = Bench::new();
    bench.conf("n.conflist", r#"{"name":"n","plugins":[{"type":"old"},{"type":"new"}]}"#);
    recorder(&bench, "old", r#"[ $CNI_COMMAND != ADD ] || echo '{"ip4":{"ip":"10.9.0.3/24"},"dns":{}}'"#);
    recorder(&bench, "new", GOOD);
    let cni = Cni::new(CniConfig { max_parallel: 1, ..bench.config() });
    assert!(cni.reload().await.is_ready());
    let ips = cni.add(&bench.attachment(pod(1))).await.unwrap();
    assert_eq!(ips.iter().map(ToString::to_string).collect::<Vec<_>>(), ["10.9.0.2"]);
    let given = input(&bench, "ADD-new.in");
    assert_eq!(
        (&given["cniVersion"], &given["prevResult"]["ip4"]["ip"]),
        (&"0.1.0".into(), &"10.9.0.3/24".into())
    );
    cni.del(&pod(1), None).await.unwrap();
    assert!(input(&bench, "DEL-new.in").get("prevResult").is_none());
}
