//! What registries ask for: values of WWW-Authenticate.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(
    init: drive::write(&drive::seeds::challenge()),
    |data: &[u8]| image::fuzz::challenge(data)
);
