//! Decisions, with a file in place of the kernel's list and a script in place of the parser.

use super::*;
use std::os::unix::fs::PermissionsExt as _;
use tempfile::TempDir;

/// A node that enforces AppArmor, with this list, whose parser runs this line (`$LIST` is the list).
fn node(list: Option<&str>, parser: Option<&str>) -> (AppArmor, TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let (file, script) = (dir.path().join("profiles"), dir.path().join("parser"));
    if let Some(list) = list {
        std::fs::write(&file, list).unwrap();
    }
    if let Some(line) = parser {
        let text = format!("#!/bin/sh\nLIST={}\necho ran >> $LIST.ran\n{line}\n", file.display());
        std::fs::write(&script, text).unwrap();
        std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).unwrap();
    }
    lanes::start(false);
    (AppArmor::with(Support::On, file, vec![dir.path().join("absent"), script]), dir)
}

/// How often the parser ran.
fn runs(dir: &TempDir) -> usize {
    std::fs::read_to_string(dir.path().join("profiles.ran")).unwrap_or_default().lines().count()
}

async fn ask(apparmor: &AppArmor, asked: AppArmorProfile) -> Result<String, Error> {
    apparmor.profile(Subject { privileged: false, asked: &asked, by_default: true }).await
}

async fn privileged(apparmor: &AppArmor, asked: AppArmorProfile) -> Result<String, Error> {
    apparmor.profile(Subject { privileged: true, asked: &asked, by_default: true }).await
}

const LOADS: &str = "echo 'copepod-default-v1 (enforce)' >> $LIST";

#[tokio::test]
async fn the_default_profile_is_loaded_once() {
    let (apparmor, dir) = node(Some("other (enforce)\n"), Some(LOADS));
    apparmor.start().await;
    for asked in [AppArmorProfile::Unset, AppArmorProfile::RuntimeDefault] {
        assert_eq!(ask(&apparmor, asked.clone()).await.unwrap(), NAME);
        assert_eq!(privileged(&apparmor, asked).await.unwrap(), "");
    }
    assert_eq!(ask(&apparmor, AppArmorProfile::Unconfined).await.unwrap(), "");
    assert_eq!((runs(&dir), apparmor.default_profile(), apparmor.problem()), (1, Some(NAME), None));
    // Pause gets none by default.
    let pause = Subject { privileged: false, asked: &AppArmorProfile::Unset, by_default: false };
    assert_eq!(apparmor.profile(pause).await.unwrap(), "");
    // Somebody has removed it.
    std::fs::write(dir.path().join("profiles"), "").unwrap();
    let (one, two) =
        tokio::join!(ask(&apparmor, AppArmorProfile::Unset), ask(&apparmor, AppArmorProfile::RuntimeDefault));
    assert_eq!((one.unwrap().as_str(), two.unwrap().as_str(), runs(&dir)), (NAME, NAME, 2));
    // What has worked is not given up silently.
    std::fs::remove_file(dir.path().join("profiles")).unwrap();
    let error = ask(&apparmor, AppArmorProfile::Unset).await.unwrap_err().text();
    assert!(error.contains("is securityfs mounted"), "{error}");
}

#[tokio::test]
async fn named_profiles_must_be_loaded() {
    let (apparmor, dir) = node(Some("mine (complain)\n"), None);
    let named = |name: &str| AppArmorProfile::Localhost(name.into());
    assert_eq!(ask(&apparmor, named("mine")).await.unwrap(), "mine");
    assert_eq!(privileged(&apparmor, named("mine")).await.unwrap(), "mine", "it was asked for");
    let error = ask(&apparmor, named("min")).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::FailedPrecondition);
    assert!(error.text().contains("\"min\" (Localhost) is not loaded"), "{}", error.text());
    std::fs::remove_file(dir.path().join("profiles")).unwrap();
    let error = ask(&apparmor, named("mine")).await.unwrap_err().text();
    assert!(error.contains("mine") && error.contains("is securityfs mounted"), "{error}");
}

/// Without the parser or the list, other runtimes start containers without a profile too.
#[tokio::test]
async fn a_node_that_cannot_have_the_profile_runs_containers_without() {
    for (list, parser) in [(Some(""), None), (None, Some(LOADS))] {
        let (apparmor, _dir) = node(list, parser);
        apparmor.start().await;
        assert_eq!(ask(&apparmor, AppArmorProfile::Unset).await.unwrap(), "");
        let error = ask(&apparmor, AppArmorProfile::RuntimeDefault).await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::FailedPrecondition);
        let remedy = if list.is_some() { "install the package apparmor" } else { "is securityfs mounted" };
        assert!(error.text().contains(remedy), "{}", error.text());
        assert!(apparmor.default_profile().is_none() && apparmor.problem().unwrap().contains(remedy));
    }
}

#[tokio::test]
async fn a_parser_that_fails_is_not_run_for_every_container() {
    let (apparmor, dir) = node(Some(""), Some("echo no memory; exit 1"));
    apparmor.start().await;
    for asked in [AppArmorProfile::Unset, AppArmorProfile::RuntimeDefault] {
        let error = ask(&apparmor, asked).await.unwrap_err().text();
        assert!(error.contains("not available on this node") && error.contains("no memory"), "{error}");
    }
    assert_eq!(runs(&dir), 1);
    assert_eq!(ask(&apparmor, AppArmorProfile::Unconfined).await.unwrap(), "");
    // An operator has loaded it.
    std::fs::write(dir.path().join("profiles"), "copepod-default-v1 (enforce)\n").unwrap();
    assert_eq!(ask(&apparmor, AppArmorProfile::Unset).await.unwrap(), NAME);
    assert_eq!(apparmor.problem(), None);
}

#[tokio::test]
async fn without_apparmor_nothing_is_looked_up() {
    for support in [Support::Absent, Support::Off] {
        let apparmor = AppArmor::with(support, "/nonexistent".into(), Vec::new());
        apparmor.start().await;
        for asked in [AppArmorProfile::Unset, AppArmorProfile::RuntimeDefault, AppArmorProfile::Unconfined] {
            assert_eq!(ask(&apparmor, asked).await.unwrap(), "");
        }
        // `convert` has refused it; a record of an earlier start may have it.
        assert!(ask(&apparmor, AppArmorProfile::Localhost("mine".into())).await.is_err());
        assert_eq!((apparmor.default_profile(), apparmor.problem()), (None, None));
    }
}
