//! Machines that joined a running key server, each with one volume, and their boots.

use std::net::SocketAddr;
use std::sync::Arc;

use latchkey_protocol::encoding::Bytes;
use latchkey_protocol::release::{BootKeyPair, Purpose, ReleaseContext};
use latchkey_protocol::wire::{
    BootFacts, RELEASE, ReleaseAnswer, ReleaseRequest, Text, Verdict, Version, WantedVolume,
};
use latchkey_protocol::{ClientName, Generation, RequestId, ServerId, Share, VolumeId};
use latchkeyd::ca::{Authority, ClientKey, RequestedKey};
use rcgen::{CertificateParams, KeyPair, PKCS_ED25519};
use rustls::ClientConfig;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

use crate::Failure;
use crate::keyserver::{Home, Registrar, Server};
use crate::wire;

/// A key server that runs, and machines that joined it.
pub struct Fleet {
    server: Server,
    machines: Machines,
}

/// Machines that joined a key server. They are the first of its clients.
pub struct Machines {
    server: ServerId,
    list: Vec<Machine>,
}

struct Machine {
    name: ClientName,
    volume: VolumeId,
    /// What was given at registration, to compare every release with.
    share: Share,
    tls: Arc<ClientConfig>,
}

impl Machines {
    /// `count` machines join the server in `home`, which does not run.
    pub fn join(home: &Home, count: usize) -> Result<Self, Failure> {
        let registrar = home.registrar()?;
        let list = (0..count).map(|number| Machine::join(&registrar, number));
        Ok(Self {
            list: list.collect::<Result<_, _>>()?,
            server: registrar.authority().server_id(),
        })
    }

    /// Their names.
    pub fn names(&self) -> impl Iterator<Item = &ClientName> {
        self.list.iter().map(|machine| &machine.name)
    }

    /// Starts the server in `home` for them.
    pub fn start(self, home: &Home) -> Result<Fleet, Failure> {
        Ok(Fleet {
            server: home.serve()?,
            machines: self,
        })
    }
}

impl Fleet {
    /// The server.
    pub fn server(&self) -> &Server {
        &self.server
    }

    /// The volume of one machine.
    pub fn volume(&self, number: usize) -> VolumeId {
        self.machines.list[number].volume
    }

    /// How one machine connects, with its boot key.
    pub fn tls(&self, number: usize) -> &Arc<ClientConfig> {
        &self.machines.list[number].tls
    }

    /// Ends the server.
    pub fn stop(self) -> Machines {
        self.machines
    }

    /// A new boot of one machine: connection, session, release; the share is opened and compared.
    pub async fn release(&self, number: usize) -> Result<(), Failure> {
        let number = number % self.machines.list.len();
        let machine = &self.machines.list[number];
        let boot = BootKeyPair::generate()?;
        let request = RequestId::random()?;
        let (status, body) = machine
            .ask(number, self.server.address(), &boot, request)
            .await?;
        if status != 200 {
            let body = String::from_utf8_lossy(&body);
            return Err(format!("no release: {status} {body}").into());
        }
        let answer: ReleaseAnswer = serde_json::from_slice(&body)?;
        let [verdict] = answer.verdicts.as_slice() else {
            return Err("not one verdict".into());
        };
        let Verdict::Released { generation, sealed } = &verdict.verdict else {
            return Err(format!("not released: {:?}", verdict.verdict).into());
        };
        let context = ReleaseContext {
            purpose: Purpose::Release,
            server: &self.machines.server,
            client: &machine.name,
            request: &request,
            volume: &machine.volume,
            generation: *generation,
        };
        match boot.open(sealed, context)?.0.matches(&machine.share.0) {
            true => Ok(()),
            false => Err("another share".into()),
        }
    }
}

impl Machine {
    fn join(registrar: &Registrar, number: usize) -> Result<Self, Failure> {
        let name: ClientName = format!("machine-{number}").parse()?;
        let authority = registrar.authority();
        let (key, certificate) = boot_identity(authority, &name)?;
        let spki = Bytes(key_hash(&key)?);
        let (volume, share) = registrar.join(&name, spki, wire::address(number))?;
        let certificate = CertificateDer::from_pem_slice(certificate.as_bytes())?;
        Ok(Self {
            tls: wire::pinned(authority.certificate(), &key, certificate)?,
            name,
            volume,
            share,
        })
    }

    async fn ask(
        &self,
        number: usize,
        server: SocketAddr,
        boot: &BootKeyPair,
        request: RequestId,
    ) -> Result<(u16, Vec<u8>), Failure> {
        let body = asking(self.volume, boot, request)?;
        let mut stream = wire::connect_tls(number, server, &self.tls).await?;
        wire::http(&mut stream, &wire::post(RELEASE, &body)).await
    }
}

/// The body of a new boot's request for `volume`.
pub fn wants(volume: VolumeId) -> Result<Vec<u8>, Failure> {
    asking(volume, &BootKeyPair::generate()?, RequestId::random()?)
}

fn asking(volume: VolumeId, boot: &BootKeyPair, request: RequestId) -> Result<Vec<u8>, Failure> {
    Ok(serde_json::to_vec(&ReleaseRequest {
        version: Version::default(),
        request,
        ephemeral_key: boot.public(),
        volumes: vec![WantedVolume {
            volume,
            generation: Generation::FIRST,
        }],
        facts: BootFacts {
            kernel: Text::cut("6.1.0-40-amd64"),
            command_line: Bytes([1; 32]),
            image_built: 1_790_000_000,
            image: None,
            header: None,
        },
        tickets: Vec::new(),
    })?)
}

/// A boot key as `latchkey join` makes one, and its certificate (PEM).
pub fn boot_identity(
    authority: &Authority,
    client: &ClientName,
) -> Result<(KeyPair, String), Failure> {
    let key = KeyPair::generate_for(&PKCS_ED25519)?;
    let request = RequestedKey::from_csr(&signing_request(&key)?)?;
    let issued = authority.client_certificate(client, ClientKey::Boot, &request)?;
    Ok((key, issued.pem))
}

fn key_hash(key: &KeyPair) -> Result<[u8; 32], Failure> {
    Ok(RequestedKey::from_csr(&signing_request(key)?)?.hash())
}

fn signing_request(key: &KeyPair) -> Result<String, Failure> {
    Ok(CertificateParams::default().serialize_request(key)?.pem()?)
}
