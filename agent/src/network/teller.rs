//! What the network tells whoever listens: that it can be used, or why not.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use tokio::sync::mpsc;

use super::NetworkEvent;
use super::interface::Interface;

/// Speaks to whoever listens; says what is waited for only when it changes.
pub struct Teller {
    events: mpsc::UnboundedSender<NetworkEvent>,
    /// Of which it was told that they can be used. While there is one, nothing else is trouble.
    up: BTreeSet<u32>,
    waiting: Option<String>,
}

impl Teller {
    /// For whoever listens to `events`.
    pub fn new(events: mpsc::UnboundedSender<NetworkEvent>) -> Self {
        Self {
            events,
            up: BTreeSet::new(),
            waiting: None,
        }
    }

    fn tell(&self, event: NetworkEvent) {
        // Nobody may be listening any more; the network goes on all the same.
        let _ = self.events.send(event);
    }

    /// Something is wrong: trouble, if none is up.
    pub fn trouble(&self, line: String) {
        self.tell(if self.up.is_empty() {
            NetworkEvent::Trouble(line)
        } else {
            NetworkEvent::Beside(line)
        });
    }

    /// What is waited for, if anything; told when it changes.
    pub fn waiting(&mut self, line: Option<String>) {
        if let Some(line) = &line
            && self.waiting.as_ref() != Some(line)
        {
            self.trouble(line.clone());
        }
        self.waiting = line;
    }

    /// It can be used, with this address.
    pub fn up_as(&mut self, interface: &mut Interface, address: Ipv4Addr) {
        self.up.insert(interface.index);
        if interface.up != Some(address) {
            interface.up = Some(address);
            self.tell(NetworkEvent::Up {
                link: interface.name.clone(),
                how: interface.how,
                address,
            });
        }
        self.waiting = None;
    }

    /// It can be used again, as it was configured.
    pub fn up(&mut self, interface: &mut Interface) {
        if let Some(address) = interface
            .config
            .addresses
            .first()
            .map(|address| address.address)
        {
            self.up_as(interface, address);
        }
    }

    /// It cannot be used any more; nothing is told of one of which that was known.
    pub fn down(&mut self, interface: &mut Interface) {
        if self.up.remove(&interface.index) {
            interface.up = None;
            let link = interface.name.clone();
            self.tell(if self.up.is_empty() {
                NetworkEvent::Down { link }
            } else {
                NetworkEvent::Beside(format!("network: '{link}' went down"))
            });
        }
    }
}
