//! What is opened here is not inherited by the programs that are started here.
//!
//! libcryptsetup opens devices without O_CLOEXEC, and right before it makes a mapping it opens the device for itself alone
//! (O_EXCL). A prompt's program that started in that moment would keep it, and the kernel would then refuse the mapping
//! with EBUSY for as long as the prompt stands. So every open(2) of C gets the flag; Rust's own has it. What links
//! libcryptsetup is linked with `--wrap=open` for this (ld(1); see `agent/build.rs`).

use std::ffi::{c_char, c_int, c_uint};

/// Makes the linker keep the function below: called once by what links libcryptsetup.
pub fn link() {
    std::hint::black_box(__wrap_open as *const ());
}

/// open(2). The third argument is there only with some flags; where it is not, openat(2) does not look at it either.
///
/// # Safety
/// As open(2): `path` is a string of C.
#[unsafe(no_mangle)]
unsafe extern "C" fn __wrap_open(path: *const c_char, flags: c_int, mode: c_uint) -> c_int {
    // SAFETY: passed on as it came, with one flag more.
    unsafe { libc::openat(libc::AT_FDCWD, path, flags | libc::O_CLOEXEC, mode) }
}
