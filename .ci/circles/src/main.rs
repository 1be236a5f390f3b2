//! Fails where modules of one crate use each other, directly or round a longer circle.
//!
//! ```text
//! crate's root file ── scan ──► arrows (who names whom, in which line) ── graph ──► circles
//! ```
//!
//! Arguments: the file of known arrows, then the root files (`lib.rs`, `main.rs`) of the crates. A known arrow is one
//! that still closes a circle; the list can only shrink: an arrow that is listed and closes none fails as well.

mod graph;
mod scan;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1).map(PathBuf::from);
    let Some(known) = arguments.next() else {
        eprintln!("usage: circles KNOWN ROOT...");
        return ExitCode::FAILURE;
    };
    match check(&known, &arguments.collect::<Vec<_>>()) {
        Ok(faults) if faults.is_empty() => {
            println!("circles: none but those known");
            ExitCode::SUCCESS
        }
        Ok(faults) => {
            faults.iter().for_each(|fault| println!("circles: {fault}"));
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("circles: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Every circle of the crates at `roots`, and every line of `known` that is out of date.
fn check(known: &Path, roots: &[PathBuf]) -> Result<Vec<String>, scan::Error> {
    let text = std::fs::read_to_string(known)
        .map_err(|source| scan::Error::Read { path: known.to_owned(), source })?;
    let mut levels = Vec::new();
    for root in roots {
        levels.extend(graph::levels(&scan::scan(root)?));
    }
    Ok(graph::judge(&levels, &text))
}
