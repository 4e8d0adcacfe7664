//! `latchkey bind --format`, killed in each of its steps: what is left is empty for the next run, or a volume that the new
//! passphrase opens.

use std::collections::BTreeMap;
use std::os::unix::fs::FileExt;

use crate::common::machine::{Machine, PASSPHRASE, Server, Volume};
use crate::header;
use crate::points::{Killer, Points, Tape, kills_or};
use crate::tally::Tally;
use crate::tracer::{Change, End, Fate, Traced};

/// How far it has come, as far as the device tells it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Step {
    /// The header is made in memory, and the first of it written.
    Begin,
    WriteKeyslots,
    /// The passphrase opens; the rest is what `bind` does to every volume.
    Bind,
}

/// Fewer than of the others, unless LATCHKEY_KILLS says otherwise: each run derives keys that cost what people's do.
const KILLS: usize = 6;

#[test]
fn a_format_that_is_killed_anywhere_leaves_an_empty_device_or_a_volume_that_opens() {
    if !crate::may_trace() {
        return;
    }
    let points = Points::new();
    let tally = Tally::new("latchkey bind --format");
    let rig = Rig::new();
    let tape = rig.tape();
    assert_eq!(tape.len(), 3, "steps: {tape:?}");
    for turn in 0..kills_or(KILLS) {
        let volume = Volume::plain();
        let point = points.choose(turn, &tape);
        let mut killer = Killer::at(&point);
        let end = rig.follow(&volume, |step, change| killer.fate(step, change));
        match killer.met(end) {
            Some((step, fate, change)) => tally.kill(format!("{step:?}"), fate, &change),
            // With so few kills one that came too late is no sign of anything; each step must be hit all the same.
            None => tally.count("was over before the kill".to_owned()),
        }
        tally.count(rig.repair(&volume).to_owned());
        rig.is_bound(&volume);
        rig.forget(&volume);
    }
    tally.covers(tape.keys().map(|step| format!("{step:?}")));
}

struct Rig {
    server: Server,
    machine: Machine,
}

impl Rig {
    fn new() -> Self {
        let server = Server::start();
        let machine = Machine::joined(&[&server]);
        let rig = Self { server, machine };
        rig.empty_crypttab();
        rig
    }

    /// One run that is not killed.
    fn tape(&self) -> Tape<Step> {
        let volume = Volume::plain();
        let mut tape = BTreeMap::new();
        let end = self.follow(&volume, |step, _| {
            *tape.entry(step).or_default() += 1;
            Fate::Live
        });
        assert_eq!(end, End::Exited(0));
        self.is_bound(&volume);
        self.forget(&volume);
        tape
    }

    fn follow(&self, volume: &Volume, mut decide: impl FnMut(Step, &Change) -> Fate) -> End {
        self.machine.forget_network();
        let command = self.machine.command(&arguments(volume, true));
        let (end, said) =
            Traced::spawn(&command).run(PASSPHRASE, |change| decide(step(volume), change));
        assert!(end == End::Killed || end == End::Exited(0), "{said}");
        end
    }

    /// The same command again, or without `--format` if there is a volume already; which it was.
    #[track_caller]
    fn repair(&self, volume: &Volume) -> &'static str {
        let is_made = step(volume) == Step::Bind && !is_marked(volume);
        let again = self.machine.latchkey(&arguments(volume, true), PASSPHRASE);
        if !is_made {
            again.succeeded();
            return "formatted again";
        }
        again.failed_saying(&["is a LUKS volume already", "without --format"]);
        let bound = self.machine.latchkey(&arguments(volume, false), PASSPHRASE);
        match volume.count("tokens") {
            1 if bound.err.contains("is bound already") => "was bound",
            _ => {
                bound.succeeded();
                "bound as it is"
            }
        }
    }

    #[track_caller]
    fn is_bound(&self, volume: &Volume) {
        volume.opens_with_the_passphrase();
        assert_eq!((volume.count("keyslots"), volume.count("tokens")), (2, 1));
        assert!(self.machine.state("bind-").is_empty());
        // That the image is left to somebody else stays noted.
        assert_eq!(self.machine.state("bound-").len(), 1);
        assert_eq!(self.server.live_volumes().len(), 1);
    }

    fn forget(&self, volume: &Volume) {
        self.machine.unbind(volume).succeeded();
        self.empty_crypttab();
        self.machine.remove_backups();
    }

    fn empty_crypttab(&self) {
        std::fs::write(self.machine.path("etc/crypttab"), "").unwrap();
    }
}

fn arguments(volume: &Volume, format: bool) -> Vec<&str> {
    let mut arguments = vec![
        "bind",
        volume.path(),
        "--name",
        "data",
        "--key-file",
        "-",
        "--no-initramfs",
    ];
    if format {
        arguments.push("--format");
    }
    arguments
}

fn step(volume: &Volume) -> Step {
    let mut bytes = vec![0; 2 * header::COPY];
    let file = std::fs::File::open(volume.path()).unwrap();
    file.read_exact_at(&mut bytes, 0).unwrap();
    match header::newest(&bytes) {
        None => Step::Begin,
        Some(json) if json["keyslots"]["0"].is_null() => Step::WriteKeyslots,
        Some(_) => Step::Bind,
    }
}

/// Its first sector still says that it is not finished.
fn is_marked(volume: &Volume) -> bool {
    volume.bytes()[208..].starts_with(b"latchkey: unfinished")
}
