//! A machine as a key server sees it: two keys, and what it asks for with them.

use std::net::SocketAddr;
use std::sync::Arc;

use latchkey_protocol::encoding::Bytes;
use latchkey_protocol::release::{BootKeyPair, Purpose, ReleaseContext};
use latchkey_protocol::token::JoinToken;
use latchkey_protocol::wire::{
    self, BootFacts, JoinAnswer, JoinRequest, ReleaseAnswer, ReleaseRequest, Text, Verdict,
    Version, VolumeAnswer, VolumeRequest, WantedVolume,
};
use latchkey_protocol::{ClientName, Generation, RequestId, ServerId, Share, VolumeId};
use rcgen::{CertificateParams, KeyPair, PKCS_ED25519};

use crate::server::Server;
use crate::wire::{Identity, Reply, request};

/// A machine that has joined.
pub struct Machine {
    pub address: SocketAddr,
    pub server: ServerId,
    pub name: ClientName,
    pub boot: Identity,
    pub host: Identity,
}

/// Two fresh key pairs.
#[derive(Clone)]
pub struct Keys {
    pub boot: Arc<KeyPair>,
    pub host: Arc<KeyPair>,
}

/// One boot.
pub struct Boot {
    pub id: RequestId,
    pub pair: BootKeyPair,
}

impl Keys {
    pub fn fresh() -> Self {
        let key = || Arc::new(KeyPair::generate_for(&PKCS_ED25519).unwrap());
        Self {
            boot: key(),
            host: key(),
        }
    }

    /// Shows a join token.
    #[track_caller]
    pub fn join(&self, address: SocketAddr, token: &str) -> Reply {
        let token: JoinToken = token.parse().unwrap();
        let body = serde_json::to_vec(&JoinRequest {
            version: Version::default(),
            secret: token.secret,
            boot_csr: csr(&self.boot),
            host_csr: csr(&self.host),
        });
        request(address, None, "POST", wire::JOIN, &body.unwrap())
    }
}

impl Machine {
    /// Joins a server.
    #[track_caller]
    pub fn join(server: &Server, name: &str) -> Self {
        Self::with_token(server.address, &server.invite(name))
    }

    /// Joins with a token.
    #[track_caller]
    pub fn with_token(address: SocketAddr, line: &str) -> Self {
        let token: JoinToken = line.parse().unwrap();
        let keys = Keys::fresh();
        let reply = keys.join(address, line);
        assert_eq!(reply.status, 200, "{}", reply.body);
        let answer: JoinAnswer = serde_json::from_str(&reply.body).unwrap();
        let identity = |key, pem: &Text| Identity {
            key,
            certificate: certificate(pem.as_str()),
        };
        Self {
            address,
            server: token.server,
            name: token.client,
            boot: identity(keys.boot, &answer.boot_certificate),
            host: identity(keys.host, &answer.host_certificate),
        }
    }

    /// Registers a new volume; its id and its share.
    #[track_caller]
    pub fn register(&self, label: &str) -> (VolumeId, Share) {
        let volume = VolumeId::random().unwrap();
        let boot = Boot::begin();
        let reply = self.try_register(&boot, volume, label);
        assert_eq!(reply.status, 200, "{}", reply.body);
        let answer: VolumeAnswer = serde_json::from_str(&reply.body).unwrap();
        assert_eq!(answer.generation, Generation::FIRST);
        let share = boot
            .pair
            .open(
                &answer.sealed,
                self.context(Purpose::Registration, &boot, &volume),
            )
            .unwrap();
        (volume, share)
    }

    /// Asks to register a volume.
    #[track_caller]
    pub fn try_register(&self, boot: &Boot, volume: VolumeId, label: &str) -> Reply {
        let body = serde_json::to_vec(&VolumeRequest {
            version: Version::default(),
            request: boot.id,
            ephemeral_key: boot.pair.public(),
            volume,
            label: Text::cut(label),
            opened_by: wire::OpenedBy::BootKey,
        });
        request(
            self.address,
            Some(&self.host),
            "POST",
            wire::VOLUMES,
            &body.unwrap(),
        )
    }

    /// What the server says to a boot that wants `volume`.
    #[track_caller]
    pub fn ask(&self, boot: &Boot, volume: VolumeId) -> Verdict {
        let reply = request(
            self.address,
            Some(&self.boot),
            "POST",
            wire::RELEASE,
            &boot.wants(&[volume]),
        );
        verdict(&reply)
    }

    /// The share that a boot gets.
    #[track_caller]
    pub fn released(&self, boot: &Boot, volume: VolumeId) -> Share {
        self.open(Purpose::Release, boot, volume, self.ask(boot, volume))
    }

    /// The share that a proof gets.
    #[track_caller]
    pub fn proved(&self, volume: VolumeId) -> Share {
        let boot = Boot::begin();
        let reply = request(
            self.address,
            Some(&self.host),
            "POST",
            wire::PROOF,
            &boot.wants(&[volume]),
        );
        self.open(Purpose::Proof, &boot, volume, verdict(&reply))
    }

    #[track_caller]
    fn open(&self, purpose: Purpose, boot: &Boot, volume: VolumeId, verdict: Verdict) -> Share {
        let Verdict::Released { sealed, .. } = verdict else {
            panic!("not released: {verdict:?}");
        };
        let context = self.context(purpose, boot, &volume);
        boot.pair.open(&sealed, context).unwrap()
    }

    fn context<'a>(
        &'a self,
        purpose: Purpose,
        boot: &'a Boot,
        volume: &'a VolumeId,
    ) -> ReleaseContext<'a> {
        ReleaseContext {
            purpose,
            server: &self.server,
            client: &self.name,
            request: &boot.id,
            volume,
            generation: Generation::FIRST,
        }
    }
}

impl Boot {
    pub fn begin() -> Self {
        Self {
            id: RequestId::random().unwrap(),
            pair: BootKeyPair::generate().unwrap(),
        }
    }

    /// The body of a request for these volumes.
    pub fn wants(&self, volumes: &[VolumeId]) -> Vec<u8> {
        let wanted = |volume: &VolumeId| WantedVolume {
            volume: *volume,
            generation: Generation::FIRST,
        };
        serde_json::to_vec(&ReleaseRequest {
            version: Version::default(),
            request: self.id,
            ephemeral_key: self.pair.public(),
            volumes: volumes.iter().map(wanted).collect(),
            facts: BootFacts {
                kernel: Text::cut("6.1.0-test"),
                command_line: Bytes([7; 32]),
                image_built: 1,
                image: None,
                header: None,
            },
            tickets: Vec::new(),
        })
        .unwrap()
    }
}

/// The only verdict of an answer.
#[track_caller]
pub fn verdict(reply: &Reply) -> Verdict {
    assert_eq!(reply.status, 200, "{}", reply.body);
    let mut answer: ReleaseAnswer = serde_json::from_str(&reply.body).unwrap();
    assert_eq!(answer.verdicts.len(), 1);
    answer.verdicts.remove(0).verdict
}

pub fn csr(key: &KeyPair) -> Text {
    // The name in it counts for nothing.
    let request = CertificateParams::new(["somebody-else".to_owned()])
        .unwrap()
        .serialize_request(key)
        .unwrap();
    Text::cut(&request.pem().unwrap())
}

fn certificate(pem: &str) -> rustls::pki_types::CertificateDer<'static> {
    let (_, pem) = x509_parser::pem::parse_x509_pem(pem.as_bytes()).unwrap();
    pem.contents.into()
}
