//! Wipes the memory of a program that handles a secret, at its end: the kernel frees its pages as they are.
//!
//! The program is traced for this (ptrace(2), PTRACE_O_TRACEEXIT): it stops once it has nothing more to do, with its memory
//! still there. If the tracer dies, it goes on as if it had never been traced.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;

use nix::sys::ptrace::{self, Options};
use nix::unistd::Pid;

use crate::maps::wipeable;

/// Waits for `child`, a child of this process that nobody else waits for, and wipes its memory when it exits or dies of a
/// signal, SIGKILL excepted. A child that cannot be traced is waited for all the same. Blocks the thread.
///
/// # Errors
/// What waitpid(2) fails with.
pub fn wait_and_wipe(child: Pid) -> io::Result<ExitStatus> {
    see_out(child, |child| {
        if crate::CONTROL {
            return;
        }
        if let Err(error) = wipe(child) {
            log::warn!("failed to wipe the memory of process {child}: {error}");
        }
    })
}

fn see_out(child: Pid, mut at_exit: impl FnMut(Pid)) -> io::Result<ExitStatus> {
    let refused = ptrace::seize(child, Options::PTRACE_O_TRACEEXIT).err();
    let mut status = wait(child, libc::__WALL | libc::WNOHANG)?;
    // One that has ended already cannot be traced either.
    if let (Some(error), None) = (refused, status) {
        log::warn!("the memory of process {child} will not be wiped: {error}");
    }
    loop {
        match status {
            None => {}
            Some(stop) if libc::WIFSTOPPED(stop) => {
                let event = stop >> 16;
                if event == libc::PTRACE_EVENT_EXIT {
                    at_exit(child);
                }
                // Its own signals reach it.
                go_on(child, if event == 0 { libc::WSTOPSIG(stop) } else { 0 });
            }
            Some(end) => return Ok(ExitStatus::from_raw(end)),
        }
        status = wait(child, libc::__WALL)?;
    }
}

/// The next status of `child` as waitpid(2) has it; `None` if it runs and `flags` say not to wait. nix's own cannot tell of
/// real-time signals.
fn wait(child: Pid, flags: libc::c_int) -> io::Result<Option<libc::c_int>> {
    let mut status = 0;
    loop {
        // SAFETY: the status is written to a variable of ours.
        match unsafe { libc::waitpid(child.as_raw(), &raw mut status, flags) } {
            0 => return Ok(None),
            -1 => {
                let error = io::Error::last_os_error();
                if error.kind() != io::ErrorKind::Interrupted {
                    return Err(error);
                }
            }
            _ => return Ok(Some(status)),
        }
    }
}

/// Lets a stopped `child` run on with `signal`, or none. One that was killed meanwhile is gone; the next wait tells.
fn go_on(child: Pid, signal: libc::c_int) {
    let nothing = std::ptr::null_mut::<libc::c_void>();
    // SAFETY: PTRACE_CONT takes no address, and a number in the place of data.
    unsafe {
        libc::ptrace(
            libc::PTRACE_CONT,
            child.as_raw(),
            nothing,
            libc::c_long::from(signal),
        );
    }
}

/// Overwrites all that `process`, which stands and will not run again, could write to.
fn wipe(process: Pid) -> io::Result<()> {
    static ZEROS: [u8; 4096] = [0; 4096];
    let maps = fs::read(format!("/proc/{process}/maps"))?;
    let memory = File::options()
        .write(true)
        .open(format!("/proc/{process}/mem"))?;
    let mut result = Ok(());
    for (start, end) in wipeable(&maps) {
        for at in (start..end).step_by(ZEROS.len()) {
            let size = ZEROS.len().min(end - at);
            let offset = u64::try_from(at).map_err(io::Error::other)?;
            if let Err(error) = memory.write_all_at(&ZEROS[..size], offset) {
                result = Err(error); // the rest is wiped all the same
            }
        }
    }
    result
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::process::{Command, Stdio};

    use nix::sys::signal::{Signal, kill};

    use super::*;

    /// Made of two halves, so that no argument holds it.
    const MARK: &[u8] = b"correct horse battery staple";
    const HOLDER: &str = "a=$(printf '%s%s' 'correct horse ' 'battery staple'); ";

    /// Waits for a line, so that it does not end before it is traced; then its handle goes, and nobody else waits for it.
    #[expect(clippy::zombie_processes, reason = "what is tested waits for it")]
    fn run(script: &str) -> (Pid, std::process::ChildStdin) {
        let mut shell = Command::new("/bin/sh");
        shell.args(["-c", &format!("{HOLDER}read line; {script}")]);
        let mut child = shell
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let id = Pid::from_raw(i32::try_from(child.id()).unwrap());
        (id, child.stdin.take().unwrap())
    }

    /// As [`wait_and_wipe`]; the line comes once somebody traces the program.
    fn seen_out(script: &str, at_exit: impl FnMut(Pid)) -> ExitStatus {
        let (child, mut input) = run(script);
        let line = std::thread::spawn(move || {
            let traced = || {
                let status = fs::read_to_string(format!("/proc/{child}/status")).unwrap();
                !status.contains("TracerPid:\t0")
            };
            while !traced() {
                std::thread::yield_now();
            }
            input.write_all(b"\n").unwrap();
        });
        let status = see_out(child, at_exit).unwrap();
        line.join().unwrap();
        status
    }

    fn holds_mark(process: Pid) -> bool {
        let maps = fs::read(format!("/proc/{process}/maps")).unwrap();
        let memory = File::open(format!("/proc/{process}/mem")).unwrap();
        wipeable(&maps).any(|(start, end)| {
            let mut bytes = vec![0; end - start];
            let _ = memory.read_exact_at(&mut bytes, start as u64);
            bytes.windows(MARK.len()).any(|window| window == MARK)
        })
    }

    #[test]
    fn what_a_program_held_is_wiped_when_it_exits() {
        let mut exits = 0;
        let status = seen_out("exit 7", |child| {
            exits += 1;
            assert!(holds_mark(child), "the program should hold it until then");
            wipe(child).unwrap();
            assert!(!holds_mark(child));
        });
        assert_eq!((status.code(), exits), (Some(7), 1));
    }

    #[test]
    fn and_when_it_dies_of_a_signal_which_reaches_it() {
        let last = libc::SIGRTMAX();
        let mut exits = 0;
        let status = seen_out(
            &format!("trap : {last}; kill -{last} $$; kill -CONT $$; kill -TERM $$; exit 7"),
            |child| {
                exits += 1;
                wipe(child).unwrap();
                assert!(!holds_mark(child));
            },
        );
        assert_eq!((status.signal(), exits), (Some(libc::SIGTERM), 1));
    }

    #[test]
    fn one_that_was_killed_is_waited_for() {
        let (child, input) = run("sleep 1000");
        kill(child, Signal::SIGKILL).unwrap();
        assert_eq!(wait_and_wipe(child).unwrap().signal(), Some(libc::SIGKILL));
        drop(input);
        assert!(wait_and_wipe(child).is_err(), "nobody is left to wait for");
    }
}
