//! What another process of the same user can do to a hardened process, and what a crash of it leaves; beside a process
//! that is not hardened, which proves that each attempt is a real one.
#![allow(unsafe_code)]

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use latchkey_secret::process;
use nix::sys::resource::{Resource, setrlimit};
use nix::unistd::Uid;

/// Root may do everything, so it plays as somebody else.
const NOBODY: u32 = 65534;

fn main() {
    let words: Vec<String> = std::env::args().skip(1).collect();
    match words.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["victim", kind, ending] => be_the_victim(kind, ending),
        ["attacker", victim] => attack(victim.parse().expect("a process id")),
        _ => {
            others_of_the_same_user_get_nothing();
            println!("test others of the same user get nothing ... ok");
            a_crash_leaves_no_core_file();
            println!("test a crash leaves no core file ... ok");
        }
    }
}

fn others_of_the_same_user_get_nothing() {
    let stage = Stage::new();
    let open = stage.attacked("open");
    for way in ["environ", "maps", "mem"] {
        assert!(open.contains(way), "of a process like any other: {open}");
    }
    assert_eq!(stage.attacked("hardened"), "", "of a hardened process");
}

fn a_crash_leaves_no_core_file() {
    let stage = Stage::new();
    setrlimit(Resource::RLIMIT_CORE, u64::MAX, u64::MAX).unwrap_or_default();
    let cores = |kind, ending, signal| {
        let mut victim = stage.victim(kind, ending);
        drop(victim.stdin.take());
        let status = victim.wait().expect("its status");
        assert_eq!(status.signal(), Some(signal), "{kind} {ending}: {status}");
        status.core_dumped()
    };
    for (ending, signal) in [("aborted", libc::SIGABRT), ("crashed", libc::SIGSEGV)] {
        assert!(!cores("hardened", ending, signal), "hardened, {ending}");
    }
    let pattern = fs::read_to_string("/proc/sys/kernel/core_pattern").unwrap_or_default();
    // Only a plain name is a file in the process's folder; a helper may not be there.
    if Uid::effective().is_root() && !pattern.starts_with(['|', '/']) {
        assert!(cores("open", "aborted", libc::SIGABRT), "like any other");
    }
}

/// A folder that everybody may use, with this program in it.
struct Stage {
    folder: tempfile::TempDir,
    program: PathBuf,
}

impl Stage {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o777)).expect("its mode");
        let program = folder.path().join("program");
        fs::copy(std::env::current_exe().expect("this program"), &program).expect("a copy");
        Self { folder, program }
    }

    fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        command.current_dir(self.folder.path());
        if Uid::effective().is_root() {
            command.uid(NOBODY).gid(NOBODY);
        }
        command
    }

    /// A process that is ready to be attacked.
    fn victim(&self, kind: &str, ending: &str) -> Child {
        let mut victim = self
            .command()
            .args(["victim", kind, ending])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("a process");
        let mut line = String::new();
        let said = victim.stdout.take().expect("a pipe");
        BufReader::new(said).read_line(&mut line).expect("a line");
        assert_eq!(line, "ready\n");
        victim
    }

    /// What an attacker could read.
    fn attacked(&self, kind: &str) -> String {
        let mut victim = self.victim(kind, "over");
        let mut attacker = self.command();
        let output = attacker
            .args(["attacker", &victim.id().to_string()])
            .output();
        drop(victim.stdin.take());
        victim.wait().expect("its status");
        String::from_utf8(output.expect("an attack").stdout).expect("text")
    }
}

fn be_the_victim(kind: &str, ending: &str) {
    if kind == "hardened" {
        process::harden().expect("a hardened process");
    } else {
        // Changing the user has made the process as closed as a hardened one.
        // SAFETY: a plain system call.
        assert_eq!(unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 1, 0, 0, 0) }, 0);
    }
    println!("ready");
    std::io::stdout().flush().expect("stdout");
    let _ = std::io::stdin().read(&mut [0]);
    match ending {
        "aborted" => std::process::abort(),
        // SAFETY: no page lies there, which is what ends this process.
        "crashed" => unsafe { std::ptr::write_volatile(std::hint::black_box(8) as *mut u8, 0) },
        _ => {}
    }
}

/// Prints what it got hold of.
fn attack(victim: i32) {
    let folder = PathBuf::from(format!("/proc/{victim}"));
    for file in ["environ", "maps"] {
        if fs::read(folder.join(file)).is_ok_and(|content| !content.is_empty()) {
            print!("{file} ");
        }
    }
    if memory_opens(&folder) {
        print!("mem ");
    }
    // SAFETY: plain system calls; a process that is attached to is let go again.
    unsafe {
        if libc::ptrace(libc::PTRACE_SEIZE, victim, 0, 0) == 0 {
            print!("ptrace ");
            libc::ptrace(libc::PTRACE_DETACH, victim, 0, 0);
        }
    }
}

fn memory_opens(folder: &Path) -> bool {
    File::open(folder.join("mem")).is_ok()
}
