//! A client that sends what gRPC's C core sends, byte by byte.

use super::Fixture;
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;

/// Types of HTTP/2's frames.
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
/// Flags of DATA and HEADERS.
const END_STREAM: u8 = 0x1;
const END_HEADERS: u8 = 0x4;

fn frame(kind: u8, flags: u8, stream: u8, payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(payload.len()).unwrap().to_be_bytes();
    [&[0, length[0], length[1], kind, flags, 0, 0, 0, stream][..], payload].concat()
}

/// A field that is added to the table, with literal strings of less than 127 bytes.
fn literal(name: &str, value: &str) -> Vec<u8> {
    let length = |text: &str| u8::try_from(text.len()).unwrap();
    [&[0x40, length(name)][..], name.as_bytes(), &[length(value)][..], value.as_bytes()].concat()
}

/// A call with an empty request.
fn call(stream: u8, fields: &[u8]) -> Vec<u8> {
    [frame(HEADERS, END_HEADERS, stream, fields), frame(DATA, END_STREAM, stream, &[0; 5])].concat()
}

/// The types of the frames that answer a call, and the bytes of its reply.
async fn answer(client: &mut UnixStream, stream: u8) -> (Vec<u8>, Vec<u8>) {
    let (mut kinds, mut data) = (Vec::new(), Vec::new());
    loop {
        let mut head = [0; 9];
        client.read_exact(&mut head).await.unwrap();
        let [_, high, low, kind, flags, .., of] = head;
        let mut payload = vec![0; usize::from(u16::from_be_bytes([high, low]))];
        client.read_exact(&mut payload).await.unwrap();
        if of != stream || !matches!(kind, DATA | HEADERS | RST_STREAM) {
            continue;
        }
        kinds.push(kind);
        if kind == DATA {
            data.extend(payload);
        }
        if kind == RST_STREAM || flags & END_STREAM != 0 {
            return (kinds, data);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_that_send_the_sockets_path_as_authority_are_served() {
    // The other parts of the fixture must live as long as the client.
    let Fixture { stop: _stop, _lock, folder, .. } = Fixture::new().await;
    let mut client = UnixStream::connect(folder.path().join("run/copepod.sock")).await.unwrap();
    let opening = [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(), frame(SETTINGS, 0, 0, &[])].concat();
    let first = [
        // `:scheme: http` and `:method: POST` of the static table.
        vec![0x86, 0x83],
        literal(":path", "/runtime.v1.RuntimeService/Version"),
        literal(":authority", "run%2Fcopepod%2Fcopepod.sock"),
        literal("te", "trailers"),
        literal("content-type", "application/grpc"),
    ];
    // The fields of the first call again, from the table.
    let second = [0x86, 0x83, 0xc1, 0xc0, 0xbf, 0xbe];
    client.write_all(&opening).await.unwrap();
    for (stream, fields) in [(1, first.concat()), (3, second.to_vec())] {
        client.write_all(&call(stream, &fields)).await.unwrap();
        let answered = tokio::time::timeout(Duration::from_secs(20), answer(&mut client, stream));
        let (kinds, data) = answered.await.expect("an answer");
        assert_eq!(kinds, [HEADERS, DATA, HEADERS], "call {stream}");
        assert!(data.windows(7).any(|text| text == b"copepod"), "call {stream}: {}", data.escape_ascii());
    }
}
