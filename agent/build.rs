//! Flags for linking the agent's binary.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    // Every `free` and `realloc`, of Rust and of C, goes to `latchkey_secret::wiping_free`.
    println!("cargo:rustc-link-arg-bins=-Wl,--wrap=free,--wrap=realloc");
    // What libcryptsetup waits for after each mapping goes through `latchkey_secret::udev_wait`.
    println!("cargo:rustc-link-arg=-Wl,--wrap=dm_udev_wait");
    // No program that is started inherits what libcryptsetup opens: `latchkey_secret::close_on_exec`.
    println!("cargo:rustc-link-arg=-Wl,--wrap=open");
    // Relative relocations as a bitmap (DT_RELR) in place of 24 bytes each. A static program relocates itself, so no
    // loader has to know them.
    println!("cargo:rustc-link-arg-bins=-Wl,-z,pack-relative-relocs");
}
