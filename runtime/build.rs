//! Tells the linker to place together what the daemon executes (`layout.ld`).

fn main() {
    let folder = std::env::var("CARGO_MANIFEST_DIR").unwrap_or_default();
    println!("cargo::rerun-if-changed=layout.ld");
    println!("cargo::rustc-link-arg-bins=-Wl,-T,{folder}/layout.ld");
}
