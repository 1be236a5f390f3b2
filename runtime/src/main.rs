//! `copepod`: see `runtime::cli`.

use clap::Parser as _;
use std::error::Error as _;
use std::process::ExitCode;

fn main() -> ExitCode {
    let Err(error) = runtime::cli::Cli::parse().run() else {
        return ExitCode::SUCCESS;
    };
    // With its causes: the text of an error does not repeat its source's.
    let mut text = format!("copepod: {error}");
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(&format!(": {cause}"));
        source = cause.source();
    }
    eprintln!("{text}");
    ExitCode::FAILURE
}
