//! What a package contains and the program itself knows: its manual pages and the completions of shells.

use clap::Command;
use std::io;

/// A manual page.
#[derive(Debug)]
pub(super) struct Page {
    /// Name of its file, such as `copepod-config.8`.
    pub(super) file: String,
    /// Its text in roff.
    pub(super) text: Vec<u8>,
}

/// The pages of the program and of its subcommands that are not hidden, which they refer to. Their section is 8,
/// administration.
///
/// # Errors
/// None in practice: they are written to memory.
pub(super) fn manual(command: Command) -> io::Result<Vec<Page>> {
    let mut command = command.disable_help_subcommand(true);
    // Gives subcommands their full names.
    command.build();
    let (mut pages, mut left) = (Vec::new(), vec![command]);
    while let Some(command) = left.pop() {
        left.extend(command.get_subcommands().filter(|it| !it.is_hide_set()).cloned());
        let source = format!("copepod {}", env!("CARGO_PKG_VERSION"));
        let page = clap_mangen::Man::new(command).section("8").manual("System administration").source(source);
        let mut text = Vec::new();
        page.render(&mut text)?;
        pages.push(Page { file: page.get_filename(), text });
    }
    Ok(pages)
}

/// The script that a shell reads to complete the program's arguments.
pub(super) fn completion(shell: clap_complete::Shell, mut command: Command) -> Vec<u8> {
    let name = command.get_name().to_owned();
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut command, name, &mut script);
    script
}
