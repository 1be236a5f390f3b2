//! Configuration files of networks. The fuzzer begins with `fixtures/configuration`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    if let Err(broken) = network::fuzzing::configuration(data) {
        panic!("{broken}");
    }
});
