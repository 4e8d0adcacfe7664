//! `latchkey`: everything is in the library.

// The wiping `free` that build.rs links, and the udev functions of libdevmapper.
use latchkey_secret as _;

fn main() -> std::process::ExitCode {
    latchkey::cli::run()
}
