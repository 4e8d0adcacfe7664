//! Opens the key server's store and what it keeps for the network: the CA and the server certificate, each
//! sealed under the master key as one record (certificate and key always belong together).

use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::Arc;

use latchkey_protocol::token::Address;
use latchkey_secret::{SecretBytes, SecretError};
use nix::unistd::{Gid, Uid, setgid, setgroups, setuid};

use crate::audit::{self, Head};
use crate::ca::{Authority, CaError, Identity};
use crate::clock::SystemClock;
use crate::config::Config;
use crate::master_key::{MasterKey, MasterKeyError};
use crate::sealed::{RecordError, SealedStore};
use crate::service::Service;
use crate::store::{SqliteStore, StoreError};
use crate::users;

const AUTHORITY: &str = "tls-authority";
const SERVER: &str = "tls-server";

/// An open key server, without its network.
pub struct Opened {
    /// What it does.
    pub service: Arc<Service>,
    /// Its CA.
    pub authority: Arc<Authority>,
}

/// What `init` found and made, in order, for people.
pub type Steps = Vec<String>;

/// The key server could not be opened or made.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The master key.
    #[error(transparent)]
    MasterKey(#[from] MasterKeyError),
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A record in it.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// A certificate.
    #[error(transparent)]
    Ca(#[from] CaError),
    /// `init` was interrupted.
    #[error(
        "the store in '{0}' has no CA: 'latchkeyd init' was interrupted\nrun the same 'latchkeyd init' again, it goes on where it stopped"
    )]
    NoAuthority(PathBuf),
    /// The process cannot become the store's owner.
    #[error("failed to become user {0}, who owns the store")]
    Owner(u32, #[source] std::io::Error),
    /// No memory for a key.
    #[error("no memory for a private key")]
    Secret(#[from] SecretError),
}

/// Opens the store that `config` names, for this process alone.
///
/// # Errors
/// Any of [`OpenError`].
pub fn open(config: &Config) -> Result<Opened, OpenError> {
    open_with(config, master_key(config)?)
}

/// As [`open`], for a command of the administrator: root reads the master key and then becomes the store's owner,
/// so that no file of the store ends up with root.
///
/// # Errors
/// Any of [`OpenError`].
pub fn open_as_owner(config: &Config) -> Result<Opened, OpenError> {
    let master = master_key(config)?;
    if Uid::effective().is_root()
        && let Ok(facts) = std::fs::metadata(&config.data_dir)
        && facts.uid() != 0
    {
        let (user, group) = (Uid::from_raw(facts.uid()), Gid::from_raw(facts.gid()));
        setgroups(&[])
            .and_then(|()| setgid(group))
            .and_then(|()| setuid(user))
            .map_err(|error| OpenError::Owner(facts.uid(), error.into()))?;
    }
    open_with(config, master)
}

fn open_with(config: &Config, master: MasterKey) -> Result<Opened, OpenError> {
    let store = SqliteStore::open(&config.data_dir)?;
    let records = SealedStore::open(Box::new(store), master)?;
    let authority = stored_authority(&records)?
        .ok_or_else(|| OpenError::NoAuthority(config.data_dir.clone()))?;
    let clock = Arc::new(SystemClock::default());
    let service =
        Service::new(records, authority.server_id(), clock).with_life_beat(config.life_interval);
    Ok(Opened {
        service: Arc::new(service),
        authority: Arc::new(authority),
    })
}

fn master_key(config: &Config) -> Result<MasterKey, MasterKeyError> {
    let credentials = std::env::var_os("CREDENTIALS_DIRECTORY").map(PathBuf::from);
    MasterKey::load(&config.master_key, credentials.as_deref())
}

/// The server certificate for `names`: the stored one, or a new one if the names changed or its end is near.
///
/// # Errors
/// `Record`, `Ca`, `Secret`.
pub fn server_identity(opened: &Opened, names: &[Address]) -> Result<Identity, OpenError> {
    let records = opened.service.records();
    if let Some(record) = records.secret(SERVER)? {
        let (certificate, key) = unpack(&record)?.ok_or(CaError::Damaged("server certificate"))?;
        let identity = Identity {
            certificate: certificate.into(),
            key,
        };
        if identity.serves(names) {
            return Ok(identity);
        }
        log::info!("making a new server certificate: the names changed, or its end is near");
    }
    let identity = opened.authority.server_identity(names)?;
    let record = pack(&identity.certificate, &identity.key)?;
    records.put_secret(SERVER, record.expose_secret())?;
    Ok(identity)
}

/// Makes master key, store and CA, or what is missing of them after an interruption. Nothing is overwritten.
///
/// # Errors
/// Any of [`OpenError`] but `NoAuthority`.
pub fn init(config: &Config) -> Result<(Opened, Steps), OpenError> {
    let mut steps = Steps::new();
    match MasterKey::create(&config.master_key) {
        Ok(_) => steps.push(format!(
            "made the master key '{}'",
            config.master_key.display()
        )),
        Err(MasterKeyError::Exists(path)) => {
            steps.push(format!("found the master key '{}'", path.display()));
        }
        Err(error) => return Err(error.into()),
    }
    let master = || MasterKey::load(&config.master_key, None);
    let directory = config.data_dir.display();
    let records = match SqliteStore::create(&config.data_dir) {
        Ok(store) => {
            let records = SealedStore::create(Box::new(store), master()?)?;
            steps.push(format!("made the store in '{directory}'"));
            records
        }
        Err(StoreError::Exists(_)) => {
            steps.push(format!("found a store in '{directory}'"));
            SealedStore::open(Box::new(SqliteStore::open(&config.data_dir)?), master()?)?
        }
        Err(error) => return Err(error.into()),
    };
    let authority = match stored_authority(&records)? {
        Some(authority) => {
            steps.push("found its CA".to_owned());
            authority
        }
        None => {
            let authority = Authority::create()?;
            let record = pack(authority.certificate(), authority.key())?;
            records.put_secret(AUTHORITY, record.expose_secret())?;
            steps.push("made the CA".to_owned());
            authority
        }
    };
    let id = authority.server_id();
    let opened = Opened {
        service: Arc::new(Service::new(records, id, Arc::new(SystemClock::default()))),
        authority: Arc::new(authority),
    };
    // Not with the CA: an earlier run may have ended between the two.
    if opened
        .service
        .records()
        .read::<Head>(audit::HEAD)?
        .is_none()
    {
        let who = users::name(Uid::current().as_raw());
        opened
            .service
            .record_setup(&who, &format!("key server {id}"))?;
    }
    opened.service.prepare_witness()?;
    server_identity(&opened, &config.names)?;
    steps.push("made the server certificate".to_owned());
    Ok((opened, steps))
}

fn stored_authority(records: &SealedStore) -> Result<Option<Authority>, OpenError> {
    let Some(record) = records.secret(AUTHORITY)? else {
        return Ok(None);
    };
    let (certificate, key) = unpack(&record)?.ok_or(CaError::Damaged("CA"))?;
    Ok(Some(Authority::load(certificate, key)?))
}

/// Length of the certificate (big-endian u32), certificate, key.
fn pack(certificate: &[u8], key: &SecretBytes) -> Result<SecretBytes, SecretError> {
    let length =
        u32::try_from(certificate.len()).map_err(|_| SecretError::TooLong(certificate.len()))?;
    let mut record = SecretBytes::with_capacity(4 + certificate.len() + key.len())?;
    record.push(&length.to_be_bytes())?;
    record.push(certificate)?;
    record.push(key.expose_secret())?;
    Ok(record)
}

fn unpack(record: &SecretBytes) -> Result<Option<(Vec<u8>, SecretBytes)>, SecretError> {
    let bytes = record.expose_secret();
    let Some((length, rest)) = bytes.split_first_chunk::<4>() else {
        return Ok(None);
    };
    let length = usize::try_from(u32::from_be_bytes(*length)).unwrap_or(usize::MAX);
    let Some((certificate, key)) = rest.split_at_checked(length) else {
        return Ok(None);
    };
    let mut secret = SecretBytes::with_capacity(key.len().max(1))?;
    secret.push(key)?;
    Ok(Some((certificate.to_vec(), secret)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_packed_pair_comes_back_and_damage_is_noticed() {
        let mut key = SecretBytes::with_capacity(3).unwrap();
        key.push(b"key").unwrap();
        let record = pack(b"certificate", &key).unwrap();
        let (certificate, unpacked) = unpack(&record).unwrap().unwrap();
        assert_eq!(certificate, b"certificate");
        assert_eq!(unpacked.expose_secret(), b"key");
        for cut in 0..4 + 11 {
            let mut short = SecretBytes::with_capacity(cut.max(1)).unwrap();
            short.push(&record.expose_secret()[..cut]).unwrap();
            assert!(unpack(&short).unwrap().is_none(), "{cut}");
        }
    }
}
