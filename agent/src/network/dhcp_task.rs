//! Runs the DHCP client of one interface: gives it time and datagrams, and does what it says.

use std::io;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep, sleep_until};

use super::dhcp::{Action, Dhcp, Event};
use super::dhcp_socket::DhcpSocket;
use super::lease::Lease;
use super::values::Mac;

/// After a failed send or receive (an interface that was set down, for instance).
const PAUSE: Duration = Duration::from_secs(1);

/// The card that asks.
#[derive(Clone, Debug)]
pub struct Card {
    /// Of the interface.
    pub index: u32,
    /// Its present name.
    pub name: String,
    /// Its hardware address.
    pub mac: Mac,
}

/// What the client has to tell.
#[derive(Clone, Debug)]
pub enum News {
    /// Use this from now on.
    Use(Lease),
    /// Nothing is ours any more.
    Drop,
    /// Nobody answers.
    Silence,
    /// The socket does not work.
    Broken(String),
}

/// What the client is told.
#[derive(Debug)]
pub enum Command {
    /// The carrier is back.
    LinkBack,
    /// Give the lease back and end; then say so.
    End(oneshot::Sender<()>),
}

/// Asks until it is told to end, or until nobody listens any more.
pub async fn run(
    card: Card,
    wish: Option<std::net::Ipv4Addr>,
    news: impl Fn(News),
    mut commands: mpsc::UnboundedReceiver<Command>,
) {
    let mut socket = loop {
        match DhcpSocket::open(card.index, &card.name, card.mac) {
            Ok(socket) => break socket,
            Err(error) => news(News::Broken(error.to_string())),
        }
        tokio::select! {
            () = sleep(PAUSE * 5) => {}
            command = commands.recv() => if !matches!(command, Some(Command::LinkBack)) { return },
        }
    };

    let began = Instant::now();
    let mut client = Dhcp::new(
        card.mac,
        wish,
        socket.needs_broadcast(),
        seed(),
        Duration::ZERO,
    );
    let mut server = None;
    loop {
        let actions = tokio::select! {
            // What we are told goes before what the link says.
            biased;
            command = commands.recv() => match command {
                Some(Command::LinkBack) => client.step(Event::LinkBack, began.elapsed()),
                Some(Command::End(done)) => {
                    release(&mut client, &socket, server).await;
                    // Whoever asked may have stopped waiting.
                    let _ = done.send(());
                    return;
                }
                None => return,
            },
            () = sleep_until(began + client.wake()) => client.step(Event::Time, began.elapsed()),
            received = socket.receive() => match received {
                Ok(received) => {
                    let actions = client.step(Event::Received(received.payload), began.elapsed());
                    if actions.iter().any(|action| matches!(action, Action::Use(_))) {
                        server = received.from;
                    }
                    actions
                }
                Err(_) => {
                    // The error is told when sending fails too; here it must only not spin.
                    sleep(PAUSE).await;
                    Vec::new()
                }
            },
        };
        for action in actions {
            match action {
                Action::Send(message) => {
                    if let Err(error) = socket.broadcast(&message).await {
                        news(News::Broken(error.to_string()));
                    }
                }
                Action::Use(lease) => news(News::Use(lease)),
                Action::Drop(_) => news(News::Drop),
                Action::Silence => news(News::Silence),
            }
        }
    }
}

/// So that the running system, which may show another identifier, can get the same address. Best effort: a lease
/// that is not given back only expires.
async fn release(client: &mut Dhcp, socket: &DhcpSocket, server: Option<Mac>) {
    let (Some(mac), Some((message, address))) = (server, client.release()) else {
        return;
    };
    let from = message
        .get(12..16)
        .and_then(|bytes| <[u8; 4]>::try_from(bytes).ok())
        .unwrap_or_default();
    let result: io::Result<()> = socket.send_to((mac, address), from.into(), &message).await;
    if let Err(error) = result {
        log::debug!("failed to give a DHCP lease back: {error}");
    }
}

fn seed() -> u64 {
    let mut bytes = [0; 8];
    match getrandom::fill(&mut bytes) {
        Ok(()) => u64::from_ne_bytes(bytes),
        // It only spreads retransmissions and numbers exchanges.
        Err(_) => u64::from(std::process::id()),
    }
}
