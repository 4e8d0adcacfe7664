//! `latchkey arm-reboot`, killed in each of its steps: a boot always shows a ticket that the key server takes.
//!
//! The service moves tickets on by the same code, without the announcement.

use std::collections::BTreeMap;
use std::os::unix::fs::FileExt;

use latchkey::files::{Files, Role};
use latchkey::server::{KeyServer, block_on};
use latchkey_protocol::encoding::Bytes;
use latchkey_protocol::tickets::Tickets;
use latchkey_protocol::wire::{
    BootFacts, ReleaseRequest, Text, Verdict, Version, VolumeTicket, WantedVolume,
};
use latchkey_protocol::{BootKeyPair, Generation, RequestId, VolumeId};
use serde_json::Value;

use crate::common::machine::{Machine, Server, Volume};
use crate::header;
use crate::points::{Killer, Points, Tape, kills};
use crate::tally::Tally;
use crate::tracer::{Change, End, Fate, Traced};

/// The header must show the ticket; nobody is asked.
const POLICY: &str = "rule = \"allow\"\nticket = true\notherwise = \"deny\"\n";

/// How far the ticket has come, as far as what lies on the disk tells it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Step {
    /// Both copies of the header have the old ticket: the next one is being asked for, or written.
    Ask,
    /// One copy has the next ticket.
    Write,
    /// Both have it: the key server is being told.
    Confirm,
}

#[test]
fn wherever_the_ticket_is_when_the_power_goes_the_next_boot_shows_a_good_one() {
    if !crate::may_trace() {
        return;
    }
    let points = Points::new();
    let tally = Tally::new("latchkey arm-reboot");
    let rig = Rig::new();
    let tape = rig.tape();
    assert_eq!(tape.len(), 3, "steps: {tape:?}");
    for turn in 0..kills() {
        let point = points.choose(turn, &tape);
        let before = rig.volume.bytes();
        let old = rig.ticket();
        let mut killer = Killer::at(&point);
        let end = rig.follow(|change| killer.fate(rig.step(old), change));
        match killer.met(end) {
            Some((step, fate, change)) => tally.kill(format!("{step:?}"), fate, &change),
            None => tally.count("ended first".to_owned()),
        }
        rig.nothing_else_changed(&before);
        rig.boots();
        if turn % 2 == 0 {
            rig.kill_again(points.below(tape[&Step::Ask]), &tally);
            rig.nothing_else_changed(&before);
            rig.boots();
        }
        // So that the next run has every step again.
        let armed = rig.machine.latchkey(&["arm-reboot"], "").succeeded();
        assert!(armed.err.contains("expects one boot"), "{}", armed.err);
        rig.boots();
    }
    tally.covers(tape.keys().map(|step| format!("{step:?}")));
}

struct Rig {
    server: Server,
    machine: Machine,
    volume: Volume,
    id: VolumeId,
    boot: KeyServer,
}

impl Rig {
    fn new() -> Self {
        let server = Server::start();
        let machine = Machine::joined(&[&server]);
        let volume = Volume::luks2();
        machine.plug_in(&volume);
        machine.bind(&volume).succeeded();
        machine.latchkey(&["arm-reboot"], "").succeeded();
        let policy = machine.path("policy.toml");
        std::fs::write(&policy, POLICY).unwrap();
        let set = ["policy", "set", "root_crypt", policy.to_str().unwrap()];
        server.admin(&set).succeeded();
        let list = machine.latchkey(&["list", "--json"], "").succeeded().out;
        let list: Value = serde_json::from_str(&list).unwrap();
        let id = list[0]["binding"]["volume"].as_str().unwrap();
        let files = Files::under(machine.root.path());
        let joined = files.all_servers().unwrap().remove(0);
        Self {
            id: id.parse().unwrap(),
            boot: KeyServer::open(&joined, Role::Boot).unwrap(),
            server,
            machine,
            volume,
        }
    }

    fn tape(&self) -> Tape<Step> {
        let mut tape = BTreeMap::new();
        let old = self.ticket();
        let end = self.follow(|_| {
            *tape.entry(self.step(old)).or_default() += 1;
            Fate::Live
        });
        assert_eq!(end, End::Exited(0));
        self.boots();
        tape
    }

    /// Kills the run after the one that was killed, too, at its change number `change`.
    fn kill_again(&self, change: usize, tally: &Tally) {
        let mut passed = 0;
        let end = self.follow(|_| {
            passed += 1;
            if passed > change {
                Fate::Kill
            } else {
                Fate::Live
            }
        });
        match end {
            End::Killed => tally.count("a repair".to_owned()),
            End::Exited(_) => tally.count("a repair ended first".to_owned()),
        }
    }

    fn follow(&self, decide: impl FnMut(&Change) -> Fate) -> End {
        let command = self.machine.command(&["arm-reboot"]);
        Traced::spawn(&command).run("", decide).0
    }

    fn header(&self) -> Vec<u8> {
        let mut bytes = vec![0; 1 << 15];
        let volume = std::fs::File::open(self.volume.path()).unwrap();
        volume.read_exact_at(&mut bytes, 0).unwrap();
        bytes
    }

    /// The ticket that a boot would find now.
    fn ticket(&self) -> Option<Bytes<32>> {
        let newest = header::newest(&self.header()).expect("neither copy of the header is whole");
        self.ticket_in(&newest)
    }

    fn ticket_in(&self, json: &Value) -> Option<Bytes<32>> {
        let tokens = json["tokens"].as_object()?.values();
        let mut tickets =
            tokens.filter_map(|token| Tickets::parse(token.to_string().as_bytes()).ok());
        tickets.find_map(|tickets| tickets.of(self.boot.settings.id))
    }

    fn step(&self, old: Option<Bytes<32>>) -> Step {
        let copies = header::copies(&self.header());
        let new = |copy: &Option<Value>| {
            let copy = copy.as_ref();
            copy.is_some_and(|json| self.ticket_in(json) != old)
        };
        match copies.iter().filter(|copy| new(copy)).count() {
            0 => Step::Ask,
            1 => Step::Write,
            _ => Step::Confirm,
        }
    }

    /// The next boot shows what is in the header, and is released by that alone.
    #[track_caller]
    fn boots(&self) {
        let keys = BootKeyPair::generate().unwrap();
        let ticket = self.ticket().expect("the header shows no ticket");
        let request = ReleaseRequest {
            version: Version::default(),
            request: RequestId::random().unwrap(),
            ephemeral_key: keys.public(),
            volumes: vec![WantedVolume {
                volume: self.id,
                generation: Generation::FIRST,
            }],
            facts: BootFacts {
                kernel: Text::cut("6.1.0"),
                command_line: Bytes([0; 32]),
                image_built: 0,
                image: None,
                header: None,
            },
            tickets: vec![VolumeTicket {
                volume: self.id,
                ticket,
            }],
        };
        let asked = self
            .boot
            .ask(async |client, address| client.release(address, &request).await);
        let verdict = block_on(asked).unwrap().unwrap().verdicts.remove(0).verdict;
        let log = || self.server.admin(&["audit"]).out;
        assert!(
            matches!(verdict, Verdict::Released { .. }),
            "{verdict:?}\n{}",
            log()
        );
    }

    /// The envelopes, every keyslot and the data are as before.
    #[track_caller]
    fn nothing_else_changed(&self, before: &[u8]) {
        let after = self.volume.bytes();
        let (old, new) = (
            header::newest(before).unwrap(),
            header::newest(&after).unwrap(),
        );
        for part in ["keyslots", "segments", "digests", "config"] {
            assert_eq!(new[part], old[part]);
        }
        assert_eq!(new["tokens"]["0"], old["tokens"]["0"]);
        let first_area = 2 * header::COPY;
        assert!(
            after[first_area..] == before[first_area..],
            "keyslots or data were changed"
        );
    }
}
