//! Docker's config.json: the node's credentials.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(
    init: drive::write(&drive::seeds::credentials()),
    |data: &[u8]| image::fuzz::credentials(data)
);
