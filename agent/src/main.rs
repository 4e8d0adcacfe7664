//! `latchkey`: see latchkey(8).

use std::process::ExitCode;

use latchkey_secret as _; // the wiping `free` that build.rs links, and the udev functions of libdevmapper

fn main() -> ExitCode {
    latchkey::cli::run()
}
