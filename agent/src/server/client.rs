//! One HTTPS request to one address, with limits on everything that comes back.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use latchkey_protocol::token::Address;
use latchkey_protocol::wire::{
    BODY_LIMIT, BootReport, Done, ErrorAnswer, JOIN, JoinAnswer, JoinRequest, OPEN, PROOF, REJOIN,
    RELEASE, REPORT, ROTATE, ROTATE_END, RejoinAnswer, RejoinRequest, ReleaseAnswer,
    ReleaseRequest, RotationEnd, RotationRequest, STATUS, StatusAnswer, VOLUMES, VolumeAnswer,
    VolumeRequest,
};
use latchkey_protocol::{ServerId, VolumeId};
use reqwest::header::{CONTENT_TYPE, RETRY_AFTER};
use reqwest::{Method, Response, StatusCode};
use rustls::client::danger::ServerCertVerifier;
use rustls::client::{ResolvesClientCert, Resumption};
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::CertificateDer;
use rustls::sign::SingleCertAndKey;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::identity::{Identity, IdentityError, certificate_from_pem};
use super::verify::{CertificateTime, FingerprintVerifier, PinnedVerifier};
use super::{CONNECT_LIMIT, ClientError, Fault, LOOKUP_LIMIT, REQUEST_LIMIT, RETRY_AFTER_LIMIT};
use crate::failure::printable;

const JSON: &str = "application/json";

/// Speaks to the key servers of one CA with one identity. Made once, used for every request.
#[derive(Debug, Clone)]
pub struct Client {
    pub(super) http: reqwest::Client,
    pub(super) names: Arc<Names>,
}

/// A client could not be made of the files it needs.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// `ca.pem` holds no usable certificate.
    #[error("the key server's CA certificate is not usable")]
    Ca(#[source] rustls::Error),
    /// `ca.pem` or the identity is not what it should be.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The TLS or HTTP library refused our settings.
    #[error("failed to set up the TLS client")]
    Tls(#[source] rustls::Error),
    /// As above.
    #[error("failed to set up the HTTP client")]
    Http(#[source] reqwest::Error),
}

impl Client {
    /// A client that trusts the CA in `ca` (PEM) alone and presents `identity`.
    ///
    /// `time` is when the image was built (at boot) or when the machine joined (later).
    ///
    /// # Errors
    /// A variant of [`SetupError`] for what is wrong.
    pub fn new(ca: &[u8], identity: &Identity, time: CertificateTime) -> Result<Self, SetupError> {
        let provider = provider();
        let ca = certificate_from_pem(ca)?;
        let verifier = PinnedVerifier::new(&ca, time, &provider).map_err(SetupError::Ca)?;
        Self::with(provider, Arc::new(verifier), Some(identity))
    }

    fn with(
        provider: Arc<CryptoProvider>,
        verifier: Arc<dyn ServerCertVerifier>,
        identity: Option<&Identity>,
    ) -> Result<Self, SetupError> {
        let builder = rustls::ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(SetupError::Tls)?
            .dangerous()
            .with_custom_certificate_verifier(verifier);
        let mut tls = match identity {
            Some(identity) => {
                let resolver: Arc<dyn ResolvesClientCert> =
                    Arc::new(SingleCertAndKey::from(identity.0.clone()));
                builder.with_client_cert_resolver(resolver)
            }
            None => builder.with_no_client_auth(),
        };
        tls.alpn_protocols = vec![b"http/1.1".to_vec()];
        tls.resumption = Resumption::disabled();
        tls.enable_early_data = false;
        let names = Arc::new(Names::default());
        // Deliberately absent: proxies (also those of the environment), redirects, retries, cookies and
        // compression; the last two are not even compiled in.
        let http = reqwest::Client::builder()
            .tls_backend_preconfigured(tls)
            .https_only(true)
            .http1_only()
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .retry(reqwest::retry::never())
            .referer(false)
            .pool_max_idle_per_host(0)
            .connect_timeout(CONNECT_LIMIT)
            .timeout(REQUEST_LIMIT)
            .dns_resolver(names.clone())
            .build()
            .map_err(SetupError::Http)?;
        Ok(Self { http, names })
    }

    /// Asks for the shares of a boot session (boot key). The verdicts come in the order of the volumes asked for.
    ///
    /// # Errors
    /// [`ClientError`] with the step that failed.
    pub async fn release(
        &self,
        address: &Address,
        request: &ReleaseRequest,
    ) -> Result<ReleaseAnswer, ClientError> {
        self.shares(address, RELEASE, request).await
    }

    /// Fetches shares back as a proof (host key); audited as such, never counted as a boot.
    ///
    /// # Errors
    /// [`ClientError`] with the step that failed.
    pub async fn proof(
        &self,
        address: &Address,
        request: &ReleaseRequest,
    ) -> Result<ReleaseAnswer, ClientError> {
        self.shares(address, PROOF, request).await
    }

    /// Asks for the share of a data volume that the running system opens (host key).
    ///
    /// # Errors
    /// [`ClientError`] with the step that failed.
    pub async fn open(
        &self,
        address: &Address,
        request: &ReleaseRequest,
    ) -> Result<ReleaseAnswer, ClientError> {
        self.shares(address, OPEN, request).await
    }

    /// Registers a volume (host key).
    ///
    /// # Errors
    /// [`ClientError`] with the step that failed.
    pub async fn register(
        &self,
        address: &Address,
        request: &VolumeRequest,
    ) -> Result<VolumeAnswer, ClientError> {
        self.call(address, Method::POST, VOLUMES, Some(request))
            .await
    }

    /// Asks for the share of the next generation (host key).
    ///
    /// # Errors
    /// [`ClientError`] with the step that failed.
    pub async fn rotate(
        &self,
        address: &Address,
        request: &RotationRequest,
    ) -> Result<VolumeAnswer, ClientError> {
        self.call(address, Method::POST, ROTATE, Some(request))
            .await
    }

    /// Says which of two generations stays (host key).
    ///
    /// # Errors
    /// [`ClientError`] with the step that failed.
    pub async fn end_rotation(
        &self,
        address: &Address,
        end: &RotationEnd,
    ) -> Result<Done, ClientError> {
        self.call(address, Method::POST, ROTATE_END, Some(end))
            .await
    }

    /// Tells that a volume is no longer bound (host key).
    ///
    /// # Errors
    /// [`ClientError`] with the step that failed.
    pub async fn retire(&self, address: &Address, volume: VolumeId) -> Result<Done, ClientError> {
        let path = format!("{VOLUMES}/{volume}");
        self.call::<(), _>(address, Method::DELETE, &path, None)
            .await
    }

    /// Sends the report of a boot (host key).
    ///
    /// # Errors
    /// [`ClientError`] with the step that failed.
    pub async fn report(
        &self,
        address: &Address,
        report: &BootReport,
    ) -> Result<Done, ClientError> {
        self.call(address, Method::POST, REPORT, Some(report)).await
    }

    /// What the key server holds of this client (host key).
    ///
    /// # Errors
    /// [`ClientError`] with the step that failed.
    pub async fn status(&self, address: &Address) -> Result<StatusAnswer, ClientError> {
        self.call::<(), _>(address, Method::GET, STATUS, None).await
    }

    async fn shares(
        &self,
        address: &Address,
        path: &str,
        request: &ReleaseRequest,
    ) -> Result<ReleaseAnswer, ClientError> {
        let answer: ReleaseAnswer = self
            .call(address, Method::POST, path, Some(request))
            .await?;
        let asked = request.volumes.iter().map(|wanted| wanted.volume);
        if asked.eq(answer.verdicts.iter().map(|verdict| verdict.volume)) {
            Ok(answer)
        } else {
            Err(other_volumes(address))
        }
    }

    pub(super) async fn call<Q: Serialize, A: DeserializeOwned>(
        &self,
        address: &Address,
        method: Method,
        path: &str,
        request: Option<&Q>,
    ) -> Result<A, ClientError> {
        self.exchange(address, method, path, request)
            .await
            .map_err(|fault| ClientError {
                address: address.clone(),
                fault,
            })
    }

    async fn exchange<Q: Serialize, A: DeserializeOwned>(
        &self,
        address: &Address,
        method: Method,
        path: &str,
        request: Option<&Q>,
    ) -> Result<A, Fault> {
        self.names.look_up(address).await?;
        let mut builder = self
            .http
            .request(method, format!("https://{address}{path}"));
        if let Some(request) = request {
            let body = serde_json::to_vec(request)
                .map_err(|error| Fault::Parse(format!("our own request: {error}")))?;
            builder = builder.header(CONTENT_TYPE, JSON).body(body);
        }
        let mut response = builder.send().await?;
        if response.status() != StatusCode::OK {
            return Err(refusal(response).await);
        }
        check_content_type(&response, JSON)?;
        let body = read_body(&mut response).await?;
        serde_json::from_slice(&body).map_err(|error| Fault::Parse(printable(&error.to_string())))
    }
}

/// Joins, or is taken back: trades a token's secret or a person's word for certificates, before there is an identity or a CA.
#[derive(Debug)]
pub struct Join {
    client: Client,
    verifier: Arc<FingerprintVerifier>,
}

impl Join {
    /// A client that accepts only the key server named `server`, by its CA's fingerprint.
    ///
    /// # Errors
    /// A variant of [`SetupError`].
    pub fn new(server: ServerId, time: CertificateTime) -> Result<Self, SetupError> {
        let provider = provider();
        let verifier = Arc::new(FingerprintVerifier::new(server, time, &provider));
        Ok(Self {
            client: Client::with(provider, verifier.clone(), None)?,
            verifier,
        })
    }

    /// Sends `request` to `address`. The second value is the key server's CA certificate.
    ///
    /// # Errors
    /// [`ClientError`] with the step that failed; `OtherServer` if another key server answers there: then
    /// nothing was sent to it.
    pub async fn join(
        &self,
        address: &Address,
        request: &JoinRequest,
    ) -> Result<(JoinAnswer, CertificateDer<'static>), ClientError> {
        self.post(address, JOIN, request).await
    }

    /// Asks `address` to take this machine back. The second value is the key server's CA certificate.
    ///
    /// # Errors
    /// As [`Join::join`].
    pub async fn rejoin(
        &self,
        address: &Address,
        request: &RejoinRequest,
    ) -> Result<(RejoinAnswer, CertificateDer<'static>), ClientError> {
        self.post(address, REJOIN, request).await
    }

    async fn post<Q: Serialize, A: DeserializeOwned>(
        &self,
        address: &Address,
        path: &str,
        request: &Q,
    ) -> Result<(A, CertificateDer<'static>), ClientError> {
        let answer = self
            .client
            .call(address, Method::POST, path, Some(request))
            .await?;
        let ca = self
            .verifier
            .ca()
            .expect("an answer comes only over a handshake that the verifier accepted")
            .clone();
        Ok((answer, ca))
    }
}

/// The one set of algorithms that both ends speak.
fn provider() -> Arc<CryptoProvider> {
    Arc::new(CryptoProvider {
        kx_groups: vec![aws_lc_rs::kx_group::X25519MLKEM768],
        ..aws_lc_rs::default_provider()
    })
}

pub(super) fn other_volumes(address: &Address) -> ClientError {
    ClientError {
        address: address.clone(),
        fault: Fault::OtherVolumes,
    }
}

/// The fault that an answer other than 200 stands for.
pub(super) async fn refusal(mut response: Response) -> Fault {
    let status = response.status();
    let code = status.as_u16();
    if status.is_redirection() {
        return Fault::Redirected(code);
    }
    let retry_after = retry_after(&response);
    let reason = reason(&mut response).await;
    match code {
        403 => Fault::Refused(reason),
        429 | 503 => Fault::Busy {
            status: code,
            retry_after,
            reason,
        },
        400..=499 => Fault::Rejected {
            status: code,
            reason,
        },
        500..=599 => Fault::ServerTrouble {
            status: code,
            reason,
        },
        _ => Fault::Unexpected(code),
    }
}

/// The server's words; a failure to read them must not hide the status.
async fn reason(response: &mut Response) -> String {
    let body = match check_content_type(response, JSON) {
        Ok(()) => read_body(response).await.unwrap_or_default(),
        Err(_) => Vec::new(),
    };
    serde_json::from_slice::<ErrorAnswer>(&body).map_or_else(
        |_| "no reason given".to_owned(),
        |answer| printable(answer.error.as_str()),
    )
}

/// Seconds only: a date would need a clock.
fn retry_after(response: &Response) -> Option<Duration> {
    let text = response.headers().get(RETRY_AFTER)?.to_str().ok()?;
    parse_retry_after(text)
}

fn parse_retry_after(text: &str) -> Option<Duration> {
    let digits = !text.is_empty() && text.bytes().all(|digit| digit.is_ascii_digit());
    let seconds = digits.then(|| text.parse().unwrap_or(u64::MAX))?;
    Some(Duration::from_secs(seconds).min(RETRY_AFTER_LIMIT))
}

pub(super) fn check_content_type(response: &Response, wanted: &str) -> Result<(), Fault> {
    let found = response
        .headers()
        .get(CONTENT_TYPE)
        .map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned())
        .unwrap_or_default();
    let kind = found.split(';').next().unwrap_or_default().trim();
    if kind.eq_ignore_ascii_case(wanted) {
        Ok(())
    } else {
        Err(Fault::ContentType(printable(&found)))
    }
}

async fn read_body(response: &mut Response) -> Result<Vec<u8>, Fault> {
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await? {
        if body.len() + chunk.len() > BODY_LIMIT {
            return Err(Fault::TooLarge);
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

/// Host names and their addresses, looked up before the connection so that a slow resolver has a limit and an
/// error of its own.
#[derive(Debug, Default)]
pub(super) struct Names(Mutex<BTreeMap<String, Vec<SocketAddr>>>);

impl Names {
    pub(super) async fn look_up(&self, address: &Address) -> Result<(), Fault> {
        let host = address.host();
        if host.parse::<std::net::IpAddr>().is_ok() {
            return Ok(());
        }
        let found = tokio::time::timeout(
            LOOKUP_LIMIT,
            tokio::net::lookup_host((host, address.port())),
        )
        .await
        .map_err(|_| Fault::LookupTimeout)?
        .map_err(Fault::Lookup)?;
        self.lock().insert(host.to_owned(), found.collect());
        Ok(())
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, Vec<SocketAddr>>> {
        self.0
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

impl reqwest::dns::Resolve for Names {
    fn resolve(&self, name: reqwest::dns::Name) -> reqwest::dns::Resolving {
        let found = self.lock().get(name.as_str()).cloned().unwrap_or_default();
        Box::pin(async move { Ok(Box::new(found.into_iter()) as reqwest::dns::Addrs) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retry_after_is_seconds_within_the_limit_or_nothing() {
        for (text, expected) in [
            ("0", Some(0)),
            ("7", Some(7)),
            ("1000000000", Some(300)),
            ("99999999999999999999999999", Some(300)),
            ("-1", None),
            ("+1", None),
            ("", None),
            ("1.5", None),
            ("Fri, 20 Nov 2026 10:00:00 GMT", None),
            ("soon", None),
        ] {
            assert_eq!(
                parse_retry_after(text),
                expected.map(Duration::from_secs),
                "{text:?}"
            );
        }
    }
}
