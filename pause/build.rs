//! Link flags: one static file without start files, in a single page-aligned segment.

use std::env;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    let flags = [
        "-nostartfiles",
        "-static",
        // No relocations: nothing would process them.
        "-no-pie",
        "-Wl,--build-id=none",
        "-Wl,-z,norelro",
        "-Wl,-z,noexecstack",
        // Code shares a segment with the headers instead of starting on its own page.
        "-Wl,-z,noseparate-code",
        "-Wl,--no-eh-frame-hdr",
    ];
    for flag in flags {
        println!("cargo::rustc-link-arg-bins={flag}");
    }
    // aarch64 keeps its alignment of 64 KiB, because kernels with pages of that size exist.
    if env::var("CARGO_CFG_TARGET_ARCH").as_deref() == Ok("x86_64") {
        println!("cargo::rustc-link-arg-bins=-Wl,-z,max-page-size=4096");
    }
}
