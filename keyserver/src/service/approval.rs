//! A person's word on an open boot session.

use super::listing::RequestListing;
use super::{AdminError, Service};

/// Wrong codes after which a session is denied.
pub const ATTEMPTS: u32 = 5;

impl Service {
    /// Open boot sessions, the oldest first.
    ///
    /// # Errors
    /// The store's.
    pub fn requests(&self) -> Result<Vec<RequestListing>, AdminError> {
        unimplemented!()
    }

    /// Approves the session that goes by `id`, if `code` is the one on its machine's console.
    ///
    /// # Errors
    /// `NoRequest`, `Decided`, `WrongCode`, `Record`.
    pub fn approve(&self, id: &str, code: &str, who: &str) -> Result<RequestListing, AdminError> {
        let _ = (id, code, who);
        unimplemented!()
    }

    /// Denies the session that goes by `id`, also after it was approved.
    ///
    /// # Errors
    /// `NoRequest`, `Decided`, `Record`.
    pub fn deny(&self, id: &str, who: &str) -> Result<RequestListing, AdminError> {
        let _ = (id, who);
        unimplemented!()
    }
}
