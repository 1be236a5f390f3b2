//! Configs of images.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(
    init: drive::write(&drive::seeds::config()),
    |data: &[u8]| image::fuzz::config(data)
);
