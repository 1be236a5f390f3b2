//! Requests as clients send them.

use super::*;
use http::Request;

/// A request with these headers.
fn request(method: Method, headers: &[(&str, &str)]) -> Parts {
    let mut builder = Request::builder().method(method).uri("/exec/token");
    for (name, value) in headers {
        builder = builder.header(*name, *value);
    }
    builder.body(()).unwrap().into_parts().0
}

fn spdy(protocols: &[&str]) -> Parts {
    let mut headers = vec![("Connection", "Upgrade"), ("Upgrade", "SPDY/3.1")];
    headers.extend(protocols.iter().map(|protocol| ("X-Stream-Protocol-Version", *protocol)));
    request(Method::POST, &headers)
}

fn websocket(protocols: &[&str]) -> Parts {
    let mut headers = vec![
        ("Connection", "keep-alive, Upgrade"),
        ("Upgrade", "WebSocket"),
        ("Sec-WebSocket-Version", "13"),
        ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="),
    ];
    headers.extend(protocols.iter().map(|protocol| ("Sec-WebSocket-Protocol", *protocol)));
    request(Method::GET, &headers)
}

fn value<'r, B>(response: &'r Response<B>, name: &str) -> Option<&'r str> {
    response.headers().get(name).map(|value| value.to_str().unwrap())
}

#[test]
fn kubelets_exec() {
    let offered = [
        "v5.channel.k8s.io",
        "v4.channel.k8s.io",
        "v3.channel.k8s.io",
        "v2.channel.k8s.io",
        "channel.k8s.io",
    ];
    let upgrade = remote(&spdy(&offered)).unwrap();
    assert_eq!(upgrade.protocol, remote::Protocol::Spdy(Version::V4));
    assert_eq!(upgrade.response.status(), 101);
    assert_eq!(value(&upgrade.response, "connection"), Some("Upgrade"));
    assert_eq!(value(&upgrade.response, "upgrade"), Some("SPDY/3.1"));
    assert_eq!(value(&upgrade.response, "x-stream-protocol-version"), Some("v4.channel.k8s.io"));
}

#[test]
fn first_offer_that_is_known_is_taken() {
    for (offered, version) in [
        (&["v2.channel.k8s.io, v4.channel.k8s.io"][..], Version::V2),
        (&["bogus ,", " v3.channel.k8s.io ,v4.channel.k8s.io"], Version::V3),
        (&["channel.k8s.io"], Version::V1),
    ] {
        assert_eq!(remote(&spdy(offered)).unwrap().protocol, remote::Protocol::Spdy(version));
    }
    let upgrade = forward(&spdy(&["portforward.k8s.io"])).unwrap();
    assert_eq!(upgrade.protocol, forward::Protocol::Spdy);
}

#[test]
fn websocket_of_the_rfc() {
    // RFC 6455, 1.3, gives the key and the answer.
    let upgrade = remote(&websocket(&[])).unwrap();
    assert_eq!(upgrade.protocol, remote::Protocol::WebSocket(Version::V1, Codec::Binary));
    assert_eq!(value(&upgrade.response, "sec-websocket-accept"), Some("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="));
    assert_eq!(value(&upgrade.response, "upgrade"), Some("websocket"));
    assert_eq!(value(&upgrade.response, "sec-websocket-protocol"), None);
}

#[test]
fn websocket_protocols() {
    let exec = |offered| {
        let upgrade = remote(&websocket(&[offered])).unwrap();
        (upgrade.protocol, value(&upgrade.response, "sec-websocket-protocol").unwrap().to_owned())
    };
    for (name, version, codec) in [
        ("v5.channel.k8s.io", Version::V5, Codec::Binary),
        ("v4.channel.k8s.io", Version::V4, Codec::Binary),
        ("v4.base64.channel.k8s.io", Version::V4, Codec::Base64),
        ("base64.channel.k8s.io", Version::V1, Codec::Base64),
        ("channel.k8s.io", Version::V1, Codec::Binary),
    ] {
        assert_eq!(exec(name), (remote::Protocol::WebSocket(version, codec), name.to_owned()));
    }
    let both = "v4.channel.k8s.io,v5.channel.k8s.io";
    assert_eq!(exec(both).0, remote::Protocol::WebSocket(Version::V4, Codec::Binary), "the client's order");

    let ports = |offered: &[&str]| forward(&websocket(offered)).unwrap().protocol;
    assert_eq!(ports(&["SPDY/3.1+portforward.k8s.io"]), forward::Protocol::Tunnel);
    assert_eq!(ports(&["v4.channel.k8s.io"]), forward::Protocol::Channels(Codec::Binary));
    assert_eq!(ports(&["v4.base64.channel.k8s.io"]), forward::Protocol::Channels(Codec::Base64));
    assert_eq!(ports(&[]), forward::Protocol::Channels(Codec::Binary));
}

#[test]
fn refusals() {
    let plain = request(Method::GET, &[]);
    let unrelated = request(Method::GET, &[("Connection", "Upgrade"), ("Upgrade", "h2c")]);
    let no_connection = request(Method::GET, &[("Upgrade", "SPDY/3.1")]);
    let without = |name: &str| {
        let mut parts = websocket(&[]);
        parts.headers.remove(name);
        parts
    };
    let with = |name: &'static str, value: &'static str| {
        let mut parts = websocket(&[]);
        parts.headers.insert(name, HeaderValue::from_static(value));
        parts
    };
    let mut post = websocket(&[]);
    post.method = Method::POST;
    for (request, status) in [
        (plain, 400),
        (unrelated, 400),
        (no_connection, 400),
        (spdy(&[]), 400),
        (spdy(&["", " , "]), 400),
        (spdy(&["v5.channel.k8s.io"]), 403),
        (websocket(&["v2.channel.k8s.io"]), 403),
        (websocket(&["SPDY/3.1+portforward.k8s.io"]), 403),
        (post, 400),
        (without("sec-websocket-key"), 400),
        (with("sec-websocket-key", "c2hvcnQ="), 400),
        (with("sec-websocket-key", "not base64, 24 letters.."), 400),
        (without("sec-websocket-version"), 426),
        (with("sec-websocket-version", "8"), 426),
    ] {
        let refusal = remote(&request).unwrap_err();
        let response = refusal.response();
        assert_eq!(response.status(), status, "{:?}", request.headers);
        assert!(response.body().starts_with("unable to upgrade: "));
        assert_eq!(value(&response, "content-type"), Some("text/plain; charset=utf-8"));
    }
}

#[test]
fn refusals_say_what_would_do() {
    let response = remote(&spdy(&["bogus"])).unwrap_err().response();
    let ours: Vec<_> = response.headers().get_all("x-accepted-stream-protocol-versions").iter().collect();
    assert_eq!(ours, ["v4.channel.k8s.io", "v3.channel.k8s.io", "v2.channel.k8s.io", "channel.k8s.io"]);
    assert!(!response.body().contains("bogus"), "nothing is echoed");
    let response = forward(&websocket(&["bogus"])).unwrap_err().response();
    assert!(
        response
            .body()
            .contains("SPDY/3.1+portforward.k8s.io, v4.channel.k8s.io, v4.base64.channel.k8s.io\n")
    );
    let mut old = websocket(&[]);
    old.headers.insert("sec-websocket-version", HeaderValue::from_static("8"));
    assert_eq!(value(&remote(&old).unwrap_err().response(), "sec-websocket-version"), Some("13"));
}
