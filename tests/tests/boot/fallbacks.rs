//! Whatever becomes of latchkey in the image, the native prompt is there and the passphrase opens.

use latchkey_tests::flavour::Framework;
use latchkey_tests::guest::PASSPHRASE;
use latchkey_tests::initramfs::{script_at_prompt, script_at_start};
use latchkey_tests::machine::{Machine, PATIENCE};
use latchkey_tests::stage::{Failure, Outcome, Scenario, Stage};

pub const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "E9 latchkey's files deleted from the image leave the native prompt",
        play: deleted,
    },
    Scenario {
        name: "E3 an agent that is /bin/false leaves the native prompt",
        play: fails,
    },
    Scenario {
        name: "E3 an agent that hangs leaves the native prompt",
        play: hangs,
    },
    Scenario {
        name: "E9 empty settings leave the prompt",
        play: empty_settings,
    },
    Scenario {
        name: "E3 kill -9 of the agent at its prompt leaves the native prompt",
        play: killed,
    },
];

pub fn deleted(stage: &Stage) -> Outcome {
    let framework = stage.flavour().framework;
    let script = match framework {
        // Its first program is the one that reads units.
        Framework::DracutSystemd => {
            format!("#!/bin/sh\n{DELETE}exec /usr/lib/systemd/systemd \"$@\"\n")
        }
        _ => DELETE.to_owned(),
    };
    let path = match framework {
        Framework::DracutSystemd => "init",
        other => script_at_start(other),
    };
    opens_natively(stage, &[(path, script.as_bytes())])
}

/// Every file of latchkey in an image of any framework, and links to them.
const DELETE: &str = "\
    rm -rf /usr/bin/latchkey /usr/lib/latchkey /etc/latchkey /lib/latchkey-lib.sh /scripts/latchkey-* /scripts/*/latchkey \\\n\
        /lib/dracut/hooks/*/*latchkey-*.sh /lib/dracut/hooks/*/*/*latchkey-*.sh \\\n\
        /usr/lib/systemd/system/latchkey-* /usr/lib/systemd/system/*/latchkey-* \\\n\
        /usr/lib/systemd/system/*/latchkey.conf /usr/lib/systemd/system-generators/latchkey-generator\n";

pub fn fails(stage: &Stage) -> Outcome {
    opens_natively(stage, &[("usr/bin/latchkey", b"#!/bin/sh\nexit 1\n")])
}

pub fn hangs(stage: &Stage) -> Outcome {
    let hang = b"#!/bin/sh\nwhile :; do sleep 1000; done\n";
    opens_natively(stage, &[("usr/bin/latchkey", hang)])
}

fn opens_natively(stage: &Stage, files: &[(&str, &[u8])]) -> Outcome {
    let mut machine = with_files(stage, files)?;
    stage.note(machine.answer(stage.native_prompt(), PASSPHRASE)?);
    machine.up()?;
    machine.power_off()?;
    Ok(())
}

pub fn empty_settings(stage: &Stage) -> Outcome {
    let bound = stage.bound()?;
    let joined = bound.transcript.split_once("joined key server ");
    let id = joined.and_then(|(_, rest)| rest.split_whitespace().next());
    let id = id.ok_or("'latchkey join' does not say which key server it joined")?;
    let folder = format!("etc/latchkey/servers/{id}");
    let paths = ["server.toml", "ca.pem", "boot.key", "boot.pem"]
        .map(|file| format!("{folder}/{file}"))
        .into_iter()
        .chain(["image.toml", "network.json"].map(|file| format!("etc/latchkey/{file}")));
    let paths: Vec<String> = paths.collect();
    let files: Vec<(&str, &[u8])> = paths.iter().map(|path| (path.as_str(), &b""[..])).collect();
    let mut machine = with_files(stage, &files)?;
    stage.note(machine.answer(stage.prompt(), PASSPHRASE)?);
    machine.up()?;
    machine.power_off()?;
    Ok(())
}

pub fn killed(stage: &Stage) -> Outcome {
    let framework = stage.flavour().framework;
    let script = script_at_prompt(
        framework,
        "    echo 'RIG: killing the agent' >/dev/console
    kill -KILL $agent",
    );
    let mut machine = with_files(stage, &[(script_at_start(framework), script.as_bytes())])?;
    machine.expect("RIG: killing the agent", PATIENCE)?;
    stage.note(machine.answer(stage.native_prompt(), PASSPHRASE)?);
    machine.up()?;
    machine.power_off()?;
    Ok(())
}

fn with_files(stage: &Stage, files: &[(&str, &[u8])]) -> Result<Machine, Failure> {
    let boot = stage.bound()?.boot.with_files(stage.folder(), files)?;
    let spec = stage.machine(&stage.bound_disk()?, "boot").direct(&boot);
    Ok(Machine::start(&spec)?)
}
