//! What an exec runs as: the container's own process, with another command.

use model::Text;
use wire::ProcessPlan;

/// TERM of a process with a terminal that names none.
pub(crate) const TERM: &str = "TERM=xterm";

/// What of a container's process its record keeps for execs: everything but the arguments.
pub fn template(process: &ProcessPlan) -> ProcessPlan {
    ProcessPlan { args: Vec::new(), terminal: false, ..process.clone() }
}

/// A process to start in a running container: environment, working directory, credentials, filter and oom
/// score of its init.
pub fn exec(template: &ProcessPlan, cmd: Vec<Text>, tty: bool) -> ProcessPlan {
    let mut plan = ProcessPlan { args: cmd, terminal: tty, ..template.clone() };
    if tty && !plan.env.iter().any(|entry| entry.as_bytes().starts_with(b"TERM=")) {
        plan.env.extend(Text::new(TERM));
    }
    plan
}

#[cfg(test)]
mod tests {
    use super::*;
    use wire::SeccompProgram;

    #[test]
    fn keeps_all_but_the_command() {
        let text = |s: &str| Text::new(s).unwrap();
        let init = ProcessPlan {
            args: vec![text("sleep")],
            env: vec![text("A=1")],
            cwd: "/srv".into(),
            no_new_privs: true,
            seccomp: Some(SeccompProgram { instructions: vec![1, 2] }),
            oom_score_adj: Some(999),
            ..ProcessPlan::default()
        };
        let kept = template(&init);
        assert!(kept.args.is_empty());
        let plain = exec(&kept, vec![text("true")], false);
        assert_eq!(plain, ProcessPlan { args: vec![text("true")], ..init.clone() });
        let with_tty = exec(&kept, vec![text("sh")], true);
        assert_eq!(with_tty.env, [text("A=1"), text("TERM=xterm")]);
        assert!(with_tty.terminal);
    }
}
