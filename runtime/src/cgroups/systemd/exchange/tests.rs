use super::super::message::Writer;
use super::*;

fn scope() -> Scope {
    Scope {
        unit: "copepod-00ff.scope".to_owned(),
        slice: "kubepods-pod1.slice".to_owned(),
        description: "pod a/b".to_owned(),
        pid: 77,
    }
}

/// A message that systemd sends; `fields` appends header fields.
fn sent(
    kind: u8,
    signature: &str,
    fields: impl FnOnce(&mut Writer),
    body: impl FnOnce(&mut Writer),
) -> Vec<u8> {
    super::super::message::tests::message(kind, signature, fields, body)
}

fn job_removed(unit: &str, result: &str) -> Vec<u8> {
    let member = |fields: &mut Writer| {
        super::super::message::tests::field(fields, 2, MANAGER);
        super::super::message::tests::field(fields, 3, "JobRemoved");
    };
    sent(4, "uoss", member, |body| {
        body.u32(12);
        body.text("/org/freedesktop/systemd1/job/12");
        body.text(unit);
        body.text(result);
    })
}

/// The error of a call, from systemd.
fn error(call: u32, name: &str, text: &str) -> Vec<u8> {
    error_from(":1.0", call, name, text)
}

fn error_from(sender: &str, call: u32, name: &str, text: &str) -> Vec<u8> {
    let fields = |fields: &mut Writer| {
        super::super::message::tests::field(fields, 4, name);
        super::super::message::tests::field(fields, 7, sender);
        super::super::message::tests::number(fields, 5, call);
    };
    sent(3, "s", fields, |body| body.text(text))
}

fn authenticated(peer: Peer) -> (Exchange, Vec<u8>) {
    let (mut exchange, first) = Exchange::new(peer, scope(), 0);
    assert_eq!(first, b"\0AUTH EXTERNAL 30\r\n");
    assert_eq!(exchange.receive(b"OK 1234"), Ok(Next::Read));
    let Ok(Next::Write(bytes)) = exchange.receive(b"deadbeef\r\n") else { panic!("it must begin") };
    (exchange, bytes)
}

fn members(bytes: &[u8]) -> Vec<String> {
    let mut rest = bytes.strip_prefix(b"BEGIN\r\n").unwrap();
    let mut members = Vec::new();
    while !rest.is_empty() {
        let (message, length) = Message::parse(rest).unwrap().unwrap();
        members.push(message.member.to_owned());
        rest = &rest[length..];
    }
    members
}

#[test]
fn the_bus_is_greeted_and_systemd_is_not() {
    assert_eq!(members(&authenticated(Peer::Bus).1), ["Hello", "AddMatch", "StartTransientUnit"]);
    let (_, bytes) = authenticated(Peer::Systemd);
    assert_eq!(members(&bytes), ["StartTransientUnit"]);
    let has = |text: &str| bytes.windows(text.len()).any(|window| window == text.as_bytes());
    for text in [
        "copepod-00ff.scope",
        "kubepods-pod1.slice",
        "Delegate",
        "inactive-or-failed",
        "TasksMax",
        "MemoryMin",
        "MemoryLow",
    ] {
        assert!(has(text), "{text}");
    }
    assert!(!has("DevicePolicy"));
}

#[test]
fn the_scope_exists_when_its_job_is_done() {
    let (mut exchange, _) = authenticated(Peer::Bus);
    assert_eq!(exchange.receive(&job_removed("other.scope", "failed")), Ok(Next::Read));
    // In pieces, with other signals before it.
    let bytes = [job_removed("other.scope", "done"), job_removed("copepod-00ff.scope", "done")].concat();
    let (start, end) = bytes.split_at(bytes.len() - 1);
    for byte in start {
        assert_eq!(exchange.receive(&[*byte]), Ok(Next::Read));
    }
    assert_eq!(exchange.receive(end), Ok(Next::Done));
}

#[test]
fn failures_say_whose_they_are() {
    let failed = |bytes: &[u8]| authenticated(Peer::Bus).0.receive(bytes).unwrap_err();
    let job = failed(&job_removed("copepod-00ff.scope", "dependency"));
    assert!(job.is_systemds() && job.to_string().contains("dependency"), "{job}");
    let refused = failed(&error(3, "org.freedesktop.systemd1.UnitExists", "it was loaded"));
    assert!(refused.is_systemds() && refused.is_existing());
    assert_eq!(refused.to_string(), "org.freedesktop.systemd1.UnitExists: it was loaded");
    let bus = failed(&error(1, "org.freedesktop.DBus.Error.LimitsExceeded", "too many"));
    assert!(!bus.is_systemds(), "{bus}");
    // Of these names only the sender tells whether systemd has been asked.
    for name in ["NoReply", "TimedOut", "AccessDenied", "LimitsExceeded", "Spawn.ChildExited"] {
        let name = format!("org.freedesktop.DBus.Error.{name}");
        let by_bus = failed(&error_from(BUS, START, &name, "not delivered"));
        assert!(!by_bus.is_systemds(), "{by_bus}");
        assert!(failed(&error(START, &name, "refused")).is_systemds(), "{name}");
    }
    // The error of a call that is not ours.
    let (mut exchange, _) = authenticated(Peer::Bus);
    assert_eq!(exchange.receive(&error(9, "a.b", "c")), Ok(Next::Read));
    assert!(matches!(exchange.receive(&[b'B'; 16]), Err(Failed::Malformed(_))));
}

#[test]
fn a_refused_authentication_is_an_error() {
    let receive = |bytes: &[u8]| Exchange::new(Peer::Systemd, scope(), 1000).0.receive(bytes);
    assert_eq!(receive(b"REJECTED EXTERNAL\r\n"), Err(Failed::Rejected("REJECTED EXTERNAL".to_owned())));
    assert_eq!(receive(b"OK 12"), Ok(Next::Read));
    assert!(matches!(receive(&[b'O'; 5000]), Err(Failed::Rejected(_))));
}
