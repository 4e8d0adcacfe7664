//! The list of what was added to the network, kept so that it can be taken away again by another process, also
//! after the agent was killed.
//!
//! Each change is on the list, in a file, before it is made; so the list may hold a change that never happened,
//! and undoing skips what is not there. What already existed is never put on the list. Interfaces are known by
//! index and hardware address, because udev of the running system may rename them.

use std::io;
use std::path::{Path, PathBuf};

use nix::libc;
use serde::{Deserialize, Serialize};

use super::files;
use super::netlink::{Netlink, NetlinkError, Snapshot};
use super::resolv::{self, Before};
use super::values::{InterfaceAddress, Mac, Route};

const VERSION: u32 = 1;
/// Far more than any configuration needs; a longer file is not ours.
const SIZE_LIMIT: u64 = 256 * 1024;

/// One thing to take back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "change", deny_unknown_fields)]
pub enum Change {
    /// An interface was set up.
    LinkUp {
        /// Of the interface.
        index: u32,
        /// Of the interface, to be sure it is the same one.
        mac: Option<Mac>,
    },
    /// An MTU was set.
    Mtu {
        /// Of the interface.
        index: u32,
        /// In bytes.
        before: u32,
        /// In bytes; if it is another one now, it is left alone.
        after: u32,
    },
    /// An address was added.
    Address {
        /// Of the interface.
        index: u32,
        /// What was added.
        address: InterfaceAddress,
    },
    /// A route was added.
    Route {
        /// Of the interface.
        index: u32,
        /// What was added.
        route: Route,
    },
    /// The resolver configuration was written.
    Resolvers {
        /// The file.
        path: PathBuf,
        /// What it was.
        before: Before,
    },
}

/// The list, in memory and in its file.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    changes: Vec<Change>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    version: u32,
    changes: Vec<Change>,
}

/// What can go wrong with the list or its undoing.
#[derive(Debug, thiserror::Error)]
pub enum UndoError {
    /// Reading.
    #[error("failed to read the list of network changes '{}'", path.display())]
    Read {
        /// The list.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// Not a list that this version wrote.
    #[error("the list of network changes '{}' is damaged", path.display())]
    Damaged {
        /// The list.
        path: PathBuf,
        /// What is wrong.
        #[source]
        source: serde_json::Error,
    },
    /// Written by another version.
    #[error("the list of network changes '{}' has version {version}, not {VERSION}", path.display())]
    Version {
        /// The list.
        path: PathBuf,
        /// Its version.
        version: u32,
    },
    /// Writing.
    #[error("failed to write the list of network changes '{}'", path.display())]
    Write {
        /// The list.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The kernel refused.
    #[error("failed to take a network change back")]
    Netlink(#[from] NetlinkError),
    /// The resolver configuration.
    #[error("failed to put the resolver configuration '{}' back", path.display())]
    Resolvers {
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

/// Takes back everything on the list at `path` and then removes the list. Without a list there is nothing to do.
/// What cannot be taken back stays on the list, and the rest is done all the same.
///
/// Needs a tokio runtime with I/O and time.
///
/// # Errors
/// The first thing that failed.
pub async fn undo_from(path: &Path) -> Result<(), UndoError> {
    let mut journal = Journal::open(path)?;
    if journal.changes.is_empty() {
        return journal.save();
    }
    let (netlink, _) = Netlink::open()?;
    let mut failure = None;
    let mut kept = Vec::new();
    while let Some(change) = journal.changes.pop() {
        if let Err(error) = take_back(&netlink, &change).await {
            failure.get_or_insert(error);
            kept.push(change);
        }
    }
    kept.reverse();
    journal.changes = kept;
    journal.save()?;
    failure.map_or(Ok(()), Err)
}

impl Journal {
    /// Opens the list, with what an earlier agent of this boot left on it.
    ///
    /// # Errors
    /// `Read`, `Damaged`, `Version`.
    pub fn open(path: &Path) -> Result<Self, UndoError> {
        let read = |source| UndoError::Read {
            path: path.into(),
            source,
        };
        let size = match std::fs::symlink_metadata(path) {
            Ok(metadata) => metadata.len(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Ok(Self {
                    path: path.into(),
                    changes: Vec::new(),
                });
            }
            Err(error) => return Err(read(error)),
        };
        if size > SIZE_LIMIT {
            return Err(read(io::ErrorKind::FileTooLarge.into()));
        }
        let text = std::fs::read(path).map_err(read)?;
        let file: File = serde_json::from_slice(&text).map_err(|source| UndoError::Damaged {
            path: path.into(),
            source,
        })?;
        if file.version != VERSION {
            return Err(UndoError::Version {
                path: path.into(),
                version: file.version,
            });
        }
        Ok(Self {
            path: path.into(),
            changes: file.changes,
        })
    }

    /// What is on the list, oldest first.
    pub fn changes(&self) -> &[Change] {
        &self.changes
    }

    /// Puts a change on the list, before it is made. The same one twice stands there once.
    ///
    /// # Errors
    /// `Write`: then the change must not be made.
    pub fn add(&mut self, change: Change) -> Result<(), UndoError> {
        if self.changes.contains(&change) {
            return Ok(());
        }
        self.changes.push(change);
        self.save().inspect_err(|_| {
            self.changes.pop();
        })
    }

    /// Takes a change off the list: it was not made, or is already undone.
    ///
    /// # Errors
    /// `Write`.
    pub fn remove(&mut self, change: &Change) -> Result<(), UndoError> {
        self.changes.retain(|listed| listed != change);
        self.save()
    }

    fn save(&self) -> Result<(), UndoError> {
        let failed = |source| UndoError::Write {
            path: self.path.clone(),
            source,
        };
        if self.changes.is_empty() {
            return match std::fs::remove_file(&self.path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed(error)),
                _ => Ok(()),
            };
        }
        let file = File {
            version: VERSION,
            changes: self.changes.clone(),
        };
        let text = serde_json::to_vec_pretty(&file).map_err(|error| failed(error.into()))?;
        files::replace(&self.path, &text, 0o600).map_err(failed)
    }
}

/// Takes one change back; what is gone already is fine.
///
/// # Errors
/// `Netlink`, `Resolvers`.
pub async fn take_back(netlink: &Netlink, change: &Change) -> Result<(), UndoError> {
    match change {
        Change::Route { index, route } => gone_is_fine(netlink.delete_route(*index, route).await)?,
        Change::Address { index, address } => {
            gone_is_fine(netlink.delete_address(*index, *address).await)?
        }
        Change::Mtu {
            index,
            before,
            after,
        } => {
            let now = netlink.snapshot().await?;
            if now.link(*index).is_some_and(|link| link.mtu == *after) {
                gone_is_fine(netlink.set_mtu(*index, *before).await)?;
            }
        }
        Change::LinkUp { index, mac } => {
            if may_go_down(&netlink.snapshot().await?, *index, *mac) {
                gone_is_fine(netlink.set_down(*index).await)?;
            }
        }
        Change::Resolvers { path, before } => {
            let failed = |source| UndoError::Resolvers {
                path: path.clone(),
                source,
            };
            resolv::restore(path, before).map_err(failed)?;
        }
    }
    Ok(())
}

/// Whether it is the interface we set up, and nobody has come to use it since (an address that is not ours).
fn may_go_down(now: &Snapshot, index: u32, mac: Option<Mac>) -> bool {
    let same = now
        .link(index)
        .is_some_and(|link| link.up && link.mac == mac);
    same && !now.addresses.iter().any(|address| address.index == index)
}

fn gone_is_fine(result: Result<(), NetlinkError>) -> Result<(), NetlinkError> {
    const GONE: [i32; 5] = [
        libc::ESRCH,
        libc::ENOENT,
        libc::ENODEV,
        libc::EADDRNOTAVAIL,
        libc::ENXIO,
    ];
    match result {
        Err(error) if error.errno().is_some_and(|number| GONE.contains(&number)) => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change(index: u32) -> Change {
        Change::LinkUp {
            index,
            mac: Some(Mac([2, 0, 0, 0, 0, 1])),
        }
    }

    #[test]
    fn the_list_survives_its_process() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("latchkey/network-undo.json");
        let mut journal = Journal::open(&path).unwrap();
        journal.add(change(1)).unwrap();
        journal.add(change(2)).unwrap();
        journal.add(change(1)).unwrap();
        drop(journal);
        let mut journal = Journal::open(&path).unwrap();
        assert_eq!(journal.changes(), [change(1), change(2)]);
        journal.remove(&change(1)).unwrap();
        assert_eq!(Journal::open(&path).unwrap().changes(), [change(2)]);
        journal.remove(&change(2)).unwrap();
        assert!(!path.exists(), "an empty list is no file");
    }

    #[test]
    fn what_cannot_be_listed_is_not_done() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("list");
        // A folder stands where the file should go.
        std::fs::create_dir(folder.path().join("list.new")).unwrap();
        let mut journal = Journal {
            path,
            changes: Vec::new(),
        };
        assert!(matches!(
            journal.add(change(1)),
            Err(UndoError::Write { .. })
        ));
        assert!(journal.changes().is_empty());
    }

    #[test]
    fn a_list_that_is_not_ours_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("list");
        for (text, expected) in [
            ("", "damaged"),
            ("{\"version\":1,\"changes\":[", "damaged"),
            (
                "{\"version\":1,\"changes\":[{\"change\":\"reboot\"}]}",
                "damaged",
            ),
            ("{\"version\":1,\"changes\":[],\"more\":1}", "damaged"),
            (
                "{\"version\":1,\"changes\":[{\"change\":\"link-up\",\"index\":1,\"mac\":null,\"x\":1}]}",
                "damaged",
            ),
            ("{\"version\":2,\"changes\":[]}", "has version 2"),
        ] {
            std::fs::write(&path, text).unwrap();
            let error = Journal::open(&path).expect_err(text).to_string();
            assert!(error.contains(expected), "{text}: {error}");
        }
        std::fs::write(&path, vec![b' '; SIZE_LIMIT as usize + 1]).unwrap();
        assert!(matches!(Journal::open(&path), Err(UndoError::Read { .. })));
    }
}
