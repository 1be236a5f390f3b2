//! The command line: `copepod` runs the daemon, `copepod config …` prints or checks configurations.

use crate::config::{self, Arguments, Config, Overrides};
use clap::{Args, Parser, Subcommand};
use std::io::Write as _;
use std::path::PathBuf;

/// A container runtime for Kubernetes.
#[derive(Debug, Parser)]
#[command(name = "copepod", version, about = "A container runtime for Kubernetes (CRI)")]
pub struct Cli {
    #[command(flatten)]
    daemon: Daemon,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Args)]
struct Daemon {
    /// Configuration file; conf.d/*.toml beside it are read too [default: /etc/copepod/config.toml, which may be absent]
    #[arg(long, value_name = "PATH", global = true)]
    config: Option<PathBuf>,
    /// CRI socket, instead of `socket` in the configuration
    #[arg(long, value_name = "PATH")]
    socket: Option<String>,
    /// Durable state and images, instead of `root`
    #[arg(long, value_name = "PATH")]
    root: Option<String>,
    /// Volatile state, instead of `state`
    #[arg(long, value_name = "PATH")]
    state: Option<String>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Print or check a configuration
    #[command(subcommand)]
    Config(ConfigCommand),
}

#[derive(Debug, Subcommand)]
enum ConfigCommand {
    /// Print the commented default configuration
    Default,
    /// Check a configuration and print everything that is wrong with it
    Check {
        /// The file [default: the one the daemon would read]
        path: Option<PathBuf>,
    },
}

/// Why a command failed. The text is printed to the operator's terminal.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The configuration is invalid.
    #[error(transparent)]
    Config(#[from] config::Error),
    /// The daemon could not start or ended with an error.
    #[error(transparent)]
    Daemon(#[from] crate::Error),
    /// Standard output is closed.
    #[error("cannot write to standard output")]
    Output(#[source] std::io::Error),
}

impl Error {
    /// The error with its causes.
    pub fn describe(&self) -> String {
        causes::with_causes(self)
    }
}

impl Cli {
    /// Runs the command.
    pub fn run(self) -> Result<(), Error> {
        let Self { daemon: Daemon { config, socket, root, state }, command } = self;
        let arguments = Arguments { path: config, overrides: Overrides { root, state, socket } };
        match command {
            None => Ok(crate::run(arguments.load()?, arguments)?),
            Some(Command::Config(ConfigCommand::Default)) => print(&Config::default_text()),
            Some(Command::Config(ConfigCommand::Check { path })) => {
                let arguments = Arguments { path: path.or(arguments.path), ..arguments };
                arguments.load()?;
                let name = arguments.path.unwrap_or_else(|| config::DEFAULT_PATH.into());
                print(&format!("{} and its drop-in files: no faults\n", name.display()))
            }
        }
    }
}

fn print(text: &str) -> Result<(), Error> {
    std::io::stdout().write_all(text.as_bytes()).map_err(Error::Output)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn arguments_are_consistent() {
        Cli::command().debug_assert();
        let cli = Cli::parse_from(["copepod", "--root", "/r", "--config", "/c.toml"]);
        assert_eq!(cli.daemon.root.as_deref(), Some("/r"));
        assert!(cli.command.is_none());
        let cli = Cli::parse_from(["copepod", "config", "check", "/x.toml"]);
        assert!(matches!(cli.command, Some(Command::Config(ConfigCommand::Check { path: Some(_) }))));
    }

    #[test]
    fn config_check_reports_all_faults() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("c.toml");
        std::fs::write(&path, "rot = \"/x\"\nstate = \"y\"\n").unwrap();
        let told = Cli::parse_from(["copepod", "config", "check", path.to_str().unwrap()])
            .run()
            .unwrap_err()
            .to_string();
        assert!(
            told.contains("2 faults") && told.contains("root") && told.contains("line 2: state"),
            "{told}"
        );
    }
}
