//! What can go wrong between us and a key server, in the operator's words.

use std::error::Error;
use std::io;
use std::time::Duration;

use latchkey_protocol::token::Address;
use rustls::CertificateError;

use super::verify::OtherServer;
use super::{CONNECT_LIMIT, LOOKUP_LIMIT, REQUEST_LIMIT};
use latchkey_protocol::wire::BODY_LIMIT;

/// What a key server says to whom it does not know.
const STRANGER: &str = "refused";

/// A request to one address failed.
#[derive(Debug, thiserror::Error)]
#[error("key server '{address}': {fault}")]
pub struct ClientError {
    /// Whom we asked.
    pub address: Address,
    /// What happened.
    pub fault: Fault,
}

/// What happened to a request; a variant per step.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// The name has no address.
    #[error("name not found ({0})")]
    Lookup(io::Error),
    /// The resolvers do not answer.
    #[error("the name was not found within {} s", LOOKUP_LIMIT.as_secs())]
    LookupTimeout,
    /// No TCP connection.
    #[error("{}", connect_words(.0))]
    Connect(io::Error),
    /// No connection, or a server that accepts and stays silent.
    #[error("no connection within {} s", CONNECT_LIMIT.as_secs())]
    ConnectTimeout,
    /// The certificate is of another CA than the pinned one.
    #[error("its certificate was issued by another CA than at joining; nothing was sent to it")]
    OtherCa,
    /// While joining: the CA that the token names is not in the chain.
    #[error(
        "another key server than the one that the join token is for answers there; nothing was sent to it"
    )]
    OtherServer,
    /// The certificate is of the right CA but not good.
    #[error("its certificate was refused ({}); nothing was sent to it", certificate_words(.0))]
    Certificate(CertificateError),
    /// No agreement on TLS 1.3 with X25519MLKEM768, or an alert.
    #[error("the TLS 1.3 handshake failed ({0})")]
    Tls(rustls::Error),
    /// The answer did not come, or not to its end, in time.
    #[error("no complete answer within {} s", REQUEST_LIMIT.as_secs())]
    Timeout,
    /// The connection broke before the answer was complete, or what came is no HTTP.
    #[error("the answer was cut off or is no HTTP ({0})")]
    Interrupted(String),
    /// The answer is larger than [`BODY_LIMIT`].
    #[error("the answer is larger than {BODY_LIMIT} bytes")]
    TooLarge,
    /// The answer is not JSON by its content type.
    #[error("the answer is not of the expected type but '{0}'")]
    ContentType(String),
    /// The answer is JSON that is not the one expected.
    #[error("the answer is not understood ({0})")]
    Parse(String),
    /// The answer tells of other volumes than those asked for.
    #[error("the answer is about other volumes than those asked for")]
    OtherVolumes,
    /// 403: we are not known there, or not for this.
    #[error("{}", refusal_words(.0))]
    Refused(String),
    /// 400, 409 and other refusals that come with a reason.
    #[error("it refused the request with status {status} ({reason})")]
    Rejected {
        /// The HTTP status.
        status: u16,
        /// The server's words.
        reason: String,
    },
    /// 429 or 503: it cannot answer now.
    #[error("it is busy or sealed (status {status}): {reason}")]
    Busy {
        /// The HTTP status.
        status: u16,
        /// How long it asks to wait; at most [`super::RETRY_AFTER_LIMIT`].
        retry_after: Option<Duration>,
        /// The server's words.
        reason: String,
    },
    /// Another 5xx.
    #[error("it has trouble (status {status}): {reason}")]
    ServerTrouble {
        /// The HTTP status.
        status: u16,
        /// The server's words.
        reason: String,
    },
    /// 3xx.
    #[error("it answered with a redirect (status {0}), which is never followed")]
    Redirected(u16),
    /// Any other status.
    #[error("it answered with the unexpected status {0}")]
    Unexpected(u16),
}

impl Fault {
    /// Whether another address of the same key server may do better; otherwise the key server has spoken.
    pub fn is_network_fault(&self) -> bool {
        !matches!(self, Self::Refused(_) | Self::Rejected { .. })
    }

    /// Whether the request was certainly not sent: nothing can have come of it.
    pub fn is_before_sending(&self) -> bool {
        matches!(
            self,
            Self::Lookup(_)
                | Self::LookupTimeout
                | Self::Connect(_)
                | Self::ConnectTimeout
                | Self::OtherCa
                | Self::OtherServer
                | Self::Certificate(_)
        )
    }

    /// Whether this is the one answer that everybody gets whom the key server does not know (any more).
    pub fn is_for_strangers(&self) -> bool {
        matches!(self, Self::Refused(reason) if reason == STRANGER)
    }

    /// Whether the volume's share was destroyed at the key server.
    pub fn is_destroyed(&self) -> bool {
        matches!(self, Self::Rejected { status: 410, .. })
    }

    /// How long the key server asks us to wait, if it did.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Busy { retry_after, .. } => *retry_after,
            _ => None,
        }
    }
}

impl From<reqwest::Error> for Fault {
    fn from(error: reqwest::Error) -> Self {
        // TLS errors come wrapped, in several depths; certificate trouble matters more than where it surfaced.
        if let Some(tls) = causes(&error).find_map(tls_error) {
            return Self::from_tls(tls.clone());
        }
        match (error.is_connect(), error.is_timeout()) {
            (true, true) => Self::ConnectTimeout,
            (false, true) => Self::Timeout,
            (true, false) => {
                match causes(&error).find_map(|cause| cause.downcast_ref::<io::Error>()) {
                    Some(io) if io.kind() == io::ErrorKind::TimedOut => Self::ConnectTimeout,
                    Some(io) => Self::Connect(io::Error::new(io.kind(), io.to_string())),
                    None => Self::Interrupted(innermost(&error)),
                }
            }
            (false, false) => Self::Interrupted(innermost(&error)),
        }
    }
}

impl Fault {
    fn from_tls(error: rustls::Error) -> Self {
        match error {
            rustls::Error::InvalidCertificate(
                CertificateError::UnknownIssuer | CertificateError::BadSignature,
            ) => Self::OtherCa,
            rustls::Error::InvalidCertificate(error) => Self::Certificate(error),
            rustls::Error::Other(other) if other.0.is::<OtherServer>() => Self::OtherServer,
            error => Self::Tls(error),
        }
    }
}

fn causes<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    std::iter::successors(Some(error), |error| (*error).source())
}

fn innermost(error: &(dyn Error + 'static)) -> String {
    causes(error)
        .last()
        .map_or_else(String::new, ToString::to_string)
}

/// An io::Error skips what it wraps in its `source`, so both are looked at.
fn tls_error<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a rustls::Error> {
    error.downcast_ref::<rustls::Error>().or_else(|| {
        let io = error.downcast_ref::<io::Error>()?;
        let inner: &(dyn Error + 'static) = io.get_ref()?;
        causes(inner).find_map(tls_error)
    })
}

fn refusal_words(reason: &str) -> String {
    if reason == STRANGER {
        "it refused the request without a reason: it does not know this machine, or no longer"
            .to_owned()
    } else {
        format!("it refused the request ({reason})")
    }
}

fn connect_words(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => "connection refused".to_owned(),
        io::ErrorKind::ConnectionReset => "the connection was reset".to_owned(),
        io::ErrorKind::NetworkUnreachable => "network unreachable".to_owned(),
        io::ErrorKind::HostUnreachable => "host unreachable".to_owned(),
        io::ErrorKind::UnexpectedEof => "the connection was closed during the handshake".to_owned(),
        _ => format!("no connection ({error})"),
    }
}

fn certificate_words(error: &CertificateError) -> String {
    match error {
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
            "it has ended".to_owned()
        }
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
            "it was issued for another host name or address".to_owned()
        }
        CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => {
            "it is not a server's".to_owned()
        }
        other => other.to_string(),
    }
}
