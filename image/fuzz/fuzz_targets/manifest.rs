//! Manifests and indexes, with any Content-Type.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(
    init: drive::write(&drive::seeds::manifest()),
    |data: &[u8]| image::fuzz::document(data)
);
