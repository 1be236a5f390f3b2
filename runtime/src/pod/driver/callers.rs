//! The calls that wait for their replies.

use crate::error::Error;
use crate::pod::command::{Command, Reply};
use crate::pod::context::random;
use crate::pod::exec::Ticket;
use crate::pod::life::{Answer, Call, Waiter};
use crate::shims::Client;
use crate::shims::client::ClientError;
use model::ContainerId;
use std::collections::HashMap;

/// Where the reply to a call is sent.
#[derive(Debug)]
enum Caller {
    Unit(Reply<()>),
    Create(Reply<ContainerId>),
    Exec(Reply<Ticket>),
}

/// The callers of one pod's driver.
#[derive(Debug, Default)]
pub(super) struct Callers {
    waiting: HashMap<Waiter, Caller>,
    /// The number of the next one.
    next: u64,
}

impl Callers {
    /// Adds the caller of a command. `None` if it already has its reply: there was no random id for a new container.
    pub(super) fn add(&mut self, command: Command) -> Option<(Waiter, Call)> {
        let (call, caller) = match command {
            Command::StopPod(reply) => (Call::StopPod, Caller::Unit(reply)),
            Command::RemovePod(reply) => (Call::RemovePod, Caller::Unit(reply)),
            Command::Create { config, reply } => match random() {
                Ok(bytes) => {
                    let id = ContainerId::from_random(bytes);
                    (Call::Create { id, config }, Caller::Create(reply))
                }
                Err(error) => {
                    drop(reply.send(Err(error)));
                    return None;
                }
            },
            Command::Start { id, reply } => (Call::Start(id), Caller::Unit(reply)),
            Command::Stop { id, grace, reply } => (Call::Stop(id, grace), Caller::Unit(reply)),
            Command::Remove { id, reply } => (Call::Remove(id), Caller::Unit(reply)),
            Command::ReopenLog { id, reply } => (Call::ReopenLog(id), Caller::Unit(reply)),
            Command::Exec { id, reply } => (Call::Exec(id), Caller::Exec(reply)),
            Command::Update { id, update, reply } => (Call::Update(id, update), Caller::Unit(reply)),
            Command::UpdatePod { resources, reply } => (Call::UpdatePod(resources), Caller::Unit(reply)),
        };
        let waiter = Waiter(self.next);
        self.next += 1;
        self.waiting.insert(waiter, caller);
        Some((waiter, call))
    }

    /// Sends the reply to a caller, which may have gone. `client`: the connection that an exec uses.
    pub(super) fn answer(&mut self, waiter: Waiter, answer: Result<Answer, Error>, client: Option<&Client>) {
        let odd =
            |answer| Error::internal(format!("bug in copepod: a call got the reply of another: {answer:?}"));
        match (self.waiting.remove(&waiter), answer) {
            (None, answer) => tracing::error!(?waiter, ?answer, "bug in copepod: a second reply to a call"),
            (Some(Caller::Unit(reply)), answer) => {
                drop(reply.send(answer.and_then(|answer| match answer {
                    Answer::Done => Ok(()),
                    answer => Err(odd(answer)),
                })));
            }
            (Some(Caller::Create(reply)), answer) => {
                drop(reply.send(answer.and_then(|answer| match answer {
                    Answer::Created(id) => Ok(id),
                    answer => Err(odd(answer)),
                })));
            }
            (Some(Caller::Exec(reply)), answer) => {
                drop(reply.send(answer.and_then(|answer| match (answer, client) {
                    (Answer::MayExec(record), Some(client)) => Ok(Ticket { client: client.clone(), record }),
                    (Answer::MayExec(_), None) => Err(ClientError::Lost.into()),
                    (answer, _) => Err(odd(answer)),
                })));
            }
        }
    }
}
