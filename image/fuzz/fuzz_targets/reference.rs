//! Names of images.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(
    init: drive::write(&drive::seeds::reference()),
    |data: &[u8]| image::fuzz::reference(data)
);
