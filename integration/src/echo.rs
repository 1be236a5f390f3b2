//! Servers that run in a pod's network namespace, as processes of this program.

use std::io::{self, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::thread;

use anyhow::{Context as _, Result};
use tokio::process::{Child, Command};

/// What [`tcp`] sends after the last byte that it sends back.
pub(crate) const LAST: &[u8] = b"end\n";
/// What [`tcp`] sends first, if it ends its direction first.
pub(crate) const GREETING: &[u8] = b"greeting\n";

/// Starts this program with these arguments in the network namespace of a process. It ends when the result is dropped.
pub(crate) fn start(pid: u32, arguments: &[&str]) -> Result<Child> {
    Command::new("nsenter")
        .arg(format!("--net=/proc/{pid}/ns/net"))
        .arg(std::env::current_exe()?)
        .args(arguments)
        .stdout(std::process::Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .context("run nsenter (package util-linux)")
}

/// Sends back every datagram that it receives on a port.
pub(crate) fn udp(port: u16) -> Result<bool> {
    let socket = UdpSocket::bind(("0.0.0.0", port))?;
    let mut buffer = [0_u8; 2048];
    loop {
        let (n, peer) = socket.recv_from(&mut buffer)?;
        socket.send_to(buffer.get(..n).unwrap_or_default(), peer)?;
    }
}

/// Prints `listening`, and then serves each connection of an address: sends back what it receives, and [`LAST`] after
/// the client's end. With `first` it sends [`GREETING`], ends its direction, and prints how many bytes come after that.
pub(crate) fn tcp(address: SocketAddr, first: bool) -> Result<bool> {
    let listener = TcpListener::bind(address).with_context(|| format!("listen on {address}"))?;
    println!("listening");
    for connection in listener.incoming() {
        let connection = connection?;
        thread::spawn(move || {
            let served = if first { count(connection) } else { echo(connection) };
            if let Err(error) = served {
                println!("failed: {error}");
            }
        });
    }
    Ok(true)
}

/// Prints `listening`, and then serves each connection of an address: after the byte `d` it sends this many bytes,
/// after `u` it receives as many and answers with one.
pub(crate) fn bulk(address: SocketAddr, bytes: u64) -> Result<bool> {
    let listener = TcpListener::bind(address).with_context(|| format!("listen on {address}"))?;
    println!("listening");
    for connection in listener.incoming() {
        let connection = connection?;
        thread::spawn(move || {
            if let Err(error) = transfer(connection, bytes) {
                println!("failed: {error}");
            }
        });
    }
    Ok(true)
}

/// Bytes of one call of [`transfer`].
const CHUNK: usize = 256 * 1024;

fn transfer(mut connection: TcpStream, bytes: u64) -> io::Result<()> {
    let mut first = [0];
    connection.read_exact(&mut first)?;
    let (mut left, mut chunk) = (bytes, vec![0; CHUNK]);
    while left > 0 {
        let room = chunk.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        let part = chunk.get_mut(..room).unwrap_or_default();
        let count = if first == *b"d" {
            connection.write(part)?
        } else {
            // The kernel drops them.
            rustix::net::recv(&connection, part, rustix::net::RecvFlags::TRUNC)?.1
        };
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        left = left.saturating_sub(count as u64);
    }
    if first == *b"u" {
        connection.write_all(b".")?;
    }
    Ok(())
}

fn echo(mut connection: TcpStream) -> io::Result<()> {
    let mut back = connection.try_clone()?;
    io::copy(&mut connection, &mut back)?;
    back.write_all(LAST)
}

fn count(mut connection: TcpStream) -> io::Result<()> {
    connection.write_all(GREETING)?;
    connection.shutdown(Shutdown::Write)?;
    let mut bytes = Vec::new();
    connection.read_to_end(&mut bytes)?;
    println!("{} bytes after the end", bytes.len());
    Ok(())
}
