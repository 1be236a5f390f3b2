//! The plan of an exec: the process of the container's init with another command.

use model::{ContainerRecord, EnvVar, SeccompProfile, Text};
use serde::Deserialize as _;
use std::collections::HashMap;
use wire::{ProcessPlan, SeccompProgram};

/// TERM for a process with a terminal whose environment has none.
pub(crate) const TERM: &str = "TERM=xterm";

/// The part of a container's process plan that its record keeps for execs and for verbose status. It leaves
/// out a filter that can be compiled again: RuntimeDefault is our own table, and its program would take
/// eleven KiB per container. The filter of a Localhost profile is kept, because the file may change or vanish
/// while the container runs.
fn template(process: &ProcessPlan, profile: &SeccompProfile) -> ProcessPlan {
    let mut kept = process.clone();
    if !matches!(profile, SeccompProfile::Localhost(_)) {
        kept.seccomp = None;
    }
    kept
}

/// Stores in the record what an exec inherits: init's process without a filter that can be compiled again. The
/// requested environment is part of it and is removed from the configuration, because it can be large;
/// [`requested_env`] restores it.
///
/// # Errors
/// The template cannot be encoded as JSON.
pub fn keep(record: &mut ContainerRecord, process: &ProcessPlan) -> Result<(), serde_json::Error> {
    let template = template(process, &record.config.security.seccomp);
    let places: HashMap<&[u8], u32> =
        template.env.iter().zip(0..).filter_map(|(entry, at)| Some((split(entry)?.0, at))).collect();
    let asked = record.config.envs.iter().filter_map(|var| places.get(var.key.as_bytes()).copied()).collect();
    record.exec_template = Some(serde_json::to_value(&template)?);
    record.asked_env = asked;
    record.config.envs = Vec::new();
    Ok(())
}

/// The requested variables (CRI `ContainerConfig.envs`) with the values that init got. If a name was requested twice,
/// both have the last value.
pub fn requested_env(record: &ContainerRecord) -> Vec<EnvVar> {
    if record.asked_env.is_empty() {
        return record.config.envs.clone();
    }
    let entry = |at: &u32| {
        let entry = record.exec_template.as_ref()?.get("env")?.get(usize::try_from(*at).ok()?)?;
        let entry = Text::deserialize(entry).ok()?;
        let (key, value) = split(&entry)?;
        Some(EnvVar { key: String::from_utf8(key.to_vec()).ok()?, value: Text::new(value)? })
    };
    record.asked_env.iter().filter_map(entry).collect()
}

/// Name and value of an entry of an environment.
fn split(entry: &Text) -> Option<(&[u8], &[u8])> {
    let bytes = entry.as_bytes();
    let at = bytes.iter().position(|byte| *byte == b'=')?;
    Some((bytes.get(..at)?, bytes.get(at + 1..)?))
}

/// The plan of a process in a running container: it has the environment, working directory, credentials and
/// oom score of the container's init. `seccomp` is the program of the container's profile as compiled now; if
/// the template kept one, that is used instead. (For a Localhost profile kept in the template, pass None.)
pub fn exec(
    template: &ProcessPlan,
    seccomp: Option<SeccompProgram>,
    cmd: Vec<Text>,
    tty: bool,
) -> ProcessPlan {
    let mut plan = ProcessPlan { args: cmd, terminal: tty, ..template.clone() };
    if plan.seccomp.is_none() {
        plan.seccomp = seccomp;
    }
    if tty && !plan.env.iter().any(|entry| entry.as_bytes().starts_with(b"TERM=")) {
        plan.env.extend(Text::new(TERM));
    }
    plan
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::{ContainerConfig, ContainerId, ContainerPhase, PodId};

    #[test]
    fn template_keeps_everything_but_the_command() {
        let text = |s: &str| Text::new(s).unwrap();
        let filter = |number| Some(SeccompProgram { instructions: vec![number] });
        let init = ProcessPlan {
            args: vec![text("sleep")],
            env: vec![text("A=1")],
            cwd: "/srv".into(),
            no_new_privs: true,
            seccomp: filter(1),
            apparmor: "mine".into(),
            oom_score_adj: Some(999),
            ..ProcessPlan::default()
        };
        let kept = template(&init, &SeccompProfile::RuntimeDefault);
        assert_eq!(kept, ProcessPlan { seccomp: None, ..init.clone() });
        let plain = exec(&kept, filter(2), vec![text("true")], false);
        assert_eq!(plain, ProcessPlan { args: vec![text("true")], seccomp: filter(2), ..init.clone() });
        let with_tty = exec(&kept, None, vec![text("sh")], true);
        assert_eq!(with_tty.env, [text("A=1"), text("TERM=xterm")]);
        assert!(with_tty.terminal && with_tty.seccomp.is_none());

        let kept = template(&init, &SeccompProfile::Localhost("/p.json".into()));
        assert_eq!(exec(&kept, None, vec![text("true")], false).seccomp, filter(1));
    }

    fn record(envs: Vec<EnvVar>) -> ContainerRecord {
        ContainerRecord {
            phase: ContainerPhase::Created,
            stop_signal: 15,
            ..ContainerRecord::new(
                ContainerId::from_random([2; 32]),
                PodId::from_random([1; 32]),
                ContainerConfig { envs, ..ContainerConfig::default() },
                1,
            )
        }
    }

    #[test]
    fn an_environment_is_kept_once_and_shown_as_it_was_asked_for() {
        let text = |s: &str| Text::new(s).unwrap();
        let var = |key: &str, value: &str| EnvVar { key: key.into(), value: text(value) };
        let raw = EnvVar { key: "RAW".into(), value: Text::new([0xff, b'=']).unwrap() };
        let mut record = record(vec![var("A", "a"), var("B", "1"), var("B", "2"), raw.clone()]);
        let env = vec![
            text("PATH=/bin"),
            // The image's variable with the requested value.
            text("B=2"),
            text("IMAGE=i"),
            text("A=a"),
            Text::new(*b"RAW=\xff=").unwrap(),
            text("HOME=/"),
        ];
        let init = ProcessPlan { env: env.clone(), ..ProcessPlan::default() };
        keep(&mut record, &init).unwrap();
        assert!(record.config.envs.is_empty());
        assert_eq!(requested_env(&record), [var("A", "a"), var("B", "2"), var("B", "2"), raw]);

        let kept = serde_json::to_string(&record).unwrap();
        assert_eq!(kept.matches("IMAGE").count() + kept.matches("A=a").count(), 2, "{kept}");
        let read: ContainerRecord = serde_json::from_str(&kept).unwrap();
        assert_eq!(read, record);
        let template: ProcessPlan = serde_json::from_value(read.exec_template.unwrap()).unwrap();
        assert_eq!(exec(&template, None, vec![text("true")], false).env, env);
    }

    /// Earlier versions also kept the requested variables in the configuration.
    #[test]
    fn a_record_that_holds_the_environment_twice_is_read() {
        let var = EnvVar { key: "A".into(), value: Text::new("1").unwrap() };
        let template = serde_json::json!({ "env": ["PATH=/bin", "A=1"] });
        let old = ContainerRecord { exec_template: Some(template), ..record(vec![var.clone()]) };
        let mut text = serde_json::to_value(&old).unwrap();
        assert!(text.as_object_mut().unwrap().remove("asked_env").is_none(), "an empty one is not written");
        let read: ContainerRecord = serde_json::from_value(text).unwrap();
        assert_eq!(requested_env(&read), [var]);
    }
}
