//! HTTP upgrade: the headers of a request.
#![no_main]

use http::{Request, StatusCode};
use libfuzzer_sys::fuzz_target;
use streaming::negotiate;

/// Names that matter, so that a byte is enough for one.
const NAMES: [&str; 8] = [
    "connection",
    "upgrade",
    "sec-websocket-version",
    "sec-websocket-key",
    "sec-websocket-protocol",
    "x-stream-protocol-version",
    "content-length",
    "host",
];

fuzz_target!(|data: &[u8]| {
    let [method, text @ ..] = data else { return };
    let method = if method & 1 == 0 { "GET" } else { "POST" };
    let mut builder = Request::builder().method(method).uri("/exec/token");
    for line in text.split(|byte| *byte == b'\n').take(100) {
        if let [name, value @ ..] = line {
            builder = builder.header(NAMES[usize::from(*name) % NAMES.len()], value);
        }
    }
    // Values that HTTP does not allow never reach the negotiation.
    let Ok(request) = builder.body(()) else { return };
    let (parts, ()) = request.into_parts();
    let remote = negotiate::remote(&parts).map(|upgrade| upgrade.response.status());
    let forward = negotiate::forward(&parts).map(|upgrade| upgrade.response.status());
    for result in [remote, forward] {
        match result {
            Ok(status) => assert_eq!(status, StatusCode::SWITCHING_PROTOCOLS),
            Err(refusal) => assert!(refusal.response().status().is_client_error()),
        }
    }
    let asked = parts.headers.get_all("upgrade").iter().any(|value| {
        value.to_str().is_ok_and(|value| {
            let value = value.to_ascii_lowercase();
            value.contains("websocket") || value.contains("spdy/3.1")
        })
    });
    assert!(asked || negotiate::remote(&parts).is_err(), "an upgrade that nobody asked for");
});
