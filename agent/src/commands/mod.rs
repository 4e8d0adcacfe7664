//! What a person types: one file per command. Each has its own error type whose text says what to do; the command
//! line prints it with its causes.

pub mod join;
pub mod prompt;
