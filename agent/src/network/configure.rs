//! Gives an interface its configuration and takes it back, each change on the list before it is made.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use nix::libc;

use super::netlink::{Netlink, NetlinkError, Snapshot};
use super::resolv;
use super::undo::{self, Change, Journal, UndoError};
use super::values::{Ipv4Config, Mac};

/// Where changes are made and listed.
#[derive(Debug)]
pub struct Configurator {
    netlink: Netlink,
    journal: Journal,
    resolv: PathBuf,
}

/// What can go wrong with a change.
#[derive(Debug, thiserror::Error)]
pub enum ConfigureError {
    /// The list; the change was not made.
    #[error(transparent)]
    Undo(#[from] UndoError),
    /// The kernel.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
}

/// What became of a configuration.
#[derive(Debug, Default)]
pub struct Applied {
    /// What was added, oldest first.
    pub changes: Vec<Change>,
    /// What the kernel refused and one can do without.
    pub refused: Vec<NetlinkError>,
}

impl Configurator {
    /// Uses a socket and a list; the resolver configuration is `etc/resolv.conf` below `root`.
    pub fn new(netlink: Netlink, journal: Journal, root: &Path) -> Self {
        Self {
            netlink,
            journal,
            resolv: root.join("etc/resolv.conf"),
        }
    }

    /// What there is now.
    ///
    /// # Errors
    /// Of the kernel.
    pub async fn snapshot(&self) -> Result<Snapshot, NetlinkError> {
        self.netlink.snapshot().await
    }

    /// Sets an interface up, if it is not.
    ///
    /// # Errors
    /// Any `ConfigureError`.
    pub async fn raise(
        &mut self,
        index: u32,
        mac: Option<Mac>,
        now: &Snapshot,
    ) -> Result<(), ConfigureError> {
        if now.link(index).is_some_and(|link| link.up) {
            return Ok(());
        }
        self.make(Change::LinkUp { index, mac }, async |netlink| {
            netlink.set_up(index).await
        })
        .await?;
        Ok(())
    }

    /// Adds what is missing of a configuration. An address must succeed; a route or an MTU that the kernel refuses
    /// is reported, because what works may be enough to reach a key server.
    ///
    /// # Errors
    /// Any `ConfigureError`; what was added until then is taken back.
    pub async fn apply(
        &mut self,
        index: u32,
        config: &Ipv4Config,
        now: &Snapshot,
    ) -> Result<Applied, ConfigureError> {
        let mut applied = Applied::default();
        match self.apply_all(index, config, now, &mut applied).await {
            Ok(()) => Ok(applied),
            Err(error) => {
                self.take_back(applied.changes).await?;
                Err(error)
            }
        }
    }

    /// Takes changes back, the newest first.
    ///
    /// # Errors
    /// The first that failed; it stays on the list, and the rest is done all the same.
    pub async fn take_back(&mut self, changes: Vec<Change>) -> Result<(), UndoError> {
        let mut failure = None;
        for change in changes.into_iter().rev() {
            let result = match undo::take_back(&self.netlink, &change).await {
                Ok(()) => self.journal.remove(&change),
                Err(error) => Err(error),
            };
            if let Err(error) = result {
                failure.get_or_insert(error);
            }
        }
        failure.map_or(Ok(()), Err)
    }

    /// Writes the resolver configuration, unless somebody else has written one.
    ///
    /// # Errors
    /// `Resolvers`, `Write`.
    pub fn set_resolvers(
        &mut self,
        resolvers: &[Ipv4Addr],
        search: &[String],
    ) -> Result<(), UndoError> {
        let failed = |source| UndoError::Resolvers {
            path: self.resolv.clone(),
            source,
        };
        let listed = |change: &Change| matches!(change, Change::Resolvers { .. });
        if !self.journal.changes().iter().any(listed) {
            let has_some = |text: String| !resolv::parse(&text).is_empty();
            if resolvers.is_empty() || std::fs::read_to_string(&self.resolv).is_ok_and(has_some) {
                return Ok(());
            }
            let before = resolv::before(&self.resolv).map_err(failed)?;
            self.journal.add(Change::Resolvers {
                path: self.resolv.clone(),
                before,
            })?;
        }
        resolv::write(&self.resolv, resolvers, search).map_err(|source| UndoError::Resolvers {
            path: self.resolv.clone(),
            source,
        })
    }

    async fn apply_all(
        &mut self,
        index: u32,
        config: &Ipv4Config,
        now: &Snapshot,
        applied: &mut Applied,
    ) -> Result<(), ConfigureError> {
        let before = now.link(index).map_or(0, |link| link.mtu);
        if let Some(after) = config.mtu.filter(|mtu| before != 0 && *mtu != before) {
            let change = Change::Mtu {
                index,
                before,
                after,
            };
            let made = self
                .make(change, async |netlink| netlink.set_mtu(index, after).await)
                .await;
            dispensable(made, applied)?;
        }
        for address in config.addresses.iter().copied() {
            if !now.has_address(index, address) {
                let change = Change::Address { index, address };
                let made = self
                    .make(change, async |netlink| {
                        netlink.add_address(index, address).await
                    })
                    .await?;
                applied.changes.extend(made);
            }
        }
        for route in &config.routes {
            if !now.has_route(route) {
                let change = Change::Route {
                    index,
                    route: *route,
                };
                let made = self
                    .make(change, async |netlink| {
                        netlink.add_route(index, route).await
                    })
                    .await;
                dispensable(made, applied)?;
            }
        }
        Ok(())
    }

    /// Lists a change, makes it, and takes it off the list again if it failed. None if it had been made already,
    /// by somebody else.
    async fn make(
        &mut self,
        change: Change,
        make: impl AsyncFnOnce(&Netlink) -> Result<(), NetlinkError>,
    ) -> Result<Option<Change>, ConfigureError> {
        self.journal.add(change.clone())?;
        let Err(error) = make(&self.netlink).await else {
            return Ok(Some(change));
        };
        self.journal.remove(&change)?;
        if error.errno() == Some(libc::EEXIST) {
            Ok(None)
        } else {
            Err(error.into())
        }
    }
}

fn dispensable(
    made: Result<Option<Change>, ConfigureError>,
    applied: &mut Applied,
) -> Result<(), UndoError> {
    match made {
        Ok(change) => applied.changes.extend(change),
        Err(ConfigureError::Netlink(error)) => applied.refused.push(error),
        Err(ConfigureError::Undo(error)) => return Err(error),
    }
    Ok(())
}
