//! The ways in for machines without a registered key: joining, and being taken back.

use std::sync::Arc;

use latchkey_protocol::ClientName;
use latchkey_protocol::encoding::Bytes as FixedBytes;
use latchkey_protocol::wire::{
    JoinAnswer, JoinRequest, RejoinAnswer, RejoinOutcome, RejoinRequest, Text, Version,
};

use super::failure::Failure;
use super::{Api, Body, Peer, blocking, body, json};
use crate::ca::{ClientKey, RequestedKey};
use crate::records::{SessionState, UsedBy};
use crate::service::join::JoinKeys;
use crate::service::rejoin::Rejoining;

/// Seconds after which a machine asks again that waits to be taken back.
const RETRY_PENDING: u32 = 5;

/// The two keys that a machine asks certificates for; it holds both, or its requests would not be signed.
struct Keys {
    boot: RequestedKey,
    host: RequestedKey,
}

impl Keys {
    fn read(boot: &Text, host: &Text) -> Result<Self, Failure> {
        let key = |csr: &Text| {
            RequestedKey::from_csr(csr.as_str())
                .map_err(|error| Failure::Stranger(error.to_string()))
        };
        Ok(Self {
            boot: key(boot)?,
            host: key(host)?,
        })
    }
}

impl Api {
    /// Joining: no key counts, only the secret of the join token.
    pub(super) async fn join(self: Arc<Self>, peer: Peer, body: Body) -> Result<Vec<u8>, Failure> {
        let body = body.map_err(Failure::stranger_body)?;
        let request: JoinRequest = body::parse(&body).map_err(Failure::stranger_body)?;
        blocking(move || {
            let asked = Keys::read(&request.boot_csr, &request.host_csr)?;
            let keys = JoinKeys {
                secret: &request.secret,
                boot: FixedBytes(asked.boot.hash()),
                host: FixedBytes(asked.host.hash()),
            };
            let client = self
                .service
                .join(keys, peer.address.ip())
                .map_err(Failure::from)?;
            log::info!("client '{client}' joined from {}", peer.address.ip());
            let (boot_certificate, host_certificate) = self.certificates(&client, &asked)?;
            json(&JoinAnswer {
                version: Version::default(),
                boot_certificate,
                host_certificate,
            })
        })
        .await
    }

    /// Being taken back: no key counts, only knowing the client's volumes, and a person's word.
    pub(super) async fn rejoin(
        self: Arc<Self>,
        peer: Peer,
        body: Body,
    ) -> Result<Vec<u8>, Failure> {
        let body = body.map_err(Failure::stranger_body)?;
        let request: RejoinRequest = body::parse(&body).map_err(Failure::stranger_body)?;
        blocking(move || {
            let asked = Keys::read(&request.boot_csr, &request.host_csr)?;
            let keys = UsedBy {
                boot: FixedBytes(asked.boot.hash()),
                host: FixedBytes(asked.host.hash()),
            };
            let ip = peer.address.ip();
            let outcome = match self.service.rejoin(keys, &request, ip)? {
                Rejoining::Pending { number, code } => RejoinOutcome::Pending {
                    id: Text::cut(number.as_str()),
                    code: Text::cut(&code.shown()),
                    retry_after: RETRY_PENDING,
                },
                Rejoining::Joined(client) => {
                    log::info!("client '{client}' was taken back, from {ip}");
                    let (boot_certificate, host_certificate) =
                        self.certificates(&client, &asked)?;
                    RejoinOutcome::Joined {
                        client,
                        boot_certificate,
                        host_certificate,
                    }
                }
                Rejoining::Denied(state) => RejoinOutcome::Denied {
                    reason: Text::cut(match state {
                        SessionState::Exhausted => {
                            "too many wrong codes were typed for this request"
                        }
                        _ => "the request was denied by the administrator",
                    }),
                },
            };
            json(&RejoinAnswer {
                version: Version::default(),
                outcome,
            })
        })
        .await
    }

    /// Of the boot key and of the host key.
    fn certificates(&self, client: &ClientName, keys: &Keys) -> Result<(Text, Text), Failure> {
        let certificate = |role, key| {
            self.authority
                .client_certificate(client, role, key)
                .map(|issued| Text::cut(&issued.pem))
                .map_err(|error| Failure::server(&error))
        };
        Ok((
            certificate(ClientKey::Boot, &keys.boot)?,
            certificate(ClientKey::Host, &keys.host)?,
        ))
    }
}
