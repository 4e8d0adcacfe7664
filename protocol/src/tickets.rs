//! The tickets of a volume: one random value for each key server, which the running machine moves on after each boot.
//!
//! They lie in a LUKS2 token of their own, beside the one with the envelopes: it is written at every boot, while the
//! envelopes never have to be, and an agent that does not know tickets passes it over. It is not authenticated. A
//! ticket opens nothing; it only shows the key server that a header is the newest one, and not a copy from before.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::encoding::Bytes;
use crate::envelope::{ENVELOPES_LIMIT, EnvelopeError};
use crate::ids::{ServerId, VolumeId};
use crate::wire::Version;

/// The type of the LUKS2 token.
pub const TICKETS_TYPE: &str = "latchkey-tickets";
/// Most bytes of its JSON.
pub const TICKETS_LIMIT: usize = 4 * 1024;

/// A LUKS2 token of type `latchkey-tickets`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tickets {
    /// `latchkey-tickets`.
    #[serde(rename = "type")]
    kind: TicketsKind,
    /// None: a token must name its keyslots, and a ticket opens nothing.
    keyslots: Vec<String>,
    /// 1.
    version: Version,
    /// The volume's name at every key server.
    pub volume: VolumeId,
    /// At most one for each key server.
    tickets: Vec<ServerTicket>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
enum TicketsKind {
    #[serde(rename = "latchkey-tickets")]
    Tickets,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ServerTicket {
    server: ServerId,
    ticket: Bytes<32>,
}

impl Tickets {
    /// No tickets yet of `volume`.
    pub fn none(volume: VolumeId) -> Self {
        Self {
            kind: TicketsKind::Tickets,
            keyslots: Vec::new(),
            version: Version::default(),
            volume,
            tickets: Vec::new(),
        }
    }

    /// Reads the token's JSON.
    ///
    /// # Errors
    /// `TooLarge`, `Format`.
    pub fn parse(json: &[u8]) -> Result<Self, EnvelopeError> {
        if json.len() > TICKETS_LIMIT {
            return Err(EnvelopeError::TooLarge(json.len()));
        }
        let tickets: Self = serde_json::from_slice(json).map_err(format)?;
        tickets.check()?;
        // What serde would take beside our own spelling, such as a list of a struct's values, is refused.
        let read: serde_json::Value = serde_json::from_slice(json).map_err(format)?;
        if serde_json::to_value(&tickets).map_err(format)? == read {
            Ok(tickets)
        } else {
            Err(EnvelopeError::Format(
                "not in the form that latchkey writes".to_owned(),
            ))
        }
    }

    /// The token's JSON.
    ///
    /// # Errors
    /// `Format` if there are too many tickets.
    pub fn to_json(&self) -> Result<String, EnvelopeError> {
        self.check()?;
        serde_json::to_string(self).map_err(format)
    }

    /// The ticket to show to `server`.
    pub fn of(&self, server: ServerId) -> Option<Bytes<32>> {
        let found = self.tickets.iter().find(|one| one.server == server);
        found.map(|one| one.ticket)
    }

    /// Takes `ticket` in place of the one that `server` gave before.
    pub fn set(&mut self, server: ServerId, ticket: Bytes<32>) {
        self.tickets.retain(|one| one.server != server);
        self.tickets.push(ServerTicket { server, ticket });
    }

    /// Forgets the tickets of all other key servers than `servers`.
    pub fn retain(&mut self, servers: &[ServerId]) {
        self.tickets.retain(|one| servers.contains(&one.server));
    }

    fn check(&self) -> Result<(), EnvelopeError> {
        let mut servers = BTreeSet::new();
        let distinct = self.tickets.iter().all(|one| servers.insert(one.server));
        if distinct && self.tickets.len() <= ENVELOPES_LIMIT && self.keyslots.is_empty() {
            Ok(())
        } else {
            Err(EnvelopeError::Format(format!(
                "at most {ENVELOPES_LIMIT} tickets, each of another key server, and no keyslot"
            )))
        }
    }
}

fn format(error: serde_json::Error) -> EnvelopeError {
    EnvelopeError::Format(error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server(number: u8) -> ServerId {
        ServerId::from_bytes([number; 32])
    }

    fn two() -> Tickets {
        let mut tickets = Tickets::none(VolumeId::random().unwrap());
        tickets.set(server(1), Bytes([1; 32]));
        tickets.set(server(2), Bytes([2; 32]));
        tickets
    }

    #[test]
    fn each_key_server_has_the_newest_ticket_and_the_others_keep_theirs() {
        let mut tickets = two();
        tickets.set(server(1), Bytes([3; 32]));
        assert_eq!(tickets.of(server(1)), Some(Bytes([3; 32])));
        assert_eq!(tickets.of(server(2)), Some(Bytes([2; 32])));
        assert_eq!(tickets.of(server(3)), None);
        tickets.retain(&[server(2)]);
        assert_eq!(tickets.of(server(1)), None);
        assert_eq!(tickets.of(server(2)), Some(Bytes([2; 32])));
    }

    #[test]
    fn the_token_reads_back_and_nothing_else_does() {
        let json = two().to_json().unwrap();
        assert_eq!(
            Tickets::parse(json.as_bytes()).unwrap().to_json().unwrap(),
            json
        );
        for bad in [
            json.replace("latchkey-tickets", "latchkey"),
            json.replace("\"version\":1", "\"version\":2"),
            json.replace("\"keyslots\":[]", "\"keyslots\":[\"1\"]"),
            json.replace("\"version\":1", "\"version\":1,\"extra\":1"),
            json.replace(&server(2).to_string(), &server(1).to_string()),
            json.replace("AQEBAQ", "AQEB"),
            json[..json.len() - 1].to_owned(),
            format!("{json}{}", " ".repeat(TICKETS_LIMIT)),
            String::new(),
        ] {
            assert!(Tickets::parse(bad.as_bytes()).is_err(), "{bad}");
        }
    }

    #[test]
    fn more_tickets_than_a_token_has_envelopes_are_refused() {
        let mut tickets = two();
        for number in 3..=8 {
            tickets.set(server(number), Bytes([number; 32]));
        }
        assert!(tickets.to_json().unwrap().len() < TICKETS_LIMIT);
        tickets.set(server(9), Bytes([9; 32]));
        assert!(tickets.to_json().is_err());
    }
}
