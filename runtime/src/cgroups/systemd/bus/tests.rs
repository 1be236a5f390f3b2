use super::super::message::tests as sent;
use super::*;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

const LIMIT: Duration = Duration::from_secs(20);

fn scope() -> Scope {
    Scope {
        unit: "copepod-1.scope".into(),
        slice: "copepod.slice".into(),
        description: "a pod".into(),
        pid: 1,
    }
}

/// Serves one connection: reads until `StartTransientUnit` has come, and then sends `answer`.
fn serve(path: &Path, answer: Vec<u8>) -> thread::JoinHandle<()> {
    let listener = UnixListener::bind(path).unwrap();
    thread::spawn(move || {
        let mut stream = listener.accept().unwrap().0;
        let (mut buffer, mut all) = ([0; 4096], Vec::new());
        while !all.windows(18).any(|window| window == b"StartTransientUnit") {
            let read = stream.read(&mut buffer).unwrap();
            assert!(read > 0, "the client went away");
            let is_first = all.is_empty();
            all.extend_from_slice(&buffer[..read]);
            if is_first {
                stream.write_all(b"OK 0123\r\n").unwrap();
            }
        }
        stream.write_all(&answer).unwrap();
    })
}

fn done(result: &str) -> Vec<u8> {
    let body = |body: &mut super::super::message::Writer| {
        body.u32(1);
        for text in ["/job/1", "copepod-1.scope", result] {
            body.text(text);
        }
    };
    sent::message(4, "uoss", |fields| sent::field(fields, 3, "JobRemoved"), body)
}

fn exists_already() -> Vec<u8> {
    let fields = |fields: &mut super::super::message::Writer| {
        sent::field(fields, 4, "org.freedesktop.systemd1.UnitExists");
        sent::number(fields, 5, 3);
    };
    sent::message(3, "s", fields, |body| body.text("it exists"))
}

/// The bus does not deliver the call.
fn denied() -> Vec<u8> {
    let fields = |fields: &mut super::super::message::Writer| {
        sent::field(fields, 4, "org.freedesktop.DBus.Error.AccessDenied");
        sent::number(fields, 5, 3);
        sent::field(fields, 7, "org.freedesktop.DBus");
    };
    sent::message(3, "s", fields, |body| body.text("rejected"))
}

/// The result with these answers of the bus and of systemd; `None` does not listen.
fn make_with(answers: [Option<Vec<u8>>; 2], exists: &dyn Fn() -> bool) -> Result<(), Error> {
    // Where nobody listens, attempts are repeated for a third of the limit.
    let limit = if answers.iter().all(Option::is_none) { Duration::from_millis(30) } else { LIMIT };
    let folder = tempfile::tempdir().unwrap();
    let paths = ["bus", "private"].map(|name| folder.path().join(name));
    let servers: Vec<_> =
        paths.iter().zip(answers).filter_map(|(path, answer)| Some(serve(path, answer?))).collect();
    let [bus, private] = paths.each_ref().map(|path| path.to_str().unwrap());
    let ways = [(Peer::Bus, bus), (Peer::Systemd, private)];
    let made = make_by(&scope(), limit, exists, ways, &Silence::default());
    servers.into_iter().for_each(|server| server.join().unwrap());
    made
}

#[test]
fn the_bus_is_asked_first_and_systemd_if_it_is_down() {
    make_with([Some(done("done")), None], &|| false).unwrap();
    make_with([None, Some(done("done"))], &|| false).unwrap();
    // The connection ends without an answer.
    make_with([Some(Vec::new()), Some(done("done"))], &|| false).unwrap();
    make_with([Some(denied()), Some(done("done"))], &|| false).unwrap();
    let error = make_with([None, None], &|| false).unwrap_err();
    assert!(matches!(error, Error::Unreachable(_)));
    assert!(error.to_string().contains("bus: it cannot be reached: No such file"), "{error}");
}

#[test]
fn an_answer_that_is_lost_is_made_up_for() {
    make_with([Some(Vec::new()), None], &|| true).unwrap();
    // Asked for by the first connection; its process gets there while the second one waits.
    let seen = AtomicBool::new(false);
    let exists = || seen.swap(true, Ordering::Relaxed);
    make_with([Some(Vec::new()), Some(exists_already())], &exists).unwrap();
}

#[test]
fn what_systemd_refuses_is_not_asked_again() {
    let refused = |answer: Vec<u8>| make_with([Some(answer), None], &|| false).unwrap_err();
    assert!(matches!(refused(done("failed")), Error::Refused(Failed::Job { .. })));
    assert!(matches!(refused(exists_already()), Error::Refused(Failed::Refused { .. })));
}

#[test]
fn a_silent_bus_is_asked_last_for_a_while() {
    let folder = tempfile::tempdir().unwrap();
    let paths = ["bus", "private"].map(|name| folder.path().join(name));
    let [bus, private] = paths.each_ref().map(|path| path.to_str().unwrap());
    // The kernel takes the connection, and nobody reads from it.
    let silent = UnixListener::bind(&paths[0]).unwrap();
    let silence = Silence::default();
    let ways = [(Peer::Bus, bus), (Peer::Systemd, private)];
    let make = |limit| make_by(&scope(), limit, &|| false, ways, &silence);
    assert!(make(Duration::from_millis(30)).is_err());
    let now = Instant::now();
    assert!(silence.lasts(now) && !silence.lasts(now + DISTRUST));
    silent.set_nonblocking(true).unwrap();
    while silent.accept().is_ok() {}
    let systemd = serve(&paths[1], done("done"));
    make(LIMIT).unwrap();
    systemd.join().unwrap();
    assert!(silent.accept().is_err(), "the bus was asked");
}
