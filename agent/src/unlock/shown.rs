//! What the key servers are shown of the headers that this boot has found: tickets, and one fingerprint of them all.

use std::collections::BTreeMap;

use latchkey_protocol::encoding::{Bytes, length_prefixed};
use latchkey_protocol::envelope::{Bound, Token};
use latchkey_protocol::wire::VolumeTicket;
use latchkey_protocol::{ServerId, VolumeId};
use sha2::{Digest, Sha256};

pub use crate::flow::Shown;
use crate::flow::{Event, Header};
use crate::volume::gate;
use crate::volume::header::HeaderCopy;
use crate::volume::place::{HeaderPlace, Place};
use crate::volume::tickets;

/// The bound headers that were read so far.
#[derive(Debug, Default)]
pub struct Headers(BTreeMap<VolumeId, Shown>);

impl Headers {
    /// Keeps what the event of a device that appeared tells.
    pub fn note(&mut self, event: &Event) {
        if let Event::Device(
            _,
            Header::Bound(volume, _, shown) | Header::BoundByKey(volume, _, shown),
        ) = event
        {
            self.0.insert(*volume, shown.clone());
        }
    }

    /// The tickets of these volumes for `server`.
    pub fn tickets(
        &self,
        server: ServerId,
        volumes: impl IntoIterator<Item = VolumeId>,
    ) -> Vec<VolumeTicket> {
        let ticket = |volume| {
            let of =
                |(other, ticket): &(ServerId, Bytes<32>)| (*other == server).then_some(*ticket);
            let ticket = self.0.get(&volume)?.tickets.iter().find_map(of)?;
            Some(VolumeTicket { volume, ticket })
        };
        volumes.into_iter().filter_map(ticket).collect()
    }

    /// SHA-256 over the fingerprints of all of them, in the order of their ids.
    pub fn fingerprint(&self) -> Option<Bytes<32>> {
        if self.0.is_empty() {
            return None;
        }
        let fields = self.0.iter().flat_map(|(volume, shown)| {
            [volume.as_bytes().as_slice(), shown.fingerprint.0.as_slice()]
        });
        let encoded = length_prefixed(&fields.collect::<Vec<_>>());
        Some(Bytes(Sha256::digest(encoded).into()))
    }
}

/// What key servers want to see of a volume. Tickets lie only in a header in front of its data: a detached one in the
/// image is a copy, and does not move on with them.
pub(crate) fn shown(place: &Place, token: &Token) -> Shown {
    let header = match (&token.bound, &place.header) {
        (Bound::Luks2(bound), HeaderPlace::Attached) => HeaderCopy::read(&place.device)
            .ok()
            .map(|copy| (copy, bound)),
        _ => None,
    };
    let Some((copy, bound)) = header else {
        return Shown {
            tickets: Vec::new(),
            fingerprint: gate::fingerprint_as_bound(&token.uuid, &token.bound),
        };
    };
    let tickets = tickets::find_in(copy.json(), token.volume);
    let servers = token.envelopes.iter().map(|envelope| envelope.server);
    Shown {
        tickets: servers
            .filter_map(|server| Some((server, tickets.of(server)?)))
            .collect(),
        fingerprint: gate::fingerprint(copy.uuid(), copy.json(), bound),
    }
}

#[cfg(test)]
mod tests {
    use latchkey_protocol::Generation;

    use super::*;

    fn server(number: u8) -> ServerId {
        ServerId::from_bytes([number; 32])
    }

    fn found(volume: VolumeId, ticket: u8) -> Event {
        let shown = Shown {
            tickets: vec![(server(1), Bytes([ticket; 32]))],
            fingerprint: Bytes([ticket; 32]),
        };
        let envelopes = vec![
            (server(1), Generation::FIRST),
            (server(2), Generation::FIRST),
        ];
        Event::Device(0, Header::Bound(volume, envelopes, shown))
    }

    #[test]
    fn each_key_server_sees_its_own_tickets_of_what_it_is_asked_for() {
        let (a, b) = (VolumeId::random().unwrap(), VolumeId::random().unwrap());
        let mut headers = Headers::default();
        assert_eq!(headers.fingerprint(), None);
        headers.note(&Event::Tick);
        headers.note(&found(a, 1));
        headers.note(&found(b, 2));
        let shown = headers.tickets(server(1), [b]);
        assert_eq!(shown.len(), 1);
        assert_eq!((shown[0].volume, shown[0].ticket), (b, Bytes([2; 32])));
        assert_eq!(headers.tickets(server(1), [a, b]).len(), 2);
        assert!(headers.tickets(server(2), [a, b]).is_empty());
    }

    #[test]
    fn the_fingerprint_depends_on_the_headers_and_not_on_who_came_first() {
        let (a, b) = (VolumeId::random().unwrap(), VolumeId::random().unwrap());
        let fingerprint = |events: &[Event]| {
            let mut headers = Headers::default();
            events.iter().for_each(|event| headers.note(event));
            headers.fingerprint().unwrap()
        };
        let both = fingerprint(&[found(a, 1), found(b, 2)]);
        assert_eq!(both, fingerprint(&[found(b, 2), found(a, 1)]));
        assert_ne!(both, fingerprint(&[found(a, 2), found(b, 1)]));
        assert_ne!(both, fingerprint(&[found(a, 1)]));
    }
}
