//! A machine with a bound volume at the real key server, and boots of it or of a copy of its disk.

use latchkey::files::{Files, Role, ServerFiles};
use latchkey::server::{KeyServer, block_on};
use latchkey_protocol::encoding::Bytes;
use latchkey_protocol::tickets::Tickets;
use latchkey_protocol::wire::{
    BootFacts, ReleaseRequest, Text, Verdict, Version, VolumeTicket, WantedVolume,
};
use latchkey_protocol::{BootKeyPair, Generation, RequestId, VolumeId};
use serde_json::Value;

use crate::Service;
use crate::common::machine::{Machine, Server, Volume};

/// What a boot of a copy of the disk shows: the ticket in its header.
pub type Shown = Option<Bytes<32>>;

pub struct World {
    pub server: Server,
    pub machine: Machine,
    pub volume: Volume,
    id: VolumeId,
}

/// One boot session.
pub struct Boot {
    request: RequestId,
    keys: BootKeyPair,
    shown: Shown,
    image: Option<Bytes<32>>,
}

impl World {
    pub fn new() -> Self {
        let server = Server::start();
        let machine = Machine::joined(&[&server]);
        machine.encrypt_root();
        let volume = Volume::luks2();
        machine.plug_in(&volume);
        machine.bind(&volume).succeeded();
        let list = machine.latchkey(&["list", "--json"], "").succeeded().out;
        let list: Value = serde_json::from_str(&list).unwrap();
        let id = list[0]["binding"]["volume"].as_str().unwrap();
        Self {
            id: id.parse().unwrap(),
            server,
            machine,
            volume,
        }
    }

    /// The system has come up: the service runs, and the tickets have moved on.
    #[track_caller]
    pub fn up(&self) -> Service {
        for mark in ["moved-on", "reported"] {
            let id = self.server_files().settings.id.short();
            let _ = std::fs::remove_file(self.machine.path(&format!("run/latchkey/{mark}-{id}")));
        }
        let mut service = Service::of(&self.machine);
        service.says("tickets moved on in 1 volumes");
        service.says("hears that this machine lives");
        service
    }

    /// Sets this policy for the volume.
    #[track_caller]
    pub fn policy(&self, text: &str) {
        let path = self.machine.path("policy.toml");
        std::fs::write(&path, text).unwrap();
        self.server
            .admin(&["policy", "set", "root_crypt", path.to_str().unwrap()])
            .succeeded();
    }

    /// The ticket in the header as it is now.
    pub fn ticket(&self) -> Shown {
        let server = self.server_files().settings.id;
        let json = self.volume.json();
        let tokens = json["tokens"].as_object().unwrap().values();
        let tickets = tokens.filter_map(|token| Tickets::parse(token.to_string().as_bytes()).ok());
        tickets
            .filter(|tickets| tickets.volume == self.id)
            .find_map(|tickets| tickets.of(server))
    }

    /// What the key server says to a boot session that shows `shown`, once it has decided.
    pub fn boot(&self, shown: Shown) -> Verdict {
        self.ask(&Boot::new(shown))
    }

    pub fn ask(&self, boot: &Boot) -> Verdict {
        loop {
            match self.ask_once(boot) {
                Verdict::Wait { retry_after, .. } => {
                    let pause = std::time::Duration::from_secs(retry_after.into());
                    std::thread::sleep(pause);
                }
                verdict => return verdict,
            }
        }
    }

    pub fn ask_once(&self, boot: &Boot) -> Verdict {
        let ticket = |ticket| VolumeTicket {
            volume: self.id,
            ticket,
        };
        let request = ReleaseRequest {
            version: Version::default(),
            request: boot.request,
            ephemeral_key: boot.keys.public(),
            volumes: vec![WantedVolume {
                volume: self.id,
                generation: Generation::FIRST,
            }],
            facts: BootFacts {
                kernel: Text::cut("6.1.0"),
                command_line: Bytes([0; 32]),
                image_built: 0,
                image: boot.image,
                header: None,
            },
            tickets: boot.shown.map(ticket).into_iter().collect(),
        };
        let server = KeyServer::open(&self.server_files(), Role::Boot).unwrap();
        let asked = server.ask(async |client, address| client.release(address, &request).await);
        block_on(asked).unwrap().unwrap().verdicts.remove(0).verdict
    }

    pub fn server_files(&self) -> ServerFiles {
        self.files().all_servers().unwrap().remove(0)
    }

    pub fn files(&self) -> Files {
        Files::under(self.machine.root.path())
    }

    pub fn audit(&self) -> String {
        self.server.admin(&["audit"]).succeeded().out
    }
}

impl Boot {
    pub fn new(shown: Shown) -> Self {
        Self {
            request: RequestId::random().unwrap(),
            keys: BootKeyPair::generate().unwrap(),
            shown,
            image: None,
        }
    }

    /// From the initramfs with this build id.
    pub fn of_image(self, image: [u8; 32]) -> Self {
        let image = Some(Bytes(image));
        Self { image, ..self }
    }
}

#[track_caller]
pub fn is_released(verdict: &Verdict) {
    assert!(matches!(verdict, Verdict::Released { .. }), "{verdict:?}");
}

#[track_caller]
pub fn is_denied(verdict: &Verdict) {
    assert!(matches!(verdict, Verdict::Denied { .. }), "{verdict:?}");
}
