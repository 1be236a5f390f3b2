//! The old form: two WebSocket channels for each port.

use super::*;
use crate::testing::websocket::{BINARY, CLOSE, TEXT, message, read};

#[test]
fn old_form() {
    let mut session = Session::new(Protocol::Channels(Codec::Binary), &[80, 8080], WAIT).unwrap();
    let now = Instant::now();
    let first = [vec![0, 80, 0], vec![1, 80, 0], vec![2, 0x90, 0x1f], vec![3, 0x90, 0x1f]];
    assert_eq!(read(&output(&mut session)), first.map(|payload| (BINARY, payload)));
    let (one, two) = (Id(0), Id(1));
    let got = feed(&mut session, b"", now).unwrap();
    assert_eq!(got, [Event::Opened { id: one, port: 80 }, Event::Opened { id: two, port: 8080 }]);

    let input = [message(BINARY, b"\x02GET"), message(BINARY, b"\x01no"), message(BINARY, b"\x04no")];
    assert_eq!(feed(&mut session, &input.concat(), now), Ok(vec![bytes(two, b"GET")]));
    let frame = session.frame(two, b"200").unwrap().unwrap();
    assert_eq!(read(&[&*frame.head, &frame.body].concat()), [(BINARY, b"\x02200".to_vec())]);
    session.finish(two);
    session.close(one, Some("refused"));
    session.close(one, Some("again"));
    assert_eq!(read(&output(&mut session)), [(BINARY, b"\x01refused".to_vec())]);
    assert_eq!(session.frame(one, b"x").unwrap_err(), SendError::Unknown);
    assert_eq!(feed(&mut session, &message(BINARY, b"\x00late"), now), Ok(vec![]));
    session.close(two, None);
    assert_eq!(read(&output(&mut session)), [(CLOSE, vec![3, 232])]);
    assert_eq!(feed(&mut session, &message(CLOSE, b""), now), Ok(vec![Event::Gone]));
}

#[test]
fn old_form_has_room_for_few_ports() {
    let ports = |count| vec![80; count];
    let codec = Protocol::Channels(Codec::Base64);
    assert!(Session::new(codec, &ports(MAX_PORTS + 1), WAIT).is_err());
    let mut session = Session::new(codec, &ports(MAX_PORTS), WAIT).unwrap();
    let last = read(&output(&mut session)).pop();
    assert_eq!(last, Some((TEXT, b"oUAA=".to_vec())), "channel 63");
}
