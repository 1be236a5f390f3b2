//! Converts the shim's exit facts to the exit of a record, with CRI's reasons.

use model::Exit;
use wire::ExitFacts;

/// Exit code of a container whose execve failed, as containerd reports it.
const NEVER_RAN: i32 = 128;

/// Converts exit facts. `now` is used if they have no time.
pub(crate) fn exit_of(facts: &ExitFacts, now: i64) -> Exit {
    let (reason, message) = match &facts.start_error {
        Some(error) => ("StartError", error.clone()),
        None if facts.oom_killed => ("OOMKilled", String::new()),
        None if facts.code == 0 => ("Completed", String::new()),
        None => ("Error", String::new()),
    };
    let code = if facts.start_error.is_some() { NEVER_RAN } else { facts.code };
    Exit {
        code,
        finished_at: if facts.finished_at == 0 { now } else { facts.finished_at },
        oom_killed: facts.oom_killed,
        reason: reason.to_owned(),
        message,
    }
}

/// The exit of a container whose execve failed with this message.
pub(crate) fn never_ran(message: String, now: i64) -> Exit {
    exit_of(&ExitFacts { start_error: Some(message), ..ExitFacts::default() }, now)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_of_exits() {
        let facts = |code, oom_killed| ExitFacts { code, oom_killed, finished_at: 5, ..ExitFacts::default() };
        assert_eq!(exit_of(&facts(0, false), 9).reason, "Completed");
        assert_eq!(exit_of(&facts(3, false), 9).reason, "Error");
        assert_eq!(exit_of(&facts(137, true), 9).reason, "OOMKilled");
        let never = never_ran("no such file".into(), 9);
        assert_eq!(
            (never.code, never.reason.as_str(), never.message.as_str()),
            (128, "StartError", "no such file")
        );
        assert!(never.finished_at > 0);
    }
}
