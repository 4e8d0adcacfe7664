//! How many connections may be open: a cap in all, and one for each IPv4 address or IPv6 /64.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, PoisonError};

/// Most open connections in all, unless the process may not open as many files.
pub const CONNECTIONS_LIMIT: usize = 1024;
/// Most streams of running machines in all, unless the process may not open as many files.
pub const STREAMS_LIMIT: usize = 4096;
/// Most open connections of one IPv4 address or one IPv6 /64.
pub const PER_NETWORK_LIMIT: usize = 64;
/// Descriptors kept free for the store, the admin socket and the journal.
const RESERVED_FILES: usize = 64;

/// Counts open connections.
#[derive(Debug, Clone)]
pub struct Admission {
    open: Arc<Mutex<Open>>,
    total_limit: usize,
    network_limit: usize,
}

/// One admitted connection, counted until it is dropped.
#[derive(Debug)]
pub struct Admitted {
    open: Arc<Mutex<Open>>,
    network: IpAddr,
}

#[derive(Debug, Default)]
struct Open {
    total: usize,
    by_network: HashMap<IpAddr, usize>,
}

impl Admission {
    /// At most `total_limit` connections, `network_limit` for each network.
    pub fn new(total_limit: usize, network_limit: usize) -> Self {
        Self {
            open: Arc::default(),
            total_limit,
            network_limit,
        }
    }

    /// The limits of a server: [`CONNECTIONS_LIMIT`] or what RLIMIT_NOFILE leaves room for, after raising it as far
    /// as it goes.
    pub fn for_this_process() -> Self {
        use nix::sys::resource::{Resource, getrlimit, setrlimit};
        let files = getrlimit(Resource::RLIMIT_NOFILE).map_or(256, |(soft, hard)| {
            let wanted = hard.min((CONNECTIONS_LIMIT + STREAMS_LIMIT + RESERVED_FILES) as u64);
            if soft < wanted && setrlimit(Resource::RLIMIT_NOFILE, wanted, hard).is_ok() {
                wanted
            } else {
                soft
            }
        });
        let room = usize::try_from(files)
            .unwrap_or(usize::MAX)
            .saturating_sub(RESERVED_FILES);
        Self::new(room.clamp(1, CONNECTIONS_LIMIT), PER_NETWORK_LIMIT)
    }

    /// How many streams there may be beside the connections, once [`Admission::for_this_process`] was asked: at least a
    /// few, whatever the limit on files.
    pub fn streams_for_this_process() -> usize {
        use nix::sys::resource::{Resource, getrlimit};
        let files = getrlimit(Resource::RLIMIT_NOFILE).map_or(256, |(soft, _)| soft);
        usize::try_from(files)
            .unwrap_or(usize::MAX)
            .saturating_sub(RESERVED_FILES + CONNECTIONS_LIMIT)
            .clamp(16, STREAMS_LIMIT)
    }

    /// A place for a connection from `address` (in its canonical form), if there is one.
    pub fn admit(&self, address: IpAddr) -> Option<Admitted> {
        let network = network(address);
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let count = open.by_network.get(&network).copied().unwrap_or(0);
        if open.total >= self.total_limit || count >= self.network_limit {
            return None;
        }
        open.total += 1;
        open.by_network.insert(network, count + 1);
        Some(Admitted {
            open: Arc::clone(&self.open),
            network,
        })
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.total = open.total.saturating_sub(1);
        // Only networks with open connections take memory.
        match open.by_network.get_mut(&self.network) {
            Some(count) if *count > 1 => *count -= 1,
            _ => {
                open.by_network.remove(&self.network);
            }
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn one_network_cannot_keep_the_others_out() {
        let admission = Admission::new(4, 2);
        let first = admission.admit(ip("2001:db8::1"));
        let second = admission.admit(ip("2001:db8::2"));
        assert!(first.is_some() && second.is_some());
        assert!(admission.admit(ip("2001:db8::3")).is_none());
        let other = admission.admit(ip("2001:db8:0:1::3"));
        let v4 = admission.admit(ip("192.0.2.1"));
        assert!(other.is_some() && v4.is_some());
        assert!(admission.admit(ip("192.0.2.2")).is_none(), "the total");
        drop(first);
        assert!(admission.admit(ip("192.0.2.2")).is_some());
    }

    #[test]
    fn closed_connections_leave_nothing_behind() {
        let admission = Admission::new(4, 2);
        for last in 0..=255 {
            drop(admission.admit(IpAddr::from([10, 0, 0, last])));
        }
        let open = admission.open.lock().unwrap();
        assert_eq!((open.total, open.by_network.len()), (0, 0));
    }
}
