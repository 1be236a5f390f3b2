//! Compiles `proto/copepod.proto` in pure Rust, as that of CRI: no system protoc is needed.

use std::error::Error;

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=proto/copepod.proto");
    tonic_prost_build::configure()
        // Transports are left out: both sides use their own connection to the unix socket.
        .build_transport(false)
        // The parts of archives are not copied.
        .bytes(".")
        .compile_fds(protox::compile(["copepod.proto"], ["proto"])?)?;
    Ok(())
}
