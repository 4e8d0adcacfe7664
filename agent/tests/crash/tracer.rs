//! Stops a program at every system call by which it changes something outside of itself, and kills it there.
//!
//! Between two such calls nothing that survives the program changes, so these are all the points at which a
//! `kill -9` can make a difference. Counting them hits the same step on an idle machine and on a busy one; a delay
//! would not. The program is the one that is shipped: nothing is built into it.

use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use nix::libc;
use nix::sys::ptrace::{self, Options};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

/// Something outside of the program is about to change.
#[derive(Debug)]
pub struct Change {
    /// The system call.
    pub call: Call,
    /// The name of the file, or `socket`.
    pub place: String,
    /// Bytes that are to be written.
    pub length: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Call {
    Write,
    Sync,
    /// Names, sizes and modes.
    Other(&'static str),
}

/// What is to happen at a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    Live,
    /// The change does not happen.
    Kill,
    /// Only so many bytes are written. The kernel stops a large write half way when its program is killed.
    Tear(u64),
}

/// How a program ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    Exited(i32),
    Killed,
}

/// A program that waits for [`Traced::follow`] to let it begin.
pub struct Traced {
    pid: Pid,
    pub child: Child,
}

impl Traced {
    /// Starts `command` with all its standard streams piped. Only this thread can follow it.
    pub fn spawn(command: &Command) -> Self {
        // The shell stops itself so that not even the program's first system call is missed.
        let child = Command::new("/bin/sh")
            .args(["-c", "kill -STOP $$; exec \"$0\" \"$@\""])
            .arg(command.get_program())
            .args(command.get_args())
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let pid = Pid::from_raw(child.id().try_into().unwrap());
        let stopped = waitpid(pid, Some(WaitPidFlag::WUNTRACED)).unwrap();
        assert!(matches!(stopped, WaitStatus::Stopped(..)), "{stopped:?}");
        let options = Options::PTRACE_O_TRACESYSGOOD
            | Options::PTRACE_O_TRACECLONE
            | Options::PTRACE_O_EXITKILL;
        ptrace::seize(pid, options).expect("ptrace(2) must be allowed where these tests run");
        Self { pid, child }
    }

    pub fn pid(&self) -> Pid {
        self.pid
    }

    /// Runs it to its end with `input`; what it wrote to standard error comes back too.
    pub fn run(mut self, input: &str, decide: impl FnMut(&Change) -> Fate) -> (End, String) {
        // Both are shorter than a pipe holds.
        let mut stdin = self.child.stdin.take().unwrap();
        stdin.write_all(input.as_bytes()).unwrap();
        drop(stdin);
        let mut stderr = self.child.stderr.take().unwrap();
        let end = self.follow(decide);
        let mut said = String::new();
        stderr.read_to_string(&mut said).unwrap();
        (end, said)
    }

    /// Asks `decide` at each change, until the program has ended.
    pub fn follow(self, mut decide: impl FnMut(&Change) -> Fate) -> End {
        kill(self.pid, Signal::SIGCONT).unwrap();
        let mut torn = None;
        loop {
            // Of this thread's children alone: other tests have theirs.
            let mine = WaitPidFlag::__WALL | WaitPidFlag::__WNOTHREAD;
            match waitpid(None, Some(mine)).unwrap() {
                WaitStatus::Exited(pid, code) if pid == self.pid => return End::Exited(code),
                WaitStatus::Signaled(pid, signal, _) if pid == self.pid => {
                    assert_eq!(signal, Signal::SIGKILL);
                    return End::Killed;
                }
                WaitStatus::PtraceSyscall(thread) if torn == Some(thread) => self.kill(),
                WaitStatus::PtraceSyscall(thread) => {
                    let fate = change(thread).map_or(Fate::Live, |change| decide(&change));
                    match fate {
                        Fate::Live => resume(thread, None),
                        // A killed program does not do the system call that it was stopped at.
                        Fate::Kill => self.kill(),
                        Fate::Tear(length) => {
                            shorten(thread, length);
                            torn = Some(thread);
                            resume(thread, None);
                        }
                    }
                }
                WaitStatus::PtraceEvent(thread, ..) => resume(thread, None),
                WaitStatus::Stopped(thread, signal) => resume(thread, Some(signal)),
                // A thread has ended.
                _ => {}
            }
        }
    }

    fn kill(&self) {
        kill(self.pid, Signal::SIGKILL).unwrap();
    }
}

fn resume(thread: Pid, signal: Option<Signal>) {
    // It may have been killed meanwhile.
    let _ = ptrace::syscall(thread, signal);
}

/// What the system call that `thread` begins would change; `None` at its end, and if it changes nothing.
fn change(thread: Pid) -> Option<Change> {
    if ptrace::syscall_info(thread).ok()?.op != libc::PTRACE_SYSCALL_INFO_ENTRY {
        return None;
    }
    let regs = ptrace::getregs(thread).ok()?;
    let number = regs.orig_rax.cast_signed();
    let file = || open_file(thread, regs.rdi);
    let other = |name, place: Option<String>| (Call::Other(name), place);
    let (call, place) = match number {
        libc::SYS_write | libc::SYS_pwrite64 | libc::SYS_sendto => (Call::Write, file()),
        libc::SYS_writev | libc::SYS_pwritev | libc::SYS_sendmsg => (Call::Write, file()),
        libc::SYS_fsync | libc::SYS_fdatasync => (Call::Sync, file()),
        libc::SYS_ftruncate | libc::SYS_fallocate => other("resize", file()),
        libc::SYS_fchmod => other("chmod", file()),
        libc::SYS_connect => other("connect", file()),
        libc::SYS_openat if creates(regs.rdx) => other("create", name(thread, regs.rsi)),
        libc::SYS_open if creates(regs.rsi) => other("create", name(thread, regs.rdi)),
        libc::SYS_rename | libc::SYS_unlink | libc::SYS_rmdir => {
            other("rename or remove", name(thread, regs.rdi))
        }
        libc::SYS_renameat | libc::SYS_renameat2 | libc::SYS_unlinkat => {
            other("rename or remove", name(thread, regs.rsi))
        }
        libc::SYS_mkdir | libc::SYS_chmod => other("mkdir or chmod", name(thread, regs.rdi)),
        libc::SYS_mkdirat | libc::SYS_fchmodat => other("mkdir or chmod", name(thread, regs.rsi)),
        _ => return None,
    };
    let length = match number {
        libc::SYS_write | libc::SYS_pwrite64 | libc::SYS_sendto => regs.rdx,
        libc::SYS_writev | libc::SYS_pwritev => {
            parts(thread, &regs).iter().map(|part| part[1]).sum()
        }
        _ => 0,
    };
    Some(Change {
        call,
        place: place?,
        length,
    })
}

/// Address and length of each buffer of a writev(2).
fn parts(thread: Pid, regs: &libc::user_regs_struct) -> Vec<[u64; 2]> {
    let mut bytes = vec![0; usize::try_from(regs.rdx).unwrap() * 16];
    let memory = File::open(format!("/proc/{thread}/mem")).unwrap();
    memory.read_exact_at(&mut bytes, regs.rsi).unwrap();
    let number = |bytes: &[u8]| u64::from_ne_bytes(bytes.try_into().unwrap());
    let part = |part: &[u8]| [number(&part[..8]), number(&part[8..])];
    bytes.chunks_exact(16).map(part).collect()
}

fn creates(flags: u64) -> bool {
    flags & u64::from(libc::O_CREAT.cast_unsigned()) != 0
}

/// The file behind a descriptor; `None` for what does not outlive the program.
fn open_file(thread: Pid, descriptor: u64) -> Option<String> {
    let link = std::fs::read_link(format!("/proc/{thread}/fd/{descriptor}")).ok()?;
    let link = link.to_str()?;
    let fleeting = ["anon_inode:", "pipe:", "/memfd:", "/dev/null"];
    if fleeting.iter().any(|kind| link.starts_with(kind)) {
        return None;
    }
    let socket = link.starts_with("socket:");
    Some(if socket { "socket" } else { last(link) }.to_owned())
}

/// The file's name in the memory of `thread`.
fn name(thread: Pid, address: u64) -> Option<String> {
    let mut bytes = [0; 512];
    let memory = File::open(format!("/proc/{thread}/mem")).ok()?;
    let read = memory.read_at(&mut bytes, address).ok()?;
    let end = bytes[..read].iter().position(|byte| *byte == 0)?;
    Some(last(std::str::from_utf8(&bytes[..end]).ok()?).to_owned())
}

fn last(path: &str) -> &str {
    let name = Path::new(path).file_name().and_then(|name| name.to_str());
    name.unwrap_or(path)
}

/// Makes the write that `thread` is about to do one of at most `length` bytes.
fn shorten(thread: Pid, length: u64) {
    let mut regs = ptrace::getregs(thread).unwrap();
    let number = regs.orig_rax.cast_signed();
    regs.rdx = if [libc::SYS_writev, libc::SYS_pwritev].contains(&number) {
        let first = parts(thread, &regs)[0][1].min(length);
        let memory = File::options()
            .write(true)
            .open(format!("/proc/{thread}/mem"));
        let at = regs.rsi + 8;
        memory
            .unwrap()
            .write_all_at(&first.to_ne_bytes(), at)
            .unwrap();
        1
    } else {
        length
    };
    ptrace::setregs(thread, regs).unwrap();
}
