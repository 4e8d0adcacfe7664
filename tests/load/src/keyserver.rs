//! A key server in a folder of its own: set up, filled with clients, started and looked at.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use latchkey_protocol::encoding::Bytes;
use latchkey_protocol::release::{BootKeyPair, Purpose, ReleaseContext};
use latchkey_protocol::wire::{Text, Version, VolumeRequest};
use latchkey_protocol::{ClientName, RequestId, Share, VolumeId};
use latchkeyd::ca::Authority;
use latchkeyd::config::{self, Config};
use latchkeyd::keyring::{self, Opened};
use latchkeyd::records::SpkiHash;
use latchkeyd::service::JoinKeys;

use crate::Failure;
use crate::child::{self, Started};
use crate::wire;

const LIFETIME: Duration = Duration::from_secs(3600);
/// Threads that fill a store side by side, so that they share its commits.
const FILLERS: usize = 32;

/// Where a key server's files lie.
pub struct Home {
    program: PathBuf,
    data_dir: PathBuf,
    log: PathBuf,
    config: Config,
}

/// A key server that runs.
pub struct Server {
    process: Started,
    address: SocketAddr,
}

/// A key server that does not run, opened by its own library.
pub struct Registrar(Opened);

impl Home {
    /// `latchkeyd init` in `folder`.
    pub fn create(program: &Path, folder: &Path) -> Result<Self, Failure> {
        std::fs::create_dir_all(folder)?;
        let data_dir = folder.join("data");
        let mut command = Command::new(program);
        command.args(["init", "--name", "127.0.0.1", "--data-dir"]);
        command.arg(&data_dir);
        child::run("latchkeyd init", command)?;
        Ok(Self {
            program: program.to_owned(),
            config: Config::load(&data_dir.join(config::FILE_NAME))?,
            data_dir,
            log: folder.join("latchkeyd.log"),
        })
    }

    /// `latchkeyd serve` on a free port of 127.0.0.1.
    pub fn serve(&self) -> Result<Server, Failure> {
        let mut command = Command::new(&self.program);
        command.args(["serve", "--listen", "127.0.0.1:0", "--data-dir"]);
        command.arg(&self.data_dir);
        command.stdin(Stdio::null()).stdout(Stdio::null());
        command.stderr(std::fs::File::create(&self.log)?);
        let mut process = Started::new("latchkeyd", command)?;
        let address = process.wait(|| {
            let log = std::fs::read_to_string(&self.log).ok()?;
            log.contains(" is ready").then_some(())?;
            let (_, rest) = log.split_once("listening on ")?;
            rest.split_whitespace().next()?.parse().ok()
        })?;
        Ok(Server { process, address })
    }

    /// The server's library on the same files, while the server does not run.
    pub fn registrar(&self) -> Result<Registrar, Failure> {
        Ok(Registrar(keyring::open(&self.config)?))
    }
}

impl Server {
    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its resident memory in KiB: VmRSS of proc_pid_status(5).
    pub fn resident(&self) -> Result<u64, Failure> {
        let path = format!("/proc/{}/status", self.process.pid());
        let status = std::fs::read_to_string(path)?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let number = line.and_then(|line| line.trim().strip_suffix(" kB"));
        Ok(number.ok_or("no VmRSS")?.trim().parse()?)
    }
}

impl Registrar {
    /// The CA.
    pub fn authority(&self) -> &Authority {
        &self.0.authority
    }

    /// Revokes a client.
    pub fn revoke(&self, client: &ClientName) -> Result<(), Failure> {
        self.0.service.revoke(client, "load")?;
        Ok(())
    }

    /// Everything that `latchkey join` and `latchkey bind` make the server do, without the network: an invitation,
    /// two registered keys, a volume with its share. The volume is then released to `from`, as is the default.
    pub fn join(
        &self,
        client: &ClientName,
        boot: SpkiHash,
        from: IpAddr,
    ) -> Result<(VolumeId, Share), Failure> {
        let service = &self.0.service;
        let invitation = service.invite(client, LIFETIME, "load")?;
        let mut host = Bytes([0; 32]);
        getrandom::fill(&mut host.0)?;
        let keys = JoinKeys {
            secret: &invitation.secret,
            boot,
            host,
        };
        service.join(keys, from)?;
        let identity = service.identify(&host)?.ok_or("the host key is unknown")?;
        let session = BootKeyPair::generate()?;
        let request = VolumeRequest {
            version: Version::default(),
            request: RequestId::random()?,
            ephemeral_key: session.public(),
            volume: VolumeId::random()?,
            opened_by: latchkey_protocol::wire::OpenedBy::BootKey,
            label: Text::cut("vda5_crypt"),
        };
        let answer = service.register(&identity, from, &request)?;
        let context = ReleaseContext {
            purpose: Purpose::Registration,
            server: service.server(),
            client,
            request: &request.request,
            volume: &request.volume,
            generation: answer.generation,
        };
        Ok((request.volume, session.open(&answer.sealed, context)?))
    }

    /// Clients with one volume each, numbered from `from` up to `to`, with random keys that nobody has.
    pub fn fill(&self, from: usize, to: usize) -> Result<(), Failure> {
        let next = AtomicUsize::new(from);
        let filler = || -> Result<(), Failure> {
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= to {
                    return Ok(());
                }
                let mut boot = Bytes([0; 32]);
                getrandom::fill(&mut boot.0)?;
                let name = format!("filled-{number}").parse()?;
                self.join(&name, boot, wire::address(number))?;
            }
        };
        std::thread::scope(|scope| {
            let fillers: Vec<_> = (0..FILLERS).map(|_| scope.spawn(filler)).collect();
            fillers.into_iter().try_for_each(|filler| {
                filler
                    .join()
                    .unwrap_or_else(|_| Err("a thread panicked".into()))
            })
        })
    }
}
