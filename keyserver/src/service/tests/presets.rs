//! What each preset gives to copies of the disk and to honest boots: the table of docs/threat-model.md.

use latchkey_protocol::wire::LifeAnswer;

use super::*;
use crate::policy::{PRESETS, Preset};
use crate::store::memory::Fault;

/// Copies of each kind, and honest boots under each preset unless the environment says otherwise.
const COPIES: usize = 100;
const HONEST: usize = 60;

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

/// What goes wrong around one honest boot.
#[derive(Debug, Clone, Copy)]
struct Trouble {
    announced: bool,
    ticket: TicketTrouble,
    /// The key server's power is cut while the release or the question is committed, before it is durable or after.
    server: Option<Fault>,
    /// It starts anew before the boot.
    restarts: bool,
    /// The machine's power is cut after the release, before it is up: another boot session follows.
    cut: bool,
}

/// Where the machine's power was cut while its ticket moved on.
#[derive(Debug, Clone, Copy)]
enum TicketTrouble {
    Nowhere,
    /// It was drawn, and is not in the header.
    Drawn,
    /// It is in the header, and not confirmed.
    Written,
    /// The confirmation was lost, or its answer.
    Confirming(Fault),
}

impl Trouble {
    /// The trouble of the boot `number`, drawn by the boots before it.
    fn of(number: usize, state: &mut u64) -> Self {
        // Knuth's MMIX generator; its upper bits.
        let mut below = |limit: u64| {
            *state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (*state >> 33) % limit
        };
        Self {
            announced: number.is_multiple_of(2),
            ticket: match below(6) {
                0 | 1 => TicketTrouble::Nowhere,
                2 => TicketTrouble::Drawn,
                3 => TicketTrouble::Written,
                4 => TicketTrouble::Confirming(Fault::Before),
                _ => TicketTrouble::Confirming(Fault::After),
            },
            server: match below(4) {
                0 => Some(Fault::Before),
                1 => Some(Fault::After),
                _ => None,
            },
            restarts: below(5) == 0,
            cut: below(8) == 0,
        }
    }
}

impl Running {
    /// Moves the ticket on until the power is cut.
    fn is_cut_at(&mut self, trouble: TicketTrouble) {
        if matches!(trouble, TicketTrouble::Nowhere) {
            return;
        }
        let next = self.rig.next_ticket(&self.machine, self.volume);
        if matches!(trouble, TicketTrouble::Drawn) {
            return;
        }
        self.ticket = next;
        if let TicketTrouble::Confirming(fault) = trouble {
            self.rig.store.inject(1, fault);
            let lost = self.rig.confirm(&self.machine, self.volume, next, None);
            assert!(lost.is_err());
        }
    }

    /// As [`Running::end`], with a key server whose power is cut at the commit; the agent asks again.
    fn end_with(&mut self, boot: &Boot, trouble: Option<Fault>) -> End {
        let Some(fault) = trouble else {
            return self.end(boot, HOME, self.ticket);
        };
        self.rig.store.inject(1, fault);
        let mut request = boot.release(&[self.volume]);
        request.tickets = vec![VolumeTicket {
            volume: self.volume,
            ticket: self.ticket,
        }];
        loop {
            let identity = self.rig.identity(&self.machine.boot);
            match self.rig.service.release(&identity, address(HOME), &request) {
                Ok(_) => self.rig.pass(life::BEAT),
                Err(ServiceError::Record(_)) => break,
                Err(error) => panic!("{error}"),
            }
        }
        self.rig.restart();
        self.end(boot, HOME, self.ticket)
    }
}

/// Boots of the machine itself: announced ones and others, power cuts of either side in every step of the ticket and of
/// the audit, a key server that was away. LATCHKEY_HONEST says how many for each preset.
#[test]
fn no_honest_boot_is_refused() {
    let honest: usize = std::env::var("LATCHKEY_HONEST")
        .ok()
        .map_or(HONEST, |number| number.parse().unwrap());
    println!("| preset | by themselves | asked a person | refused |");
    for preset in PRESETS {
        let mut running = Running::under(preset);
        let (mut by_itself, mut asked, mut expected) = (0, 0, 0);
        let mut state = 1;
        for number in 0..honest {
            let trouble = Trouble::of(number, &mut state);
            running.is_cut_at(trouble.ticket);
            if trouble.announced {
                let next = running.rig.next_ticket(&running.machine, running.volume);
                running
                    .rig
                    .confirm(&running.machine, running.volume, next, Some(900))
                    .unwrap();
                running.ticket = next;
            }
            if trouble.restarts {
                running.rig.restart();
                running.stream = None;
            }
            running.goes_down();
            let mut boot = Boot::new();
            let mut end = running.end_with(&boot, trouble.server);
            let cut = trouble.cut && end == End::Released;
            if cut {
                boot = Boot::new();
                end = running.end(&boot, HOME, running.ticket);
            }
            match end {
                End::Released => by_itself += 1,
                End::Asked => {
                    asked += 1;
                    let listed = running.rig.service.requests().unwrap();
                    let request = listed.iter().find(|one| one.request == boot.request);
                    let id = &request.unwrap().id;
                    drop(running.rig.service.deny(id, AfterDeny::Nothing, "root"));
                }
                End::Refused => panic!("{}: boot {number} was refused: {trouble:?}", preset.name),
            }
            expected += usize::from(match preset.name {
                "home-server" => true,
                // Of an announced reboot one boot session is expected: one more is a person's to judge.
                "fleet" => trouble.announced && !cut,
                _ => false,
            });
            running.comes_up(Some(boot.request));
            running.rig.pass(Duration::from_secs(7200));
        }
        println!("| {} | {by_itself} | {asked} | 0 |", preset.name);
        assert_eq!(by_itself, expected, "{}", preset.name);
        assert_eq!(by_itself + asked, honest, "{}", preset.name);
        assert!(
            running.rig.alarms().is_empty(),
            "{:?}",
            running.rig.alarms()
        );
    }
}
