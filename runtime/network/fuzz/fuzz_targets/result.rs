//! What a plugin prints for ADD. The fuzzer begins with `fixtures/result`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    if let Err(broken) = network::fuzzing::result(data) {
        panic!("{broken}");
    }
});
