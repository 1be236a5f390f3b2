//! Archives of layers.
#![no_main]

use libfuzzer_sys::{fuzz_mutator, fuzz_target};

fuzz_target!(
    init: drive::write(&drive::seeds::layer()),
    |data: &[u8]| image::fuzz::layer(data)
);

fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    drive::change(data, size, max_size, seed, drive::mutate::archive_with_how)
});
