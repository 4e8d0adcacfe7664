//! What a person types: one file per command. Each has its own error type whose text says what to do; the command
//! line prints it with its causes.

pub mod arm_reboot;
pub mod bind;
pub mod crypttab_line;
pub mod format;
pub mod image_files;
pub mod image_list;
pub mod image_modules;
pub mod image_optional;
pub mod initramfs;
pub mod join;
pub mod journal;
pub mod list;
pub mod prompt;
pub mod record_network;
pub mod recovery_key;
pub mod rejoin;
pub mod rotate;
pub mod service;
pub mod shares;
pub mod status;
pub mod target;
pub mod unbind;
