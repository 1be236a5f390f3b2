//! Compiles `proto/api.proto` in pure Rust: no system protoc is needed. The descriptor is stored beside the
//! generated code, so that the test compares exactly what the code was generated from.

use std::error::Error;
use std::path::PathBuf;
use std::{env, fs};

use prost::Message;

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=proto/api.proto");
    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or("OUT_DIR is not set")?);
    let client = env::var_os("CARGO_FEATURE_CLIENT").is_some();

    let descriptors = protox::compile(["api.proto"], ["proto"])?;
    fs::write(out.join("descriptors.bin"), descriptors.encode_to_vec())?;

    tonic_prost_build::configure()
        .build_server(true)
        .build_client(client)
        // Transports are left out: the caller connects to the unix socket itself.
        .build_transport(false)
        .out_dir(&out)
        .compile_fds(descriptors)?;
    Ok(())
}
