//! How long a boot takes: by latchkey, by a robot at the native prompt, by clevis and tang; in turn, each round anew.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use latchkey_tests::bound::PORT;
use latchkey_tests::guest::{MAPPING, PASSPHRASE};
use latchkey_tests::initramfs::START;
use latchkey_tests::keyserver::KeyServer;
use latchkey_tests::machine::{BootFiles, Disk, Machine, PATIENCE, Spec};
use latchkey_tests::native;
use serde_json::{Value, json};

use crate::clevis::{self, Clevis};
use crate::{Bench, Failure, PROMPT, median};

/// Boots of each contender.
const ROUNDS: usize = 7;
/// How long the robot takes to begin to type.
const REACTION: Duration = Duration::from_secs(1);

/// Says when init starts and when the volume is open, by the clock that starts with the kernel (proc_uptime(5)). Not in
/// the kernel log: its lines do not come to the console while a prompt stands.
const WATCHER: &str = r#"
echo '<5>RIG: init' >/dev/kmsg
(
    until [ -e /dev/mapper/vda2_crypt ]; do sleep 0.05; done
    read -r uptime idle </proc/uptime
    echo "RIG: open at $uptime s" >/dev/console
) </dev/null >/dev/null 2>&1 &
"#;

/// Who opens the volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Contender {
    Latchkey,
    Robot,
    Clevis,
}

const CONTENDERS: [Contender; 3] = [Contender::Latchkey, Contender::Robot, Contender::Clevis];

/// One boot, in seconds of the guest's clock since its kernel started.
struct Run {
    frame: f64,
    prompt: Option<f64>,
    typed: Option<f64>,
    open: f64,
    up: f64,
    /// What the kernel log says of the way there.
    steps: Vec<(String, f64)>,
}

pub fn measure(bench: &Bench) -> Result<Value, Failure> {
    let clevis = clevis::bound(&bench.with_clevis)?;
    let _tang = clevis.start_tang()?;
    let folder = bench.folder();
    let mut server = KeyServer::copy_of(
        &bench.latchkeyd(),
        &bench.bound.server,
        &folder.join("server"),
    )?;
    server.start(PORT)?;
    let native = native::boot_files(&bench.plain)?;

    let mut runs: Vec<Vec<Run>> = CONTENDERS.iter().map(|_| Vec::new()).collect();
    for round in 1..=ROUNDS {
        for (contender, runs) in CONTENDERS.iter().zip(&mut runs) {
            let run = boot(*contender, bench, &clevis, &native)?;
            println!(
                "round {round} {contender:?}: first frame {:.2} s, open {:.2} s, up {:.2} s",
                run.frame, run.open, run.up
            );
            runs.push(run);
        }
    }
    Ok(json!({
        "rounds": ROUNDS,
        "latchkey": figures(&runs[0]),
        "robot": figures(&runs[1]),
        "clevis": figures(&runs[2]),
    }))
}

fn figures(runs: &[Run]) -> Value {
    let all = |what: &dyn Fn(&Run) -> f64| runs.iter().map(what).collect::<Vec<f64>>();
    let opens = all(&|run| run.open);
    let middle = median(&opens);
    // The timeline of a real boot: of the one that is closest to the middle.
    let typical = runs.iter().min_by(|one, other| {
        f64::total_cmp(&(one.open - middle).abs(), &(other.open - middle).abs())
    });
    let typed: Vec<f64> = runs
        .iter()
        .filter_map(|run| Some(run.open - run.typed?))
        .collect();
    json!({
        "kernel-to-open": opens,
        "frame-to-open": all(&|run| run.open - run.frame),
        "typed-to-open": typed,
        "typical": typical.map(|run| json!({
            "frame": run.frame, "prompt": run.prompt, "typed": run.typed, "open": run.open, "up": run.up,
            "steps": run.steps,
        })),
    })
}

fn boot(
    contender: Contender,
    bench: &Bench,
    clevis: &Clevis,
    native: &BootFiles,
) -> Result<Run, Failure> {
    let folder = tempfile::tempdir_in(bench.folder())?;
    let (disk, boot) = match contender {
        Contender::Latchkey => (&bench.bound.disk, &bench.bound.boot),
        Contender::Robot => (&bench.plain.disk, native),
        Contender::Clevis => (&clevis.disk, &clevis.boot),
    };
    let disk = Disk::over(disk, &folder.path().join("disk.qcow2"))?;
    let boot = boot.with_files(folder.path(), &[(START, WATCHER.as_bytes())])?;
    let frames = folder.path().join("frames.pcap");
    let dump = format!(
        "filter-dump,id=frames,netdev=net0,file={}",
        frames.display()
    );
    let spec = Spec::new(&disk, &folder.path().join("console.log"))
        .direct(&boot)
        .qemu(&["-object", &dump]);
    let mut machine = Machine::start(&spec)?;
    let (over, started) = (AtomicBool::new(false), machine.started);
    thread::scope(|scope| {
        let first_frame = scope.spawn(|| first_frame(&frames, started, &over));
        let run = follow(contender, &mut machine);
        over.store(true, Ordering::Relaxed);
        let frame = first_frame
            .join()
            .map_err(|_| "watching the frames panicked")?;
        let (mut run, offset) = run?;
        run.frame = frame.map_or(f64::NAN, |frame| frame.as_secs_f64() - offset);
        Ok(run)
    })
}

/// Everything of a boot but the frames, and what the host's clock is ahead of the guest's, in seconds.
fn follow(contender: Contender, machine: &mut Machine) -> Result<(Run, f64), Failure> {
    let seconds = |time: Option<Duration>| time.map_or(f64::NAN, |time| time.as_secs_f64());
    let init = machine.expect("RIG: init", PATIENCE)?;
    let offset = init.host.as_secs_f64() - seconds(init.guest);
    let (mut prompt, mut typed) = (None, None);
    if contender == Contender::Robot {
        prompt = Some(machine.expect(PROMPT, PATIENCE)?.host.as_secs_f64() - offset);
        thread::sleep(REACTION);
        typed = Some(machine.started.elapsed().as_secs_f64() - offset);
        machine.console.type_line(PASSPHRASE)?;
    }
    machine.expect("RIG: open at ", PATIENCE)?;
    let open = machine.console.take_until(" s", PATIENCE)?.parse()?;
    let up = machine.up()?;
    let log = machine.check("dmesg")?;
    let run = Run {
        frame: f64::NAN,
        prompt,
        typed,
        open,
        up: seconds(up.guest),
        steps: steps(&log),
    };
    Ok((run, offset))
}

/// `[    3.141593] latchkey: network up` as its text and its time.
fn steps(log: &str) -> Vec<(String, f64)> {
    const OURS: [&str; 2] = ["latchkey: ", "RIG: init"];
    log.lines()
        .filter_map(|line| {
            let (time, text) = line.strip_prefix('[')?.split_once("] ")?;
            let known = OURS.iter().any(|ours| text.starts_with(ours));
            let text = text.strip_prefix("latchkey: ").unwrap_or("init starts");
            Some((text.to_owned(), time.trim().parse().ok()?)).filter(|_| known)
        })
        .map(|(text, time)| (text.replace(MAPPING, "root"), time))
        .collect()
}

/// When QEMU wrote the first frame that left the machine or came to it, after the file's header of 24 bytes.
fn first_frame(frames: &Path, started: Instant, over: &AtomicBool) -> Option<Duration> {
    const HEADER: u64 = 24;
    while !over.load(Ordering::Relaxed) {
        if std::fs::metadata(frames).is_ok_and(|file| file.len() > HEADER) {
            return Some(started.elapsed());
        }
        thread::sleep(Duration::from_millis(5));
    }
    None
}
