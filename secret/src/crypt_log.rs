//! The C callback by which libcryptsetup hands over what it has to say.
//!
//! Its text goes to our log instead of stderr: errors as warnings, the rest at debug level. The errors of the
//! last call are kept as well, so that an error of ours can name the cause that an errno hides.

use std::cell::RefCell;
use std::ffi::{CStr, c_char, c_int, c_void};

/// Most bytes kept of one operation's errors: they may quote a header that somebody forged.
const KEPT: usize = 1024;
/// `CRYPT_LOG_ERROR` of libcryptsetup.h.
const LEVEL_ERROR: c_int = 1;

thread_local! {
    static ERRORS: RefCell<String> = const { RefCell::new(String::new()) };
}

/// Receives one message; to be given to `crypt_set_log_callback`.
///
/// # Safety
/// `message` is null or a NUL-terminated string that lives for the call.
pub unsafe extern "C" fn receive(level: c_int, message: *const c_char, _user: *mut c_void) {
    if message.is_null() {
        return;
    }
    // SAFETY: not null, and the caller vouches for the NUL and the lifetime.
    let text = unsafe { CStr::from_ptr(message) }.to_string_lossy();
    for line in text.lines().map(str::trim).filter(|line| !line.is_empty()) {
        if level == LEVEL_ERROR {
            log::warn!(target: "libcryptsetup", "{line}");
            ERRORS.with_borrow_mut(|errors| keep(errors, line));
        } else {
            log::debug!(target: "libcryptsetup", "{line}");
        }
    }
}

/// The errors that this thread received since the last call, joined by `; `.
pub fn take_errors() -> String {
    ERRORS.with_borrow_mut(std::mem::take)
}

fn keep(errors: &mut String, line: &str) {
    let printable: String = line.chars().filter(|c| !c.is_control()).collect();
    if errors.len() + printable.len() + 2 > KEPT {
        return;
    }
    if !errors.is_empty() {
        errors.push_str("; ");
    }
    errors.push_str(printable.trim_end_matches('.'));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn say(level: c_int, text: &CStr) {
        // SAFETY: a NUL-terminated string that outlives the call.
        unsafe { receive(level, text.as_ptr(), std::ptr::null_mut()) }
    }

    #[test]
    fn errors_are_kept_until_taken_and_other_levels_are_not() {
        say(0, c"normal");
        say(LEVEL_ERROR, c"Device is in use.\n");
        say(LEVEL_ERROR, c"\x1b[2JBad \xff.\nMore.");
        assert_eq!(take_errors(), "Device is in use; [2JBad \u{fffd}; More");
        assert_eq!(take_errors(), "");
    }

    #[test]
    fn a_flood_of_errors_stays_bounded() {
        for _ in 0..100 {
            say(LEVEL_ERROR, c"0123456789012345678901234567890123456789");
        }
        assert!(take_errors().len() <= KEPT);
    }
}
