//! Sends every `free` and `realloc` of the agent, Rust and C, to `latchkey_secret::wiping_free`.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rustc-link-arg-bins=-Wl,--wrap=free,--wrap=realloc");
}
