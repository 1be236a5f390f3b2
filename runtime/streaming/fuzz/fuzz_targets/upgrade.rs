//! HTTP upgrade: the headers of a request.
#![no_main]

use drive::seeds::NAMES;
use http::request::Parts;
use http::{Request, Response, StatusCode};
use libfuzzer_sys::fuzz_target;
use streaming::negotiate::{self, Refusal};

fuzz_target!(
    init: drive::seeds::write(&drive::seeds::upgrade()),
    |data: &[u8]| {
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
        check(&parts, negotiate::remote(&parts).map(|upgrade| upgrade.response));
        check(&parts, negotiate::forward(&parts).map(|upgrade| upgrade.response));
    }
);

/// Who is refused is told so, and who is not has asked for what it gets.
fn check(request: &Parts, result: Result<Response<()>, Refusal>) {
    let response = match result {
        Ok(response) => response,
        Err(refusal) => return assert!(refusal.response().status().is_client_error()),
    };
    assert_eq!(response.status(), StatusCode::SWITCHING_PROTOCOLS);
    assert!(says(request, "connection", "upgrade"), "an upgrade that nobody asked for");
    let to = response.headers()["upgrade"].to_str().expect("text").to_ascii_lowercase();
    assert!(says(request, "upgrade", &to), "another upgrade than the one that was asked for");
    let websocket = to == "websocket";
    assert!(!websocket || request.method == "GET", "WebSocket by POST");
    assert_eq!(response.headers().contains_key("sec-websocket-accept"), websocket);
    let name = if websocket { "sec-websocket-protocol" } else { "x-stream-protocol-version" };
    match response.headers().get(name) {
        Some(chosen) => {
            let chosen = chosen.to_str().expect("text");
            assert!(offers(request, name).any(|offer| offer == chosen), "a protocol that was not offered");
        }
        None => assert!(websocket && offers(request, name).next().is_none(), "no protocol was chosen"),
    }
}

/// Whether a header contains a word.
fn says(request: &Parts, name: &str, word: &str) -> bool {
    lines(request, name).any(|line| line.to_ascii_lowercase().contains(word))
}

/// The names in a header.
fn offers<'r>(request: &'r Parts, name: &str) -> impl Iterator<Item = &'r str> {
    lines(request, name).flat_map(|line| line.split(',')).map(str::trim).filter(|offer| !offer.is_empty())
}

fn lines<'r>(request: &'r Parts, name: &str) -> impl Iterator<Item = &'r str> {
    request.headers.get_all(name).iter().filter_map(|value| value.to_str().ok())
}
