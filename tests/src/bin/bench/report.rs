//! `docs/benchmarks.md` and its pictures, of the figures that the parts left.

use std::fmt::Write;
use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::picture::{Part, Timeline, draw};
use crate::{Failure, median, number};

const DOCS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs");
const INTRODUCTION: &str = "# Benchmarks

Written by `make bench`; nothing here is typed by hand. The guests run under QEMU's software emulation on two cores,
five to ten times slower than real hardware: only ratios within one run mean anything. Every contender is what Debian
12 ships, on the same guest and kernel.
";

/// Writes what there are figures for.
pub fn write(figures: &Path) -> Result<(), Failure> {
    let read = |part: &str| -> Result<Option<Value>, Failure> {
        match fs::read(figures.join(format!("{part}.json"))) {
            Ok(text) => Ok(Some(serde_json::from_slice(&text)?)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error.into()),
        }
    };
    let pictures = Path::new(DOCS).join("benchmarks");
    fs::create_dir_all(&pictures)?;
    let mut text = INTRODUCTION.to_owned();
    if let Some(boot) = read("boot")? {
        fs::write(pictures.join("boot.svg"), boot_picture(&boot))?;
        text += &boot_table(&boot);
    }
    if let Some(image) = read("image")? {
        text += &image_table(&image);
    }
    if let Some(memory) = read("memory")? {
        text += &memory_table(&memory, read("machines")?.as_ref());
    }
    if let Some(server) = read("server")? {
        text += &server_table(&server);
    }
    fs::write(Path::new(DOCS).join("benchmarks.md"), text)?;
    Ok(())
}

fn boot_table(boot: &Value) -> String {
    let all = |pointer: &str| -> Vec<f64> {
        let numbers = boot.pointer(pointer).and_then(Value::as_array);
        numbers
            .into_iter()
            .flatten()
            .filter_map(Value::as_f64)
            .collect()
    };
    let middle = |pointer: &str| median(&all(pointer));
    let cell = |pointer: &str| {
        let numbers = all(pointer);
        let (low, high) = numbers
            .iter()
            .fold((f64::MAX, f64::MIN), |(low, high), number| {
                (low.min(*number), high.max(*number))
            });
        format!("{:.2} ({low:.2} to {high:.2})", median(&numbers))
    };
    let (ours, theirs) = (
        middle("/latchkey/frame-to-open"),
        middle("/clevis/frame-to-open"),
    );
    let typed = middle("/robot/typed-to-open");
    let (kernel, robot) = (
        middle("/latchkey/kernel-to-open"),
        middle("/robot/kernel-to-open"),
    );
    let mut text = format!(
        "\n## Boot\n\nSeconds, median of {} boots each (lowest to highest), the three in turn. The robot types one second after the \
         native prompt appears. The first frame is seen outside of the guest; open means that the device-mapper node \
         is there.\n\n\
         | | latchkey | robot at the native prompt | clevis and tang |\n|---|---|---|---|\n\
         | kernel start → open | {} | {} | {} |\n\
         | first frame → open | {} | – | {} |\n\
         | typed → open | – | {} | – |\n\n\
         ![Timelines of typical boots](benchmarks/boot.svg)\n\n",
        number(boot, "/rounds"),
        cell("/latchkey/kernel-to-open"),
        cell("/robot/kernel-to-open"),
        cell("/clevis/kernel-to-open"),
        cell("/latchkey/frame-to-open"),
        cell("/clevis/frame-to-open"),
        cell("/robot/typed-to-open"),
    );
    goal(
        &mut text,
        "first frame → open, as a part of clevis's",
        ours / theirs,
        1.0 / 6.0,
    );
    goal(
        &mut text,
        "first frame → open, as a multiple of the robot's typed → open",
        ours / typed,
        1.0,
    );
    goal(
        &mut text,
        "kernel start → open, as a multiple of the robot's",
        kernel / robot,
        1.0,
    );
    text += "\nWhere the time of a typical boot goes (seconds since the kernel's start):\n\n| | latchkey's boot |\n|---|---|\n";
    for (step, time) in steps(boot, "latchkey") {
        let _ = writeln!(text, "| {} | {time:.2} |", step.replace('|', "\\|"));
    }
    text
}

/// A goal, what was reached, and whether that is enough; less is better.
fn goal(text: &mut String, what: &str, reached: f64, most: f64) {
    let verdict = if reached <= most { "reached" } else { "missed" };
    let _ = writeln!(
        text,
        "- {what}: **{reached:.2}** (goal: at most {most:.2}, {verdict})"
    );
}

/// The milestones of a contender's typical boot, in order.
fn steps(boot: &Value, contender: &str) -> Vec<(String, f64)> {
    let typical = &boot[contender]["typical"];
    let mut steps: Vec<(String, f64)> = typical["steps"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|step| Some((step[0].as_str()?.to_owned(), step[1].as_f64()?)))
        .collect();
    let named = [
        ("frame", "first frame on the wire"),
        ("prompt", "prompt"),
        ("typed", "typed"),
        ("open", "the root's device is there"),
        ("up", "the real root's first program runs"),
    ];
    for (key, text) in named {
        if let Some(time) = typical[key].as_f64() {
            steps.push((text.to_owned(), time));
        }
    }
    steps.sort_by(|one, other| one.1.total_cmp(&other.1));
    steps
}

fn boot_picture(boot: &Value) -> String {
    let timelines = ["latchkey", "robot", "clevis"].map(|contender| {
        let typical = &boot[contender]["typical"];
        let at = |key: &str| typical[key].as_f64();
        let init = steps(boot, contender)
            .into_iter()
            .find_map(|(text, time)| (text == "init starts").then_some(time));
        let marks = [
            ("kernel", init, "#9aa0a6"),
            ("initramfs until the prompt", at("prompt"), "#c9b458"),
            ("the robot waits and types", at("typed"), "#8e6bbf"),
            (
                "initramfs until the first frame",
                at("frame").filter(|_| at("typed").is_none()),
                "#c9b458",
            ),
            (
                if contender == "robot" {
                    "key derivation and opening"
                } else {
                    "network, key server, opening"
                },
                at("open"),
                "#4a8f5b",
            ),
            ("to the real root", at("up"), "#6b93c4"),
        ];
        Timeline {
            name: contender.to_owned(),
            parts: marks
                .into_iter()
                .filter_map(|(text, end, colour)| {
                    Some(Part {
                        text: text.to_owned(),
                        end: end?,
                        colour,
                    })
                })
                .collect(),
        }
    });
    draw(
        "Seconds since the kernel's start, typical boots",
        &timelines,
    )
}

fn image_table(image: &Value) -> String {
    let row = |name: &str, pointer: &str| {
        let of = |what: &str| number(image, &format!("{pointer}/{what}"));
        format!(
            "| {name} | {:.2} MB | {:.2} MB | {} |\n",
            of("compressed") / 1e6,
            of("content") / 1e6,
            of("members")
        )
    };
    let mut text = "\n## Size of the image\n\nWhat `initrd.img` grows by, MODULES=most, compressed as update-initramfs does it \
                    by default (`zstd -9`).\n\n| | compressed | content | files |\n|---|---|---|---|\n"
        .to_owned();
    text += &row("the guest's image without either", "/plain");
    text += &row("latchkey adds", "/latchkey");
    text += &row("clevis adds", "/clevis");
    text += "\n";
    goal(
        &mut text,
        "latchkey's growth in MB",
        number(image, "/latchkey/compressed") / 1e6,
        3.0,
    );
    text
}

fn memory_table(memory: &Value, machines: Option<&Value>) -> String {
    let peak = number(memory, "/agent-peak-kib") / 1024.0;
    let mut text = "\n## Memory\n\n".to_owned();
    if let Some(machines) = machines {
        let _ = write!(
            text,
            "The smallest machine that boots, with an image of MODULES=dep, in steps of 8 MiB: {} MiB with latchkey, {} MiB \
             with cryptsetup alone.\n\n",
            number(machines, "/latchkey-mib"),
            number(machines, "/plain-mib")
        );
    }
    goal(
        &mut text,
        "the agent's peak on the network path, resident, in MiB",
        peak,
        16.0,
    );
    text
}

fn server_table(server: &Value) -> String {
    let mut text = format!(
        "\n## Key server\n\nWhole exchanges in a second on loopback, each on a new connection; client and server share \
         {} processors. Medians of {} rounds of {} s that take turns. A release of latchkeyd is a new boot session and a \
         durable entry of the audit, its store on a real disk; `handshakes` answers one byte over the same TLS and is the \
         limit; kxd (mutual TLS of its own) and tangd (no TLS) are Debian's and write nothing. \
         [How](../tests/load/README.md).\n\n\
         | | at once | 1/s | p50 ms | p99 ms | failed |\n|---|---|---|---|---|---|\n",
        number(server, "/cores"),
        number(server, "/rounds"),
        number(server, "/seconds"),
    );
    for rate in server["rates"].as_array().into_iter().flatten() {
        let of = |what: &str| number(rate, &format!("/{what}"));
        let _ = writeln!(
            text,
            "| {} | {} | {:.0} | {:.2} | {:.2} | {} |",
            rate["server"].as_str().unwrap_or_default(),
            of("connections"),
            of("per_second"),
            of("p50_ms"),
            of("p99_ms"),
            of("failed")
        );
    }
    text += "\n| clients known | latchkeyd's resident memory |\n|---|---|\n";
    for memory in server["memory"].as_array().into_iter().flatten() {
        let resident = number(memory, "/resident_kib") / 1024.0;
        let _ = writeln!(
            text,
            "| {} | {resident:.1} MiB |",
            number(memory, "/clients")
        );
    }
    text += "\n";
    for goal in server["goals"].as_array().into_iter().flatten() {
        let verdict = if goal["holds"].as_bool() == Some(true) {
            "reached"
        } else {
            "missed"
        };
        let _ = writeln!(
            text,
            "- releases, as a multiple of {} at {} at once: **{:.2}** (goal: at least {:.2}, {verdict})",
            goal["compared_with"].as_str().unwrap_or_default(),
            number(goal, "/connections"),
            number(goal, "/ratio"),
            number(goal, "/at_least")
        );
    }
    text += &slow_table(&server["slow"]);
    text += &strangers_table(&server["strangers"]);
    text
}

/// Boots beside idle and slow connections; nothing where that was left out.
fn slow_table(slow: &Value) -> String {
    if slow.is_null() {
        return String::new();
    }
    let mut text = format!(
        "\n### Beside idle and slow connections\n\nAn attacker wants {} connections: nine of twenty say nothing, nine send a \
         TLS hello a byte a second, one a request's head, and one says nothing after its handshake. What the key server \
         closes he opens again, at most {} in a second. Meanwhile machines boot, {} at once, on the same processors.\n\n\
         | attack from | 1/s | p50 ms | p99 ms | failed | opened | closed | most at once | latchkeyd's peak |\n\
         |---|---|---|---|---|---|---|---|---|\n",
        number(slow, "/connections"),
        number(slow, "/rate"),
        number(slow, "/honest"),
    );
    for row in slow["rows"].as_array().into_iter().flatten() {
        let of = |what: &str| number(row, &format!("/{what}"));
        let from = match row["addresses"].as_str() {
            Some("many") => "an address for each",
            Some(_) => "one address",
            None => "nobody",
        };
        let _ = writeln!(
            text,
            "| {from} | {:.0} | {:.2} | {:.2} | {} | {} | {} | {} | {:.1} MiB |",
            of("per_second"),
            of("p50_ms"),
            of("p99_ms"),
            of("failed"),
            of("attack/opened"),
            of("attack/closed"),
            of("attack/most"),
            of("resident_kib") / 1024.0
        );
    }
    text += "\n";
    goal(
        &mut text,
        "p99 under attack from many addresses, as a multiple of the one without",
        number(slow, "/ratio"),
        number(slow, "/at_most"),
    );
    text
}

/// Whether strangers are told apart by the time; nothing where that was left out.
fn strangers_table(strangers: &Value) -> String {
    if strangers.is_null() {
        return String::new();
    }
    let mut text = format!(
        "\n### How long strangers wait\n\n{} requests in a random order; ms from the request to the whole answer, after the \
         handshake. The first four get one answer, the others another.\n\n\
         | | count | 25 % | 50 % | 75 % |\n|---|---|---|---|---|\n",
        number(strangers, "/requests"),
    );
    for row in strangers["rows"].as_array().into_iter().flatten() {
        let of = |what: &str| number(row, &format!("/{what}"));
        let _ = writeln!(
            text,
            "| {} | {} | {:.3} | {:.3} | {:.3} |",
            row["kind"].as_str().unwrap_or_default().replace('-', " "),
            of("count"),
            of("quartiles_ms/0"),
            of("quartiles_ms/1"),
            of("quartiles_ms/2")
        );
    }
    text += "\n";
    goal(
        &mut text,
        "of all pairs with one answer, how far the chance that one kind waits longer than the other is from one half",
        (number(strangers, "/chance") - 0.5).abs(),
        number(strangers, "/at_most"),
    );
    text
}
