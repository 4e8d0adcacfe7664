//! Hardening of the process that holds secrets, and wiping of its stack.

use std::io;
use std::os::fd::{FromRawFd, OwnedFd};

/// Makes the process unreadable to others: not dumpable, no core file, no new privileges, all memory locked.
///
/// prctl(2) PR_SET_DUMPABLE also refuses ptrace(2) by other processes of the same user. Locking is best effort
/// (`mlock_all` tells whether it worked): a container or a small limit must not stop a boot.
///
/// # Errors
/// The error of prctl(2) or setrlimit(2).
pub fn harden() -> io::Result<Hardened> {
    // SAFETY: prctl and setrlimit with constant arguments and a valid pointer; mlockall takes flags only.
    unsafe {
        check(libc::prctl(libc::PR_SET_DUMPABLE, 0, 0, 0, 0))?;
        check(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))?;
        let none = libc::rlimit {
            rlim_cur: 0,
            rlim_max: 0,
        };
        check(libc::setrlimit(libc::RLIMIT_CORE, &raw const none))?;
        let locked = libc::mlockall(libc::MCL_CURRENT | libc::MCL_FUTURE | libc::MCL_ONFAULT) == 0;
        Ok(Hardened { mlock_all: locked })
    }
}

/// What [`harden`] reached beyond what it must.
#[derive(Debug, Clone, Copy)]
pub struct Hardened {
    /// Whether mlockall(2) was granted.
    pub mlock_all: bool,
}

/// Lets the calling thread, and the threads and programs that it starts from here on, have the processor before what runs at
/// nice value 0 (setpriority(2)), so far as it is allowed to.
pub fn hurry() {
    const NICE: libc::c_int = -10;
    // SAFETY: a system call without pointers; on Linux 0 is the calling thread.
    unsafe {
        libc::setpriority(libc::PRIO_PROCESS, 0, NICE);
    }
}

/// Overwrites the 128 KiB of stack below the caller, where cryptographic code leaves copies of blocks.
#[inline(never)]
pub fn wipe_stack() {
    if crate::CONTROL {
        return;
    }
    // An array of zeros in a frame of its own, shown to an empty piece of assembler that may read memory: no
    // compiler can leave the zeros out.
    zeroize::zeroize_stack::<{ 128 * 1024 }>();
}

/// Resolves names from `/etc/hosts` and DNS only, whatever nsswitch.conf says: a static program cannot load
/// other modules. Call it before the first lookup (glibc 2.34 or later).
pub fn pin_name_service() {
    unsafe extern "C" {
        fn __nss_configure_lookup(
            database: *const libc::c_char,
            services: *const libc::c_char,
        ) -> libc::c_int;
    }
    // SAFETY: two NUL-terminated constants; glibc copies what it needs.
    unsafe {
        __nss_configure_lookup(c"hosts".as_ptr(), c"files dns".as_ptr());
    }
}

/// A descriptor that becomes readable when process `pid` has ended (pidfd_open(2)), also before its parent has
/// waited for it; `None` if there is no such process.
///
/// # Errors
/// The error of pidfd_open(2).
pub fn pidfd(pid: i32) -> io::Result<Option<OwnedFd>> {
    // SAFETY: a plain system call without pointers.
    let descriptor = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    if descriptor < 0 {
        let error = io::Error::last_os_error();
        return if error.raw_os_error() == Some(libc::ESRCH) {
            Ok(None)
        } else {
            Err(error)
        };
    }
    let descriptor = i32::try_from(descriptor).map_err(io::Error::other)?;
    // SAFETY: the kernel just gave us this descriptor, and nobody else has it.
    Ok(Some(unsafe { OwnedFd::from_raw_fd(descriptor) }))
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hardened_process_is_not_dumpable_and_writes_no_core() {
        harden().unwrap();
        // SAFETY: prctl and getrlimit with constant arguments and a valid pointer.
        unsafe {
            assert_eq!(libc::prctl(libc::PR_GET_DUMPABLE, 0, 0, 0, 0), 0);
            let mut limit = libc::rlimit {
                rlim_cur: 1,
                rlim_max: 1,
            };
            assert_eq!(libc::getrlimit(libc::RLIMIT_CORE, &raw mut limit), 0);
            assert_eq!((limit.rlim_cur, limit.rlim_max), (0, 0));
        }
    }
}
