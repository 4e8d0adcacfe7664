//! Wipes the memory of a program that handles a secret, at its end: the kernel frees its pages as they are.
//!
//! The program is traced for this (ptrace(2), PTRACE_O_TRACEEXIT): it stops once it has nothing more to do, with its memory
//! still there. If the tracer dies, it goes on as if it had never been traced.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;

use nix::errno::Errno;
use nix::libc;
use nix::sys::ptrace::{self, Options};
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use crate::maps::{split_line, wipeable};

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
    if let Err(error) = ptrace::seize(child, Options::PTRACE_O_TRACEEXIT) {
        // One that has ended already is waited for below.
        if error != Errno::ESRCH {
            log::warn!("the memory of process {child} will not be wiped: {error}");
        }
    }
    loop {
        let pass_on = match waitpid(child, Some(WaitPidFlag::__WALL)) {
            Ok(WaitStatus::Exited(_, code)) => return Ok(ExitStatus::from_raw(code << 8)),
            Ok(WaitStatus::Signaled(_, signal, core)) => {
                let core = if core { 0x80 } else { 0 };
                return Ok(ExitStatus::from_raw(signal as i32 | core));
            }
            Ok(WaitStatus::PtraceEvent(_, _, libc::PTRACE_EVENT_EXIT)) => {
                at_exit(child);
                None
            }
            // Its own signals reach it. SIGTRAP is not one: it comes with the events of the trace.
            Ok(WaitStatus::Stopped(_, signal)) if signal != Signal::SIGTRAP => Some(signal),
            Ok(_) => None,
            Err(Errno::EINTR) => continue,
            Err(error) => return Err(error.into()),
        };
        // One that was killed while it stood is gone; the next wait tells.
        let _ = ptrace::cont(child, pass_on);
    }
}

/// Overwrites all that `process`, which stands and will not run again, could write to.
fn wipe(process: Pid) -> io::Result<()> {
    static ZEROS: [u8; 64 * 1024] = [0; 64 * 1024];
    let maps = fs::read(format!("/proc/{process}/maps"))?;
    let memory = File::options()
        .write(true)
        .open(format!("/proc/{process}/mem"))?;
    let mut rest = &maps[..];
    let mut result = Ok(());
    while let Some((line, tail)) = split_line(rest) {
        rest = tail;
        let Some((mut at, end)) = wipeable(line) else {
            continue;
        };
        while at < end {
            let size = ZEROS.len().min(end - at);
            let offset = u64::try_from(at).map_err(io::Error::other)?;
            if let Err(error) = memory.write_all_at(&ZEROS[..size], offset) {
                // The others are wiped all the same.
                result = Err(error);
                break;
            }
            at += size;
        }
    }
    result
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use nix::sys::signal::kill;

    use super::*;

    /// Made of two halves, so that no argument holds it.
    const MARK: &[u8] = b"correct horse battery staple";
    const HOLDER: &str = "a=$(printf '%s%s' 'correct horse ' 'battery staple'); ";

    fn run(script: &str) -> Pid {
        let mut shell = Command::new("/bin/sh");
        shell.args(["-c", &format!("{HOLDER}{script}")]);
        let child = shell.stdin(Stdio::piped()).stdout(Stdio::null());
        // Its handle goes, and with it the pipe: nobody else waits.
        let id = child.spawn().unwrap().id();
        Pid::from_raw(i32::try_from(id).unwrap())
    }

    fn holds_mark(process: Pid) -> bool {
        let maps = fs::read(format!("/proc/{process}/maps")).unwrap();
        let memory = File::open(format!("/proc/{process}/mem")).unwrap();
        let (mut rest, mut found) = (&maps[..], false);
        while let Some((line, tail)) = split_line(rest) {
            rest = tail;
            if let Some((start, end)) = wipeable(line) {
                let mut bytes = vec![0; end - start];
                let _ = memory.read_exact_at(&mut bytes, start as u64);
                found |= bytes.windows(MARK.len()).any(|window| window == MARK);
            }
        }
        found
    }

    #[test]
    fn what_a_program_held_is_wiped_when_it_exits() {
        let child = run("read line; exit 7");
        let mut exits = 0;
        let status = see_out(child, |child| {
            exits += 1;
            assert!(holds_mark(child), "the program should hold it until then");
            wipe(child).unwrap();
            assert!(!holds_mark(child));
        });
        assert_eq!((status.unwrap().code(), exits), (Some(7), 1));
    }

    #[test]
    fn and_when_it_dies_of_a_signal_which_reaches_it() {
        let child = run("kill -CONT $$; kill -TERM $$; exit 7");
        let mut exits = 0;
        let status = see_out(child, |child| {
            exits += 1;
            wipe(child).unwrap();
            assert!(!holds_mark(child));
        });
        let status = status.unwrap();
        assert_eq!((status.signal(), exits), (Some(libc::SIGTERM), 1));
    }

    #[test]
    fn one_that_was_killed_is_waited_for() {
        let child = run("read line; sleep 1000");
        kill(child, Signal::SIGKILL).unwrap();
        assert_eq!(wait_and_wipe(child).unwrap().signal(), Some(libc::SIGKILL));
        assert!(wait_and_wipe(child).is_err(), "nobody is left to wait for");
    }
}
