//! Archives of layers, unpacked into a temporary folder (root).
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(
    init: drive::write(&drive::seeds::unpack()),
    |data: &[u8]| image::fuzz::unpack(data)
);
