//! Real file systems under the store: a full one, and one mounted read-only.

use std::fs::File;
use std::io::{ErrorKind, Write};
use std::path::Path;
use std::process::{Command, Stdio};

use latchkey_protocol::VolumeId;
use latchkey_protocol::wire::{self, Verdict};
use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};

use crate::machine::{Boot, Machine, verdict};
use crate::server::{Home, text};
use crate::wire::{Reply, request};

const READ_ONLY: MsFlags = MsFlags::MS_RDONLY;

/// Runs `story` on a file system of 4 MiB that nobody else sees; does nothing where mounting needs a privilege that
/// the test has not.
fn on_a_small_file_system(story: impl FnOnce(&Path) + Send) {
    let play = || {
        match unshare(CloneFlags::CLONE_NEWNS) {
            Err(Errno::EPERM) => return,
            other => other.unwrap(),
        }
        let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
        mount(None::<&str>, "/", None::<&str>, private, None::<&str>).unwrap();
        let base = tempfile::tempdir().unwrap();
        let options = Some("size=4m,mode=0755");
        mount(
            Some("tmpfs"),
            base.path(),
            Some("tmpfs"),
            MsFlags::empty(),
            options,
        )
        .unwrap();
        story(base.path());
        umount2(base.path(), MntFlags::MNT_DETACH).unwrap();
    };
    // The namespace is the thread's, and that of the programs it starts.
    std::thread::scope(|scope| {
        if let Err(panic) = scope.spawn(play).join() {
            std::panic::resume_unwind(panic);
        }
    });
}

fn remount(base: &Path, flags: MsFlags) {
    let flags = flags | MsFlags::MS_REMOUNT;
    mount(None::<&str>, base, None::<&str>, flags, None::<&str>).unwrap();
}

/// Writes until nothing more goes onto the file system.
fn fill(path: &Path) {
    let mut file = File::create(path).unwrap();
    for block in [vec![1; 4096], vec![1]] {
        loop {
            match file.write(&block) {
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::StorageFull => break,
                Err(error) => panic!("{error}"),
            }
        }
    }
}

fn ask(machine: &Machine, volume: VolumeId) -> Reply {
    let body = Boot::begin().wants(&[volume]);
    request(
        machine.address,
        Some(&machine.boot),
        "POST",
        wire::RELEASE,
        &body,
    )
}

#[test]
fn on_a_full_file_system_nothing_is_released_that_is_not_on_record() {
    on_a_small_file_system(|base| {
        let server = Home::made_in(base).serve();
        let machine = Machine::join(&server, "web-1");
        let (volume, share) = machine.register("root");
        let filler = base.join("filler");
        fill(&filler);

        // What the store has set aside already may take a few more.
        let mut released = 0;
        let refused = loop {
            let reply = ask(&machine, volume);
            if reply.status != 200 {
                break reply;
            }
            assert!(
                matches!(verdict(&reply), Verdict::Released { .. }),
                "{}",
                reply.body
            );
            released += 1;
            assert!(released < 10_000, "the file system does not get full");
        };
        assert_eq!(refused.status, 503, "{}", refused.body);
        assert!(refused.header("retry-after").is_some(), "{refused:?}");
        let line = server.log().wait_for("no space left for the store");
        assert!(line.contains("free some space"), "{line}");
        let error = server.home.fails(1, &["invite", "web-2"]);
        assert!(error.contains("no space left for the store"), "{error}");
        assert_eq!(server.home.json(&["clients"])[0]["name"], "web-1");

        std::fs::remove_file(&filler).unwrap();
        assert!(machine.released(&Boot::begin(), volume).0.matches(&share.0));
        assert_eq!(server.home.audited("released"), released + 1);
        server.invite("web-2");
        let home = server.stop();
        home.succeeds(&["audit", "--verify"]);
        assert_eq!(home.serve().home.audited("released"), released + 1);
    });
}

/// The same command, with files that cannot grow: SQLite calls that a disk error, unlike a full disk.
fn in_small_files(command: &Command) -> Command {
    let mut limited = Command::new("sh");
    limited
        .args(["-c", r#"trap '' XFSZ; ulimit -f 1024; exec "$@""#, "sh"])
        .arg(command.get_program())
        .args(command.get_args())
        .stdin(Stdio::null())
        .stderr(Stdio::piped());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => limited.env(name, value),
            None => limited.env_remove(name),
        };
    }
    limited
}

#[test]
fn after_a_disk_error_the_server_ends_and_can_be_started_anew() {
    let mut server = Home::made().serve_with(|command| *command = in_small_files(command));
    let machine = Machine::join(&server, "web-1");
    let (volume, share) = machine.register("root");
    let mut released = 0;
    while ask(&machine, volume).status == 200 {
        released += 1;
        assert!(released < 10_000, "no disk error");
    }
    assert_eq!(server.ended().code(), Some(1), "{}", server.log().all());
    server.log().wait_for("stopped writing after a disk error");
    let home = std::mem::replace(&mut server.home, Home::empty());
    let server = home.serve();
    let machine = Machine {
        address: server.address,
        ..machine
    };
    assert!(machine.released(&Boot::begin(), volume).0.matches(&share.0));
    assert!(server.home.audited("released") > released);
}

#[test]
fn init_on_a_full_file_system_says_so_and_can_be_repeated() {
    on_a_small_file_system(|base| {
        let home = Home::empty_in(base);
        let filler = base.join("filler");
        fill(&filler);
        let output = home.run(&["init", "--name", "127.0.0.1"]);
        let error = text(&output.stderr);
        assert!(!output.status.success());
        assert!(
            error.contains("No space left") || error.contains("no space left"),
            "{error}"
        );
        std::fs::remove_file(&filler).unwrap();
        home.succeeds(&["init", "--name", "127.0.0.1"]);
        home.serve().stop();
    });
}

#[test]
fn a_read_only_file_system_is_named() {
    on_a_small_file_system(|base| {
        let home = Home::made_in(base);
        remount(base, READ_ONLY);
        let error = home.fails(1, &["serve", "--listen", "127.0.0.1:0"]);
        assert!(error.contains("is read-only"), "{error}");
        assert!(error.contains(&base.display().to_string()), "{error}");
        remount(base, MsFlags::empty());
        home.serve().stop();
    });
}
