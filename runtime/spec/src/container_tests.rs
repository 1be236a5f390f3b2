use super::*;
use model::{ContainerId, EnvVar, PodConfig, PodId, PodPhase};

fn text(s: &str) -> Text {
    Text::new(s).unwrap()
}

fn pod(config: PodConfig) -> PodRecord {
    PodRecord { phase: PodPhase::Ready, ..PodRecord::new(PodId::from_random([1; 32]), config, 1) }
}

fn record(config: ContainerConfig) -> ContainerRecord {
    ContainerRecord {
        stop_signal: 15,
        ..ContainerRecord::new(ContainerId::from_random([2; 32]), PodId::from_random([1; 32]), config, 1)
    }
}

fn image() -> ImageFacts {
    ImageFacts {
        entrypoint: vec!["/entry".into()],
        cmd: vec!["serve".into()],
        env: vec!["A=image".into(), "B=image".into(), "odd".into(), "=odd".into()],
        user: "app:web".into(),
        working_dir: "srv".into(),
        stop_signal: String::new(),
        volumes: vec!["/data/".into(), "odd".into()],
    }
}

fn plan_in(sandbox: PodConfig, config: ContainerConfig) -> Result<ContainerPlan, Error> {
    let (pod, record) = (pod(sandbox), record(config));
    let host = HostFacts { cap_bounding: security::ALL, hostname: "node1".into(), devices: Vec::new() };
    container(ContainerInput {
        pod: &pod,
        container: &record,
        image: &image(),
        rootfs: RootfsPlan::default(),
        files: PodFiles::default(),
        image_layers: &mounts::ImageLayers::new(),
        cgroup: CgroupPlan::default(),
        seccomp: Some(SeccompProgram { instructions: vec![7] }),
        seccomp_flags: 2,
        apparmor: "mine".into(),
        selinux: None,
        keyring: "_ses.x".into(),
        host: &host,
    })
}

fn plan(config: ContainerConfig) -> Result<ContainerPlan, Error> {
    plan_in(PodConfig { hostname: "web-0".into(), ..PodConfig::default() }, config)
}

#[test]
fn command_lines() {
    let words = |command: &[&str], args: &[&str]| {
        let list = |words: &[&str]| words.iter().map(|word| text(word)).collect();
        let config =
            ContainerConfig { command: list(command), args: list(args), ..ContainerConfig::default() };
        plan(config).unwrap().process.args
    };
    assert_eq!(words(&[], &[]), [text("/entry"), text("serve")]);
    assert_eq!(words(&[], &["x"]), [text("/entry"), text("x")]);
    assert_eq!(words(&["sh"], &[]), [text("sh")]);
    assert_eq!(words(&["sh"], &["-c"]), [text("sh"), text("-c")]);
    let none = args(&ContainerConfig::default(), &ImageFacts::default()).unwrap_err();
    assert_eq!(none.field(), "config.command");
    let empty = ImageFacts { entrypoint: vec![String::new()], ..image() };
    assert_eq!(args(&ContainerConfig::default(), &empty).unwrap(), [text("serve")]);
    let with_args = ContainerConfig { args: vec![text("x")], ..ContainerConfig::default() };
    assert_eq!(args(&with_args, &empty).unwrap(), [text("x")]);
}

#[test]
fn hostname_variable_is_the_requests_then_the_images_then_the_pods() {
    let pod = pod(PodConfig { hostname: "web-0".into(), ..PodConfig::default() });
    let image = ImageFacts { env: vec!["HOSTNAME=0.0.0.0".into()], ..ImageFacts::default() };
    let host = HostFacts::default();
    let asked = EnvVar { key: "HOSTNAME".into(), value: text("mine") };
    let plain = env(&ContainerConfig::default(), &image, &pod, &host).unwrap();
    assert!(plain.contains(&text("HOSTNAME=0.0.0.0")), "{plain:?}");
    let config = ContainerConfig { envs: vec![asked], ..ContainerConfig::default() };
    let own = env(&config, &image, &pod, &host).unwrap();
    assert!(own.contains(&text("HOSTNAME=mine")) && own.len() == plain.len(), "{own:?}");
}

#[test]
fn environment_is_merged() {
    let var = |key: &str, value: &str| EnvVar { key: key.into(), value: text(value) };
    let bytes = EnvVar { key: "RAW".into(), value: Text::new([0xff, b'=']).unwrap() };
    let config = ContainerConfig {
        envs: vec![var("B", "1"), var("B", "2"), bytes],
        tty: true,
        ..ContainerConfig::default()
    };
    let env = plan(config).unwrap().process.env;
    let raw = Text::new(*b"RAW=\xff=").unwrap();
    let want =
        [text(DEFAULT_PATH), text("TERM=xterm"), text("HOSTNAME=web-0"), text("A=image"), text("B=2"), raw];
    assert_eq!(env, want);
}

#[test]
fn host_network_takes_the_nodes_name() {
    let mut sandbox = PodConfig::default();
    sandbox.security.namespaces.network = NamespaceMode::Node;
    let plan = plan_in(sandbox, ContainerConfig::default()).unwrap();
    assert!(plan.process.env.contains(&text("HOSTNAME=node1")));
    assert_eq!(
        (plan.namespaces.network, plan.namespaces.uts),
        (NamespaceSource::Host, NamespaceSource::Host)
    );
    assert_eq!((plan.namespaces.ipc, plan.namespaces.pid), (NamespaceSource::Pause, NamespaceSource::Pause));
}

#[test]
fn namespaces_follow_the_sandbox() {
    let with = |change: fn(&mut ContainerConfig)| {
        let mut config = ContainerConfig::default();
        change(&mut config);
        plan(config)
    };
    let refused = with(|c| c.security.namespaces.network = NamespaceMode::Node).unwrap_err();
    assert!(refused.field().ends_with("namespace_options.network"), "{refused}");
    assert!(with(|c| c.security.namespaces.ipc = NamespaceMode::Container).is_err());
    let own = with(|c| c.security.namespaces.pid = NamespaceMode::Container).unwrap();
    assert_eq!(own.namespaces.pid, NamespaceSource::New);
    assert!(with(|c| c.security.namespaces.pid = NamespaceMode::Target).is_err());
    let target = with(|c| {
        c.security.namespaces.pid = NamespaceMode::Target;
        c.security.namespaces.target = "ab".repeat(32);
    });
    let id: ContainerId = "ab".repeat(32).parse().unwrap();
    assert_eq!(target.unwrap().namespaces.pid, NamespaceSource::Container(id));
}

#[test]
fn users() {
    let with = |user: UserRequest, group| {
        let mut config = ContainerConfig::default();
        config.security.user = user;
        config.security.run_as_group = group;
        plan(config).map(|plan| plan.user)
    };
    assert_eq!(with(UserRequest::Root, None).unwrap().request, UserRequest::Image("app:web".into()));
    assert_eq!(with(UserRequest::Uid(7), Some(8)).unwrap().gid, Some(8));
}

#[test]
fn privileged_needs_a_privileged_sandbox() {
    let mut config = ContainerConfig::default();
    assert_eq!(security::privileged(&config.security, false), Ok(()));
    config.security.privileged = true;
    config.security.masked_paths = vec!["/proc/kcore".into()];
    let refused = security::privileged(&config.security, false).unwrap_err();
    assert_eq!(refused.field(), "config.linux.security_context.privileged");
    assert_eq!(security::privileged(&config.security, true), Ok(()));
    let plan = plan(config).unwrap();
    assert!(plan.privileged && plan.masked_paths.is_empty() && plan.process.seccomp.is_none());
    assert_eq!(plan.process.caps.permitted, security::ALL);
}

#[test]
fn remaining_fields() {
    let config = ContainerConfig { log_path: "web/0.log".into(), ..ContainerConfig::default() };
    let mut sandbox = PodConfig { log_directory: "/var/log/pods/x".into(), ..PodConfig::default() };
    let made = plan_in(sandbox.clone(), config.clone()).unwrap();
    let log = |sandbox: &PodConfig, config: &ContainerConfig| crate::log_plan(config, &sandbox.log_directory);
    assert_eq!(log(&sandbox, &config).unwrap(), Some(LogPlan { path: "web/0.log".into() }));
    assert_eq!((made.process.cwd.as_str(), made.process.umask), ("/srv", 0o022));
    assert_eq!(made.rootfs.folders, ["/data"]);
    assert_eq!((made.process.keyring.as_str(), made.process.seccomp_flags), ("_ses.x", 2));
    assert_eq!(made.process.apparmor, "mine");
    assert_eq!(made.process.seccomp, Some(SeccompProgram { instructions: vec![7] }));
    let climbing = ContainerConfig { log_path: "../x".into(), ..config.clone() };
    assert_eq!(log(&sandbox, &climbing).unwrap_err().field(), "config.log_path");
    let relative = ContainerConfig { working_dir: "srv".into(), ..config.clone() };
    assert_eq!(plan_in(sandbox.clone(), relative).unwrap_err().field(), "config.working_dir");
    sandbox.log_directory.clear();
    assert_eq!(log(&sandbox, &config).unwrap(), None);
}

fn labels(level: &str) -> SelinuxLabels {
    SelinuxLabels {
        process: format!("system_u:system_r:container_t:{level}"),
        file: format!("system_u:object_r:container_file_t:{level}"),
    }
}

/// A container with two volumes, of which one is to be relabelled, in a pod with the level `s0:c1,c2`.
fn labelled(selinux: Option<SelinuxLabels>, privileged: bool) -> ContainerPlan {
    let volume = |path: &str, selinux_relabel| model::Mount {
        container_path: path.into(),
        host_path: format!("/volumes{path}"),
        selinux_relabel,
        ..model::Mount::default()
    };
    let mut config = ContainerConfig {
        mounts: vec![volume("/a", true), volume("/b", false)],
        ..ContainerConfig::default()
    };
    config.security.privileged = privileged;
    let mut sandbox = pod(PodConfig::default());
    sandbox.config.security.privileged = privileged;
    sandbox.selinux = selinux.is_some().then(|| labels("s0:c1,c2"));
    let files = PodFiles { hostname: "/pod/hostname".into(), ..PodFiles::default() };
    let (record, host) = (record(config), HostFacts::default());
    container(ContainerInput {
        pod: &sandbox,
        container: &record,
        image: &image(),
        rootfs: RootfsPlan::default(),
        files,
        image_layers: &mounts::ImageLayers::new(),
        cgroup: CgroupPlan::default(),
        seccomp: None,
        seccomp_flags: 0,
        apparmor: String::new(),
        selinux,
        keyring: String::new(),
        host: &host,
    })
    .unwrap()
}

#[test]
fn processes_files_and_volumes_are_labelled() {
    let relabelled = |plan: &ContainerPlan| -> Vec<(String, String)> {
        let marked = plan.mounts.iter().filter(|mount| !mount.relabel.is_empty());
        marked.map(|mount| (mount.target.clone(), mount.relabel.clone())).collect()
    };
    let own = labels("s0:c1,c2");
    let plan = labelled(Some(own.clone()), false);
    assert_eq!((&plan.process.selinux, &plan.file_label), (&own.process, &own.file));
    assert_eq!(relabelled(&plan), [("/a".to_owned(), own.file.clone())]);

    let plan = labelled(Some(own.clone()), true);
    assert_eq!((plan.process.selinux.as_str(), &plan.file_label), ("", &own.file));
    assert_eq!(relabelled(&plan), []);
    let unconfined = SelinuxLabels { process: "system_u:system_r:spc_t:s0:c1,c2".into(), ..own };
    assert_eq!(relabelled(&labelled(Some(unconfined), false)), []);

    let plan = labelled(Some(labels("s0:c3,c4")), false);
    let shared = "system_u:object_r:container_file_t:s0".to_owned();
    let volume = ("/a".to_owned(), labels("s0:c3,c4").file);
    assert_eq!(relabelled(&plan), [volume, ("/etc/hostname".to_owned(), shared)]);

    let plan = labelled(None, false);
    assert_eq!((plan.process.selinux.as_str(), plan.file_label.as_str()), ("", ""));
    assert_eq!(relabelled(&plan), []);
}
