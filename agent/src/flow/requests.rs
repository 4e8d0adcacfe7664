//! Which request goes when: one for all volumes whose headers are read, to one key server at a time.

use std::time::Duration;

use latchkey_protocol::{Generation, VolumeId};

use super::events::{Action, ServerIndex, VolumeIndex};
use super::volume::Volume;
use super::{Flow, Network};

/// How long a header that is being read holds up the request for those that were, so that there is one for all.
const READING_LIMIT: Duration = Duration::from_secs(1);

impl Flow {
    pub(super) fn may_ask(&self) -> bool {
        self.credentials && matches!(self.network, Network::Up) && !self.asking.is_under_way()
    }

    /// The volumes that this server should be asked for.
    pub(super) fn wants(&self, server: ServerIndex) -> Vec<(VolumeIndex, VolumeId, Generation)> {
        let wanted = |(index, volume): (VolumeIndex, &Volume)| {
            if !volume.is_locked() || volume.refused.is_some() || !volume.released.is_empty() {
                return None;
            }
            let (_, generation) = volume
                .envelopes
                .iter()
                .find(|(other, _)| *other == server)?;
            Some((index, volume.id?, *generation))
        };
        self.volumes.iter().enumerate().filter_map(wanted).collect()
    }

    /// Headers are read one after the other: as long as they are, the others only wait for their turn.
    pub(super) fn reading_goes_on(&mut self, now: Duration) {
        for volume in &mut self.volumes {
            if let Some(since) = &mut volume.read_since {
                *since = now;
            }
        }
    }

    /// Until when headers that are being read are waited for, if any is.
    pub(super) fn reading_limit(&self, now: Duration) -> Option<Duration> {
        let began = self.volumes.iter().filter_map(|volume| volume.read_since);
        let limit = began.min()? + READING_LIMIT;
        (now < limit).then_some(limit)
    }

    pub(super) fn ask(&mut self, now: Duration, actions: &mut Vec<Action>) {
        if !self.may_ask() || self.reading_limit(now).is_some() {
            return;
        }
        let due: Vec<_> = self.asking.due(now).collect();
        for server in due {
            let volumes = self.wants(server);
            if !volumes.is_empty() {
                let (number, address) = self.asking.begin(server);
                actions.push(Action::Ask {
                    number,
                    server,
                    address,
                    volumes,
                });
                return;
            }
        }
    }
}
