//! Looks the name of a hash up once, where libcryptsetup does so for each of a keyslot's 4000 stripes.
//!
//! A keyslot holds the volume key split by many hashes (LUKS1 on-disk format, 2.4), and libcryptsetup begins each of them by
//! its name, for which libgcrypt compares some sixty strings: a third of the time that one of our keyslots takes to open.
//! What a name stands for does not change, so the last one is kept. What links libgcrypt is linked with
//! `--wrap=gcry_md_map_name` for this (ld(1); see `agent/build.rs`).

use std::cell::RefCell;
use std::ffi::{CStr, CString, c_char, c_int};

unsafe extern "C" {
    fn __real_gcry_md_map_name(name: *const c_char) -> c_int;
}

thread_local! {
    /// The last name that stood for a hash, and libgcrypt's number for it.
    static LAST: RefCell<Option<(CString, c_int)>> = const { RefCell::new(None) };
}

/// Makes the linker keep the function below: called once by what links libgcrypt.
pub fn link() {
    std::hint::black_box(__wrap_gcry_md_map_name as *const ());
}

/// gcry_md_map_name() of libgcrypt: the number of a hash, 0 if there is none of this name.
///
/// # Safety
/// As gcry_md_map_name(): `name` is null or a string of C.
#[unsafe(no_mangle)]
unsafe extern "C" fn __wrap_gcry_md_map_name(name: *const c_char) -> c_int {
    if name.is_null() {
        return 0;
    }
    // SAFETY: not null, and the caller vouches for the rest.
    let text = unsafe { CStr::from_ptr(name) };
    number_of(text, || {
        // SAFETY: as it came.
        unsafe { __real_gcry_md_map_name(name) }
    })
}

fn number_of(name: &CStr, look_up: impl FnOnce() -> c_int) -> c_int {
    LAST.with_borrow_mut(|last| {
        if let Some((known, number)) = last
            && known.as_c_str() == name
        {
            return *number;
        }
        let number = look_up();
        if number != 0 {
            *last = Some((name.to_owned(), number));
        }
        number
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_looked_up_once_and_another_one_anew() {
        let known = |name| number_of(name, || panic!("looked up again"));
        assert_eq!(number_of(c"sha512", || 10), 10);
        assert_eq!(known(c"sha512"), 10);
        assert_eq!(number_of(c"sha51", || 0), 0, "libgcrypt has no such hash");
        assert_eq!(number_of(c"sha51", || 7), 7, "which is not kept");
        assert_eq!(number_of(c"sha512", || 10), 10);
    }
}
