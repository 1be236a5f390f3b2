//! The plan of an exec: the process of the container's init with another command.

use model::{SeccompProfile, Text};
use wire::{ProcessPlan, SeccompProgram};

/// TERM for a process with a terminal whose environment has none.
pub(crate) const TERM: &str = "TERM=xterm";

/// The part of a container's process plan that its record keeps for execs and for verbose status. It leaves
/// out a filter that can be compiled again: RuntimeDefault is our own table, and its program would take
/// eleven KiB per container. The filter of a Localhost profile is kept, because the file may change or vanish
/// while the container runs.
pub fn template(process: &ProcessPlan, profile: &SeccompProfile) -> ProcessPlan {
    let mut kept = process.clone();
    if !matches!(profile, SeccompProfile::Localhost(_)) {
        kept.seccomp = None;
    }
    kept
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
}
