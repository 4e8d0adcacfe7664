//! Skeleton.
use latchkey_secret as _; // the wiping `free` that build.rs links, and the udev functions of libdevmapper
fn main() {}
