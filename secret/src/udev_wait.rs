//! Waits for udev once for several mappings, instead of after each one.
//!
//! libdevmapper gives the kernel a cookie with each mapping, and waits until udev, done with the links in `/dev`, has given it
//! back (dm_udev_wait()). libcryptsetup does so at the end of each activation, and it takes as long as opening a keyslot
//! does, so meanwhile the next volume's can be opened: a cookie may be waited for at any later time. What links
//! libdevmapper is linked with `--wrap=dm_udev_wait` for this (ld(1); see `agent/build.rs`).

use std::cell::{Cell, RefCell};
use std::ffi::c_int;
use std::thread::sleep;
use std::time::{Duration, Instant};

unsafe extern "C" {
    fn __real_dm_udev_wait(cookie: u32) -> c_int;
    fn dm_udev_wait_immediate(cookie: u32, ready: *mut c_int) -> c_int;
}

/// How long udev may take for all of them; one that was ended meanwhile never gives a cookie back.
const LIMIT: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(5);

thread_local! {
    /// Whether this thread puts off what it has to wait for.
    static MAY_DEFER: Cell<bool> = const { Cell::new(false) };
    /// Whether what is done just now can be waited for later.
    static DEFERRING: Cell<bool> = const { Cell::new(false) };
    static COOKIES: RefCell<Vec<u32>> = const { RefCell::new(Vec::new()) };
}

/// From here on this thread's mappings are waited for by [`wait`] alone.
pub fn defer() {
    MAY_DEFER.set(true);
}

/// Whether there is something to [`wait`] for.
pub fn is_pending() -> bool {
    COOKIES.with_borrow(|cookies| !cookies.is_empty())
}

/// Returns when udev is done with all mappings that this thread made, or after ten seconds; whether it is.
pub fn wait() -> bool {
    let begin = Instant::now();
    while !is_over() {
        if begin.elapsed() >= LIMIT {
            return false;
        }
        sleep(PAUSE);
    }
    true
}

/// Whether udev is done with all of them now.
pub fn is_over() -> bool {
    COOKIES.with_borrow_mut(|cookies| {
        cookies.retain(|cookie| {
            let mut ready = 0;
            // SAFETY: the cookie is one of libdevmapper's that nobody has waited for; `ready` outlives the call.
            let known = unsafe { dm_udev_wait_immediate(*cookie, &raw mut ready) } != 0;
            known && ready == 0
        });
        cookies.is_empty()
    })
}

/// Does `act`, which makes one mapping that nothing else of it needs a link to in `/dev`.
pub fn later<T>(act: impl FnOnce() -> T) -> T {
    DEFERRING.set(MAY_DEFER.get());
    let result = act();
    DEFERRING.set(false);
    result
}

/// dm_udev_wait() of libdevmapper, as libcryptsetup calls it.
#[unsafe(no_mangle)]
extern "C" fn __wrap_dm_udev_wait(cookie: u32) -> c_int {
    if DEFERRING.get() && cookie != 0 {
        COOKIES.with_borrow_mut(|cookies| cookies.push(cookie));
        return 1;
    }
    // SAFETY: what the caller called.
    unsafe { __real_dm_udev_wait(cookie) }
}
