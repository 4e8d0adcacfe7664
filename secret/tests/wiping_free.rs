//! Freed blocks hold nothing of what was in them, whichever language allocated or freed them.
//!
//! Each test puts a pattern of its own into the heap, gives the block back and searches all writable memory of the
//! process, read through /proc/self/mem. The pattern is computed and never stored whole, so that the search cannot
//! find itself. A control frees without wiping and must be found.
#![allow(unsafe_code)]
#![allow(clippy::unwrap_used)] // every function in here is part of a test

use std::ffi::{CString, c_void};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::{Mutex, MutexGuard, PoisonError};

use latchkey_secret::wiping_free;

const PATTERN: usize = 64;
/// Behind the first bytes of a block, which the allocator uses for its lists.
const OFFSET: usize = 64;
/// A size that nothing else in the tests asks for, so that no block is reused in between.
const BLOCK: usize = 983;

unsafe extern "C" {
    fn __libc_free(block: *mut c_void);
}

#[test]
fn the_search_finds_a_block_freed_without_wiping() {
    let _turn = turn();
    // SAFETY: a block from malloc, written within its size, freed once with the allocator's own name of free.
    unsafe {
        let block = libc::malloc(BLOCK);
        write_pattern(1, bytes(block, BLOCK));
        assert!(copies(1) >= 1, "the search is blind");
        __libc_free(block);
    }
    assert!(copies(1) >= 1, "the control was wiped by chance");
}

#[test]
fn a_dropped_rust_allocation_leaves_nothing() {
    let _turn = turn();
    assert!(wiping_free::in_force());
    let mut block = vec![0u8; BLOCK].into_boxed_slice();
    write_pattern(2, &mut block);
    assert!(copies(2) >= 1);
    drop(block);
    assert_eq!(copies(2), 0);
}

#[test]
fn a_growing_vector_leaves_nothing_behind() {
    let _turn = turn();
    let mut vector = vec![0u8; BLOCK];
    write_pattern(3, &mut vector);
    for size in [2 * BLOCK, 300 * BLOCK, 10 * BLOCK] {
        vector.reserve_exact(size);
        vector.shrink_to(size);
        assert_eq!(copies(3), 1, "after a change of size to {size}");
    }
    drop(vector);
    assert_eq!(copies(3), 0);
}

#[test]
fn a_block_allocated_and_freed_as_c_does_leaves_nothing() {
    let _turn = turn();
    // SAFETY: blocks from malloc and realloc, written within their size, freed once.
    unsafe {
        let block = libc::malloc(BLOCK);
        write_pattern(4, bytes(block, BLOCK));
        let block = libc::realloc(block, 20 * BLOCK);
        assert_eq!(copies(4), 1, "realloc left the old block as it was");
        libc::free(block);
    }
    assert_eq!(copies(4), 0);
}

#[test]
fn a_buffer_inside_the_c_library_leaves_nothing() {
    let _turn = turn();
    let mut content = vec![0u8; BLOCK];
    write_pattern(5, &mut content);
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), &content).unwrap();
    drop(content);
    let path = CString::new(file.path().to_str().unwrap()).unwrap();
    // SAFETY: NUL-terminated strings; the stream is used and closed once.
    unsafe {
        let stream = libc::fopen(path.as_ptr(), c"r".as_ptr());
        assert!(!stream.is_null());
        libc::fgetc(stream);
        assert!(copies(5) >= 1, "the stream has no buffer");
        libc::fclose(stream);
    }
    assert_eq!(copies(5), 0);
}

/// One test at a time: the search of one passes through a buffer that another's would find.
fn turn() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// # Safety
/// `block` is valid for `length` bytes and used by nobody else for `'a`.
unsafe fn bytes<'a>(block: *mut c_void, length: usize) -> &'a mut [u8] {
    assert!(!block.is_null());
    // SAFETY: as the caller promises.
    unsafe { std::slice::from_raw_parts_mut(block.cast(), length) }
}

fn write_pattern(seed: u64, block: &mut [u8]) {
    for at in 0..PATTERN {
        block[OFFSET + at] = pattern(seed, at);
    }
}

/// Byte `at` of the pattern with this seed (splitmix64).
fn pattern(seed: u64, at: usize) -> u8 {
    let mut mixed = (seed << 32) + at as u64;
    mixed = mixed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    (mixed ^ (mixed >> 31)) as u8
}

/// How often the pattern, or its second half, stands in writable memory of this process.
fn copies(seed: u64) -> usize {
    let memory = File::open("/proc/self/mem").unwrap();
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let half = PATTERN / 2;
    let mut found = 0;
    for line in maps.lines().filter(|line| line.contains(" rw")) {
        let (start, rest) = line.split_once('-').unwrap();
        let (end, _) = rest.split_once(' ').unwrap();
        let start = u64::from_str_radix(start, 16).unwrap();
        let end = u64::from_str_radix(end, 16).unwrap();
        let mut page = [0u8; 4096];
        let mut matched = 0; // bytes of the half seen so far, across pages
        for at in (start..end).step_by(page.len()) {
            if memory.read_exact_at(&mut page, at).is_err() {
                break; // gone since the list was read
            }
            for &byte in &page {
                if byte == pattern(seed, half + matched) {
                    matched += 1;
                } else {
                    matched = usize::from(byte == pattern(seed, half));
                }
                if matched == half {
                    found += 1;
                    matched = 0;
                }
            }
        }
        page.fill(0); // on the stack, which is searched too
        std::hint::black_box(&page);
    }
    found
}
