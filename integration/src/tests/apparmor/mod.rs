//! AppArmor: profiles of containers, execs and pause.
//!
//! On a host that does not enforce it, each test asserts what holds there instead, and prints so: what cannot be applied is
//! refused, and everything else starts.

mod default;
mod exec;

use std::fs::{self, File};
use std::io::Write as _;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result};
use cri_api::v1 as api;
use cri_api::v1::security_profile::ProfileType;

use crate::context::{Context, Pod};
use crate::expect::ensure;
use crate::runner::{Test, test};
use crate::shapes::{self, ContainerExt as _, PodExt as _};

pub(super) fn tests() -> Vec<Test> {
    let mut tests = vec![
        test!(named_profile_blocks_writes).ours(),
        test!(named_profile_allows_writes).ours(),
        test!(profile_that_is_not_loaded_is_refused).ours(),
        test!(field_wins_over_the_deprecated_string).ours(),
        test!(pause_has_the_profile_that_is_asked_for).ours(),
    ];
    tests.extend(default::tests());
    tests.extend(exec::tests());
    tests
}

/// Where the kernel lists and removes profiles.
const POLICY: &str = "/sys/kernel/security/apparmor";
/// The default profile.
const DEFAULT: &str = "copepod-default-v1";
/// A profile that forbids all writes to files.
const DENY: &str = "copepod-it-deny-write";
/// A profile that only logs them.
const AUDIT: &str = "copepod-it-audit-write";

/// Whether this host enforces AppArmor. If not, prints that the test asserts something else.
fn enforced(cx: &Context) -> bool {
    let enforced = crate::proc::has_apparmor();
    if !enforced {
        println!("      {}: this host has no AppArmor: what it cannot apply must be refused", cx.name);
    }
    enforced
}

/// Profiles that a test has loaded. Dropped, they are removed again.
struct Loaded(Vec<&'static str>);

impl Loaded {
    /// Loads profiles with these rules.
    fn new(profiles: &[(&'static str, &str)]) -> Result<Self> {
        let mut text = String::from("abi <abi/3.0>,\n");
        for (name, rules) in profiles {
            text.push_str(&format!("profile {name} flags=(attach_disconnected) {{\n{rules}\n}}\n"));
        }
        let mut parser = Command::new("apparmor_parser")
            .args(["--replace", "--skip-cache", "--quiet"])
            .stdin(Stdio::piped())
            .spawn()
            .context("run apparmor_parser (package apparmor)")?;
        parser.stdin.take().context("its input")?.write_all(text.as_bytes())?;
        let status = parser.wait()?;
        ensure!(status.success(), "apparmor_parser ended with {status} for {text}");
        Ok(Self(profiles.iter().map(|(name, _)| *name).collect()))
    }

    /// The two profiles that most tests need.
    fn usual() -> Result<Self> {
        let all = "file,\nnetwork,\ncapability,\nsignal,";
        Self::new(&[(DENY, &format!("{all}\ndeny /** w,")), (AUDIT, &format!("{all}\naudit /** w,"))])
    }
}

impl Drop for Loaded {
    fn drop(&mut self) {
        for name in &self.0 {
            drop(remove(name));
        }
    }
}

/// Removes a profile from the kernel.
fn remove(name: &str) -> Result<()> {
    let path = format!("{POLICY}/.remove");
    // The kernel takes the name in one write.
    let mut file = File::options().write(true).open(&path).context(path)?;
    Ok(file.write_all(name.as_bytes())?)
}

/// The profile of a process, without its mode.
fn label(pid: u32) -> Result<String> {
    let path = format!("/proc/{pid}/attr/apparmor/current");
    let text = fs::read_to_string(&path).with_context(|| path.clone())?;
    Ok(text.split(" (").next().unwrap_or_default().trim().to_owned())
}

fn profile(kind: ProfileType, name: &str) -> Option<api::SecurityProfile> {
    shapes::seccomp(kind, name)
}

/// The fields for AppArmor: the message, and the deprecated string.
#[derive(Debug, Clone)]
struct Asked {
    message: Option<api::SecurityProfile>,
    string: String,
}

impl Asked {
    fn message(kind: ProfileType, name: &str) -> Self {
        Self { message: profile(kind, name), string: String::new() }
    }

    fn string(text: &str) -> Self {
        Self { message: None, string: text.to_owned() }
    }

    fn nothing() -> Self {
        Self::string("")
    }

    /// All ways to name a profile of the node.
    fn each(name: &str) -> [Self; 4] {
        let prefixed = format!("localhost/{name}");
        let message = Self::message(ProfileType::Localhost, name);
        [
            message.clone(),
            Self::message(ProfileType::Localhost, &prefixed),
            Self::string(&prefixed),
            // kubelet fills in both.
            Self { string: prefixed, ..message },
        ]
    }

    #[expect(deprecated, reason = "the deprecated field is tested too")]
    fn put(self, mut config: api::ContainerConfig) -> api::ContainerConfig {
        let security = config.security();
        (security.apparmor, security.apparmor_profile) = (self.message, self.string);
        config
    }
}

/// Starts a sleeping container and returns its id and the profile of its init.
async fn labelled(cx: &Context, pod: &Pod, name: &str, asked: Asked) -> Result<(String, String)> {
    let id = cx.start(pod, &asked.put(cx.sleeper(name))).await?;
    let found = label(cx.pid(&id).await?)?;
    Ok((id, found))
}

/// A host without AppArmor must refuse a container that names this profile.
async fn refused_without(cx: &Context, pod: &Pod, asked: Asked, profile: &str) -> Result<()> {
    let refused = cx.create(pod, &asked.clone().put(cx.sleeper("refused"))).await;
    let error = format!("{:#}", refused.err().with_context(|| format!("{asked:?} was accepted"))?);
    ensure!(error.contains("no AppArmor") && error.contains(profile), "{asked:?}: {error}");
    Ok(())
}

/// Runs a container that writes a file under a named profile and compares its exit code, for each way to name it.
async fn writes(cx: &Context, profile: &'static str, may: bool) -> Result<()> {
    let pod = cx.pod().await?;
    if !enforced(cx) {
        for asked in Asked::each(profile) {
            refused_without(cx, &pod, asked, profile).await?;
        }
        return Ok(());
    }
    let _loaded = Loaded::usual()?;
    for (place, asked) in Asked::each(profile).into_iter().enumerate() {
        let config = shapes::container(
            &format!("touch-{place}"),
            &crate::fixture::Fixture::image("busybox"),
            &["/bin/touch", "/tmp/file"],
        );
        let status = cx.run(&pod, &asked.clone().put(config)).await?;
        let log = crate::logfile::Log::read(&status.log_path)?.text(Some("stderr"));
        ensure!((status.exit_code == 0) == may, "{asked:?}: exit code {}: {log}", status.exit_code);
        ensure!(may || log.contains("Permission denied"), "{asked:?}: failed for another reason: {log}");
        let (id, found) = labelled(cx, &pod, &format!("named-{place}"), asked.clone()).await?;
        ensure!(found == profile, "{asked:?}: container {id} has the profile {found:?}");
    }
    Ok(())
}

async fn named_profile_blocks_writes(cx: Context) -> Result<()> {
    writes(&cx, DENY, false).await
}

async fn named_profile_allows_writes(cx: Context) -> Result<()> {
    writes(&cx, AUDIT, true).await
}

async fn profile_that_is_not_loaded_is_refused(cx: Context) -> Result<()> {
    let pod = cx.pod().await?;
    let name = "copepod-it-not-loaded";
    let enforced = enforced(&cx);
    for asked in Asked::each(name) {
        if !enforced {
            refused_without(&cx, &pod, asked, name).await?;
            continue;
        }
        let refused = cx.create(&pod, &asked.clone().put(cx.sleeper("refused"))).await;
        let error = format!("{:#}", refused.err().with_context(|| format!("{asked:?} was accepted"))?);
        ensure!(error.contains(name) && error.contains("not loaded"), "{asked:?}: {error}");
    }
    let listed = cx.cri.containers(None).await?;
    ensure!(listed.is_empty(), "a refused container is listed: {listed:?}");
    // The start of an installed profile's name is another name.
    for wrong in ["", "copepod-default", "copepod-default-v1 (enforce)", "unconfined", "a\nb"] {
        let asked = Asked::message(ProfileType::Localhost, wrong);
        let refused = cx.create(&pod, &asked.put(cx.sleeper("refused"))).await;
        ensure!(refused.is_err(), "profile {wrong:?} was accepted");
    }
    Ok(())
}

/// The deprecated string does not count beside the message, whatever it says.
async fn field_wins_over_the_deprecated_string(cx: Context) -> Result<()> {
    let pod = cx.pod().await?;
    let both = |message: api::SecurityProfile, string: &str| Asked {
        message: Some(message),
        string: string.to_owned(),
    };
    let unconfined = profile(ProfileType::Unconfined, "").unwrap_or_default();
    let odd = both(unconfined, "no prefix");
    let named = profile(ProfileType::Localhost, AUDIT).unwrap_or_default();
    let named = both(named, "localhost/copepod-it-not-loaded");
    if !enforced(&cx) {
        cx.start(&pod, &odd.put(cx.sleeper("odd"))).await?;
        return refused_without(&cx, &pod, named, AUDIT).await;
    }
    let _loaded = Loaded::usual()?;
    for (name, asked, wanted) in [("odd", odd, "unconfined"), ("named", named, AUDIT)] {
        let (_, found) = labelled(&cx, &pod, name, asked).await?;
        ensure!(found == wanted, "{name}: {found:?} instead of {wanted:?}");
    }
    Ok(())
}

/// Pause has no profile, as with containerd, unless the sandbox names one.
async fn pause_has_the_profile_that_is_asked_for(cx: Context) -> Result<()> {
    let enforced = enforced(&cx);
    let _loaded = enforced.then(Loaded::usual).transpose()?;
    for (kind, name, wanted) in [
        (None, "", "unconfined"),
        (Some(ProfileType::Unconfined), "", "unconfined"),
        (Some(ProfileType::RuntimeDefault), "", DEFAULT),
        (Some(ProfileType::Localhost), AUDIT, AUDIT),
    ] {
        let mut config = cx.pod_config();
        config.security().apparmor = kind.and_then(|kind| profile(kind, name));
        if !enforced && wanted == AUDIT {
            let refused = cx.cri.run_pod(&config).await;
            ensure!(refused.is_err(), "a sandbox with a profile that cannot be applied was started");
            continue;
        }
        let pod = cx.pod_of(config).await?;
        if enforced {
            let found = label(cx.node.pause(&pod.id)?.pid)?;
            ensure!(found == wanted, "{kind:?}: pause has the profile {found:?} instead of {wanted:?}");
        }
        cx.cri.drop_pod(&pod.id).await?;
    }
    let mut config = cx.pod_config();
    config.security().apparmor = profile(ProfileType::Localhost, "copepod-it-not-loaded");
    ensure!(cx.cri.run_pod(&config).await.is_err(), "a sandbox with an unknown profile was started");
    Ok(())
}
