//! hosts.toml, which says who serves a registry's images.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(
    init: drive::write(&drive::seeds::hosts()),
    |data: &[u8]| image::fuzz::hosts(data)
);
