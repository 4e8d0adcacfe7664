//! Wipes this process's memory when it has ended, however it ended: SIGKILL, a crash, an orderly exit.
//!
//! The guardian is a process of its own that shares the address space (clone(2) with CLONE_VM), so the memory is
//! still there when the process has gone, and whoever kills the process does not kill the guardian. It sleeps until
//! then, overwrites every page that was written to, and ends; only then does the kernel get the pages back, which it
//! frees without clearing. The kernel's OOM killer ends both at once: against it nothing helps.
//!
//! The clone is made as vfork(2) makes it (CLONE_VFORK), on a thread that stays suspended for good: stack and
//! thread-local storage of that thread are the guardian's alone.

use std::ffi::{CStr, c_int, c_void};
use std::io::{self, PipeWriter, Read};
use std::os::fd::{AsRawFd, OwnedFd};
use std::ptr;

use crate::maps::wipeable;
use crate::process;

/// The guardian's name among the processes (proc_pid_comm(5)).
pub const NAME: &CStr = c"latchkey-wipe";

/// Bytes of the guardian's stack.
const STACK: usize = 256 * 1024;
/// Most bytes of `/proc/self/maps` that it reads; an agent has some 5 KiB.
const MAPS: usize = 64 * 1024;
/// Most mappings that it wipes; an agent has some 30.
const RANGES: usize = 512;
/// Pages that mincore(2) is asked about at once.
const CHUNK: usize = 128;

/// What the guardian is told.
struct Orders {
    /// Becomes readable when the process has ended.
    ended: OwnedFd,
    /// Takes the guardian's process id.
    started: PipeWriter,
    /// Its stack, which it must leave alone.
    stack: (usize, usize),
}

/// Starts the guardian of this process; returns its process id. It ends after this process, a few milliseconds
/// later.
///
/// # Errors
/// What thread, pipe2(2), mmap(2) or clone(2) fail with; the process is then as before.
pub fn watch() -> io::Result<i32> {
    if crate::CONTROL {
        return Err(io::Error::other(crate::CONTROL_WARNING));
    }
    let own = i32::try_from(std::process::id()).map_err(io::Error::other)?;
    let ended = process::pidfd(own)?.ok_or_else(io::Error::last_os_error)?;
    let (mut answer, started) = io::pipe()?;
    let stack = stack()?;
    let orders = Orders {
        ended,
        started,
        stack: (stack, stack + STACK),
    };
    // Never joined: it goes on only when the guardian ends, which is after this process has.
    std::thread::Builder::new()
        .name("guardian".to_owned())
        .stack_size(STACK)
        .spawn(move || suspend_in_clone(&orders))?;
    let mut id = [0; 4];
    answer.read_exact(&mut id)?;
    Ok(i32::from_ne_bytes(id))
}

/// If the clone fails, the orders are dropped and with them the pipe's end, which tells the caller.
fn suspend_in_clone(orders: &Orders) {
    // SAFETY: `block` is a plain set of signals. The guardian gets a stack of its own and `orders`, which outlive it
    // because this thread is suspended until it ends; it calls only what is allowed after vfork(2).
    unsafe {
        let mut block = std::mem::zeroed();
        libc::sigfillset(&raw mut block);
        libc::pthread_sigmask(libc::SIG_SETMASK, &raw const block, ptr::null_mut());
        libc::clone(
            guard,
            orders.stack.1 as *mut c_void,
            libc::CLONE_VM | libc::CLONE_VFORK,
            ptr::from_ref(orders).cast_mut().cast(),
        );
    }
}

/// The guardian's main function.
extern "C" fn guard(orders: *mut c_void) -> c_int {
    // SAFETY: `orders` is what `suspend_in_clone` passed and outlives us. The descriptors are copies of this
    // process: closing them closes nothing of the other. All calls are plain system calls.
    unsafe {
        let orders = &*orders.cast::<Orders>();
        let id = libc::getpid().to_ne_bytes();
        // A session of its own, so that no hangup of the console reaches it.
        libc::setsid();
        libc::prctl(libc::PR_SET_NAME, NAME.as_ptr(), 0, 0, 0);
        libc::write(orders.started.as_raw_fd(), id.as_ptr().cast(), id.len());
        let ended = orders.ended.as_raw_fd();
        close_all_but(ended);
        let mut poll = libc::pollfd {
            fd: ended,
            events: libc::POLLIN,
            revents: 0,
        };
        while libc::poll(&raw mut poll, 1, -1) != 1 {}
        wipe_everything_but(orders.stack);
        libc::_exit(0)
    }
}

unsafe fn close_all_but(descriptor: c_int) {
    let Ok(descriptor) = u32::try_from(descriptor) else {
        return;
    };
    // SAFETY: nothing of this process uses the others.
    unsafe {
        if descriptor > 0 {
            libc::syscall(libc::SYS_close_range, 0, descriptor - 1, 0);
        }
        libc::syscall(libc::SYS_close_range, descriptor + 1, u32::MAX, 0);
    }
}

/// Overwrites every resident page of every writable mapping but `stack`.
///
/// # Safety
/// Nobody else runs in this address space, and the caller ends the process next: all but its own stack is gone.
unsafe fn wipe_everything_but(stack: (usize, usize)) {
    // All that needs the C library comes first; from the first page on, only this stack and system calls are left.
    let page = crate::memory::page_size();
    let mut resident = [1u8; CHUNK];
    let mut ranges = [(0, 0); RANGES];
    let mut text = [0u8; MAPS];
    // SAFETY: system calls on our own buffer.
    let length = unsafe { read_file(c"/proc/self/maps", &mut text) };
    let others = wipeable(text.get(..length).unwrap_or_default())
        .filter(|(start, end)| *end <= stack.0 || *start >= stack.1);
    for (range, other) in ranges.iter_mut().zip(others) {
        *range = other;
    }
    for (start, end) in ranges {
        // SAFETY: a writable mapping that nobody uses any more.
        unsafe { wipe(start, end, page, &mut resident) };
    }
}

unsafe fn read_file(path: &CStr, into: &mut [u8]) -> usize {
    let mut length = 0;
    // SAFETY: the buffer is ours and as long as said.
    unsafe {
        let file = libc::open(path.as_ptr(), libc::O_RDONLY);
        while length < into.len() {
            let room = into.len() - length;
            let read = libc::read(file, into.as_mut_ptr().add(length).cast(), room);
            match usize::try_from(read) {
                Ok(read) if read > 0 => length += read,
                _ => break,
            }
        }
    }
    length
}

/// Overwrites what is resident: a page that was never touched holds nothing, and touching it would cost memory.
unsafe fn wipe(start: usize, end: usize, page: usize, resident: &mut [u8; CHUNK]) {
    let mut at = start;
    while at < end {
        let size = (end - at).min(CHUNK * page);
        // SAFETY: `at` is the start of a page of a mapping, and the vector has a byte for each page.
        unsafe {
            let known = libc::mincore(at as *mut c_void, size, resident.as_mut_ptr()) == 0;
            for (number, state) in resident.iter().enumerate() {
                if number * page < size && (state & 1 != 0 || !known) {
                    wipe_page(at + number * page, page);
                }
            }
        }
        at += size;
    }
}

unsafe fn wipe_page(start: usize, size: usize) {
    let mut at = start;
    while at < start + size {
        // SAFETY: aligned, within a writable page; volatile, so that no memory function takes its place.
        unsafe { ptr::write_volatile(at as *mut u64, 0) };
        at += size_of::<u64>();
    }
}

/// Never unmapped: the guardian stands on it to the end.
fn stack() -> io::Result<usize> {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_STACK;
    // SAFETY: an anonymous mapping needs no descriptor.
    let start = unsafe { crate::memory::map(STACK, flags, -1) };
    start
        .map(|start| start.as_ptr() as usize)
        .ok_or_else(io::Error::last_os_error)
}
