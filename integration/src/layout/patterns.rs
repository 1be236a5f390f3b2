//! Patterns of section names that match the functions that were executed, and few others.
//!
//! A name is cut into the parts of its path, so that all names are a tree. A branch whose functions are mostly executed
//! becomes one pattern. Such patterns hold longer than names: hashes are not in them, and a new function in a module
//! where most are executed is matched too.

use std::collections::{BTreeMap, BTreeSet};

use super::symbols::Function;

/// What begins the names of methods of types that are not paths, such as `impl Trait for Vec<T>`. The number before it is
/// the length of what follows, which would tell apart what belongs together.
const IMPLEMENTATION: &str = "_$LT$";
/// What begins the last part of a name.
const HASH: &str = "17h";
/// In names, what ends a part of a path or a type.
const ENDS: [&str; 4] = ["..", "$u20$as$u20$", "$LT$", "$GT$"];

/// The first parts of names: the implementations of traits, other Rust names, those of the second mangling.
const FIRST: [&str; 3] = ["_ZN*_$LT$", "_ZN", "_R*Cs*_"];

/// A branch of the tree of names.
#[derive(Debug, Default)]
struct Branch {
    below: BTreeMap<String, Branch>,
    /// Of all functions in it.
    bytes: u64,
    /// Whether one of them was executed.
    executed: bool,
    /// Whether one of these has just this name, so that every pattern for it matches the whole branch.
    ends: bool,
}

impl Branch {
    fn add(&mut self, parts: &[String], size: u64, executed: bool) {
        self.bytes += size;
        self.executed |= executed;
        match parts.split_first() {
            Some((first, rest)) => self.below.entry(first.clone()).or_default().add(rest, size, executed),
            None => self.ends |= executed,
        }
    }

    /// The best patterns for what was executed in this branch, and their cost: the bytes that they match, and `worth` for
    /// each.
    fn best(&self, name: &str, worth: u64) -> (u64, Vec<String>) {
        if !self.executed {
            return (0, Vec::new());
        }
        let whole = self.bytes + worth;
        let (mut cost, mut patterns) = (0, Vec::new());
        for (part, branch) in &self.below {
            let (below, found) = branch.best(&format!("{name}{part}"), worth);
            cost += below;
            patterns.extend(found);
        }
        // The first parts say nothing of what is in a branch.
        let says_nothing = FIRST.contains(&name) || name.is_empty();
        if self.ends || (whole <= cost && !says_nothing) {
            return (whole, vec![name.to_owned()]);
        }
        (cost, patterns)
    }
}

/// Patterns, sorted, each a beginning of names. A function of `functions` is executed if its address is in `executed`;
/// those that `before` matches are left out.
///
/// `worth`: what a pattern must save, in bytes of functions that it does not match, to be better than a shorter one.
pub(super) fn find(
    functions: &[Function],
    executed: &BTreeSet<u64>,
    before: &[String],
    worth: u64,
) -> Vec<String> {
    let mut root = Branch::default();
    for function in functions {
        let parts = parts(&function.name);
        if !matches(&parts, before) {
            root.add(&parts, function.size, executed.contains(&function.address));
        }
    }
    let mut found = root.best("", worth).1;
    found.sort();
    found
}

fn matches(parts: &[String], patterns: &[String]) -> bool {
    let mut name = String::new();
    parts.iter().any(|part| {
        name.push_str(part);
        patterns.contains(&name)
    })
}

/// The parts of a mangled name, without hashes and without what the optimiser appended.
fn parts(name: &str) -> Vec<String> {
    let name = name.split(".llvm.").next().unwrap_or(name);
    if let Some(path) = name.strip_prefix("_ZN") {
        return legacy(path);
    }
    // The second mangling names crates with hashes too: Cs<hash>_<length><name>.
    let Some((_, path)) = name.split_once("Cs").filter(|_| name.starts_with("_R")) else {
        return vec![name.to_owned()];
    };
    let mut all = vec![FIRST[2].to_owned()];
    let crates: Vec<&str> =
        path.split("Cs").map(|it| it.split_once('_').map_or(it, |(_, name)| name)).collect();
    let path = crates.join("Cs*_");
    let mut rest = path.as_str();
    while !rest.is_empty() {
        let (part, after) = identifier(rest).unwrap_or_else(|| rest.split_at(signature(rest)));
        all.push(part.to_owned());
        rest = after;
    }
    all
}

/// The length of what stands between identifiers. A number after B is not the length of one: it ends with a hyphen below.
fn signature(text: &str) -> usize {
    let digit =
        |from: usize| text[from..].find(|c: char| c.is_ascii_digit()).map_or(text.len(), |at| from + at);
    let mut end = digit(0).max(1);
    while text[..end].ends_with('B') {
        let Some(after) = text[end..].find('_') else { return text.len() };
        end = digit(end + after + 1);
    }
    end
}

/// Splits `<length><name>` off.
fn identifier(text: &str) -> Option<(&str, &str)> {
    let digits = text.find(|c: char| !c.is_ascii_digit())?;
    let length: usize = text[..digits].parse().ok()?;
    text.split_at_checked(digits.checked_add(length)?)
}

fn legacy(path: &str) -> Vec<String> {
    let digits = path.find(|c: char| !c.is_ascii_digit()).unwrap_or(0);
    let (mut all, mut rest) = match path[digits..].strip_prefix(IMPLEMENTATION) {
        Some(_) => (vec![FIRST[0].to_owned()], path),
        None => (vec![FIRST[1].to_owned()], path),
    };
    let mut first = true;
    while let Some((part, after)) = identifier(rest) {
        // The last part is the hash, 17h and 16 digits, and E. Without its beginning, a function could not be matched
        // alone if others are named after it, such as its closures.
        if part.starts_with(HASH) && after.starts_with('E') {
            all.push(HASH.to_owned());
            break;
        }
        let part = if first && all[0] == FIRST[0] { &part[digits + IMPLEMENTATION.len()..] } else { part };
        first = false;
        let mut left = part;
        while !left.is_empty() {
            let end = ENDS.iter().filter_map(|end| left.find(end).map(|at| at + end.len())).min();
            let (piece, others) = left.split_at(end.unwrap_or(left.len()));
            all.push(piece.to_owned());
            left = others;
        }
        rest = after;
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_cut_at_the_parts_of_their_paths() {
        let cut = |name: &str| parts(name).join(" ");
        assert_eq!(
            cut("_ZN7runtime6daemon3run17hbac3ee7d6b6d6282E.llvm.123"),
            "_ZN 7runtime 6daemon 3run 17h"
        );
        assert_eq!(
            cut("_ZN40_$LT$alloc..vec..Vec$u20$as$u20$Drop$GT$4drop17hc971d7d2038f1111E"),
            "_ZN*_$LT$ alloc.. vec.. Vec$u20$as$u20$ Drop$GT$ 4drop 17h"
        );
        assert_eq!(cut("_RNvNtCsjrHSEGnQ3l9_3std2fs4read"), "_R*Cs*_ 3std 2fs 4read");
        assert_eq!(
            cut("_RNvMs_NtCsa_3std2fsNtB5_4File4readCsb_4core"),
            "_R*Cs*_ 3std 2fs NtB5_ 4File 4read Cs*_ 4core"
        );
        assert_eq!(cut("ZSTD_decompress"), "ZSTD_decompress");
    }

    fn function(address: u64, size: u64, name: &str) -> Function {
        Function { address, size, name: format!("{name}17h0123456789abcdefE") }
    }

    #[test]
    fn a_function_is_matched_without_its_closures() {
        let functions = [function(1, 9_000, "_ZN3one3run"), function(2, 90_000, "_ZN3one3run7closure")];
        assert_eq!(find(&functions, &BTreeSet::from([1]), &[], 4096), ["_ZN3one3run17h"]);
        assert_eq!(find(&functions, &BTreeSet::from([1, 2]), &[], 4096), ["_ZN3one"]);
    }

    #[test]
    fn a_module_that_is_mostly_executed_becomes_one_pattern() {
        let functions = [
            function(1, 500, "_ZN3one4used1a"),
            function(2, 500, "_ZN3one4used1b"),
            function(3, 500, "_ZN3one4used1c"),
            function(4, 90_000, "_ZN3one4rare1a"),
            function(5, 10, "_ZN3one4rare1b"),
        ];
        let executed = BTreeSet::from([1, 2, 5]);
        assert_eq!(find(&functions, &executed, &[], 4096), ["_ZN3one4rare1b", "_ZN3one4used"]);
        let before = [String::from("_ZN3one4used")];
        assert_eq!(find(&functions, &executed, &before, 4096), ["_ZN3one4rare1b"]);
    }
}
