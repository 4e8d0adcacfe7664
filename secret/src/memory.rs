//! Locked, never-moving, wiped memory for key material.
//!
//! Each secret has pages of its own: from memfd_secret(2) where the kernel offers it (they leave the kernel's
//! direct map), else anonymous pages with mlock(2) and MADV_DONTDUMP. Dropping wipes before unmapping.
//! It defends against swap, core dumps and residue after exit, not against root reading a live process.

use std::ffi::c_void;
use std::fmt;
use std::ptr::NonNull;

use subtle::ConstantTimeEq;
use zeroize::Zeroize;

/// A step of making a secret that failed.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// The kernel gave no memory of `0` bytes.
    #[error("no memory for a secret of {0} bytes")]
    Memory(usize),
    /// getrandom(2) failed.
    #[error("the kernel gave no random bytes")]
    Random(#[source] getrandom::Error),
    /// More bytes than the secret's fixed capacity.
    #[error("a secret of more than {0} bytes")]
    TooLong(usize),
    /// Reading the secret from its source failed.
    #[error("failed to read a secret")]
    Read(#[source] std::io::Error),
}

/// `N` bytes of key material. `Debug` prints no content, comparison is constant-time, dropping wipes.
pub struct Secret<const N: usize> {
    pages: Pages,
}

impl<const N: usize> Secret<N> {
    /// `N` zero bytes, to be filled in place.
    ///
    /// # Errors
    /// `Memory` if the kernel gives no page.
    pub fn zeroed() -> Result<Self, SecretError> {
        Ok(Self {
            pages: Pages::new(N)?,
        })
    }

    /// `N` bytes from getrandom(2).
    ///
    /// # Errors
    /// `Memory`, `Random`.
    pub fn random() -> Result<Self, SecretError> {
        let mut secret = Self::zeroed()?;
        getrandom::fill(secret.expose_secret_mut()).map_err(SecretError::Random)?;
        Ok(secret)
    }

    /// A secret that `fill` writes in place.
    ///
    /// # Errors
    /// What `fill` returns; `Memory` by way of `E: From<SecretError>`.
    pub fn filled<E: From<SecretError>>(
        fill: impl FnOnce(&mut [u8; N]) -> Result<(), E>,
    ) -> Result<Self, E> {
        let mut secret = Self::zeroed()?;
        fill(secret.expose_secret_mut())?;
        Ok(secret)
    }

    /// The bytes, for the one use they are for.
    pub fn expose_secret(&self) -> &[u8; N] {
        self.pages
            .bytes()
            .try_into()
            .expect("the mapping was made for N bytes")
    }

    /// The bytes, to be written in place.
    pub fn expose_secret_mut(&mut self) -> &mut [u8; N] {
        self.pages
            .bytes_mut()
            .try_into()
            .expect("the mapping was made for N bytes")
    }

    /// Whether two secrets are equal, in constant time.
    pub fn matches(&self, other: &Self) -> bool {
        self.expose_secret().ct_eq(other.expose_secret()).into()
    }
}

impl<const N: usize> fmt::Debug for Secret<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Secret<{N}>(..)")
    }
}

/// Up to a fixed number of secret bytes: a passphrase, a private key in PEM. It never grows, so it never moves.
pub struct SecretBytes {
    pages: Pages,
    length: usize,
}

impl SecretBytes {
    /// An empty secret with room for `capacity` bytes.
    ///
    /// # Errors
    /// `Memory` if the kernel gives no pages.
    pub fn with_capacity(capacity: usize) -> Result<Self, SecretError> {
        Ok(Self {
            pages: Pages::new(capacity.max(1))?,
            length: 0,
        })
    }

    /// `length` zero bytes, to be filled in place.
    ///
    /// # Errors
    /// `Memory` if the kernel gives no pages.
    pub fn zeroed(length: usize) -> Result<Self, SecretError> {
        let mut secret = Self::with_capacity(length)?;
        secret.length = length;
        Ok(secret)
    }

    /// Reads `source` to its end.
    ///
    /// # Errors
    /// `TooLong` if there are more than `capacity` bytes, `Read`, `Memory`.
    pub fn read_from(
        source: &mut impl std::io::Read,
        capacity: usize,
    ) -> Result<Self, SecretError> {
        let mut secret = Self::with_capacity(capacity + 1)?;
        loop {
            let length = secret.length;
            let room = &mut secret.pages.bytes_mut()[length..];
            if room.is_empty() {
                return Err(SecretError::TooLong(capacity));
            }
            match source.read(room) {
                Ok(0) => return Ok(secret),
                Ok(read) => secret.length += read,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => return Err(SecretError::Read(error)),
            }
        }
    }

    /// Appends `bytes`.
    ///
    /// # Errors
    /// `TooLong` if they do not fit; nothing is appended then.
    pub fn push(&mut self, bytes: &[u8]) -> Result<(), SecretError> {
        let capacity = self.pages.length;
        let end = self.length + bytes.len();
        let room = self
            .pages
            .bytes_mut()
            .get_mut(self.length..end)
            .ok_or(SecretError::TooLong(capacity))?;
        room.copy_from_slice(bytes);
        self.length = end;
        Ok(())
    }

    /// Cuts the secret to `length` bytes and wipes the rest.
    pub fn truncate(&mut self, length: usize) {
        if length < self.length {
            if !crate::CONTROL {
                self.pages.bytes_mut()[length..].zeroize();
            }
            self.length = length;
        }
    }

    /// The bytes, for the one use they are for.
    pub fn expose_secret(&self) -> &[u8] {
        &self.pages.bytes()[..self.length]
    }

    /// The bytes, to be written in place.
    pub fn expose_secret_mut(&mut self) -> &mut [u8] {
        let length = self.length;
        &mut self.pages.bytes_mut()[..length]
    }

    /// Number of bytes.
    pub fn len(&self) -> usize {
        self.length
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }
}

impl fmt::Debug for SecretBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretBytes(..)")
    }
}

/// An own mapping of `length` usable bytes.
struct Pages {
    start: NonNull<u8>,
    length: usize,
    mapped: usize,
}

// SAFETY: the mapping belongs to this value alone and has no thread affinity; `&Pages` gives only shared reads.
unsafe impl Send for Pages {}
// SAFETY: as above.
unsafe impl Sync for Pages {}

impl Pages {
    fn new(length: usize) -> Result<Self, SecretError> {
        let mapped = length.next_multiple_of(page_size());
        let start = secret_mapping(mapped)
            .or_else(|| locked_mapping(mapped))
            .ok_or(SecretError::Memory(length))?;
        Ok(Self {
            start,
            length,
            mapped,
        })
    }

    fn bytes(&self) -> &[u8] {
        // SAFETY: `start` maps at least `length` readable bytes until drop, and nobody else writes to them.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.length) }
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `bytes`, and `&mut self` makes the access exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.length) }
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        if crate::CONTROL {
            // As a program does that thinks of nothing: at its end the kernel takes the pages as they are.
            return;
        }
        self.bytes_mut().zeroize();
        // SAFETY: `start` and `mapped` are what mmap returned and was given; no reference outlives `self`.
        unsafe {
            libc::munmap(self.start.as_ptr().cast::<c_void>(), self.mapped);
        }
    }
}

/// Pages from memfd_secret(2); `None` where the kernel has none to give (Debian 12 boots with it disabled).
fn secret_mapping(length: usize) -> Option<NonNull<u8>> {
    let size = libc::off_t::try_from(length).ok()?;
    // SAFETY: a plain system call without pointers; the descriptor is ours and closed below.
    let descriptor = unsafe { libc::syscall(libc::SYS_memfd_secret, libc::O_CLOEXEC) };
    let descriptor = i32::try_from(descriptor).ok().filter(|d| *d >= 0)?;
    // SAFETY: `descriptor` is open; the mapping is shared with nobody because the descriptor is closed at once.
    unsafe {
        let start = if libc::ftruncate(descriptor, size) == 0 {
            map(length, libc::MAP_SHARED, descriptor)
        } else {
            None
        };
        libc::close(descriptor);
        start
    }
}

/// Anonymous pages that are locked and left out of core dumps. A refused lock (RLIMIT_MEMLOCK) is no reason to
/// fail: the secret is still wiped, and a machine must boot.
fn locked_mapping(length: usize) -> Option<NonNull<u8>> {
    // SAFETY: an anonymous mapping needs no descriptor; mlock and madvise only get the range just mapped.
    unsafe {
        let start = map(length, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1)?;
        libc::mlock(start.as_ptr().cast(), length);
        libc::madvise(start.as_ptr().cast(), length, libc::MADV_DONTDUMP);
        libc::madvise(start.as_ptr().cast(), length, libc::MADV_WIPEONFORK);
        Some(start)
    }
}

/// mmap(2) of `length` readable and writable bytes.
///
/// # Safety
/// `descriptor` is open for this call, or -1 with `MAP_ANONYMOUS`.
unsafe fn map(length: usize, flags: libc::c_int, descriptor: libc::c_int) -> Option<NonNull<u8>> {
    // SAFETY: no address is asked for, so no existing mapping is touched; the caller vouches for `descriptor`.
    let start = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            length,
            libc::PROT_READ | libc::PROT_WRITE,
            flags,
            descriptor,
            0,
        )
    };
    if start == libc::MAP_FAILED {
        None
    } else {
        NonNull::new(start.cast())
    }
}

pub(crate) fn page_size() -> usize {
    // SAFETY: sysconf has no preconditions.
    let size = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    usize::try_from(size).unwrap_or(4096)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn random_secrets_differ_and_match_themselves() {
        let (a, b) = (
            Secret::<32>::random().unwrap(),
            Secret::<32>::random().unwrap(),
        );
        assert!(a.matches(&a));
        assert!(!a.matches(&b));
    }

    #[test]
    fn debug_shows_no_content() {
        let mut secret = Secret::<4>::zeroed().unwrap();
        secret.expose_secret_mut().copy_from_slice(b"abcd");
        assert_eq!(format!("{secret:?}"), "Secret<4>(..)");
        let mut bytes = SecretBytes::with_capacity(8).unwrap();
        bytes.push(b"abcd").unwrap();
        assert_eq!(format!("{bytes:?}"), "SecretBytes(..)");
    }

    #[test]
    fn a_longer_source_than_the_capacity_is_refused() {
        assert_eq!(
            SecretBytes::read_from(&mut &b"12345678"[..], 8)
                .unwrap()
                .expose_secret(),
            b"12345678"
        );
        assert!(matches!(
            SecretBytes::read_from(&mut &b"123456789"[..], 8),
            Err(SecretError::TooLong(8))
        ));
        let mut small = SecretBytes::with_capacity(2).unwrap();
        assert!(small.push(b"abc").is_err());
        assert!(small.is_empty());
    }

    #[test]
    fn truncating_wipes_the_rest() {
        let mut bytes = SecretBytes::with_capacity(8).unwrap();
        bytes.push(b"abcdef\n").unwrap();
        bytes.truncate(6);
        assert_eq!(bytes.expose_secret(), b"abcdef");
        assert_eq!(bytes.pages.bytes()[6], 0);
    }
}
