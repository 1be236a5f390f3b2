//! The blocks of commands in a Markdown page.

use anyhow::Result;

use crate::expect::ensure;

/// What the word after `sh` says of a fenced block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// `run`: the commands are executed.
    Run,
    /// `network`: they need hosts that the test does not have, and are replaced.
    Network,
}

/// Commands of a page.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Block {
    /// The line of its first command, counted from 1.
    pub(super) line: usize,
    /// What to do with it.
    pub(super) kind: Kind,
    /// The commands.
    pub(super) commands: String,
}

/// The blocks for a shell, in their order. Blocks without a language are examples, and left out. The error names the line
/// of a block for a shell that says neither `run` nor `network`, and of one without an end.
pub(super) fn blocks(page: &str) -> Result<Vec<Block>> {
    let mut found = Vec::new();
    // The line of the fence and its words, while in a block.
    let mut open: Option<(usize, &str)> = None;
    let mut commands = String::new();
    for (line, text) in (1..).zip(page.lines()) {
        match (open, text.strip_prefix("```")) {
            (None, Some(words)) => open = Some((line, words.trim())),
            (None, None) => {}
            (Some(_), None) => {
                commands.push_str(text);
                commands.push('\n');
            }
            (Some((begun, words)), Some(rest)) => {
                ensure!(rest.trim().is_empty(), "line {line}: the block of line {begun} has no end");
                let commands = std::mem::take(&mut commands);
                let kind = match words {
                    "sh run" => Some(Kind::Run),
                    "sh network" => Some(Kind::Network),
                    "" => None,
                    _ => anyhow::bail!("line {begun}: `{words}` is neither `sh run` nor `sh network`"),
                };
                found.extend(kind.map(|kind| Block { line: begun + 1, kind, commands }));
                open = None;
            }
        }
    }
    ensure!(open.is_none(), "the block of line {} has no end", open.map_or(0, |(line, _)| line));
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_found_with_their_lines() {
        let page =
            "text\n```sh run\none\n\n  two `three`\n```\n```\nexample\n```\n```sh network\ncurl\n```\n";
        let wanted = [(3, Kind::Run, "one\n\n  two `three`\n"), (11, Kind::Network, "curl\n")];
        let wanted = wanted.map(|(line, kind, text)| Block { line, kind, commands: text.to_owned() });
        assert_eq!(blocks(page).unwrap(), wanted);
        assert_eq!(blocks("text").unwrap(), []);
    }

    #[test]
    fn faulty_blocks_are_named() {
        for (page, part) in [
            ("```sh\nx\n```\n", "line 1: `sh`"),
            ("a\n```sh runs\nx\n```\n", "line 2: `sh runs`"),
            ("a\n```sh run\nx\n", "line 2 has no end"),
            ("```sh run\nx\n```sh run\ny\n```\n", "line 3: the block of line 1"),
        ] {
            let error = blocks(page).unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        }
    }

    #[test]
    fn page_has_blocks_to_run() {
        let found = blocks(include_str!("../../../docs/kubernetes.md")).unwrap();
        let count = |kind| found.iter().filter(|it| it.kind == kind).count();
        // Only where kubelet's packages come from is replaced.
        assert_eq!((count(Kind::Run), count(Kind::Network)), (7, 1));
    }
}
