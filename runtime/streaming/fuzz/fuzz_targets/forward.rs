//! Frames of SPDY, of WebSocket with its channels and of SPDY in WebSocket, in a session of port-forward.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(
    init: drive::seeds::write(&drive::seeds::forward()),
    |data: &[u8]| {
        let [protocol, piece, bytes @ ..] = data else { return };
        let protocol = drive::FORWARD[usize::from(*protocol) % drive::FORWARD.len()];
        drive::forward(protocol, bytes, usize::from(*piece));
    }
);
