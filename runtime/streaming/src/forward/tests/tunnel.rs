//! SPDY in the messages of a WebSocket.

use super::*;
use crate::testing::spdy::ping;
use crate::testing::websocket::{BINARY, CLOSE, PING, PONG, TEXT, message, read};

/// A client's bytes as messages of a tunnel, cut at every `size`.
pub(super) fn tunnelled(bytes: &[u8], size: usize) -> Vec<u8> {
    bytes.chunks(size).flat_map(|part| message(BINARY, part)).collect()
}

/// The octet stream in a server's messages, and control frames beside it.
pub(super) fn octets(bytes: &[u8]) -> (Vec<u8>, Vec<(u8, Vec<u8>)>) {
    let (messages, rest): (Vec<_>, Vec<_>) =
        read(bytes).into_iter().partition(|(opcode, _)| *opcode == BINARY);
    (messages.into_iter().flat_map(|(_, payload)| payload).collect(), rest)
}

#[test]
fn tunnel() {
    for size in [1, 3, 8, 10_000] {
        let mut session = Session::new(Protocol::Tunnel, &[], WAIT).unwrap();
        let mut client = Client::new();
        let headers = |kind| [("streamtype", kind), ("port", "80"), ("requestid", "0")];
        let input = [
            client.open(0, &headers("error")).1,
            client.open(0, &headers("data")).1,
            data(3, 0, b"GET /"),
            ping(1),
        ];
        let mut input = tunnelled(&input.concat(), size);
        input.extend(message(PING, b"?"));
        let got = feed(&mut session, &input, Instant::now()).unwrap();
        let id = Id(3);
        assert_eq!(got[0], Event::Opened { id, port: 80 });
        let received: Vec<u8> = got[1..]
            .iter()
            .flat_map(|event| match event {
                Event::Data { bytes, .. } => bytes.to_vec(),
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(received, b"GET /");

        let mut sent = output(&mut session);
        let frame = session.frame(id, b"200").unwrap().unwrap();
        sent.extend([&*frame.head, &frame.body].concat());
        session.close(id, None);
        session.leave();
        sent.extend(output(&mut session));
        let (octets, control) = octets(&sent);
        let expected = [
            Sent::Reply(1),
            Sent::Reply(3),
            Sent::Ping(1),
            Sent::Data(3, false, b"200".to_vec()),
            Sent::Data(1, true, vec![]),
            Sent::Data(3, true, vec![]),
            Sent::Reset(3, 5),
            Sent::GoAway(3, 0),
        ];
        assert_eq!(client.read(&octets), expected);
        assert_eq!(control, [(PONG, b"?".to_vec()), (CLOSE, vec![3, 232])]);
        assert_eq!(feed(&mut session, &message(CLOSE, &[3, 232]), Instant::now()), Ok(vec![Event::Gone]));
    }
}

#[test]
fn tunnel_that_is_none() {
    let mut session = Session::new(Protocol::Tunnel, &[], WAIT).unwrap();
    let text = feed(&mut session, &message(TEXT, b"x"), Instant::now());
    assert_eq!(text, Err(Error::WebSocket(websocket::Error::Text)));
    assert_eq!(read(&output(&mut session)), [(CLOSE, vec![3, 235])], "1003, unsupported data");

    let mut session = Session::new(Protocol::Tunnel, &[], WAIT).unwrap();
    let zero = feed(&mut session, &message(BINARY, &data(0, 0, b"")), Instant::now());
    assert_eq!(zero, Err(Error::Spdy(spdy::Error::StreamZero)));
    let (octets, control) = octets(&output(&mut session));
    assert_eq!(Client::new().read(&octets), [Sent::GoAway(0, 1)]);
    assert_eq!(control, [(CLOSE, vec![3, 234])], "1002, protocol error");
    let more = [message(BINARY, &ping(1)), b"\x82\x00".to_vec()];
    assert_eq!(feed(&mut session, &more.concat(), Instant::now()), Ok(vec![]), "nothing more is read");
    assert!(session.output().is_empty());
}

#[test]
fn tunnel_with_unread_answers_stops_reading() {
    let mut session = Session::new(Protocol::Tunnel, &[], WAIT).unwrap();
    let mut flood = message(BINARY, &ping(1).repeat(5_000)).repeat(20);
    let mut input = Input::new(&mut flood);
    let now = Instant::now();
    assert_eq!(session.receive(&mut input, now), Ok(None));
    assert!(!input.is_empty() && session.output().len() < 40 * 1024);
    let mut answers = 0;
    while !input.is_empty() {
        answers += Client::new().read(&octets(&output(&mut session)).0).len();
        assert_eq!(session.receive(&mut input, now), Ok(None));
    }
    answers += Client::new().read(&octets(&output(&mut session)).0).len();
    assert_eq!(answers, 100_000, "every ping is answered in the end");
}
