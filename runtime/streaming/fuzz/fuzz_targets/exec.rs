//! Frames of SPDY and of WebSocket with its channels, in a session of exec.
#![no_main]

use libfuzzer_sys::fuzz_target;
use streaming::remote::Streams;

fuzz_target!(
    init: drive::seeds::write(&drive::seeds::exec()),
    |data: &[u8]| {
        let [protocol, flags, piece, bytes @ ..] = data else { return };
        let protocol = drive::EXEC[usize::from(*protocol) % drive::EXEC.len()];
        let flag = |bit: u8| flags & bit != 0;
        let streams = Streams { stdin: flag(1), stdout: flag(2), stderr: flag(4), tty: flag(8) };
        drive::exec(protocol, streams, bytes, usize::from(*piece));
    }
);
