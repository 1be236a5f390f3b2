use super::check;
use std::path::Path;

/// A crate of these files; what the check says of it, with the folder's name taken out.
fn said(files: &[(&str, &str)]) -> Vec<String> {
    let folder = tempfile::tempdir().unwrap();
    let src = folder.path().join("src");
    for (name, text) in files {
        let path = src.join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }
    let here = format!("{}/", folder.path().display());
    let root = if Path::new(&src).join("main.rs").exists() { "main.rs" } else { "lib.rs" };
    let circles = check(&[src.join(root)]).unwrap();
    circles.iter().map(|circle| circle.replace(&here, "")).collect()
}

const ROOT: (&str, &str) = ("lib.rs", "mod a; mod b; mod c;");

#[test]
fn a_line_of_modules_is_no_circle() {
    let files =
        [ROOT, ("a.rs", "use crate::b::{self, X};"), ("b.rs", "use super::c;"), ("c.rs", "struct X;")];
    assert_eq!(said(&files), [""; 0]);
}

#[test]
fn each_way_of_naming_a_module_counts() {
    for text in [
        "use crate::a::X;",
        "use crate::a;",
        "use crate::{c::Y, a::X};",
        "use crate::{c::{Y, Z as W}, a};",
        "use {crate::a::X, std::fmt};",
        "use super::a::X;",
        "fn f() { crate::a::g(); }",
        "fn f() { println!(\"{}\", crate::a::g()); }",
        "mod inner { use super::super::a::X; }",
        "mod inner { fn f() -> super::super::a::X { todo!() } }",
        "#[cfg(not(test))] use crate::a::X;",
        "#[cfg(any(test, debug_assertions))] use crate::a::X;",
        "#[cfg(test)] use crate::c::X; use crate::a::X;",
        "#[cfg(test)] fn f<A, B>() {} fn g() { crate::a::g() }",
        "struct S { #[cfg(test)] x: u8, y: crate::a::X }",
        "impl crate::a::X {}",
    ] {
        let files = [ROOT, ("a.rs", "\nuse crate::b;"), ("b.rs", text), ("c.rs", "")];
        let told = said(&files).join("\n");
        assert!(
            told.starts_with(
                "src: a, b use each other:\n  src/a.rs:2: a -> b (crate::b)\n  src/b.rs:1: b -> a"
            ),
            "{text}: {told}"
        );
    }
}

#[test]
fn what_only_looks_like_it_does_not_count() {
    for text in [
        "#[cfg(test)] use crate::a::X;",
        "#[cfg(test)] #[allow(unused)] mod tests { use crate::a::X; }",
        "#[cfg(test)] mod elsewhere;",
        "#[cfg(all(test, unix))] fn f() { crate::a::g() }",
        "fn f() { match 1 { #[cfg(test)] 1 => crate::a::g(), _ => () } }",
        "// use crate::a::X;",
        "/* use crate::a::X; */",
        "/// See [`crate::a::X`].\nstruct S;",
        "const S: &str = \"crate::a::X\";",
        "use other::a::X;",
        "fn f() { other::crate_::a() }",
        "mod a {} use self::a::X;",
    ] {
        let files = [ROOT, ("a.rs", "use crate::b;"), ("b.rs", text), ("c.rs", "")];
        assert_eq!(said(&files), [""; 0], "{text}");
    }
}

#[test]
fn a_longer_circle_is_told_with_all_its_lines() {
    let files = [
        ROOT,
        ("a/mod.rs", "mod x;"),
        ("a/x.rs", "use crate::b::X;"),
        ("b.rs", "use crate::c::X;"),
        ("c.rs", "\n\nuse crate::a::X;"),
    ];
    assert_eq!(
        said(&files),
        [
            "src: a, b, c use each other:\n  src/a/x.rs:1: a -> b (crate::b::X)\n  src/b.rs:1: b -> c (crate::c::X)\n  src/c.rs:3: c -> a (crate::a::X)"
        ]
    );
}

#[test]
fn re_exports_are_followed_and_the_root_is_no_module() {
    let root = "mod a; mod b;\npub use b::{Y, Z as W};\nstruct X; fn main() { a::f() }";
    assert_eq!(said(&[("main.rs", root), ("a.rs", "use crate::X;"), ("b.rs", "use crate::a;")]), [""; 0]);
    let told = said(&[("main.rs", root), ("a.rs", "use crate::Y;"), ("b.rs", "use crate::a;")]);
    assert!(told[0].contains("src/a.rs:1: a -> b (crate::Y)"), "{told:?}");
}

#[test]
fn modules_inside_a_module_are_judged_too_but_not_against_it() {
    let inner = [
        ("lib.rs", "mod a;"),
        ("a/mod.rs", "mod x; mod y; use x::X;"),
        ("a/x.rs", "use super::y::Y; use super::Z;"),
        ("a/y.rs", ""),
    ];
    assert_eq!(said(&inner), [""; 0]);
    let mut circle = inner;
    circle[3].1 = "use crate::a::x::X;";
    assert!(said(&circle)[0].starts_with("src/a: x, y use each other:"));
}

#[test]
fn a_file_elsewhere_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("lib.rs");
    std::fs::write(&root, "#[path = \"x.rs\"]\nmod a;").unwrap();
    let error = check(&[root]).unwrap_err();
    assert!(error.to_string().contains("lib.rs:1: modules with #[path]"), "{error}");
}
