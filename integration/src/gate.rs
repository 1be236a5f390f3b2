//! A registry that asks for credentials: a proxy that forwards the requests that have them to a real one.

use anyhow::{Context as _, Result};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

use crate::stall::{forward, head};

/// `user` with the password `secret`.
const BASIC: &str = "Basic dXNlcjpzZWNyZXQ=";
/// The token that the registry gives for them.
pub(crate) const TOKEN: &str = "t0ken";
/// What it exchanges for the token too.
pub(crate) const IDENTITY: &str = "idtoken";

/// What the registry asks for.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Scheme {
    /// User and password, with each request.
    Basic,
    /// A token, which it gives for user and password or for [`IDENTITY`].
    Token,
}

/// The listener; it stops on drop.
#[derive(Debug)]
pub(crate) struct Gate {
    /// Its port on 127.0.0.1.
    pub(crate) port: u16,
    task: JoinHandle<()>,
}

impl Gate {
    /// Starts a proxy for the registry on port `behind`.
    pub(crate) async fn start(behind: u16, scheme: Scheme) -> Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let port = listener.local_addr()?.port();
        let task = tokio::spawn(async move {
            // Connections end with the listener's task.
            let mut open = tokio::task::JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                open.spawn(async move { drop(connection(client, port, behind, scheme).await) });
            }
        });
        Ok(Self { port, task })
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// The value of a header.
fn header<'t>(head: &'t str, name: &str) -> &'t str {
    let lines = head.lines().filter_map(|line| line.split_once(": "));
    let mut values = lines.filter(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value);
    values.next().unwrap_or_default()
}

/// Handles one request; connections are not reused.
async fn connection(mut client: TcpStream, port: u16, behind: u16, scheme: Scheme) -> Result<()> {
    let head = head(&mut client).await?;
    let path = head.split(' ').nth(1).context("no path")?;
    let given = header(&head, "authorization");
    if path.starts_with("/token") {
        let mut body = vec![0; header(&head, "content-length").parse().unwrap_or(0_u16).into()];
        client.read_exact(&mut body).await?;
        let body = String::from_utf8_lossy(&body).into_owned();
        let exchanged = body.split('&').any(|pair| pair == format!("refresh_token={IDENTITY}"));
        if given == BASIC || exchanged {
            return answer(&mut client, "200 OK", "", &format!("{{\"token\":\"{TOKEN}\"}}")).await;
        }
        return answer(&mut client, "401 Unauthorized", "", "").await;
    }
    let (wanted, challenge) = match scheme {
        Scheme::Basic => (BASIC.to_owned(), "Basic realm=\"test\"".to_owned()),
        Scheme::Token => (
            format!("Bearer {TOKEN}"),
            format!("Bearer realm=\"http://127.0.0.1:{port}/token\",service=\"test\""),
        ),
    };
    if given != wanted {
        let challenge = format!("WWW-Authenticate: {challenge}\r\n");
        return answer(&mut client, "401 Unauthorized", &challenge, "").await;
    }
    forward(&mut client, behind, &head).await
}

async fn answer(client: &mut TcpStream, status: &str, headers: &str, body: &str) -> Result<()> {
    let length = body.len();
    let text =
        format!("HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: {length}\r\n{headers}\r\n{body}");
    Ok(client.write_all(text.as_bytes()).await?)
}
