//! What each preset gives to copies of a disk and to honest boots: the table of docs/threat-model.md, with the agent's own state
//! machine and running system, and with the key server behind TLS on a store on disk. Only the clock of the boots and of the key
//! server is moved by hand. `make test-policy` prints the whole table.
#![allow(clippy::unwrap_used, missing_docs)]

mod boot;
#[path = "../common/mod.rs"]
mod common;
mod keyserver;
mod machine;
mod network;
mod power;
mod trouble;

use latchkeyd::audit::Kind;
use latchkeyd::policy::{PRESETS, Preset};

use boot::End::{self, Asked, Refused, Released};
use keyserver::{ELSEWHERE, HOME};
use machine::{Answers, Running};
use trouble::{Down, Trouble};

/// Copies of each kind and honest boots for each preset, unless the environment says otherwise.
const COPIES: usize = 2;
const HONEST: usize = 12;

fn number(variable: &str, default: usize) -> usize {
    let set = std::env::var(variable).ok();
    set.map_or(default, |number| number.parse().unwrap())
}

/// For every preset at once.
fn each<T: Send>(of: impl Fn(Preset) -> T + Sync) -> Vec<T> {
    std::thread::scope(|scope| {
        let started = PRESETS.map(|preset| {
            scope.spawn({
                let of = &of;
                move || of(preset)
            })
        });
        started.map(|thread| thread.join().unwrap()).into()
    })
}

#[test]
fn copies_get_what_the_threat_model_says() {
    let count = number("LATCHKEY_COPIES", COPIES);
    let found = each(|preset| copies(preset, count));
    println!("{count} copies of each kind:\n");
    println!(
        "| preset | (a) original runs | (b) has booted since | (c) off, at home | (c) off, elsewhere | (d) original silent |"
    );
    println!("|---|---|---|---|---|---|");
    for (preset, [a, b, home, elsewhere, d]) in PRESETS.iter().zip(&found) {
        println!(
            "| {} | {a:?} | {b:?} | {home:?} | {elsewhere:?} | {d:?} |",
            preset.name
        );
    }
    assert_eq!(
        found,
        [
            [Refused, Asked, Released, Asked, Released],
            [Refused, Asked, Asked, Asked, Asked],
            [Refused, Asked, Asked, Asked, Asked],
        ]
    );
}

fn copies(preset: Preset, count: usize) -> [End; 5] {
    let mut running = Running::under(preset);
    let disk = running.disk();
    let alive = running.copies(count, &disk, HOME, Answers::Sends);
    let alarms = running.server.entries(Kind::Alarm);
    assert!(alarms[0].contains("running machine answered"), "{alarms:?}");
    // It boots once more, and the copy is old.
    running.goes_down();
    running.comes_up(None);
    running.goes_down();
    let old = running.copies(count, &disk, HOME, Answers::None);
    let alarms = running.server.entries(Kind::Alarm);
    assert!(
        alarms.iter().any(|text| text.contains("earlier time")),
        "{alarms:?}"
    );

    let fresh = running.disk();
    let off = running.copies(count, &fresh, HOME, Answers::None);
    let elsewhere = running.copies(count, &fresh, ELSEWHERE, Answers::None);
    running.comes_up(None);
    let fresh = running.disk();
    running.falls_silent();
    let silent = running.copies(count, &fresh, HOME, Answers::None);
    [alive, old, off, elsewhere, silent]
}

#[test]
fn no_honest_boot_is_refused() {
    let count = number("LATCHKEY_HONEST", HONEST);
    let found = each(|preset| honest(preset, count));
    println!("of {count} honest boots:\n");
    println!("| preset | by themselves | asked a person | refused |");
    println!("|---|---|---|---|");
    for (preset, [by_itself, asked, refused]) in PRESETS.iter().zip(&found) {
        println!("| {} | {by_itself} | {asked} | {refused} |", preset.name);
        assert_eq!((*refused, by_itself + asked), (0, count), "{}", preset.name);
    }
}

/// How many were released, asked and refused.
fn honest(preset: Preset, count: usize) -> [usize; 3] {
    let mut running = Running::under(preset);
    let mut ends = [0; 3];
    let mut state = 1;
    for number in 0..count {
        let trouble = Trouble::of(number, &mut state);
        let (end, expected) = boots_with(&mut running, preset, trouble);
        assert_eq!(end, expected, "{}: boot {number}: {trouble:?}", preset.name);
        ends[end as usize] += 1;
        running.passes();
    }
    let alarms = running.server.entries(Kind::Alarm);
    assert!(alarms.is_empty(), "{}: {alarms:?}", preset.name);
    ends
}

/// One boot of a machine that runs, until it runs again: what it came to, and what it should.
fn boots_with(running: &mut Running, preset: Preset, trouble: Trouble) -> (End, End) {
    let mut announced = false;
    match trouble.down {
        Down::Announced => {
            announced = running.announces(None);
            assert!(announced);
            running.goes_down();
        }
        Down::CutWhileItAnnounces(moment) => {
            announced = running.announces(Some(moment));
            running.is_cut();
        }
        Down::Cut => running.is_cut(),
        Down::FallsSilent => running.falls_silent(),
        Down::CutWhileItComesUp(moment) => running.is_cut_while_it_comes_up(moment),
    }
    if trouble.restarts {
        running.server.start();
    }
    if let Some(moment) = trouble.server {
        running.server.power.cut_server(moment);
    }
    let mut away = trouble.away;
    if away > 0 {
        running.server.stop();
    }
    let boot = running.boots();
    let (mut request, mut end) = boot.ends(&mut running.server, |server| {
        if server.is_away() {
            match away.checked_sub(1) {
                Some(less) => away = less,
                None => server.start(),
            }
        }
    });
    running.server.power.call_off();
    let cut = trouble.cut && end == Released;
    if cut {
        let boot = running.boots();
        (request, end) = boot.ends(&mut running.server, |_| {});
    }
    running.server.deny_all();
    running.is_cut();
    running.comes_up(Some(request));
    let by_itself = match preset.name {
        "home-server" => true,
        // Of an announced reboot one boot session is expected: one more is a person's to judge.
        "fleet" => announced && !cut,
        _ => false,
    };
    (end, if by_itself { Released } else { Asked })
}
