//! The functions of a program, from its symbols.

use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::expect::ensure;

/// A function of the program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Function {
    /// Its address in the file's own numbering; the program is loaded at a random offset.
    pub(super) address: u64,
    /// Its length in bytes.
    pub(super) size: u64,
    /// Its mangled name, which is also the end of its section's name.
    pub(super) name: String,
}

/// The functions of `program`, sorted by address. Of those at one address, the first in the order of their names.
///
/// # Errors
/// The program has no symbols, or readelf is missing.
pub(super) fn functions(program: &Path) -> Result<Vec<Function>> {
    let output = Command::new("readelf").args(["--syms", "--wide"]).arg(program).output();
    let output = output.context("run readelf (package binutils)")?;
    ensure!(output.status.success(), "readelf: {}", String::from_utf8_lossy(&output.stderr));
    let mut found: Vec<_> = String::from_utf8_lossy(&output.stdout).lines().filter_map(function).collect();
    found.sort_by(|a, b| (a.address, &a.name).cmp(&(b.address, &b.name)));
    found.dedup_by_key(|function| function.address);
    ensure!(found.len() > 1000, "{} is stripped: {} functions", program.display(), found.len());
    Ok(found)
}

/// A line of readelf: number, address, size, type, binding, visibility, section, name.
fn function(line: &str) -> Option<Function> {
    let mut words = line.split_whitespace().skip(1);
    let address = u64::from_str_radix(words.next()?, 16).ok()?;
    let size = words.next()?;
    let size = match size.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16),
        None => size.parse(),
    };
    let of_code = words.next()? == "FUNC" && words.nth(2)? != "UND";
    let name = words.next()?.to_owned();
    of_code.then_some(Function { address, size: size.ok()?, name })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn functions_are_told_from_other_symbols() {
        let read = |line: &str| function(line).map(|it| (it.address, it.size, it.name));
        let known = Some((0x7b_9900, 142, String::from("_ZN4core3ptr4read17h1cac8d81ec4eb276E")));
        assert_eq!(
            read(
                "  2000: 00000000007b9900   142 FUNC    LOCAL  HIDDEN    15 _ZN4core3ptr4read17h1cac8d81ec4eb276E"
            ),
            known
        );
        assert_eq!(
            read("    9: 0000000000000010 0x1f4a0 FUNC    GLOBAL DEFAULT   15 main"),
            Some((16, 0x1_f4a0, String::from("main")))
        );
        for other in [
            "    3: 0000000000000000     0 FUNC    GLOBAL DEFAULT  UND pow@GLIBC_2.29 (2)",
            "    4: 00000000000a0000    64 OBJECT  LOCAL  DEFAULT   11 table",
            "   Num:    Value          Size Type    Bind   Vis      Ndx Name",
            "",
        ] {
            assert_eq!(read(other), None, "{other}");
        }
    }
}
