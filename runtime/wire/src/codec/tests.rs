use super::*;
use crate::{ContainerState, ExitFacts, Hello, Snapshot};
use model::{ContainerId, ExecId, PodId, User};
use proptest::prelude::*;

/// Every message of protocol 1. Frozen: lines may be added, but never changed or removed.
const FIXTURES: &str = include_str!("../../fixtures/protocol-1.jsonl");

#[expect(clippy::too_many_lines, reason = "a list of all messages")]
fn every_message() -> Vec<Message> {
    let container: ContainerId = "c0".repeat(32).parse().unwrap();
    let pod: PodId = "9d".repeat(32).parse().unwrap();
    let exec = ExecId(7);
    let facts = ExitFacts {
        code: 137,
        started_at: 1_700_000_000_000_000_001,
        finished_at: 1_700_000_000_000_000_002,
        oom_killed: true,
        start_error: Some("no such file".into()),
    };
    let c = || container.clone();
    let failure = Failure {
        kind: ErrorKind::StartFailed,
        stage: "execve".into(),
        message: "/bin/x: no such file".into(),
        errno: 2,
    };
    let mut all = vec![
        Message::Hello(Hello {
            protocol: 1,
            build: "0.1.0".into(),
            pod: pod.clone(),
            pid: 41,
            features: vec![],
        }),
        Message::Hello(Hello {
            protocol: 1,
            build: "0.1.0".into(),
            pod,
            pid: 41,
            features: crate::feature::ALL.map(String::from).to_vec(),
        }),
        Message::SnapshotEnd,
    ];
    let states = [
        ContainerState::Creating,
        ContainerState::Created,
        ContainerState::Running { started_at: 5 },
        ContainerState::Exited(facts.clone()),
        ContainerState::Unknown,
    ];
    all.extend([
        Message::Snapshot(Snapshot::Pause { pid: 42, exited: None }),
        Message::Snapshot(Snapshot::Pause { pid: 42, exited: Some(143) }),
    ]);
    all.extend(
        states
            .into_iter()
            .map(|state| Message::Snapshot(Snapshot::Container { container: c(), state, pid: 43 })),
    );
    all.push(Message::Snapshot(Snapshot::Exec { exec, container: c() }));
    all.extend(
        [
            Request::StartPause,
            Request::Create {
                container: c(),
                deadline_ms: 30_000,
                log: Some(crate::LogPlan { path: "web/0.log".into() }),
                terminal: false,
                stdin: false,
            },
            Request::Start { container: c() },
            Request::Kill { container: c(), signal: 15, all: false },
            Request::Exec { exec, container: c(), deadline_ms: None },
            Request::Exec { exec, container: c(), deadline_ms: Some(3000) },
            Request::KillExec { exec },
            Request::ReopenLog { container: c() },
            Request::Attach { container: c(), stdout: true, stderr: false, tell_loss: true },
            Request::CloseStdin { container: c() },
            Request::Forget { container: c() },
            Request::StopPod,
            Request::Shutdown,
            Request::Unknown,
        ]
        .map(Message::Request),
    );
    all.extend(
        [
            Reply::Done,
            Reply::PauseStarted { pid: 42 },
            Reply::Created { pid: 43, user: User::default(), home: "/root".into() },
            Reply::Started { started_at: 5 },
            Reply::ExecStarted { pid: 44 },
            Reply::Failed(failure),
        ]
        .map(Message::Reply),
    );
    all.extend(
        [
            Event::Exited { container: c(), facts },
            Event::Started { container: c(), started_at: 5 },
            Event::ExecExited { exec, code: 0 },
            Event::PauseExited { code: 0 },
            Event::Warning { container: Some(c()), message: "log".into() },
            Event::Warning { container: None, message: "log".into() },
            Event::Unknown,
        ]
        .map(Message::Event),
    );
    all
}

#[test]
fn messages_are_those_of_the_frozen_fixtures() {
    let lines: Vec<&str> = FIXTURES.lines().collect();
    for message in every_message() {
        let json = serde_json::to_string(&message).unwrap();
        assert!(lines.contains(&json.as_str()), "not in fixtures/protocol-1.jsonl:\n{json}");
    }
    for line in &lines {
        let message = decode(line.as_bytes()).unwrap_or_else(|e| panic!("{line}: {e}"));
        assert_eq!(&serde_json::to_string(&message).unwrap(), line);
    }
}

#[test]
fn lists_of_known_names_are_complete() {
    for message in every_message() {
        let json = serde_json::to_string(&message).unwrap();
        let tags: Tags = serde_json::from_str(&json).unwrap();
        let known = match tags.class.as_str() {
            "Request" => REQUESTS,
            "Event" => EVENTS,
            "Snapshot" => SNAPSHOTS,
            "Reply" => REPLIES,
            _ => continue,
        };
        assert!(known.contains(&tags.variant.unwrap().as_str()), "{json}");
    }
}

#[test]
fn unknown_messages_can_be_answered_or_skipped() {
    let unknown = Message::Request(Request::Unknown);
    for json in [r#"{"Request":"Freeze"}"#, r#"{"Request":{"Freeze":{"container":"x"}}}"#] {
        assert_eq!(decode(json.as_bytes()).unwrap(), unknown, "{json}");
    }
    let skipped = Message::Event(Event::Unknown);
    for json in [
        r#"{"Event":"Woke"}"#,
        r#"{"Event":{"Woke":[1]}}"#,
        r#"{"Snapshot":{"Attach":{}}}"#,
        r#"{"Metrics":{"a":1}}"#,
        r#""Bye""#,
    ] {
        assert_eq!(decode(json.as_bytes()).unwrap(), skipped, "{json}");
    }
    let reply = decode(br#"{"Reply":{"Frozen":{}}}"#).unwrap();
    assert!(matches!(&reply, Message::Reply(Reply::Failed(f)) if f.kind == ErrorKind::Unsupported));
    let failed = r#"{"Reply":{"Failed":{"kind":"Cosmic","stage":"s","message":"m","errno":0,"more":1}}}"#;
    let reply = decode(failed.as_bytes()).unwrap();
    assert!(
        matches!(&reply, Message::Reply(Reply::Failed(f)) if f.kind == ErrorKind::Internal && f.message == "m")
    );
    // An unknown state of a later version affects neither the container nor the pod.
    for state in [r#""Paused""#, r#"{"Paused":{"since":5}}"#, r#"{"Checkpointed":[1,{"a":[]}]}"#] {
        let json = format!(
            r#"{{"Snapshot":{{"Container":{{"container":"{}","state":{state},"pid":7}}}}}}"#,
            "c0".repeat(32)
        );
        let message = decode(json.as_bytes()).unwrap();
        let Message::Snapshot(Snapshot::Container { state, pid, .. }) = message else {
            panic!("{message:?}")
        };
        assert_eq!((state, pid), (ContainerState::Unknown, 7));
    }
    // An additional field is accepted, a missing one is not.
    let more = format!(r#"{{"Request":{{"Start":{{"container":"{}","x":1}}}}}}"#, "c0".repeat(32));
    assert!(matches!(decode(more.as_bytes()).unwrap(), Message::Request(Request::Start { .. })));
    for bad in [
        r#"{"Request":{"Start":{}}}"#,
        r#"{"Request":{"Kill":"x"}}"#,
        "",
        "[]",
        "{}",
        "{\"Request\":",
        "\"Hello\"",
    ] {
        assert!(decode(bad.as_bytes()).is_err(), "{bad}");
    }
}

#[test]
fn refuses_foreign_and_oversized_frames() {
    let mut good = Vec::new();
    encode(3, 2, &Message::SnapshotEnd, &mut good).unwrap();
    let with = |at: usize, byte: u8| {
        let mut bytes = good.clone();
        bytes[at] = byte;
        let mut decoder = Decoder::new();
        decoder.feed(&bytes);
        decoder.next()
    };
    assert!(matches!(with(0, b'x'), Err(CodecError::Header(_))));
    assert!(matches!(with(2, 9), Err(CodecError::Header(_))));
    assert!(matches!(with(3, 33), Err(CodecError::TooManyFds(33))));
    assert!(matches!(with(7, 1), Err(CodecError::TooLarge(_))));
    assert!(matches!(with(16, b'{'), Err(CodecError::Payload { id: 3, .. })));
    let mut decoder = Decoder::new();
    decoder.feed(b"G");
    assert!(decoder.next().is_err());

    let long = Message::Event(Event::Warning { container: None, message: "x".repeat(MAX_FRAME) });
    let mut out = vec![1, 2];
    assert!(matches!(encode(0, 0, &long, &mut out), Err(CodecError::TooLarge(_))));
    assert!(matches!(encode(0, 33, &Message::SnapshotEnd, &mut out), Err(CodecError::TooManyFds(33))));
    assert_eq!(out, [1, 2]);
}

proptest! {
    #[test]
    fn any_chunking_gives_the_same_frames(cuts in proptest::collection::vec(1usize..200, 1..60)) {
        let messages = every_message();
        let mut bytes = Vec::new();
        for (id, message) in messages.iter().enumerate() {
            encode(id as u64, u8::try_from(id % 5).unwrap(), message, &mut bytes).unwrap();
        }
        let (mut decoder, mut got, mut rest) = (Decoder::new(), Vec::new(), bytes.as_slice());
        let mut cuts = cuts.iter().cycle();
        while !rest.is_empty() {
            let (now, later) = rest.split_at(rest.len().min(*cuts.next().unwrap()));
            decoder.feed(now);
            while let Some(frame) = decoder.next().unwrap() {
                got.push(frame);
            }
            prop_assert!(decoder.buffer.len() <= 200 + HEADER + MAX_FRAME);
            rest = later;
        }
        prop_assert_eq!(got.len(), messages.len());
        for (id, (frame, message)) in got.into_iter().zip(messages).enumerate() {
            prop_assert_eq!(frame, Frame { id: id as u64, nfds: u8::try_from(id % 5).unwrap(), message });
        }
    }

    #[test]
    fn any_bytes_are_decoded_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let mut decoder = Decoder::new();
        decoder.feed(&bytes);
        while let Ok(Some(_)) = decoder.next() {}
    }
}
