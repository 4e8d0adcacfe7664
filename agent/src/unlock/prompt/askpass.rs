//! `/lib/cryptsetup/askpass`, the prompt of initramfs-tools: console, Plymouth, FIFO and `cryptroot-unlock` keep working.
//!
//! It gets the CRYPTTAB_* environment that initramfs-tools' `cryptroot` gives it. `cryptroot-unlock` also looks for a
//! `/sbin/cryptsetup` with the same CRYPTTAB_NAME and takes its end for the end of the attempt: a companion of that name
//! waits for a key that never comes, and is ended with the attempt.
//!
//! The program leaves what was typed in its memory, and a pipe would in the kernel's: it is watched to its end and wiped,
//! and writes into a file in memory.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::process::{self, ExitStatus, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use latchkey_secret::process::pidfd;
use latchkey_secret::{Inbox, child};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::process::Command;
use tokio::sync::oneshot::{self, error::RecvError};
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

use super::super::ending;
use super::{FAILURE_PAUSE, Failures, PASSPHRASE_LIMIT, PromptResult, Question};
use crate::flow::PromptLoss;
use crate::volume::crypttab::{Format, Options};

const ASKPASS: &str = "/lib/cryptsetup/askpass";
const CRYPTSETUP: &str = "/sbin/cryptsetup";
const FIFO: &str = "/lib/cryptsetup/passfifo";
/// How long the program gets to restore the console before it is ended.
const RESTORE_LIMIT: Duration = Duration::from_millis(500);
/// How long to wait for the effect of one empty line.
const RESTORE_PAUSE: Duration = Duration::from_millis(50);
/// Where this is, somebody may be looking for the companion as soon as the prompt stands.
const DROPBEAR: &str = "/sbin/dropbear";
/// Before it is started elsewhere: nobody needs it sooner, and a volume that opens by itself does without.
const COMPANION_PAUSE: Duration = Duration::from_secs(1);

/// A prompt that stands. Dropping it ends the companion.
#[derive(Debug)]
pub struct Askpass {
    askpass: Option<Pid>,
    ended: Option<oneshot::Receiver<()>>,
    companion: Option<Companion>,
}

/// The process that `cryptroot-unlock` watches. Dropping it ends the process.
#[derive(Debug)]
pub struct Companion(JoinHandle<()>);

/// The text that people see.
fn text(question: &Question) -> String {
    format!("Please unlock disk {}: ", question.name)
}

impl Question {
    fn environment(&self) -> [(&'static str, String); 6] {
        [
            ("CRYPTTAB_NAME", self.name.clone()),
            ("CRYPTTAB_SOURCE", self.device.display().to_string()),
            ("CRYPTTAB_KEY", "none".to_owned()),
            ("CRYPTTAB_OPTIONS", self.options.clone()),
            ("CRYPTTAB_TRIED", self.wrong.to_string()),
            // No limit: the prompt stands for as long as the volume is locked.
            ("CRYPTTAB_OPTION_tries", "0".to_owned()),
        ]
    }
}

impl Askpass {
    /// Shows the prompt; `answer` gets its result unless [`Askpass::end`] comes first.
    pub fn show(
        question: &Question,
        failures: &Failures,
        answer: impl FnOnce(PromptResult) + Send + 'static,
    ) -> Self {
        if somebody_else_asks() {
            return Self::later(answer);
        }
        let companion = Some(Companion::of(question));
        let mut command = process::Command::new(ASKPASS);
        command.arg(text(question)).envs(question.environment());
        let running = match Running::start(command) {
            Ok(running) => running,
            Err(error) => {
                log::warn!("failed to run '{ASKPASS}': {error}");
                let loss = match failures.count() {
                    _ if !Path::new(ASKPASS).exists() => PromptLoss::Impossible,
                    loss => loss,
                };
                tokio::spawn(async move {
                    sleep(FAILURE_PAUSE).await;
                    answer(Err(loss));
                });
                return Self {
                    askpass: None,
                    ended: None,
                    companion,
                };
            }
        };
        let failures = failures.clone();
        let Running {
            id,
            inbox,
            ended: exit,
        } = running;
        let (end, ended) = oneshot::channel();
        tokio::spawn(async move {
            let exit = exit.await;
            // Nobody listens any more once the prompt was ended.
            let heard = end.send(()).is_ok();
            let result = judge(exit, inbox, &failures).await;
            if heard {
                answer(result);
            }
        });
        Self {
            askpass: Some(id),
            ended: Some(ended),
            companion,
        }
    }

    /// Two of these programs would share the console and the FIFO, where the end of one takes an answer from the other.
    fn later(answer: impl FnOnce(PromptResult) + Send + 'static) -> Self {
        tokio::spawn(async move {
            sleep(FAILURE_PAUSE).await;
            answer(Err(PromptLoss::Again));
        });
        Self {
            askpass: None,
            ended: None,
            companion: None,
        }
    }

    /// Takes the prompt away. The program is made to restore the console: an empty line through its FIFO is what
    /// it understands, once it reads from that; only if that does not help is it killed, as it blocks all other signals. A
    /// passphrase that was typed just now is dropped.
    pub async fn end(mut self) -> Option<Companion> {
        if let (Some(pid), Some(mut ended)) = (self.askpass.take(), self.ended.take()) {
            let restored = async {
                loop {
                    send_empty_line();
                    if timeout(RESTORE_PAUSE, &mut ended).await.is_ok() {
                        return;
                    }
                }
            };
            if timeout(RESTORE_LIMIT, restored).await.is_err() {
                let _ = kill(pid, Signal::SIGKILL);
                let _ = timeout(RESTORE_LIMIT, &mut ended).await;
            }
        }
        self.companion.take()
    }

    /// The companion, which must outlive the attempt's result.
    pub fn into_companion(mut self) -> Option<Companion> {
        self.companion.take()
    }
}

impl Companion {
    fn of(question: &Question) -> Self {
        let mut command = Command::new(CRYPTSETUP);
        command
            .args(["open", "--type", companion_type(&question.options)])
            .args(["--test-passphrase", "--key-file=-"])
            .arg(&question.device)
            .envs(question.environment())
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .kill_on_drop(true);
        Self(tokio::spawn(async move {
            if !Path::new(DROPBEAR).exists() {
                sleep(COMPANION_PAUSE).await;
            }
            if let Ok(mut child) = command.spawn() {
                // It reads from a pipe that stays open, so it lasts until this task is ended.
                let _pipe = child.stdin.take();
                let _ = child.wait().await;
            }
        }))
    }
}

/// The type that has cryptsetup(8) wait for a key, whatever is on the device: of a LUKS volume it reads the header first, and
/// ends where there is none.
fn companion_type(options: &str) -> &'static str {
    let options = Options::parse(options);
    match options.format == Format::Plain || options.header.is_some() {
        true => "tcrypt",
        false => "luks",
    }
}

impl Drop for Companion {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Ends programs whose agent was killed.
pub fn end_left_over() {
    const INIT: i32 = 1;
    let mut prompts = running(Path::new(ASKPASS));
    prompts.retain(|pid| parent_of(*pid) == Some(INIT));
    if prompts.is_empty() {
        return;
    }
    send_empty_line();
    for prompt in prompts {
        let Ok(Some(handle)) = pidfd(prompt.as_raw()) else {
            continue;
        };
        if !ending::is_gone(&handle, RESTORE_LIMIT) {
            ending::end(prompt, RESTORE_LIMIT);
        }
    }
}

/// What the prompt's program understands as an answer: it restores the console and ends.
fn send_empty_line() {
    let fifo = OpenOptions::new()
        .write(true)
        .custom_flags(nix::libc::O_NONBLOCK)
        .open(FIFO);
    if let Ok(mut fifo) = fifo {
        let _ = fifo.write_all(b"\n");
    }
}

/// Whether the boot framework prompts, for a volume that is left to it: Debian's scripts by the same program, dracut's by
/// cryptsetup itself. Two programs at one terminal would each get a part of what is typed.
fn somebody_else_asks() -> bool {
    let we = process::id().try_into().ok();
    let mut prompts = [ASKPASS, CRYPTSETUP].into_iter();
    prompts.any(|program| {
        let running = running(Path::new(program));
        running.into_iter().any(|pid| parent_of(pid) != we)
    })
}

/// The processes that run `program`.
fn running(program: &Path) -> Vec<Pid> {
    let (Ok(program), Ok(processes)) = (fs::canonicalize(program), fs::read_dir("/proc")) else {
        return Vec::new();
    };
    let is_one =
        |pid: &i32| fs::read_link(format!("/proc/{pid}/exe")).is_ok_and(|runs| runs == program);
    processes
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(is_one)
        .map(Pid::from_raw)
        .collect()
}

/// proc_pid_stat(5): the second field after the program's name, which stands in parentheses and may contain them.
fn parent_of(pid: Pid) -> Option<i32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, fields) = stat.rsplit_once(')')?;
    fields.split_whitespace().nth(1)?.parse().ok()
}

/// A program that runs, and where its output goes.
struct Running {
    id: Pid,
    inbox: Inbox,
    ended: oneshot::Receiver<io::Result<ExitStatus>>,
}

/// How it ended, if the thread that waited for it could tell.
type Exit = Result<io::Result<ExitStatus>, RecvError>;

impl Running {
    fn start(mut command: process::Command) -> io::Result<Self> {
        let inbox = Inbox::new(PASSPHRASE_LIMIT)?;
        command.stdout(inbox.descriptor()?);
        let (started, start) = mpsc::sync_channel(1);
        let (end, ended) = oneshot::channel();
        // A program is traced by one thread, which waits for it. It is the one that starts it, so that it traces at once.
        let run = move || {
            let id = command.spawn().and_then(|child| {
                let id = i32::try_from(child.id()).map_err(io::Error::other)?;
                Ok(Pid::from_raw(id))
            });
            drop(command);
            let child = id.as_ref().ok().copied();
            let _ = started.send(id);
            if let Some(child) = child {
                let _ = end.send(child::wait_and_wipe(child));
            }
        };
        thread::Builder::new()
            .name("askpass".to_owned())
            .spawn(run)?;
        let id = start.recv().map_err(io::Error::other)??;
        Ok(Self { id, inbox, ended })
    }
}

/// What a program that has ended wrote, in locked memory.
async fn judge(exit: Exit, inbox: Inbox, failures: &Failures) -> PromptResult {
    let typed = inbox.take();
    let succeeded = matches!(&exit, Ok(Ok(status)) if status.success());
    match typed {
        Ok(typed) if succeeded => {
            failures.reset();
            if typed.is_empty() {
                Err(PromptLoss::Again)
            } else {
                Ok(typed)
            }
        }
        _ => {
            log::warn!("'{ASKPASS}' ended without a passphrase: {exit:?}");
            sleep(FAILURE_PAUSE).await;
            Err(failures.count())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn only_failures_in_a_row_make_a_prompt_impossible() {
        let failures = Failures::default();
        let run = async |script: &str| {
            let mut shell = process::Command::new("/bin/sh");
            shell.args(["-c", script]);
            let running = Running::start(shell).unwrap();
            let exit = running.ended.await;
            let typed = judge(exit, running.inbox, &failures).await;
            typed.map(|typed| typed.expose_secret().to_vec())
        };
        let limit = super::super::FAILURES_LIMIT as usize;
        for _ in 0..=limit {
            assert_eq!(run("true").await, Err(PromptLoss::Again), "an empty line");
        }
        for _ in 0..limit {
            assert_eq!(run("exit 1").await, Err(PromptLoss::Again));
        }
        assert_eq!(run("printf typed").await, Ok(b"typed".to_vec()));
        for _ in 0..limit {
            assert_eq!(run("exit 1").await, Err(PromptLoss::Again));
        }
        assert_eq!(run("exit 1").await, Err(PromptLoss::Impossible));
    }

    #[test]
    fn the_companion_waits_for_a_key_where_there_is_no_header_too() {
        for (options, expected) in [
            ("luks,discard", "luks"),
            ("plain,cipher=aes-xts-plain64", "tcrypt"),
            ("luks,header=/boot/header", "tcrypt"),
        ] {
            assert_eq!(companion_type(options), expected);
        }
    }

    #[test]
    fn prompts_are_found_and_whose_they_are() {
        let folder = tempfile::tempdir().unwrap();
        let program = folder.path().join("a program (of sorts)");
        // Copied by another process: a file that this one had open for writing, another test's child might hold open still.
        let copied = process::Command::new("cp")
            .arg("/bin/sleep")
            .arg(&program)
            .status();
        assert!(copied.unwrap().success());
        let us = i32::try_from(process::id()).unwrap();
        let mut child = process::Command::new(&program).arg("1000").spawn().unwrap();
        let found = running(&program);
        let parents: Vec<_> = found.iter().map(|pid| parent_of(*pid)).collect();
        let others = running(Path::new("/bin/true"));
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(found, [Pid::from_raw(child.id().try_into().unwrap())]);
        assert_eq!((parents, others), (vec![Some(us)], vec![]));
        assert_eq!(running(&program), []);
    }
}
