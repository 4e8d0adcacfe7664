//! A machine with a root volume that is bound under a preset: its running system is the real `latchkey run`, its reboots are
//! announced by the real `latchkey arm-reboot`.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use latchkey::files::Files;
use latchkey_protocol::RequestId;
use latchkey_protocol::wire::{BootReport, Text, Version};
use latchkeyd::audit::Kind;
use latchkeyd::policy::Preset;
use nix::sys::signal::Signal;
use nix::unistd::Pid;
use serde_json::Value;

use crate::boot::{Boot, Disk, End};
use crate::common::machine::{Machine, Volume};
use crate::common::service::Service;
use crate::keyserver::{HOME, KeyServer};
use crate::network::Place;
use crate::power::Moment;

/// Between two boots: beyond the reach of limits by the hour.
const BETWEEN: Duration = Duration::from_secs(7200);
const IMAGE: &str = "8f21b4a7c3d05e6f8f21b4a7c3d05e6f8f21b4a7c3d05e6f8f21b4a7c3d05e6f";

pub struct Running {
    pub server: KeyServer,
    machine: Machine,
    volume: Volume,
    service: Option<Service>,
}

impl Running {
    /// Joined and bound, and up.
    pub fn under(preset: Preset) -> Self {
        let server = KeyServer::new();
        let machine = Machine::new();
        machine
            .latchkey(&["join", "-"], &server.invite("web-1"))
            .succeeded();
        machine.write_crypttab("luks,discard,initramfs");
        machine.encrypt_root();
        let volume = Volume::luks2();
        machine.plug_in(&volume);
        machine.bind(&volume).succeeded();
        // What the hook that builds an image leaves.
        let image = format!("built = 0\ninit = \"/sbin/init\"\nbuild-id = \"{IMAGE}\"\n");
        fs::write(machine.path("etc/latchkey/image.toml"), image).unwrap();
        let list = machine.latchkey(&["list", "--json"], "").succeeded().out;
        let list: Value = serde_json::from_str(&list).unwrap();
        let id = list[0]["binding"]["volume"].as_str().unwrap();
        let mut running = Self {
            server,
            machine,
            volume,
            service: None,
        };
        fs::write(running.files().images(), format!("{IMAGE}\n")).unwrap();
        running.comes_up(None);
        let service = running.server.service();
        service
            .set_policy(&id.parse().unwrap(), &preset.policy(), "root")
            .unwrap();
        running
    }

    /// The system starts, by a boot session or by a typed passphrase: its service connects, and the ticket moves on.
    pub fn comes_up(&mut self, boot: Option<RequestId>) {
        self.starts(boot);
        let service = self.service.as_mut().unwrap();
        service.says("tickets moved on in 1 volumes");
        service.says("hears that this machine lives");
    }

    fn starts(&mut self, boot: Option<RequestId>) {
        assert!(self.service.is_none(), "it runs");
        let run = self.machine.path("run");
        if run.exists() {
            fs::remove_dir_all(&run).unwrap();
        }
        let report = BootReport {
            version: Version::default(),
            request: boot,
            lines: vec![Text::cut("started")],
        };
        let path = self.files().report();
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, serde_json::to_vec(&report).unwrap()).unwrap();
        self.service = Some(Service::of(&self.machine));
    }

    /// An orderly end.
    pub fn goes_down(&mut self) {
        self.service.take().unwrap().ends();
        until("it has hung up", || self.server.is_alone());
    }

    /// Says beforehand that it reboots, unless its power goes at `cut`; whether the key server knows.
    pub fn announces(&mut self, cut: Option<Moment>) -> bool {
        let before = self.server.audit_end();
        let mut arm = self.machine.command(&["arm-reboot"]);
        let mut arm = arm
            .stdin(std::process::Stdio::null())
            .stderr(std::process::Stdio::null())
            .spawn()
            .unwrap();
        if let Some(moment) = cut {
            let process = Pid::from_raw(arm.id().try_into().unwrap());
            self.server.power.cut_machine(moment, process);
        }
        let status = arm.wait().unwrap();
        let was_cut = cut.is_some() && !self.server.power.call_off();
        assert_eq!(status.success(), !was_cut, "{status}");
        let entries = self.server.audit_after(before);
        entries.iter().any(|entry| entry.event.kind == Kind::Armed)
    }

    /// Its power goes; the key server hears that the connection ends, if there was one.
    pub fn is_cut(&mut self) {
        drop(self.service.take());
    }

    /// Its power goes, or its network: nothing comes from it any more, and nobody says so.
    pub fn falls_silent(&mut self) {
        self.service.as_ref().unwrap().signal(Signal::SIGSTOP);
    }

    /// Its power goes at a commit that it leads to while it comes up: of its heartbeat, its report, its tickets.
    pub fn is_cut_while_it_comes_up(&mut self, moment: Moment) {
        self.goes_down();
        self.starts(None);
        let service = self.service.as_mut().unwrap();
        self.server.power.cut_machine(moment, service.pid());
        let begin = Instant::now();
        while !service.is_over() && !service.said().contains("tickets moved on") {
            assert!(begin.elapsed() < Duration::from_secs(60));
            std::thread::sleep(Duration::from_millis(5));
        }
        self.server.power.call_off();
        drop(self.service.take());
    }

    /// As it is now.
    pub fn disk(&self) -> Disk {
        Disk::copy(self.machine.root.path(), &self.volume_path())
    }

    /// A boot of the machine itself.
    pub fn boots(&self) -> Boot {
        let volume = self.volume_path();
        self.disk().boots(HOME, &self.server, Some(&volume))
    }

    /// What `count` boots of a copy at `place` come to, which is the same for each. Whoever waits is denied, so that the next
    /// may ask.
    #[track_caller]
    pub fn copies(&mut self, count: usize, disk: &Disk, place: Place, answers: Answers) -> End {
        let mut ends = Vec::with_capacity(count);
        for _ in 0..count {
            let boot = disk.boots(place, &self.server, None);
            let before = self.server.audit_end();
            let (_, end) = boot.ends(&mut self.server, |server| {
                if answers == Answers::Sends {
                    until("the running machine has answered", || {
                        let entries = server.audit_after(before);
                        entries.iter().any(|entry| entry.event.kind == Kind::Alarm)
                    });
                }
            });
            ends.push(end);
            self.server.deny_all();
            self.passes();
        }
        assert!(ends.iter().all(|end| *end == ends[0]), "{ends:?}");
        ends[0]
    }

    /// Time until the next boot.
    pub fn passes(&self) {
        self.server.clock.pass(BETWEEN);
    }

    fn files(&self) -> Files {
        Files::under(self.machine.root.path())
    }

    fn volume_path(&self) -> PathBuf {
        self.volume.path().into()
    }
}

/// Whether the original answers what it is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answers {
    Sends,
    None,
}

/// Real time passes until `what` holds.
#[track_caller]
pub fn until(what: &str, holds: impl Fn() -> bool) {
    let begin = Instant::now();
    while !holds() {
        assert!(begin.elapsed() < Duration::from_secs(60), "not '{what}'");
        std::thread::sleep(Duration::from_millis(5));
    }
}
