//! `latchkey bind` and `latchkey unbind`, killed in each of their steps.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::process::Command;

use serde_json::{Value, json};

use crate::common::machine::{
    Machine, PASSPHRASE, Said, Server, UUID, Volume, bind_arguments, run,
};
use crate::header;
use crate::points::{Killer, Point, Points, Tape, kills};
use crate::tally::Tally;
use crate::tracer::{Change, End, Fate, Traced};

/// A client may register 256 volumes, and every binding is a new one.
const TURNS_OF_ONE_MACHINE: usize = 25;
/// The second person's keyslot and the token of another program, which nobody may touch.
const OTHER_SLOT: &str = "4";
const OTHER_TOKEN: &str = "2";
const OTHER_PASSPHRASE: &str = "battery staple";

#[test]
fn a_binding_that_is_killed_anywhere_is_repaired_by_the_next_run() {
    if !crate::may_trace() {
        return;
    }
    let points = Points::new();
    let tally = Tally::new("latchkey");
    let mut rig = Rig::new();
    let tapes = rig.tapes();
    for turn in 0..kills().div_ceil(2) {
        if turn % TURNS_OF_ONE_MACHINE == TURNS_OF_ONE_MACHINE - 1 {
            rig = Rig::new();
        }
        let bind = points.choose(turn, &tapes.bind);
        rig.kill("bind", &bind, bind_step, &tally);
        match turn % 3 {
            0 => rig.repair(Verb::Bind),
            1 => {
                rig.repair(Verb::Unbind);
                rig.is_unbound();
                rig.machine.remove_backups();
                rig.repair(Verb::Bind);
            }
            _ => {
                rig.kill_repair(Verb::Bind, points.below(tapes.bind.values().sum()), &tally);
                rig.repair(Verb::Bind);
            }
        }
        rig.is_bound(1..=1);

        let unbind = points.choose(turn, &tapes.unbind);
        rig.kill("unbind", &unbind, unbind_step, &tally);
        match turn % 3 {
            0 => rig.repair(Verb::Unbind),
            1 => {
                rig.repair(Verb::Bind);
                // Unbinding keeps the backup of the binding that it took away, and its own.
                rig.is_bound(1..=3);
                rig.repair(Verb::Unbind);
            }
            _ => {
                rig.kill_repair(
                    Verb::Unbind,
                    points.below(tapes.unbind.values().sum()),
                    &tally,
                );
                rig.repair(Verb::Unbind);
            }
        }
        rig.is_unbound();
        rig.machine.remove_backups();
    }
    tally.covers(tapes.bind.keys().map(|step| format!("bind, {step:?}")));
    tally.covers(tapes.unbind.keys().map(|step| format!("unbind, {step:?}")));
}

/// How far `bind` has come, as far as what lies on the disks tells it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum BindStep {
    Begin,
    Register,
    Backup,
    FillKeyslot,
    MarkKeyslot,
    WriteToken,
    Prove,
    /// It is bound: the image and the units.
    Finish,
}

fn bind_step(seen: &Seen) -> BindStep {
    match &seen.journal {
        None if seen.token => BindStep::Finish,
        None => BindStep::Begin,
        Some(_) if seen.token => BindStep::Prove,
        Some(journal) if seen.keyslot && journal["keyslots"][0]["salt"].is_string() => {
            BindStep::WriteToken
        }
        Some(_) if seen.keyslot => BindStep::MarkKeyslot,
        Some(journal) if journal["keyslots"] != json!([]) => BindStep::FillKeyslot,
        Some(journal) if journal["backup"].is_string() => BindStep::Backup,
        Some(_) => BindStep::Register,
    }
}

/// How far `unbind` has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum UnbindStep {
    Begin,
    RemoveToken,
    DestroyKeyslot,
    TellServer,
    Finish,
}

fn unbind_step(seen: &Seen) -> UnbindStep {
    match &seen.journal {
        None if seen.token => UnbindStep::Begin,
        None => UnbindStep::Finish,
        Some(_) if seen.token => UnbindStep::RemoveToken,
        Some(_) if seen.keyslot => UnbindStep::DestroyKeyslot,
        Some(_) => UnbindStep::TellServer,
    }
}

/// What there is of a binding.
struct Seen {
    journal: Option<Value>,
    keyslot: bool,
    token: bool,
}

#[derive(Debug, Clone, Copy)]
enum Verb {
    Bind,
    Unbind,
}

struct Tapes {
    bind: Tape<BindStep>,
    unbind: Tape<UnbindStep>,
}

/// A machine with a volume that two people can open.
struct Rig {
    server: Server,
    machine: Machine,
    volume: Volume,
}

impl Rig {
    fn new() -> Self {
        let server = Server::start();
        let machine = Machine::joined(&[&server]);
        let volume = Volume::luks2();
        machine.plug_in(&volume);
        let rig = Self {
            server,
            machine,
            volume,
        };
        rig.add_what_is_not_ours();
        rig
    }

    fn add_what_is_not_ours(&self) {
        let (old, new) = (self.machine.path("old"), self.machine.path("new"));
        std::fs::write(&old, PASSPHRASE).unwrap();
        std::fs::write(&new, OTHER_PASSPHRASE).unwrap();
        let cheap = ["--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000"];
        let mut add = Command::new("cryptsetup");
        add.args(["luksAddKey", "--batch-mode", "--key-slot", OTHER_SLOT])
            .args(cheap)
            .arg("--key-file")
            .args([&old, &PathBuf::from(self.volume.path()), &new]);
        run(&mut add, "").succeeded();
        let token = json!({ "type": "other", "keyslots": [OTHER_SLOT] }).to_string();
        let import = [
            "token",
            "import",
            "--token-id",
            OTHER_TOKEN,
            "--json-file",
            "-",
        ];
        let mut import_token = Command::new("cryptsetup");
        import_token.args(import).arg(self.volume.path());
        run(&mut import_token, &token).succeeded();
    }

    /// Both commands once, without a kill.
    fn tapes(&self) -> Tapes {
        let tapes = Tapes {
            bind: self.tape(Verb::Bind, bind_step),
            unbind: self.tape(Verb::Unbind, unbind_step),
        };
        self.is_unbound();
        self.machine.remove_backups();
        assert_eq!(tapes.bind.len(), 8, "steps of bind: {:?}", tapes.bind);
        assert_eq!(tapes.unbind.len(), 5, "steps of unbind: {:?}", tapes.unbind);
        tapes
    }

    fn tape<S: Ord + Copy>(&self, verb: Verb, step: fn(&Seen) -> S) -> Tape<S> {
        let mut tape = BTreeMap::new();
        let (end, said) = self.follow(verb, |_| {
            *tape.entry(step(&self.seen())).or_default() += 1;
            Fate::Live
        });
        assert_eq!(end, End::Exited(0), "{said}");
        tape
    }

    /// Runs the command up to `point`.
    #[track_caller]
    fn kill<S: Ord + Copy + std::fmt::Debug>(
        &self,
        name: &str,
        point: &Point<S>,
        step: fn(&Seen) -> S,
        tally: &Tally,
    ) {
        let verb = if name == "bind" {
            Verb::Bind
        } else {
            Verb::Unbind
        };
        let before = self.volume.bytes();
        let mut killer = Killer::at(point);
        let (end, said) = self.follow(verb, |change| killer.fate(step(&self.seen()), change));
        let Some((step, fate, change)) = killer.met(end) else {
            assert_eq!(end, End::Exited(0), "{name} failed by itself: {said}");
            tally.count(format!("{name} ended first"));
            return;
        };
        tally.kill(format!("{name}, {step:?}"), fate, &change);
        self.is_safe(&before);
        let backups = self.backups();
        if self.volume.bytes()[..header::DATA] != before[..header::DATA] {
            let mut whole = backups.iter().map(|path| std::fs::read(path).unwrap());
            assert!(
                whole.any(|backup| backup == before[..header::DATA]),
                "the header was changed, and no backup of it is in {backups:?}"
            );
        }
    }

    /// Kills the run that is to repair, too, at its change number `change`.
    #[track_caller]
    fn kill_repair(&self, verb: Verb, change: usize, tally: &Tally) {
        let before = self.volume.bytes();
        let mut passed = 0;
        let (end, said) = self.follow(verb, |_| {
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
        self.is_safe(&before);
        let seen = self.seen();
        if seen.keyslot || seen.token {
            let backups = self.backups();
            let mut whole = backups.iter().map(|path| std::fs::read(path).unwrap());
            assert!(whole.any(|backup| self.is_from_before(&backup)), "{said}");
        }
    }

    /// The next run does what it is there for, or what was left of it, or says that it was done.
    #[track_caller]
    fn repair(&self, verb: Verb) {
        let seen = self.seen();
        let over = seen.journal.is_none()
            && match verb {
                Verb::Bind => seen.token,
                Verb::Unbind => !seen.token,
            };
        let (said, done): (Said, _) = match verb {
            Verb::Bind => (self.machine.bind(&self.volume), "is bound already"),
            Verb::Unbind => (self.machine.unbind(&self.volume), "is not bound"),
        };
        if over {
            said.failed_saying(&[done]);
        } else {
            said.succeeded();
            assert!(self.machine.state("bind-").is_empty());
            // That the image is left to somebody else stays noted.
            let noted = self.machine.state("bound-").len();
            assert_eq!(noted, usize::from(matches!(verb, Verb::Bind)));
        }
    }

    fn follow(&self, verb: Verb, decide: impl FnMut(&Change) -> Fate) -> (End, String) {
        self.machine.forget_network();
        let (command, input) = match verb {
            Verb::Bind => (
                self.machine.command(&bind_arguments(&self.volume)),
                PASSPHRASE,
            ),
            Verb::Unbind => {
                let arguments = ["unbind", self.volume.path(), "--no-initramfs"];
                (self.machine.command(&arguments), "")
            }
        };
        Traced::spawn(&command).run(input, decide)
    }

    fn seen(&self) -> Seen {
        let path = self
            .machine
            .path(&format!("var/lib/latchkey/bind-{UUID}.json"));
        let mut bytes = vec![0; 1 << 15];
        let volume = std::fs::File::open(self.volume.path()).unwrap();
        volume.read_exact_at(&mut bytes, 0).unwrap();
        let header = header::newest(&bytes).expect("neither copy of the header is whole");
        Seen {
            journal: std::fs::read(path)
                .ok()
                .map(|text| serde_json::from_slice(&text).unwrap()),
            keyslot: !header["keyslots"]["1"].is_null(),
            token: !header["tokens"]["0"].is_null(),
        }
    }

    /// Both people open the volume, and nothing but our keyslot and our token differs from `before`.
    #[track_caller]
    fn is_safe(&self, before: &[u8]) {
        let after = self.volume.bytes();
        let (old, new) = (
            header::newest(before).unwrap(),
            header::newest(&after).unwrap(),
        );
        for slot in ["0", OTHER_SLOT] {
            assert_eq!(
                new["keyslots"][slot], old["keyslots"][slot],
                "keyslot {slot}"
            );
            let same = header::area(&after, &new, slot) == header::area(before, &old, slot);
            assert!(same, "the area of keyslot {slot} was changed");
        }
        assert_eq!(new["tokens"][OTHER_TOKEN], old["tokens"][OTHER_TOKEN]);
        for part in ["segments", "config"] {
            assert_eq!(new[part], old[part]);
        }
        assert_eq!(new["digests"]["0"]["digest"], old["digests"]["0"]["digest"]);
        assert!(
            after[header::DATA..] == before[header::DATA..],
            "the data were changed"
        );
        // At the end: libcryptsetup repairs a copy of the header that is not whole.
        for passphrase in [PASSPHRASE, OTHER_PASSPHRASE] {
            opens(self.volume.path(), passphrase);
        }
    }

    /// A backup of a header without a binding, that opens.
    fn is_from_before(&self, backup: &[u8]) -> bool {
        self.is_whole(backup) && header::newest(backup).is_some_and(|json| has(&json, false))
    }

    /// A backup of a header, with whatever an unbinding that went on found left of the binding, that opens.
    fn is_whole(&self, backup: &[u8]) -> bool {
        let file = self.machine.path("backup");
        std::fs::write(&file, backup).unwrap();
        opens(file.to_str().unwrap(), PASSPHRASE);
        header::newest(backup).is_some()
    }

    /// With as many backups of the header as `range` says, all of them whole.
    #[track_caller]
    fn is_bound(&self, range: RangeInclusive<usize>) {
        let json = header::newest(&self.volume.bytes()).unwrap();
        assert!(has(&json, true), "{json}");
        let list = self
            .machine
            .latchkey(&["list", "--json"], "")
            .succeeded()
            .out;
        let list: Value = serde_json::from_str(&list).unwrap();
        assert_eq!(list[0]["binding"]["state"], "bound");
        assert_eq!(list[0]["problems"], json!([]));
        let backups = self.whole_backups();
        assert!(range.contains(&backups), "{backups} backups");
        let volume = list[0]["binding"]["volume"].as_str().unwrap().to_owned();
        assert_eq!(self.server.live_volumes(), [volume]);
    }

    #[track_caller]
    fn is_unbound(&self) {
        let json = header::newest(&self.volume.bytes()).unwrap();
        assert!(has(&json, false), "{json}");
        let live = self.server.live_volumes();
        assert!(live.is_empty(), "{live:?}");
        self.whole_backups();
    }

    /// How many backups there are; none of them is half written.
    #[track_caller]
    fn whole_backups(&self) -> usize {
        let backups = self.backups();
        for backup in &backups {
            assert!(self.is_whole(&std::fs::read(backup).unwrap()));
        }
        backups.len()
    }

    /// Those that have their name.
    fn backups(&self) -> Vec<PathBuf> {
        let mut backups = self.machine.state("header-");
        backups.retain(|path| path.extension().is_some_and(|extension| extension == "img"));
        backups
    }
}

/// The keyslots and tokens of the two people, and ours if the volume is bound; no others.
fn has(json: &Value, bound: bool) -> bool {
    let names =
        |kind: &str| -> Vec<String> { json[kind].as_object().unwrap().keys().cloned().collect() };
    let expected: [&[&str]; 2] = match bound {
        true => [&["0", "1", OTHER_SLOT], &["0", OTHER_TOKEN]],
        false => [&["0", OTHER_SLOT], &[OTHER_TOKEN]],
    };
    [names("keyslots"), names("tokens")] == expected
}

#[track_caller]
fn opens(path: &str, passphrase: &str) {
    let test = ["open", "--test-passphrase", "--key-file", "-", path];
    run(Command::new("cryptsetup").args(test), passphrase).succeeded();
}
