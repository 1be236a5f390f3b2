//! The command line: `copepod` runs the daemon, `copepod image …` calls it, `copepod config …` prints or checks
//! configurations, `copepod completion …` prints what a shell needs. A hidden command writes the manual pages of the package.

mod documents;
mod image;

use crate::config::{self, Arguments, Config, Overrides};
use clap::{Args, CommandFactory as _, Parser, Subcommand};
use std::io::Write as _;
use std::path::PathBuf;

/// The end of `--help` and of the manual page.
const MORE: &str = "\
Without a command it runs as a daemon, usually as the systemd unit copepod.service. kubelet and crictl call it on \
/run/copepod/copepod.sock. Pods keep running while it is stopped.

Signals: SIGHUP reads the configuration again; SIGTERM and SIGINT stop the daemon.

Files: /etc/copepod/config.toml and /etc/copepod/conf.d (configuration), /etc/copepod/certs.d (registries), \
/var/lib/copepod (state and images), /run/copepod (socket, state until the next boot), /usr/share/doc/copepod (all about the \
configuration).";

/// A container runtime for Kubernetes.
#[derive(Debug, Parser)]
#[command(name = "copepod", version, about = "A container runtime for Kubernetes (CRI)", after_long_help = MORE)]
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
    #[arg(long, value_name = "PATH", global = true)]
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
    /// Import, export, list, remove or prune the images of the running daemon
    #[command(subcommand)]
    Image(image::ImageCommand),
    /// Print or check a configuration
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Print the completions of a shell, for it to read
    Completion {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// Write the manual pages, for packages
    #[command(hide = true)]
    Manual {
        /// An existing folder
        folder: PathBuf,
    },
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
    /// A command about images.
    #[error(transparent)]
    Image(#[from] image::Error),
    /// Standard output is closed.
    #[error("cannot write to standard output")]
    Output(#[source] std::io::Error),
    /// A manual page could not be written.
    #[error("cannot write {}", .path.display())]
    Manual {
        /// The page's file.
        path: PathBuf,
        /// The error of the system call.
        source: std::io::Error,
    },
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
            Some(Command::Image(command)) => Ok(image::run(command, &arguments.load()?.socket)?),
            Some(Command::Config(ConfigCommand::Default)) => print(Config::default_text().as_bytes()),
            Some(Command::Config(ConfigCommand::Check { path })) => {
                let arguments = Arguments { path: path.or(arguments.path), ..arguments };
                arguments.load()?;
                let name = arguments.path.unwrap_or_else(|| config::DEFAULT_PATH.into());
                print(format!("{} and its drop-in files: no faults\n", name.display()).as_bytes())
            }
            Some(Command::Completion { shell }) => print(&documents::completion(shell, Self::command())),
            Some(Command::Manual { folder }) => {
                let failed = |path: PathBuf| move |source| Error::Manual { path, source };
                for page in documents::manual(Self::command()).map_err(failed(folder.clone()))? {
                    let path = folder.join(page.file);
                    std::fs::write(&path, page.text).map_err(failed(path))?;
                }
                Ok(())
            }
        }
    }
}

fn print(text: &[u8]) -> Result<(), Error> {
    std::io::stdout().write_all(text).map_err(Error::Output)
}

#[cfg(test)]
mod tests {
    use super::*;

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
    fn pages_and_completions_have_every_command_that_is_not_hidden() {
        let folder = tempfile::tempdir().unwrap();
        Cli::parse_from(["copepod", "manual", folder.path().to_str().unwrap()]).run().unwrap();
        let mut pages = std::fs::read_dir(folder.path())
            .unwrap()
            .map(|page| page.unwrap().file_name().into_string().unwrap())
            .collect::<Vec<_>>();
        pages.sort();
        let expected = [
            "copepod-completion.8",
            "copepod-config-check.8",
            "copepod-config-default.8",
            "copepod-config.8",
            "copepod-image-export.8",
            "copepod-image-import.8",
            "copepod-image-list.8",
            "copepod-image-prune.8",
            "copepod-image-remove.8",
            "copepod-image.8",
            "copepod.8",
        ];
        assert_eq!(pages, expected);
        let main = std::fs::read_to_string(folder.path().join("copepod.8")).unwrap();
        for text in [".TH copepod 8", "copepod\\-config(8)", "/etc/copepod/config.toml", "\\-\\-socket"] {
            assert!(main.contains(text), "{text} is not in {main}");
        }
        assert!(!main.contains("manual("), "{main}");
        for shell in [clap_complete::Shell::Bash, clap_complete::Shell::Zsh, clap_complete::Shell::Fish] {
            let script = String::from_utf8(documents::completion(shell, Cli::command())).unwrap();
            assert!(script.contains("default") && script.contains("config"), "{script}");
        }
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
