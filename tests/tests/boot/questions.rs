//! Where systemd runs the initramfs, others ask the password agents too: their questions are theirs.

use std::time::Duration;

use latchkey_tests::bound::PORT;
use latchkey_tests::flavour::Framework;
use latchkey_tests::guest::PASSPHRASE;
use latchkey_tests::initramfs::{script_after_agent, script_at_start};
use latchkey_tests::machine::Machine;
use latchkey_tests::stage::{Failure, Outcome, Scenario, Stage, ensure};

pub const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "P5 a question of somebody else is left as it is when the volume opens by itself",
        play: left_alone,
    },
    Scenario {
        name: "P5 beside a question of somebody else ours is asked once, and each gets its own answer",
        play: asked_once,
    },
];

const LIMIT: Duration = Duration::from_secs(240);
/// What somebody else asks.
const OTHER: &str = "What is the name of the dog?";

pub fn left_alone(stage: &Stage) -> Outcome {
    let mut server = stage.key_server()?;
    server.start(PORT)?;
    let mut machine = asked_by_another(stage)?;
    machine.expect(OTHER, LIMIT)?;
    machine.expect("'vda2_crypt' was opened automatically", LIMIT)?;
    machine.expect("RIG: questions now: ours 0, theirs 1", LIMIT)?;
    machine.expect("RIG: most at once: ours ", LIMIT)?;
    let most = machine.console.take_line(LIMIT)?;
    ensure(["0", "1"].contains(&most.trim()), || {
        format!("there were {most} questions for one volume")
    })?;
    ensure(machine.console.first("RIG: they got").is_none(), || {
        "the question of somebody else was answered".to_owned()
    })?;
    machine.up()?;
    machine.power_off()?;
    Ok(())
}

pub fn asked_once(stage: &Stage) -> Outcome {
    let mut machine = asked_by_another(stage)?;
    machine.answer(OTHER, "Rex")?;
    machine.expect("RIG: they got 'Rex'", LIMIT)?;
    stage.note(machine.answer(stage.prompt(), PASSPHRASE)?);
    machine.expect("'vda2_crypt' was opened by a typed passphrase", LIMIT)?;
    machine.expect("RIG: questions now: ours 0, theirs 0", LIMIT)?;
    machine.expect("RIG: most at once: ours 1\r", LIMIT)?;
    machine.up()?;
    machine.power_off()?;
    Ok(())
}

/// A machine in which somebody asks before the agent does, and somebody counts the questions of both.
fn asked_by_another(stage: &Stage) -> Result<Machine, Failure> {
    let framework = stage.flavour().framework;
    stage.needs(
        &[Framework::DracutSystemd],
        "There are no password agents in this initramfs.",
    )?;
    let start = format!(
        r#"(
    answer=$(systemd-ask-password --no-tty --timeout=0 '{OTHER}')
    echo "RIG: they got '$answer'" >/dev/console
) </dev/null >/dev/null 2>&1 &
(
    # Ours, the native one of the same volume included.
    most=0
    while [ ! -e /run/rig-counted ]; do
        count_questions
        [ "$ours" -le "$most" ] || {{ most=$ours; echo "$most" >/run/rig-most; }}
        sleep 0.2
    done
) </dev/null >/dev/null 2>&1 &
"#
    );
    let start = format!("{COUNT}{start}");
    let after = format!(
        "{COUNT}count_questions
         true >/run/rig-counted
         echo \"RIG: questions now: ours $ours, theirs $theirs\" >/dev/console
         read -r most </run/rig-most || most=0
         echo \"RIG: most at once: ours $most\" >/dev/console\n"
    );
    let ((path, after), enlist) = script_after_agent(framework, &after);
    let start = format!("{enlist}{start}");
    let files = [
        (script_at_start(framework), start.as_bytes()),
        (path, after.as_bytes()),
    ];
    let boot = stage.bound()?.boot.with_files(stage.folder(), &files)?;
    let spec = stage.machine(&stage.bound_disk()?, "boot").direct(&boot);
    Ok(Machine::start(&spec)?)
}

/// There is no grep in dracut's image.
const COUNT: &str = r#"
count_questions() {
    ours=0
    theirs=0
    for question in /run/systemd/ask-password/ask.*; do
        [ -e "$question" ] || continue
        kind=theirs
        while read -r line; do
            case "$line" in
                Id=cryptsetup:*) kind=ours ;;
            esac
        done <"$question"
        case "$kind" in
            ours) ours=$((ours + 1)) ;;
            *) theirs=$((theirs + 1)) ;;
        esac
    done
}
"#;
