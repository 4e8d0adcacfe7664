//! A store in memory that fails on demand.

/// A store in memory.
#[derive(Debug, Default)]
pub struct MemoryStore {}
