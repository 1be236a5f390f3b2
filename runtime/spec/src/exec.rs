//! What an exec runs as: the container's own process, with another command.

use model::{SeccompProfile, Text};
use wire::{ProcessPlan, SeccompProgram};

/// TERM of a process with a terminal that names none.
pub(crate) const TERM: &str = "TERM=xterm";

/// What of a container's process its record keeps for execs and for verbose status: all of it, but no
/// filter that can be had again. One of a Localhost profile stays, since its file may change or go while
/// the container lives; RuntimeDefault is our own table, and eleven KiB a container that nobody needs.
pub fn template(process: &ProcessPlan, profile: &SeccompProfile) -> ProcessPlan {
    let mut kept = process.clone();
    if !matches!(profile, SeccompProfile::Localhost(_)) {
        kept.seccomp = None;
    }
    kept
}

/// A process to start in a running container: environment, working directory, credentials and oom score of
/// its init. `seccomp` is the program of the container's profile as the compiler has it now; one that the
/// template kept wins. (For a Localhost profile that the template kept, pass None.)
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
    fn keeps_all_but_the_command() {
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
