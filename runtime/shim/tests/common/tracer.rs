//! A tracer of containers' processes.

use std::process::Command;

/// Traces processes without waiting for them, until it is dropped.
pub(crate) struct Tracer(std::process::Child);

impl Tracer {
    /// In a separate process, because a tracing thread would have to wait here.
    pub(crate) fn of(pids: &[u32], request: i64, options: i64) -> Self {
        use std::io::BufRead as _;
        let calls: String = pids
            .iter()
            .map(|pid| format!("syscall({}, {request}, {pid}, 0, {options}) == 0 or die $!;", trace_call()))
            .collect();
        let mut child = Command::new("/usr/bin/perl")
            .args(["-e", &format!("$| = 1; {calls} print \"ready\\n\"; sleep 1000;")])
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        std::io::BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "ready\n");
        Self(child)
    }
}

impl Drop for Tracer {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// Number of ptrace(2).
fn trace_call() -> u32 {
    if cfg!(target_arch = "aarch64") { 117 } else { 101 }
}
