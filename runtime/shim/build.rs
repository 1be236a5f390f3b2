//! Tells the linker to place together what a shim executes (`layout.ld`), and to keep workers' code apart (`workers.ld`).

fn main() {
    let folder = std::env::var("CARGO_MANIFEST_DIR").unwrap_or_default();
    // In this order: a section is placed by the first pattern that matches it.
    for script in ["layout.ld", "workers.ld"] {
        println!("cargo::rerun-if-changed={script}");
        println!("cargo::rustc-link-arg-bins=-Wl,-T,{folder}/{script}");
    }
}
