//! Requests of the streaming calls.

use super::container::command;
use super::{Field, Result, each};
use cri_api::v1 as cri;
use model::Text;
use streaming::remote::Streams;

/// Container id, command and streams of an Exec request.
pub(crate) fn exec(given: cri::ExecRequest) -> Result<(String, Vec<Text>, Streams)> {
    let cri::ExecRequest { container_id, cmd, tty, stdin, stdout, stderr } = given;
    Ok((container_id, command(cmd)?, streams(Streams { stdin, stdout, stderr, tty })?))
}

/// Container id and streams of an Attach request.
pub(crate) fn attach(given: cri::AttachRequest) -> Result<(String, Streams)> {
    let cri::AttachRequest { container_id, stdin, tty, stdout, stderr } = given;
    Ok((container_id, streams(Streams { stdin, stdout, stderr, tty })?))
}

/// Pod id and ports of a PortForward request. Only the old WebSocket form uses the ports: with SPDY each connection
/// names its own.
pub(crate) fn port_forward(given: cri::PortForwardRequest) -> Result<(String, Vec<u16>)> {
    let cri::PortForwardRequest { pod_sandbox_id, port } = given;
    let one = |field: &Field<'_>, port: i32| match u16::try_from(port) {
        Ok(port @ 1..) => Ok(port),
        _ => Err(field.invalid(port, "must be from 1 to 65535")),
    };
    Ok((pod_sandbox_id, each(&Field::root("request"), "port", port, one)?))
}

fn streams(given: Streams) -> Result<Streams> {
    if given.tty && given.stderr {
        return Err(Field::root("stderr").invalid(true, "must be false with tty: a terminal has one output"));
    }
    if !given.stdin && !given.stdout && !given.stderr {
        return Err(Field::root("stdin").invalid(false, "stdin, stdout or stderr must be true"));
    }
    Ok(given)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(tty: bool, streams: [bool; 3]) -> cri::ExecRequest {
        let [stdin, stdout, stderr] = streams;
        cri::ExecRequest { container_id: "c".into(), cmd: vec!["sh".into()], tty, stdin, stdout, stderr }
    }

    #[test]
    fn streams_must_fit() {
        assert!(exec(request(true, [true, true, false])).is_ok());
        assert!(exec(request(false, [false, false, true])).is_ok());
        assert!(exec(request(true, [true, true, true])).is_err(), "a terminal has no stderr");
        assert!(exec(request(false, [false; 3])).is_err(), "nothing to stream");
        assert!(exec(cri::ExecRequest { cmd: Vec::new(), ..request(false, [true; 3]) }).is_err());
    }

    #[test]
    fn ports_are_numbers_of_16_bits() {
        let ports = |port: &[i32]| {
            port_forward(cri::PortForwardRequest { pod_sandbox_id: "p".into(), port: port.to_vec() })
        };
        assert_eq!(ports(&[1, 65535]).unwrap().1, [1, 65535]);
        assert_eq!(ports(&[]).unwrap().1, [0u16; 0]);
        for port in [0, -1, 65536] {
            assert!(ports(&[80, port]).is_err(), "{port}");
        }
    }
}
