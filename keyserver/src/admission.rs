//! How many connections may be open: a cap in all, and one for each IPv4 address or IPv6 /64. Where all places are taken,
//! the connection that has waited longest without a complete request gives its place to the newest one.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, oneshot};
use tokio::time::timeout;

/// Most open connections in all, unless the process may not open as many files.
pub const CONNECTIONS_LIMIT: usize = 1024;
/// Most streams of running machines in all, unless the process may not open as many files.
pub const STREAMS_LIMIT: usize = 4096;
/// Most open connections of one IPv4 address or one IPv6 /64.
pub const PER_NETWORK_LIMIT: usize = 64;
/// Descriptors kept free for the store, the admin socket and the journal.
const RESERVED_FILES: usize = 64;
/// Streams that there may be however few files may be open.
const STREAMS_LEAST: usize = 16;

/// How many times an accepted connection tries to find room before it is closed.
const ROOM_ATTEMPTS: usize = 4;
/// How long a connection that was told to leave may take. It only has to be scheduled.
const LEAVE_LIMIT: Duration = Duration::from_secs(1);

/// Counts open connections.
#[derive(Debug, Clone)]
pub struct Admission {
    open: Arc<Mutex<Open>>,
    /// A place was given back.
    freed: Arc<Notify>,
    total_limit: usize,
    network_limit: usize,
}

/// One admitted connection, counted until it is dropped.
#[derive(Debug)]
pub struct Admitted {
    open: Arc<Mutex<Open>>,
    freed: Arc<Notify>,
    network: IpAddr,
    number: u64,
}

/// Resolves when a connection has to leave for a newer one, which happens only until it is [settled](Admitted::settle).
#[derive(Debug)]
pub struct Leave(oneshot::Receiver<()>);

/// Why there is no place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoPlace {
    /// Too many connections of this network.
    Network,
    /// Too many in all.
    Total,
}

#[derive(Debug, Default)]
struct Open {
    total: usize,
    by_network: HashMap<IpAddr, usize>,
    /// Connections whose request is not complete, the oldest first.
    waiting: BTreeMap<u64, oneshot::Sender<()>>,
    next_number: u64,
}

/// What the limit of open files leaves room for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Room {
    files: u64,
    /// Connections.
    pub connections: usize,
    /// Streams of running machines beside them.
    pub streams: usize,
}

impl Room {
    /// Of this process, after raising RLIMIT_NOFILE as far as it goes.
    pub fn of_this_process() -> Self {
        use nix::sys::resource::{Resource, getrlimit, setrlimit};
        let files = getrlimit(Resource::RLIMIT_NOFILE).map_or(256, |(soft, hard)| {
            let wanted = hard.min((CONNECTIONS_LIMIT + STREAMS_LIMIT + RESERVED_FILES) as u64);
            if soft < wanted && setrlimit(Resource::RLIMIT_NOFILE, wanted, hard).is_ok() {
                wanted
            } else {
                soft
            }
        });
        Self::of(files)
    }

    /// At least one connection and a few streams, whatever the limit.
    fn of(files: u64) -> Self {
        let room = usize::try_from(files).unwrap_or(usize::MAX);
        let room = room.saturating_sub(RESERVED_FILES);
        Self {
            files,
            connections: room.clamp(1, CONNECTIONS_LIMIT),
            streams: room
                .saturating_sub(CONNECTIONS_LIMIT)
                .clamp(STREAMS_LEAST, STREAMS_LIMIT),
        }
    }

    /// What the administrator should know, if it is less than there could be.
    pub fn shortage(&self) -> Option<String> {
        let Self {
            files,
            connections,
            streams,
        } = self;
        if *connections == CONNECTIONS_LIMIT && *streams == STREAMS_LIMIT {
            return None;
        }
        let enough = CONNECTIONS_LIMIT + STREAMS_LIMIT + RESERVED_FILES;
        Some(format!(
            "the limit of {files} open files leaves room for {connections} connections (of {CONNECTIONS_LIMIT}) and for \
             the streams of {streams} running machines (of {STREAMS_LIMIT})\nraise it to {enough}: LimitNOFILE= in \
             the unit, or 'ulimit -n'"
        ))
    }
}

impl Admission {
    /// At most `total_limit` connections, `network_limit` for each network.
    pub fn new(total_limit: usize, network_limit: usize) -> Self {
        Self {
            open: Arc::default(),
            freed: Arc::default(),
            total_limit,
            network_limit,
        }
    }

    /// A place for a connection from `address` (in its canonical form). Where all are taken, the connection that has
    /// waited longest without a complete request has to leave: so slow and idle ones, from however many addresses, keep
    /// nobody out who says what it wants.
    ///
    /// # Errors
    /// `Network`; `Total` if every connection has a complete request.
    pub async fn admit(&self, address: IpAddr) -> Result<(Admitted, Leave), NoPlace> {
        for _ in 0..ROOM_ATTEMPTS {
            match self.try_admit(address) {
                Err(NoPlace::Total) if self.make_room().await => {}
                result => return result,
            }
        }
        Err(NoPlace::Total)
    }

    fn try_admit(&self, address: IpAddr) -> Result<(Admitted, Leave), NoPlace> {
        let network = network(address);
        let mut open = lock(&self.open);
        let count = open.by_network.get(&network).copied().unwrap_or(0);
        if count >= self.network_limit {
            return Err(NoPlace::Network);
        }
        if open.total >= self.total_limit {
            return Err(NoPlace::Total);
        }
        open.total += 1;
        open.by_network.insert(network, count + 1);
        let number = open.next_number;
        open.next_number += 1;
        let (sender, leave) = oneshot::channel();
        open.waiting.insert(number, sender);
        let admitted = Admitted {
            open: Arc::clone(&self.open),
            freed: Arc::clone(&self.freed),
            network,
            number,
        };
        Ok((admitted, Leave(leave)))
    }

    /// Whether a place came free: the one that waits longest is told to leave, and has left.
    async fn make_room(&self) -> bool {
        let freed = self.freed.notified();
        tokio::pin!(freed);
        // Before it is told, so that its leaving is not missed.
        freed.as_mut().enable();
        let Some((_, oldest)) = lock(&self.open).waiting.pop_first() else {
            return false;
        };
        // If it is gone by itself, so much the better.
        let _ = oldest.send(());
        timeout(LEAVE_LIMIT, freed).await.is_ok()
    }
}

impl Admitted {
    /// Its request is complete: it is answered, whoever comes.
    pub fn settle(&self) {
        lock(&self.open).waiting.remove(&self.number);
    }
}

impl Leave {
    /// Waits until the connection has to leave; for ever, once it is settled.
    pub async fn told(self) {
        if self.0.await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        let mut open = lock(&self.open);
        open.waiting.remove(&self.number);
        open.total = open.total.saturating_sub(1);
        // Only networks with open connections take memory.
        match open.by_network.get_mut(&self.network) {
            Some(count) if *count > 1 => *count -= 1,
            _ => {
                open.by_network.remove(&self.network);
            }
        }
        drop(open);
        self.freed.notify_waiters();
    }
}

fn network(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => address,
        IpAddr::V6(address) => {
            let prefix = u128::from(address) >> 64 << 64;
            IpAddr::V6(Ipv6Addr::from(prefix))
        }
    }
}

fn lock(open: &Mutex<Open>) -> MutexGuard<'_, Open> {
    // A count that a panic left behind is still a count.
    open.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn run<T>(future: impl Future<Output = T>) -> T {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build()
            .unwrap();
        runtime.block_on(future)
    }

    #[test]
    fn one_network_cannot_keep_the_others_out() {
        let admission = Admission::new(4, 2);
        let admit = |address| {
            let place = admission.try_admit(ip(address))?;
            place.0.settle();
            Ok(place)
        };
        let first = admit("2001:db8::1");
        let second = admit("2001:db8::2");
        assert!(first.is_ok() && second.is_ok());
        assert_eq!(admit("2001:db8::3").err(), Some(NoPlace::Network));
        let other = admit("2001:db8:0:1::3");
        let v4 = admit("192.0.2.1");
        assert!(other.is_ok() && v4.is_ok());
        let full = run(admission.admit(ip("192.0.2.2")));
        assert_eq!(full.err(), Some(NoPlace::Total), "nobody has to leave");
        drop(first);
        assert!(run(admission.admit(ip("192.0.2.2"))).is_ok());
    }

    #[test]
    fn closed_connections_leave_nothing_behind() {
        let admission = Admission::new(4, 2);
        for last in 0..=255 {
            drop(admission.try_admit(IpAddr::from([10, 0, 0, last])));
        }
        let open = admission.open.lock().unwrap();
        let left = (open.total, open.by_network.len(), open.waiting.len());
        assert_eq!(left, (0, 0, 0));
    }

    #[test]
    fn the_one_that_waits_longest_leaves_for_the_newest_and_no_complete_request_does() {
        run(async {
            let admission = Admission::new(3, 3);
            let mut places = Vec::new();
            for last in 1..=3 {
                places.push(admission.try_admit(IpAddr::from([10, 0, 0, last])).unwrap());
            }
            let (third, _) = places.pop().unwrap();
            let (second, second_leaves) = places.pop().unwrap();
            let (first, first_leaves) = places.pop().unwrap();
            first.settle();
            let leaving = async {
                second_leaves.told().await;
                drop(second);
            };
            let (newest, ()) = tokio::join!(admission.admit(ip("10.0.0.4")), leaving);
            let newest = newest.unwrap();
            let never = timeout(LEAVE_LIMIT, first_leaves.told()).await;
            assert!(never.is_err(), "a complete request was told to leave");
            // One that does not leave in time keeps its place, and the newest one is closed.
            third.settle();
            let refused = admission.admit(ip("10.0.0.5")).await;
            assert_eq!(refused.err(), Some(NoPlace::Total));
            newest.1.told().await;
        });
    }

    #[test]
    fn a_low_limit_of_open_files_is_told_with_what_it_leaves() {
        let enough = Room::of((CONNECTIONS_LIMIT + STREAMS_LIMIT + RESERVED_FILES) as u64);
        assert_eq!(
            (enough.connections, enough.streams, enough.shortage()),
            (CONNECTIONS_LIMIT, STREAMS_LIMIT, None)
        );
        for (files, connections, streams) in [(0, 1, 16), (256, 192, 16), (2048, 1024, 960)] {
            let room = Room::of(files);
            assert_eq!((room.connections, room.streams), (connections, streams));
            let told = room.shortage().unwrap();
            assert!(
                told.contains(&format!("limit of {files} open files")),
                "{told}"
            );
            assert!(
                told.contains(&format!("the streams of {streams} ")),
                "{told}"
            );
        }
    }
}
