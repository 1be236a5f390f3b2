//! Manifests and indexes, with any Content-Type.
#![no_main]

use libfuzzer_sys::{fuzz_mutator, fuzz_target};

fuzz_target!(
    init: drive::write(&drive::seeds::manifest()),
    |data: &[u8]| image::fuzz::document(data)
);

fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    drive::change(data, size, max_size, seed, drive::mutate::json)
});
