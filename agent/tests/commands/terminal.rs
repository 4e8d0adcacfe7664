//! A person types the passphrase.

use std::io::{Read, Write};
use std::process::{Command, Stdio};

use crate::common::machine::{Machine, PASSPHRASE, Server, Volume};

/// `latchkey bind` on a terminal, where each of `lines` is typed when it asks; then the terminal's settings are
/// printed.
fn bind_on_a_terminal(machine: &Machine, volume: &Volume, lines: &[&str]) -> (i32, String) {
    let command = format!(
        "{} --root {} bind {} --no-initramfs; code=$?; stty -a; exit $code",
        env!("CARGO_BIN_EXE_latchkey"),
        machine.root.path().display(),
        volume.path()
    );
    let mut child = Command::new("script")
        .args(["--quiet", "--return", "--command", &command, "/dev/null"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut keyboard = child.stdin.take().unwrap();
    let mut screen = child.stdout.take().unwrap();
    let (mut said, mut typed, mut byte) = (Vec::new(), 0, [0]);
    while screen.read(&mut byte).is_ok_and(|read| read == 1) {
        said.push(byte[0]);
        let asked = String::from_utf8_lossy(&said).matches("): ").count();
        if asked > typed && typed < lines.len() {
            keyboard.write_all(lines[typed].as_bytes()).unwrap();
            typed += 1;
        }
    }
    let code = child.wait().unwrap().code().unwrap_or(-1);
    (code, String::from_utf8_lossy(&said).into_owned())
}

#[test]
fn a_typed_passphrase_is_not_shown_and_the_terminal_is_put_back() {
    let server = Server::start();
    let machine = Machine::joined(&[&server]);
    let volume = Volume::luks2();
    let right = format!("wrong-2\x15{PASSPHRASE}\r");
    for (lines, code, texts) in [
        (
            &["wrong-1\r", "wrong-2\r", "wrong-3\r"][..],
            1,
            &["with the passphrases that were typed"][..],
        ),
        (&["wrong-1\x03"], 1, &["cancelled"]),
        (
            &["wrong-1\r", &right],
            0,
            &["no keyslot opens", "bound 'root_crypt'"],
        ),
    ] {
        let (ended, said) = bind_on_a_terminal(&machine, &volume, lines);
        assert_eq!(ended, code, "{said}");
        for text in texts.iter().chain(&[
            "Passphrase for 'root_crypt' (",
            " echo ",
            " icanon ",
            "isig ",
        ]) {
            assert!(said.contains(text), "'{text}' is missing in {said}");
        }
        for secret in ["wrong", PASSPHRASE] {
            assert!(!said.contains(secret), "'{secret}' is shown in {said}");
        }
    }
}
