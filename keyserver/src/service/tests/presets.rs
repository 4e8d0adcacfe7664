//! What each preset gives to copies of the disk and to honest boots: the table of docs/threat-model.md.

use latchkey_protocol::wire::LifeAnswer;

use super::*;
use crate::policy::{PRESETS, Preset};

/// Copies of each kind, and honest boots.
const COPIES: usize = 100;
const HONEST: usize = 200;

/// What a boot comes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Released,
    Asked,
    Refused,
}

/// A running machine with its volume, as the key server knows it.
struct Running {
    rig: Rig,
    machine: Machine,
    volume: VolumeId,
    ticket: Bytes<32>,
    stream: Option<life::LifeStream>,
}

impl Running {
    fn under(preset: Preset) -> Self {
        let rig = Rig::new();
        let (machine, volume, _) = rig.bound("web-1", 1);
        let ticket = rig.move_ticket(&machine, volume);
        rig.service
            .set_policy(&volume, &preset.policy(), "root")
            .unwrap();
        let mut running = Self {
            rig,
            machine,
            volume,
            ticket,
            stream: None,
        };
        running.comes_up(None);
        running
    }

    /// Opens its stream and moves its ticket on.
    fn comes_up(&mut self, boot: Option<RequestId>) {
        let host = self.rig.identity(&self.machine.host);
        let stream = self.rig.service.open_life(&host, address(HOME));
        self.stream = Some(stream.unwrap());
        self.rig.heartbeat(&self.machine, None, boot);
        self.ticket = self.rig.move_ticket(&self.machine, self.volume);
    }

    fn goes_down(&mut self) {
        if let Some(stream) = self.stream.take() {
            self.rig.service.close_life(&stream);
        }
    }

    /// A boot that asks until it is told something; the machine, if it runs, answers what it is asked.
    fn end(&mut self, boot: &Boot, from: &str, ticket: Bytes<32>) -> End {
        loop {
            let verdict = self
                .rig
                .boots(&self.machine, from, boot, self.volume, Some(ticket));
            match verdict {
                Verdict::Released { .. } => return End::Released,
                Verdict::Pending { .. } => return End::Asked,
                Verdict::Denied { .. } | Verdict::Destroyed => return End::Refused,
                Verdict::Wait { .. } => {}
            }
            if let Some(stream) = &mut self.stream
                && let Ok(challenge) = stream.challenges.try_recv()
            {
                let host = self.rig.identity(&self.machine.host);
                let answer = LifeAnswer {
                    version: Version::default(),
                    challenge,
                };
                self.rig
                    .service
                    .answer_life(&host, address(HOME), &answer)
                    .unwrap();
            }
            self.rig.pass(life::BEAT);
        }
    }

    /// What all copies come to, which is the same for each; the sessions that wait are denied so that others may.
    #[track_caller]
    fn copies(&mut self, from: &str, ticket: Bytes<32>) -> End {
        let mut ends = Vec::with_capacity(COPIES);
        for _ in 0..COPIES {
            ends.push(self.end(&Boot::new(), from, ticket));
            for request in self.rig.service.requests().unwrap() {
                drop(
                    self.rig
                        .service
                        .deny(&request.id, AfterDeny::Nothing, "root"),
                );
            }
            // Beyond the reach of limits on requests and of rates.
            self.rig.pass(Duration::from_secs(7200));
        }
        assert!(ends.iter().all(|end| *end == ends[0]), "{ends:?}");
        ends[0]
    }
}

#[test]
fn copies_get_what_the_threat_model_says() {
    use End::{Asked, Refused, Released};
    println!(
        "| preset | (a) original runs | (b) has booted since | (c) off, at home | (c) off, elsewhere | (d) cut off |"
    );
    for (preset, expected) in PRESETS.into_iter().zip([
        [Refused, Asked, Released, Asked, Released],
        [Refused, Asked, Asked, Asked, Asked],
        [Refused, Asked, Asked, Asked, Asked],
    ]) {
        let mut running = Running::under(preset);
        let fresh = running.ticket;
        let alive = running.copies(HOME, fresh);
        assert!(running.rig.alarms()[0].contains("running machine answered"));
        // It boots once more, and the copy is old.
        running.goes_down();
        running.comes_up(None);
        running.goes_down();
        let old = running.copies(HOME, fresh);
        let alarms = running.rig.alarms();
        assert!(
            alarms.iter().any(|text| text.contains("earlier time")),
            "{alarms:?}"
        );
        let fresh = running.ticket;
        let off = running.copies(HOME, fresh);
        let elsewhere = running.copies(AWAY, fresh);
        // Cut off: a stream that nobody reads.
        let host = running.rig.identity(&running.machine.host);
        let unread = running.rig.service.open_life(&host, address(HOME)).unwrap();
        let cut_off = running.copies(HOME, fresh);
        drop(unread);
        let found = [alive, old, off, elsewhere, cut_off];
        println!("| {} | {found:?} |", preset.name);
        assert_eq!(found, expected, "{}", preset.name);
    }
}

/// Boots of the machine itself: announced ones, and power cuts at each step of the ticket.
#[test]
fn no_honest_boot_is_refused() {
    for preset in PRESETS {
        let mut running = Running::under(preset);
        let (mut by_itself, mut asked) = (0, 0);
        for number in 0..HONEST {
            let announced = number % 2 == 0;
            // A ticket that was drawn; one that was written into the header; one that was confirmed.
            match number % 3 {
                0 => {}
                1 => drop(running.rig.next_ticket(&running.machine, running.volume)),
                _ => running.ticket = running.rig.next_ticket(&running.machine, running.volume),
            }
            if announced {
                let next = running.rig.next_ticket(&running.machine, running.volume);
                running
                    .rig
                    .confirm(&running.machine, running.volume, next, Some(900))
                    .unwrap();
                running.ticket = next;
            }
            if number % 5 == 0 {
                running.rig.restart();
                running.stream = None;
            }
            running.goes_down();
            let boot = Boot::new();
            let ticket = running.ticket;
            match running.end(&boot, HOME, ticket) {
                End::Released => by_itself += 1,
                End::Asked => {
                    asked += 1;
                    let listed = running.rig.service.requests().unwrap();
                    let request = listed.iter().find(|one| one.request == boot.request);
                    let id = &request.unwrap().id;
                    drop(running.rig.service.deny(id, AfterDeny::Nothing, "root"));
                }
                End::Refused => panic!("{}: boot {number} was refused", preset.name),
            }
            running.comes_up(Some(boot.request));
            running.rig.pass(Duration::from_secs(7200));
        }
        println!(
            "| {} | {by_itself} by themselves | {asked} asked | 0 refused |",
            preset.name
        );
        let expected = match preset.name {
            "home-server" => (HONEST, 0),
            "fleet" => (HONEST / 2, HONEST / 2),
            _ => (0, HONEST),
        };
        assert_eq!((by_itself, asked), expected, "{}", preset.name);
        assert!(
            running.rig.alarms().is_empty(),
            "{:?}",
            running.rig.alarms()
        );
    }
}
