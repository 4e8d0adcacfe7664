//! The mode of a virtual terminal: its ioctl has no safe wrapper.

use std::os::fd::{AsFd, AsRawFd as _};

/// `KDGETMODE` of `linux/kd.h` (ioctl_console(2)).
const GET_MODE: libc::Ioctl = 0x4b3b_u32 as libc::Ioctl;
/// `KD_GRAPHICS`.
const GRAPHICS: libc::c_int = 1;

/// Whether somebody draws on this terminal, so that what is written to it is not seen. Only virtual terminals are drawn on.
pub fn is_drawn_on(terminal: impl AsFd) -> bool {
    let mut mode: libc::c_int = 0;
    // SAFETY: the kernel writes one int, and the pointer is to one that lives; any other file refuses the request.
    let result = unsafe { libc::ioctl(terminal.as_fd().as_raw_fd(), GET_MODE, &raw mut mode) };
    result == 0 && mode == GRAPHICS
}
