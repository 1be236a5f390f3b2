//! Reads a crate's modules from its root file on, and which of them each names.
//!
//! Modules are found by their declarations, so that code that only tests compile (`#[cfg(test)]`) is left out. Paths
//! are read from tokens, not from items, so that the arguments of macros count too. Those paths count that begin with
//! `crate`, `super`, `self` or a child of the module in which they are written.

use proc_macro2::{Delimiter, Group, TokenStream, TokenTree};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// Names of modules from the crate's root on; empty for the root itself.
pub(crate) type Module = Vec<String>;

/// The modules of a crate and the paths in them.
#[derive(Debug, Default)]
pub(crate) struct Scan {
    /// Folder of the root file.
    pub(crate) folder: PathBuf,
    /// Every module, the root included.
    pub(crate) modules: BTreeSet<Module>,
    /// Every path that names something of this crate, in the order of the source.
    pub(crate) uses: Vec<Use>,
}

/// One path in the source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Use {
    /// The module in which it is written.
    pub(crate) from: Module,
    /// What it names: modules, then an item.
    pub(crate) path: Vec<String>,
    /// The file in which it is written.
    pub(crate) file: PathBuf,
    /// Its line, counted from 1.
    pub(crate) line: usize,
}

/// Why a crate cannot be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// A file does not exist or cannot be read.
    #[error("cannot read {}: {source}", .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The kernel's error.
        source: std::io::Error,
    },
    /// A file is not Rust source.
    #[error("{} is not Rust source: {source}", .path.display())]
    Lex {
        /// The file.
        path: PathBuf,
        /// The place and the reason.
        source: proc_macro2::LexError,
    },
    /// A module has a #[path] attribute, which is not supported.
    #[error("{}:{line}: modules with #[path] are not followed", .path.display())]
    Path {
        /// The file with the attribute.
        path: PathBuf,
        /// Its line, counted from 1.
        line: usize,
    },
}

/// Reads the crate whose root file is `root`.
pub(crate) fn scan(root: &Path) -> Result<Scan, Error> {
    let folder = root.parent().unwrap_or(Path::new(".")).to_owned();
    let mut scan = Scan { folder: folder.clone(), ..Scan::default() };
    file(&mut scan, Module::new(), root, &folder)?;
    Ok(scan)
}

/// Reads one file; the files of its modules lie in `folder`.
fn file(scan: &mut Scan, module: Module, path: &Path, folder: &Path) -> Result<(), Error> {
    let text =
        std::fs::read_to_string(path).map_err(|source| Error::Read { path: path.to_owned(), source })?;
    let tokens: TokenStream = text.parse().map_err(|source| Error::Lex { path: path.to_owned(), source })?;
    Reader { scan, file: path, folder: folder.to_owned(), module }.body(tokens)
}

struct Reader<'a> {
    scan: &'a mut Scan,
    file: &'a Path,
    folder: PathBuf,
    module: Module,
}

impl Reader<'_> {
    /// The content of a module.
    fn body(&mut self, tokens: TokenStream) -> Result<(), Error> {
        let tokens: Vec<TokenTree> = tokens.into_iter().collect();
        self.scan.modules.insert(self.module.clone());
        let children = declared(&tokens);
        self.tokens(&tokens, &children)
    }

    fn tokens(&mut self, tokens: &[TokenTree], children: &BTreeSet<String>) -> Result<(), Error> {
        let mut at = 0;
        while at < tokens.len() {
            if let Some(attribute) = attribute(tokens, at) {
                if is_test(attribute) {
                    at = item_end(tokens, at);
                    continue;
                }
                if first_word(attribute).as_deref() == Some("path") {
                    let line = attribute.span_open().start().line;
                    return Err(Error::Path { path: self.file.to_owned(), line });
                }
            }
            if word(tokens.get(at)).as_deref() == Some("mod")
                && let Some(name) = word(tokens.get(at + 1))
            {
                match tokens.get(at + 2) {
                    Some(TokenTree::Group(body)) if body.delimiter() == Delimiter::Brace => {
                        self.child(name, Some(body))?;
                        at += 3;
                        continue;
                    }
                    other if is_punct(other, ';') => {
                        self.child(name, None)?;
                        at += 3;
                        continue;
                    }
                    _ => {}
                }
            }
            at = match self.path(tokens, at, children) {
                Some(end) => end,
                None => {
                    if let TokenTree::Group(group) = &tokens[at] {
                        let inside: Vec<TokenTree> = group.stream().into_iter().collect();
                        self.tokens(&inside, children)?;
                    }
                    at + 1
                }
            };
        }
        Ok(())
    }

    /// A module inside this one: its body, or a file of its own.
    fn child(&mut self, name: String, body: Option<&Group>) -> Result<(), Error> {
        let folder = self.folder.join(&name);
        let mut module = self.module.clone();
        module.push(name.clone());
        if let Some(body) = body {
            return Reader { scan: self.scan, file: self.file, folder, module }.body(body.stream());
        }
        let beside = self.folder.join(format!("{name}.rs"));
        let path = if beside.exists() { beside } else { folder.join("mod.rs") };
        file(self.scan, module, &path, &folder)
    }

    /// Records the path that begins at `at` and returns the index after it; `None` if no path of ours begins there.
    fn path(&mut self, tokens: &[TokenTree], at: usize, children: &BTreeSet<String>) -> Option<usize> {
        let first = word(tokens.get(at))?;
        let follows = is_colons(tokens, at + 1);
        // `a::b::c`: only the first name decides.
        if at >= 2 && is_colons(tokens, at - 2) {
            return None;
        }
        let path = match first.as_str() {
            "crate" if follows => Module::new(),
            "self" if follows => self.module.clone(),
            "super" if follows => self.module[..self.module.len().saturating_sub(1)].to_vec(),
            name if follows && children.contains(name) => {
                self.module.iter().cloned().chain([first]).collect()
            }
            _ => return None,
        };
        Some(self.rest(tokens, at + 1, path))
    }

    /// The rest of a path after its first name; `at` is the index of its `::`.
    fn rest(&mut self, tokens: &[TokenTree], mut at: usize, mut path: Vec<String>) -> usize {
        let line = |at: usize| tokens.get(at).map_or(0, |token| token.span().start().line);
        let begun = line(at);
        while is_colons(tokens, at) {
            at += 2;
            match tokens.get(at) {
                Some(TokenTree::Group(group)) if group.delimiter() == Delimiter::Brace => {
                    self.list(group, &path);
                    return at + 1;
                }
                Some(TokenTree::Ident(name)) if name == "super" => {
                    path.pop();
                }
                Some(TokenTree::Ident(name)) if name == "self" => {}
                Some(TokenTree::Ident(name)) => path.push(name.to_string()),
                // `::*`, `::<T>`, `::$name`.
                _ => break,
            }
            at += 1;
        }
        self.note(path, begun);
        at
    }

    /// `{a, b::c, d::{e, f}}` after `path`.
    fn list(&mut self, group: &Group, path: &[String]) {
        let tokens: Vec<TokenTree> = group.stream().into_iter().collect();
        let mut at = 0;
        while at < tokens.len() {
            let mut path = path.to_vec();
            match word(tokens.get(at)).as_deref() {
                Some("self") | None => {}
                Some(name) => path.push(name.to_owned()),
            }
            let line = tokens[at].span().start().line;
            if is_colons(&tokens, at + 1) {
                at = self.rest(&tokens, at + 1, path);
            } else {
                self.note(path, line);
            }
            while at < tokens.len() && !is_punct(tokens.get(at), ',') {
                at += 1;
            }
            at += 1;
        }
    }

    fn note(&mut self, path: Vec<String>, line: usize) {
        self.scan.uses.push(Use { from: self.module.clone(), path, file: self.file.to_owned(), line });
    }
}

/// Modules that `tokens` declare, without those of tests.
fn declared(tokens: &[TokenTree]) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    let mut at = 0;
    while at < tokens.len() {
        if attribute(tokens, at).is_some_and(is_test) {
            at = item_end(tokens, at);
            continue;
        }
        if word(tokens.get(at)).as_deref() == Some("mod") {
            names.extend(word(tokens.get(at + 1)));
        }
        at += 1;
    }
    names
}

/// The index after the item (or field, arm, statement) that the attributes from `at` on belong to.
fn item_end(tokens: &[TokenTree], mut at: usize) -> usize {
    while attribute(tokens, at).is_some() {
        at += 2;
    }
    let is_item = word(tokens.get(at)).is_some_and(|word| ITEMS.contains(&word.as_str()));
    while at < tokens.len() {
        match &tokens[at] {
            TokenTree::Group(group) if group.delimiter() == Delimiter::Brace => return at + 1,
            TokenTree::Punct(punct) if punct.as_char() == ';' => return at + 1,
            TokenTree::Punct(punct) if punct.as_char() == ',' && !is_item => return at + 1,
            _ => at += 1,
        }
    }
    at
}

/// First words of items and statements, in which a comma ends nothing.
const ITEMS: [&str; 15] = [
    "pub", "fn", "mod", "use", "struct", "enum", "impl", "const", "static", "type", "trait", "unsafe",
    "async", "extern", "let",
];

/// The brackets of `#[…]` at `at`.
fn attribute(tokens: &[TokenTree], at: usize) -> Option<&Group> {
    match (tokens.get(at), tokens.get(at + 1)) {
        (hash, Some(TokenTree::Group(group)))
            if is_punct(hash, '#') && group.delimiter() == Delimiter::Bracket =>
        {
            Some(group)
        }
        _ => None,
    }
}

/// `cfg(test)` or `cfg(all(test, …))`, not what is compiled without tests as well.
fn is_test(attribute: &Group) -> bool {
    let text = attribute.stream().to_string();
    let words: Vec<&str> = text.split(|c: char| !c.is_alphanumeric() && c != '_').collect();
    words.first() == Some(&"cfg")
        && words.contains(&"test")
        && !words.contains(&"not")
        && !words.contains(&"any")
}

fn first_word(group: &Group) -> Option<String> {
    word(group.stream().into_iter().next().as_ref())
}

fn word(token: Option<&TokenTree>) -> Option<String> {
    match token {
        Some(TokenTree::Ident(ident)) => Some(ident.to_string().trim_start_matches("r#").to_owned()),
        _ => None,
    }
}

fn is_punct(token: Option<&TokenTree>, wanted: char) -> bool {
    matches!(token, Some(TokenTree::Punct(punct)) if punct.as_char() == wanted)
}

fn is_colons(tokens: &[TokenTree], at: usize) -> bool {
    is_punct(tokens.get(at), ':') && is_punct(tokens.get(at + 1), ':')
}
