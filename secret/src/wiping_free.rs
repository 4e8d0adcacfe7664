//! `free` and `realloc` that wipe what they give back, for Rust and C alike.
//!
//! HTTP, TLS and JSON code, libcryptsetup and aws-lc leave copies of what passes through them in heap blocks that
//! nobody clears. In a static program linked with `--wrap=free --wrap=realloc` (ld(1); see `agent/build.rs`) every
//! reference to `free` and `realloc`, from whatever language, goes to the two functions here. That leaves out what
//! is never freed and the few blocks that glibc's allocator frees internally. In a program linked without the
//! options the two functions are there and unused.

use std::ffi::c_void;
use std::ptr;
use std::sync::atomic::{AtomicUsize, Ordering};

unsafe extern "C" {
    // glibc's own name of free(3): `free` would come back here
    fn __libc_free(block: *mut c_void);
    fn explicit_bzero(block: *mut c_void, length: usize);
}

/// How many blocks were wiped, for [`in_force`].
static WIPED: AtomicUsize = AtomicUsize::new(0);

/// Whether this program was linked so that freed blocks are wiped.
pub fn in_force() -> bool {
    let before = WIPED.load(Ordering::Relaxed);
    drop(std::hint::black_box(Box::new(1u8)));
    WIPED.load(Ordering::Relaxed) != before
}

/// free(3) of a block whose every byte was overwritten with zero.
///
/// # Safety
/// As free(3): `block` is null or from the C allocator and not yet freed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn __wrap_free(block: *mut c_void) {
    if block.is_null() {
        return;
    }
    WIPED.fetch_add(1, Ordering::Relaxed);
    // SAFETY: the block is live (caller), its usable size is what the allocator set aside for it alone, and after
    // the last line nobody uses it. free(3) keeps errno, and so does this.
    unsafe {
        if !crate::CONTROL {
            explicit_bzero(block, libc::malloc_usable_size(block));
        }
        __libc_free(block);
    }
}

/// realloc(3) that never grows or shrinks in place: the old block is always wiped whole.
///
/// # Safety
/// As realloc(3): `block` is null or from the C allocator and not yet freed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn __wrap_realloc(block: *mut c_void, size: usize) -> *mut c_void {
    if block.is_null() {
        // SAFETY: malloc takes any size.
        return unsafe { libc::malloc(size) };
    }
    if size == 0 {
        // glibc's choice among what the standard allows
        // SAFETY: the caller gives the block up.
        unsafe { __wrap_free(block) };
        return ptr::null_mut();
    }
    // SAFETY: malloc takes any size; old and new block are distinct and at least `kept` long; the old one is given
    // up only once its content is moved, so that a failure leaves it as it was.
    unsafe {
        let moved = libc::malloc(size);
        if !moved.is_null() {
            let kept = size.min(libc::malloc_usable_size(block));
            ptr::copy_nonoverlapping(block.cast::<u8>(), moved.cast::<u8>(), kept);
            __wrap_free(block);
        }
        moved
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_linked_without_the_wraps_says_so() {
        let before = WIPED.load(Ordering::Relaxed);
        // another test may call the wraps directly at this moment, a few dozen times at most
        let claims = (0..1000).filter(|_| in_force()).count();
        let direct = WIPED.load(Ordering::Relaxed) - before;
        assert!(claims <= direct && claims < 500, "{claims} of 1000");
    }

    #[test]
    fn realloc_keeps_the_content_and_moves() {
        // SAFETY: blocks from malloc, read within their size, freed once.
        unsafe {
            let block = libc::malloc(40).cast::<u8>();
            for at in 0..40 {
                *block.add(at) = at as u8;
            }
            let smaller = __wrap_realloc(block.cast(), 24).cast::<u8>();
            assert_ne!(smaller, block, "shrunk in place");
            let larger = __wrap_realloc(smaller.cast(), 5000).cast::<u8>();
            assert_ne!(larger, smaller, "grown in place");
            let content = std::slice::from_raw_parts(larger, 24);
            assert!(
                content
                    .iter()
                    .enumerate()
                    .all(|(at, &byte)| byte == at as u8)
            );
            assert!(__wrap_realloc(larger.cast(), 0).is_null());
            let fresh = __wrap_realloc(ptr::null_mut(), 16);
            assert!(!fresh.is_null());
            __wrap_free(fresh);
            __wrap_free(ptr::null_mut());
        }
    }
}
