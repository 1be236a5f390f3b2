//! critest: one run of it and the report that it writes (ginkgo's JSON).

use std::fmt;
use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde_json::Value;

use super::{Order, Transport};
use crate::expect::ensure;

/// Time limit of a run; it takes about a minute.
const LIMIT: Duration = Duration::from_secs(30 * 60);

/// How a spec ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Outcome {
    /// It passed.
    Passed,
    /// critest skipped it, with its reason. Its benchmarks are deselected without one.
    Skipped(String),
    /// Anything else, with its message.
    Failed(String),
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Passed => f.write_str("it passed"),
            Self::Skipped(reason) => write!(f, "it was skipped: {reason}"),
            Self::Failed(message) => write!(f, "it failed: {message}"),
        }
    }
}

/// One spec of a report.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Spec {
    /// The texts of its containers and its own.
    pub(super) name: String,
    /// How it ended.
    pub(super) outcome: Outcome,
}

/// Runs critest and returns its specs; it skips those without `focus` in their names. Its output and its report are
/// `<transport>.log` and `<transport>.json` in `reports`. That specs fail is no error here.
pub(super) async fn run(
    critest: &Path,
    socket: &Path,
    transport: Transport,
    order: Order,
    focus: &str,
    reports: &Path,
) -> Result<Vec<Spec>> {
    let (log, json) = (reports.join(format!("{transport}.log")), reports.join(format!("{transport}.json")));
    // A configuration of crictl's on this machine would otherwise name another runtime.
    let config = reports.join("crictl.yaml");
    fs::write(&config, "")?;
    // A report of an earlier run must not pass for this one's.
    drop(fs::remove_file(&json));
    let out = fs::File::create(&log).with_context(|| log.display().to_string())?;
    let mut command = tokio::process::Command::new(critest);
    command
        .arg(format!("--config={}", config.display()))
        .arg(format!("--runtime-endpoint=unix://{}", socket.display()))
        .arg(format!("--ginkgo.seed={}", order.0))
        .arg(format!("--ginkgo.json-report={}", json.display()))
        .args(["--ginkgo.randomize-all", "--ginkgo.no-color"])
        .args(transport.flags())
        .args((!focus.is_empty()).then(|| format!("--ginkgo.focus={focus}")))
        .stdin(Stdio::null())
        .stdout(out.try_clone()?)
        .stderr(out)
        .kill_on_drop(true);
    let mut child = command.spawn().with_context(|| format!("start {}", critest.display()))?;
    let status = crate::wait::timeout(LIMIT, child.wait())
        .await
        .with_context(|| format!("critest did not end within {LIMIT:?}; see {}", log.display()))??;
    let text = fs::read_to_string(&json)
        .with_context(|| format!("critest ended with {status} and no report; see {}", log.display()))?;
    specs(&text).with_context(|| format!("critest's report {}", json.display()))
}

/// The specs in a report.
fn specs(report: &str) -> Result<Vec<Spec>> {
    let suites: Vec<Value> = serde_json::from_str(report)?;
    let specs: Vec<Spec> = suites
        .iter()
        .filter_map(|suite| suite.get("SpecReports")?.as_array())
        .flatten()
        // Set-up and tear-down of the suite are in the list too; they count if they failed.
        .filter(|spec| text(spec, "LeafNodeType") == "It" || text(spec, "State") != "passed")
        .map(|spec| Spec { name: name(spec), outcome: outcome(spec) })
        .collect();
    ensure!(!specs.is_empty(), "it contains no spec");
    Ok(specs)
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value.get(key).and_then(Value::as_str).unwrap_or_default()
}

fn name(spec: &Value) -> String {
    let containers = spec.get("ContainerHierarchyTexts").and_then(Value::as_array);
    let mut parts: Vec<&str> = containers.into_iter().flatten().filter_map(Value::as_str).collect();
    parts.push(match text(spec, "LeafNodeText") {
        "" => text(spec, "LeafNodeType"),
        named => named,
    });
    parts.join(" ")
}

fn outcome(spec: &Value) -> Outcome {
    let message = spec.get("Failure").map(|failure| text(failure, "Message")).unwrap_or_default().to_owned();
    match text(spec, "State") {
        "passed" => Outcome::Passed,
        "skipped" => Outcome::Skipped(if message.is_empty() { String::from("deselected") } else { message }),
        "failed" => Outcome::Failed(message),
        // timedout, interrupted, panicked, aborted, pending.
        state => Outcome::Failed(format!("{state} {message}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn specs_have_their_full_names_and_reasons() {
        let spec = |state: &str, message: &str| {
            json!({"ContainerHierarchyTexts": ["[k8s.io] A", "b"], "LeafNodeType": "It", "LeafNodeText": state,
                   "State": state, "Failure": {"Message": message}})
        };
        let suite = json!([{"SpecReports": [
            {"ContainerHierarchyTexts": null, "LeafNodeType": "BeforeSuite", "LeafNodeText": "", "State": "passed"},
            {"ContainerHierarchyTexts": null, "LeafNodeType": "AfterSuite", "LeafNodeText": "", "State": "panicked"},
            spec("passed", ""), spec("skipped", "no AppArmor"), spec("skipped", ""), spec("failed", "expected 1"),
        ]}]);
        let found: Vec<(String, Outcome)> =
            specs(&suite.to_string()).unwrap().into_iter().map(|s| (s.name, s.outcome)).collect();
        let wanted = [
            ("AfterSuite", Outcome::Failed("panicked ".into())),
            ("[k8s.io] A b passed", Outcome::Passed),
            ("[k8s.io] A b skipped", Outcome::Skipped("no AppArmor".into())),
            ("[k8s.io] A b skipped", Outcome::Skipped("deselected".into())),
            ("[k8s.io] A b failed", Outcome::Failed("expected 1".into())),
        ];
        assert_eq!(found, wanted.map(|(name, outcome)| (name.to_owned(), outcome)));
        assert!(specs("[]").is_err() && specs("{").is_err());
    }
}
