//! Locked, never-moving, wiped memory for key material.
//!
//! Each secret has pages of its own: from memfd_secret(2) where the kernel offers it (they leave the kernel's
//! direct map), else anonymous pages with mlock(2) and MADV_DONTDUMP. Dropping wipes, and keeps a few of the wiped pages
//! for the next secrets.
//! It defends against swap, core dumps and residue after exit, not against root reading a live process.

use std::ffi::c_void;
use std::fmt;
use std::os::fd::AsRawFd;
use std::ptr::NonNull;
use std::sync::{Mutex, MutexGuard, PoisonError};

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

/// A mapping of which `length` bytes are in use.
struct Pages {
    mapping: Mapping,
    length: usize,
}

/// A mapping of `size` bytes that belongs to this value alone. What is not in use is zero.
pub(crate) struct Mapping {
    start: NonNull<u8>,
    size: usize,
}

// SAFETY: the mapping has no thread affinity, and the pointer is its only one.
unsafe impl Send for Mapping {}
// SAFETY: as above, and `&Pages` gives only shared reads.
unsafe impl Sync for Mapping {}

/// Wiped mappings of one page for the next secrets. Making one takes several system calls, and every page that leaves
/// the kernel's direct map or comes back makes all processors forget address translations: more work than most
/// secrets are used for.
static SPARE: Mutex<Vec<Mapping>> = Mutex::new(Vec::new());
const SPARE_LIMIT: usize = 32;

impl Pages {
    fn new(length: usize) -> Result<Self, SecretError> {
        let size = length.next_multiple_of(page_size());
        let spare = if size == page_size() {
            spare().pop()
        } else {
            None
        };
        let mapping = spare
            .or_else(|| Mapping::new(size))
            .ok_or(SecretError::Memory(length))?;
        Ok(Self { mapping, length })
    }

    fn bytes(&self) -> &[u8] {
        // SAFETY: the mapping has at least `length` readable bytes until drop, and nobody else writes to them.
        unsafe { std::slice::from_raw_parts(self.mapping.start.as_ptr(), self.length) }
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `bytes`, and `&mut self` makes the access exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.mapping.start.as_ptr(), self.length) }
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        if crate::CONTROL {
            // As a program does that thinks of nothing: at its end the kernel takes the pages as they are.
            return;
        }
        self.bytes_mut().zeroize();
        let mapping = Mapping {
            start: self.mapping.start,
            size: self.mapping.size,
        };
        let mut spare = spare();
        if mapping.size == page_size() && spare.len() < SPARE_LIMIT {
            spare.push(mapping);
        } else {
            drop(spare);
            mapping.unmap();
        }
    }
}

impl Mapping {
    fn new(size: usize) -> Option<Self> {
        let start = secret_mapping(size).or_else(|| locked_mapping(size))?;
        Some(Self { start, size })
    }

    /// The first `size` bytes of a file in memory, shared with whoever has it open.
    pub(crate) fn of_file(file: &std::fs::File, size: usize) -> Option<Self> {
        // SAFETY: the descriptor is open for as long as `file` lives.
        let start = unsafe { map(size, libc::MAP_SHARED, file.as_raw_fd()) }?;
        Some(Self { start, size })
    }

    /// Where it begins, and how many bytes it has.
    pub(crate) fn range(&self) -> (NonNull<u8>, usize) {
        (self.start, self.size)
    }

    pub(crate) fn unmap(self) {
        // SAFETY: `start` and `size` are what mmap returned and was given; no reference outlives the `Pages` that had
        // them.
        unsafe {
            libc::munmap(self.start.as_ptr().cast::<c_void>(), self.size);
        }
    }
}

fn spare() -> MutexGuard<'static, Vec<Mapping>> {
    // Whole mappings go in and out; a panic leaves none half there.
    SPARE.lock().unwrap_or_else(PoisonError::into_inner)
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
pub(crate) unsafe fn map(
    length: usize,
    flags: libc::c_int,
    descriptor: libc::c_int,
) -> Option<NonNull<u8>> {
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
    fn a_page_that_is_used_again_is_empty() {
        for _ in 0..2 * SPARE_LIMIT {
            let mut one = Secret::<64>::zeroed().unwrap();
            let mut other = SecretBytes::zeroed(4096).unwrap();
            assert_eq!(one.expose_secret(), &[0; 64]);
            assert!(other.expose_secret().iter().all(|byte| *byte == 0));
            one.expose_secret_mut().fill(1);
            other.expose_secret_mut().fill(2);
            other.truncate(100);
        }
        let many: Vec<_> = (0..2 * SPARE_LIMIT)
            .map(|_| Secret::<32>::random())
            .collect();
        let starts = many
            .iter()
            .map(|secret| secret.as_ref().unwrap().pages.mapping.start);
        let distinct: std::collections::BTreeSet<_> = starts.collect();
        assert_eq!(distinct.len(), many.len());
        drop(many);
        assert!(spare().len() <= SPARE_LIMIT);
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
