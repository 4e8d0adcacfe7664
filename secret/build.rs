//! Links this crate's integration tests as `agent/build.rs` links the agent, so that they prove what holds there.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rustc-link-arg-tests=-Wl,--wrap=free,--wrap=realloc");
}
