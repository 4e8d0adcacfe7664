//! `latchkey rotate`, killed in each of its steps: what the header says opens the volume at every moment, and the next run
//! ends with one keyslot and one share.

use std::collections::BTreeMap;
use std::os::unix::fs::FileExt;
use std::path::Path;

use latchkey::commands::shares;
use latchkey::files::{Files, Role};
use latchkey::server::KeyServer;
use latchkey::volume::header::HeaderCopy;
use latchkey::volume::open::check_automatically;
use latchkey::volume::place::Place;
use latchkey::volume::tokens;
use latchkey_protocol::envelope::{Released, Token};
use serde_json::{Value, json};

use crate::common::machine::{Machine, Server, UUID, Volume};
use crate::header;
use crate::points::{Killer, Points, Tape, kills};
use crate::tally::Tally;
use crate::tracer::{Change, End, Fate, Traced};

/// How far the rotation has come, as far as what lies on the disks tells it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Step {
    Begin,
    AskServer,
    Backup,
    FillKeyslot,
    MarkKeyslot,
    /// It is proved, and then written.
    WriteToken,
    /// And then the old keyslot goes.
    TellServer,
    EndJournal,
    Finish,
}

#[test]
fn a_rotation_that_is_killed_anywhere_leaves_a_volume_that_opens() {
    if !crate::may_trace() {
        return;
    }
    let points = Points::new();
    let tally = Tally::new("latchkey rotate");
    let mut rig = Rig::new();
    let tape = rig.tape();
    assert_eq!(tape.len(), 9, "steps: {tape:?}");
    for turn in 0..kills() {
        let point = points.choose(turn, &tape);
        let before = rig.volume.bytes();
        let mut killer = Killer::at(&point);
        let end = rig.follow(|step, change| killer.fate(step, change));
        match killer.met(end) {
            Some((step, fate, change)) => tally.kill(format!("{step:?}"), fate, &change),
            None => tally.count("ended first".to_owned()),
        }
        rig.opens(&before);
        match turn % 3 {
            0 => {}
            1 => {
                rig.kill_repair(points.below(tape.values().sum()), &tally);
                rig.opens(&before);
            }
            _ => {
                // The owner has had enough of it.
                rig.machine.unbind(&rig.volume).succeeded();
                assert_eq!(
                    (rig.volume.count("keyslots"), rig.volume.count("tokens")),
                    (1, 0)
                );
                rig.machine.bind(&rig.volume).succeeded();
            }
        }
        rig.repair();
        rig.opens(&before);
        rig.machine.remove_backups();
    }
    tally.covers(tape.keys().map(|step| format!("{step:?}")));
}

/// A machine with a bound volume.
struct Rig {
    server: Server,
    machine: Machine,
    volume: Volume,
    /// The keyslot of the binding before the run.
    slot: String,
}

impl Rig {
    fn new() -> Self {
        let server = Server::start();
        let machine = Machine::joined(&[&server]);
        let volume = Volume::luks2();
        machine.plug_in(&volume);
        machine.bind(&volume).succeeded();
        Self {
            server,
            machine,
            volume,
            slot: String::new(),
        }
    }

    /// One run that is not killed.
    fn tape(&mut self) -> Tape<Step> {
        let mut tape = BTreeMap::new();
        let end = self.follow(|step, _| {
            *tape.entry(step).or_default() += 1;
            Fate::Live
        });
        assert_eq!(end, End::Exited(0));
        self.machine.remove_backups();
        tape
    }

    fn follow(&mut self, mut decide: impl FnMut(Step, &Change) -> Fate) -> End {
        self.slot = self.token().bound.keyslot().unwrap().to_string();
        let command = self.command();
        let (end, said) = Traced::spawn(&command).run("", |change| decide(self.step(), change));
        assert!(end == End::Killed || end == End::Exited(0), "{said}");
        end
    }

    fn command(&self) -> std::process::Command {
        let arguments = ["rotate", self.volume.path(), "--no-initramfs"];
        self.machine.command(&arguments)
    }

    fn step(&self) -> Step {
        let journal = self
            .machine
            .path(&format!("var/lib/latchkey/rotate-{UUID}.json"));
        let journal: Option<Value> = std::fs::read(journal)
            .ok()
            .map(|text| serde_json::from_slice(&text).unwrap());
        let mut bytes = vec![0; 1 << 15];
        let volume = std::fs::File::open(self.volume.path()).unwrap();
        volume.read_exact_at(&mut bytes, 0).unwrap();
        let header = header::newest(&bytes).expect("neither copy of the header is whole");
        let replaced = header["tokens"]["0"]["keyslots"] != json!([self.slot]);
        let keyslots = header["keyslots"].as_object().unwrap().len();
        match journal {
            None if replaced => Step::Finish,
            None => Step::Begin,
            Some(_) if replaced && keyslots == 3 => Step::TellServer,
            Some(_) if replaced => Step::EndJournal,
            Some(journal) if journal["new-keyslot"]["salt"].is_string() => Step::WriteToken,
            Some(_) if keyslots == 3 => Step::MarkKeyslot,
            Some(journal) if !journal["new-keyslot"].is_null() => Step::FillKeyslot,
            Some(journal) if journal["backup"].is_string() => Step::Backup,
            Some(_) => Step::AskServer,
        }
    }

    /// The binding in the header opens the volume with the share that the key server gives for it, a person's passphrase does
    /// too, and neither that keyslot nor the data differ from `before`.
    #[track_caller]
    fn opens(&self, before: &[u8]) {
        let token = self.token();
        let files = Files::under(self.machine.root.path());
        let joined = files.all_servers().unwrap().remove(0);
        let server = KeyServer::open(&joined, Role::Host).unwrap();
        let envelope = token.envelope_of(server.settings.id).unwrap();
        let share = shares::prove(&server, token.volume, envelope.generation).unwrap();
        let released = Released {
            share: &share,
            volume: token.volume,
            generation: envelope.generation,
        };
        let secret = token.open(envelope, released).unwrap();
        check_automatically(&Place::attached(self.volume.path()), &token, &secret).unwrap();

        let after = self.volume.bytes();
        let (old, new) = (
            header::newest(before).unwrap(),
            header::newest(&after).unwrap(),
        );
        assert_eq!(new["keyslots"]["0"], old["keyslots"]["0"]);
        assert!(header::area(&after, &new, "0") == header::area(before, &old, "0"));
        assert!(
            after[header::DATA..] == before[header::DATA..],
            "the data were changed"
        );
        self.volume.opens_with_the_passphrase();
    }

    fn token(&self) -> Token {
        let header = HeaderCopy::read(Path::new(self.volume.path())).unwrap();
        tokens::find_in(header.json()).remove(0).token.unwrap()
    }

    /// Kills the run that goes on, at its change number `change`.
    fn kill_repair(&mut self, change: usize, tally: &Tally) {
        let mut passed = 0;
        let end = self.follow(|_, _| {
            passed += 1;
            match passed > change {
                true => Fate::Kill,
                false => Fate::Live,
            }
        });
        match end {
            End::Killed => tally.count("a repair".to_owned()),
            End::Exited(_) => tally.count("a repair ended first".to_owned()),
        }
    }

    /// The next run ends: no second keyslot of ours, no second share.
    #[track_caller]
    fn repair(&self) {
        let arguments = ["rotate", self.volume.path(), "--no-initramfs"];
        self.machine.latchkey(&arguments, "").succeeded();
        assert!(self.machine.state("rotate-").is_empty());
        assert_eq!(
            (self.volume.count("keyslots"), self.volume.count("tokens")),
            (2, 1)
        );
        let volumes = self.server.admin(&["volumes", "--json"]).succeeded().out;
        let volumes: Value = serde_json::from_str(&volumes).unwrap();
        let live = |one: &&Value| one["retired"].is_null();
        let volume = volumes.as_array().unwrap().iter().find(live).unwrap();
        let envelope = self.token().envelopes.remove(0);
        assert_eq!(volume["generation"], json!(envelope.generation.0));
    }
}
