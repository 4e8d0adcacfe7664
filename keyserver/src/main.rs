//! `latchkeyd`, the key server. Everything is in the library.
#![forbid(unsafe_code)]

fn main() -> std::process::ExitCode {
    latchkeyd::commands::main()
}
