//! Boots as the audit has them, each as a timeline that a person can read.

use std::collections::BTreeMap;

use latchkey_protocol::{RequestId, VolumeId};

use crate::audit::{AuditEntry, Kind};

/// The timelines of all boots among `entries`, the oldest first; `labels` are what people call the volumes.
pub fn boots(entries: &[AuditEntry], labels: &BTreeMap<VolumeId, String>) -> Vec<String> {
    let mut order: Vec<RequestId> = Vec::new();
    let mut boots: BTreeMap<RequestId, Vec<&AuditEntry>> = BTreeMap::new();
    for entry in entries.iter().filter(|entry| is_of_boot(entry.event.kind)) {
        if let Some(request) = entry.event.request {
            let of_it = boots.entry(request).or_default();
            if of_it.is_empty() {
                order.push(request);
            }
            of_it.push(entry);
        }
    }
    order
        .iter()
        .filter_map(|request| Some(timeline(*request, boots.get(request)?, labels)))
        .collect()
}

/// Whether it tells of a boot, or of a running system that opens a data volume, and not of a registration or a proof, which have request ids too.
fn is_of_boot(kind: Kind) -> bool {
    matches!(
        kind,
        Kind::Asked
            | Kind::Approved
            | Kind::Denied
            | Kind::WrongCode
            | Kind::Released
            | Kind::Opened
            | Kind::Refused
            | Kind::Alarm
            | Kind::BootReport
    )
}

fn timeline(
    request: RequestId,
    entries: &[&AuditEntry],
    labels: &BTreeMap<VolumeId, String>,
) -> String {
    let first = |text: Option<String>| text.unwrap_or_else(|| "?".to_owned());
    let client = entries.iter().find_map(|entry| entry.event.client.as_ref());
    let peer = entries.iter().find_map(|entry| entry.event.peer);
    let mut lines = vec![format!(
        "client '{}', {} {request}, from {}",
        first(client.map(ToString::to_string)),
        match entries.iter().any(|entry| entry.event.kind == Kind::Opened) {
            true => "opening",
            false => "boot",
        },
        first(peer.map(|peer| peer.to_string()))
    )];
    for entry in entries {
        let event = &entry.event;
        let volume = event.volume.map(|id| {
            let label = labels.get(&id).cloned();
            format!("'{}': ", label.unwrap_or_else(|| id.to_string()))
        });
        let who = event.who.as_ref().map(|who| format!(" (by {who})"));
        lines.push(format!(
            "  {}  {:<10}  {}{}{}",
            entry.time.text(),
            word(event.kind),
            volume.unwrap_or_default(),
            event.text,
            who.unwrap_or_default()
        ));
    }
    lines.join("\n")
}

fn word(kind: Kind) -> &'static str {
    match kind {
        Kind::BootReport => "up",
        Kind::Alarm => "ALARM",
        kind => kind.name(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audit::{Event, Head};
    use crate::clock::UnixMillis;

    #[test]
    fn a_boot_is_told_from_the_question_to_the_report() {
        let volume: VolumeId = "00000000-0000-4000-8000-000000000001".parse().unwrap();
        let request = |number: u8| -> RequestId { format!("{number:032x}").parse().unwrap() };
        let client = "web-1".parse().unwrap();
        let peer = "192.0.2.7".parse().unwrap();
        let event = |kind, text: &str, number| {
            let event = Event::new(kind, text)
                .client(&client)
                .request(request(number));
            match kind {
                Kind::BootReport => event,
                _ => event.volume(volume).peer(peer),
            }
        };
        let mut head = Head::default();
        let entries: Vec<AuditEntry> = [
            event(Kind::Registered, "registered", 9),
            event(Kind::Asked, "waits", 1),
            event(Kind::Released, "as the policy allows", 2),
            event(Kind::Approved, "approved", 1).who("alice"),
            event(Kind::Released, "as a person approved", 1),
            event(Kind::BootReport, "opened 'root' after 4 s", 1),
        ]
        .into_iter()
        .map(|event| {
            let entry = head.next(UnixMillis(1_000), event);
            head = Head {
                sequence: entry.sequence,
                hash: entry.hash,
            };
            entry
        })
        .collect();
        let labels = BTreeMap::from([(volume, "root".to_owned())]);
        let boots = boots(&entries, &labels);
        assert_eq!(boots.len(), 2);
        assert_eq!(
            boots[0],
            "client 'web-1', boot 00000000000000000000000000000001, from 192.0.2.7\n\
             \x20 1970-01-01 00:00:01  asked       'root': waits\n\
             \x20 1970-01-01 00:00:01  approved    'root': approved (by alice)\n\
             \x20 1970-01-01 00:00:01  released    'root': as a person approved\n\
             \x20 1970-01-01 00:00:01  up          opened 'root' after 4 s"
        );
        assert!(boots[1].contains("as the policy allows"));
    }
}
