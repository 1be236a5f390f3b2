//! Archives of layers.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(
    init: drive::write(&drive::seeds::layer()),
    |data: &[u8]| image::fuzz::layer(data)
);
