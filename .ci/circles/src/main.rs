//! Fails on cyclic imports (circles): modules of one crate that use each other, directly or through others.
//!
//! ```text
//! crate's root file ── scan ──► arrows (who names whom, in which line) ── graph ──► circles
//! ```
//!
//! Arguments: the root files (`lib.rs`, `main.rs`) of the crates.

mod graph;
mod scan;
#[cfg(test)]
mod tests;

use std::path::PathBuf;
use std::process::ExitCode;

fn main() -> ExitCode {
    let roots: Vec<PathBuf> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    if roots.is_empty() {
        eprintln!("usage: circles ROOT...");
        return ExitCode::FAILURE;
    }
    match check(&roots) {
        Ok(circles) if circles.is_empty() => {
            println!("circles: none");
            ExitCode::SUCCESS
        }
        Ok(circles) => {
            circles.iter().for_each(|circle| println!("circles: {circle}"));
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("circles: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Every circle of the crates at `roots`.
fn check(roots: &[PathBuf]) -> Result<Vec<String>, scan::Error> {
    let mut levels = Vec::new();
    for root in roots {
        levels.extend(graph::levels(&scan::scan(root)?));
    }
    Ok(graph::described(&levels))
}
