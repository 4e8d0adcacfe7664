//! Asks key servers, in a thread of its own.
//!
//! The clients hold the boot keys and the connections hold session keys; all of them live in this thread and its
//! runtime, so that ending the thread is what wipes them (freed memory is wiped by the allocator).

use std::thread::JoinHandle;

use latchkey_protocol::wire::{ReleaseAnswer, ReleaseRequest};
use tokio::sync::mpsc::{self, UnboundedReceiver, UnboundedSender};

use super::credentials::Server;
use crate::flow::ServerIndex;
use crate::server::{Client, ClientError};

/// A key server's answer.
#[derive(Debug)]
pub struct Answered {
    /// The number of the request.
    pub number: u64,
    /// Who answered.
    pub server: ServerIndex,
    /// What.
    pub result: Result<ReleaseAnswer, AskError>,
}

/// There was no answer, or none that counts.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// The files of this key server do not make a client.
    #[error("{0}")]
    Setup(String),
    /// The request failed.
    #[error(transparent)]
    Client(#[from] ClientError),
}

/// The thread.
#[derive(Debug)]
pub struct Asker {
    commands: UnboundedSender<Command>,
    thread: JoinHandle<()>,
}

#[derive(Debug)]
enum Command {
    Ask {
        number: u64,
        server: ServerIndex,
        address: usize,
        request: Box<ReleaseRequest>,
    },
    Cancel,
}

impl Asker {
    /// Starts the thread; answers go to `answered`. `built` is when the image was built, Unix seconds.
    ///
    /// # Errors
    /// The thread could not be started.
    pub fn start(
        servers: Vec<Server>,
        built: u64,
        answered: impl Fn(Answered) + Send + Sync + Clone + 'static,
    ) -> std::io::Result<Self> {
        let (commands, received) = mpsc::unbounded_channel();
        let thread = std::thread::Builder::new()
            .name("key-servers".to_owned())
            .spawn(move || {
                match tokio::runtime::Builder::new_current_thread()
                    .enable_all()
                    .build()
                {
                    Ok(runtime) => {
                        runtime.block_on(serve(servers, built, received, answered));
                        // A name lookup that hangs knows no secret and must not hold up the boot.
                        runtime.shutdown_background();
                    }
                    Err(error) => log::error!("failed to start the key-server thread: {error}"),
                }
            })?;
        Ok(Self { commands, thread })
    }

    /// Asks; a request that is under way is forgotten.
    pub fn ask(&self, number: u64, server: ServerIndex, address: usize, request: ReleaseRequest) {
        let request = Box::new(request);
        // Fails only when the thread is gone; the flow then hears nothing, and the prompt stands.
        let _ = self.commands.send(Command::Ask {
            number,
            server,
            address,
            request,
        });
    }

    /// Forgets the request that is under way.
    pub fn cancel(&self) {
        let _ = self.commands.send(Command::Cancel);
    }

    /// Ends the thread and with it every boot key and connection.
    pub fn end(self) {
        drop(self.commands);
        if self.thread.join().is_err() {
            log::error!("the key-server thread ended badly");
        }
    }
}

async fn serve(
    servers: Vec<Server>,
    built: u64,
    mut commands: UnboundedReceiver<Command>,
    answered: impl Fn(Answered) + Send + Sync + Clone + 'static,
) {
    let mut clients = Vec::new();
    for server in servers {
        clients.push((server.material.client(built), server.settings.addresses));
    }
    let mut current: Option<tokio::task::JoinHandle<()>> = None;
    while let Some(command) = commands.recv().await {
        if let Some(task) = current.take() {
            task.abort();
        }
        let Command::Ask {
            number,
            server,
            address,
            request,
        } = command
        else {
            continue;
        };
        let Some((client, addresses)) = clients.get(server) else {
            continue;
        };
        let Some(address) = addresses.get(address).cloned() else {
            continue;
        };
        let client: Result<Client, String> = client.clone();
        let answered = answered.clone();
        current = Some(tokio::spawn(async move {
            let result = match client {
                Ok(client) => client
                    .release(&address, &request)
                    .await
                    .map_err(AskError::from),
                Err(why) => Err(AskError::Setup(why)),
            };
            answered(Answered {
                number,
                server,
                result,
            });
        }));
    }
}
