//! The virtual-machine rig: makes a Debian guest with an encrypted root, boots it with QEMU, and lets a scenario
//! watch its console, type at its prompts and run commands in it.
//!
//! The host needs no device-mapper, loop device or KVM; `tests/README.md` lists the programs it needs. Nothing in
//! here changes what the agent or the key server do: the rig adapts to them.

#![forbid(unsafe_code)]

pub mod attack;
pub mod bound;
pub mod cache;
pub mod channel;
pub mod console;
pub mod disk;
pub mod failure;
pub mod flavour;
pub mod follower;
pub mod guest;
pub mod initramfs;
pub mod keyserver;
pub mod layout;
pub mod lvm;
pub mod machine;
pub mod matrix;
pub mod memory;
pub mod native;
pub mod network;
pub mod overlay;
pub mod page;
pub mod product;
pub mod qmp;
pub mod runner;
pub mod spec;
pub mod stage;
pub mod tool;
pub mod xts;
