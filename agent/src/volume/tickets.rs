//! The tickets in a LUKS2 header: a token of its own beside the one with the envelopes, written at every boot.
//!
//! As with every token, what is in the header after a power cut is either the old or the new one, and what was
//! written is read back from the device. No keyslot and no other token is ever touched.

use std::path::Path;

use latchkey_protocol::VolumeId;
use latchkey_protocol::envelope::EnvelopeError;
use latchkey_protocol::tickets::{TICKETS_TYPE, Tickets};
use libcryptsetup_rs::TokenInput;
use serde_json::Value;

use super::header::HeaderCopy;
use super::tokens::{self, TokenError};

/// A token of type `latchkey-tickets` in a header.
#[derive(Debug)]
struct Found {
    id: u32,
    /// `None` if it cannot be read: then it shows nothing, and the next one that is written takes its place.
    tickets: Option<Tickets>,
}

/// The tickets of `volume` in a header's JSON; none if there is no such token or it cannot be read.
pub fn find_in(json: &Value, volume: VolumeId) -> Tickets {
    all(json)
        .into_iter()
        .filter_map(|found| found.tickets)
        .find(|tickets| tickets.volume == volume)
        .unwrap_or_else(|| Tickets::none(volume))
}

/// Writes `tickets` in place of what the header of `device` has for that volume, through to the disk.
///
/// # Errors
/// As [`tokens::add`].
pub fn write(device: &Path, tickets: &Tickets) -> Result<(), TokenError> {
    let header = HeaderCopy::read(device)?;
    let concerns = |found: &Found| match &found.tickets {
        Some(old) => old.volume == tickets.volume,
        None => true,
    };
    let id = match all(header.json()).into_iter().find(concerns) {
        Some(found) => found.id,
        None => tokens::free_id(device)?,
    };
    let json: Value = serde_json::from_str(&tickets.to_json()?)
        .map_err(|error| EnvelopeError::Format(error.to_string()))?;
    tokens::set(device, id, TokenInput::ReplaceToken(id, &json))?;
    if find_in(HeaderCopy::read(device)?.json(), tickets.volume) == *tickets {
        Ok(())
    } else {
        Err(TokenError::ReadBack {
            device: device.to_owned(),
            id,
        })
    }
}

/// Removes the tickets of `volume`, and those that cannot be read.
///
/// # Errors
/// `Header`, `Crypt`.
pub fn remove(device: &Path, volume: Option<VolumeId>) -> Result<(), TokenError> {
    for found in all(HeaderCopy::read(device)?.json()) {
        if found
            .tickets
            .is_none_or(|tickets| Some(tickets.volume) == volume)
        {
            tokens::set(device, found.id, TokenInput::RemoveToken(found.id))?;
        }
    }
    Ok(())
}

/// In the order of their numbers.
fn all(json: &Value) -> Vec<Found> {
    let mut all: Vec<Found> = json["tokens"]
        .as_object()
        .into_iter()
        .flatten()
        .filter(|(_, token)| token["type"] == TICKETS_TYPE)
        .filter_map(|(id, token)| {
            Some(Found {
                id: id.parse().ok()?,
                tickets: Tickets::parse(token.to_string().as_bytes()).ok(),
            })
        })
        .collect();
    all.sort_by_key(|found| found.id);
    all
}

#[cfg(test)]
mod tests {
    use latchkey_protocol::ServerId;
    use latchkey_protocol::encoding::Bytes;
    use serde_json::json;

    use super::*;
    use crate::volume::open::check_automatically;
    use crate::volume::place::Place;
    use crate::volume::testing::Volume;

    fn tickets(volume: VolumeId, value: u8) -> Tickets {
        let mut tickets = Tickets::none(volume);
        tickets.set(ServerId::from_bytes([1; 32]), Bytes([value; 32]));
        tickets
    }

    #[test]
    fn tickets_move_on_in_one_token_and_nothing_else_changes() {
        let bound = Volume::luks2().bind();
        let path = bound.volume.path();
        let before = HeaderCopy::read(path).unwrap().json().clone();
        assert_eq!(
            find_in(&before, bound.token.volume),
            Tickets::none(bound.token.volume)
        );
        for value in 1..4 {
            let written = tickets(bound.token.volume, value);
            write(path, &written).unwrap();
            let after = HeaderCopy::read(path).unwrap().json().clone();
            assert_eq!(find_in(&after, bound.token.volume), written);
            assert_eq!(after["tokens"].as_object().unwrap().len(), 2);
            for part in ["keyslots", "segments", "digests"] {
                assert_eq!(after[part], before[part]);
            }
            let id = bound.token_id.to_string();
            assert_eq!(after["tokens"][&id], before["tokens"][&id]);
        }
        // The gate takes the header as it took it before.
        check_automatically(&Place::attached(path), &bound.token, &bound.secret).unwrap();
        remove(path, Some(bound.token.volume)).unwrap();
        assert_eq!(
            HeaderCopy::read(path).unwrap().json()["tokens"],
            before["tokens"]
        );
    }

    #[test]
    fn broken_tickets_show_nothing_and_are_replaced_and_those_of_another_volume_stay() {
        let bound = Volume::luks2().bind();
        let path = bound.volume.path();
        let other = VolumeId::random().unwrap();
        write(path, &tickets(other, 9)).unwrap();
        let broken = json!({"type": TICKETS_TYPE, "keyslots": [], "version": 7});
        tokens::set(path, 5, TokenInput::ReplaceToken(5, &broken)).unwrap();
        let json = HeaderCopy::read(path).unwrap().json().clone();
        assert_eq!(
            find_in(&json, bound.token.volume),
            Tickets::none(bound.token.volume)
        );
        write(path, &tickets(bound.token.volume, 1)).unwrap();
        let json = HeaderCopy::read(path).unwrap().json().clone();
        assert_ne!(json["tokens"]["5"], broken);
        assert_eq!(find_in(&json, other), tickets(other, 9));
        remove(path, Some(bound.token.volume)).unwrap();
        let json = HeaderCopy::read(path).unwrap().json().clone();
        assert_eq!(find_in(&json, other), tickets(other, 9));
        assert_eq!(json["tokens"].as_object().unwrap().len(), 2);
    }
}
