//! Clients to which nothing is given, whoever approves it.

use super::witness::store_state;
use crate::ledger::Work;
use crate::policy::StoreState;
use crate::records::Client;
use crate::sealed::RecordError;

/// Why.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Barred {
    /// Its keys were revoked.
    Revoked,
    /// It was locked out.
    LockedOut,
    /// The key server's store was put back, and nobody has accepted that.
    PutBack,
}

/// Whether `client` is one of them.
///
/// # Errors
/// The store's.
pub(super) fn barred(work: &mut Work<'_>, client: &Client) -> Result<Option<Barred>, RecordError> {
    if client.revoked.is_some() || client.joined.is_none() {
        return Ok(Some(Barred::Revoked));
    }
    if client.locked.is_some() {
        return Ok(Some(Barred::LockedOut));
    }
    Ok(match store_state(work)? {
        StoreState::Newest => None,
        StoreState::PutBack => Some(Barred::PutBack),
    })
}
