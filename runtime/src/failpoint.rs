//! Named points where a test can end the daemon as kill -9 would: `COPEPOD_FAILPOINT=<name>`.

use std::sync::OnceLock;

/// The variable that selects the point.
const VARIABLE: &str = "COPEPOD_FAILPOINT";

/// Ends the process if the variable selects this point; otherwise it costs one comparison.
pub(crate) fn hit(name: &str) {
    static WANTED: OnceLock<Option<String>> = OnceLock::new();
    let wanted = WANTED.get_or_init(|| std::env::var(VARIABLE).ok().filter(|name| !name.is_empty()));
    if wanted.as_deref() == Some(name) {
        tracing::error!(name, "failpoint: the daemon ends here");
        crate::telemetry::flush(std::time::Duration::from_secs(1));
        std::process::abort();
    }
}
