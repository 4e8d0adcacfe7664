//! The running part: looks at what there is, does what the plan says, waits for a change, looks again.
//!
//! Whatever happened, the answer is to look anew, so a lost or doubled event does no harm. Changes come from the
//! kernel (netlink), udev (inotify) and the DHCP clients; a slow tick makes good for messages that the kernel had
//! to drop, and gives a card that failed another chance.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout};

use super::assignment::{Method, Rank};
use super::configure::{Configurator, ConfigureError};
use super::contender::{self, Contender};
use super::dhcp_task::{self, Card, Command, News};
use super::interface::{Client, Interface};
use super::lease::Lease;
use super::netlink::{Changes, Link, Netlink, Snapshot};
use super::plan::{Candidate, Plan, Stage, Step, plan};
use super::record::Record;
use super::resolv;
use super::teller::Teller;
use super::udev::Udev;
use super::undo::Journal;
use super::values::Ipv4Config;
use super::{How, NetworkConfig, NetworkEvent, undo_path};
use crate::failure::chain;

/// Between two looks when nothing was heard.
const TICK: Duration = Duration::from_secs(30);
/// After a failure that concerns everything.
const RETRY: Duration = Duration::from_secs(5);
/// For giving a lease back.
const RELEASE: Duration = Duration::from_secs(1);
/// Routes from DHCP yield to those that were configured (metric 0), and among themselves by rank, then to the lower interface.
const DHCP_METRIC: u32 = 512;
const RANK_METRIC: u32 = 100_000;

/// Brings the network up and keeps it so until it is told to stop. Takes nothing down.
pub async fn run(
    config: NetworkConfig,
    events: mpsc::UnboundedSender<NetworkEvent>,
    mut stop: oneshot::Receiver<()>,
) {
    let mut teller = Teller::new(events);
    for note in &config.notes {
        teller.trouble(note.clone());
    }
    let (manager, changes) = loop {
        match Manager::open(&config) {
            Ok(opened) => break opened,
            Err(error) => teller.waiting(Some(format!("network: {}", chain(&error)))),
        }
        tokio::select! {
            () = tokio::time::sleep(RETRY) => {}
            _ = &mut stop => return,
        }
    };
    manager.run(teller, changes, stop).await;
}

struct Manager {
    config: NetworkConfig,
    configurator: Configurator,
    interfaces: BTreeMap<u32, Interface>,
    clients: JoinSet<()>,
    news: mpsc::UnboundedReceiver<(u32, News)>,
    news_for_us: mpsc::UnboundedSender<(u32, News)>,
    contender: Contender,
}

impl Manager {
    fn open(config: &NetworkConfig) -> Result<(Self, Changes), ConfigureError> {
        let (netlink, changes) = Netlink::open()?;
        let (news_for_us, news) = mpsc::unbounded_channel();
        let journal = Journal::open(&undo_path(&config.root))?;
        let manager = Self {
            config: config.clone(),
            configurator: Configurator::new(netlink, journal, &config.root),
            interfaces: BTreeMap::new(),
            clients: JoinSet::new(),
            news,
            news_for_us,
            contender: Contender::new(&config.root, config.dracut),
        };
        Ok((manager, changes))
    }

    async fn run(
        mut self,
        mut teller: Teller,
        mut changes: Changes,
        mut stop: oneshot::Receiver<()>,
    ) {
        let mut udev = Udev::watch(&self.config.root);
        let mut tick = Instant::now() + TICK;
        loop {
            udev.rearm();
            let awaits_another = self.look(&udev, &mut teller).await;
            let again = if awaits_another {
                Instant::now() + contender::AGAIN
            } else {
                tick
            };
            tokio::select! {
                _ = &mut stop => break,
                () = changes.next() => {}
                () = udev.changed() => {}
                Some((index, news)) = self.news.recv() => self.hear(index, news, &mut teller).await,
                () = sleep_until(again.min(tick)) => {
                    if Instant::now() >= tick {
                        tick = Instant::now() + TICK;
                        self.forgive();
                    }
                }
            }
        }
        self.release().await;
    }

    /// Looks at everything and does what is due. True if another program is waited for.
    async fn look(&mut self, udev: &Udev, teller: &mut Teller) -> bool {
        let now = match self.configurator.snapshot().await {
            Ok(now) => now,
            Err(error) => {
                teller.waiting(Some(format!("network: {}", chain(&error))));
                return true;
            }
        };
        self.follow(&now, teller).await;

        let awaited = self.contender.is_expected();
        let expected = awaited || self.contender.is_left_to_dracut();
        let candidates: Vec<Candidate<'_>> = now
            .links
            .iter()
            .map(|link| self.candidate(link, &now, udev, expected))
            .collect();
        let Plan { steps, waiting } = plan(&self.config.wishes, &candidates);
        if waiting.is_some() {
            teller.waiting(waiting);
        }
        for step in steps {
            self.step(step, &now, teller).await;
        }
        awaited
    }

    fn candidate<'a>(
        &self,
        link: &'a Link,
        now: &Snapshot,
        udev: &Udev,
        expected: bool,
    ) -> Candidate<'a> {
        let known = self.interfaces.get(&link.index);
        let stage = known.map_or(Stage::New, |interface| interface.stage);
        Candidate {
            link,
            stage,
            ready: stage != Stage::New || udev.has_finished(link.index),
            address: global_address(now, link.index),
            contended: expected && matches!(stage, Stage::New | Stage::Raised),
            idle: known.is_some_and(|interface| interface.is_idle(link)),
        }
    }

    /// Takes note of interfaces that changed or went away.
    async fn follow(&mut self, now: &Snapshot, teller: &mut Teller) {
        let indices: Vec<u32> = self.interfaces.keys().copied().collect();
        for index in indices {
            let Some(interface) = self.interfaces.get_mut(&index) else {
                continue;
            };
            let link = now.link(index).filter(|link| link.mac == interface.mac);
            let lost = match (link, interface.stage) {
                (None, _) => true,
                (Some(_), Stage::AsItIs) => global_address(now, index).is_none(),
                // Somebody set it down, and with that its routes are gone.
                (Some(link), Stage::Raised | Stage::Configured) => !link.up,
                (Some(_), Stage::New | Stage::Failed) => false,
            };
            if lost {
                teller.down(interface);
                self.forget(index, teller).await;
                continue;
            }
            let Some(link) = link else { continue };
            interface.name.clone_from(&link.name);
            let had_carrier = std::mem::replace(&mut interface.carrier, link.carrier);
            if had_carrier != link.carrier {
                interface.since = Instant::now();
            }
            if interface.stage != Stage::Configured || had_carrier == link.carrier {
                continue;
            }
            if !link.carrier {
                teller.down(interface);
                teller.waiting(Some(format!(
                    "network: waiting for a link on '{}'",
                    interface.name
                )));
            } else {
                if let Some(client) = &interface.client {
                    // Its answer will tell whether it is still the same network. A client that ended is replaced later.
                    let _ = client.commands.send(Command::LinkBack);
                }
                teller.up(interface);
            }
        }
    }

    async fn step(&mut self, step: Step, now: &Snapshot, teller: &mut Teller) {
        match step {
            Step::UseAsItIs(index, address) => {
                let Some(interface) = self.interface(index, now) else {
                    return;
                };
                (interface.stage, interface.how) = (Stage::AsItIs, How::AlreadyThere);
                interface.config = Ipv4Config::default();
                let name = interface.name.clone();
                let resolvers = self.resolvers_for(&name);
                self.set_resolvers(index, resolvers, teller);
                self.announce(index, address, teller);
            }
            Step::Raise(index) => {
                let Some(interface) = self.interface(index, now) else {
                    return;
                };
                interface.stage = Stage::Raised;
                let mac = interface.mac;
                let raised = self.configurator.raise(index, mac, now).await;
                if let Err(error) = raised {
                    self.fail(index, &error, teller);
                }
            }
            Step::Configure(index, Method::Static(config), how) => {
                let Some(interface) = self.interface(index, now) else {
                    return;
                };
                (interface.stage, interface.how) = (Stage::Configured, how);
                self.apply(index, config, now, teller).await;
            }
            Step::Configure(index, Method::Dhcp { wish, mtu, rank }, how) => {
                let Some(interface) = self.interface(index, now) else {
                    return;
                };
                (interface.stage, interface.how) = (Stage::Configured, how);
                self.ask(index, wish, mtu, rank);
            }
        }
    }

    /// Starts a DHCP client.
    fn ask(&mut self, index: u32, wish: Option<Ipv4Addr>, mtu: Option<u32>, rank: Rank) {
        let Some(interface) = self.interfaces.get_mut(&index) else {
            return;
        };
        let Some(mac) = interface.mac else { return };
        let card = Card {
            index,
            name: interface.name.clone(),
            mac,
        };
        let (commands, receiver) = mpsc::unbounded_channel();
        let news = self.news_for_us.clone();
        let tell = move |what| {
            // Nobody listens once everything stops.
            let _ = news.send((index, what));
        };
        let task = self
            .clients
            .spawn(dhcp_task::run(card, wish, tell, receiver));
        interface.client = Some(Client {
            commands,
            task,
            mtu,
            rank,
        });
    }

    /// Takes what a DHCP client says.
    async fn hear(&mut self, index: u32, news: News, teller: &mut Teller) {
        let Some(interface) = self.interfaces.get_mut(&index) else {
            return;
        };
        // An old client's last words.
        let Some(client) = &interface.client else {
            return;
        };
        match news {
            News::Use(lease) => {
                interface.silence = false;
                let config = Ipv4Config {
                    mtu: lease.config.mtu.or(client.mtu),
                    ..with_metric(&lease, client.rank, index)
                };
                if config == interface.config {
                    return;
                }
                self.take_back(index, teller).await;
                match self.configurator.snapshot().await {
                    Ok(now) => self.apply(index, config, &now, teller).await,
                    Err(error) => self.fail(index, &error.into(), teller),
                }
            }
            News::Drop => {
                teller.down(interface);
                self.take_back(index, teller).await;
            }
            News::Silence => {
                interface.silence = true;
                let line = format!("network: no answer to DHCP on '{}'", interface.name);
                teller.waiting(Some(line));
            }
            News::Broken(why) => {
                let line = format!("network: DHCP on '{}' fails: {why}", interface.name);
                teller.waiting(Some(line));
            }
        }
    }

    async fn apply(&mut self, index: u32, config: Ipv4Config, now: &Snapshot, teller: &mut Teller) {
        let Some(first) = config.addresses.first().map(|address| address.address) else {
            return;
        };
        match self.configurator.apply(index, &config, now).await {
            Ok(applied) => {
                let Some(interface) = self.interfaces.get_mut(&index) else {
                    return;
                };
                for refused in &applied.refused {
                    let line = format!("network: on '{}': {}", interface.name, chain(refused));
                    teller.trouble(line);
                }
                interface.changes = applied.changes;
                let resolvers = config.resolvers.clone();
                interface.config = config;
                // Other routes may reach what these did not: worth being told, the same address or not.
                interface.up = None;
                self.set_resolvers(index, resolvers, teller);
                self.announce(index, first, teller);
            }
            Err(error) => self.fail(index, &error, teller),
        }
    }

    async fn take_back(&mut self, index: u32, teller: &mut Teller) {
        let Some(interface) = self.interfaces.get_mut(&index) else {
            return;
        };
        interface.config = Ipv4Config::default();
        let changes = std::mem::take(&mut interface.changes);
        if let Err(error) = self.configurator.take_back(changes).await {
            teller.trouble(format!("network: {}", chain(&error)));
        }
    }

    /// Drops what was ours on an interface, which begins anew if it still exists.
    async fn forget(&mut self, index: u32, teller: &mut Teller) {
        self.take_back(index, teller).await;
        if let Some(client) = self
            .interfaces
            .remove(&index)
            .and_then(|interface| interface.client)
        {
            client.task.abort();
        }
    }

    /// Writes the resolvers of all interfaces, after `index` got these.
    fn set_resolvers(&mut self, index: u32, resolvers: Vec<Ipv4Addr>, teller: &mut Teller) {
        if let Some(interface) = self.interfaces.get_mut(&index) {
            interface.config.resolvers = resolvers;
        }
        let given: Vec<Ipv4Addr> = self
            .interfaces
            .values()
            .flat_map(|interface| interface.config.resolvers.clone())
            .collect();
        let wishes = &self.config.wishes;
        let recorded = wishes.record.as_ref();
        let all = resolv::order(
            &wishes.parameter.resolvers,
            &recorded.map(Record::ipv4_resolvers).unwrap_or_default(),
            &given,
        );
        let search = recorded.map(Record::domains).unwrap_or_default();
        if let Err(error) = self.configurator.set_resolvers(&all, &search) {
            teller.trouble(format!("network: {}", chain(&error)));
        }
    }

    /// For an interface that somebody else configured: the recorded ones, else what that somebody was given.
    fn resolvers_for(&self, name: &str) -> Vec<Ipv4Addr> {
        let recorded = self
            .config
            .wishes
            .record
            .as_ref()
            .map(|record| record.ipv4_resolvers())
            .unwrap_or_default();
        if !recorded.is_empty() {
            return recorded;
        }
        let path = self.config.root.join(format!("run/net-{name}.conf"));
        std::fs::read_to_string(path)
            .map(|text| resolv::parse_ipconfig(&text))
            .unwrap_or_default()
    }

    fn announce(&mut self, index: u32, address: Ipv4Addr, teller: &mut Teller) {
        if let Some(interface) = self.interfaces.get_mut(&index) {
            teller.up_as(interface, address);
        }
    }

    fn fail(&mut self, index: u32, error: &ConfigureError, teller: &mut Teller) {
        let Some(interface) = self.interfaces.get_mut(&index) else {
            return;
        };
        interface.stage = Stage::Failed;
        teller.down(interface);
        teller.waiting(Some(format!(
            "network: '{}': {}",
            interface.name,
            chain(error)
        )));
        if let Some(client) = interface.client.take() {
            client.task.abort();
        }
    }

    /// Lets interfaces that failed begin anew.
    fn forgive(&mut self) {
        self.interfaces
            .retain(|_, interface| interface.stage != Stage::Failed);
    }

    /// Gives leases back, all at once and only for a moment.
    async fn release(&mut self) {
        let clients = self
            .interfaces
            .values_mut()
            .filter_map(|interface| interface.client.take());
        let ends = clients.filter_map(|client| {
            let (done, ended) = oneshot::channel();
            client
                .commands
                .send(Command::End(done))
                .is_ok()
                .then_some(ended)
        });
        let ends: Vec<_> = ends.collect();
        // Not given back in time: it expires.
        let _ = timeout(RELEASE, async {
            for end in ends {
                let _ = end.await;
            }
        })
        .await;
    }

    fn interface(&mut self, index: u32, now: &Snapshot) -> Option<&mut Interface> {
        let link = now.link(index)?;
        let new = || Interface::new(link);
        Some(self.interfaces.entry(index).or_insert_with(new))
    }
}

fn global_address(now: &Snapshot, index: u32) -> Option<Ipv4Addr> {
    let mut addresses = now.global_addresses(index);
    addresses.next().map(|found| found.address.address)
}

fn with_metric(lease: &Lease, rank: Rank, index: u32) -> Ipv4Config {
    let of_rank = match rank {
        Rank::First => 0,
        Rank::Secondary => RANK_METRIC,
        Rank::Unknown => 2 * RANK_METRIC,
    };
    let mut config = lease.config.clone();
    for route in &mut config.routes {
        route.metric = Some((DHCP_METRIC + of_rank).saturating_add(index));
    }
    config
}
