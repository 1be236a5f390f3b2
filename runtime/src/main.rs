//! `copepod`: see `runtime::cli`.

use clap::Parser as _;
use std::process::ExitCode;

fn main() -> ExitCode {
    match runtime::cli::Cli::parse().run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("copepod: {}", error.describe());
            ExitCode::FAILURE
        }
    }
}
