//! The administrator's way in: a unix socket that only root and the server's own user may use.

pub mod approvers;
pub mod client;
pub mod protocol;
pub mod socket;
