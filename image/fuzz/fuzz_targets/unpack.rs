//! Archives of layers, unpacked into a temporary folder (root).
#![no_main]

use libfuzzer_sys::{fuzz_mutator, fuzz_target};

fuzz_target!(
    init: drive::write(&drive::seeds::unpack()),
    |data: &[u8]| image::fuzz::unpack(data)
);

fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    drive::change(data, size, max_size, seed, drive::mutate::archive)
});
