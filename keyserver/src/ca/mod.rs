//! The certificate authority of one key server: its CA, its own certificate, and its clients' certificates.
//!
//! Clients pin the CA by its fingerprint, so it lives for 100 years and is never renewed. The server knows clients
//! by their keys: a certificate is only the form in which a key travels in TLS, and revoking one is a matter of
//! the registry. All keys are Ed25519. Here is no I/O; the daemon keeps the keys sealed in the store.

mod request;

use std::net::IpAddr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use latchkey_protocol::token::Address;
use latchkey_protocol::{ClientName, ServerId};
use latchkey_secret::{SecretBytes, SecretError};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PKCS_ED25519, PublicKeyData, SanType, SerialNumber,
};
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use sha2::{Digest, Sha256};
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::FromDer;
use zeroize::Zeroize;

pub use self::request::{CsrError, RequestedKey};

const DAY: Duration = Duration::from_secs(24 * 60 * 60);
const CA_LIFE: Duration = Duration::from_secs(100 * 36525 * 24 * 60 * 60 / 100);
const SERVER_LIFE: Duration = Duration::from_secs(10 * 365 * 24 * 60 * 60);
/// A server certificate with less than this left is renewed at start.
const SERVER_RENEWAL: Duration = Duration::from_secs(365 * 24 * 60 * 60);
const BOOT_LIFE: Duration = CA_LIFE;
/// Life of a host certificate.
pub const HOST_LIFE: Duration = Duration::from_secs(90 * 24 * 60 * 60);
/// Clocks of two machines differ.
const BACKDATED: Duration = DAY;

const CA_NAME: &str = "latchkeyd CA";
/// Bytes of room for an Ed25519 private key in PKCS#8.
const KEY_LIMIT: usize = 128;
/// A CA certificate and its key.
#[derive(Debug)]
pub struct Authority {
    certificate: CertificateDer<'static>,
    key: SecretBytes,
}

/// A certificate with the key it is for.
#[derive(Debug)]
pub struct Identity {
    /// The certificate in DER.
    pub certificate: CertificateDer<'static>,
    /// Its private key, PKCS#8 in DER.
    pub key: SecretBytes,
}

/// Which of a client's two certificates.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClientKey {
    /// Lies in the initramfs, lives as long as the CA.
    Boot,
    /// Lies on the encrypted disk, short-lived.
    Host,
}

/// A certificate that was asked for by a valid request.
#[derive(Debug)]
pub struct Issued {
    /// SHA-256 of the SubjectPublicKeyInfo in DER: how the registry knows the key.
    pub key_hash: [u8; 32],
    /// The certificate in PEM.
    pub pem: String,
}

/// A certificate could not be made or used.
#[derive(Debug, thiserror::Error)]
pub enum CaError {
    /// No memory for a key.
    #[error("no memory for a private key")]
    Secret(#[from] SecretError),
    /// The library refused.
    #[error("failed to make a certificate")]
    Make(#[source] rcgen::Error),
    /// The stored CA or server certificate or key is damaged.
    #[error("the stored {0} is damaged\nrestore the data directory from a backup")]
    Damaged(&'static str),
    /// The clock stands before 1970.
    #[error("the clock stands before 1970")]
    Clock,
}

impl Authority {
    /// A new CA: self-signed, for 100 years, may sign only end-entity certificates.
    ///
    /// # Errors
    /// `Secret`, `Make`, `Clock`.
    pub fn create() -> Result<Self, CaError> {
        let mut pair = KeyPair::generate_for(&PKCS_ED25519).map_err(CaError::Make)?;
        let certificate = ca_params()?.self_signed(&pair).map_err(CaError::Make);
        let key = take_key(&mut pair);
        Ok(Self {
            certificate: certificate?.der().clone(),
            key: key?,
        })
    }

    /// The CA that was stored.
    ///
    /// # Errors
    /// `Damaged` if certificate and key do not belong together.
    pub fn load(certificate: Vec<u8>, key: SecretBytes) -> Result<Self, CaError> {
        let public = spki(&certificate).ok_or(CaError::Damaged("CA certificate"))?;
        let authority = Self {
            certificate: certificate.into(),
            key,
        };
        let owned = authority.with_key(|pair| Ok(pair.subject_public_key_info()))?;
        if owned == public {
            Ok(authority)
        } else {
            Err(CaError::Damaged("CA key"))
        }
    }

    /// The certificate in DER.
    pub fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    /// The private key, PKCS#8 in DER.
    pub fn key(&self) -> &SecretBytes {
        &self.key
    }

    /// What clients know this key server by.
    pub fn server_id(&self) -> ServerId {
        ServerId::of_ca(&self.certificate)
    }

    /// A new server certificate for the hosts in `names`, for ten years.
    ///
    /// # Errors
    /// `Secret`, `Make`, `Clock`, `Damaged`.
    pub fn server_identity(&self, names: &[Address]) -> Result<Identity, CaError> {
        let mut params = params(SERVER_LIFE)?;
        params
            .distinguished_name
            .push(DnType::CommonName, "latchkeyd");
        params.subject_alt_names = hosts(names)
            .into_iter()
            .map(Host::into_san)
            .collect::<Result<_, _>>()?;
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let mut pair = KeyPair::generate_for(&PKCS_ED25519).map_err(CaError::Make)?;
        let certificate = self.sign(&params, &pair);
        let key = take_key(&mut pair);
        Ok(Identity {
            certificate: certificate?,
            key: key?,
        })
    }

    /// The certificate of `client` for a key that was asked for.
    ///
    /// # Errors
    /// `Secret`, `Make`, `Clock`, `Damaged`.
    pub fn client_certificate(
        &self,
        client: &ClientName,
        role: ClientKey,
        key: &RequestedKey,
    ) -> Result<Issued, CaError> {
        let mut params = params(match role {
            ClientKey::Boot => BOOT_LIFE,
            ClientKey::Host => HOST_LIFE,
        })?;
        params
            .distinguished_name
            .push(DnType::CommonName, client.as_str());
        params.distinguished_name.push(
            DnType::OrganizationalUnitName,
            match role {
                ClientKey::Boot => "boot",
                ClientKey::Host => "host",
            },
        );
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        let certificate = self.sign(&params, key)?;
        Ok(Issued {
            key_hash: key.hash(),
            pem: to_pem(&certificate),
        })
    }

    fn sign(
        &self,
        params: &CertificateParams,
        public: &impl PublicKeyData,
    ) -> Result<CertificateDer<'static>, CaError> {
        let issuer_params = ca_params()?;
        self.with_key(|pair| {
            let issuer = Issuer::from_params(&issuer_params, pair);
            let certificate = params.signed_by(public, &issuer).map_err(CaError::Make)?;
            Ok(certificate.der().clone())
        })
    }

    /// Lends the key for one use; the copy in rcgen's own memory is wiped afterwards.
    fn with_key<T>(&self, work: impl FnOnce(&KeyPair) -> Result<T, CaError>) -> Result<T, CaError> {
        let der = PrivatePkcs8KeyDer::from(self.key.expose_secret());
        let mut pair = KeyPair::from_pkcs8_der_and_sign_algo(&der, &PKCS_ED25519)
            .map_err(|_| CaError::Damaged("CA key"))?;
        let result = work(&pair);
        pair.zeroize();
        result
    }
}

impl Identity {
    /// Whether this server certificate names exactly the hosts in `names` and has more than a year left.
    pub fn serves(&self, names: &[Address]) -> bool {
        let Ok((_, certificate)) =
            x509_parser::certificate::X509Certificate::from_der(&self.certificate)
        else {
            return false;
        };
        let Ok(Some(alternatives)) = certificate.subject_alternative_name() else {
            return false;
        };
        let mut wanted: Vec<_> = hosts(names).iter().map(Host::encoded).collect();
        let mut named: Vec<_> = alternatives
            .value
            .general_names
            .iter()
            .map(|name| match name {
                GeneralName::DNSName(name) => name.as_bytes().to_vec(),
                GeneralName::IPAddress(bytes) => bytes.to_vec(),
                _ => Vec::new(),
            })
            .collect();
        wanted.sort();
        named.sort();
        let end = certificate.validity().not_after.timestamp();
        let renewal = now().map_or(i64::MAX, |now| {
            i64::try_from((now + SERVER_RENEWAL).as_secs()).unwrap_or(i64::MAX)
        });
        wanted == named && end > renewal
    }
}

/// SHA-256 of the SubjectPublicKeyInfo of a certificate in DER; `None` if it is not a certificate.
pub fn key_hash(certificate: &[u8]) -> Option<[u8; 32]> {
    spki(certificate).map(|spki| Sha256::digest(spki).into())
}

/// A certificate in PEM.
pub fn to_pem(certificate: &CertificateDer<'_>) -> String {
    use base64::Engine;
    let body = base64::engine::general_purpose::STANDARD.encode(certificate);
    let lines: Vec<&str> = body
        .as_bytes()
        .chunks(64)
        .map(|line| std::str::from_utf8(line).expect("base64 is ASCII"))
        .collect();
    format!(
        "-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n",
        lines.join("\n")
    )
}

fn spki(certificate: &[u8]) -> Option<Vec<u8>> {
    let (rest, parsed) = x509_parser::certificate::X509Certificate::from_der(certificate).ok()?;
    rest.is_empty()
        .then(|| parsed.tbs_certificate.subject_pki.raw.to_vec())
}

/// Moves a fresh private key into secret memory.
fn take_key(pair: &mut KeyPair) -> Result<SecretBytes, CaError> {
    let mut key = SecretBytes::with_capacity(KEY_LIMIT)?;
    key.push(pair.serialized_der())?;
    pair.zeroize();
    Ok(key)
}

fn ca_params() -> Result<CertificateParams, CaError> {
    let mut params = params(CA_LIFE)?;
    params.distinguished_name.push(DnType::CommonName, CA_NAME);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.use_authority_key_identifier_extension = false;
    Ok(params)
}

fn params(life: Duration) -> Result<CertificateParams, CaError> {
    let now = now()?;
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    let mut params = CertificateParams::default();
    params.not_before = epoch + now.saturating_sub(BACKDATED);
    params.not_after = epoch + now + life;
    // Its own, also where a key is certified twice in one second (RFC 5280, 4.1.2.2); positive, in 16 bytes.
    let mut serial = [0u8; 16];
    getrandom::fill(&mut serial).map_err(SecretError::Random)?;
    serial[0] = serial[0] & 0x3f | 0x40;
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.use_authority_key_identifier_extension = true;
    Ok(params)
}

fn now() -> Result<Duration, CaError> {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_err(|_| CaError::Clock)
}

/// A name that a certificate can carry.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Host {
    Ip(IpAddr),
    Dns(String),
}

impl Host {
    fn into_san(self) -> Result<SanType, CaError> {
        Ok(match self {
            Self::Ip(address) => SanType::IpAddress(address),
            Self::Dns(name) => SanType::DnsName(name.try_into().map_err(CaError::Make)?),
        })
    }

    fn encoded(&self) -> Vec<u8> {
        match self {
            Self::Ip(IpAddr::V4(address)) => address.octets().to_vec(),
            Self::Ip(IpAddr::V6(address)) => address.octets().to_vec(),
            Self::Dns(name) => name.as_bytes().to_vec(),
        }
    }
}

/// The hosts of `names`, each once.
fn hosts(names: &[Address]) -> Vec<Host> {
    let mut hosts: Vec<_> = names
        .iter()
        .map(|name| match name.host().parse() {
            Ok(address) => Host::Ip(address),
            Err(_) => Host::Dns(name.host().to_owned()),
        })
        .collect();
    hosts.sort();
    hosts.dedup();
    hosts
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(list: &[&str]) -> Vec<Address> {
        list.iter().map(|name| name.parse().unwrap()).collect()
    }

    fn csr(pair: &KeyPair) -> String {
        CertificateParams::default()
            .serialize_request(pair)
            .unwrap()
            .pem()
            .unwrap()
    }

    #[test]
    fn a_stored_authority_loads_and_keeps_its_fingerprint() {
        let made = Authority::create().unwrap();
        let mut key = SecretBytes::with_capacity(KEY_LIMIT).unwrap();
        key.push(made.key().expose_secret()).unwrap();
        let loaded = Authority::load(made.certificate().to_vec(), key).unwrap();
        assert_eq!(loaded.server_id(), made.server_id());
    }

    #[test]
    fn a_key_of_another_authority_is_refused() {
        let one = Authority::create().unwrap();
        let other = Authority::create().unwrap();
        let error = Authority::load(one.certificate().to_vec(), other.key).unwrap_err();
        assert!(matches!(error, CaError::Damaged("CA key")), "{error}");
    }

    #[test]
    fn a_server_certificate_serves_its_names_only() {
        let authority = Authority::create().unwrap();
        let identity = authority
            .server_identity(&names(&["keys.example.org", "10.0.2.2:1", "[2001:db8::1]"]))
            .unwrap();
        for (list, expected) in [
            (
                vec!["[2001:db8::1]:9", "10.0.2.2", "keys.example.org"],
                true,
            ),
            (vec!["keys.example.org", "10.0.2.2"], false),
            (vec!["keys.example.org", "10.0.2.3", "[2001:db8::1]"], false),
            (
                vec!["keys.example.org", "10.0.2.2", "[2001:db8::1]", "b"],
                false,
            ),
        ] {
            assert_eq!(identity.serves(&names(&list)), expected, "{list:?}");
        }
    }

    #[test]
    fn a_key_that_is_certified_twice_has_two_serial_numbers() {
        let authority = Authority::create().unwrap();
        let pair = KeyPair::generate_for(&PKCS_ED25519).unwrap();
        let key = RequestedKey::from_csr(&csr(&pair)).unwrap();
        let serial = || {
            let client = "web-1".parse().unwrap();
            let issued = authority.client_certificate(&client, ClientKey::Host, &key);
            let (_, pem) =
                x509_parser::pem::parse_x509_pem(issued.unwrap().pem.as_bytes()).unwrap();
            let certificate = pem.parse_x509().unwrap();
            certificate.raw_serial().to_vec()
        };
        let (one, other) = (serial(), serial());
        assert_ne!(one, other);
        // Positive, and of the length that was drawn (RFC 5280, 4.1.2.2).
        assert!(one[0] & 0x80 == 0 && one.len() == 16, "{one:?}");
    }

    #[test]
    fn the_issued_certificate_holds_the_key_that_was_asked_for() {
        let authority = Authority::create().unwrap();
        let pair = KeyPair::generate_for(&PKCS_ED25519).unwrap();
        let key = RequestedKey::from_csr(&csr(&pair)).unwrap();
        let issued = authority
            .client_certificate(&"web-1".parse().unwrap(), ClientKey::Boot, &key)
            .unwrap();
        let (_, pem) = x509_parser::pem::parse_x509_pem(issued.pem.as_bytes()).unwrap();
        assert_eq!(key_hash(&pem.contents), Some(issued.key_hash));
        let own: [u8; 32] = Sha256::digest(pair.subject_public_key_info()).into();
        assert_eq!(issued.key_hash, own);
    }
}
