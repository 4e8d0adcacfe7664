//! The network in front of the key server: a way from each place, by whose address the key server knows who asks from where.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};

use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::runtime::Runtime;
use tokio::task::AbortHandle;

/// An address that connections come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place(pub Ipv4Addr);

pub struct Network {
    ways: Vec<(Place, SocketAddr)>,
    state: Arc<Mutex<State>>,
    _runtime: Runtime,
}

#[derive(Default)]
struct State {
    /// Where the key server listens; nowhere while it is away.
    server: Option<SocketAddr>,
    connections: Vec<AbortHandle>,
}

impl Network {
    pub fn of(places: &[Place]) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let state = Arc::new(Mutex::new(State::default()));
        let mut ways = Vec::new();
        for place in places {
            let listener = runtime
                .block_on(TcpListener::bind((Ipv4Addr::LOCALHOST, 0)))
                .unwrap();
            ways.push((*place, listener.local_addr().unwrap()));
            runtime.spawn(lead(listener, *place, state.clone()));
        }
        Self {
            ways,
            state,
            _runtime: runtime,
        }
    }

    /// Where a machine that stands at `place` finds the key server.
    pub fn way_from(&self, place: Place) -> SocketAddr {
        let way = self.ways.iter().find(|(from, _)| *from == place);
        way.unwrap().1
    }

    pub fn lead_to(&self, server: SocketAddr) {
        self.state.lock().unwrap().server = Some(server);
    }

    /// Ends every connection, and lets none through until it leads to a key server again.
    pub fn cut(&self) {
        let mut state = self.state.lock().unwrap();
        state.server = None;
        for connection in state.connections.drain(..) {
            connection.abort();
        }
    }

    /// Whether it leads nowhere.
    pub fn is_cut(&self) -> bool {
        self.state.lock().unwrap().server.is_none()
    }

    /// Whether no connection stands.
    pub fn is_quiet(&self) -> bool {
        let state = self.state.lock().unwrap();
        state.connections.iter().all(AbortHandle::is_finished)
    }
}

async fn lead(listener: TcpListener, place: Place, state: Arc<Mutex<State>>) {
    loop {
        let (machine, _) = listener.accept().await.unwrap();
        let mut state = state.lock().unwrap();
        state
            .connections
            .retain(|connection| !connection.is_finished());
        if let Some(server) = state.server {
            let led = tokio::spawn(pass_on(machine, place, server));
            state.connections.push(led.abort_handle());
        }
    }
}

async fn pass_on(mut machine: TcpStream, place: Place, server: SocketAddr) -> std::io::Result<()> {
    let socket = TcpSocket::new_v4()?;
    socket.bind(SocketAddr::new(IpAddr::V4(place.0), 0))?;
    let mut server = socket.connect(server).await?;
    copy_bidirectional(&mut machine, &mut server).await?;
    Ok(())
}
