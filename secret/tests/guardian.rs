//! Processes that end in every way, and what is left of memory that they shared with the test.
#![allow(unsafe_code)]

use std::io::{BufRead, BufReader, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Stdio};

use latchkey_secret::{guardian, process};

const SIZE: usize = 8 * 4096;
const MARK: u8 = 0xa5;

fn main() {
    let mut words = std::env::args().skip(1);
    if words.next().as_deref() == Some("victim") {
        let (ending, descriptor) = (words.next(), words.next());
        be_the_victim(
            &ending.expect("how to end"),
            descriptor
                .and_then(|text| text.parse().ok())
                .expect("the memory's descriptor"),
        );
    }
    for (ending, signal) in [
        ("killed", Some(libc::SIGKILL)),
        ("aborted", Some(libc::SIGABRT)),
        ("crashed", Some(libc::SIGSEGV)),
        ("over", None),
    ] {
        is_wiped(ending, signal);
        println!("test a process that was {ending} leaves nothing ... ok");
    }
}

fn is_wiped(ending: &str, signal: Option<i32>) {
    let memory = memory();
    let mut victim = Command::new(std::env::current_exe().expect("this program"))
        .args(["victim", ending, &memory.as_raw_fd().to_string()])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("a process");
    let mut line = String::new();
    let mut said = BufReader::new(victim.stdout.take().expect("a pipe"));
    said.read_line(&mut line).expect("a line");
    let guardian = line.trim().parse().expect("the guardian's process id");
    let guardian = process::pidfd(guardian)
        .expect("a descriptor")
        .expect("a guardian");
    assert!(
        content(&memory).iter().all(|byte| *byte == MARK),
        "{ending}: before the end"
    );

    if ending == "killed" {
        victim.kill().expect("a signal");
    } else {
        // The victim waits for this line.
        let _ = victim.stdin.take().expect("a pipe").write_all(b"\n");
    }
    let status = victim.wait().expect("its status");
    assert_eq!(status.signal(), signal, "{ending}: {status}");
    let mut poll = libc::pollfd {
        fd: guardian.as_raw_fd(),
        events: libc::POLLIN,
        revents: 0,
    };
    // SAFETY: one valid descriptor.
    let ready = unsafe { libc::poll(&raw mut poll, 1, 60_000) };
    assert_eq!(ready, 1, "{ending}: the guardian stays");
    let left = content(&memory).iter().filter(|byte| **byte != 0).count();
    assert_eq!(left, 0, "{ending}: bytes that are left");
}

fn be_the_victim(ending: &str, descriptor: i32) -> ! {
    // SAFETY: a new mapping of a descriptor that was inherited for it; the pages are written before anyone reads.
    unsafe {
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let start = libc::mmap(
            std::ptr::null_mut(),
            SIZE,
            protection,
            libc::MAP_SHARED,
            descriptor,
            0,
        );
        assert_ne!(start, libc::MAP_FAILED);
        std::ptr::write_bytes(start.cast::<u8>(), MARK, SIZE);
    }
    process::harden().expect("a hardened process");
    println!("{}", guardian::watch().expect("a guardian"));
    let mut line = String::new();
    let _ = std::io::stdin().read_line(&mut line);
    match ending {
        "aborted" => std::process::abort(),
        // SAFETY: no page lies there, which is what ends this process.
        "crashed" => unsafe { std::ptr::write_volatile(std::hint::black_box(8) as *mut u8, 0) },
        _ => std::process::exit(0),
    };
    unreachable!("the process has ended")
}

fn memory() -> std::fs::File {
    // SAFETY: a new descriptor, which children inherit.
    let memory = unsafe { OwnedFd::from_raw_fd(libc::memfd_create(c"victim".as_ptr(), 0)) };
    let memory = std::fs::File::from(memory);
    memory.set_len(SIZE as u64).expect("room");
    memory
}

fn content(memory: &std::fs::File) -> Vec<u8> {
    let mut content = vec![0; SIZE];
    memory.read_exact_at(&mut content, 0).expect("the memory");
    content
}
